"""`selfemo evolve`: the stages of algorithm 1 in order, in one run folder that can be resumed.

    evaluate-start -> cold-start -> evaluate-cold-start
        -> [iteration-i-rl -> iteration-i-refit -> evaluate-iteration-i] x N -> summary, figures

Each stage is recorded in the store with its checkpoint. A stage that was interrupted is rewound to its
last state (its start, or the step at which it was asked to stop or saved by save.every_steps) and goes on
from there; all random choices depend on the seed and the place alone, so a resumed run equals an
uninterrupted one.

Departures from the paper [ours]: flywheel.refit = "policy" trains the RL policy further instead of the
base model (step (b) of algorithm 1); "none" keeps the RL policy as the iteration's model.
"""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from selfemo import __version__
from selfemo.stages.coldstart import gold_samples, read_parquet
from selfemo.config import Config, OptimConfig, SftConfig, load, to_toml
from selfemo.data import load as load_data
from selfemo.errors import (
    ConfigError,
    DamagedStoreError,
    DataError,
    EngineError,
    GuardError,
    NotFiniteError,
    StoreError,
)
from selfemo.data.splits import held_out
from selfemo.evaluation.predictions import Scores, evaluate_checkpoint, score
from selfemo.stages.flywheel import RlPlan, add_sample, cap_emotions, original_prompts, rl_stage
from selfemo.training.guards import Alarm, alarms, decide, rate_scale
from selfemo.stages.personas import with_known_personas
from selfemo.progress import Quiet, Reporter
from selfemo.method.prompts import conversation_prompts
from selfemo.seeds import rng
from selfemo.stages.selfplay import fit_all, persona_book
from selfemo.progress import StopRequest
from selfemo.runs.store import BACKUP_FILE, STORE_FILE, Store, lock_folder, write_text
from selfemo.training.protocol import SftItem, finite_means, run_sft
from selfemo.method.types import Completion, Conversation, Prompt

CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.jsonl"
START, COLD = "start", "cold-start"


def load_conversations(config: Config) -> list[Conversation]:
    """All conversations of the configured sources, each speaker with a persona.

    The profiles of data.personas come first, then a conversation's own personas, then the plain
    description drawn from the training split.
    """
    conversations: list[Conversation] = []
    for source in config.data.sources:
        loaded = load_data(source, lenient=config.data.lenient).conversations
        conversations.extend(with_known_personas(loaded, [Path(f) for f in config.data.personas]))
    ids = [c.id for c in conversations]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise DataError(f"conversation id {twice!r} occurs twice in data.sources")
    return conversations


def training_conversations(
    conversations: Sequence[Conversation], config: Config
) -> list[Conversation]:
    """The train split, cut to data.train_conversations (drawn by the seed) where that is set."""
    train = [c for c in conversations if c.split == "train"]
    if not train:
        raise DataError("data.sources hold no conversation of split 'train'")
    limit = config.data.train_conversations
    if limit and limit < len(train):
        order = rng(config.seed, "train conversations").permutation(len(train))[:limit]
        train = [train[i] for i in sorted(order)]
    return train


def cold_start_samples(
    train: Sequence[Conversation], config: Config
) -> tuple[list[tuple[Prompt, Completion]], str]:
    """The cold start's samples and their source: the file sft.samples, or the gold data.

    Raises:
        ConfigError: the samples do not reason as prompt.reasoning asks.
        DataError: there is no sample, or the file cannot be read.
    """
    wanted, path = config.prompt.reasoning, config.sft.samples
    if not path:
        if wanted != "none":
            raise ConfigError(
                f"prompt.reasoning = {wanted!r}: gold data hold no reasoning that a cold start could "
                'teach; use "none", or samples of experts (sft.samples)'
            )
        samples = gold_samples(
            train, config.sft.max_samples, config.seed, config.sft.max_emotion_share
        )
        if not samples:
            raise DataError(
                "no cold-start sample: no training turn with an emotion is answered by another "
                "speaker's turn with an emotion"
            )
        return samples, "gold"
    # Ids of their own: an original prompt of the same turn may carry another persona.
    samples = [(replace(p, id=f"cold/{p.id}"), c) for p, c in read_parquet(Path(path))]
    check_reasoning(config, [c for _, c in samples], path)
    limit = config.sft.max_samples
    return (samples[:limit] if limit else samples), "file"


