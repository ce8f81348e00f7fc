"""SPCL: its loss, queue and curriculum by hand, and the rows that it reads."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from selfemo.config.encoders import EncoderConfig, SpclConfig
from selfemo.errors import EngineError
from selfemo.method.types import LABEL_SETS, Conversation, Utterance
from selfemo.models.classifiers.contrastive import (
    Queue,
    class_centres,
    curriculum,
    difficulty,
    similarity,
    spcl_loss,
)
from selfemo.models.classifiers.layout import RowBuilder

RIGHT, LEFT, UP = [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]
CLS, SEP, MASK = 1, 2, 3


def loss(x: list[list[float]], classes: list[int], prototypes: list[list[float]], **also: Any) -> float:
    sets = torch.tensor(also.get("sets", [0] * len(prototypes)))
    return float(
        spcl_loss(torch.tensor(x), torch.tensor(classes), torch.tensor(prototypes), sets, also.get("t", 1.0))
    )


def test_similarity_by_hand() -> None:
    x = torch.tensor([[2.0, 0.0]])
    assert similarity(x, torch.tensor([RIGHT, UP, LEFT]))[0].tolist() == pytest.approx([1, 0.5, 0])


def test_loss_by_hand() -> None:
    # Turn 0: its prototype 1, the other prototype 0, the other turn 0.5. Turn 1: all at 0.5, one is right.
    first = math.log(math.e + 1 + math.exp(0.5)) - 1
    assert loss([RIGHT, UP], [0, 1], [RIGHT, LEFT]) == pytest.approx((first + math.log(3)) / 2)
    # Two turns of a label have two positives each; the mean over them stands inside the logarithm.
    assert loss([RIGHT, RIGHT], [0, 0], [RIGHT, LEFT]) == pytest.approx(math.log(2 + 1 / math.e))
    # At temperature 0.5 similarities count twice: 2, 0 and 1 of turn 0.
    first = math.log(math.exp(2) + 1 + math.e) - 2
    second = math.log(3)
    kept = [v for v in (first, second) if v > 0.3]
    assert loss([RIGHT, UP], [0, 1], [RIGHT, LEFT], t=0.5) == pytest.approx(sum(kept) / len(kept))


def test_an_easy_turn_counts_for_nothing() -> None:
    assert loss([RIGHT], [0], [RIGHT, LEFT], t=0.05) == 0
    hard = loss([LEFT], [0], [RIGHT, LEFT], t=0.05)
    assert hard == pytest.approx(20, abs=1e-4)
    # The easy turn is a positive of the hard one, as far from it as the prototype, but not part of the mean.
    both = loss([LEFT, RIGHT], [0, 1], [RIGHT, UP], t=1.0)
    alone = [
        math.log(3 * 1 + math.exp(0.5) - 1),  # prototype 0 at 0, other turn at 0, prototype 1 at 0.5
        math.log(math.exp(0) + math.e + math.exp(0.5)) - 0.5,
    ]
    assert both == pytest.approx(sum(alone) / 2)


def test_other_label_sets_are_neither_positive_nor_negative() -> None:
    sets = [0, 0, 1, 1]
    prototypes = [RIGHT, LEFT, UP, RIGHT]
    apart = [loss([UP], [k], prototypes, sets=sets) for k in (0, 2)]
    assert loss([UP, UP], [0, 2], prototypes, sets=sets) == pytest.approx(sum(apart) / 2)


def test_a_class_without_training_turns_is_left_out() -> None:
    nan = [math.nan, math.nan]
    assert loss([UP, UP], [0, 2], [RIGHT, nan, LEFT]) == pytest.approx(loss([UP, UP], [0, 1], [RIGHT, LEFT]))


@given(st.floats(0.05, math.pi - 0.05), st.floats(0.01, 0.9))
def test_a_turn_that_moves_to_its_class_has_a_lower_loss(angle: float, share: float) -> None:
    def at(a: float) -> float:
        return loss([[math.cos(a), math.sin(a)]], [0], [RIGHT, LEFT])

    assert at(angle * share) <= at(angle)


def test_the_gradient_goes_to_the_class_and_is_finite() -> None:
    x = torch.tensor([UP, [0.1, 1.0]], requires_grad=True)
    prototypes = torch.tensor([RIGHT, LEFT, [math.nan, math.nan]])
    spcl_loss(x, torch.tensor([0, 1]), prototypes, torch.zeros(3, dtype=torch.long), 0.05).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert x.grad[0, 0] < 0 < x.grad[1, 0]


def test_centres_are_means_and_nan_without_turns() -> None:
    found = class_centres(torch.tensor([RIGHT, UP, UP]), torch.tensor([0, 0, 2]), 3)
    assert found[0].tolist() == [0.5, 0.5] and found[2].tolist() == UP and found[1].isnan().all()


def test_prototypes_are_centres_until_a_queue_has_enough() -> None:
    queue = Queue(torch.tensor([RIGHT, LEFT]), 3, 3, np.random.default_rng(0))
    queue.push(torch.tensor([UP]), torch.tensor([0]))
    assert queue.prototypes().tolist() == [RIGHT, LEFT]
    # The centre, which came first, is forgotten first: three of three are drawn.
    queue.push(torch.tensor([[3.0, 1.0], [0.0, 4.0]]), torch.tensor([0, 0]))
    assert queue.prototypes()[0].tolist() == [1.0, 2.0]
    assert queue.prototypes()[1].tolist() == LEFT


def test_a_prototype_is_a_draw_without_replacement() -> None:
    vectors = torch.eye(6)
    queue = Queue(torch.zeros(1, 6), 6, 2, np.random.default_rng(0))
    queue.push(vectors, torch.zeros(6, dtype=torch.long))
    found = [queue.prototypes()[0] for _ in range(50)]
    assert all(sorted(f.tolist()) == [0, 0, 0, 0, 0.5, 0.5] for f in found)
    assert torch.stack(found).sum(0).min() > 0


def test_a_queue_carries_no_gradient() -> None:
    x = torch.tensor([UP], requires_grad=True)
    queue = Queue(torch.tensor([RIGHT]), 1, 1, np.random.default_rng(0))
    queue.push(x, torch.tensor([0]))
    assert not queue.prototypes().requires_grad


def test_difficulty_by_hand() -> None:
    x = np.array([RIGHT, UP, LEFT])
    centres = np.array([RIGHT, LEFT, [math.nan, math.nan]])
    # Distances to (right, left): (0, 1), (0.5, 0.5), (1, 0); all three are of label 0.
    found = difficulty(x, np.zeros(3, dtype=int), centres)
    assert found.tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)


class _Always:
    """A generator that always draws one number."""

    def __init__(self, value: float):
        self.value = value

    def random(self, n: int) -> np.ndarray:
        return np.full(n, self.value)


def test_curriculum_by_hand() -> None:
    draw = cast(np.random.Generator, _Always(0.6))
    # Probabilities of epoch 0: 1, 3/4, 1/2, 1/4, 0; of epoch 1: 3/4, 5/8, 1/2, 3/8, 1/4; of 3 backwards.
    assert [curriculum(5, e, 4, draw).tolist() for e in range(4)] == [[0, 1], [0, 1], [], [3, 4]]
    assert curriculum(0, 0, 4, draw).tolist() == []
    assert curriculum(1, 0, 4, draw).tolist() == [0]


def test_an_epoch_takes_half_of_the_turns_easy_ones_first() -> None:
    n, epochs = 2000, 16
    taken = [curriculum(n, e, epochs, np.random.default_rng(e)) for e in range(epochs)]
    assert all(abs(len(t) - n / 2) < 0.06 * n for t in taken)
    ranks = [t.mean() / n for t in taken]
    # The density of rank r in epoch 0 is 2 (1 - r): a mean of 1/3. In the last one it is nearly mirrored.
    assert ranks[0] == pytest.approx(1 / 3, abs=0.02) and ranks[-1] == pytest.approx(0.646, abs=0.02)
    assert np.corrcoef(ranks, range(epochs))[0, 1] > 0.95


def builder(**also: Any) -> RowBuilder:
    """Each letter is a token."""
    settings = {"max_tokens": 60, "window": 8, "mask": MASK, **also}
    return RowBuilder(lambda text: [ord(c) + 10 for c in text], CLS, SEP, **settings)


def tokens(text: str) -> list[int]:
    return [ord(c) + 10 for c in text]


def talk(*turns: tuple[str, str]) -> Conversation:
    return Conversation("c", "toy", "train", tuple(Utterance(s, t) for s, t in turns), LABEL_SETS["meld"])


def test_a_row_ends_in_the_question() -> None:
    rows = builder().rows(talk(("Al", "Hi"), ("Bo", "No!")))
    asked = [*tokens("Bo feels"), MASK, SEP]
    assert rows[1].ids == (CLS, *tokens("Al: Hi"), SEP, *tokens("Bo: No!"), SEP, *asked)
    place = rows[1].places[0]
    assert rows[1].ids[place.mask] == MASK
    assert list(rows[1].ids[place.start : place.end]) == tokens("Bo: No!")
    assert rows[0].ids == (CLS, *tokens("Al: Hi"), SEP, *tokens("Al feels"), MASK, SEP)
    assert builder(mask=None).rows(talk(("Al", "Hi")))[0].places[0].mask == -1


def test_the_window_is_eight_turns() -> None:
    c = talk(*[("A", str(i)) for i in range(10)])
    read = builder(max_tokens=256).rows(c)[9].ids
    assert read[1:-10] == (*(t for i in range(1, 9) for t in tokens(f"A: {i}")), SEP, *tokens("A: 9"))


NAMES = st.text(alphabet="ab", max_size=30)
TALKS = st.lists(st.tuples(NAMES, st.text(alphabet="xyz", max_size=40)), min_size=1, max_size=8)


@given(TALKS, TALKS, st.integers(8, 50))
def test_no_later_turn_changes_a_row(before: list[Any], after: list[Any], limit: int) -> None:
    """However long names and texts are, rows fit, and each is asked."""
    make = builder(max_tokens=limit)
    rows = make.rows(talk(*before))
    assert make.rows(talk(*before, *after))[: len(before)] == rows
    for i, row in enumerate(rows):
        (place,) = row.places
        assert place.turn == i and len(row.ids) <= limit
        assert row.ids[place.mask] == MASK and row.ids.count(MASK) == 1
        own = tokens(f"{before[i][0]}: {before[i][1]}")
        held = list(row.ids[place.start : place.end])
        assert held and held == own[: len(held)] and row.cut == int(held != own)


def test_an_encoder_without_a_mask_token_is_refused_by_name() -> None:
    class Tokenizer:
        cls_token_id, sep_token_id, mask_token_id = CLS, SEP, None

    with pytest.raises(EngineError, match=r"some/encoder.*no mask token"):
        RowBuilder.of(EncoderConfig(encoder="some/encoder", pooling="mask"), Tokenizer())
    assert RowBuilder.of(EncoderConfig(encoder="some/encoder"), Tokenizer()).mask is None


def test_settings() -> None:
    read = SpclConfig(window=3, max_tokens=99).reader
    assert (read.pooling, read.window, read.max_tokens, read.layout) == ("mask", 3, 99, "utterance")
    with pytest.raises(ValidationError, match="64 vectors of a queue of 32"):
        SpclConfig(queue=32)
    with pytest.raises(ValidationError, match="mask"):
        EncoderConfig(pooling="mask", layout="conversation")
    default = SpclConfig()
    assert (default.lr, default.lr * default.head_lr) == pytest.approx((1e-5, 1e-3))
