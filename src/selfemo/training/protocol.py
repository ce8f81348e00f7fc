"""What stages ask of an engine, and the supervised stage (steps of SFT over samples).

Engines (engines/*.py) implement `Engine`; the stages know nothing else of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from selfemo.config import GrpoConfig, OptimConfig, SftConfig
from selfemo.method.types import EmotionDistribution, LabelSet, Sample
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.seeds import rng
from selfemo.training.guards import NOT_FINITE


@dataclass(frozen=True)
class SftItem:
    """One supervised sample; `weights` are the loss weights of its completion tokens."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    weights: Sequence[float]
    share: str


@dataclass(frozen=True)
class RlItem:
    """One sampled completion with its advantage; completions of one prompt stand side by side."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    advantage: float
    share: str


class Engine(Protocol):
    """A policy that can be sampled and trained."""

    def encode(self, messages: list[dict[str, str]]) -> list[int]: ...

    def sft_item(
        self, prompt_ids: Sequence[int], completion: str, share: str, label_weight: float
    ) -> SftItem: ...

    def generate(
        self,
        requests: Sequence[Request],
        settings: SamplingSettings,
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Sample]]: ...

    def label_probabilities(
        self, places: Sequence[tuple[Hashable, Sequence[int], str]], labels: LabelSet
    ) -> list[EmotionDistribution]: ...

    def begin_stage(self, config: OptimConfig) -> None: ...

    def end_stage(self) -> None: ...

    def set_reference(self) -> None: ...

    def sft_step(
        self, items: Sequence[SftItem], config: OptimConfig, lr: float
    ) -> dict[str, float]:
        """One optimiser step; one whose loss or gradient is not finite is left out: `not_finite` is 1."""
        ...

    def rl_round(
        self, minibatches: Sequence[Sequence[RlItem]], config: GrpoConfig, rates: Sequence[float]
    ) -> list[dict[str, float]]: ...


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

    `not_finite`, the steps that were left out, is a sum, and is there only if there were any.
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

    Samples of one conversation that stand side by side stay together in runs of at most `run_length`
    (they are one prefix tree); runs are shuffled. Every index appears exactly once.
    """
    runs: list[list[int]] = []
    for i, share in enumerate(shares):
        if not runs or shares[runs[-1][-1]] != share or len(runs[-1]) >= run_length:
            runs.append([])
        runs[-1].append(i)
    order = rng(seed, "epoch", epoch).permutation(len(runs))
    flat = [i for r in order for i in runs[r]]
    return [flat[i : i + batch_size] for i in range(0, len(flat), batch_size)]


def run_sft(
    engine: Engine,
    items: Sequence[SftItem],
    config: SftConfig,
    *,
    epochs: int,
    seed: int,
    on_step: Callable[[int, int, dict[str, float]], Any],
    first: int = 0,
    scale: Callable[[int], float] = lambda step: 1.0,
) -> int:
    """Train on all items for some epochs; returns the number of optimiser steps.

    The engine's stage has begun, and is ended by the caller.

    Args:
        on_step: called after each step with (step, total steps, measures).
        first: the step to begin with; the engine holds weights and optimiser state of that point.
        scale: what the learning rate of a step is multiplied with.
    """
    batches = [
        batch
        for epoch in range(epochs)
        for batch in epoch_batches(
            [i.share for i in items], config.batch_size, config.run_length, seed, epoch
        )
    ]
    for step, batch in enumerate(batches[first:], first):
        lr = learning_rate(config, step, len(batches)) * scale(step)
        on_step(step, len(batches), engine.sft_step([items[i] for i in batch], config, lr))
    return len(batches)
