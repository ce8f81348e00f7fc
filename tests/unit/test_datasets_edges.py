"""Adapters where data is odd: each kind of bad input with the place its error names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.config import DataConfig
from selfemo.data import ADAPTERS, detect, load, resolve
from selfemo.data.base import MAX_FIELD_CHARS, LoadReport, SourceFile, split_of
from selfemo.data.checks import check_lines
from selfemo.errors import DataError
from selfemo.method.parsing import parse_emotions
from selfemo.method.prompts import format_emotions
from selfemo.method.types import LABEL_SETS, EmotionDistribution, Utterance
from selfemo.runs.inputs import load_sources
from selfemo.runs.store.prompts import read_distribution, write_distribution
from tests.conftest import dist

MELD_HEAD = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
EMORY_HEAD = "Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode\n"
GOOD = "1,Hi,Ann,joy,x,0,0\n"


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def fails(spec: Path | str, path: Path, line: int | None, says: str) -> None:
    """Loading raises one DataError that names this file and line."""
    with pytest.raises(DataError, match=re.escape(says)) as e:
        load(str(spec))
    assert (Path(str(e.value.path)), e.value.line) == (path, line)


# -- CSV: places, quotes, sizes --------------------------------------------------------------------


def test_blank_lines_do_not_shift_the_line_of_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", MELD_HEAD + "\n\n" + GOOD.replace("joy", "glee"))
    fails(path, path, 4, "unknown label 'glee'")


def test_a_row_over_several_lines_is_named_by_its_first_and_read_as_one(tmp_path: Path) -> None:
    text = MELD_HEAD + '1,"Oh\nno",Ann,joy,x,0,0\n2,Hi,Bo,glee,x,0,1\n'
    path = write(tmp_path / "train.csv", text)
    fails(path, path, 4, "unknown label 'glee'")
    lenient = load(str(path), lenient=True)
    assert lenient.conversations[0].turns == (Utterance("Ann", "Oh no", dist(joy=1)),)
    assert lenient.report.examples == {"line break inside a row": ["train.csv:2"]}


def test_an_unclosed_quote_says_how_far_it_reached(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", MELD_HEAD + GOOD + '2,"Hi,Bo,joy,x,0,1\n3,Ok,Bo,joy,x,0,2\n')
    fails(path, path, 3, "has too few fields; an unclosed quote up to line 4?")


def test_after_a_huge_field_lenient_goes_on(tmp_path: Path) -> None:
    huge = f"1,{'x' * (MAX_FIELD_CHARS + 1)},Ann,joy,x,0,0\n"
    path = write(tmp_path / "train.csv", MELD_HEAD + huge + GOOD)
    fails(path, path, 2, "broken CSV")
    assert load(str(path), lenient=True).report.utterances == {"train": 1}
    header = write(tmp_path / "dev.csv", "x" * (MAX_FIELD_CHARS + 1))
    fails(f"meld:{header}", header, 1, "broken CSV")


@pytest.mark.parametrize("name", ["meld", "emorynlp"])
@pytest.mark.parametrize("column", ["Utterance", "Speaker", "Emotion", "Utterance_ID"])
def test_a_missing_column_is_named(tmp_path: Path, name: str, column: str) -> None:
    head = {"meld": MELD_HEAD, "emorynlp": EMORY_HEAD}[name].strip().split(",")
    head.remove(column)
    path = write(tmp_path / "train.csv", ",".join(head) + "\n")
    assert detect(path)[0].name == name, "a form is known by the column that is its own"
    fails(path, path, 1, f"has no column {column}")


def test_a_file_in_no_known_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", MELD_HEAD.encode() + b"1,H\x81i,Ann,joy,x,0,0\n")
    fails(path, path, None, "is neither UTF-8 nor cp1252")


# -- Files, folders and specs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train_sent_emo.csv", "train"), ("emotion-detection-trn.json", "train"),
        ("MELD_Training.csv", "train"), ("trainset2.csv", "train"), ("dev_sent_emo.csv", "dev"),
        ("valid.csv", "dev"), ("validation-1.csv", "dev"), ("emotion-detection-tst.json", "test"),
        ("test.csv", "test"), ("latest.csv", None), ("evaluation.csv", None),
        ("constrained.csv", None), ("devices.csv", None),
    ],
)  # fmt: skip
def test_the_split_is_a_word_of_the_file_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_a_name_without_split_is_taken_as_test_and_noted(tmp_path: Path) -> None:
    report = load(str(write(tmp_path / "latest.csv", MELD_HEAD + GOOD))).report
    assert report.utterances == {"test": 1}
    assert report.blemishes == {"no split in the file name, taken as test": 1}


@pytest.mark.parametrize("lenient", [False, True])
def test_two_files_of_one_split_are_not_counted_twice(tmp_path: Path, lenient: bool) -> None:
    write(tmp_path / "train.csv", MELD_HEAD + GOOD)
    second = write(tmp_path / "train_copy.csv", MELD_HEAD + GOOD)
    with pytest.raises(DataError, match=r"holds the train split, as train\.csv does") as e:
        load(str(tmp_path), lenient)
    assert e.value.path == second


def test_a_folders_other_files_are_told_and_hidden_ones_are_not(tmp_path: Path) -> None:
    write(tmp_path / "dev.CSV", MELD_HEAD + GOOD)
    write(tmp_path / "train.csv", "")
    write(tmp_path / "._dev.csv", b"\x00\x05\x16\x07")
    result = load(str(tmp_path))
    assert result.report.utterances == {"dev": 1}
    reason = "file left out: it is not in meld's form"
    assert result.report.skipped == [(str(tmp_path / "train.csv"), None, reason)]
    lines = check_lines(result, ADAPTERS["meld"])
    assert lines[-1] == f"skipped: {tmp_path / 'train.csv'}: {reason}" and "train: absent" in lines


def test_a_file_without_rows_beside_good_ones(tmp_path: Path) -> None:
    write(tmp_path / "dev.csv", MELD_HEAD + GOOD)
    empty = write(tmp_path / "train.csv", MELD_HEAD)
    fails(tmp_path, empty, None, "holds no conversation")
    assert load(str(tmp_path), lenient=True).report.skipped == [(str(empty), None, "holds no conversation")]


def test_content_and_not_the_name_tells_the_data_set(tmp_path: Path) -> None:
    assert detect(write(tmp_path / "a.txt", MELD_HEAD))[0].name == "meld"
    assert detect(write(tmp_path / "b.data", "\ufeff" + EMORY_HEAD))[0].name == "emorynlp"
    line = json.dumps({"id": "a", "turns": [{"speaker": "A", "text": "x"}]})
    assert load(str(write(tmp_path / "c.txt", line))).report.dataset == "jsonl"
    scene = {"scene_id": "s", "utterances": []}
    text = json.dumps({"episodes": [{"scenes": [scene]}]})
    assert detect(write(tmp_path / "d.txt", text))[0].name == "emorynlp"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("~nobody-of-this-name/x", "no such file or folder"),
        ("x" * 5000, "no such file or folder"),
        ("mled:x.csv", "no data set 'mled'; valid are meld, meld-dyadic, emorynlp, iemocap, "),
        ("meld:", "names no path; write meld:PATH"),
        ("jsonl:none.jsonl", "no such file or folder"),
    ],
)
def test_specs_that_lead_nowhere(spec: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        resolve(spec)


def test_check_names_the_labels_that_the_file_has(tmp_path: Path) -> None:
    turn = {"speaker": "A", "text": "x", "emotion": "Calm"}
    item = {"id": "a", "split": "test", "labels": ["calm", "upset"], "turns": [turn]}
    path = write(tmp_path / "a.jsonl", json.dumps(item))
    adapter, _ = resolve(str(path))
    lines = check_lines(load(str(path)), adapter)
    assert lines == [
        "data set: jsonl (labels: calm, upset)", "test: 1 conversation, 1 utterance", "  calm 1"
    ]  # fmt: skip


def test_check_names_the_data_sets_of_a_file(tmp_path: Path) -> None:
    turn = {"speaker": "A", "text": "x"}
    items = [{"id": str(n), "dataset": d, "turns": [turn]} for n, d in enumerate(("desk", "desk", "game"))]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, items)))
    lines = check_lines(load(str(path)), resolve(str(path))[0])
    assert lines[1] == "data sets by name: desk (2 conversations), game (1 conversation)"
    items[1]["labels"] = ["calm", "upset"]
    write(path, "\n".join(map(json.dumps, items)))
    lines = check_lines(load(str(path)), resolve(str(path))[0])
    assert lines[2].startswith("to mend: conversations of data set 'desk' have different labels (neutral")


# -- EmoryNLP's JSON -------------------------------------------------------------------------------


def emory(folder: Path, *utterances: Any, **scene: Any) -> Path:
    said = {"utterance_id": "u0", "speakers": ["Ann"], "transcript": "Hi.", "emotion": "Mad"}
    items = [said, *({**said, **u} if isinstance(u, dict) else u for u in utterances)]
    content = {"scene_id": "s01_e02_c03", "utterances": items, **scene}
    whole = {"episodes": [{"episode_id": "s01_e02", "scenes": [content]}]}
    return write(folder / "emotion-detection-dev.json", json.dumps(whole, indent=1))


@pytest.mark.parametrize(
    ("utterance", "says"),
    [
        ({"speakers": "Ann"}, "Speaker must be a list of names, not 'Ann'"),
        ({"speakers": None}, "Speaker must be a list of names, not 'None'"),
        ({"speakers": []}, "Speaker must be a list of names"),
        ({"speakers": [1]}, "Speaker must be a list of names"),
        ({"transcript": None}, "the utterance and its emotion must be text"),
        ({"emotion": 3}, "the utterance and its emotion must be text"),
        ({"emotion": "Glad"}, "unknown label 'Glad'; valid are neutral, joyful"),
    ],
)
def test_emorynlp_json_names_file_line_and_scene(
    tmp_path: Path, utterance: dict[str, Any], says: str
) -> None:
    path = emory(tmp_path, {"utterance_id": "u1", **utterance})
    said = path.read_text().split("\n")
    (line,) = (n for n, text in enumerate(said, 1) if '"u1"' in text)
    fails(path, path, line, f"scene s01_e02_c03, utterances[1]: {says}")
    lenient = load(str(path), lenient=True)
    assert len(lenient.conversations[0].turns) == 1 and len(lenient.report.skipped) == 1


def test_emorynlp_json_of_another_shape(tmp_path: Path) -> None:
    path = emory(tmp_path, "no object")
    fails(path, path, None, "scene s01_e02_c03, utterances[1]: an utterance lacks speakers")
    path = emory(tmp_path, utterances=None)
    fails(path, path, 7, "scene s01_e02_c03 has no utterance")
    path = emory(tmp_path, scene_id=None)
    fails(path, path, None, "scenes[0] has no scene_id of its own")
    write(path, '{"episodes": {"scenes": 1}}')
    fails(f"emorynlp:{path}", path, None, "is not EmoryNLP's JSON")
    write(path, "")
    fails(f"emorynlp:{path}", path, 1, "broken JSON")


def test_each_form_of_emorynlp_has_its_own_official_counts(tmp_path: Path) -> None:
    adapter = ADAPTERS["emorynlp"]
    as_json = check_lines(adapter.load(emory(tmp_path)), adapter)
    assert "dev: 1 conversation, 1 utterance (official 1344: differs by -1343)" in as_json
    path = write(tmp_path / "dev.csv", EMORY_HEAD + "Hi.,['Ann'],Mad,1,1,1,1\n")
    as_csv = check_lines(adapter.load(path), adapter)
    assert "dev: 1 conversation, 1 utterance (official 954: differs by -953)" in as_csv
    with pytest.raises(DataError, match=r"holds the dev split, as dev\.csv does"):
        load(str(tmp_path))


# -- A clone's folders, and MELD's dyadic variant --------------------------------------------------

DYADIC = "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Old_Dialogue_ID,Old_Utterance_ID\n"


def clone(root: Path) -> Path:
    """A clone of MELD's repository: three data sets, two levels down."""
    write(root / "data/MELD/dev_sent_emo.csv", MELD_HEAD + GOOD)
    write(root / "data/MELD_Dyadic/dev_sent_emo_dya.csv", DYADIC + "Hi,Ann,joy,x,0,0,4,2\n")
    write(root / "data/emorynlp/emorynlp_dev_final.csv", EMORY_HEAD + "Hi.,['Ann'],Mad,1,1,1,1\n")
    write(root / "README.md", "A clone.")
    return root


