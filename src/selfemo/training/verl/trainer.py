"""The trainer of a cluster: launches verl (Ray, FSDP, vLLM) and reads what it sampled and measured.

verl gets prompts as Parquet, settings as Hydra overrides, reward and advantages by plugin.py. It writes
completions and metrics step by step.

Departures [ours]: prompts that self-play leaves are drawn in the next wave, not the next round; a stage takes
whole batches, so the rest of flywheel.prompts is left out; SFT drops the last, partial batch of an epoch, as
verl does. verl's loss also bounds the ratio of negative advantages by 3 (its dual clip). Replies are rewarded
as whole_replies.py says, and what they learn is added to A of eq. 13 on their tokens.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from selfemo.config import Config, GrpoConfig, SftConfig
from selfemo.errors import DataError, EngineError
from selfemo.files import write_json
from selfemo.method.prompts import Fitted, fit
from selfemo.method.types import Prompt, RawCompletion
from selfemo.models.generation.requests import SamplingSettings
from selfemo.models.loading import load_policy
from selfemo.models.policy import ChatTokenizer
from selfemo.models.sampler import Message, Sampler
from selfemo.models.tokenizers import load_tokenizer
from selfemo.progress import StopRequest
from selfemo.training.checkpoints import write_checkpoint, writing_checkpoint
from selfemo.training.local import LocalTrainer
from selfemo.training.protocol import Measures, RlItem, RlSpan, SftStep
from selfemo.training.verl.adapters import merge_adapters
from selfemo.training.verl.exchange import (
    measures_of,
    prompt_rows,
    read_dump,
    read_metrics,
    sft_rows,
    write_parquet,
)
from selfemo.training.verl.launch import Launch, end_orphan
from selfemo.training.verl.listening import LISTENER, READER, Noted, no_teacher
from selfemo.training.verl.settings import PLUGIN, check_config, sft_command, sft_overrides, weights_path
from selfemo.training.verl.waves import part, wave_command, wave_files
from selfemo.training.whole_replies import WholeEars

_SAME = 1e-3
"""verl holds rewards in float32; a larger difference of advantages is an error."""


class VerlTrainer:
    """`Trainer` on a cluster.

    Args:
        folder: the run's; all files of verl go to cluster/STAGE in it.
        stop: passed on to a launch, which then saves its state and ends.
        local: evaluates checkpoints on this machine.
        start: starts a command; tests replace it.

    Raises:
        ConfigError: verl cannot run these settings.
    """

    whole_rounds = True

    def __init__(
        self,
        config: Config,
        folder: Path,
        stop: StopRequest,
        local: LocalTrainer,
        start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
    ):
        check_config(config)
        self.config, self.stop, self._start, self._local = config, stop, start, local
        self._root = folder.resolve() / "cluster"
        self._stage, self._weights, self._weights_inside = "", "", "."
        self._rounds, self._span = 0, RlSpan()
        self._launch: Launch | None = None
        self._open = ExitStack()
        self._wave = range(0)
        self._groups: dict[str, list[list[dict[str, Any]]]] = {}

    @cached_property
    def reader(self) -> ChatTokenizer:
        reader = load_tokenizer(self.config.model.id)
        if reader.mended.notes:
            raise EngineError(
                f"{self.config.model.id}: verl writes prompts by the model's own chat template, which lacks "
                f"something: {'; '.join(reader.mended.notes)}. Give a copy of the model with the tokenizer "
                "that selfemo.models.tokenizers.load_tokenizer(MODEL).tokenizer.save_pretrained(COPY) writes"
            )
        return reader

    @property
    def folder(self) -> Path:
        """The folder of the current stage."""
        return self._root / self._stage

    def encode(self, messages: list[Message]) -> Sequence[int]:
        return self.reader.encode(messages)

    def encode_text(self, text: str) -> Sequence[int]:
        return self.reader.line_ids(text)

    def sampler(self, weights: str) -> Sampler:
        return self._local.sampler(weights)

    def release(self) -> None:
        self._local.release()

    def _begin(self, stage: str, weights: str, inside: str) -> None:
        self.release()
        self._stage, self._weights, self._weights_inside = stage, weights, inside
        end_orphan(self.folder / "process")

    def begin_sft(self, stage: str, weights: str, config: SftConfig) -> None:
        self._begin(stage, weights, ".")

    def begin_rl(
        self, stage: str, weights: str, config: GrpoConfig, tests: Sequence[Prompt], span: RlSpan
    ) -> None:
        self._begin(stage, weights, "actor")
        self._span = span
        c = self.config.prompt
        fitted = [fit(p, self.encode, c.max_tokens, c.reasoning) for p in tests if p.target]
        held = [f for f in fitted if f is not None]
        if not held:
            raise DataError(f"{stage}: no held-out prompt fits prompt.max_tokens; raise it")
        write_parquet(self.folder / "held.parquet", prompt_rows(held, self.reader, c.reasoning))

    def teacher(self) -> NoReturn:
        no_teacher()

    def ears(self, config: Config) -> WholeEars | None:
        """Who tells what verl's process heard in the round that was sampled last."""
        if not config.expresses:
            return None

        def rows() -> Iterable[dict[str, Any]]:
            return (row for groups in self._groups.values() for group in groups for row in group)

        judge = Noted(rows, READER) if config.reward.reader else None
        return WholeEars(Noted(rows, LISTENER), judge, decode=self.reader.decode)

    def _done(self) -> int:
        """The last step of the stage whose state verl has written whole, or 0."""
        tracker = self.folder / "states" / "latest_checkpointed_iteration.txt"
        try:
            return int(tracker.read_text())
        except (OSError, ValueError):
            return 0

    def resume(self, recorded: int, say: Callable[[str], None]) -> int:
        """Delete what was written after verl's own last state."""
        done = self._done()
        for dump in (self.folder / "rollouts").glob("*.jsonl"):
            if int(dump.stem) > done:
                dump.unlink()
        for listed in self.folder.glob("wave-from-*.json"):
            if int(listed.stem.rsplit("-", 1)[1]) > done:  # drawn from rounds that are deleted now
                listed.unlink()
        (self.folder / "stop").unlink(missing_ok=True)
        return done

    def save_state(self, done: int, record: Callable[[int], None]) -> None:
        """Nothing: verl saves on its own, every cluster.save_every rounds, and when a stop is asked for."""
        if self.stop.asked and self._launch is not None:
            self._launch.wait()

    def save(self, folder: Path) -> None:
        """Copy the weights that verl wrote last, with the adapters merged in.

        Raises: EngineError: they are not there, or cannot be copied.
        """
        step = self._done()
        if not step:  # a stage without a step
            policy = load_policy(self._weights, "cpu")
            write_checkpoint(policy.core, policy.tokenizer, folder)
            return
        states = self.folder / "states" / f"global_step_{step}"
        source = states / self._weights_inside / "huggingface"
        if not any(source.glob("*.safetensors")):
            raise EngineError(
                f"{source}: verl left no safetensors weights here; see {self.folder / 'verl.log'}"
            )
        with writing_checkpoint(folder) as staging:
            shutil.copytree(source, staging, dirs_exist_ok=True)
            if lora := self.config.model.lora:
                merge_adapters(staging, lora.alpha / lora.rank)

    def _launched(self, command: Sequence[str]) -> Launch:
        return Launch(command, self.folder, self.config.cluster.address, self.stop, self._start)

    def sft_steps(self, samples: Sequence[tuple[Fitted, str]], config: SftConfig, epochs: int) -> int:
        batches = len(samples) // config.batch_size
        if epochs and not batches:
            raise DataError(
                f"{self._stage}: {len(samples)} samples fit prompt.max_tokens, fewer than one batch of "
                f"sft.batch_size = {config.batch_size}"
            )
        return batches * epochs

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
        """verl trains with the seed of the configuration; its measures are read as it writes them."""
        if first >= self.sft_steps(samples, config, epochs):
            return
        train = self.folder / "samples.parquet"
        texts = [(f.prompt, text) for f, text in samples]
        write_parquet(train, sft_rows(texts, self.reader, self.config.prompt.reasoning))
        model = weights_path(self._weights)
        overrides = sft_overrides(self.config, model, self.folder, train=train, sft=config, epochs=epochs)
        shown = first
        with self._launched(sft_command(overrides)) as launch:
            ended = False
            while not ended:
                ended = launch.ended
                found = read_metrics(self.folder / "metrics.jsonl")
                for step in sorted(s for s in found if s > shown):
                    named = {n: found[step].get(f"train/{n}") for n in ("loss", "grad_norm", "lr")}
                    yield SftStep(step - 1, {n: v for n, v in named.items() if v is not None})
                    shown = step
                self.stop.check()  # SFT of verl has no hook to save in between
                if not ended:
                    launch.pause()

    def waves(self, rounds: int) -> list[range]:
        self._rounds, play = rounds, self.config.selfplay
        return part(rounds, play.max_turns, play.synthetic_share)

    def drawn(self, wave: range) -> list[str] | None:
        table, listed = wave_files(self.folder, wave)
        return json.loads(listed.read_text()) if listed.exists() and table.exists() else None

    @contextmanager
    def wave(self, wave: range, rounds: Sequence[Sequence[Fitted]]) -> Iterator[None]:
        if self.drawn(wave) is None:
            table, listed = wave_files(self.folder, wave)
            prompts, reasoning = [f for round_ in rounds for f in round_], self.config.prompt.reasoning
            heard = self.config.expresses
            write_parquet(table, prompt_rows(prompts, self.reader, reasoning, heard=heard))
            write_json(listed, [f.prompt.id for f in prompts])
        self._wave = wave
        try:
            with self._open:
                yield
        finally:
            self._launch = None

    def _start_wave(self) -> Launch:
        self.stop.check()
        done = self._done()
        if done == self._wave.start:
            # The saved position in the data is that of the wave before.
            for position in (self.folder / "states" / f"global_step_{done}").glob("data*.pt"):
                position.unlink()
        command = wave_command(self.config, self._weights, self.folder, self._wave, self._rounds, self._span)
        return self._launched(command)

    def sample(
        self, round_: int, prompts: Sequence[Fitted], n: int, seeds: Sequence[int], settings: SamplingSettings
    ) -> list[list[RawCompletion]]:
        """Wait for the completions that verl sampled in a round; starts the launch of the wave if needed."""
        step = round_ + 1  # verl counts steps from 1
        dump = self.folder / "rollouts" / f"{step}.jsonl"
        while True:
            ended = self._launch is not None and self._launch.ended
            if dump.exists() and step in read_metrics(self.folder / "metrics.jsonl"):
                break
            if self._launch is None:
                self._launch = self._open.enter_context(self._start_wave())
            elif ended:
                self._launch.wait()
                raise EngineError(
                    f"{self.folder}: verl ended, and step {step} of {self._wave.stop} left no rollouts; "
                    f"see {self.folder / 'verl.log'}"
                )
            self._launch.pause()
        # A prompt may be drawn twice into one round, where there are few of them.
        self._groups = {}
        for rows in read_dump(dump):
            self._groups.setdefault(rows[0]["prompt"], []).append(rows)
        asked = Counter(f.prompt.id for f in prompts)
        if strange := self._groups.keys() - asked.keys():
            raise EngineError(f"{dump}: prompt {min(strange)!r} is none of this step's")
        for prompt, n_groups in asked.items():
            if (found := len(self._groups.get(prompt, ()))) != n_groups:
                raise EngineError(f"{dump}: prompt {prompt!r} has {found} of {n_groups} groups")
        groups = {prompt: iter(found) for prompt, found in self._groups.items()}
        return [[_raw(row) for row in next(groups[f.prompt.id])] for f in prompts]

    def update(
        self, round_: int, minibatches: Sequence[Sequence[RlItem]], config: GrpoConfig, rates: Sequence[float]
    ) -> Measures:
        """Check that verl trained with these advantages (EngineError: with others); returns its measures."""
        step = round_ + 1
        ours: dict[str, list[tuple[float, ...]]] = {}
        for item in (i for items in minibatches for i in items):
            ours.setdefault(item.prompt, []).append(_given(item))
        for prompt, found in ours.items():
            theirs = np.array([[_trained(r) for r in rows] for rows in self._groups[prompt]])
            expected = np.reshape(found, theirs.shape)
            # The groups of a prompt that was drawn twice may stand in another order here.
            same = np.isclose(expected[:, None], theirs, atol=_SAME).all((-1, -2))
            if not (same.any(0).all() and same.any(1).all()):
                whole = not self.config.expresses
                told = [(a[..., 0] if whole else a).round(4).tolist() for a in (theirs, expected)]
                of = "" if whole else " (first; from the R line on; tokens before it)"
                raise EngineError(
                    f"{self.folder / 'rollouts' / f'{step}.jsonl'}: prompt {prompt}: verl trained with "
                    f"advantages {told[0]}{of}, SELF-GRPO gives {told[1]}; is {PLUGIN} of this version on "
                    "all nodes?"
                )
        return measures_of(read_metrics(self.folder / "metrics.jsonl")[step])


def _raw(row: dict[str, Any]) -> RawCompletion:
    entropies = tuple(row.get("entropies") or (row["entropy"],))
    return RawCompletion(row["text"], tuple(row["token_ids"]), (row["logprob"],), entropies, row["finished"])


def _given(item: RlItem) -> tuple[float, float, int]:
    """The advantage of a completion, that of its tokens from the R line on, and the tokens before it."""
    n = len(item.completion_ids)
    head = n if item.head is None else item.head
    return item.advantage, item.rest if head < n else item.advantage, head


def _trained(row: dict[str, Any]) -> tuple[float, float, int]:
    """The same of a completion as verl has written it."""
    reply = row.get("reply") or {"advantage": row["advantage"], "lead": len(row["token_ids"])}
    return row["advantage"], reply["advantage"], reply["lead"]
