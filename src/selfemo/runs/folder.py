"""The run folder: configuration, store, checkpoints, and the lock that keeps other processes out.

config.toml         the resolved settings
store.sqlite        prompts, rollouts, samples, predictions, metrics (store.backup.sqlite: a copy)
checkpoints/NAME    models that transformers opens
metrics.jsonl       every step
.lock               held while a process works in the folder
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from selfemo import __version__
from selfemo.config import Config, load, to_toml
from selfemo.errors import ConfigError, DamagedStoreError, EngineError, StoreError
from selfemo.files import lock_folder, write_text
from selfemo.models.references import CHECKPOINTS, verify_checkpoint
from selfemo.models.references import COLD as COLD
from selfemo.models.references import CONFIG_FILE as CONFIG_FILE
from selfemo.models.references import START as START
from selfemo.progress import Quiet, Reporter, StopRequest
from selfemo.runs.store import BACKUP_FILE, STORE_FILE, Store
from selfemo.training import check_engine, states_folder

METRICS_FILE = "metrics.jsonl"
NO_REFIT = "none: the RL policy is kept"
"""In the record of a refit, under "refit": the iteration's checkpoint is a copy of the policy after RL."""
COPY_OF = "copy_of"
"""In the record of a stage that wrote no weights of its own: the checkpoint that its own is a copy of."""
KEEP = "keep-"
"""Begins the name of a stage that chooses between two checkpoints (runs/rollback.py)."""
_RESUMED = ("flywheel.iterations", "save.", "store.", "guard.", "model.device", "model.threads")
"""Settings that a resumed run may change, or the beginnings of their names."""


def must_be_new(path: Path) -> None:
    """Raises StoreError where a folder holds a run already."""
    if (path / CONFIG_FILE).exists():
        raise StoreError(f"{path} already holds a run; resume it (--resume), or give another --out")