@pytest.mark.parametrize("at", [".", "data"])
def test_a_folder_of_several_data_sets_names_them(tmp_path: Path, at: str) -> None:
    root = clone(tmp_path) / at
    data = tmp_path / "data"
    with pytest.raises(DataError) as e:
        load(str(root))
    for name, folder in (("meld", "MELD"), ("meld-dyadic", "MELD_Dyadic"), ("emorynlp", "emorynlp")):
        assert f"{name}:{data / folder}" in str(e.value)
        adapter, place = resolve(f"{name}:{root}")
        assert (adapter.name, place) == (name, data / folder)
        (c,) = load(f"{name}:{root}").conversations
        assert c.dataset == name
    with pytest.raises(DataError, match="is not iemocap data"):
        load(f"iemocap:{root}")


def test_the_one_data_set_below_a_folder_is_taken_and_told(tmp_path: Path) -> None:
    inside = write(tmp_path / "a" / "b" / "dev.csv", MELD_HEAD + GOOD).parent
    write(tmp_path / ".hidden" / "dev.csv", EMORY_HEAD + "Hi.,['Ann'],Mad,1,1,1,1\n")
    write(tmp_path / "c" / "d" / "deeper" / "dev.csv", EMORY_HEAD + "Hi.,['Ann'],Mad,1,1,1,1\n")
    assert resolve(str(tmp_path)) == (ADAPTERS["meld"], inside)
    told = CliRunner().invoke(app, ["data", "check", str(tmp_path)])
    assert told.exit_code == 0 and f"\nfound in: {inside}\n" in told.output
    plain = CliRunner().invoke(app, ["data", "check", f"meld:{inside}"])
    assert plain.exit_code == 0 and "found in" not in plain.output


