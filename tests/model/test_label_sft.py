"""Causal models that answer with a label: how it is read, trained, resumed and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfemo.config import ModelConfig
from selfemo.evaluation.baselines import baseline
from selfemo.evaluation.baselines.base import Reader, Task, choice_score
from selfemo.evaluation.baselines.bios_erc import BiosErc, BiosErcConfig
from selfemo.evaluation.baselines.constant import ConstantConfig, Majority
from selfemo.evaluation.baselines.instruct_erc import InstructErcConfig, label_prompt
from selfemo.evaluation.baselines.prc_emo import PrcEmo, PrcEmoConfig
from selfemo.method.types import Conversation, LabelSet
from selfemo.models.generation.label_scores import label_probabilities
from selfemo.models.loading import load_policy
from selfemo.progress import Quiet, Stopped, StopRequest
from selfemo.training.engine import LocalEngine
from selfemo.training.label_sft import LabelReader, noisy_embeddings
from tests.conftest import MELD, toy_conversations

TRAIN, CHOOSE = toy_conversations(6), toy_conversations(1, "dev")
HELD = toy_conversations(10, "test")[8:]


class Stopping(Quiet):
    """Asks to stop when it is told of the end of an epoch."""

    def __init__(self, stop: StopRequest, at: str):
        self.stop, self.at = stop, at

    def say(self, text: str) -> None:
        if text.startswith(self.at):
            self.stop.asked = True


def task_of(folder: Path, seed: int = 0, train: Sequence[Conversation] = TRAIN, **changes: Any) -> Task:
    values = {"reporter": Quiet(), "stop": StopRequest(), **changes}
    return Task(train, CHOOSE, seed, folder / "states", folder, "cpu", **values)


def f1(reader: Reader, conversations: Sequence[Conversation]) -> float:
    return choice_score(reader, conversations)


def test_a_label_alone_is_read_as_the_answer(tiny_model: Path) -> None:
    """The product of p over a label's tokens right after the prompt, over that of all labels."""
    policy = load_policy(str(tiny_model), "cpu")
    ids = policy.encode([{"role": "user", "content": "How does Ann feel?"}])
    (found,) = label_probabilities(policy, [("c", ids, "")], MELD)
    whole = []
    for label in MELD:
        tokens = policy.plain_ids(label)
        with torch.no_grad():
            logp = policy.core(torch.tensor([[*ids, *tokens]])).logits[0].float().log_softmax(-1)
        whole.append(float(sum(logp[len(ids) - 1 + k, t] for k, t in enumerate(tokens)).exp()))
    assert found.vector(MELD) == pytest.approx([p / sum(whole) for p in whole], rel=1e-3)
    (after,) = label_probabilities(policy, [("c", ids, "E:")], MELD)
    assert after.vector(MELD) != pytest.approx(found.vector(MELD), rel=1e-3)


SMALL: dict[str, Any] = {
    "full": True, "lr": 3e-3, "batch_size": 10, "max_tokens": 512, "window": 1, "neftune": 0,
    "max_grad_norm": 1.0,
}  # fmt: skip


