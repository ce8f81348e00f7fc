"""What evaluate, evolve and analyse print: 80 columns, no Python in it, only files that are there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.evaluation.changes import VERDICTS
from selfemo.evaluation.console import analysis_tables, run_tables
from selfemo.evaluation.readers import GIVEN, REAL
from selfemo.evaluation.rendering import narrow
from selfemo.method.types import LABEL_SETS


def answers(path: Path, *lines: str) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"scripted:{path}"


def evaluated(model: str, *more: str) -> str:
    command = ["evaluate", model, "--data", "sample", "--split", "dev", *more]
    done = CliRunner().invoke(app, [*command, "--set", "evaluation.resamples=50"])
    assert done.exit_code == 0, done.output
    return done.stdout


def is_readable(text: str) -> None:
    assert max(map(len, text.splitlines())) <= 80
    assert "{" not in text and "'" not in text


def test_evaluate_prints_the_majority_beside_the_model(tmp_path: Path) -> None:
    text = evaluated(answers(tmp_path / "a.txt", "E: joy"))
    is_readable(text)
    assert "model                 majority              prior" in text
    assert "sample: accuracy is below always saying neutral (-" in text
    assert "those of the training split" in text
    text = evaluated(answers(tmp_path / "b.txt", "E: melancholy"))
    is_readable(text)
    assert "sample, predictions without an emotion: unknown emotion 136" in text


def test_compare_says_the_difference_first(tmp_path: Path) -> None:
    joy, neutral = (answers(tmp_path / f"{e}.txt", f"E: {e}") for e in ("joy", "neutral"))
    evaluated(joy, "--out", str(tmp_path / "joy"))
    text = evaluated(neutral, "--out", str(tmp_path / "neutral"), "--compare", str(tmp_path / "joy"))
    first, scores = text.index("difference from"), text.index("utterances of")
    assert first < scores
    row = next(line.split() for line in text[first:].splitlines() if line.startswith("accuracy"))
    found = json.loads((tmp_path / "neutral" / "scores.json").read_text())
    compared, theirs = (
        found["comparison"]["sample"]["accuracy"],
        json.loads((tmp_path / "joy" / "scores.json").read_text())["scores"]["sample"]["accuracy"][0],
    )
    mine = found["scores"]["sample"]["accuracy"][0]
    assert compared["this"] == mine and compared["other"] == theirs
    assert compared["difference"][0] == pytest.approx(mine - theirs, abs=2e-6)
    assert row[1] == f"{mine - theirs:+.3f}" and row[-3:] == [f"{mine:.3f}", f"{theirs:.3f}", f"{mine:.3f}"]
    assert "accuracy is not told apart from always saying neutral (+0.000 [+0.000, +0.000])" in " ".join(
        text.split()
    )


@pytest.mark.parametrize("polars", [True, False])
def test_only_what_was_written_is_named(tmp_path: Path, monkeypatch, polars: bool) -> None:
    if polars:
        pytest.importorskip("polars")
    else:
        monkeypatch.setitem(sys.modules, "polars", None)
    text = evaluated(answers(tmp_path / "a.txt", "E: joy"), "--out", str(tmp_path / "e"))
    named = {name for name in ("scores.json", "predictions.parquet") if name in text}
    assert named == {"scores.json", *(["predictions.parquet"] if polars else [])}
    assert all((tmp_path / "e" / name).exists() for name in named)


def test_json_has_no_more_digits_than_scores_carry(tmp_path: Path) -> None:
    evaluated(answers(tmp_path / "a.txt", "E: joy", "E: neutral"), "--out", str(tmp_path / "e"))

    def floats(value):
        if isinstance(value, dict | list):
            for v in value.values() if isinstance(value, dict) else value:
                yield from floats(v)
        elif isinstance(value, float):
            yield value

    found = list(floats(json.loads((tmp_path / "e" / "scores.json").read_text())))
    assert len(found) > 100 and all(v == float(f"{v:.6g}") for v in found)


interval = st.floats(-1, 1).map(lambda v: [v, v - 0.1, v + 0.1])
change = st.fixed_dictionaries({"difference": interval, "p_value": st.floats(0, 1)})
changes = st.fixed_dictionaries(
    {
        **dict.fromkeys(("accuracy", "weighted_f1", "macro_f1", "mean_r1"), change),
        "conversations": st.integers(1, 400),
        "nll_at_t": st.none() | change,
        "nll_shifted": st.none() | change,
        "verdict": st.sampled_from(sorted({*VERDICTS.values(), "scores lower; NLL at T is not known"})),
    }
)
stages = st.lists(
    st.fixed_dictionaries(
        {
            "stage": st.sampled_from(["cold start (labels)", "RL 12", "refit 12", "RL and refit 12"]),
            "from": st.sampled_from(["cold-start", "iteration-12-rl"]),
            "copied": st.booleans(),
            "rolled_back": st.booleans(),
            "by": st.dictionaries(st.sampled_from(["meld", "emorynlp", "all"]), changes, min_size=1),
        }
    ),
    max_size=5,
)
unit = st.floats(0, 1).map(lambda v: [v, 0.0, 1.0])
score = st.fixed_dictionaries(
    {
        "utterances": st.integers(1, 9999),
        **dict.fromkeys(("accuracy", "weighted_f1", "macro_f1", "mean_r1", "parse_rate"), unit),
        "calibration": st.fixed_dictionaries(
            {"temperature": st.none() | st.floats(0.05, 20), "nll_tempered": st.none() | st.floats(0, 30)}
        ),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["start", "cold-start", "iteration-12-rl"]), score, min_size=1), stages
)
def test_the_tables_of_a_run_have_80_columns(scores, changed) -> None:
    constant = {
        "majority": next(iter(scores.values())),
        "prior": {"mean_r1": [0.1, 0.1, 0.2], "nll": [1.9, 1.8, 2]},
    }
    summary = {
        "scores": {c: {"meld": s} for c, s in scores.items()},
        "constants": {"meld": constant},
        "changes": changed,
    }
    tables = run_tables(summary, "dev")
    for title, header, rows in tables:
        assert all(len(r) == len(header) for r in rows)
        is_readable(narrow(header, rows))
        assert len(title) <= 80
    assert [r[0] for r in tables[0][2]] == [*scores, "majority", "prior"]
    stars = sum(cell.endswith("*") for _, _, rows in tables[1:] for r in rows for cell in r[2:])
    shown = [
        c
        for s in changed if not s["copied"]
        for by in s["by"].values() if by["conversations"] >= 6
        for c in by.values()
    ]  # fmt: skip
    away = [c for c in shown if isinstance(c, dict) and not c["difference"][1] <= 0 <= c["difference"][2]]
    assert stars == len(away)


def test_the_tables_of_an_analysis_have_80_columns() -> None:
    ends = [0.123456, 0.1, 0.2]
    record = {
        "prompts": 9999, "parsed": 1234, "entropy": dict.fromkeys(("emotion", "self_emotion", "reply"), ends),
        "round_trip": {"r1": ends, "top_match": None}, "diversity": {"distinct_2": 0.5, "self_bleu": None},
        "emotion": {"entropy": 1.23}, "self_emotion": {"entropy": None},
    }  # fmt: skip
    names = ("start", "iteration-12-rl")
    read = {
        "replies": 1234, "unread": 12, "kappa": ends, "mutual_information": ends, "agreement": ends,
        "by_chance": 0.3, "read": {"share": {"neutral": 1.0}, "entropy": 0.0},
        "declared": {"share": dict.fromkeys(("surprise", "sadness", "disgust", "joy"), 0.25), "entropy": 1.4},
        "by_emotion": {"surprise": {"n": 308, "recall": 0.5, "elsewhere": None, "kappa": ends}},
        "by_cluster": {"affectionate, self-deprecating, quick-tempered": {"n": 20, "kappa": ends}},
    }  # fmt: skip
    given = {**read, "by_cluster": {}}
    of_last = {"iteration-12-rl": {"meld": read}, f"iteration-12-rl{GIVEN}": {"meld": given}}
    reading = {"expression": {"start": {}, **of_last, REAL: {"meld": read}}}
    result = {"checkpoints": dict.fromkeys(names, record), "readers": {"readers/minilm": reading}}
    tables = analysis_tables(result)
    assert [len(rows) for _, _, rows in tables] == [2, 2, 2, 4, 1, 1, 1]
    for _, header, rows in tables:
        is_readable(narrow(header, rows))
    _, header, rows = tables[3]
    assert [r[:3] for r in rows] == [
        ["start", "0/0", "-"], ["iteration-12-rl", "1222/1234", "0.123 [0.100, 0.200]"],
        ["iteration-12-rl, S given", "1222/1234", "0.123 [0.100, 0.200]"],
        [REAL, "1222/1234", "0.123 [0.100, 0.200]"],
    ]  # fmt: skip
    assert [title.partition(":")[0] for title, *_ in tables[4:]] == [
        "iteration-12-rl, by declared emotion", "iteration-12-rl, by persona cluster",
        "iteration-12-rl, S given, by declared emotion",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "labels"), [(n, s) for n, s in LABEL_SETS.items()])
def test_confusion_of_each_label_set_has_80_columns(name, labels) -> None:
    header = ["gold", *labels, "failed"]
    is_readable(narrow(header, [[e, *["1234"] * (len(labels) + 1)] for e in labels]))
