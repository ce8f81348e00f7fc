"""DailyDialog: dialogues and labels of two files, splits in folders, and the F1 that its papers report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.data import ADAPTERS, load, resolve
from selfemo.data.checks import check_lines
from selfemo.errors import DataError
from selfemo.evaluation.metrics import Outcomes
from selfemo.method.types import LABEL_SETS, Utterance
from selfemo.runs.inputs import with_known_personas
from tests.conftest import dist

LABELS = LABEL_SETS["dailydialog"]
TEXT = "Is the shop open ? __eou__ It closed an hour ago . __eou__\nLovely ! __eou__\n"
IDS = "0 5 \n4\n"


def files(folder: Path, part: str = "train", text: str = TEXT, ids: str | None = IDS) -> Path:
    """A text file of a split, or of all dialogues ("text"), with its labels beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"dialogues_{part}.txt"
    path.write_text(text)
    if ids is not None:
        (
            folder / ("dialogues_emotion.txt" if part == "text" else f"dialogues_emotion_{part}.txt")
        ).write_text(ids)
    return path


def release(root: Path) -> Path:
    """The release: all dialogues, and each split in a folder (one of them in two of its name)."""
    files(root, "text", TEXT * 2, IDS * 2)
    files(root / "train" / "train", "train")
    files(root / "validation", "validation", "Hm . __eou__\n", "0\n")
    files(root / "test", "test", "Ugh ! __eou__\n", "2\n")
    (root / "train" / "dialogues_act_train.txt").write_text("1 1\n1\n")
    (root / "readme.txt").write_text("Please cite.")
    return root


def test_splits_are_read_and_the_file_of_all_is_left_out(tmp_path: Path) -> None:
    result = load(str(release(tmp_path)))
    first, second, dev, test = result.conversations
    assert (first.id, first.split, first.label_set) == ("dailydialog-train-0", "train", LABELS)
    assert first.turns == (
        Utterance("A", "Is the shop open ?", dist(**{"no emotion": 1})),
        Utterance("B", "It closed an hour ago .", dist(sadness=1)),
    )
    assert second.turns == (Utterance("A", "Lovely !", dist(happiness=1)),)
    assert (dev.split, test.split, test.turns[0].emotion) == ("dev", "test", dist(disgust=1))
    assert [Path(s[0]).name for s in result.report.skipped] == ["dialogues_text.txt"]
    lines = check_lines(result, ADAPTERS["dailydialog"])
    assert lines[0] == f"data set: dailydialog (labels: {', '.join(LABELS)})"
    assert "train: 2 conversations, 3 utterances (official 87170: differs by -87167)" in lines
    assert "dev: 1 conversation, 1 utterance (official 8069: differs by -8068)" in lines


def test_a_folder_and_files_lead_to_the_same(tmp_path: Path) -> None:
    root = release(tmp_path / "ijcnlp_dailydialog")
    assert resolve(str(tmp_path))[1] == root, "the folder that holds the release alone"
    for place in (root / "train" / "train", root / "train" / "train" / "dialogues_train.txt"):
        assert [c.id for c in load(str(place)).conversations] == [
            "dailydialog-train-0",
            "dailydialog-train-1",
        ]


