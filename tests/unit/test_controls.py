"""The control arms without a model: shuffled targets, refits on replay alone, the labels that RL drew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import SelfPlayConfig, load
from selfemo.errors import ConfigError
from selfemo.evaluation.experiments.arms import Arm, arms_for, read_arm
from selfemo.evaluation.experiments.compare import FinishedArm, same_labels
from selfemo.method.prompts import Fitted
from selfemo.method.types import LABEL_SETS, Lineage, Place, Prompt, RawCompletion, Rollout, RolloutGroup
from selfemo.models.generation.requests import SamplingSettings
from selfemo.runs.store import Store
from selfemo.stages.completions import sample_groups
from selfemo.stages.flywheel import labels_record, replay_alone
from selfemo.stages.selfplay import next_targets, shuffle_targets
from tests.conftest import dist, make_prompt

MELD, IEMOCAP = LABEL_SETS["meld"], LABEL_SETS["iemocap"]
SHUFFLED = SelfPlayConfig(targets="shuffled")


def child(name: str, emotion: str, labels: str = "meld") -> Prompt:
    prompt = make_prompt(f"{name}>1", dist(**{emotion: 1}))
    return replace(prompt, label_set=LABEL_SETS[labels], lineage=Lineage(1, name, 1, f"{name}/1"))


# -- placebo: shuffled targets ----------------------------------------------------------

EMOTIONS = {"meld": MELD.labels, "iemocap": IEMOCAP.labels}


@st.composite
def rounds(draw: st.DrawFn) -> list[Prompt]:
    sets = draw(st.lists(st.sampled_from(sorted(EMOTIONS)), max_size=12))
    return [child(f"e{i}", draw(st.sampled_from(EMOTIONS[s])), s) for i, s in enumerate(sets)]


@given(rounds(), st.integers(0, 1000))
def test_targets_move_to_another_episode_of_their_label_set(prompts: list[Prompt], seed: int) -> None:
    shuffled, sources = shuffle_targets(prompts, seed)
    assert shuffle_targets(prompts, seed) == (shuffled, sources), "a resumed round has the same"
    by_id = {p.id: p for p in prompts}
    size = Counter(p.label_set.name for p in prompts)
    for before, after in zip(prompts, shuffled, strict=True):
        assert replace(after, target=before.target) == before, "nothing but the target changes"
        source = by_id[sources[before.id]]
        assert after.target == source.target and source.label_set == before.label_set
        assert (source.id == before.id) == (size[before.label_set.name] == 1)
    # Each target is given once, so that labels are as frequent as before.
    assert sorted(sources.values()) == sorted(by_id)


def test_each_other_episode_gives_its_target_equally_often() -> None:
    prompts = [child(n, "joy") for n in "abcd"]
    found = Counter(shuffle_targets(prompts, seed)[1]["a>1"] for seed in range(600))
    assert set(found) == {"b>1", "c>1", "d>1"}
    assert all(160 < n < 240 for n in found.values()), found


def test_a_round_of_next_prompts_by_hand() -> None:
    """Two episodes swap; one alone in its label set keeps its own; a second draw of one original is none."""
    a, b, alone = child("a", "joy"), child("b", "fear"), child("c", "sad", "iemocap")
    again = replace(child("a", "anger"), id=a.id)
    prompts, record = next_targets([a, b, again, alone], SHUFFLED, 3, {})
    assert [(p.id, p.target) for p in prompts] == [
        (a.id, dist(fear=1)), (b.id, dist(joy=1)), (alone.id, dist(sad=1)),
    ]  # fmt: skip
    assert record == {
        "targets_from": {a.id: b.id, b.id: a.id, alone.id: alone.id},
        "targets": {"targets_shuffled": 2, "targets_own": 1, "targets_same_top": 0},
    }
    _, record = next_targets([a, child("d", "joy")], SHUFFLED, 3, {})
    assert record["targets"] == {"targets_shuffled": 2, "targets_own": 0, "targets_same_top": 2}
    assert next_targets([a, b, again, alone], SelfPlayConfig(), 3, {}) == ([a, b, alone], {})


# -- replay-only: refits on samples of the cold start ----------------------------------


@given(
    st.lists(st.integers(0, 60), unique=True, min_size=1, max_size=30), st.data(), st.integers(0, 50)
)  # fmt: skip
def test_a_refit_on_replay_alone_is_as_large_and_repeats_evenly(
    ids: list[int], data: st.DataObject, more: int
) -> None:
    drawn = sorted(data.draw(st.sets(st.sampled_from(ids))))
    others = sorted(set(ids) - set(drawn))
    found = replay_alone(len(drawn) + more, drawn, others, np.random.default_rng(1))
    assert len(found) == len(drawn) + more and set(found) <= set(ids)
    assert set(drawn) <= set(found), "what the full refit would replay is there"
    times = Counter(found)
    often = [times[i] for i in ids]
    assert max(often) - min(often) <= 1
    assert found == replay_alone(len(found), drawn, others, np.random.default_rng(1))


def test_the_order_of_replay_by_hand() -> None:
    generator = np.random.default_rng(0)
    assert replay_alone(2, [7, 9], [1], generator) == [7, 9]
    assert replay_alone(3, [7, 9], [1], generator) == [1, 7, 9], "in order, so that conversations stay whole"
    found = replay_alone(5, [7, 9], [1], generator)
    assert found[:3] == [1, 7, 9] and found[3] < found[4]
    with pytest.raises(ValueError, match="no sample to replay"):
        replay_alone(3, [], [], generator)


# -- same-labels: what RL drew ----------------------------------------------------------

RL = "iteration-1-rl"


def answered(store: Store, stage: str, step: int, prompt: Prompt) -> None:
    rollout = Rollout(RawCompletion("x"), dist(joy=1), 0.5, 0.25, 0.0)
    with store.transaction():
        store.add_prompts([prompt], Place(stage, step, 1))
        store.add_group(RolloutGroup(prompt, (rollout, rollout)), Place(stage, step, 1), 0, "pass")


def test_the_labels_that_rl_drew(tmp_path: Path) -> None:
    """Groups count once however many members they have; self-play and stages that are not RL do not."""
    first, second = make_prompt("a/1", dist(joy=1)), make_prompt("b/1", dist(fear=1))
    with Store(tmp_path / "store.sqlite") as store:
        assert store.labels_drawn() == Counter()
        for stage, step, prompt in (
            (RL, 0, first), (RL, 1, second), (RL, 2, first), (RL, 3, child("a", "joy")),
            ("iteration-2-rl", 0, second), ("selfplay", 0, first),
        ):  # fmt: skip
            answered(store, stage, step, prompt)
        a, b = ("a/1", '{"joy": 1.0}'), ("b/1", '{"fear": 1.0}')
        assert store.labels_drawn(RL) == {a: 2, b: 1}
        assert store.labels_drawn("iteration-2-rl") == {b: 1}
        assert store.labels_drawn() == {a: 2, b: 2}


def test_equal_multisets_have_one_digest() -> None:
    a, b = ("a/1", '{"joy": 1.0}'), ("b/1", '{"fear": 1.0}')
    record = labels_record({a: 2, b: 1})
    assert (record["labels"], record["labelled_prompts"]) == (3, 2)
    assert labels_record({b: 1, a: 2}) == record
    others = ({a: 1, b: 2}, {a: 2}, {a: 2, ("b/1", '{"joy": 1.0}'): 1}, {})
    assert len({labels_record(o)["labels_digest"] for o in ({a: 2, b: 1}, *others)}) == 5


def test_arms_are_compared_by_seed() -> None:
    a, b = ("a/1", "joy"), ("b/1", "fear")

    def arm(name: str, *labels: dict[tuple[str, str], int]) -> FinishedArm:
        return FinishedArm(Arm(name), "", [], [], [], [], [Counter(d) for d in labels])

    found = same_labels(arm("mine", {a: 2, b: 1}, {a: 3}), arm("other", {b: 1, a: 2}, {a: 2, b: 2}))
    assert found == [
        {"arm": "other", "equal": True, "common": 3, "draws": [3, 3]},
        {"arm": "other", "equal": False, "common": 2, "draws": [3, 4]},
    ]


def test_a_group_that_nothing_learns_from_is_one_completion() -> None:
    """It stands for the group in the metrics; where replies are used, the best of G is still chosen."""
    gold = ["grpo.credit=causal", "grpo.gold_weight=1"]
    fitted = Fitted(make_prompt(), (1, 2), 0)
    asked: list[int] = []

    def sample(
        prompts: Sequence[Fitted], n: int, seeds: Sequence[int], settings: SamplingSettings
    ) -> list[list[RawCompletion]]:
        asked.append(n)
        return [[RawCompletion("E: joy\n")] * n for _ in prompts]

    for more, replies in ((["grpo.reward_weight=0"], False), (["grpo.reward_weight=0"], True), ([], False)):
        sample_groups(sample, [fitted], load([], [*gold, *more]), Place(RL), replies=replies)
    assert asked == [1, 8, 8]


# -- arms and settings ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["flywheel.refit_on=replay", "flywheel.refit=none"], "there is no refit"),
        (["flywheel.refit_on=replay", "flywheel.refit=policy", "flywheel.replay=0"], "would have no samples"),
        (["flywheel.refit_on=gold"], "Input should be 'all' or 'replay'"),
        (["selfplay.targets=shuffled", "selfplay.max_turns=1"], "there are no next prompts"),
        (["selfplay.targets=shuffled", "selfplay.synthetic_share=0"], "there are no next prompts"),
        (["selfplay.targets=shuffled", "grpo.prompts_per_step=1", "grpo.mini_batch=1"], "two episodes"),
        (["selfplay.targets=shuffled", "flywheel.prompts=1"], "two episodes"),
        (["grpo.gold_weight=1", "grpo.credit=causal", "prompt.reasoning=brief"], "model reason first"),
    ],
)
def test_controls_that_cannot_be(settings: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load([], settings)


def test_each_control_changes_what_it_says_and_nothing_else() -> None:
    base = load([], ["seed=4"])
    arms = {n: read_arm(n) for n in ("replay-only", "placebo", "same-labels", "original-only")}
    changed = {n: load([], [*a.overrides, "seed=4"]) for n, a in arms.items()}
    assert all(a.what and not a.paper for n, a in arms.items() if n != "original-only")

    def differ(name: str, other: str = "") -> set[str]:
        one, two = (c.model_dump() for c in (changed[name], changed[other] if other else base))
        return {
            f"{s}.{k}"
            for s, v in one.items()
            if isinstance(v, dict)
            for k in v
            if v[k] != two[s][k]
        }  # fmt: skip

    assert differ("replay-only") == {"flywheel.refit_on"}
    assert differ("placebo") == {"selfplay.targets"}
    # Rewards instead of labels are all that stands between the two: prompts, rounds and steps are the same.
    assert differ("same-labels", "original-only") == {
        "grpo.credit", "grpo.gold_weight", "grpo.reward_weight",
    }  # fmt: skip
    assert arms["same-labels"].same_labels_as == "original-only"
    with pytest.raises(ConfigError, match=r"replay-only: flywheel\.refit = .none."):
        arms_for(load([], ["flywheel.refit=none"]), ["replay-only"])
    names = [a.name for a in arms_for(base)]
    assert not {"replay-only", "placebo", "same-labels"} & set(names), "part of nothing by default"
