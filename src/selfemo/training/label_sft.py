"""SFT of a causal model on prompts whose answer is a label, and the probability of each label as the answer.

Training is that of the local engine: loss on the answer and its end token alone, adapters, prefix trees. A
label is read as the answer itself, so that nothing is sampled and no answer can fail to parse.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfemo.config import ModelConfig
from selfemo.config.instruction import InstructionConfig
from selfemo.errors import DataError
from selfemo.method.types import Conversation
from selfemo.models.sampler import LabelPlace, Message
from selfemo.progress import Reporter, StopRequest
from selfemo.seeds import derive
from selfemo.training.classifier import fit_classifier, load_trained, save_trained
from selfemo.training.engine import LocalEngine, SftItem
from selfemo.training.label_examples import Example, Stage, Text

Ask = Callable[[Conversation, int, int], list[Message]]
"""ask(conversation, turn, window) gives the chat that asks for the label of a turn."""


class LabelReader:
    """A causal model that answers with labels; see `Reader` of the baselines.

    Attributes:
        long: prompts among those encoded so far that pass the limit without any earlier turn.
    """

    def __init__(self, engine: LocalEngine, ask: Ask, config: InstructionConfig):
        self.engine, self.ask, self.config = engine, ask, config
        self.long = 0

    def encode(self, text: Text) -> list[int]:
        """Token ids of a prompt with as many earlier turns as fit."""
        ids: list[int] = []
        for window in range(self.config.window, -1, -1):
            ids = list(self.engine.sampler.encode(text(window)))
            if len(ids) <= self.config.max_tokens:
                return ids
        self.long += 1
        return ids

    def read(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        found = [np.zeros((len(c.turns), len(c.label_set))) for c in conversations]
        for part in self._parts(conversations):
            labels = conversations[part[0][0]].label_set
            places: list[LabelPlace] = [
                (conversations[i].id, self.encode(partial(self.ask, conversations[i], turn)), "")
                for i, turn in part
            ]
            told = self.engine.sampler.label_probabilities(places, labels)
            for (i, turn), distribution in zip(part, told, strict=True):
                found[i][turn] = distribution.vector(labels)
        return found

    def _parts(self, conversations: Sequence[Conversation]) -> Iterator[list[tuple[int, int]]]:
        """(conversation, turn) of all turns, in parts of one label set and of the sampler's size."""
        part: list[tuple[int, int]] = []
        for i, c in enumerate(conversations):
            other = part and conversations[part[0][0]].label_set != c.label_set
            if other or len(part) >= self.engine.sampler.chunk:
                yield part
                part = []
            part += [(i, turn) for turn in range(len(c.turns))]
        if part:
            yield part

    def save(self, folder: Path) -> None:
        """Write a checkpoint, with the adapters merged in."""
        self.engine.save(folder)


def train_labels(
    config: InstructionConfig,
    stages: Sequence[Stage],
    ask: Ask,
    score: Callable[[LabelReader], float],
    *,
    seed: int,
    states: Path,
    device: str,
    reporter: Reporter,
    stop: StopRequest,
) -> LabelReader:
    """Train a causal model through some stages; of the last one, the epoch with the best score is kept.

    Args:
        score: of the reader as it is, on held-out turns.
        states: the folder to go on from: the state after each epoch, and the weights after each stage.

    Raises: as `fit_classifier`; DataError: a stage has no example.
    """
    if empty := [s.name for s in stages if not s.examples]:
        raise DataError(f"no training conversation has an example for: {', '.join(empty)}")
    engine = LocalEngine(
        ModelConfig(
            id=config.model, device=device, lora=None if config.full else config.lora,
            gradient_checkpointing=config.gradient_checkpointing,
        )
    )  # fmt: skip
    _draw_adapters(engine.policy.model, seed)
    reader = LabelReader(engine, ask, config)
    with noisy_embeddings(engine.policy.core, config.neftune):
        for stage in stages:
            last = stage is stages[-1]
            done = states / f"{stage.name}.safetensors"
            if done.exists():
                load_trained(engine.policy.model, done)
                continue
            _fit(
                reader, stage, (lambda: score(reader)) if last else None, seed=seed,
                states=states / stage.name, reporter=reporter, stop=stop,
            )  # fmt: skip
            if not last:
                save_trained(engine.policy.model, done)
    shutil.rmtree(states, ignore_errors=True)
    return reader


def _fit(
    reader: LabelReader,
    stage: Stage,
    score: Callable[[], float] | None,
    *,
    seed: int,
    states: Path,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    engine, config = reader.engine, reader.config
    items = [_item(reader, e) for e in stage.examples]
    told = sum(len(i.prompt_ids) + len(i.completion_ids) for i in items)
    reporter.say(f"{stage.name}: {len(items)} examples of {told / len(items):.0f} tokens on average")
    if reader.long:
        reporter.say(f"{reader.long} prompts are longer than {config.max_tokens} tokens with no earlier turn")

    def backward(batch: list[int]) -> float:
        return engine.sft_backward([items[i] for i in batch], config.micro_tokens)["loss"]

    fit_classifier(
        engine.policy.model, config.model_copy(update={"epochs": stage.epochs}),
        lambda epoch: stage.batches(config.batch_size, seed, epoch), backward, score,
        seed=seed, states=states, label=stage.name, reporter=reporter, stop=stop,
    )  # fmt: skip


def _item(reader: LabelReader, example: Example) -> SftItem:
    """An encoded example; the loss is on its answer, closed by the end token."""
    policy = reader.engine.policy
    ids, _ = policy.encode_completion(policy.defused(example.answer))
    return SftItem(reader.encode(example.text), ids, [example.weight] * len(ids), example.share)


def _draw_adapters(model: Any, seed: int) -> None:
    """Begin adapters from the seed: the engine begins all of them alike."""
    torch.manual_seed(derive(seed, "adapters"))
    for module in model.modules():
        if hasattr(module, "reset_lora_parameters"):
            module.reset_lora_parameters("default", True)


@contextmanager
def noisy_embeddings(core: Any, alpha: float) -> Iterator[None]:
    """NEFTune (Jain and others 2024): uniform noise of alpha / sqrt(l d) on embeddings in training.

    Shapes: l tokens of a row, of prefix trees here [ours]; d size of an embedding.
    """

    def noisy(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        size = alpha / (output.shape[-2] * output.shape[-1]) ** 0.5
        return output + torch.empty_like(output).uniform_(-size, size)

    handle = core.get_input_embeddings().register_forward_hook(noisy) if alpha else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