def test_all_dialogues_name_no_split(tmp_path: Path) -> None:
    result = load(str(files(tmp_path, "text")))
    assert result.report.without_split == {"dailydialog-all-0", "dailydialog-all-1"}
    lines = check_lines(result, ADAPTERS["dailydialog"])
    assert "no split: 2 conversations, 3 utterances (official 102979: differs by -102976)" in lines
    assert not any("absent" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "ids", "line", "says"),
    [
        ("Yes . __eou__ No . __eou__\n", "0\n", 2, "has 2 utterances, and BESIDE:2 labels of 1"),
        ("Yes . __eou__\nNo . __eou__\n", "0\n7\n", 3, "BESIDE:3: label '7' is not one of 0 to 6"),
        ("Yes . __eou__\n", "joy\n", 2, "BESIDE:2: label 'joy' is not one of 0 to 6"),
        ("Yes . __eou__  __eou__ No . __eou__\n", "0 0 0\n", 2, "utterance 2 is empty"),
        ("\nNo . __eou__\n", "\n0\n", 2, "the dialogue is empty"),
        ("Yes . __eou__\nNo . __eou__\n", "0\n", None, "has 3 dialogues, and BESIDE labels of 2"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, text: str, ids: str, line: int | None, says: str) -> None:
    path = files(tmp_path, "train", "Good day . __eou__\n" + text, "0\n" + ids)
    with pytest.raises(DataError) as e:
        load(str(path))
    assert (Path(str(e.value.path)), e.value.line) == (path, line)
    assert says.replace("BESIDE", "dialogues_emotion_train.txt") in str(e.value)
    if line is not None:
        assert [s[1] for s in load(str(path), lenient=True).report.skipped] == [line]


def test_a_text_without_its_labels_says_what_is_missing(tmp_path: Path) -> None:
    path = files(tmp_path, "text", ids=None)
    for spec in (str(path), str(tmp_path), f"dailydialog:{path}"):
        with pytest.raises(DataError, match=r"no dialogues_emotion\.txt beside it.*selfemo predict"):
            load(spec)
    other = tmp_path / "talk.txt"
    other.write_text(TEXT)
    with pytest.raises(DataError, match="cannot be told by its name"):
        load(str(other))


def test_speakers_without_a_name_get_no_persona_drawn_from_the_data_set(tmp_path: Path) -> None:
    many = files(tmp_path, "train", "So . __eou__ Oh ! __eou__\n" * 20, "0 6\n" * 20)
    conversations = with_known_personas(load(str(many)).conversations)
    assert len(conversations) == 20 and not any(c.personas for c in conversations)


names = st.sampled_from(LABELS.labels)


@given(st.lists(st.tuples(names, names | st.just("failed")), min_size=1, max_size=30))
def test_micro_f1_without_the_majority_is_that_of_sklearn(pairs: list[tuple[str, str]]) -> None:
    gold, said = zip(*pairs, strict=True)
    found = Outcomes.of(gold, said, [0.0] * len(gold), list(range(len(gold))), LABELS.labels)
    rest = [e for e in LABELS if e != "no emotion"]
    want = f1_score(gold, said, labels=rest, average="micro", zero_division=0)
    assert found.micro_f1("no emotion", resamples=10).value == pytest.approx(want)


def test_micro_f1_by_hand() -> None:
    # Of three emotional turns two are read, one of them right; one of two turns without is read as anger.
    gold = ["anger", "fear", "sadness", "no emotion", "no emotion"]
    said = ["anger", "anger", "no emotion", "anger", "no emotion"]
    found = Outcomes.of(gold, said, [0.0] * 5, list("abcde"), LABELS.labels)
    interval = found.micro_f1("no emotion", resamples=200)
    assert interval.value == pytest.approx(2 * 1 / (3 + 3))
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_evaluation_shows_micro_f1_without_no_emotion(tmp_path: Path) -> None:
    ids = "0 4\n5 0\n"
    files(tmp_path, "test", "Hi . __eou__ At last ! __eou__\nShe left . __eou__ Who ? __eou__\n", ids)
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(f'"E: {e}\\nS: {e}\\nR: Well."\n' for e in ["happiness"] * 4))
    out = tmp_path / "scores"
    command = ["evaluate", f"scripted:{answers}", "--data", f"dailydialog:{tmp_path}", "--out", str(out)]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "micro F1 without 'no emotion'" in done.output
    scores = json.loads((out / "scores.json").read_text())["scores"]["dailydialog"]
    assert scores["unscored"] == "no emotion"
    # Happiness to all four turns: one of the two with an emotion is right.
    assert scores["micro_f1"][0] == pytest.approx(2 * 1 / (4 + 2), abs=1e-5)
