"""The training protocol: how a run uses a trainer.

The local trainer (local.py, one device) and verl (verl/trainer.py, a cluster) implement it. A stage does not
ask which one it has:

    sft    begin_sft -> resume -> for step in sft(...): keep, watch, save_state -> save
    RL     begin_rl -> resume -> for wave in waves(...): with wave(...): sample, score, update -> save

A wave is a number of rounds whose prompts are drawn before the first of them is sampled: one round for the
local trainer; several for verl, where each wave is a launch. verl's own processes sample, hear replies
and update, so its `sample` waits for their completions, its `ears` tell what was heard, and its `update`
checks that they trained with the advantages it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from selfemo.config import AdamConfig, Config, GrpoConfig, SftConfig
from selfemo.method.prompts import Fitted, recognises_alone
from selfemo.method.self_grpo import lambda_at
from selfemo.method.types import Prompt, RawCompletion
from selfemo.models.generation.requests import SamplingSettings
from selfemo.models.sampler import Message, Sampler
from selfemo.seeds import rng, shuffled_runs
from selfemo.training.guards import NOT_FINITE

if TYPE_CHECKING:
    from selfemo.training.expression import Ears

Measures = dict[str, Any]
"""Measures of an optimiser step or of a round by name: loss, grad_norm, lr, kl, ..."""


@dataclass(frozen=True)
class RlItem:
    """One sampled completion with its advantage; completions of one prompt are adjacent.

    Attributes:
        advantage: of all tokens, or of the first `head` of them.
        prompt: id of the prompt.
        share: key of the prefix tree: completions of one prompt, or of one conversation, share it.
        rest: advantage of the tokens behind `head`.
        sampled: log-probability of each token when it was sampled; None where it was not (a gold line).
        reply: it is a reply, rewarded by R3 or kept by the anchor: such items have a token mean of their own,
            since their tokens are several times as many as those of E lines.
        elsewhere: it was sampled behind other tokens than these, so that each of its tokens weighs
            min(1, exp(log p - sampled)).
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    advantage: float
    prompt: str
    share: Hashable = None
    head: int | None = None
    rest: float = 0.0
    sampled: Sequence[float] | None = None
    reply: bool = False
    elsewhere: bool = False

    @property
    def tree(self) -> Hashable:
        return self.prompt if self.share is None else self.share

    def advantages(self) -> list[float]:
        """The advantage of each token."""
        n = len(self.completion_ids)
        head = n if self.head is None else self.head
        return [self.advantage] * head + [self.rest] * (n - head)


class RlSpan(NamedTuple):
    """The place of an RL stage (from 0) among the `stages` that lambda(t) is counted over.

    All have the same number of rounds, and all rounds the same number of optimiser steps, so rounds give the
    t / T of optimiser steps. The completions of a round have one lambda: that of its first step.
    """

    stage: int = 0
    stages: int = 1

    @staticmethod
    def of(config: GrpoConfig, iteration: int, iterations: int) -> RlSpan:
        """The span of the RL stage of an iteration (from 1) of a run, as `grpo.lam_span` says."""
        return RlSpan(iteration - 1, iterations) if config.lam_span == "run" else RlSpan()

    def lam(self, round_: int, rounds: int, lam_max: float) -> float:
        """lambda of a round (from 0) of this stage, which has `rounds`."""
        return lambda_at(self.stage * rounds + round_, self.stages * rounds, lam_max)


@dataclass(frozen=True)
class SftStep:
    """One finished optimiser step: its index from 0, and its measures."""

    index: int
    measures: Measures


