"""The noisy channel's arithmetic, its comparison with E, and which turns it reads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import PromptConfig
from selfemo.errors import ConfigError, DataError, UnsupportedError
from selfemo.evaluation.channel import (
    ALONE,
    BOTH,
    CONTROL,
    GENERATOR,
    READERS,
    channel_table,
    compare_readers,
    fit_exponents,
    held_out_turns,
    other_turns,
    product_nll,
    read_as,
)
from selfemo.evaluation.metrics import calibration
from selfemo.evaluation.tempered import BELIEF_FLOOR, nll_at_best_temperature
from selfemo.method.channel import ChannelScores, log_weights, product_of_experts
from selfemo.method.types import Conversation, EmotionDistribution, LabelSet, Utterance
from selfemo.models.generation.scripted import ScriptedSampler
from selfemo.stages.channel import TurnReading, read_turns, readable_turns
from tests.conftest import MELD, dist

TWO = LabelSet("two", ("joy", "sadness"))
THREE = LabelSet("three", ("joy", "sadness", "fear"))


def talk(
    *turns: tuple[str, str | None], name: str = "c", labels: LabelSet = TWO, dataset: str = "toy"
) -> Conversation:
    said = tuple(
        Utterance(s, f"Line {k}.", None if e is None else dist(**{e: 1})) for k, (s, e) in enumerate(turns)
    )
    return Conversation(name, dataset, "dev", said, labels)


def reading(
    gold: str, e: EmotionDistribution, prior: tuple[float, ...], reply: tuple[float, ...], name: str = "c",
    labels: LabelSet = TWO,
) -> TurnReading:  # fmt: skip
    c = talk(("Ann", None), ("Bo", gold), name=name, labels=labels)
    return TurnReading(c, 1, e, ChannelScores(prior, reply))


def test_a_product_of_experts_by_hand() -> None:
    # .6 * .2 : .4 * .8 = .12 : .32; adding a constant to one expert's logs changes nothing.
    e = log_weights(dist(joy=0.6, sadness=0.4), TWO)
    found = product_of_experts(TWO, e, [math.log(0.2) - 50, math.log(0.8) - 50])
    assert dict(found) == pytest.approx({"joy": 3 / 11, "sadness": 8 / 11})
    assert dict(product_of_experts(TWO, [-800.0, -800.0])) == {"joy": 0.5, "sadness": 0.5}
    assert dict(product_of_experts(TWO, log_weights(dist(joy=1), TWO), [-9.0, 0.0])) == {"joy": 1.0}
    with pytest.raises(ValueError, match="no emotion has a finite weight"):
        product_of_experts(TWO, [0.0, -math.inf], [-math.inf, 0.0])
    with pytest.raises(ValueError, match="no emotion has a finite weight"):
        product_of_experts(TWO, [math.nan, math.nan])


def test_each_reader_by_hand() -> None:
    mine = reading(
        "joy", dist(joy=0.6, sadness=0.4), (math.log(0.5), math.log(0.1)), (math.log(0.1), math.log(0.4))
    )
    other = reading("joy", dist(joy=0.9, sadness=0.1), (0.0, 0.0), (math.log(0.3), math.log(0.1)))
    found = read_as(mine, other)
    assert list(found) == list(READERS)
    assert {n: d["joy"] for n, d in found.items()} == pytest.approx({
        ALONE: 0.6,
        "prior": 5 / 6,
        "channel": 1 / 5,
        GENERATOR: 0.05 / 0.09,
        BOTH: 0.06 / 0.22,
        CONTROL: 0.18 / 0.22,
    })  # fmt: skip
    assert mine.combined == found[BOTH]


@given(st.integers(2, 40), st.integers(0, 2**32))
def test_each_turn_gets_another_one_and_each_is_given_once(n: int, seed: int) -> None:
    found = other_turns(n, np.random.default_rng(seed))
    assert sorted(found) == list(range(n)) and not any(k == j for k, j in enumerate(found))


def test_one_turn_has_no_other() -> None:
    with pytest.raises(ValueError, match="no other"):
        other_turns(1, np.random.default_rng(0))


def test_nll_at_the_best_temperature_is_that_of_the_calibration() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], 40)
    gold = rng.dirichlet([0.2, 0.2, 0.2], 40)
    temperature, nll = nll_at_best_temperature(p, gold)
    names = THREE.labels
    known = calibration(
        [dict(zip(names, row, strict=True)) for row in p], [dict(zip(names, y, strict=True)) for y in gold],
        [names] * 40, floor=BELIEF_FLOOR,
    )  # fmt: skip
    assert nll.shape == (40,)
    assert (temperature, nll.mean()) == pytest.approx((known["temperature"], known["nll_tempered"]))


def test_exponents_are_the_best_of_a_grid() -> None:
    rng = np.random.default_rng(1)
    e, channel = np.log(rng.dirichlet([1, 1, 1], 60)), rng.normal(0, 2, (60, 3))
    truth = np.array([1.5, 0.5])
    weights = np.exp(truth[0] * e + truth[1] * channel)
    gold = weights / weights.sum(1, keepdims=True)  # soft gold: the truth itself is the minimum
    assert fit_exponents([e, channel], gold) == pytest.approx(truth, abs=1e-3)
    grid = [np.array([a, b]) for a in np.arange(0, 3, 0.25) for b in np.arange(0, 3, 0.25)]
    best = min(grid, key=lambda w: product_nll([e, channel], gold, w).mean())
    assert best == pytest.approx(truth)
    opposed = fit_exponents([e, -channel], gold)
    assert opposed[1] == 0.0, "an expert is never turned into its opposite"


def heard(knows: float, seed: int, conversations: int = 24, bias: float = 0.0) -> list[TurnReading]:
    """Turns with a weak E and a channel whose log-probability of the gold emotion is `knows` higher."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(conversations):
        for _ in range(4):
            gold = (
                ["joy", "sadness"][int(rng.random() < 0.2)] if bias else ["joy", "sadness"][rng.integers(2)]
            )
            lean = rng.uniform(0.4, 0.6)
            reply = rng.normal(-20, 0.3, 2)
            reply[TWO.index(gold)] += knows
            reply[0] += bias
            found.append(
                reading(gold, dist(joy=lean, sadness=1 - lean), (-0.7, -0.7), tuple(reply.tolist()), f"c{n}")
            )
    return found


