"""The trainer of one device: the stages of a run on the local engine (engine.py), in this process.

Departure from the paper's stack [ours]: a round of sampling feeds the optimiser steps right after it, so a
wave is one round.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from selfemo.config import Config, GrpoConfig, ModelConfig, OptimConfig, SftConfig
from selfemo.errors import EngineError
from selfemo.method.prompts import Fitted
from selfemo.method.types import Prompt, RawCompletion
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.sampler import Message, Sampler
from selfemo.training.engine import LocalEngine
from selfemo.training.expression import Ears, open_ears
from selfemo.training.protocol import (
    Measures,
    RlItem,
    RlSpan,
    SftStep,
    finite_means,
    learning_rate,
    sft_batches,
)
from selfemo.training.rollouts import CAP, VllmRollouts


class LocalTrainer:
    """`Trainer` on one device.

    Args:
        model: weights, device, precision, adapters.
        temperature: of sampling; RL trains the policy at this temperature.
        states: from a stage to the folder of its training states.
        keep_states: how many of a stage's last states are kept.
        rollouts: who samples in RL; None is the policy itself. May be set anew between rounds.
    """

    whole_rounds = False

    def __init__(
        self,
        model: ModelConfig,
        temperature: float,
        states: Callable[[str], Path],
        keep_states: int = 2,
        rollouts: VllmRollouts | None = None,
    ):
        self.model, self.temperature = model, temperature
        self._states_of, self._keep_states = states, keep_states
        self.rollouts = rollouts
        self._engine: LocalEngine | None = None
        self._loaded: str | None = None
        self._again: Callable[[], None] = lambda: None
        self._states, self._start = Path(), ""

    @property
    def engine(self) -> LocalEngine:
        """The engine with the loaded model (EngineError: none is loaded)."""
        if self._engine is None:
            raise EngineError("no model is loaded; begin a stage or ask for a sampler first")
        return self._engine

    def release(self) -> None:
        self._engine, self._loaded = None, None
        gc.collect()

    def _load(self, weights: str) -> LocalEngine:
        if self._loaded != weights:
            self.release()
            self._engine = LocalEngine(self.model, weights, self.temperature)
            self._loaded = weights
        return self.engine

    def encode(self, messages: list[Message]) -> Sequence[int]:
        return self.engine.sampler.encode(messages)

    def encode_text(self, text: str) -> Sequence[int]:
        return self.engine.policy.line_ids(text)

    def sampler(self, weights: str) -> Sampler:
        return self._load(weights).sampler

    def _begin(self, stage: str, weights: str, config: OptimConfig, *, reference: bool) -> None:
        engine = self._load(weights)
        self._loaded = None  # the weights will change, so the next use loads anew
        engine.begin_stage(config)
        if reference:
            engine.set_reference()
        self._states, self._start = self._states_of(stage), weights
        self._again = lambda: self._begin(stage, weights, config, reference=reference)

    def begin_sft(self, stage: str, weights: str, config: SftConfig) -> None:
        self._begin(stage, weights, config, reference=False)

    def begin_rl(
        self, stage: str, weights: str, config: GrpoConfig, tests: Sequence[Prompt], span: RlSpan
    ) -> None:
        self._begin(stage, weights, config, reference=config.kl_coef > 0)

    def _path(self, step: int) -> Path:
        return self._states / f"step-{step}.safetensors"

    def _saved(self) -> list[int]:
        """Steps that have a state, the last first."""
        return sorted(map(_step_of, self._states.glob("step-*.safetensors")), reverse=True)

    def resume(self, recorded: int, say: Callable[[str], None]) -> int:
        if not recorded:
            return 0
        for step in dict.fromkeys([recorded, *(s for s in self._saved() if s <= recorded)]):
            try:
                self.engine.load_training_state(self._path(step))
                return step
            except EngineError as e:
                say(str(e))
                self._again()
        return 0

    def save_state(self, done: int, record: Callable[[int], None]) -> None:
        # Later states are from before a rollback, or from before a resume at an earlier state.
        for stale in [s for s in self._saved() if s > done]:
            self._path(stale).unlink()
        self.engine.save_training_state(self._path(done))
        record(done)
        kept = self._saved()[: self._keep_states]
        for file in self._states.glob("step-*"):
            if _step_of(file) not in kept:
                file.unlink()

    def save(self, folder: Path) -> None:
        self.engine.end_stage()
        self.engine.save(folder)

    def sft_steps(self, samples: Sequence[tuple[Fitted, str]], config: SftConfig, epochs: int) -> int:
        return len(sft_batches(samples, config, epochs, 0))

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
        items = [
            self.engine.sft_item(f.ids, text, f.prompt.conversation_id, config.label_weight)
            for f, text in samples
        ]
        batches = sft_batches(samples, config, epochs, seed)
        for step, batch in enumerate(batches[first:], first):
            lr = learning_rate(config, step, len(batches)) * scale(step)
            yield SftStep(step, self.engine.sft_step([items[i] for i in batch], config, lr))

    def waves(self, rounds: int) -> list[range]:
        return [range(r, r + 1) for r in range(rounds)]

    def drawn(self, wave: range) -> list[str] | None:
        return None

    def wave(self, wave: range, rounds: Sequence[Sequence[Fitted]]) -> AbstractContextManager[None]:
        return nullcontext()

    def sample(
        self, round_: int, prompts: Sequence[Fitted], n: int, seeds: Sequence[int], settings: SamplingSettings
    ) -> list[list[RawCompletion]]:
        requests = [
            Request(f.ids, n, seed, share=f.prompt.conversation_id)
            for f, seed in zip(prompts, seeds, strict=True)
        ]
        if self.rollouts is None:
            return self.engine.sampler.generate(requests, settings)
        return self.rollouts.generate(self.engine, requests, settings)

    def teacher(self) -> Sampler:
        return self.engine.start_sampler(self._start)

    def ears(self, config: Config) -> Ears | None:
        return open_ears(config, self.teacher)

    def update(
        self, round_: int, minibatches: Sequence[Sequence[RlItem]], config: GrpoConfig, rates: Sequence[float]
    ) -> Measures:
        more: Measures = {}
        self.engine.importance_cap = 0.0
        if self.rollouts is not None:
            self.rollouts.sleep()
            self.engine.importance_cap, more = CAP, {"vllm_gap": self.rollouts.gap}
        return {**finite_means(self.engine.rl_round(minibatches, config, rates)), **more}


def _step_of(state: Path) -> int:
    return int(state.stem.removeprefix("step-"))