def check_reasoning(config: Config, completions: Sequence[Completion], where: str) -> None:
    """Raises: ConfigError, where samples do not reason as prompt.reasoning asks."""
    wanted, reasons = config.prompt.reasoning, sum(bool(c.reasoning) for c in completions)
    if (wanted != "none") != bool(reasons):
        raise ConfigError(
            f"{reasons} of {len(completions)} samples in {where} reason, and prompt.reasoning = "
            f"{wanted!r}; generate them with the same --reasoning"
        )


def open_engine(config: Config, checkpoint: str | None = None) -> Any:
    """The local engine on the configured model or a checkpoint of it."""
    from selfemo.training.local import LocalEngine

    return LocalEngine(config.model, checkpoint, config.sampling.temperature)


class _RolledBack(Exception):
    """The stage goes on from its last saved state with a lower learning rate."""


class _TrainingState:
    """What a training stage goes on from: weights and optimiser after its last saved step, and what
    its guard has seen and done so far.

    Args:
        run: the run of the stage.
        stage: its name; the state lies in checkpoints/.STAGE-partial.
    """

    def __init__(self, run: Run, stage: str):
        self.run, self.stage = run, stage
        self.folder = run.folder / "checkpoints" / f".{stage}-partial"
        row = run.store.stage(stage)
        self.step = int(row["step"]) if row is not None else 0
        info = json.loads(row["info"]) if row is not None else {}
        self.rollbacks: list[dict[str, Any]] = info.get("rollbacks", [])
        self.records: list[dict[str, Any]] = []
        self.found: list[Alarm] = []

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}.safetensors"

    def _saved(self) -> list[int]:
        """Steps that have a state, the last first."""
        files = self.folder.glob("step-*.safetensors")
        return sorted((int(f.stem.removeprefix("step-")) for f in files), reverse=True)

    def open(self, begin: Callable[[], Any]) -> Any:
        """The engine that `begin` opens for training, at the last step whose state is whole, or at 0."""
        engine = begin()
        # The store tells which steps it holds; a state behind them is of a save that was cut off.
        held = [s for s in self._saved() if s <= self.step] if self.step else []
        if self.step not in held:
            held = [self.step, *held] if self.step else []
        self.step = 0
        for step in held:
            try:
                engine.load_training_state(self._path(step))
            except EngineError as e:
                self.run.reporter.say(str(e))
                engine = begin()
                continue
            self.step = step
            break
        if held and self.step != held[0]:
            where = f"goes back to step {self.step}" if self.step else "starts again"
            self.run.reporter.say(f"{self.stage} {where}")
        self.run.store.rewind(self.stage, self.step)
        self.records = [m for m in self.run.store.metrics() if m["stage"] == self.stage]
        return engine

    def scale(self, step: int) -> float:
        """What the learning rate of a step is multiplied with, after the rollbacks so far."""
        return rate_scale(self.rollbacks, step)

    def watch(self, step: int, record: dict[str, Any]) -> None:
        """Look at a step's metrics; the kinds of alarms are noted in them."""
        self.records.append(record)
        self.found = alarms(self.records, self.run.config.guard)
        if self.found:
            record["alarms"] = [a.kind for a in self.found]

    def after(self, engine: Any, done: int, total: int) -> None:
        """Act on alarms; save where it is time or a stop was asked for.

        Raises:
            Stopped: a stop was asked for.
            GuardError: an alarm stops the stage; the state after this step is saved.
        """
        every, stop = self.run.config.save.every_steps, self.run.stop
        action = decide(self.found, self.run.config.guard)
        for alarm in self.found:
            self.run.reporter.say(f"{self.stage}, step {done}: {alarm.reason} ({action})")
        if action == "rollback":
            self.roll_back(self.found, done)
        if action == "stop":
            self._save(engine, done)
            raise self._stopped(self.found, f"the state after step {done} is saved")
        if done < total and (stop.asked or (every and done % every == 0)):
            self._save(engine, done)
        if done < total:
            stop.check()

    def _save(self, engine: Any, done: int) -> None:
        # What lies behind this step is left from before a rollback or a state that was damaged.
        for stale in [s for s in self._saved() if s > done]:
            self._path(stale).unlink()
        engine.save_training_state(self._path(done))
        self._record(done)
        kept = self._saved()[: self.run.config.save.keep_states]
        for file in self.folder.glob("step-*"):
            if int(file.stem.removeprefix("step-")) not in kept:
                file.unlink()

    def after_elsewhere(self, done: int) -> None:
        """Act on alarms of a round that another process took; it keeps states of its own.

        Raises:
            GuardError: an alarm stops the stage.
        """
        action = decide(self.found, self.run.config.guard)
        for alarm in self.found:
            self.run.reporter.say(f"{self.stage}, step {done}: {alarm.reason} ({action})")
        if action == "stop":
            raise self._stopped(self.found, "the last state of the engine is kept")

    def _record(self, step: int) -> None:
        info = {"rollbacks": self.rollbacks} if self.rollbacks else {}
        self.run.store.set_stage(self.stage, "running", step=step, info=info)
        self.step = step

    def roll_back(self, found: Sequence[Alarm], done: int | None = None) -> NoReturn:
        """Have the stage go on from its last saved state with half the learning rate.

        Raises:
            GuardError: guard.max_rollbacks are used up.
        """
        if len(self.rollbacks) >= self.run.config.guard.max_rollbacks:
            raise self._stopped(
                found,
                f"it was rolled back {len(self.rollbacks)} times (guard.max_rollbacks) and is kept as "
                f"it was after step {self.step}",
            )
        kinds = [a.kind for a in found]
        self.rollbacks.append({"to": self.step, "at": done, "kinds": kinds})
        self._record(self.step)
        self.run.reporter.say(
            f"{self.stage} goes back to step {self.step}, with {self.scale(self.step):g} of the "
            "learning rate from there on"
        )
        raise _RolledBack

    def _stopped(self, found: Sequence[Alarm], kept: str) -> GuardError:
        kinds = " ".join(f"--set guard.{a.kind}=warn" for a in found)
        return GuardError(
            f"{self.stage}: {'; '.join(a.reason for a in found)}. Stopped; {kept}. To go on all the same: "
            f"selfemo evolve --resume {self.run.folder} {kinds} (or =rollback: the next such alarm goes "
            "back to the state saved last and halves the learning rate)"
        )

    def report(self) -> dict[str, Any]:
        """Alarms by kind and rollbacks of the whole stage, where there were any."""
        counts = Counter(kind for r in self.records for kind in r.get("alarms", ()))
        info: dict[str, Any] = {"alarms": dict(counts)} if counts else {}
        return info | ({"rollbacks": self.rollbacks} if self.rollbacks else {})