class Trainer(Protocol):
    """Trains a policy through the stages of a run."""

    whole_rounds: bool
    """Whether each RL round must have all its prompts (a launch takes whole batches only)."""

    def encode(self, messages: list[Message]) -> Sequence[int]:
        """Token ids of a chat up to where the completion starts, by the configured model's tokenizer."""

    def encode_text(self, text: str) -> Sequence[int]:
        """Token ids of a part of a completion, without an end token."""

    def sampler(self, weights: str) -> Sampler:
        """A sampler for evaluation with some weights (a model id or folder); valid until the next call."""

    def release(self) -> None:
        """Free the loaded model."""

    def begin_sft(self, stage: str, weights: str, config: SftConfig) -> None:
        """Start a supervised stage from some weights, with a fresh optimiser."""

    def begin_rl(
        self, stage: str, weights: str, config: GrpoConfig, tests: Sequence[Prompt], span: RlSpan
    ) -> None:
        """Start an RL stage from some weights, which are also the reference policy of the KL term.

        Args:
            tests: held-out prompts that an engine may test on between rounds.
            span: of lambda(t), for an engine that computes advantages itself.
        """

    def resume(self, recorded: int, say: Callable[[str], None]) -> int:
        """Continue from the last complete state of the stage; returns its number of steps (rounds), or 0.

        Args:
            recorded: the last step that the run recorded as saved; a later state may be incomplete. A trainer
                that saves on its own uses its own records.
            say: called with a message for each damaged state.
        """

    def save_state(self, done: int, record: Callable[[int], None]) -> None:
        """Save a state after `done` steps, from which the stage can continue.

        Args:
            record: called when the state is complete, before older ones are deleted. A trainer that saves on
                its own may do nothing here.
        """

    def save(self, folder: Path) -> None:
        """Write the trained weights as a checkpoint; ends the stage."""

    def sft_steps(self, samples: Sequence[tuple[Fitted, str]], config: SftConfig, epochs: int) -> int:
        """The number of optimiser steps of `epochs` passes over the samples."""

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
        """Train on samples (prompt, completion); yields after each optimiser step.

        Args:
            first: the step to begin with.
            scale: from a step to the factor of its learning rate.
        """

    def waves(self, rounds: int) -> list[range]:
        """The rounds of an RL stage, divided into waves."""

    def drawn(self, wave: range) -> list[str] | None:
        """Ids of the prompts, in order, if an interrupted run of this wave has drawn them; else None."""

    def wave(self, wave: range, rounds: Sequence[Sequence[Fitted]]) -> AbstractContextManager[None]:
        """A context in which the wave's rounds can be sampled; `rounds` holds the prompts of each."""

    def sample(
        self, round_: int, prompts: Sequence[Fitted], n: int, seeds: Sequence[int], settings: SamplingSettings
    ) -> list[list[RawCompletion]]:
        """Sample `n` completions of each prompt of a round with the current policy."""

    def teacher(self) -> Sampler:
        """The policy as it was at the start of the RL stage, also after a resume or a rollback; valid until
        the stage ends.

        Raises:
            UnsupportedError: the engine cannot keep it.
        """

    def ears(self, config: Config) -> Ears | None:
        """Who hears the replies of the RL stage; None where they are not rewarded.

        An engine whose own processes hear them tells here what they have heard.

        Raises: as `reply_readers.open_reply_reader`.
        """

    def update(
        self, round_: int, minibatches: Sequence[Sequence[RlItem]], config: GrpoConfig, rates: Sequence[float]
    ) -> Measures:
        """Make one optimiser step per mini-batch on the round's completions; returns their mean measures."""


def learning_rate(config: AdamConfig, step: int, total: int) -> float:
    """The learning rate of optimiser step `step` (from 0) of `total`: linear warm-up, then the schedule."""
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
    """The mean of each measure over the steps where it is finite; None if it never is.

    `not_finite`, the number of steps that were left out, is summed, and missing if it is 0.
    """
    means: dict[str, float | None] = {}
    for key in dict.fromkeys(k for s in steps for k in s if k != NOT_FINITE):
        values = [s[key] for s in steps if key in s and np.isfinite(s[key])]
        means[key] = sum(values) / len(values) if values else None
    if left_out := sum(s.get(NOT_FINITE, 0) for s in steps):
        means[NOT_FINITE] = left_out
    return means


def sft_batches(
    samples: Sequence[tuple[Fitted, str]], config: SftConfig, epochs: int, seed: int
) -> list[list[int]]:
    """Sample indices of the optimiser steps of `epochs` passes (`epoch_batches`).

    With sft.label_order = "last" all passes over the whole samples come before those over the E lines.
    """
    phases: list[list[int]] = [list(range(len(samples)))]
    if config.label_order == "last":
        alone = [recognises_alone(text) for _, text in samples]
        phases = [[i for i, a in enumerate(alone) if a == which] for which in (False, True)]
    batches = []
    for members in phases:
        shares = [samples[i][0].prompt.conversation_id for i in members]
        for epoch in range(epochs):
            found = epoch_batches(shares, config.batch_size, config.run_length, seed, epoch)
            batches += [[members[k] for k in batch] for batch in found]
    return batches


def epoch_batches(
    shares: Sequence[str], batch_size: int, run_length: int, seed: int, epoch: int
) -> list[list[int]]:
    """Sample indices of one epoch's optimiser steps; every index appears exactly once.

    Adjacent samples of one conversation stay together in runs of at most `run_length` (they are one prefix
    tree); the runs are shuffled.
    """
    flat = shuffled_runs(shares, run_length, rng(seed, "epoch", epoch)).tolist()
    return [flat[i : i + batch_size] for i in range(0, len(flat), batch_size)]