class RunFolder:
    """An open and locked run folder; a context manager that closes it.

    Args:
        config: the configuration of a new run; None resumes the run in the folder.
        stop: read after each step and before each stage.
        overrides: section.key=value, for a resumed run: settings that only later stages read.

    Raises:
        StoreError: the folder is not a run, holds another run, or is in use by another process.
        ConfigError: an override of a setting that earlier stages have read.
    """

    def __init__(
        self,
        path: Path,
        config: Config | None = None,
        reporter: Reporter | None = None,
        stop: StopRequest | None = None,
        overrides: Sequence[str] = (),
    ):
        self.path, self.reporter = path, reporter or Quiet()
        self.stop = stop or StopRequest()
        self.announced: Sequence[str] = ()  # stages that are numbered when they begin
        saved = path / CONFIG_FILE
        if config is None and not saved.exists():
            raise StoreError(f"{path} is not a run folder: it has no {CONFIG_FILE}")
        if config is not None:
            check_engine(config.engine)
        if config is not None:
            must_be_new(path)
        with contextlib.ExitStack() as opened:
            opened.enter_context(lock_folder(path))
            self.config = config or _resumed(saved, overrides)
            self._remove_unfinished()
            self.store = self._open_store(resuming=config is None)
            opened.callback(self.store.close)
            if config is not None or overrides:
                save_config(saved, self.config)
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def checkpoint(self, name: str) -> Path:
        return self.path / CHECKPOINTS / name

    def weights(self, name: str) -> str:
        """The model of a checkpoint's name: model.id for START, else its folder (EngineError: damaged)."""
        if name == START:
            return self.config.model.id
        verify_checkpoint(folder := self.checkpoint(name))
        return str(folder)

    def copy_checkpoint(self, name: str, to: str) -> None:
        """Give a checkpoint a second name, by hard links if the file system has them."""
        staging = self.checkpoint(f".{to}-copy")
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(self.checkpoint(name), staging, copy_function=_link)
        shutil.rmtree(self.checkpoint(to), ignore_errors=True)
        staging.rename(self.checkpoint(to))

    def copied(self) -> dict[str, str]:
        """`copied_checkpoints` of this run."""
        return copied_checkpoints(self.store)

    def evaluated(self, checkpoint: str) -> bool:
        return is_evaluated(self.store, checkpoint)

    def take_over_scores(self, evaluated: str, to: str) -> dict[str, Any]:
        """Give a checkpoint the predictions of another one; returns the record of its evaluation."""
        row = self.store.stage(evaluation_name(evaluated))
        assert row is not None
        self.store.copy_predictions(evaluation_name(evaluated), evaluation_name(to))
        return {**json.loads(row["info"]), "taken_from": evaluated}

    def remove_checkpoint(self, name: str) -> None:
        shutil.rmtree(self.checkpoint(name), ignore_errors=True)

    def stage(
        self, name: str, work: Callable[[], dict[str, Any]], checkpoint: str | None = None
    ) -> dict[str, Any]:
        """Do a stage unless it is done; returns its record."""
        row = self.store.stage(name)
        states = states_folder(self.path, name)
        if row is not None and row["status"] == "done":
            shutil.rmtree(states, ignore_errors=True)
            return dict(json.loads(row["info"]))
        self.stop.check()
        if name in self.announced:
            self.reporter.say(f"stage {self.announced.index(name) + 1} of {len(self.announced)}: {name}")
        started, info = time.monotonic(), work()
        spent = time.monotonic() - started
        self.store.set_stage(name, "done", checkpoint=checkpoint, info=info, seconds=spent)
        # Only now: a process killed in between would find neither a saved state nor a finished stage.
        shutil.rmtree(states, ignore_errors=True)
        self.store.backup(self.path / BACKUP_FILE)
        self.store.write_metrics(self.path / METRICS_FILE)
        return info

    def _remove_unfinished(self) -> None:
        """Delete what a killed process was writing: parts of checkpoints and of training states."""
        folder = self.path / CHECKPOINTS
        beside = self.path.glob("*.tmp*")
        for path in [*beside, *folder.glob(".*"), *folder.glob(".*-partial/*.tmp")]:
            if path.is_file():
                path.unlink(missing_ok=True)
            elif not path.name.endswith("-partial"):
                shutil.rmtree(path, ignore_errors=True)

    def _open_store(self, *, resuming: bool) -> Store:
        """The run's store; if it is damaged or missing, its copy after the last finished stage."""
        path, copy = self.path / STORE_FILE, self.path / BACKUP_FILE
        mode = self.config.store.journal_mode
        try:
            if resuming and not path.exists():
                raise DamagedStoreError(f"{path}: is missing")
            return Store(path, journal=mode)
        except DamagedStoreError as e:
            if not copy.exists():
                raise DamagedStoreError(
                    f"{e}; there is no copy of it yet, so start a new run (the files of this one stay)"
                ) from e
            Store(copy, read_only=True).close()
            aside = time.strftime("damaged-%Y%m%d-%H%M%S")
            for part in ("", "-wal", "-shm", "-journal"):
                if (file := path.with_name(path.name + part)).exists():
                    file.rename(file.with_name(f"{aside}-{file.name}"))
            staging = path.with_name(path.name + ".tmp")
            shutil.copyfile(copy, staging)
            staging.replace(path)
            self.reporter.say(
                f"{e}; it is put aside as {aside}-{STORE_FILE}, and the run goes on from {copy.name}, the "
                "copy after the last finished stage"
            )
            return Store(path, journal=mode)

    def redo_damaged(self) -> None:
        """Mark the last finished training stage to be done again if its checkpoint is damaged."""
        done = self.store.trained_stages()
        if not done:
            return
        stage, checkpoint = done[-1]
        try:
            verify_checkpoint(self.checkpoint(checkpoint))
        except EngineError as e:
            self.reporter.say(f"{e}; stage {stage} is done again")
            # So are the stages begun after it, which may depend on its rows.
            for begun in self.store.running_stages():
                self.store.forget(begun)
            source = self.copied().get(checkpoint, "")
            self.store.set_stage(stage, "running")
            if stage == kept_name(checkpoint):
                if not source.startswith(f"{checkpoint}-") or self._whole(source):
                    return  # it is copied again
                # Hard links are damaged together, and what is not kept was removed.
                stage = refit_name(checkpoint)
                self.store.set_stage(stage, "running")
            before = policy_name(stage.removesuffix("-refit"))
            if self.store.stage(before) and not self._whole(before):
                self.store.set_stage(before, "running")  # the refit needs its checkpoint

    def _whole(self, checkpoint: str) -> bool:
        try:
            verify_checkpoint(self.checkpoint(checkpoint))
        except EngineError:
            return False
        return True


def _resumed(saved: Path, overrides: Sequence[str]) -> Config:
    """The configuration of a resumed run."""
    if wrong := [text for text in overrides if not text.startswith(_RESUMED)]:
        told = f"a run that is resumed takes only {', '.join(_RESUMED)}; start a new run for other settings"
        raise ConfigError(f"--set {wrong[0]}: {told}")
    return load([saved], overrides)


def save_config(path: Path, config: Config) -> None:
    write_text(path, f"# selfemo {__version__}, resolved\n" + to_toml(config))


def evaluation_name(checkpoint: str) -> str:
    """The stage that evaluates a checkpoint."""
    return f"evaluate-{checkpoint}"


def policy_name(iteration: str) -> str:
    """The policy after RL of the checkpoint `iteration-i`."""
    return f"{iteration}-rl"


def refit_name(iteration: str) -> str:
    """The refit stage of the checkpoint `iteration-i`, and its checkpoint where it can be rolled back."""
    return f"{iteration}-refit"


