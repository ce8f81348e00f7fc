"""Networks over turns of conversations: parts by hand, nothing of later turns, training and its resume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.evaluation.baselines import baseline
from selfemo.models.classifiers.dialogues import Dialogue, DialogueClassifier, weights_over
from selfemo.models.classifiers.graph import DagLayer, RelationalLayer
from selfemo.models.classifiers.recurrent import (
    Attention,
    Cell,
    CosmicCell,
    DialogueRnnCell,
    one_pass,
    turned,
)
from selfemo.progress import Quiet, Stopped, StopRequest
from selfemo.training.dialogue_head import train_head
from tests.conftest import MELD
from tests.support.runs import Watcher

D = 6
SMALL: dict[str, dict[str, Any]] = {
    "dialogue-rnn": {"context": 7, "party": 6, "emotion": 5, "hidden": 4},
    "dialogue-gcn": {"lstm": 8, "graph": 16, "bases": 3, "past": 2, "future": 2},
    "dag-erc": {"hidden": 8},
    "cosmic": {"context": 7, "party": 4, "hidden": 6},
}
TWO_WAYS = [n for n in SMALL if n != "dag-erc"]


def zeroed(module: torch.nn.Module) -> torch.nn.Module:
    """With weights of 0 a GRU halves its state, whatever its input is."""
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    return module.eval()


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_only_the_party_state_of_the_speaker_changes_in_dialogue_rnn() -> None:
    cell = zeroed(DialogueRnnCell(1, 1, 1, 1, 0.5))
    parties = torch.tensor([[[2.0], [4.0], [6.0]], [[2.0], [4.0], [6.0]]])
    context, (found,), emotion = cell(
        column(1, 1), torch.tensor([1, 2]), [column(8, 12)], (parties,), column(1, 3)
    )
    assert found[..., 0].tolist() == [[2, 2, 6], [2, 4, 3]]
    assert context[:, 0].tolist() == [4, 6] and emotion[:, 0].tolist() == [0.5, 1.5]


def test_others_keep_their_intent_and_listen_in_cosmic() -> None:
    cell = zeroed(CosmicCell(1, 1, 1, 0.5, by_turn=False))
    states = tuple(torch.tensor([[[2.0], [4.0]]]) * k for k in (1, 10, 100))
    context, (internal, external, intent), _ = cell(
        column(1), torch.tensor([1]), [column(8)], states, torch.zeros(1, 3)
    )
    assert internal[0, :, 0].tolist() == [1, 2] and external[0, :, 0].tolist() == [10, 20]
    assert intent[0, :, 0].tolist() == [200, 200] and context.item() == 4


def test_a_listener_hears_the_new_state_of_the_speaker() -> None:
    """The listener's GRU lets its input through (update gate 0): tanh of the speaker's halved state."""
    cell = zeroed(CosmicCell(1, 1, 1, 0.5, by_turn=False))
    with torch.no_grad():
        cell.listener_internal.bias_ih[1] = -100
        cell.listener_internal.weight_ih[2] = 1
    states = tuple(torch.tensor([[[9.0], [1.0]]]) for _ in range(3))
    _, (internal, _, _), _ = cell(column(1), torch.tensor([1]), [], states, torch.zeros(1, 3))
    assert internal[0, :, 0].tolist() == pytest.approx([np.tanh(0.5), 0.5])


class Spy(Cell):
    """Counts the contexts that each turn is shown."""

    context, emotion, parties = 1, 1, (1,)

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(1, 1)
        self.weights: list[list[float]] = []

    def forward(self, turn: Any, speaker: Any, contexts: Sequence[Any], parties: Any, emotion: Any) -> Any:
        if contexts:
            self.weights.append(self.attention.context(contexts, turn)[1][0].tolist())
        return turn, parties, emotion + 1


def test_attention_over_contexts_is_over_earlier_turns_and_sums_to_one() -> None:
    spy = Spy()
    found = one_pass(spy, torch.randn(1, 4, 1), torch.zeros(1, 4, dtype=torch.long))
    assert [len(w) for w in spy.weights] == [1, 2, 3]
    assert [sum(w) for w in spy.weights] == pytest.approx([1, 1, 1])
    assert found[0, :, 0].tolist() == [1, 2, 3, 4]


def test_attention_by_hand() -> None:
    attention = Attention(1, 0)
    with torch.no_grad():
        attention.vector.weight[:] = np.log(3)  # type: ignore[union-attr]
    seen, weights = attention.context([column(0), column(1)], column(5))
    assert weights[0].tolist() == pytest.approx([0.25, 0.75]) and seen.item() == pytest.approx(0.75)
    scores = torch.tensor([[0, np.log(3), 5], [1, 2, 3]])
    shown = torch.tensor([[True, True, False], [False] * 3])
    assert weights_over(scores, shown).tolist() == [pytest.approx([0.25, 0.75, 0]), [0, 0, 0]]


def test_a_relational_layer_by_hand() -> None:
    """W_0 = 2 and W_1 = 3, mixed from a basis of 1; 0.25 * 3 * 1 + 0.75 * 2 * 10 = 15.75."""
    layer = RelationalLayer(1, 1, 2, 1)
    with torch.no_grad():
        layer.bases[:], layer.mixture[:] = 1.0, column(2, 3)
        layer.own.weight.zero_(), layer.own.bias.zero_()
    found = layer(
        torch.tensor([[[1.0], [10.0]]]),
        torch.tensor([[[1.0, 0.0], [0.25, 0.75]]]),
        torch.tensor([[[0, 0], [1, 0]]]),
    )
    assert found[0, :, 0].tolist() == pytest.approx([2, 15.75])


def test_a_layer_of_dag_erc_by_hand() -> None:
    """GRUs of zeros halve what they have as state, so h_i = (x_i + m_i) / 2; W_same = 1, W_other = 2.

    h_0 = 8 / 2; m_1 = 2 * 4, h_1 = (4 + 8) / 2; m_2 = (1 * 4 + 2 * 6) / 2, h_2 = (2 + 8) / 2.
    """
    layer = DagLayer(1)
    zeroed(layer)
    with torch.no_grad():
        layer.same.weight[:], layer.other.weight[:] = 1.0, 2.0
    relations = torch.tensor([[[-1, -1, -1], [0, -1, -1], [1, 0, -1]]])
    assert layer(torch.tensor([[[8.0], [4.0], [2.0]]]), relations)[0, :, 0].tolist() == [4, 6, 5]


def test_a_conversation_is_turned_within_its_length() -> None:
    x = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    assert turned(x, torch.tensor([4, 2])).tolist() == [[4, 3, 2, 1], [6, 5, 0, 0]]


def recipe(name: str, **more: Any) -> Any:
    kind = baseline(name)
    return kind(kind.kind.model_validate({**SMALL[name], **more}))


def dialogue(of: Any, features: np.ndarray, speakers: Sequence[int]) -> Dialogue:
    numbers = np.array(speakers)
    return Dialogue(features.astype(np.float32), numbers, of.relations(numbers), 0)


def classifier(of: Any) -> DialogueClassifier:
    torch.manual_seed(0)
    return DialogueClassifier(of.network(D), [MELD]).eval()


def by_appearance(names: Sequence[int]) -> list[int]:
    order = list(dict.fromkeys(names))
    return [order.index(n) for n in names]


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=15)
@given(data=st.data())
def test_later_turns_change_no_earlier_reading(name: str, data: Any) -> None:
    """Other features, other speakers and another number of turns, in a batch with another conversation."""
    of = recipe(name)
    model = classifier(of)
    kept = data.draw(st.integers(1, 6))
    numbers = np.random.default_rng(data.draw(st.integers(0, 99)))
    first = [numbers.normal(size=D) for _ in range(kept)]
    names = data.draw(st.lists(st.integers(0, 3), min_size=kept, max_size=kept))
    read = []
    for _ in range(2):
        more = data.draw(st.lists(st.integers(0, 4), max_size=5))
        x = np.array([*first, *(3 * numbers.normal(size=D) for _ in more)])
        other = data.draw(st.integers(1, 8))
        beside = dialogue(of, numbers.normal(size=(other, D)), [0] * other)
        read.append(model.read([dialogue(of, x, by_appearance([*names, *more])), beside])[0][:kept])
    assert np.allclose(read[0], read[1], atol=1e-5)


@pytest.mark.parametrize("name", TWO_WAYS)
def test_later_turns_change_earlier_readings_of_bidirectional_heads(name: str) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(3, D)) for _ in range(2))
    y[:2] = x[:2]
    for both, same in ((False, True), (True, False)):
        of = recipe(name, bidirectional=both)
        model = classifier(of)
        a, b = (model.read([dialogue(of, f, [0, 1, 0])])[0][:2] for f in (x, y))
        assert np.allclose(a, b, atol=1e-6) == same


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("name", TWO_WAYS)
def test_padding_changes_nothing(name: str, both: bool) -> None:
    of = recipe(name, bidirectional=both)
    model, rng = classifier(of), np.random.default_rng(1)
    short = dialogue(of, rng.normal(size=(2, D)), [0, 1])
    long = dialogue(of, rng.normal(size=(7, D)), [0, 1, 2, 0, 1, 2, 3])
    assert np.allclose(model.read([short])[0], model.read([long, short])[1], atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_speakers_are_heard(name: str) -> None:
    """The same turns by other speakers read otherwise."""
    of = recipe(name)
    model, x = classifier(of), np.random.default_rng(2).normal(size=(4, D))
    a, b = (model.read([dialogue(of, x, s)])[0][-1] for s in ([0, 1, 0, 1], [0, 0, 1, 2]))
    assert not np.allclose(a, b, rtol=0, atol=1e-7)


def previous_turn(n: int, of: Any, seed: int) -> list[tuple[Dialogue, list[int]]]:
    """The label of a turn is in the turn before it: 1 where that one's first feature is above 0."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        x = rng.normal(size=(6, D))
        gold = [-1, *(x[:-1, 0] > 0).astype(int).tolist()]
        found.append((dialogue(of, x, [0, 1, 0, 1, 0, 1]), gold))
    return found


