"""The training protocol: what a run asks of whatever trains the policy.

Implemented by the local engine (local.py, one device) and by verl (verl/trainer.py, a cluster). A stage does
not ask which one it has:

    sft    begin_sft -> resume -> for step in sft(...): keep, watch, save_state -> save
    RL     begin_rl -> resume -> for wave in waves(...): with wave(...): sample, score, update -> save

A wave is the rounds whose prompts are drawn before the first of them is sampled: one round here; several for
verl, where each wave is a launch. verl samples and updates in processes of its own, so its `sample` waits for
what they sampled and its `update` checks that they trained with the advantages it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from selfemo.config import GrpoConfig, OptimConfig, SftConfig
from selfemo.method.prompts import Fitted
from selfemo.method.types import Prompt, Sample
from selfemo.models.generation.requests import SamplingSettings
from selfemo.models.sampler import Message, Sampler
from selfemo.seeds import rng
from selfemo.training.guards import NOT_FINITE

Measures = dict[str, Any]
"""Measures of an optimiser step or of a round by name: loss, grad_norm, lr, kl, ..."""


@dataclass(frozen=True)
class RlItem:
    """One sampled completion with its advantage; completions of one prompt stand side by side."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    advantage: float
    share: str
    """Id of the prompt; completions of one prompt share its prefix."""


@dataclass(frozen=True)
class SftStep:
    """One optimiser step that was made: its index from 0, and its measures."""

    index: int
    measures: Measures


class Trainer(Protocol):
    """Trains a policy through the stages of a run."""

    whole_rounds: bool
    """Whether each RL round must have all its prompts: a launch takes whole batches only."""

    def encode(self, messages: list[Message]) -> Sequence[int]:
        """Token ids of a chat up to where the completion starts, by the configured model's tokenizer."""
        ...

    def sampler(self, weights: str) -> Sampler:
        """A sampler with some weights (a model id or folder), to evaluate with; valid until the next call."""
        ...

    def release(self) -> None:
        """Let go of the model that is held."""
        ...

    def begin_sft(self, stage: str, weights: str, config: SftConfig) -> None:
        """Start a supervised stage from some weights, with a fresh optimiser."""
        ...

    def begin_rl(self, stage: str, weights: str, config: GrpoConfig, tests: Sequence[Prompt]) -> None:
        """Start an RL stage from some weights, which are also the reference policy of the KL term.

        Args:
            tests: held-out prompts that an engine may test on between rounds.
        """
        ...

    def resume(self, recorded: int, say: Callable[[str], None]) -> int:
        """Go on from the last whole state of the stage; returns the steps (rounds) that it holds, or 0.

        Args:
            recorded: the last step that the run recorded as saved; a later state is of a save that was cut
                off. An engine that saves on its own goes by its own records.
            say: told which states are damaged.
        """
        ...

    def save_state(self, done: int, record: Callable[[int], None]) -> None:
        """Save what the stage can go on from after `done` steps.

        Args:
            record: called once the state is whole, before older ones are dropped. An engine that saves on its
                own may save nothing here and not call it.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the trained weights as a checkpoint; ends the stage."""
        ...

    def sft_steps(self, samples: int, config: SftConfig, epochs: int) -> int:
        """How many optimiser steps `epochs` passes over so many samples take."""
        ...

    def sft(
        self,
        samples: Sequence[tuple[Fitted, str]],
        config: SftConfig,
        *,
        epochs: int,
        seed: int,
        first: int,
        scale: Callable[[int], float],
    ) -> Iterator[SftStep]:
        """Train on (prompt, completion) samples; yields after each optimiser step.

        Args:
            first: the step to begin with.
            scale: what the learning rate of a step is multiplied with.
        """
        ...

    def waves(self, rounds: int) -> list[range]:
        """The rounds of an RL stage, parted into waves."""
        ...

    def drawn(self, wave: range) -> list[str] | None:
        """Ids of the prompts that an earlier, interrupted run of this wave drew, in order; else None."""
        ...

    def wave(self, wave: range, rounds: Sequence[Sequence[Fitted]]) -> AbstractContextManager[None]:
        """Inside the context the rounds of the wave can be sampled. `rounds`: the prompts of each."""
        ...

    def sample(
        self, round_: int, prompts: Sequence[Fitted], n: int, seeds: Sequence[int], settings: SamplingSettings
    ) -> list[list[Sample]]:
        """`n` completions of each prompt of a round, by the policy as it is."""
        ...

    def update(
        self, round_: int, minibatches: Sequence[Sequence[RlItem]], config: GrpoConfig, rates: Sequence[float]
    ) -> Measures:
        """One optimiser step per mini-batch on the completions of the round; the mean of their measures."""
        ...


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """The rate of optimiser step `step` (from 0) of `total`: linear warm-up, then the schedule."""
    warm = round(config.warmup * total)
    if step < warm:
        return config.lr * (step + 1) / (warm + 1)
    if config.schedule == "constant":
        return config.lr
    done = (step - warm) / max(1, total - warm)
    if config.schedule == "linear":
        return config.lr * (1 - done)
    return float(config.lr * 0.5 * (1 + np.cos(np.pi * done)))


def finite_means(steps: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """The mean of each measure over the steps where it is finite, None where it never is.

    `not_finite`, the number of steps that were left out, is a sum, and is there only if there were any.
    """
    means: dict[str, float | None] = {}
    for key in dict.fromkeys(k for s in steps for k in s if k != NOT_FINITE):
        values = [s[key] for s in steps if key in s and np.isfinite(s[key])]
        means[key] = sum(values) / len(values) if values else None
    if left_out := sum(s.get(NOT_FINITE, 0) for s in steps):
        means[NOT_FINITE] = left_out
    return means


def epoch_batches(
    shares: Sequence[str], batch_size: int, run_length: int, seed: int, epoch: int
) -> list[list[int]]:
    """Sample indices of one epoch's optimiser steps.

    Samples of one conversation that stand side by side stay together in runs of at most `run_length` (they
    are one prefix tree); runs are shuffled. Every index appears exactly once.
    """
    runs: list[list[int]] = []
    for i, share in enumerate(shares):
        if not runs or shares[runs[-1][-1]] != share or len(runs[-1]) >= run_length:
            runs.append([])
        runs[-1].append(i)
    order = rng(seed, "epoch", epoch).permutation(len(runs))
    flat = [i for r in order for i in runs[r]]
    return [flat[i : i + batch_size] for i in range(0, len(flat), batch_size)]
