"""Tables of baselines: one job, and systems side by side with paired differences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfemo.config import load
from selfemo.counting import counted
from selfemo.errors import DataError, StoreError
from selfemo.evaluation import metrics, predictions
from selfemo.evaluation.constants import MAJORITY
from selfemo.evaluation.jobs import SCORES_FILE, is_baseline, seed_folders
from selfemo.evaluation.rendering import cell, render, rounded
from selfemo.method.types import UNION, LabelSet, label_set_of
from selfemo.runs.folder import CONFIG_FILE
from selfemo.runs.store import STORE_FILE, PredictionRow, Store

_SHOWN = {
    "weighted_f1": "weighted F1", "accuracy": "accuracy", "macro_f1": "macro F1", "mean_r1": "mean R1",
}  # fmt: skip
_COLUMNS = {"weighted_f1": "weighted F1 (%)", "accuracy": "accuracy (%)", "macro_f1": "macro F1 (%)"}
_SD, _NLL = "sd (points)", "NLL at T (nats)"
_INTERVALS = "95% intervals by conversation"
_FROM = ", from "
_SEEDS = re.compile(r" \((seed \d+|mean of \d+ seeds?)\)$")
"""Ends the name of a baseline that has a random part."""
_LISTED = 3
"""Folders that a line names before it counts the rest."""


def job_table(found: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """(title, header, rows) of what `run_baseline` returns."""
    rows = []
    for d, s in found["scores"].items():
        constant = found["constants"][d][MAJORITY]
        for m, name in _SHOWN.items():
            value = metrics.Interval(*s[m])
            rows.append([d, name, str(value), cell(s["sd"][m]), cell(constant[m][0])])
        rows.append([d, "NLL at T", cell(s["calibration"]["nll_tempered"]), "-", "-"])
    title = f"{found['model']}, {found['split']}, {_INTERVALS}"
    return title, ["data", "measure", "value", "sd over seeds", "majority"], rows


@dataclass(frozen=True)
class Row:
    """A system's scores on the turns of one data set that all systems of the table have read.

    Attributes:
        system: its name in this table, which no other row of the data set has.
        trained_on: data sets; empty where they are not known.
        train_conversations: of each of these, where a baseline's settings limited them; else 0.
        n: turns, of so many conversations.
        measures: means over seeds, as fractions, with 95% intervals by conversation.
        sd: of weighted F1 over seeds; None of one seed.
        nll: NLL at T in nats, the mean over seeds; None where a seed has no distribution.
        change: in weighted F1, this system minus the reference; None where there is none.
    """

    system: str
    folder: Path
    dataset: str
    split: str
    trained_on: Sequence[str]
    train_conversations: int
    n: int
    conversations: int
    seeds: int
    measures: Mapping[str, metrics.Interval]
    sd: float | None
    nll: float | None
    change: metrics.PairedDifference | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values: [value, low, high] of fractions, as scores.json has them."""
        found: dict[str, Any] = rounded(
            {
                **{k: v for k, v in vars(self).items() if k not in ("measures", "change")},
                "folder": str(self.folder),
                **{m: self.measures[m].as_list() for m in _COLUMNS},
                "difference": self.change and self.change.difference.as_list(),
                "p_value": self.change and self.change.p_value,
            }
        )
        return found