def train(
    of: Any, states: Path, reporter: Any, stop: StopRequest, epochs: int, lr: float = 0.02
) -> DialogueClassifier:
    held = previous_turn(30, of, 1)

    def score(model: DialogueClassifier) -> float:
        read = model.read([d for d, _ in held])
        return float(
            np.mean([np.mean(p[1:].argmax(1) == g[1:]) for p, (_, g) in zip(read, held, strict=True)])
        )

    config = of.settings.model_copy(update={"lr": lr, "epochs": epochs, "batch_size": 20, "dropout": 0.1})
    return train_head(
        of.network, config, previous_turn(120, of, 0), [MELD], score, class_weights=False, seed=3,
        states=states, label="head", device="cpu", reporter=reporter, stop=stop,
    )  # fmt: skip


LEARNING: dict[str, tuple[dict[str, Any], int]] = {
    # Settings and epochs. An emotion state of 5 is too small to carry it: attention mixes all turns in it.
    "dialogue-rnn": ({"context": 24, "party": 24, "emotion": 24, "hidden": 16, "state_dropout": 0.0}, 90),
    "dialogue-gcn": ({}, 40),
    "dag-erc": ({}, 12),
    "cosmic": ({"state_dropout": 0.0}, 12),
}


@pytest.mark.parametrize("name", LEARNING)
def test_a_head_learns_what_is_in_earlier_turns(name: str, tmp_path: Path) -> None:
    """A reader of single turns, and the majority, are right half of the time."""
    changes, epochs = LEARNING[name]
    of = recipe(name, **changes)
    model = train(
        of, tmp_path / "states", Quiet(), StopRequest(), epochs, lr=0.005 if "rnn" in name else 0.02
    )
    held = previous_turn(60, of, 2)
    read = model.read([d for d, _ in held])
    right = np.mean([np.mean(p[1:].argmax(1) == g[1:]) for p, (_, g) in zip(read, held, strict=True)])
    assert right > 0.8


def test_a_stopped_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    of = recipe("dialogue-rnn")
    whole = train(of, tmp_path / "a", Quiet(), StopRequest(), 3)
    stop, steps = StopRequest(), []

    def advanced(label: str, note: str) -> None:
        steps.append(label)
        stop.asked = len(steps) == 10  # six steps an epoch, and one call before the first

    with pytest.raises(Stopped):
        train(of, tmp_path / "b", Watcher(on_advance=advanced), stop, 3)
    assert (tmp_path / "b" / "epochs.json").exists()
    again = train(of, tmp_path / "b", Quiet(), StopRequest(), 3)
    for (name, p), q in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not (tmp_path / "b").exists()