def test_the_dyadic_variant_is_no_meld(tmp_path: Path) -> None:
    folder = clone(tmp_path) / "data" / "MELD_Dyadic"
    result = load(str(folder))
    lines = check_lines(result, ADAPTERS["meld-dyadic"])
    assert lines[0].startswith("data set: meld-dyadic (")
    assert "dev: 1 conversation, 1 utterance (official 1462: differs by -1461)" in lines
    with pytest.raises(DataError, match="it looks like meld-dyadic: use meld-dyadic:"):
        load(f"meld:{folder}")
    both = tmp_path / "both"
    write(both / "dev_sent_emo.csv", MELD_HEAD + GOOD)
    write(both / "dev_sent_emo_dya.csv", (folder / "dev_sent_emo_dya.csv").read_bytes())
    assert [s[2] for s in load(str(both)).report.skipped] == ["file left out: it is not in meld's form"]
    sources = (f"meld:{tmp_path / 'data'}/MELD", f"meld-dyadic:{folder}")
    with pytest.raises(DataError, match="meld-dyadic holds the utterances of meld again"):
        load_sources(DataConfig(sources=sources))


# -- IEMOCAP (the release's layout, invented text) -------------------------------------------------

GIVEN = "[1.0000 - 2.0000]\tSes01F_made01_F000\tneu\t[2.5000, 2.5000, 2.5000]\nC-E2:\tNeutral;\t()\n"
TURN = "Ses01F_made01_F000 [001.0000-002.0000]: Good morning.\n"


