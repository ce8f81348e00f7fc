"""Prompts with a short answer, and the stages in which a model is trained on them; without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfemo.models.sampler import Message
from selfemo.seeds import rng

Text = Callable[[int], list[Message]]
"""text(window) gives the chat of a prompt with at most `window` earlier turns."""


@dataclass(frozen=True)
class Example:
    """A prompt and its answer.

    Attributes:
        share: examples of one key share what their prompts begin with.
        weight: of its tokens in the loss.
    """

    text: Text
    answer: str
    share: str
    weight: float = 1.0


@dataclass(frozen=True)
class Stage:
    """A part of training with a schedule of its own.

    Attributes:
        name: of its bar and its states.
        members: from an epoch (from 0) to the indices of the examples that it trains on.
    """

    name: str
    examples: Sequence[Example]
    epochs: int
    members: Callable[[int], Sequence[int]] | None = None

    def batches(self, size: int, seed: int, epoch: int) -> list[list[int]]:
        """Indices of the examples of each optimiser step of an epoch, shuffled, each once."""
        chosen = range(len(self.examples)) if self.members is None else self.members(epoch)
        order = rng(seed, self.name, epoch).permutation(len(chosen)).tolist()
        return [[chosen[i] for i in order[k : k + size]] for k in range(0, len(order), size)]
