"""The ablation of table 2: `selfemo ablate`.

All arms have the same seeds, the same budget of prompts and the same held-out conversations. Each is compared
with the full arm (compare.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfemo import __version__
from selfemo.config import Config, load
from selfemo.evaluation.experiments.arms import Arm, arms_for, config_of
from selfemo.evaluation.experiments.compare import FinishedArm, compared, same_labels, same_labels_line
from selfemo.evaluation.experiments.runs import Keep, PlannedRun, complete_run, complete_side_by_side
from selfemo.evaluation.predictions import label_sets
from selfemo.evaluation.summary import SUMMARY_FILE, Draw
from selfemo.files import lock_folder, write_json
from selfemo.progress import Pace, Reporter, StopRequest, duration
from selfemo.runs.folder import BEFORE_RL, BEFORE_SFT, COLD, START, checkpoints, rolls_back
from selfemo.runs.inputs import load_conversations
from selfemo.runs.rollback import check_settings

TRUNK = "trunk"
"""Folder of the cold starts that arms share."""
_SHARED = {COLD: BEFORE_RL, START: BEFORE_SFT}

Present = Callable[
    [Path, Mapping[str, Any], Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]], Sequence[str]
]
"""present(out, result, metrics of the RL rounds by arm and seed) writes tables and figures and returns the
names of the figures (`reports.ablation.write_tables`)."""


@dataclass(frozen=True)
class _Plan:
    """All runs of an ablation; made before the first run, so that a mistake shows at once."""

    out: Path
    keep: Keep
    draw: Draw | None
    arms: Sequence[Arm]
    configs: Mapping[tuple[str, int], Config]
    trunks: Sequence[PlannedRun]

    def run(self, arm: Arm, seed: int) -> PlannedRun:
        """A run of an arm; it begins with the stages that it shares with the trunk of its seed."""
        config, trunk = self.configs[arm.name, seed], self.trunks[seed]
        folder = self.out / arm.name / f"seed-{seed}"
        for at, sections in _SHARED.items():
            if all(getattr(config, s) == getattr(trunk.config, s) for s in sections):
                return PlannedRun(folder, config, self.keep, trunk.folder, at, self.draw)
        return PlannedRun(folder, config, self.keep, draw=self.draw)

    def side_by_side(self, jobs: int, reporter: Reporter, stop: StopRequest | None) -> None:
        """Complete all runs, `jobs` at a time."""
        rest = [self.run(a, s) for s in range(len(self.trunks)) for a in self.arms if not a.checkpoint]
        # A run that would take over the untouched model's scores alone does not wait for a trunk.
        first = [replace(p, trunk=None) for p in (*self.trunks, *(p for p in rest if p.at == START))]
        complete_side_by_side(first, jobs, reporter, stop)
        complete_side_by_side(rest, jobs, reporter, stop)

    def complete(self, reporter: Reporter, stop: StopRequest | None) -> dict[tuple[str, int], dict[str, Any]]:
        """The summaries of all runs by arm and seed; what is not finished is run."""
        summaries: dict[tuple[str, int], dict[str, Any]] = {}
        arms = [a for a in self.arms if not a.checkpoint]
        runs = {(a.name, s): self.run(a, s) for s in range(len(self.trunks)) for a in arms}
        to_do = {k for k, r in runs.items() if not (r.folder / SUMMARY_FILE).exists()}
        pace = Pace(len(to_do))
        for s, trunk in enumerate(self.trunks):  # seed by seed: arms can be compared early
            reporter.say(f"cold start of seed {s}")
            shared = complete_run(trunk, reporter, stop)
            for a in self.arms:
                left = f", about {duration(rest)} left" if (rest := pace.left()) else ""
                reporter.say(f"{a.name}, seed {s} (run {len(summaries) + 1} of {len(self.configs)}{left})")
                own = runs.get((a.name, s))
                summaries[a.name, s] = complete_run(own, reporter, stop) if own else shared
                pace.advance((a.name, s) in to_do)
        return summaries

    def finished(self, arm: Arm, summaries: Mapping[tuple[str, int], Mapping[str, Any]]) -> FinishedArm:
        last = arm.checkpoint or checkpoints(self.configs[arm.name, 0])[-1]
        home, seeds = TRUNK if arm.checkpoint else arm.name, range(len(self.trunks))
        folders = [f"{home}/seed-{s}" for s in seeds]
        return FinishedArm.read(self.out, arm, last, folders, [summaries[arm.name, s] for s in seeds])


def ablate(
    files: Sequence[Path],
    overrides: Sequence[str],
    out: Path,
    seeds: int,
    reporter: Reporter,
    *,
    stop: StopRequest | None = None,
    keep: Keep = "last",
    only: Sequence[str] = (),
    jobs: int = 1,
    draw: Draw | None = None,
    present: Present | None = None,
) -> dict[str, Any]:
    """Run all arms over the seeds 0 to `seeds` - 1, compare them, and write ablation.json.

    Runs are kept in OUT/ARM/seed-N. A finished run is not run again; a stopped run goes on. The arms of a
    seed that begin with the same cold start share it: it is trained once, in OUT/trunk/seed-N. The untouched
    model, which no seed changes, is evaluated once.

    Args:
        only: arms to run besides the full one, shipped ones by name or TOML files; empty for table 2.
        jobs: how many runs go on at a time, each in its own process.

    Raises:
        SelfEmoError: one of several `jobs` failed; the others are finished.
        ConfigError: the configuration has no self-play or no lambda to take away, or an arm is unknown.
        StoreError: the folder holds runs with other settings.
        Stopped: `stop` was asked for; the same call goes on.
    """
    base = load(files, overrides)
    arms = arms_for(base, only)
    said = reporter.say
    configs = {(a.name, s): config_of(a, files, overrides, s, said) for a in arms for s in range(seeds)}
    for config in configs.values():
        if rolls_back(config):
            check_settings(config)
    trunks = []
    for s in range(seeds):
        config = load(files, [*overrides, f"seed={s}", "flywheel.iterations=0"])
        # No seed changes the untouched model: its evaluation is taken over from the first trunk.
        untouched = out / TRUNK / "seed-0" if s else None
        trunks.append(PlannedRun(out / TRUNK / f"seed-{s}", config, trunk=untouched, at=START, draw=draw))
    plan = _Plan(out, keep, draw, arms, configs, trunks)
    labels = label_sets(load_conversations(base.data))
    with lock_folder(out):
        if jobs > 1:
            plan.side_by_side(jobs, reporter, stop)
        summaries = plan.complete(reporter, stop)
        full, *others = finished = [plan.finished(a, summaries) for a in arms]
        records = [compared(full, None, labels), *(compared(a, full, labels) for a in others)]
        _add_same_labels(finished, records, said)
        result: dict[str, Any] = {
            "selfemo": __version__,
            "configs": [str(f) for f in files],
            "overrides": list(overrides),
            "prompts": base.flywheel.prompts * base.flywheel.iterations,
            "split": base.data.evaluated_on,
            "checkpoint": full.checkpoint,
            "seeds": seeds,
            "constants": full.summaries[0].get("constants", {}),
            "gold_share": replace(full, summaries=full.summaries[:1]).shares("gold_share"),
            "arms": records,
        }
        rounds = {a.arm.name: a.rounds for a in (full, *others) if a.rl}
        result["figures"] = list(present(out, result, rounds)) if present else []
        write_json(out / "ablation.json", result)
    return result


def _add_same_labels(
    arms: Sequence[FinishedArm], records: Sequence[dict[str, Any]], say: Callable[[str], None]
) -> None:
    """Add to the runs of an arm with `same_labels_as` whether their RL drew the labels of that arm's."""
    by_name = {a.arm.name: a for a in arms}
    for mine, record in zip(arms, records, strict=True):
        if not (name := mine.arm.same_labels_as):
            continue
        if name not in by_name:
            say(f"{mine.arm.name}: the labels that it drew are not compared; add --arm {name} for that")
            continue
        for run, found in zip(record["runs"], same_labels(mine, by_name[name]), strict=True):
            run["same_labels"] = found
            say(same_labels_line(mine.arm.name, run))