def iemocap(root: Path, transcript: str = TURN, evaluation: str = GIVEN) -> tuple[Path, Path]:
    base = root / "Session1" / "dialog"
    return (
        write(base / "transcriptions" / "Ses01F_made01.txt", transcript),
        write(base / "EmoEvaluation" / "Ses01F_made01.txt", evaluation),
    )


def test_iemocap_reads_the_odd_lines_of_the_release(tmp_path: Path) -> None:
    odd = (
        "F: [LAUGHTER]\n"
        "Ses01F_made01_MXX0 [003.0000-004.0000]: Mm.\n"
        "Ses01F_made01_M000 [005.0000-006.0000]: Well\x85 yes.\n"
    )
    iemocap(tmp_path, TURN + odd)
    result = load(str(tmp_path))
    assert [(t.speaker, t.text) for t in result.conversations[0].turns] == [
        ("Ses01_F", "Good morning."), ("Ses01_M", "Mm."), ("Ses01_M", "Well… yes."),
    ]  # fmt: skip
    assert result.report.examples == {
        "line without a time": ["Ses01F_made01.txt:2"],
        "turn without evaluation": ["Ses01F_made01.txt:3", "Ses01F_made01.txt:4"],
        "cp1252 character as control code": ["Ses01F_made01.txt:4"],
    }


