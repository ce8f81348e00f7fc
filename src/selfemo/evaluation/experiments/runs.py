"""Runs of an experiment: each is begun, resumed, or read where it is finished."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfemo.config import Config, load
from selfemo.errors import StoreError
from selfemo.evaluation.changes import belief_changes
from selfemo.evaluation.experiments.arms import flat
from selfemo.evaluation.parallel import Job, side_by_side
from selfemo.evaluation.predictions import evaluate_checkpoint
from selfemo.evaluation.summary import Draw, finish, read_summary
from selfemo.progress import Quiet, Reporter, StopRequest
from selfemo.runs.evolve import evolve
from selfemo.runs.folder import COLD, CONFIG_FILE, checkpoints, fork

Keep = Literal["all", "last", "none"]
KEPT: tuple[Keep, ...] = ("all", "last", "none")
_MAY_DIFFER = ("model.device", "model.threads", "save", "guard")


def _same_settings(folder: Path, config: Config) -> None:
    """Raise StoreError where the run in a folder has other settings, apart from those that may differ."""
    saved, wanted = (flat(c.model_dump(mode="json")) for c in (load([folder / CONFIG_FILE]), config))
    other = (k for k in sorted(saved.keys() | wanted.keys()) if saved.get(k) != wanted.get(k))
    if differ := ", ".join(k for k in other if not k.startswith(_MAY_DIFFER)):
        raise StoreError(f"{folder} holds a run with other settings ({differ}); give another --out")


@dataclass(frozen=True)
class PlannedRun:
    """A run that an experiment needs.

    Attributes:
        keep: the checkpoints that stay once it is finished.
        trunk, at: it begins with the stages of the run `trunk`, up to checkpoint `at` (`fork`).
    """

    folder: Path
    config: Config
    keep: Keep = "all"
    trunk: Path | None = None
    at: str = COLD
    draw: Draw | None = None

    def fork(self) -> None:
        """Take over the stages of the trunk, unless the run has begun."""
        if self.trunk is not None and not (self.folder / CONFIG_FILE).exists():
            fork(self.trunk, self.folder, self.config, self.at)


def complete_run(planned: PlannedRun, reporter: Reporter, stop: StopRequest | None = None) -> dict[str, Any]:
    """Begin or resume a run, unless it is finished, and return its summary.

    Raises:
        StoreError: the folder holds a run with other settings.
        Stopped: `stop` was asked for.
    """
    folder, config = planned.folder, planned.config
    if (folder / CONFIG_FILE).exists():
        _same_settings(folder, config)
    planned.fork()
    summary = read_summary(folder, reporter.say)
    if summary is None:
        new = None if (folder / CONFIG_FILE).exists() else config
        with evolve(folder, new, evaluate_checkpoint, reporter, stop, compare=belief_changes) as run:
            summary = finish(run, planned.draw)
    last = checkpoints(config)[-1]
    for path in (folder / "checkpoints").glob("*"):
        if planned.keep == "none" or (planned.keep == "last" and path.name != last):
            shutil.rmtree(path)
    return summary


def complete_side_by_side(
    planned: Sequence[PlannedRun], at_once: int, reporter: Reporter, stop: StopRequest | None
) -> None:
    """Complete the runs that are not finished, `at_once` at a time, each in its own process."""
    left = [p for p in planned if read_summary(p.folder, Quiet().say) is None]
    for p in left:  # one after the other: a trunk is locked while it is copied
        p.fork()
    jobs = [Job("/".join(p.folder.parts[-2:]), complete_run, (p,)) for p in left]
    side_by_side(jobs, at_once, reporter, stop)