def kept_name(checkpoint: str) -> str:
    """The stage that chooses between a checkpoint and the one before it (runs/rollback.py)."""
    return f"{KEEP}{checkpoint}"


def rolls_back(config: Config) -> bool:
    """Whether stages that end worse are rolled back."""
    return config.flywheel.if_worse == "rollback"


def checkpoints(config: Config) -> list[str]:
    """The names of the evaluated checkpoints, in order: of each iteration the policy after RL, then its own.

    Where stages can be rolled back, the refit stands between them, unless there is none. Runs of earlier
    versions have no evaluation of the first.
    """
    parts = [START, COLD]
    for i in (f"iteration-{i}" for i in range(1, config.flywheel.iterations + 1)):
        refitted = [refit_name(i)] if rolls_back(config) and config.flywheel.refit != "none" else []
        parts += [policy_name(i), *refitted, i]
    return parts


def stage_names(config: Config) -> list[str]:
    """The stages of a run of `selfemo evolve` in order; some copy what another one did."""
    names = [evaluation_name(START), COLD, evaluation_name(COLD)]
    judged = rolls_back(config)
    for i in range(1, config.flywheel.iterations + 1):
        name = f"iteration-{i}"
        policy, refitted = policy_name(name), refit_name(name)
        names += [policy, evaluation_name(policy)]
        names += [kept_name(policy)] if judged else []
        names += [refitted]
        names += [evaluation_name(refitted), kept_name(name)] if judged else []
        names.append(evaluation_name(name))
    return names


def is_evaluated(store: Store, checkpoint: str) -> bool:
    """Whether a run's evaluation of a checkpoint is finished."""
    row = store.stage(evaluation_name(checkpoint))
    return row is not None and row["status"] == "done"


def copied_checkpoints(store: Store) -> dict[str, str]:
    """The checkpoints of a run that are copies of another one (the policy after RL, or what was kept), each
    with that one's name."""
    found: dict[str, str] = {}
    for r in store.stages():
        info = json.loads(r["info"])
        if r["checkpoint"] and (of := info.get(COPY_OF)):
            found[r["checkpoint"]] = of
        elif info.get("refit") == NO_REFIT:
            name = r["name"].removesuffix("-refit")
            found[name] = policy_name(name)
    return found


def new_run_folder(base: Path = Path("runs")) -> Path:
    """An unused folder name of date and time, followed by a number if needed."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = itertools.chain([stamp], (f"{stamp}-{n}" for n in itertools.count(2)))
    return next(base / name for name in names if not (base / name).exists())


BEFORE_SFT = ("data", "evaluation", "model", "prompt")
BEFORE_RL = (*BEFORE_SFT, "seed", "sft")
"""Sections that a run reads before the evaluation of the untouched model, and of the cold start, is done."""


def fork(trunk: Path, path: Path, config: Config, at: str = COLD) -> None:
    """Begin a run in `path` with a copy of another run up to its cold start; `evolve` continues it.

    Checkpoints are hard links if the file system has them.

    Args:
        trunk: a run that has evaluated the checkpoint `at`; for COLD one with flywheel.iterations = 0.
        config: of the new run; equal to the trunk's in the sections BEFORE_RL, or BEFORE_SFT for START.
        at: COLD, or START for the evaluation of the untouched model alone.

    Raises:
        ConfigError: the two differ in those sections.
        StoreError: `path` already holds a run; the trunk has not evaluated `at`, or goes beyond COLD.
    """
    base = load([trunk / CONFIG_FILE])
    sections = BEFORE_RL if at == COLD else BEFORE_SFT
    if differ := [s for s in sections if getattr(base, s) != getattr(config, s)]:
        raise ConfigError(f"{path}: a {at} with other settings ({', '.join(differ)})")
    if at == COLD and base.flywheel.iterations:
        raise StoreError(f"{trunk} goes on after its cold start; a trunk has flywheel.iterations = 0")
    if (path / CONFIG_FILE).exists():
        raise StoreError(f"{path} already holds a run")
    with lock_folder(trunk):
        staging = path.with_name(f".{path.name}-fork")
        with Store(trunk / STORE_FILE) as store:
            row = store.stage(evaluation_name(at))
            if row is None or row["status"] != "done":
                raise StoreError(f"{trunk} has not evaluated {at!r} yet; resume it first")
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            store.copy_to(staging / STORE_FILE)
        if at == COLD:
            shutil.copytree(trunk / CHECKPOINTS, staging / CHECKPOINTS, copy_function=_link)
        else:
            with Store(staging / STORE_FILE) as copy:
                copy.keep_evaluation(evaluation_name(START))
        save_config(staging / CONFIG_FILE, config)
        if path.exists() and not any(path.iterdir()):
            path.rmdir()
        staging.replace(path)


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