def test_iemocap_self_reports_do_not_vote_and_several_votes_of_one_do(tmp_path: Path) -> None:
    votes = "C-E4:\tFrustration; Neutral;\t(tired)\nC-F1:\tAnger;\t()\nC-M1:\tAnger;\t()\n"
    iemocap(tmp_path, evaluation=GIVEN + votes)
    (c,) = load(str(tmp_path)).conversations
    assert c.turns[0].emotion == dist(neutral=2 / 3, frustrated=1 / 3)


@pytest.mark.parametrize(
    ("code", "votes", "label", "weights", "noted"),
    [
        ("sad", "Sadness; Neutral;", "sad", {"sad": 0.5, "neutral": 0.5}, False),
        ("neu", "Sadness; Neutral;", "neutral", {"sad": 0.5, "neutral": 0.5}, False),
        ("fru", "Anger; Frustration;", "frustrated", {"angry": 0.5, "frustrated": 0.5}, False),
        ("neu", "Sadness;", "neutral", {"sad": 0.5, "neutral": 0.5}, True),
        ("fru", "Anger; Anger; Frustration;", "frustrated", {"angry": 0.5, "frustrated": 0.5}, True),
        ("exc", "Excited; Excited; Happiness;", "excited", {"excited": 2 / 3, "happy": 1 / 3}, False),
    ],
)
def test_the_class_of_iemocap_is_its_consensus(
    tmp_path: Path, code: str, votes: str, label: str, weights: dict[str, float], noted: bool
) -> None:
    given = GIVEN.replace("\tneu\t", f"\t{code}\t").replace("Neutral;", votes)
    _, evaluation = iemocap(tmp_path, evaluation="\n" + given)
    result = load(str(tmp_path))
    assert result.report.labels["train"] == {label: 1}
    emotion = result.conversations[0].turns[0].emotion
    assert emotion is not None and emotion.top(LABEL_SETS["iemocap"]) == label
    assert dict(emotion) == pytest.approx(weights, abs=1e-6)
    kind = "votes put another class above the consensus, which is taken"
    assert result.report.examples == ({kind: [f"{evaluation.name}:2"]} if noted else {})
    read = parse_emotions(format_emotions(emotion), LABEL_SETS["iemocap"])
    assert isinstance(read, EmotionDistribution) and read.top(LABEL_SETS["iemocap"]) == label
    stored = read_distribution(write_distribution(emotion))
    assert stored is not None and stored.top(LABEL_SETS["iemocap"]) == label


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Ses01F_made01_F001 [1.2.3-004.0]: Hm.", "is not 'TURN [start-end]: text'"),
        ("Ses01F_made01_F001 [003.0-004.0]:", "the utterance is empty"),
        ("some words", "is not 'TURN [start-end]: text'"),
    ],
)
def test_iemocap_broken_turns(tmp_path: Path, line: str, says: str) -> None:
    transcript, _ = iemocap(tmp_path, TURN + "\n" + line + "\n")
    fails(tmp_path, transcript, 3, says)
    lenient = load(str(tmp_path), lenient=True)
    assert [(s[0], s[1]) for s in lenient.report.skipped] == [(str(transcript), 3)]


