"""Tables of baselines: one job, and systems side by side with paired differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfemo.errors import DataError, StoreError
from selfemo.evaluation import metrics, predictions
from selfemo.evaluation.constants import MAJORITY
from selfemo.evaluation.jobs import SCORES_FILE, seed_folders
from selfemo.evaluation.rendering import cell
from selfemo.method.types import UNION, LabelSet, label_set_of
from selfemo.runs.folder import CONFIG_FILE
from selfemo.runs.store import STORE_FILE, Store

_SHOWN = {
    "weighted_f1": "weighted F1", "accuracy": "accuracy", "macro_f1": "macro F1", "mean_r1": "mean R1",
}  # fmt: skip
HEADER = [
    "system", "data", "n", "seeds", "weighted F1", "sd", "accuracy", "macro F1", "NLL at T", "difference",
    "p",
]  # fmt: skip


def job_table(found: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """(title, header, rows) of what `run_baseline` returns."""
    rows = []
    for d, s in found["scores"].items():
        constant = found["constants"][d][MAJORITY]
        for m, name in _SHOWN.items():
            value = metrics.Interval(*s[m])
            rows.append([d, name, str(value), cell(s["sd"][m]), cell(constant[m][0])])
        rows.append([d, "NLL at T", cell(s["calibration"]["nll_tempered"]), "-", "-"])
    title = f"{found['model']}, {found['split']}, 95% intervals by conversation"
    return title, ["data", "measure", "value", "sd over seeds", "majority"], rows


def baseline_table(folders: Sequence[Path], against: Path | None) -> tuple[list[str], list[list[str]]]:
    """Header and rows: systems side by side on the turns that all of them read, by data set.

    Scores are means over seeds, in per cent, with 95% intervals by conversation; the difference in weighted
    F1 from `against` is that of the means, with its interval and the p-value of `metrics.paired_measures`.

    Args:
        folders: of baselines, of `selfemo evaluate --out`, or runs.

    Raises:
        StoreError: a folder holds no predictions.
        DataError: two systems have no turn in common, or other gold labels.
    """
    named = list(dict.fromkeys([*folders, *([against] if against else [])]))
    systems = {f: _System(f) for f in named}
    rows = []
    for d in dict.fromkeys(d for s in systems.values() for d in s.labels):
        there = {f: s for f, s in systems.items() if d in s.labels}
        shared = set.intersection(*(s.prompts(d) for s in there.values()))
        if not shared:
            raise DataError(
                f"{d}: no turn was read by all of {', '.join(map(str, there))}; score them on the same split "
                "and half (--set data.eval_half)"
            )
        counted_by = {f: s.outcomes(d, shared) for f, s in there.items()}
        for f, system in there.items():
            other = counted_by.get(against) if against not in (None, f) else None
            rows.append(_row(system, d, counted_by[f], shared, other))
    return HEADER, rows


class _System:
    """The stored predictions of one system, by seed."""

    def __init__(self, folder: Path):
        from selfemo.evaluation.baseline_jobs import seeds_of

        self.name, self.labels = _described(folder)
        self.by_seed = [rows for _, rows in seeds_of(folder)]

    def rows(self, dataset: str, shared: set[str]) -> list[predictions.Rows]:
        return [
            [r for r in rows if r["dataset"] == dataset and r["prompt"] in shared] for rows in self.by_seed
        ]

    def prompts(self, dataset: str) -> set[str]:
        return set.intersection(
            *({r["prompt"] for r in rows if r["dataset"] == dataset} for rows in self.by_seed)
        )

    def outcomes(self, dataset: str, shared: set[str]) -> list[metrics.Outcomes]:
        """Of each seed, with the conversations in one order."""
        labels = {dataset: self.labels[dataset]}
        ordered = (sorted(rows, key=lambda r: r["prompt"]) for rows in self.rows(dataset, shared))
        return [predictions.outcomes(rows, labels)[dataset] for rows in ordered]


def _described(folder: Path) -> tuple[str, dict[str, LabelSet]]:
    """The name of a system, and the label set of each data set that it was scored on."""
    if (folder / CONFIG_FILE).exists():
        with Store(folder / STORE_FILE, read_only=True) as store:
            return folder.name, store.label_sets()
    inside = [f for _, f in seed_folders(folder)]
    try:
        held, scores = (
            json.loads((f / SCORES_FILE).read_text(encoding="utf-8"))
            for f in (folder, inside[0] if inside else folder)
        )
        sets = {d: s["confusion"]["labels"] for d, s in scores["scores"].items() if d != UNION}
        return held["model"], {d: label_set_of(labels) for d, labels in sets.items()}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StoreError(
            f"{folder}: holds no scores ({e!r}); it is no finished folder of `selfemo baseline` or "
            "`selfemo evaluate --out`, nor a run"
        ) from None


def _row(
    system: _System,
    dataset: str,
    mine: Sequence[metrics.Outcomes],
    shared: set[str],
    other: Sequence[metrics.Outcomes] | None,
) -> list[str]:
    found = metrics.average_intervals(mine, of=[0] * len(mine))
    f1 = [float(o.measures()["weighted_f1"]) for o in mine]
    nll = [
        predictions.calibration_of(rows, system.labels)["nll_tempered"]
        for rows in system.rows(dataset, shared)
    ]
    difference, p = "-", "-"
    if other is not None:
        pairs = [(b, a) for a in mine for b in other]
        change = metrics.paired_average(pairs, of=[0] * len(pairs))["weighted_f1"]
        value, low, high = (100 * v for v in change.difference.as_list())
        difference, p = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]", f"{change.p_value:.4f}"
    return [
        system.name, dataset, str(len(shared)), str(len(mine)), _percent(found["weighted_f1"]),
        f"{100 * np.std(f1, ddof=1):.1f}" if len(f1) > 1 else "-", _percent(found["accuracy"]),
        _percent(found["macro_f1"]), cell(float(np.mean(nll))) if None not in nll else "-", difference, p,
    ]  # fmt: skip


def _percent(value: metrics.Interval) -> str:
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"