def recipe(name: str, model: Path, **changes: Any) -> Any:
    kind = baseline(name)
    own = {"prc-emo": {"demonstrations": 0}, "instruct-erc": {"speaker_epochs": 1}}.get(name, {})
    return kind(kind.kind(**{"model": str(model), **SMALL, "epochs": 40, **own, **changes}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["instruct-erc", "bios-erc", "prc-emo"])
def test_each_recipe_beats_the_majority_on_held_out_turns(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    reader = recipe(name, tiny_model).train(task_of(tmp_path))
    floor = f1(Majority(ConstantConfig()).train(task_of(tmp_path)), HELD)
    assert f1(reader, HELD) > floor + 0.3
    for table in reader.read(HELD):
        assert table.shape == (5, 7) and table.sum(1) == pytest.approx(np.ones(5))
    assert not (tmp_path / "states").exists()


def untrained(model: Path, max_tokens: int = 512) -> LabelReader:
    config = InstructErcConfig(window=2, max_tokens=max_tokens)
    return LabelReader(LocalEngine(ModelConfig(id=str(model), device="cpu")), label_prompt, config)


def test_what_is_read_of_a_turn_depends_on_the_past_alone(tiny_model: Path) -> None:
    (c,) = HELD[:1]
    cut = replace(c, turns=c.turns[:3])
    whole, less = (untrained(tiny_model).read([x])[0] for x in (c, cut))
    assert whole[:3] == pytest.approx(less, abs=1e-5) and less.sum(1) == pytest.approx(np.ones(3))


def test_turns_of_several_label_sets_are_read_in_their_order(tiny_model: Path) -> None:
    other = replace(HELD[0], id="other", label_set=LabelSet("two", ("joy", "anger")))
    reader = untrained(tiny_model)
    found = reader.read([HELD[0], other, HELD[1]])
    assert [t.shape for t in found] == [(5, 7), (5, 2), (5, 7)]
    for one, c in zip(found, [HELD[0], other, HELD[1]], strict=True):
        assert one == pytest.approx(reader.read([c])[0], abs=1e-5)


@pytest.mark.parametrize("at", ["speakers: epoch 1", "labels: epoch 1"])
def test_a_stopped_training_ends_as_an_uninterrupted_one(at: str, tiny_model: Path, tmp_path: Path) -> None:
    made = recipe("instruct-erc", tiny_model, epochs=2, speaker_epochs=2, max_samples=5)
    whole = made.train(task_of(tmp_path / "whole")).read(HELD)
    stop = StopRequest()
    with pytest.raises(Stopped):
        made.train(task_of(tmp_path / "cut", stop=stop, reporter=Stopping(stop, at)))
    assert (tmp_path / "cut" / "states").exists()
    resumed = made.train(task_of(tmp_path / "cut")).read(HELD)
    assert np.concatenate(resumed) == pytest.approx(np.concatenate(whole), abs=1e-6)


def test_adapters_begin_from_the_seed_and_are_merged_where_a_model_is_kept(
    tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    made = recipe("bios-erc", tiny_model, full=False, epochs=1, max_samples=5)
    readers = [made.train(task_of(tmp_path, seed, TRAIN)) for seed in (0, 1)]
    first, second = (
        next(p for n, p in r.engine.policy.model.named_parameters() if "lora_A" in n) for r in readers
    )
    assert not torch.allclose(first, second, atol=1e-2)
    readers[0].save(tmp_path / "kept")
    kept = load_policy(str(tmp_path / "kept"), "cpu")
    ids = kept.encode([{"role": "user", "content": "How does Ann feel?"}])
    (found,) = label_probabilities(kept, [("c", ids, "")], MELD)
    (mine,) = readers[0].engine.sampler.label_probabilities([("c", ids, "")], MELD)
    assert found.vector(MELD) == pytest.approx(mine.vector(MELD), abs=1e-4)
    (before,) = label_probabilities(load_policy(str(tiny_model), "cpu"), [("c", ids, "")], MELD)
    assert found.vector(MELD) != pytest.approx(before.vector(MELD), abs=1e-3)


def test_noise_is_of_training_alone(tiny_model: Path) -> None:
    """Of 2 rows of 8 tokens and 48 dimensions no noise passes 5 / sqrt(8 * 48)."""
    core = load_policy(str(tiny_model), "cpu").core
    embed, ids = core.get_input_embeddings(), torch.arange(16).view(2, 8)
    plain = embed(ids)
    with noisy_embeddings(core, 5.0):
        core.train()
        apart = (embed(ids) - plain).detach().abs()
        core.eval()
        assert torch.equal(embed(ids), plain)
    core.train()
    assert torch.equal(embed(ids), plain)
    limit = 5 / (8 * 48) ** 0.5
    assert limit / 2 < float(apart.max()) <= limit + 1e-6 and float(apart.mean()) == pytest.approx(
        limit / 2, rel=0.1
    )


def test_a_long_prompt_loses_its_oldest_turns(tiny_model: Path) -> None:
    reader = untrained(tiny_model)
    texts = [reader.engine.sampler.encode(label_prompt(HELD[0], 4, w)) for w in range(3)]
    for window, room in ((2, len(texts[2])), (1, len(texts[2]) - 1), (0, len(texts[1]) - 1)):
        reader.config = reader.config.model_copy(update={"max_tokens": room})
        assert reader.encode(partial(label_prompt, HELD[0], 4)) == texts[window] and reader.long == 0
    reader.config = reader.config.model_copy(update={"max_tokens": len(texts[0]) - 1})
    assert reader.encode(partial(label_prompt, HELD[0], 4)) == texts[0] and reader.long == 1


def test_a_budget_takes_some_turns_by_the_seed(tiny_model: Path, tmp_path: Path) -> None:
    seen: dict[int, list[str]] = {}

    class Counting(BiosErc):
        def stages(self, turns: Any, ask: Any) -> Any:
            seen[seed] = [f"{c.id}/{i}" for c, i in turns]
            raise InterruptedError

    made = Counting(BiosErcConfig(**{**SMALL, "model": str(tiny_model), "max_samples": 4}))
    for seed in (0, 1, 0):
        before = seen.get(seed)
        with pytest.raises(InterruptedError):
            made.train(task_of(tmp_path, seed))
        assert before in (None, seen[seed])
    assert len(seen[0]) == len(seen[1]) == 4 and seen[0] != seen[1]


@pytest.mark.slow
def test_demonstrations_of_the_built_in_embedder(tiny_model: Path, tmp_path: Path) -> None:
    """They are computed once for all seeds, and stand in the prompts that are read."""
    made = PrcEmo(PrcEmoConfig(**{**SMALL, "model": str(tiny_model), "epochs": 1, "max_samples": 5}))
    reader: Any = made.train(task_of(tmp_path))
    (file,) = tmp_path.glob("demonstrations-*.npy")
    written = file.stat().st_mtime_ns
    shown = reader.ask(HELD[0], 0, 0)[0]["content"]
    assert shown.count(" shows ") == 3 + 1  # the first line of the prompt has the word, too
    said = HELD[0].turns[0]
    assert f'"{said.text}" shows {said.emotion.top(MELD)}' in shown  # its twin of the training split
    made.train(task_of(tmp_path, 1))
    assert file.stat().st_mtime_ns == written