def test_a_channel_that_knows_more_can_teach() -> None:
    found = compare_readers(heard(1.5, 0), 50, 0)
    assert (found["turns"], found["conversations"]) == (96, 24)
    nll = {n: s["nll_tempered"] for n, s in found["readers"].items()}
    assert nll[BOTH] < nll[ALONE] - 0.2 and nll[CONTROL] > nll[ALONE] - 0.05
    assert found["teaches"] == [BOTH, GENERATOR] and found["control"]["p_value"] < 0.01
    assert found["verdict"].startswith("self-play can teach E (NLL at T: E ")
    assert "against_e" not in found["readers"][ALONE]
    fit = found["cross_fit"]
    assert fit["difference"][0] < -0.2 and fit["p_value"] < 0.01
    assert fit["nll"] - fit["nll_of_e"] == pytest.approx(fit["difference"][0])
    assert all(b > 0.5 for _, b in fit["exponents"])
    # The prior says nothing: it is as good as a coin, and the channel alone is the generator.
    assert nll["prior"] == pytest.approx(math.log(2)) and nll["channel"] == pytest.approx(nll[GENERATOR])
    header, rows = channel_table({"datasets": {"toy": found}})
    assert len(rows) == len(READERS) + 1 and all(len(r) == len(header) for r in rows)


def test_a_channel_that_hears_nothing_can_teach_nothing() -> None:
    verdicts = [compare_readers(heard(0.0, seed), 20, 0) for seed in range(20)]
    assert sum(bool(v["teaches"]) for v in verdicts) <= 3
    quiet = next(v for v in verdicts if not v["teaches"])
    assert quiet["verdict"].startswith("nothing shown that self-play could teach E (")


def test_a_channel_that_helps_whatever_turn_it_heard_does_not_count() -> None:
    """Joy is frequent and the channel leans to joy, also for another turn: E x channel gains, in vain."""
    found = compare_readers(heard(0.0, 3, 60, bias=1.4), 50, 0)
    against = {n: found["readers"][n]["against_e"]["nll_tempered"] for n in (BOTH, CONTROL)}
    assert all(d["difference"][0] < 0 and d["p_value"] < 0.05 for d in against.values())
    assert found["control"]["p_value"] > 0.05 and BOTH not in found["teaches"]


def test_turns_that_follow_another_speaker() -> None:
    c = talk(("Ann", "joy"), ("Ann", "joy"), ("Bo", "sadness"), ("Ann", None), ("Ann", None), ("Bo", "joy"))
    turns, left_out = readable_turns([c], gold=True)
    assert [k for _, k in turns] == [2, 5] and left_out == {"first_turn": 1, "same_speaker": 1}
    turns, left_out = readable_turns([c], gold=False)
    assert [k for _, k in turns] == [3] and left_out == {"same_speaker": 1}


def test_data_sets_and_label_sets_apart() -> None:
    both = [("Ann", "joy"), ("Bo", "joy")]
    held = [talk(*both, name=f"{labels.name}{k}", labels=labels) for labels in (TWO, THREE) for k in (0, 1)]
    held += [talk(*both, name=f"m{k}", dataset="meld") for k in (0, 1)]
    assert list(held_out_turns(held)) == ["toy (two)", "toy (three)", "meld"]


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ([("Ann", "joy"), ("Ann", "joy")], "0 held-out turns .* in 0 of 2 conversations"),
        ([("Ann", "joy"), ("Bo", None)], "0 held-out turns"),
    ],
)
def test_data_without_a_turn_to_read_are_refused(second: list[tuple[str, str | None]], says: str) -> None:
    with pytest.raises(DataError, match=f"toy: {says}"):
        held_out_turns([talk(("Ann", "joy"), name="a"), talk(*second, name="b")])


def test_one_conversation_is_not_compared() -> None:
    with pytest.raises(DataError, match=r"1 held-out turn .* in 1 of 1 conversation; .* two conversations"):
        held_out_turns([talk(("Ann", "joy"), ("Bo", "joy"))])


def test_models_that_cannot_read_so_are_told() -> None:
    c = replace(talk(("Ann", "joy"), ("Bo", "joy"), labels=MELD))
    with pytest.raises(UnsupportedError, match="probability of a given reply"):
        read_turns(ScriptedSampler(["x"]), [(c, 1)], PromptConfig())
    with pytest.raises(ConfigError, match=r"prompt\.reasoning = 'brief'"):
        read_turns(ScriptedSampler(["x"]), [(c, 1)], PromptConfig(reasoning="brief"))