@dataclass(frozen=True)
class SideBySide:
    """Systems side by side.

    Attributes:
        reference: what the differences are from, as (name, folder); None without one.
        notes: what a reader must know of these rows, a line each.
    """

    rows: Sequence[Row]
    reference: tuple[str, Path] | None
    notes: Sequence[str]

    @property
    def caption(self) -> str:
        """What the columns are."""
        splits = {r.split for r in self.rows}
        said = f"{splits.pop()}; means over seeds" if len(splits) == 1 else "Means over seeds"
        said += f", {_INTERVALS}; sd: of weighted F1 over seeds"
        if self.reference is None:
            return said
        name, folder = self.reference
        said += f". Difference: in weighted F1, a row minus {name} ({folder}); p: sign flips"
        return f"{said} by conversation"

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for readers; the split has a column where it is not the same in all rows."""
        several, rows = len({r.split for r in self.rows}) > 1, []
        for r in self.rows:
            row = {"system": r.system, "data": r.dataset} | ({"split": r.split} if several else {})
            row |= {"n": str(r.n), "seeds": str(r.seeds)}
            for m, name in _COLUMNS.items():
                row[name] = _interval(r.measures[m])
                if m == "weighted_f1":
                    row[_SD] = _percent(r.sd) or "-"
            row[_NLL] = cell(r.nll)
            if self.reference is not None:
                row["difference (points)"] = "-" if r.change is None else _interval(r.change.difference, "+")
                row["p"] = "-" if r.change is None else _p(r.change)
            rows.append(row)
        return list(rows[0]), [list(row.values()) for row in rows]

    def columns(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for programs: each number in a column of its own, "" where there is none."""
        rows = []
        for r in self.rows:
            row = {"system": r.system, "folder": str(r.folder), "data": r.dataset, "split": r.split}
            row |= {"trained on": " + ".join(r.trained_on), "train conversations": str(r.train_conversations)}
            row |= {"n": str(r.n), "conversations": str(r.conversations), "seeds": str(r.seeds)}
            for m, name in _COLUMNS.items():
                row |= _with_ends(name, r.measures[m])
                if m == "weighted_f1":
                    row[_SD] = _percent(r.sd)
            row[_NLL] = "" if r.nll is None else cell(r.nll)
            if self.reference is not None:
                change = None if r.change is None else r.change.difference
                row |= _with_ends("difference in weighted F1 (points)", change)
                row["p"] = "" if r.change is None else _p(r.change)
                row["difference from"] = "" if r.change is None else str(self.reference[1])
            rows.append(row | {"low and high": _INTERVALS})
        return list(rows[0]), [list(row.values()) for row in rows]

    def written(self, form: str) -> str:
        """The table as text, markdown, latex (its words as comments) or csv (without them).

        Raises: ConfigError: another format.
        """
        body = render(*(self.columns() if form == "csv" else self.cells()), form)
        if form == "csv":
            return body
        if form == "latex":
            return "".join(f"% {line}\n" for line in (self.caption, *self.notes)) + body
        return "\n\n".join([self.caption, body.rstrip("\n"), *self.notes]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Plain values; units and intervals are told beside."""
        return {
            "reference": self.reference
            and {"system": self.reference[0], "folder": str(self.reference[1])},
            "units": {
                "scores": "fractions, [value, low, high]", "nll": "nats, at T",
                "difference": "weighted F1, row minus reference",
            },
            "intervals": _INTERVALS,
            "rows": [r.as_dict() for r in self.rows],
            "notes": list(self.notes),
        }  # fmt: skip


def baseline_table(folders: Sequence[Path], against: Path | None) -> SideBySide:
    """Systems side by side on the turns that all of them read, by data set.

    Scores are means over seeds, with 95% intervals by conversation; the difference in weighted F1 from
    `against` is that of the means, with its interval and the p-value of `metrics.paired_measures`.

    Args:
        folders: of baselines, of `selfemo evaluate --out`, or runs.

    Raises:
        StoreError: a folder holds no scores or predictions.
        DataError: two systems have no turn in common, or other labels or gold emotions of one, or none can
            be compared with `against`.
    """
    places: dict[Path, Path] = {}
    for f in [*folders, *([against] if against else [])]:
        places.setdefault(f.resolve(), f)
    systems = [_System(f) for f in places.values()]
    reference = next((s for s in systems if against and s.folder == places[against.resolve()]), None)
    if reference:
        _check_comparable(systems, reference)
    rows, notes = [], []
    for d in dict.fromkeys(d for s in systems for d in s.labels):
        there = [s for s in systems if d in s.labels]
        _check_same_data(d, there)
        shared = _shared(d, there)
        counted_by = {s.folder: s.outcomes(d, shared) for s in there}
        names = _told_apart({s.folder: s.name_for(d) for s in there})
        other = None if reference is None else counted_by.get(reference.folder)
        for s in there:
            compared = None if s is reference else other
            rows.append(_row(s, d, names[s.folder], counted_by[s.folder], shared, compared))
        notes += _notes(d, there, shared, rows[-1].conversations, reference)
    if any(_FROM in r.system for r in rows):
        notes.append(
            '"from": what a system was trained on, where it is not the data set of the row as a whole'
        )
    return SideBySide(rows, None if reference is None else (reference.name, reference.folder), notes)


class _System:
    """The stored predictions of one system, by seed, and what its folder tells of it."""

    def __init__(self, folder: Path):
        from selfemo.evaluation.baseline_jobs import seeds_of

        self.folder = folder
        self.name, labels, self.split, self.trained_on, self.limit = _described(folder)
        self.by_seed = [rows for _, rows in seeds_of(folder)]
        read = {r["dataset"] for rows in self.by_seed for r in rows}
        self.labels = {d: known for d, known in labels.items() if d in read}

    def name_for(self, dataset: str) -> str:
        """Its name, with what it was trained on where that is not all of one data set, the row's."""
        sets = " + ".join(self.trained_on)
        if self.limit:
            each = " each" if len(self.trained_on) > 1 else ""
            of = "" if sets in ("", dataset) else f"{each} of {sets}"
            return f"{self.name}{_FROM}{counted(self.limit, 'conversations')}{of}"
        return self.name if sets in ("", dataset) else f"{self.name}{_FROM}{sets}"

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


def _described(folder: Path) -> tuple[str, dict[str, LabelSet], str, list[str], int]:
    """Name, label sets by data set, split, data sets it was trained on, conversations of each (0: all).

    The name is without its seeds, which have a column.
    """
    if (folder / CONFIG_FILE).exists():
        data = load([folder / CONFIG_FILE]).data
        with Store(folder / STORE_FILE, read_only=True) as store:
            sets = store.label_sets()
            trained = sorted(sets) if store.trained_stages() else []
        return folder.resolve().name, sets, data.evaluated_on, trained, 0
    if not (folder / SCORES_FILE).exists():
        raise StoreError(_why_no_scores(folder))
    inside = [f for _, f in seed_folders(folder)]
    try:
        held, scores = (
            json.loads((f / SCORES_FILE).read_text(encoding="utf-8"))
            for f in (folder, inside[0] if inside else folder)
        )
        labels = {
            d: label_set_of(s["confusion"]["labels"]) for d, s in scores["scores"].items() if d != UNION
        }
        name = _SEEDS.sub("", held["model"]) if "baseline" in held else held["model"]
        return name, labels, held["split"], list(held["trained_on"]), held.get("train_conversations", 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise StoreError(
            f"{folder}: holds no scores that can be read ({e!r}); run the command that made it again"
        ) from None


def _why_no_scores(folder: Path) -> str:
    """Of a folder that is no run and has no scores: why, and what to do."""
    if not folder.is_dir():
        return f"{folder}: {'a file, not a folder' if folder.exists() else 'no such folder'}"
    if _begun(folder):
        return f"{folder}: it is not finished: run its command again to go on"
    if inside := [f for f in sorted(folder.glob("*")) if (f / CONFIG_FILE).exists() or _begun(f)]:
        return f"{folder}: a folder of folders; name those inside, such as {_listed(inside)}"
    return (
        f"{folder}: holds no scores: it is no folder of `selfemo baseline` or `selfemo evaluate --out`, nor "
        "a run"
    )


def _begun(folder: Path) -> bool:
    """Whether a folder is of a baseline or an evaluation, finished or not."""
    return (folder / STORE_FILE).exists() or is_baseline(folder)


def _listed(folders: Iterable[Path]) -> str:
    names = [str(f) for f in folders]
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _check_comparable(systems: Sequence[_System], reference: _System) -> None:
    others = [s for s in systems if s is not reference]
    if any(d in reference.labels for s in others for d in s.labels):
        return
    sets = ", ".join(reference.labels)
    why = f"no other folder has turns of {sets}" if others else "there is no other folder"
    raise DataError(f"nothing can be compared with {reference.folder}: {why}")


def _check_same_data(dataset: str, systems: Sequence[_System]) -> None:
    """Raises DataError where turns of one id have other labels or gold emotions in two systems."""
    end = (
        "so they are not of the same data; leave one out, or score both on the same data (of JSONL, the key "
        '"dataset" names a data set)'
    )
    first = systems[0]
    known: dict[str, tuple[Path, PredictionRow]] = {}
    for s in systems:
        a, b = first.labels[dataset].labels, s.labels[dataset].labels
        if a != b:
            raise DataError(
                f"{dataset}: {first.folder} has the labels {', '.join(a)}, and {s.folder} {', '.join(b)}, "
                f"{end}"
            )
        for r in s.by_seed[0]:
            if r["dataset"] == dataset:
                folder, other = known.setdefault(r["prompt"], (s.folder, r))
                if not predictions.same_gold(other, r):
                    raise DataError(
                        f"{dataset}: turn {r['prompt']} has another gold emotion in {s.folder} than in "
                        f"{folder}, {end}"
                    )


def _shared(dataset: str, systems: Sequence[_System]) -> set[str]:
    """The prompts that all have; raises DataError where there is none."""
    if shared := set.intersection(*(s.prompts(dataset) for s in systems)):
        return shared
    splits = dict.fromkeys(s.split for s in systems)
    by_split = (
        f"{split} ({', '.join(str(s.folder) for s in systems if s.split == split)})" for split in splits
    )
    what_to_do = (
        "score them on the same one (--split, and for a half of it --set data.eval_half=)"
        if len(splits) > 1
        else "are they of the same data, and of as many conversations (data.eval_conversations)?"
    )
    raise DataError(
        f"{dataset}: no turn was read by all. They were scored on {'; '.join(by_split)}: {what_to_do}"
    )


def _notes(
    dataset: str, systems: Sequence[_System], shared: set[str], conversations: int, reference: _System | None
) -> list[str]:
    """What must be known of the rows of a data set."""
    found = []
    read = {s.folder: s.prompts(dataset) for s in systems}
    if (every := len(set.union(*read.values()))) > len(shared):
        least = min(map(len, read.values()))
        fewest = _listed(f for f, prompts in read.items() if len(prompts) == least)
        found.append(
            f"{dataset}: {len(shared)} of {every} turns, those that all these have read (fewest, {least}: "
            f"{fewest})"
        )
    if conversations < metrics.LEAST_CLUSTERS:
        p = "" if reference is None else ", and p can show little"
        found.append(
            f"{dataset}: of {counted(conversations, 'conversations')} the intervals are too narrow{p}"
        )
    if reference is not None and dataset not in reference.labels:
        found.append(f"{dataset}: no difference, since {reference.folder} has no turn of it")
    return found


def _told_apart(names: Mapping[Path, str]) -> dict[Path, str]:
    """The names of systems by folder, with the folder's own name, or else its path, where they repeat."""
    found = {}
    for f, name in names.items():
        same = [g.resolve().name for g in names if names[g] == name]
        mine = f.resolve().name
        end = "" if len(same) == 1 else f" ({mine})" if same.count(mine) == 1 else f" ({f})"
        found[f] = name + end
    return found


def _row(
    system: _System,
    dataset: str,
    name: str,
    mine: Sequence[metrics.Outcomes],
    shared: set[str],
    other: Sequence[metrics.Outcomes] | None,
) -> Row:
    f1 = [float(o.measures()["weighted_f1"]) for o in mine]
    nll = [
        predictions.calibration_of(rows, system.labels)["nll_tempered"]
        for rows in system.rows(dataset, shared)
    ]
    change = None
    if other is not None:
        pairs = [(b, a) for a in mine for b in other]
        change = metrics.paired_average(pairs, of=[0] * len(pairs))["weighted_f1"]
    return Row(
        system=name,
        folder=system.folder,
        dataset=dataset,
        split=system.split,
        trained_on=system.trained_on,
        train_conversations=system.limit,
        n=len(shared),
        conversations=len(mine[0].clusters),
        seeds=len(mine),
        measures=metrics.average_intervals(mine, of=[0] * len(mine)),
        sd=float(np.std(f1, ddof=1)) if len(f1) > 1 else None,
        nll=float(np.mean(nll)) if None not in nll else None,
        change=change,
    )


def _percent(value: float | None, sign: str = "") -> str:
    """With one decimal: the digits that other commands show of the fraction; "" for None."""
    return "" if value is None else f"{round(100 * float(cell(value)), 1) + 0.0:{sign}.1f}"  # no "-0.0"


def _interval(value: metrics.Interval, sign: str = "") -> str:
    mid, low, high = (_percent(v, sign) for v in value.as_list())
    return f"{mid} [{low}, {high}]"


def _with_ends(name: str, value: metrics.Interval | None) -> dict[str, str]:
    """An interval in three columns, as those of table 1."""
    values = [None] * 3 if value is None else value.as_list()
    return dict(zip((name, f"{name} low", f"{name} high"), map(_percent, values), strict=True))


def _p(change: metrics.PairedDifference) -> str:
    return f"{change.p_value:.4f}"