class Run:
    """One run folder: configuration, store, checkpoints, and the lock that keeps others out.

    Args:
        folder: where everything goes.
        config: the configuration of a new run; None resumes the one in the folder.
        stop: read after each step and before each stage.

    Raises:
        StoreError: the folder is no run, holds another run, or is in use.
    """

    def __init__(
        self,
        folder: Path,
        config: Config | None,
        reporter: Reporter | None = None,
        stop: StopRequest | None = None,
    ):
        self.folder, self.reporter = folder, reporter or Quiet()
        self.stop = stop or StopRequest()
        saved = folder / CONFIG_FILE
        if config is None:
            if not saved.exists():
                raise StoreError(f"{folder} is not a run folder: it has no {CONFIG_FILE}")
            self.config = load([saved])
        else:
            if saved.exists():
                raise StoreError(
                    f"{folder} already holds a run; go on with it by --resume {folder}, or give "
                    "another --out"
                )
            self.config = config
        self._lock = lock_folder(folder)
        self._engine: Any = None
        self._loaded: str | None = None
        try:
            self._remove_unfinished()
            self.store = self._open_store(resuming=config is None)
            if config is not None:
                save_config(saved, config)
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        self._release()
        self.store.close()
        self._lock.close()

    # -- engine -----------------------------------------------------------------------------------

    def _release(self) -> None:
        self._engine, self._loaded = None, None
        gc.collect()

    def engine(self, checkpoint: str) -> Any:
        """The engine with the weights of a checkpoint name (START: the configured model)."""
        if self._loaded != checkpoint:
            self._release()
            if checkpoint == START:
                self._engine = open_engine(self.config)
            else:
                from selfemo.models.loading import verify_checkpoint

                path = self.folder / "checkpoints" / checkpoint
                verify_checkpoint(path)
                self._engine = open_engine(self.config, str(path))
            self._loaded = checkpoint
        return self._engine

    def training_engine(self, checkpoint: str) -> Any:
        """Like `engine`, for training: the weights will change, so the next use loads anew."""
        engine = self.engine(checkpoint)
        self._loaded = None
        return engine

    def _open_store(self, *, resuming: bool) -> Store:
        """The run's store; where it is damaged or gone, the copy of it after the last finished stage."""
        path, copy = self.folder / STORE_FILE, self.folder / BACKUP_FILE
        try:
            if resuming and not path.exists():
                raise DamagedStoreError(f"{path}: is missing")
            return Store(path)
        except DamagedStoreError as e:
            if not copy.exists():
                raise DamagedStoreError(
                    f"{e}; there is no copy of it yet, so start a new run (the data of this one stay)"
                ) from e
            Store(copy, read_only=True).close()
            aside = time.strftime("damaged-%Y%m%d-%H%M%S")
            for part in ("", "-wal", "-shm"):
                if (file := path.with_name(path.name + part)).exists():
                    file.rename(file.with_name(f"{aside}-{file.name}"))
            staging = path.with_name(path.name + ".tmp")
            shutil.copyfile(copy, staging)
            staging.replace(path)
            self.reporter.say(
                f"{e}; it is put aside as {aside}-{STORE_FILE}, and the run goes on from {copy.name}, the "
                "copy after the last finished stage"
            )
            return Store(path)

    def _redo_damaged(self) -> None:
        """Have the last finished training stage done again where its checkpoint is not whole."""
        rows = self.store.rows(
            "SELECT * FROM stages WHERE status = 'done' AND checkpoint IS NOT NULL ORDER BY rowid"
        )
        if not rows:
            return
        from selfemo.models.loading import verify_checkpoint

        try:
            verify_checkpoint(self.folder / "checkpoints" / rows[-1]["checkpoint"])
        except EngineError as e:
            self.reporter.say(f"{e}; stage {rows[-1]['name']} is done again")
            # So is what was begun after it, which may stand on rows of it.
            for begun in self.store.rows("SELECT name FROM stages WHERE status = 'running'"):
                self.store.forget(begun["name"])
            self.store.set_stage(rows[-1]["name"], "running")
            before = rows[-1]["name"].removesuffix("-refit") + "-rl"
            if self.store.stage(before) and not (self.folder / "checkpoints" / before).exists():
                self.store.set_stage(before, "running")  # pruned: what the refit begins with

    def _remove_unfinished(self) -> None:
        """Delete what a killed process was writing: half checkpoints, half training states."""
        folder = self.folder / "checkpoints"
        whole = self.folder.glob("*.tmp*")
        for path in [*whole, *folder.glob(".*"), *folder.glob(".*-partial/*.tmp")]:
            if path.is_file():
                path.unlink(missing_ok=True)
            elif not path.name.endswith("-partial"):
                shutil.rmtree(path, ignore_errors=True)

    def save(self, engine: Any, name: str) -> None:
        engine.save(self.folder / "checkpoints" / name)

    # -- stages -----------------------------------------------------------------------------------

    def stage(
        self, name: str, work: Callable[[], dict[str, Any]], checkpoint: str | None = None
    ) -> Any:
        """Do a stage unless it is done; returns its recorded info."""
        row = self.store.stage(name)
        partial = self.folder / "checkpoints" / f".{name}-partial"
        if row is not None and row["status"] == "done":
            shutil.rmtree(partial, ignore_errors=True)
            return json.loads(row["info"])
        self.stop.check()
        started = time.monotonic()
        info = work()
        spent = time.monotonic() - started
        self.store.set_stage(name, "done", checkpoint=checkpoint, info=info, seconds=spent)
        # Not before: a process killed in between would find neither a state nor a stage that is done.
        shutil.rmtree(partial, ignore_errors=True)
        self.store.backup(self.folder / BACKUP_FILE)
        self.store.write_metrics(self.folder / METRICS_FILE)
        return info

    def _train(
        self, stage: str, attempt: Callable[[_TrainingState], dict[str, Any]]
    ) -> dict[str, Any]:
        """Do a training stage from its last saved state, again after each rollback."""
        while True:
            state = _TrainingState(self, stage)
            try:
                return attempt(state) | state.report()
            except _RolledBack:
                continue
            except NotFiniteError as e:
                self.reporter.say(f"{stage}: {e}")
                found = [Alarm("numbers", str(e))]
                if self.config.guard.numbers != "rollback":
                    raise state._stopped(found, f"the state after step {state.step} is kept") from e
                with contextlib.suppress(_RolledBack):
                    state.roll_back(found)

    def evaluate(self, conversations: Sequence[Conversation], checkpoint: str) -> None:
        name = evaluation_name(checkpoint)

        def work() -> dict[str, Any]:
            engine = self.engine(checkpoint)
            total = sum(t.emotion is not None for c in conversations for t in c.turns)
            with self.reporter.bar(name, total) as advance:

                def on_done(n: int) -> None:
                    advance(n)
                    self.stop.check()

                return evaluate_checkpoint(
                    engine, conversations, self.store, name, self.config, on_done
                )

        self.stage(name, work)

    def cold_start(self, train: Sequence[Conversation]) -> None:
        config = self.config

        def attempt(state: _TrainingState) -> dict[str, Any]:
            samples, source = cold_start_samples(train, config)
            engine = state.open(lambda: self._begin(START, config.sft))
            self._add_cold(samples, source)
            info = self._sft(engine, state, config.sft, config.sft.epochs, 1.0)
            self.save(engine, COLD)
            return info | self._cold_duplicates(samples)

        def on_cluster() -> dict[str, Any]:
            samples, source = cold_start_samples(train, config)
            self.store.rewind(COLD, self.cluster().done(COLD))
            self._add_cold(samples, source)
            if config.sft.epochs:
                info = self._sft_on_cluster(START, COLD, COLD, config.sft, config.sft.epochs, 1.0)
            else:
                self.save(self.training_engine(START), COLD)
                info = {"samples": 0, "steps": 0}
            return info | self._cold_duplicates(samples)

        work = on_cluster if config.engine == "verl" else lambda: self._train(COLD, attempt)
        self.stage(COLD, work, COLD)

    def _add_cold(self, samples: Sequence[tuple[Prompt, Completion]], source: str) -> None:
        with self.store.transaction():
            self.store.add_prompts([p for p, _ in samples], COLD, 0)
            for p, c in samples:
                add_sample(self.store, p, c, 1.0, stage=COLD, step=0, iteration=0, source=source)

    def _cold_duplicates(self, samples: Sequence[Any]) -> dict[str, int]:
        (kept,) = self.store.rows("SELECT count(*) FROM samples WHERE stage = ?", COLD)
        return {"duplicates": len(samples) - kept[0]}

    def _sft_set(self, stage: str, replay: float, iteration: int) -> list[tuple[Any, Prompt]]:
        """The SFT set in the store: all of `iteration`'s samples, `replay` of the others."""
        return [
            (row, prompt)
            for row, prompt in self.store.samples()
            if row["iteration"] == iteration
            or replay >= 1
            or rng(self.config.seed, stage, "replay", row["id"]).random() < replay
        ]

    def cluster(self) -> Any:
        """The cluster engine; what this process holds of a model is let go before."""
        from selfemo.training.verl.engine import VerlEngine

        self._release()
        return VerlEngine(self.config, self.store, self.folder, self.reporter, self.stop)

    def _model(self, checkpoint: str) -> str:
        """What another process loads for a checkpoint name: the configured id, or the folder."""
        if checkpoint == START:
            return self.config.model.id
        from selfemo.models.loading import verify_checkpoint

        path = self.folder / "checkpoints" / checkpoint
        verify_checkpoint(path)
        return str(path)

    def _sft_on_cluster(
        self,
        start: str,
        stage: str,
        name: str,
        sft: SftConfig,
        epochs: int,
        replay: float,
        iteration: int = 0,
    ) -> dict[str, Any]:
        """`_sft` by the cluster engine; the result is the checkpoint `name`."""
        chosen = [(p, r["completion"]) for r, p in self._sft_set(stage, replay, iteration)]
        target = self.folder / "checkpoints" / name
        info: dict[str, Any] = self.cluster().sft(
            chosen, self._model(start), stage, sft, epochs, target
        )
        return info

    def _sft(
        self,
        engine: Any,
        state: _TrainingState,
        sft: SftConfig,
        epochs: int,
        replay: float,
        iteration: int = 0,
    ) -> dict[str, Any]:
        """Train on `_sft_set`."""
        config, stage = self.config, state.stage
        chosen = self._sft_set(stage, replay, iteration)
        counts: dict[str, int] = {}
        fitted = {f.prompt.id: f for f in fit_all([p for _, p in chosen], engine, config, counts)}
        items: list[SftItem] = [
            engine.sft_item(
                fitted[p.id].ids, row["completion"], p.conversation_id, sft.label_weight
            )
            for row, p in chosen
            if p.id in fitted
        ]
        if not items:
            raise DataError(
                f"none of the {len(chosen)} samples fits prompt.max_tokens = {config.prompt.max_tokens}; "
                "raise it"
            )
        batches = -(-len(items) // sft.batch_size) * epochs
        with self.reporter.bar(stage, batches) as advance:

            def on_step(step: int, total: int, measures: dict[str, float]) -> None:
                record: dict[str, Any] = finite_means([measures])
                state.watch(step, record)
                with self.store.transaction():
                    self.store.add_metrics(stage, step, record)
                loss = record["loss"]
                advance(1, "loss not finite" if loss is None else f"loss {loss:.3f}")
                state.after(engine, step + 1, total)

            advance(state.step)
            steps = run_sft(
                engine,
                items,
                sft,
                epochs=epochs,
                seed=config.seed,
                on_step=on_step,
                first=state.step,
                scale=state.scale,
            )
        engine.end_stage()
        return {"samples": len(items), "steps": steps, **counts}

    def _begin(self, start: str, optim: OptimConfig) -> Any:
        """The engine at checkpoint `start`, with a fresh optimiser."""
        engine = self.training_engine(start)
        engine.begin_stage(optim)
        return engine

    def _begin_rl(self, start: str) -> Any:
        engine = self._begin(start, self.config.grpo)
        if self.config.grpo.kl_coef:
            engine.set_reference()
        return engine

    def rl(
        self,
        prompts: Sequence[Prompt],
        conversations: Sequence[Conversation],
        held: Sequence[Conversation],
        start: str,
        i: int,
    ) -> str:
        """Step (a) of algorithm 1; returns the checkpoint's name.

        Args:
            held: what a cluster engine tests on between its rounds.
        """
        name = f"iteration-{i}-rl"
        config = self.config

        def attempt(state: _TrainingState) -> dict[str, Any]:
            engine = state.open(lambda: self._begin_rl(start))
            plan = RlPlan.of(config)
            # Sorted out here, not when drawn: the order of draws counts the prompts that were sampled.
            skipped: dict[str, int] = {}
            fits = {f.prompt.id for f in fit_all(prompts, engine, config, skipped)}
            usable = [p for p in prompts if p.id in fits]
            if not usable:
                raise DataError(
                    f"none of the {len(prompts)} training prompts fits prompt.max_tokens = "
                    f"{config.prompt.max_tokens}; raise it"
                )
            with self.reporter.bar(name, plan.rounds) as advance:
                advance(state.step)

                def on_round(round_: int, plan: RlPlan, record: dict[str, Any]) -> None:
                    if "r1" in record:
                        advance(1, f"R1 {record['r1']:.3f} parsed {record['parse_rate']:.0%}")
                    else:
                        advance(1)
                    state.after(engine, round_ + 1, plan.rounds)

                counts: dict[str, Any] = rl_stage(
                    engine,
                    usable,
                    persona_book(conversations),
                    config,
                    self.store,
                    stage=name,
                    iteration=i,
                    first_round=state.step,
                    on_round=on_round,
                    watch=state.watch,
                    scale=state.scale,
                )
            engine.end_stage()
            self.save(engine, name)
            if left_out := len(prompts) - len(usable):
                counts["originals_too_long"] = left_out
            return counts

        def on_cluster() -> dict[str, Any]:
            state = _TrainingState(self, name)
            engine = self.cluster()

            def watch(round_: int, record: dict[str, Any]) -> None:
                if not state.records:  # what earlier processes took, behind the engine's own rewind
                    state.records = [m for m in self.store.metrics() if m["stage"] == name]
                state.watch(round_, record)

            counts: dict[str, Any] = engine.rl(
                prompts,
                [p for c in held for p in conversation_prompts(c, future=False)],
                persona_book(conversations),
                self._model(start),
                name,
                i,
                self.folder / "checkpoints" / name,
                watch=watch,
                after=state.after_elsewhere,
            )
            return counts | state.report()

        work = on_cluster if config.engine == "verl" else lambda: self._train(name, attempt)
        self.stage(name, work, name)
        return name

    def refit(self, after_rl: str, i: int) -> str:
        """Step (b) of algorithm 1; returns the checkpoint's name."""
        config, fly = self.config, self.config.flywheel
        name = f"iteration-{i}"

        def work() -> dict[str, Any]:
            info: dict[str, Any] = cap_emotions(self.store, i, fly.max_emotion_share)
            keep = fly.refit == "none" or not info["used"]
            base = START if fly.refit == "base" and not keep else after_rl
            if keep:
                self._keep(base, name)
                return info | {"refit": "none: the RL policy is kept"}
            sft = config.sft
            if fly.refit_lr is not None:
                sft = sft.model_copy(update={"lr": fly.refit_lr})

            if config.engine == "verl":
                return info | self._sft_on_cluster(
                    base, f"{name}-refit", name, sft, fly.refit_epochs, fly.replay, i
                )

            def attempt(state: _TrainingState) -> dict[str, Any]:
                engine = state.open(lambda: self._begin(base, sft))
                done = self._sft(engine, state, sft, fly.refit_epochs, fly.replay, i)
                self.save(engine, name)
                return done

            return info | self._train(f"{name}-refit", attempt)

        self.stage(f"{name}-refit", work, name)
        return name

    def _keep(self, base: str, name: str) -> None:
        """Have the checkpoint `base` be the checkpoint `name` too."""
        if self.config.engine == "local":
            self.save(self.training_engine(base), name)
            return
        folder = self.folder / "checkpoints"
        staging = folder / f".{name}-copy"
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(folder / base, staging, copy_function=_link)
        shutil.rmtree(folder / name, ignore_errors=True)
        staging.rename(folder / name)


def evaluation_name(checkpoint: str) -> str:
    return f"evaluate-{checkpoint}"


def evolve(
    folder: Path,
    config: Config | None,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> Run:
    """Run or resume algorithm 1 in `folder`; returns the finished, still open run.

    Raises:
        Stopped: `stop` was asked for; what is done is saved, and the run can be resumed.
    """
    run = Run(folder, config, reporter, stop)
    try:
        run._redo_damaged()
        conversations = load_conversations(run.config)
        train = training_conversations(conversations, run.config)
        held = held_out(
            conversations, run.config.data.eval_split, run.config.data.eval_conversations, 0
        )
        originals = original_prompts(train, run.config)
        run.evaluate(held, START)
        run.cold_start(train)
        run.evaluate(held, COLD)
        checkpoint = COLD
        for i in range(1, run.config.flywheel.iterations + 1):
            after_rl = run.rl(originals, train, held, checkpoint, i)
            checkpoint = run.refit(after_rl, i)
            run.evaluate(held, checkpoint)
            if not run.config.save.keep_stage_checkpoints:
                shutil.rmtree(run.folder / "checkpoints" / after_rl, ignore_errors=True)
        run._release()
    except BaseException:
        run.close()
        raise
    return run


BEFORE_SFT = ("data", "evaluation", "model", "prompt")
BEFORE_RL = (*BEFORE_SFT, "seed", "sft")
"""What a run depends on up to the evaluation of the untouched model, and of its cold start; the other
settings are read later."""


def fork(trunk: Path, folder: Path, config: Config, at: str = COLD) -> None:
    """Begin a run in `folder` with what another run has done up to its cold start.

    Checkpoints are hard links where the file system has them. The run's own stages follow by `evolve`.

    Args:
        trunk: a run that has evaluated the checkpoint `at`; for COLD one with flywheel.iterations = 0.
        config: of the new run; equal to the trunk's in the sections BEFORE_RL, or BEFORE_SFT for START.
        at: COLD, or START for the evaluation of the untouched model alone.

    Raises:
        ConfigError: the two differ in more than what comes after `at`.
        StoreError: `folder` holds a run already; the trunk has not come to `at`, or has gone beyond COLD.
    """
    base = load([trunk / CONFIG_FILE])
    sections = BEFORE_RL if at == COLD else BEFORE_SFT
    if differ := [s for s in sections if getattr(base, s) != getattr(config, s)]:
        raise ConfigError(f"{folder}: a {at} with other settings ({', '.join(differ)})")
    if at == COLD and base.flywheel.iterations:
        raise StoreError(
            f"{trunk} goes on behind its cold start; a trunk has flywheel.iterations = 0"
        )
    if (folder / CONFIG_FILE).exists():
        raise StoreError(f"{folder} already holds a run")
    lock = lock_folder(trunk)
    staging = folder.with_name(f".{folder.name}-fork")
    try:
        store = Store(trunk / STORE_FILE)
        try:
            row = store.stage(evaluation_name(at))
            if row is None or row["status"] != "done":
                raise StoreError(f"{trunk} has not evaluated {at!r} yet; resume it first")
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            store.copy_to(staging / STORE_FILE)
        finally:
            store.close()
        if at == COLD:
            shutil.copytree(trunk / "checkpoints", staging / "checkpoints", copy_function=_link)
        else:
            copy = Store(staging / STORE_FILE)
            try:
                copy.keep_evaluation(evaluation_name(START))
            finally:
                copy.close()
        save_config(staging / CONFIG_FILE, config)
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        staging.replace(folder)
    finally:
        lock.close()


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def checkpoints(config: Config) -> list[str]:
    """The names of the evaluated checkpoints, in order."""
    return [START, COLD, *(f"iteration-{i}" for i in range(1, config.flywheel.iterations + 1))]


def scores_of(run: Run) -> dict[str, dict[str, Scores]]:
    """Scores by checkpoint and data set, of the evaluations that are done."""
    labels = {
        r["dataset"]: None for r in run.store.rows("SELECT DISTINCT dataset FROM predictions")
    }
    sets = {c.dataset: c.label_set for c in load_conversations(run.config) if c.dataset in labels}
    return {
        name: score(
            run.store, evaluation_name(name), sets, resamples=run.config.evaluation.resamples
        )
        for name in checkpoints(run.config)
        if (row := run.store.stage(evaluation_name(name))) is not None and row["status"] == "done"
    }


def new_run_folder(base: Path = Path("runs")) -> Path:
    """A fresh folder named by date and time, or with a number behind it."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = base / stamp
    n = 1
    while folder.exists():
        n += 1
        folder = base / f"{stamp}-{n}"
    return folder


def find_checkpoint(model: str) -> str:
    """A model id, a model folder, a run folder (its last checkpoint), or RUN@CHECKPOINT.

    Raises:
        EngineError: the run has no checkpoint (of that name).
    """
    path = Path(model)
    if (named := _run_at(model)) is not None:
        run, wanted = named
        if wanted == START:
            return load([run / CONFIG_FILE]).model.id
        chosen = run / "checkpoints" / wanted
        if not (chosen / "config.json").exists():
            there = sorted(c.parent.name for c in chosen.parent.glob("*/config.json"))
            raise EngineError(
                f"{run} has no checkpoint {wanted!r}; there are: {', '.join([START, *there])}"
            )
        return str(chosen)
    if not (path / CONFIG_FILE).exists():
        return model
    names = [c for c in reversed(checkpoints(load([path / CONFIG_FILE]))) if c != START]
    for name in names:
        if (path / "checkpoints" / name / "config.json").exists():
            return str(path / "checkpoints" / name)
    raise EngineError(f"{path} is a run without a checkpoint yet; resume it first")


def _run_at(model: str) -> tuple[Path, str] | None:
    """Run folder and checkpoint name of RUN@CHECKPOINT."""
    run, _, wanted = model.rpartition("@")
    if run and not Path(model).exists() and (Path(run) / CONFIG_FILE).exists():
        return Path(run), wanted
    return None


def run_of(model: str) -> Path | None:
    """The run that a run folder, RUN@CHECKPOINT, or the folder of a checkpoint in it belongs to."""
    if (named := _run_at(model)) is not None:
        return named[0]
    path = Path(model)
    homes = (path, path.parent.parent) if path.exists() else ()
    return next((f for f in homes if (f / CONFIG_FILE).exists()), None)


def settings_for(
    model: str, sources: Sequence[str], files: Sequence[Path], overrides: Sequence[str]
) -> tuple[Config, str]:
    """Configuration and checkpoint to use a model with on some sources.

    The settings are those of the run that the model comes from, if any, then files, then overrides.
    """
    checkpoint = find_checkpoint(model)
    run = run_of(model)
    own = [] if run is None else [run / CONFIG_FILE]
    config = load([*own, *files], [f"data.sources={json.dumps(list(sources))}", *overrides])
    return config, checkpoint


def save_config(path: Path, config: Config) -> None:
    write_text(path, f"# selfemo {__version__}, resolved\n" + to_toml(config))


def extend_run(folder: Path, overrides: Sequence[str]) -> None:
    """Change a run's settings before it is resumed: only those that stages yet to come read.

    Raises:
        ConfigError: another setting would make what is done and what is to come two experiments.
    """
    saved = folder / CONFIG_FILE
    if not saved.exists():
        raise StoreError(f"{folder} is not a run folder: it has no {CONFIG_FILE}")
    allowed = ("flywheel.iterations", "save.", "guard.", "model.device", "model.threads")
    for text in overrides:
        if not text.startswith(allowed):
            raise ConfigError(
                f"--set {text}: a run that is resumed takes only {', '.join(allowed)}; start a new run "
                "for other settings"
            )
    config = load([saved], overrides)
    save_config(saved, config)
