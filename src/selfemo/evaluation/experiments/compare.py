"""The comparison of finished arms: over seeds (paired by seed) and within a seed (paired by prompt)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfemo.evaluation.experiments.arms import Arm
from selfemo.evaluation.experiments.statistics import over_seeds, paired_over_seeds
from selfemo.evaluation.predictions import calibration_of, compare
from selfemo.evaluation.summary import MEASURES, rl_rounds
from selfemo.method.types import UNION, LabelSet
from selfemo.runs.folder import evaluation_name
from selfemo.runs.store import STORE_FILE, PredictionRow, Store
from selfemo.stages.flywheel import labels_record

AVERAGE = "average"
"""The name of the plain average over data sets in scores."""
SIGNAL = {
    "r1_flat": "one R1", "r2_flat": "one R2", "silent": "no advantage", "pass_rate": "passed the gate",
    "parse_rate": "parsed", "r1": "R1", "r2": "R2", "sampling_entropy": "entropy",
}  # fmt: skip
"""Metrics of a round that say how much RL can learn from it, with their names in tables."""
FIT = {"nll": "NLL", "temperature": "T", "nll_tempered": "NLL at T"}
"""Measures of calibration in an ablation, with their names in tables."""


@dataclass(frozen=True)
class FinishedArm:
    """The finished runs of one arm, by seed.

    Attributes:
        folders: the runs, each as ARM/seed-N.
        rows: the stored predictions of the last `checkpoint`.
        rounds: the metrics of the RL rounds; empty for an arm without RL.
        labels: how often RL drew each original prompt (`Store.labels_drawn`).
    """

    arm: Arm
    checkpoint: str
    folders: Sequence[str]
    summaries: Sequence[Mapping[str, Any]]
    rows: Sequence[Sequence[PredictionRow]]
    rounds: Sequence[Sequence[Mapping[str, Any]]]
    labels: Sequence[Counter[tuple[str, str]]]

    @staticmethod
    def read(
        out: Path, arm: Arm, checkpoint: str, folders: Sequence[str], summaries: Sequence[Mapping[str, Any]]
    ) -> FinishedArm:
        rows, rounds, labels = [], [], []
        for folder in folders:
            with Store(out / folder / STORE_FILE, read_only=True) as store:
                rows.append(store.predictions(evaluation_name(checkpoint)))
                rounds.append(rl_rounds(store))
                labels.append(store.labels_drawn())
        return FinishedArm(arm, checkpoint, folders, summaries, rows, rounds, labels)

    @property
    def rl(self) -> bool:
        return any(self.rounds)

    def scores(self) -> list[dict[str, dict[str, list[Any]]]]:
        """By seed: MEASURES with their intervals, by data set, UNION and AVERAGE (without intervals)."""
        by_seed = []
        for summary in self.summaries:
            found = {d: {m: s[m] for m in MEASURES} for d, s in summary["scores"][self.checkpoint].items()}
            single = [s for d, s in found.items() if d != UNION]
            if len(single) > 1:
                mean = {m: sum(s[m][0] for s in single) / len(single) for m in MEASURES}
                found[AVERAGE] = {m: [v, None, None] for m, v in mean.items()}
            by_seed.append(found)
        return by_seed

    def shares(self, which: str) -> dict[str, dict[str, float]]:
        """Share of each emotion by data set, the mean over seeds; `which`: predicted_share or gold_share."""
        by = [s["scores"][self.checkpoint] for s in self.summaries]
        return {
            d: {e: sum(one[d][which][e] for one in by) / len(by) for e in by[0][d][which]}
            for d in by[0]
            if d != UNION
        }

    def fit(self, labels: Mapping[str, LabelSet]) -> dict[str, Any]:
        """FIT by data set, means over seeds; None where nothing parsed."""
        result: dict[str, Any] = {}
        for d in labels:
            found = [calibration_of([r for r in rows if r["dataset"] == d], labels) for rows in self.rows]
            known = [c for c in found if c["n"]]
            result[d] = {k: sum(c[k] for c in known) / len(known) if known else None for k in FIT}
        return result

    def signal(self) -> dict[str, float]:
        """SIGNAL, each a mean over the rounds of all seeds, weighted by their groups."""
        rounds = [m for seed in self.rounds for m in seed]
        found = {}
        for key in SIGNAL:
            known = [(m[key], m["prompts"]) for m in rounds if m.get(key) is not None]
            if groups := sum(n for _, n in known):
                found[key] = sum(v * n for v, n in known) / groups
        return found


def same_labels(mine: FinishedArm, other: FinishedArm) -> list[dict[str, Any]]:
    """By seed, whether the RL of two arms drew the same labels: as multisets of (prompt, gold label).

    `equal`; `common`, the draws that both have; `draws`, all of `mine` and of `other`.
    """
    return [
        {"arm": other.arm.name, "equal": a == b, "common": (a & b).total(), "draws": [a.total(), b.total()]}
        for a, b in zip(mine.labels, other.labels, strict=True)
    ]


def same_labels_line(arm: str, run: Mapping[str, Any]) -> str:
    """One line on a run's record with `same_labels`."""
    found = run["same_labels"]
    are, (mine, theirs) = "the same" if found["equal"] else "NOT the same", found["draws"]
    return (
        f"{arm}, seed {run['seed']}: {are} labels as {found['arm']} ({mine} draws against {theirs}, "
        f"{found['common']} in common)"
    )


def compared(mine: FinishedArm, full: FinishedArm | None, labels: Mapping[str, LabelSet]) -> dict[str, Any]:
    """The record of an arm in ablation.json; `full` is None for the full arm itself."""
    scores = mine.scores()
    values = {d: {m: [one[d][m][0] for one in scores] for m in MEASURES} for d in scores[0]}
    runs: list[dict[str, Any]] = [
        {"seed": s, "folder": folder, "checkpoint": mine.checkpoint, "scores": scores[s]}
        for s, folder in enumerate(mine.folders)
    ]
    record: dict[str, Any] = {
        "name": mine.arm.name,
        "paper": mine.arm.paper,
        "what": mine.arm.what,
        "overrides": list(mine.arm.overrides),
        "rl": mine.rl,
        "scores": {d: {m: over_seeds(v) for m, v in by.items()} for d, by in values.items()},
        "predicted_share": mine.shares("predicted_share"),
        "fit": mine.fit(labels),
        "runs": runs,
    }
    if mine.rl:
        record["signal"] = mine.signal()
        for run, drawn in zip(runs, mine.labels, strict=True):
            run["labels"] = labels_record(drawn)
    for run, summary in zip(runs, mine.summaries, strict=True):
        if said := summary.get("choices_said"):
            run["choices"] = said
    if full is not None:
        for run, before, after in zip(runs, full.rows, mine.rows, strict=True):
            run["against_full"] = {d: c.as_dict() for d, c in compare(before, after, labels).items()}
        theirs = full.scores()
        record["against_full"] = {
            d: {m: paired_over_seeds([one[d][m][0] for one in theirs], v) for m, v in by.items()}
            for d, by in values.items()
        }
    return record