def test_iemocap_dialogue_without_evaluation_can_be_skipped(tmp_path: Path) -> None:
    iemocap(tmp_path)
    base = tmp_path / "Session1" / "dialog"
    write(base / "transcriptions" / "Ses01F_made02.txt", TURN)
    missing = base / "EmoEvaluation" / "Ses01F_made02.txt"
    fails(tmp_path, missing, None, "cannot be read")
    lenient = load(str(tmp_path), lenient=True)
    assert lenient.report.conversations == {"train": 1}
    assert [s[0] for s in lenient.report.skipped] == [str(missing)]


def test_iemocap_broken_header_and_empty_dialogue(tmp_path: Path) -> None:
    _, evaluation = iemocap(tmp_path, evaluation="% head\n[1.0 - ]\tSes01F_made01_F000\tneu\n")
    fails(tmp_path, evaluation, 2, "is neither a turn's header nor an annotator's line")
    transcript, _ = iemocap(tmp_path, transcript="F: aside\n")
    fails(tmp_path, transcript, None, "has no turn")


# -- JSONL -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": {"a": 1}}, "id must be text or a whole number"),
        ({"id": True}, "id must be text or a whole number"),
        ({"id": " "}, "id must not be empty"),
        ({"scene": ["x"]}, "scene must be text"),
        ({"personas": {"A": " "}}, "personas must not be empty"),
        ({"personas": []}, "personas must map"),
        ({"labels": "joy"}, "labels must be a list"),
        ({"dataset": " "}, "dataset must be the name of a data set"),
        ({"dataset": 3}, "dataset must be the name of a data set"),
        ({"turns": {}}, "the conversation is empty"),
        ({"turns": [{"speaker": "A", "text": "x", "emotion": {"joy": 1, "Joy": 1}}]},
         "turns[0]: emotion 'joy' occurs twice"),
        ({"turns": [{"speaker": "A", "text": "x", "emotion": {"joy": 10**400}}]},
         "turns[0]: emotion weights must be finite"),
        ({"turns": [{"speaker": "A", "text": "x", "emotion": {"joy": float("nan")}}]},
         "turns[0]: emotion weights must be finite"),
        ({"turns": [{"speaker": "A", "text": "x", "emotion": {}}]}, "turns[0]: at least one"),
        ({"turns": [{"speaker": 1, "text": "x"}]}, "turns[0]: speaker and text must be strings"),
    ],
)  # fmt: skip
def test_jsonl_refuses(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    good = {"id": "a", "turns": [{"speaker": "A", "text": "x"}]}
    path = write(tmp_path / "a.jsonl", "\n" + json.dumps({**good, **change}) + "\n")
    fails(path, path, 2, says)


def test_jsonl_refuses_a_key_given_twice(tmp_path: Path) -> None:
    text = '{"id": "a", "turns": [{"speaker": "A", "text": "x", "text": "y"}]}'
    path = write(tmp_path / "a.jsonl", text)
    fails(path, path, 1, "key 'text' occurs twice")


def test_jsonl_text_can_always_be_stored(tmp_path: Path) -> None:
    text = r'{"id": "a", "turns": [{"speaker": "A", "text": "so \ud83d then \ud83d\ude00"}]}'
    result = load(str(write(tmp_path / "a.jsonl", text)))
    assert result.conversations[0].turns[0].text == "so then \U0001f600"
    assert result.report.blemishes == {"unreadable character": 1}


def test_jsonl_knows_the_label_sets_and_lone_personas(tmp_path: Path) -> None:
    item = {
        "id": 7, "labels": list(LABEL_SETS["emorynlp"]), "personas": {"Zed": "Absent."},
        "turns": [{"speaker": "A", "text": "x", "emotion": "MAD"}],
    }  # fmt: skip
    result = load(str(write(tmp_path / "a.jsonl", json.dumps(item))))
    assert result.conversations[0].label_set is LABEL_SETS["emorynlp"]
    assert result.report.blemishes == {"persona of a speaker without a turn": 1}


# -- Properties ------------------------------------------------------------------------------------

# Without the letters that begin text which looks encoded twice, and without the mark of a lost character.
letters = st.characters(exclude_categories=["C", "Z"], exclude_characters="ÂÃâð\ufffd")
word = st.text(letters, min_size=1, max_size=8)
text = st.lists(word, min_size=1, max_size=4).map(" ".join)
weights = st.dictionaries(
    st.sampled_from(LABEL_SETS["meld"].labels), st.floats(0.01, 1e6), min_size=1, max_size=3
)


@given(
    st.sampled_from(["train", "dev", "test"]),
    text,
    st.lists(st.tuples(text, text, st.none() | weights), min_size=1, max_size=4),
    st.booleans(),
)
def test_jsonl_round_trip_keeps_everything(
    tmp_path_factory: pytest.TempPathFactory,
    split: str,
    scene: str,
    turns: list[tuple[str, str, dict[str, float] | None]],
    escaped: bool,
) -> None:
    item = {
        "id": "a", "split": split, "scene": scene, "personas": {turns[0][0]: scene},
        "turns": [{"speaker": s, "text": t, "emotion": e} for s, t, e in turns],
    }  # fmt: skip
    path = tmp_path_factory.mktemp("round") / "a.jsonl"
    write(path, json.dumps(item, ensure_ascii=escaped))
    result = load(str(path))
    (c,) = result.conversations
    assert (c.id, c.split, c.scenario, c.label_set) == ("a", split, scene, LABEL_SETS["meld"])
    assert c.turns == tuple(Utterance(s, t, dist(**e) if e else None) for s, t, e in turns)
    persona = c.personas[turns[0][0]]
    assert (persona.description, persona.scenario) == (scene, scene)
    assert not result.report.blemishes


@given(st.text(st.characters(codec=None), max_size=60))
def test_clean_text_is_storable_and_counts_what_it_changes(raw: str) -> None:
    report = LoadReport("x")
    once = SourceFile(report, Path("f")).clean(raw, 1)
    once.encode("utf-8")
    assert once == " ".join(once.split())
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\ufffd\ud800-\udfff]", once)
    again = LoadReport("x")
    assert SourceFile(again, Path("f")).clean(once, 1) == once and not again.blemishes
    if not report.blemishes:
        assert once == " ".join(raw.split()), "only white space changes without a blemish"
    assert sum(report.blemishes.values()) <= len(raw)


@given(st.text(st.characters(codec="cp1252", exclude_categories=["C", "Z"]), min_size=1))
def test_characters_read_as_control_codes_come_back(original: str) -> None:
    # Some texts of that encoding look like others that were encoded twice.
    assume(SourceFile(LoadReport("x"), Path("f")).clean(original) == original)
    as_codes = original.encode("cp1252").decode("latin-1")
    assert SourceFile(LoadReport("x"), Path("f")).clean(as_codes) == original


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder is empty"):
        load(str(tmp_path))
