"""Majority and prior beside a model, worked by hand; whether the model beats them, in a sentence."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from selfemo.evaluation.constants import (
    HELD_OUT,
    MAJORITY,
    PRIOR,
    TRAINING,
    against_constants,
    constant_scores,
    constants_lines,
    label_shares,
)
from selfemo.evaluation.metrics import MEASURES
from selfemo.method.types import UNION, Conversation, EmotionDistribution, LabelSet, Utterance
from tests.support.scores import row

TWO = LabelSet("two", ("joy", "anger"))
LABELS = {"toy": TWO}


def training(labels: str, split: str = "train", dataset: str = "toy") -> Conversation:
    names = {"j": "joy", "a": "anger"}
    turns = tuple(Utterance("Ann", "Hm.", EmotionDistribution({names[g]: 1.0})) for g in labels)
    return Conversation("t", dataset, split, (*turns, Utterance("Bo", "No label.")), TWO)


def rows(gold: str, said: str, believed: list[float]) -> list:
    names = {"j": "joy", "a": "anger"}
    return [
        row(i, names[g], names[s], believed=p)
        for i, (g, s, p) in enumerate(zip(gold, said, believed, strict=True))
    ]


def test_the_constants_by_hand() -> None:
    """Anger is 5 of 7 in training: (5 + 1) / (7 + 2) = 2/3. Of the held-out turns it is 1 of 4.

    Majority: 1 of 4 is right; its F1 is 2 * 1 / (1 + 4) = 0.4, that of joy 0. Prior: the overlap with joy is
    1/3 of a union of 5/3, with anger 2/3 of 4/3.
    """
    found = rows("jjja", "jjja", [0.9, 0.9, 0.9, 0.1])
    shares = label_shares([training("jjaaaaa"), training("jjjjjjjjjj", "dev")], found, LABELS)
    assert shares["toy"].source == TRAINING and shares["toy"].majority == "anger"
    assert shares["toy"].share == pytest.approx({"joy": 1 / 3, "anger": 2 / 3})
    (c,) = constant_scores(found, LABELS, shares, resamples=50).values()
    assert c["label"] == "anger" and set(c[MAJORITY]) == set(MEASURES)
    value = {m: v[0] for m, v in c[MAJORITY].items()}
    assert value == pytest.approx(
        {"accuracy": 0.25, "weighted_f1": 0.4 / 4, "macro_f1": 0.4 / 2, "mean_r1": 0.25, "parse_rate": 1}
    )
    assert c[PRIOR]["nll"][0] == pytest.approx(-(3 * math.log(1 / 3) + math.log(2 / 3)) / 4)
    assert c[PRIOR]["mean_r1"][0] == pytest.approx((3 * (1 / 3) / (5 / 3) + (2 / 3) / (4 / 3)) / 4)


def test_without_a_training_split_the_held_out_labels_stand_in_and_are_named() -> None:
    found = rows("jjja", "jjja", [0.9] * 4)
    for elsewhere in ([], [training("aaaa", "dev")], [training("aaaa", dataset="other")]):
        shares = label_shares(elsewhere, found, LABELS)
        assert shares["toy"].source == HELD_OUT and shares["toy"].majority == "joy"
        constants = constant_scores(found, LABELS, shares, resamples=50)
        assert constants["toy"][MAJORITY]["accuracy"][0] == 0.75
        *_, last = constants_lines(constants, against_constants(found, LABELS, shares))
        assert "held-out labels themselves" in last and "no constant answer can do better" in last


@pytest.mark.parametrize(
    ("gold", "said", "believed", "words"),
    [
        ("jaja" * 8, "jaja" * 8, [0.9, 0.1] * 16, ("accuracy is above always saying joy", "better than")),
        ("jjja" * 16, "aaaj" * 16, [0.1, 0.1, 0.1, 0.9] * 16,
         ("accuracy is below always saying joy", "worse than")),
        ("jaja" * 8, "jjjj" * 8, [0.6, 0.6] * 16,
         ("accuracy is not told apart from always saying joy (+0.000",
          "is not told apart from that of the label shares")),
    ],
)  # fmt: skip
def test_one_sentence_says_whether_a_model_beats_them(gold, said, believed, words) -> None:
    found = rows(gold, said, believed)
    shares = label_shares([training("jja")], found, LABELS)
    lines = constants_lines(
        constant_scores(found, LABELS, shares, resamples=50), against_constants(found, LABELS, shares)
    )
    assert lines[0].startswith("toy: ") and all(w in lines[0] for w in words), lines
    assert lines[1:] == ["Majority and label shares (prior) are those of the training split."]


def test_a_union_takes_the_constants_of_each_data_set() -> None:
    """Joy is the majority of one, anger of the other: each is right in 3 of 4."""
    first = rows("jjja", "jjjj", [0.9] * 4)
    second = [
        row(i, g, g, believed=0.5, dataset="other") for i, g in enumerate(["anger", "anger", "anger", "joy"])
    ]
    labels = {"toy": TWO, "other": TWO}
    shares = label_shares([], [*first, *second], labels)
    found = constant_scores([*first, *second], labels, shares, resamples=50)
    assert found[UNION][MAJORITY]["accuracy"][0] == 0.75 and found[UNION]["label"] == ""
    against = against_constants([*first, *second], labels, shares)
    assert against[UNION]["accuracy"]["difference"][0] == pytest.approx((0 + 1) / 8)
    assert "the majority of each data set" in constants_lines(found, against)[2]


@settings(max_examples=40, deadline=None)
@given(st.text("ja", min_size=6, max_size=24), st.floats(0.001, 0.999))
def test_a_model_that_tells_nothing_apart_never_knows_more_than_the_held_out_shares(held, joy) -> None:
    found = rows(held, "j" * len(held), [joy] * len(held))
    against = against_constants(found, LABELS, label_shares([], found, LABELS))["toy"]
    assert against["nll_verdict"] != "above", against["nll_at_t"]


@settings(max_examples=40, deadline=None)
@given(st.text("ja", min_size=6, max_size=24), st.text("ja", min_size=1, max_size=12))
def test_an_undecided_model_never_knows_more_than_the_training_shares(held, train) -> None:
    """The temperature that flattens it is open to the shares too, so long as they are not upside down."""
    assume((held.count("j") - held.count("a")) * (train.count("j") - train.count("a")) >= 0)
    found = rows(held, "j" * len(held), [0.5] * len(held))
    against = against_constants(found, LABELS, label_shares([training(train)], found, LABELS))["toy"]
    assert against["nll_verdict"] != "above", against["nll_at_t"]


def test_where_the_shares_are_from_is_said_by_data_set() -> None:
    other = [row(i, "anger", "joy", believed=0.5, dataset="other") for i in range(4)]
    labels, found = {"toy": TWO, "other": TWO}, [*rows("jjja", "jjjj", [0.9] * 4), *other]
    shares = label_shares([training("jja")], found, labels)
    constants = constant_scores(found, labels, shares, resamples=20)
    said = constants_lines(constants, against_constants(found, labels, shares))
    assert said[3].startswith("Majority and label shares (prior) of toy are those of the training split")
    assert said[4].startswith("Majority and label shares (prior) of other are those of the held-out labels")
    assert len(said) == 5


@settings(max_examples=25)
@given(st.text("ja", min_size=2, max_size=12), st.text("ja", min_size=1, max_size=12))
def test_the_prior_is_never_infinitely_wrong_and_the_majority_is_its_top(held, train) -> None:
    found = rows(held, held, [0.5] * len(held))
    shares = label_shares([training(train)], found, LABELS)
    c = constant_scores(found, LABELS, shares, resamples=20)["toy"]
    assert math.isfinite(c[PRIOR]["nll"][0]) and sum(shares["toy"].share.values()) == pytest.approx(1)
    right = sum({"j": "joy", "a": "anger"}[g] == c["label"] for g in held)
    assert c[MAJORITY]["accuracy"][0] == pytest.approx(right / len(held))
