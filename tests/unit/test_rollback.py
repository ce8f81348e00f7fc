"""When a stage is rolled back: by hand, on which conversations, what is refused, what is told."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import load
from selfemo.data.splits import held_out
from selfemo.errors import ConfigError, DataError
from selfemo.evaluation.changes import belief_changes, change_rows, stage_changes, steps
from selfemo.runs.evolve import evolve
from selfemo.runs.folder import RunFolder, checkpoints
from selfemo.runs.rollback import (
    Judge,
    check_settings,
    choice_line,
    choice_lines,
    choices,
    is_worse,
    judged_on,
    mean_change,
    rolled_back_refits,
)
from selfemo.runs.standalone import train_alone
from selfemo.runs.store import Store
from tests.conftest import MELD, toy_conversations
from tests.support.runs import Silent, Watcher

ON = ("flywheel.if_worse=rollback", "data.eval_split=dev")


def by(**changes: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {d: {"before": a, "after": b} for d, (a, b) in changes.items()}


def test_the_choice_by_hand() -> None:
    """Data sets count alike: 1.50 and 1.80 have the mean 1.65, 1.62 and 1.84 have 1.73, a rise of 0.08."""
    rose = by(meld=(1.50, 1.62), emorynlp=(1.80, 1.84))
    assert mean_change(rose) == pytest.approx((1.65, 1.73))
    assert is_worse(rose, 0.0) and is_worse(rose, 0.07) and not is_worse(rose, 0.09)
    mixed = by(meld=(1.50, 1.56), emorynlp=(1.80, 1.70))  # +0.06 and -0.10: a fall of 0.02
    assert mean_change(mixed) == pytest.approx((1.65, 1.63)) and not is_worse(mixed, 0.0)
    assert not is_worse(by(meld=(1.5, 1.5)), 0.0), "no change is not worse"
    assert is_worse(by(meld=(1.25, 1.5)), 0.125) and not is_worse(by(meld=(1.25, 1.5)), 0.25), "more than"


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=4), st.floats(0, 1))
def test_a_choice_depends_on_no_order_and_only_on_a_rise(found, margin) -> None:
    named = {f"d{i}": {"before": a, "after": b} for i, (a, b) in enumerate(found)}
    back = dict(reversed(named.items()))
    difference = sum(b - a for a, b in found) / len(found)
    if abs(difference - margin) > 1e-9:
        assert is_worse(named, margin) == is_worse(back, margin) == (difference > margin)
    better = {d: {"before": max(c.values()), "after": min(c.values())} for d, c in named.items()}
    assert not is_worse(better, margin)


def put(store: Store, checkpoint: str, beliefs: dict[str, float | None]) -> None:
    """An evaluation whose turn 1 of each conversation has gold joy and the believed probability of joy."""
    rows = []
    for conversation, p in beliefs.items():
        told = None if p is None else json.dumps({"joy": p, "anger": 1 - p})
        joy = json.dumps({"joy": 1.0})
        name = f"evaluate-{checkpoint}"
        rows.append((name, f"{conversation}/1", "toy", conversation, joy, joy, None, 1.0, "", told))
    with store.transaction():
        store.add_predictions(rows)
    store.set_stage(f"evaluate-{checkpoint}", "done")


def test_a_judge_looks_at_the_tuning_half_alone(tmp_path: Path) -> None:
    """Of eight conversations four are judged on, gold is joy, and the claim half moves the other way.

    Joy believed .75 three times and .25 once: -(3 ln .75 + ln .25) / 4 = .5623, best at T = 1. Believed .5:
    ln 2 = .6931. Believed .9 and .1: what .75 and .25 know, at T = 2.
    """
    everything = [*toy_conversations(3), *toy_conversations(8, "dev")]
    config = load([], [*ON, "flywheel.worse_margin=0.125"])
    held = held_out(everything, "dev", 0, 0)
    tuning = {c.id for c in held_out(everything, "dev", 0, 0, "tuning")}
    mine, theirs = sorted(tuning), sorted({c.id for c in held} - tuning)
    assert {c.id for c in judged_on(everything, held, config.data)} == tuning and len(tuning) == 4
    said = Watcher()
    with RunFolder(tmp_path / "run", config, said) as run:

        def beliefs(right: float, wrong: float, others: float) -> dict[str, float]:
            return dict(zip(mine, (right, right, wrong, right), strict=True)) | dict.fromkeys(theirs, others)

        put(run.store, "cold-start", beliefs(0.75, 0.25, 0.5))
        put(run.store, "iteration-1-rl", beliefs(0.5, 0.5, 0.95))
        put(run.store, "iteration-1-refit", beliefs(0.9, 0.1, 0.05))
        judge = Judge(run, everything, held, belief_changes)
        judge.begin()
        worse = judge.choose("iteration-1-rl", "cold-start")
        kept = judge.choose("iteration-1-refit", "cold-start")
    known = -(3 * math.log(0.75) + math.log(0.25)) / 4
    assert worse["nll_at_t"] == pytest.approx([known, math.log(2)], abs=1e-3)
    assert worse["by"]["toy"]["temperatures"][0] == pytest.approx(1, abs=0.01)
    assert kept["nll_at_t"] == pytest.approx([known, known], abs=1e-3)
    assert worse["by"]["toy"]["utterances"] == worse["judged_on"] == 4
    assert worse["rolled_back"] and worse["kept"] == "cold-start" and worse["margin"] == 0.125
    assert not kept["rolled_back"] and kept["kept"] == "iteration-1-refit"
    assert said.said == [
        "Stages are judged on 4 conversations of toy in the tuning half of dev, and one that ends worse is "
        "rolled back. Scores on the whole split are therefore chosen on; claim on the other half "
        "(selfemo evaluate RUN --data DATA --split dev --set data.eval_half=claim) or on test.",
        "iteration-1-rl rolled back to cold-start: NLL at T 0.562 -> 0.693",
        "iteration-1-refit kept: NLL at T 0.562 -> 0.562",
    ]


def test_a_limit_moves_no_conversation_into_the_choice_and_none_left_is_told() -> None:
    everything = [*toy_conversations(3), *toy_conversations(8, "dev")]
    tuning = {c.id for c in held_out(everything, "dev", 0, 0, "tuning")}
    for limit in range(2, 9):
        data = load([], [*ON, f"data.eval_conversations={limit}"]).data
        held = held_out(everything, "dev", limit, 0)
        if found := {c.id for c in held} & tuning:
            assert {c.id for c in judged_on(everything, held, data)} == found
    data = load([], ON).data
    only_claim = [c for c in held_out(everything, "dev", 0, 0) if c.id not in tuning]
    with pytest.raises(DataError, match=r"^toy: no held-out conversation .* raise data\.eval_conversations"):
        judged_on(everything, only_claim, data)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["data.eval_split=test"], r'data\.eval_split = "test": .* test is for claims alone; set "dev"'),
        (["data.eval_half=claim"], r'data\.eval_half = "claim": .* is for claims; set "tuning", or "all"'),
        (["evaluation.beliefs=false"], r"evaluation\.beliefs = false: .* leaves out; set true"),
        (["prompt.reasoning=brief"], r"prompt\.reasoning = 'brief': .* reason first; set \"none\""),
    ],
)
def test_settings_that_cannot_choose_are_refused(changes: list[str], says: str, tmp_path: Path) -> None:
    config = load([], [*ON, *changes])  # `selfemo evaluate RUN` takes a run's settings with another split
    with pytest.raises(ConfigError, match=says) as e:
        evolve(tmp_path / "run", config, lambda *a: {}, compare=belief_changes)
    assert str(e.value).startswith('flywheel.if_worse = "rollback" does not go with these settings; change')
    assert str(e.value).count("\n- ") == 1 and not (tmp_path / "run").exists()


def test_all_settings_that_cannot_choose_are_told_at_once() -> None:
    every = ["data.eval_split=test", "data.eval_half=claim", "evaluation.beliefs=false"]
    with pytest.raises(ConfigError) as e:
        check_settings(load([], [*ON, *every]))
    assert str(e.value).count("\n- ") == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("flywheel.if_worse=better", r"flywheel\.if_worse: Input should be 'go_on' or 'rollback'"),
        ("flywheel.worse_margin=-0.1", r"flywheel\.worse_margin: .* greater than or equal to 0"),
    ],
)
def test_values_that_are_none_are_refused(change: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load([], [*ON, change])


def test_probabilities_as_predictions_are_beliefs_too_and_the_default_goes_on() -> None:
    check_settings(load([], [*ON, "evaluation.span=probabilities", "evaluation.beliefs=false"]))
    for half in ("all", "tuning"):
        check_settings(load([], [*ON, f"data.eval_half={half}"]))
    assert load([], []).flywheel.if_worse == "go_on" and load([], ON).flywheel.worse_margin == 0.01


def test_a_stage_that_nothing_judges_is_refused(tmp_path: Path) -> None:
    config = load([], ON)
    with pytest.raises(ConfigError, match="`selfemo train` evaluates nothing"):
        train_alone("builtin:smollm2-135m", tmp_path / "out", config, Silent())
    assert not (tmp_path / "out").exists()


def test_evolve_without_a_way_to_compare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`compare`"):
        evolve(tmp_path / "run", load([], ON), lambda *a: {})


def test_evaluations_without_beliefs_are_told(tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite") as store:
        put(store, "cold-start", {"c0": 0.75, "c1": 0.5})
        put(store, "iteration-1-rl", {"c0": None, "c1": None})
        rows = [store.predictions(f"evaluate-{c}") for c in ("cold-start", "iteration-1-rl")]
    assert belief_changes(rows[0], rows[0], {"toy": MELD})["toy"]["before"] == pytest.approx(
        math.log(2) / 2, abs=1e-3
    )
    for pair in (rows, rows[::-1], ([], [])):
        with pytest.raises(DataError, match=r"^toy: .*no label probabilities .* evaluation\.beliefs = true"):
            belief_changes(*pair, {"toy": MELD})
    with pytest.raises(DataError, match=r"^other: "):
        belief_changes(rows[0], rows[0], {"toy": MELD, "other": MELD})


def record(trained: str, before: str, worse: bool) -> dict:
    found = {"trained": trained, "before": before, "kept": before if worse else trained}
    return found | {"rolled_back": worse, "nll_at_t": [1.52, 1.6], "margin": 0.01, "judged_on": 9}


def test_a_run_tells_what_was_rolled_back(tmp_path: Path) -> None:
    """RL 1 and refit 2 were rolled back; iteration 3 had no refit and its RL was rolled back."""
    config = load([], [*ON, "flywheel.iterations=3", "data.eval_half=tuning"])
    names = ["iteration-1-rl", "iteration-1-refit", "iteration-1", "iteration-2-rl", "iteration-2-refit",
             "iteration-2", "iteration-3-rl", "iteration-3-refit", "iteration-3"]  # fmt: skip
    assert checkpoints(config) == ["start", "cold-start", *names]
    no_refit = load([], [*ON, "flywheel.refit=none"])
    assert checkpoints(no_refit) == ["start", "cold-start", "iteration-1-rl", "iteration-1"]
    assert checkpoints(load([], [])) == checkpoints(no_refit)
    made = [
        ("keep-iteration-1-rl", None, record("iteration-1-rl", "cold-start", True)),
        ("iteration-1-refit", "iteration-1-refit", {}),
        ("keep-iteration-1", "iteration-1", record("iteration-1-refit", "cold-start", False)
         | {"copy_of": "iteration-1-refit"}),
        ("keep-iteration-2-rl", None, record("iteration-2-rl", "iteration-1", False)),
        ("keep-iteration-2", "iteration-2", record("iteration-2-refit", "iteration-2-rl", True)
         | {"copy_of": "iteration-2-rl"}),
        ("keep-iteration-3-rl", None, record("iteration-3-rl", "iteration-2", True)),
        ("iteration-3-refit", "iteration-3-refit", {"copy_of": "iteration-2"}),
        ("keep-iteration-3", "iteration-3", {"copy_of": "iteration-2"}),
    ]  # fmt: skip
    with Store(tmp_path / "store.sqlite") as store:
        assert choice_lines(config, store) == []
        for name in ["start", "cold-start", *names]:
            if name != "iteration-3-refit":
                put(store, name, {"c0": 0.75, "c1": 0.5})
        for name, checkpoint, info in made:
            store.set_stage(name, "done", checkpoint=checkpoint, info=info)
        store.set_stage("keep-iteration-4-rl", "running")
        assert len(choices(store)) == 5 and rolled_back_refits(store) == {2}
        lines = choice_lines(config, store)
        assert lines[0] == choice_line(made[0][2])
        assert lines[0] == "iteration-1-rl rolled back to cold-start: NLL at T 1.520 -> 1.600"
        assert lines[1] == "iteration-1-refit kept: NLL at T 1.520 -> 1.600"
        assert len(lines) == 6 and "Scores on that half are therefore chosen on" in lines[-1]
        found = [(s.name, s.before, s.after, s.copied, s.rolled_back) for s in steps(config, store)]
        assert found == [
            ("cold start (labels)", "start", "cold-start", False, False),
            ("RL 1", "cold-start", "iteration-1-rl", False, True),
            ("refit 1", "cold-start", "iteration-1-refit", False, False),
            ("RL 2", "iteration-1", "iteration-2-rl", False, False),
            ("refit 2", "iteration-2-rl", "iteration-2-refit", False, True),
            ("RL 3", "iteration-2", "iteration-3-rl", False, True),
            ("refit 3", "iteration-2", "iteration-3", True, False),
        ]
        table = change_rows(stage_changes(config, store, {"toy": MELD}))
    ends = [row[2] for row in table]
    assert [e.endswith("; rolled back") for e in ends] == [False, True, False, False, True, True, False]
    assert ends[-1] == "no refit: iteration-2 is kept"
