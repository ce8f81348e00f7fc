"""Systems side by side: the same turns, names that tell rows apart, units, differences, folders in error."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from selfemo.cli import app
from selfemo.errors import ConfigError, DataError, SelfEmoError, StoreError
from selfemo.evaluation.baseline_tables import Row, SideBySide, baseline_table, job_table
from selfemo.evaluation.jobs import NAME, scored
from selfemo.evaluation.metrics import MEASURES, Interval
from selfemo.evaluation.predictions import Prediction, gold_prompts, keep
from selfemo.evaluation.rendering import rounded
from selfemo.method.types import LABEL_SETS, Conversation, EmotionDistribution, LabelSet, Utterance
from selfemo.progress import Quiet
from selfemo.runs.store import Store

MELD = LABEL_SETS["meld"]
Turns = Mapping[str, Sequence[tuple[str, str]]]
"""By conversation: (gold, said) of each turn."""


def evaluated(
    folder: Path, turns: Turns, dataset: str = "toy", labels: LabelSet = MELD, **about: Any
) -> Path:
    """A folder as of `selfemo evaluate --out`, of a system that is .9 sure of what it says."""
    held = [
        Conversation(
            f"{dataset}/{c}", dataset, "test",
            tuple(Utterance("AB"[i % 2], "x", EmotionDistribution({g: 1})) for i, (g, _) in enumerate(pairs)),
            labels,
        )
        for c, pairs in turns.items()
    ]  # fmt: skip
    said = [s for pairs in turns.values() for _, s in pairs]
    rest = 0.1 / (len(labels) - 1)
    folder.mkdir(parents=True, exist_ok=True)
    with Store(folder / "store.sqlite") as store:
        made = []
        for p, s in zip(gold_prompts(held), said, strict=True):
            d = EmotionDistribution({e: 0.9 if e == s else rest for e in labels})
            made.append(Prediction(p, d, None, believed=d))
        keep(store, NAME, made)
        told = {"model": "mine", "split": "test", "trained_on": []} | about
        scored(store.predictions(NAME), told, held, held, [], folder, Quiet(), resamples=20)
    return folder


def baseline(folder: Path, *seeds: Turns, limit: int = 0, **about: Any) -> Path:
    """A folder as of `selfemo baseline`, of one seed or several."""
    told = {"model": "TF-IDF", "baseline": "tfidf", "sees_later": False, "trained_on": ["toy"]} | about
    told["train_conversations"] = limit
    for n, turns in enumerate(seeds):
        evaluated(folder / f"seed-{n}", turns, **told | {"model": f"{told['model']} (seed {n})"})
    scores = json.loads((folder / "seed-0" / "scores.json").read_text())
    of = f"(mean of {len(seeds)} seeds)" if len(seeds) > 1 else "(seed 0)"
    (folder / "scores.json").write_text(json.dumps(scores | {"model": f"{told['model']} {of}"}))
    return folder


def talks(*said: str, n: int = 12, gold: Sequence[str] = ("joy", "anger")) -> dict[str, Any]:
    """So many conversations of two turns, gold joy and anger; what is said of them repeats."""
    return {f"c{k:02}": [(g, said[i % len(said)]) for i, g in enumerate(gold)] for k in range(n)}


def table(*words: object) -> Result:
    return CliRunner().invoke(app, ["baseline", "table", *map(str, words)])


def fails(kind: type[SelfEmoError], *words: object) -> str:
    done = table(*words)
    assert isinstance(done.exception, kind), (done.exception, done.output)
    return str(done.exception)


def names(found: SideBySide) -> list[str]:
    return [r.system for r in found.rows]


RIGHT, JOY = talks("joy", "anger"), talks("joy")


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """One that is right always, and one that says joy always."""
    return [evaluated(tmp_path / "right", RIGHT), evaluated(tmp_path / "joy", JOY, model="joy always")]


# -- the same turns -----------------------------------------------------------------------------------


def test_differences_by_hand(two: list[Path]) -> None:
    """Right always has weighted F1 1; joy always (2/3 + 0) / 2 = 1/3, in each conversation."""
    right, joy = baseline_table(two, two[1]).rows
    assert (right.n, right.conversations, right.seeds, right.sd) == (24, 12, 1, None)
    assert right.measures["weighted_f1"].as_list() == [1, 1, 1]
    assert joy.measures["weighted_f1"].as_list() == pytest.approx([1 / 3] * 3)
    assert right.change is not None and joy.change is None
    assert right.change.difference.as_list() == pytest.approx([2 / 3] * 3)
    assert right.change.p_value < 0.01
    (other,) = (r for r in baseline_table(two, two[0]).rows if r.change is not None)
    assert other.change is not None and other.change.difference.value == pytest.approx(-2 / 3)


def test_seeds_are_averaged(tmp_path: Path) -> None:
    """Seeds of 1 and 1/3: mean 2/3, deviation (2/3) / sqrt(2) = .471."""
    (row,) = baseline_table([baseline(tmp_path / "a", RIGHT, JOY)], None).rows
    assert row.seeds == 2 and row.measures["weighted_f1"].value == pytest.approx(2 / 3)
    assert row.sd == pytest.approx(0.4714, abs=1e-4)


def test_a_turn_with_another_gold_emotion_is_of_other_data(two: list[Path], tmp_path: Path) -> None:
    other = evaluated(tmp_path / "other", {**JOY, "c03": [("joy", "joy"), ("fear", "joy")]})
    for words in ([two[0], other], [two[0], other, "--against", other], [other, "--against", two[0]]):
        said = fails(DataError, *words)
        assert "toy: turn toy/c03/1 has another gold emotion in " in said and "not of the same data" in said
        assert str(two[0]) in said and str(other) in said


def test_other_labels_are_of_other_data(two: list[Path], tmp_path: Path) -> None:
    few = evaluated(tmp_path / "few", JOY, labels=LabelSet("own:joy,anger", ("joy", "anger")))
    said = fails(DataError, two[0], few)
    assert f"{two[0]} has the labels neutral, joy, " in said and f"{few} joy, anger, so they are" in said


def test_turns_that_some_lack_are_counted_by_data_set(two: list[Path], tmp_path: Path) -> None:
    """Of 12 conversations one system has 10 and another 9: 18 of 24 turns."""
    ten, nine = (evaluated(tmp_path / str(n), talks("joy", n=n), model=str(n)) for n in (10, 9))
    found = baseline_table([*two, ten, nine], None)
    assert {r.n for r in found.rows} == {18}
    read = "toy: 18 of 24 turns, those that all these have read (fewest, 18: "
    assert found.notes[0] == f"{read}{nine})"
    more = [evaluated(tmp_path / f"m{n}", talks("joy", n=9), model=str(n)) for n in range(4)]
    assert (
        baseline_table([*two, *more], None).notes[0].endswith(f"{more[0]}, {more[1]}, {more[2]} and 1 more)")
    )
    assert not [n for n in baseline_table(two, None).notes if "turns" in n]


def test_folders_of_other_splits_are_named_with_them(two: list[Path], tmp_path: Path) -> None:
    later = {f"d{k}": v for k, v in JOY.items()}
    dev = evaluated(tmp_path / "dev", later, split="dev, claim half")
    said = fails(DataError, *two, dev)
    assert "toy: no turn was read by all" in said
    assert f"test ({two[0]}, {two[1]}); dev, claim half ({dev}): score them on the same one (--split" in said
    elsewhere = evaluated(tmp_path / "elsewhere", later)
    assert "data.eval_conversations" in fails(DataError, two[0], elsewhere)


def test_the_same_folder_twice_is_one_row(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = baseline_table([two[0], Path("right"), two[1]], Path("joy"))
    assert names(found) == ["mine", "joy always"] and found.rows[1].change is None


# -- the reference ------------------------------------------------------------------------------------


def test_rows_that_the_reference_has_no_turn_of_are_told(two: list[Path], tmp_path: Path) -> None:
    other = evaluated(tmp_path / "other", RIGHT, dataset="more")
    found = baseline_table([*two, other], two[0])
    assert f"more: no difference, since {two[0]} has no turn of it" in found.notes
    assert [r.change is None for r in found.rows] == [True, False, True]
    said = fails(DataError, other, "--against", two[0])
    assert said == f"nothing can be compared with {two[0]}: no other folder has turns of toy"
    assert fails(DataError, two[0], "--against", two[0]).endswith("there is no other folder")


def test_the_caption_says_what_the_columns_are(two: list[Path], tmp_path: Path) -> None:
    alone, against = (baseline_table(two, r) for r in (None, two[1]))
    assert alone.caption.startswith("test; means over seeds, 95% intervals by conversation")
    assert f"Difference: in weighted F1, a row minus joy always ({two[1]})" in against.caption
    assert "ifference" not in alone.caption and not {"difference (points)", "p"} & set(alone.cells()[0])
    header, rows = against.cells()
    assert rows[0][header.index("difference (points)")] == "+66.7 [+66.7, +66.7]"
    assert rows[1][header.index("p")] == "-" and "NLL at T (nats)" in header and "split" not in header
    dev = evaluated(tmp_path / "dev", JOY, split="dev")
    header, rows = baseline_table([*two, dev], None).cells()
    assert [r[header.index("split")] for r in rows] == ["test", "test", "dev"]


def test_few_conversations_show_little(tmp_path: Path) -> None:
    few, more = ([evaluated(tmp_path / f"{n}{k}", talks("joy", n=n)) for k in range(2)] for n in (5, 6))
    line = "toy: of 5 conversations the intervals are too narrow"
    assert baseline_table(few, None).notes == [line]
    assert baseline_table(few, few[0]).notes == [f"{line}, and p can show little"]
    assert not baseline_table(more, more[0]).notes


# -- names --------------------------------------------------------------------------------------------


def test_a_name_says_what_a_system_was_trained_on(tmp_path: Path) -> None:
    about = [
        ({"trained_on": ["toy"]}, 0, ""),
        ({"trained_on": ["more", "toy"]}, 0, ", from more + toy"),
        ({"trained_on": ["more"]}, 0, ", from more"),
        ({"trained_on": ["toy"]}, 40, ", from 40 conversations"),
        ({"trained_on": ["more", "toy"]}, 1, ", from 1 conversation each of more + toy"),
        ({"trained_on": ["more"]}, 5, ", from 5 conversations of more"),
    ]
    folders = [baseline(tmp_path / str(k), JOY, limit=n, **told) for k, (told, n, _) in enumerate(about)]
    found = baseline_table(folders, None)
    assert names(found) == [f"TF-IDF{end}" for *_, end in about]
    assert found.notes[-1].startswith('"from": what a system was trained on')
    assert [r.train_conversations for r in found.rows] == [n for _, n, _ in about]
    (seed,) = baseline_table([folders[3] / "seed-0"], None).rows
    assert seed.system == "TF-IDF, from 40 conversations"
    assert not baseline_table([folders[0]], None).notes


def test_equal_names_have_their_folders(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in ("a/tfidf", "b/tfidf", "ten"))
    for folder in (a, b, c):
        baseline(folder, JOY)
    other = evaluated(tmp_path / "other", JOY)
    found = names(baseline_table([a, b, c, other], None))
    assert found == [f"TF-IDF ({a})", f"TF-IDF ({b})", "TF-IDF (ten)", "mine"]


def test_the_number_of_seeds_stands_in_its_column_alone(tmp_path: Path) -> None:
    found = baseline_table([baseline(tmp_path / "a", RIGHT, JOY), baseline(tmp_path / "b", RIGHT)], None)
    assert names(found) == ["TF-IDF (a)", "TF-IDF (b)"] and [r.seeds for r in found.rows] == [2, 1]


# -- formats ------------------------------------------------------------------------------------------


def test_json_has_numbers(two: list[Path]) -> None:
    found = json.loads(table(*two, "--against", two[1], "--json").stdout)
    right, joy = found["rows"]
    assert found["reference"] == {"system": "joy always", "folder": str(two[1])}
    assert found["intervals"] == "95% intervals by conversation" and "nats" in found["units"]["nll"]
    assert right["weighted_f1"] == [1, 1, 1] and right["difference"] == [0.666667] * 3
    assert 0 < right["p_value"] < 0.01 and joy["difference"] is joy["p_value"] is joy["sd"] is None
    assert (right["dataset"], right["split"], right["n"], right["seeds"]) == ("toy", "test", 24, 1)
    alone = json.loads(table(*two, "--json").stdout)
    assert alone["reference"] is None and alone["rows"][0]["difference"] is None


def test_csv_has_the_ends_of_intervals_in_columns_of_their_own(two: list[Path], tmp_path: Path) -> None:
    more = evaluated(tmp_path / "more", talks("joy", n=9))
    done = table(two[0], more, "--against", more, "--format", "csv")
    right, other = csv.DictReader(done.stdout.splitlines())
    assert [right[f"weighted F1 (%){end}"] for end in ("", " low", " high")] == ["100.0"] * 3
    name = "difference in weighted F1 (points)"
    assert [right[f"{name}{end}"] for end in ("", " low", " high")] == ["66.7"] * 3
    assert other[name] == other[f"{name} low"] == other["p"] == other["sd (points)"] == ""
    assert (right["split"], right["n"], right["conversations"]) == ("test", "18", "9")
    assert right["difference from"] == str(more) and right["low and high"] == "95% intervals by conversation"
    assert "toy: 18 of 24 turns" in done.stderr and "toy: 18" not in done.stdout


def test_each_form_says_units_and_intervals(two: list[Path], tmp_path: Path) -> None:
    more = evaluated(tmp_path / "more", talks("joy", n=5))
    words = [two[0], more, "--against", more]
    for form in ("text", "markdown", "latex"):
        text = table(*words, "--format", form).stdout
        assert "95% intervals by conversation" in text and "toy: 10 of 24 turns" in text, form
        assert "(points)" in text and "NLL at T (nats)" in text, form
    comments = text.splitlines()[:3]
    assert all(line.startswith("% ") for line in comments) and text.splitlines()[3].startswith(r"\begin")
    assert max(map(len, table(*two).stdout.splitlines())) <= 80


def test_a_file_has_the_format_and_json_is_printed(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "t.md"
    done = table(*two, "--format", "markdown", "--out", out, "--json")
    assert len(json.loads(done.stdout)["rows"]) == 2 and "| mine | toy | 24 | 1 |" in out.read_text()
    assert table(*two, "--out", out).stdout == "" and "| mine" not in out.read_text()
    assert "valid are text, markdown" in fails(ConfigError, *two, "--format", "word", "--json")


def test_a_number_is_that_of_the_jobs_own_table() -> None:
    """A job's table is of its JSON file, this one of the predictions: both show 1.4235 and .4125 alike."""
    value, nll = 0.41250001, 1.42350001
    assert f"{value:.3f}" == "0.413" and f"{nll:.3f}" == "1.424"
    measures = {m: Interval(value, value, value) for m in MEASURES}
    row = Row("a", Path("a"), "toy", "test", [], 0, 9, 9, 1, measures, None, nll, None)
    header, (cells,) = SideBySide([row], None, []).cells()
    shown = dict(zip(header, cells, strict=True))
    scores = {m: [value] * 3 for m in MEASURES} | {"sd": dict.fromkeys(MEASURES, 0.0)}
    scores |= {"calibration": {"nll_tempered": nll}}
    constants = {"toy": {"majority": {m: [0.5] * 3 for m in MEASURES}}}
    found = rounded({"model": "a", "split": "test", "scores": {"toy": scores}, "constants": constants})
    job = {measure: shown for _, measure, shown, *_ in job_table(found)[2]}
    assert shown["NLL at T (nats)"] == job["NLL at T"] == "1.423"
    assert job["weighted F1"] == "0.412 [0.412, 0.412]" and shown["weighted F1 (%)"] == "41.2 [41.2, 41.2]"


# -- folders ------------------------------------------------------------------------------------------


def test_a_folder_in_error_is_told_why(two: list[Path], tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (begun / "seed-0").mkdir(parents=True)
    evaluated(begun / "seed-1", JOY)
    stopped = evaluated(tmp_path / "stopped", JOY)
    (stopped / "scores.json").unlink()
    for folder in (begun, stopped):
        assert fails(StoreError, two[0], folder) == (
            f"{folder}: it is not finished: run its command again to go on"
        )
    assert fails(StoreError, tmp_path / "none") == f"{tmp_path / 'none'}: no such folder"
    file = tmp_path / "notes.txt"
    file.touch()
    assert fails(StoreError, file) == f"{file}: a file, not a folder"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no scores: it is no folder of" in fails(StoreError, empty)
    said = fails(StoreError, tmp_path)
    assert f"{tmp_path}: a folder of folders; name those inside, such as {begun}, " in said
    assert str(empty) not in said
    (two[0] / "scores.json").write_text("{}")
    assert "right: holds no scores that can be read (KeyError('scores'))" in fails(StoreError, two[0])


def test_a_file_that_cannot_be_written_kept_nothing(two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert fails(StoreError, *two, "--out", tmp_path / "file" / "t.csv").endswith("nothing was written")
