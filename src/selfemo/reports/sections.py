"""Sections of the report from folders other than the run's: evaluations, judges, an ablation, personas."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfemo.errors import StoreError
from selfemo.evaluation.rendering import cell
from selfemo.method.types import UNION
from selfemo.reports import figures, tables
from selfemo.reports.ablation import ablation_table, share_table, signal_table
from selfemo.reports.page import Head, Section, Table


def table1(folders: Sequence[Path]) -> Section:
    """Published and measured scores side by side, the measured ones first and marked with their split."""
    header, rows = tables.table1(folders)
    place = {name: header.index(name) for name in ("Method", "n", "Source")}
    rest = [k for k in range(len(header)) if k not in place.values()]
    rows = sorted(rows, key=lambda r: r[place["Source"]] == "published")
    made: list[list[Any]] = []
    marked = set()
    for row in rows:
        method, n, source = (row[k] for k in place.values())
        note = "published, test" if source == "published" else f"{source}, n={n}"
        if source != "published":
            marked.add(len(made))
        made.append([Head(method, note), *(row[k] for k in rest)])
    caption = "Accuracy and weighted F1, per cent"
    return Section(
        "table1", "Beside the published results (table 1)",
        [
            "Rows marked as published are the paper's, on the official test splits; they were not measured "
            "here. Shaded rows were measured, on the split that they name: a score on dev is none on test."
        ],
        [Table(caption, ["Method", *(header[k] for k in rest)], made, frozenset(marked))],
    )  # fmt: skip


def ablation(folder: Path | None, drawings: Path) -> Section:
    """The tables and dots of an ablation."""
    title, command = "Ablation (table 2)", "selfemo ablate --out DIR"
    if folder is None:
        return Section("ablation", title, missing=command)
    with tables.written_by(command, folder / "ablation.json") as found:
        made = [
            Table(f"Mean (sd) over seeds, on split {found['split']}", *ablation_table(found)),
            Table("What each arm predicts, and how sure it is", *share_table(found)),
            Table("What its RL had to learn from: means over groups", *signal_table(found)),
        ]
        drawn = [("Accuracy by arm: each seed and their mean", figures.arm_dots(drawings, found["arms"]))]
    return Section("ablation", title, tables=made, drawings=drawn)


def judge(folders: Sequence[Path], drawings: Path) -> Section:
    """Wins, ties and losses of each folder of `selfemo judge`."""
    title, command = "Blind comparison by judges (figure 3)", "selfemo judge"
    if not folders:
        return Section("judge", title, missing=command)
    bars: dict[str, Any] = {}
    rows = []
    for folder in folders:
        with tables.written_by(command, folder / "judge.json") as content:
            for kind, c in content["kinds"].items():
                called, pair = kind.replace("_", "-"), f"{content['a']} against {content['b']}"
                counts = {k: int(c[k]) for k in ("wins", "ties", "losses")}
                bars[f"{folder.name}: {called}"] = counts
                more = [cell(c["win_rate"]), *(cell(c.get(k)) for k in ("p_value", "alpha", "position_bias"))]
                rows.append([pair, called, *counts.values(), *more, str(c.get("flips", "-"))])
    header = (
        "answers", "kind", "wins", "ties", "losses", "win rate", "p", "alpha", "position bias", "flips",
    )  # fmt: skip
    drawn = [("Wins, ties and losses of each comparison", figures.judge_bars(drawings, bars))]
    return Section("judge", title, tables=[Table("Wins of the first", header, rows)], drawings=drawn)


def personas(by_cluster: Sequence[Any], run: Path, folder: Path | None, drawings: Path) -> Section:
    """Table 3 of a run, and the clusters and map in a folder of `selfemo personas cluster`, or in the run."""
    section = Section("personas", "Personas (figure 4, tables 3, 6 and 7)")
    if by_cluster:
        header = ("cluster", "stage", "rollouts", "mean R1")
        rewards = [[r["name"], r["stage"], str(r["rollouts"]), f"{r['r1']:.3f}"] for r in by_cluster]
        section.tables.append(Table("Mean R1 by persona cluster (table 3)", header, rewards))
    if folder is None and (run / "figures" / f"{figures.CLUSTERS}.csv").exists():
        folder = run
    if folder is not None:
        try:
            header_, *rows = _csv(folder / "figures" / f"{figures.CLUSTERS}.csv")
            clusters = [(name, int(count)) for name, count, _ in rows if name != figures.NO_CLUSTER]
            points = [
                (x, y, name, text) for x, y, name, text in _csv(folder / "figures" / f"{figures.MAP}.csv")[1:]
            ]
            drawn = figures.draw_map(drawings, points, clusters)
        except (OSError, ValueError) as e:
            why = e.strerror if isinstance(e, OSError) else e
            raise StoreError(
                f"{folder}: its persona clusters cannot be read ({why}); `selfemo personas cluster` makes "
                "them"
            ) from None
        section.tables.append(Table("Clusters (tables 6 and 7)", header_, rows))
        section.drawings.append(("The largest persona clusters, each named by its traits (figure 4)", drawn))
    if not section.tables:
        section.missing = f"selfemo personas cluster {shlex.quote(str(run))}"
    return section


def _csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.reader(f))


def confusions(
    own: Mapping[str, Mapping[str, Any]], run: Path, folders: Sequence[Path], drawings: Path
) -> Section:
    """Confusion matrices and calibration, of folders of `selfemo evaluate --out` and the run's own scores.

    `own` has the scores by data set of the run's last checkpoint, by its name; empty for none.
    """
    section = Section("errors", "Confusion and calibration")
    found = [*own.items(), *(((m := tables.measured(p)).name, m.scores) for p in folders)]
    for k, (name, by_set) in enumerate(found):
        for dataset, s in by_set.items():
            if dataset == UNION or "confusion" not in s:
                continue
            title, stem = f"{name} on {dataset}", f"{k}_{re.sub('[^A-Za-z0-9]', '_', dataset)}"
            drawn = figures.confusion_map(drawings, f"confusion_{stem}", s["confusion"])
            caption = "Gold by predicted emotion, in turns; the shade is the share of the gold emotion"
            section.drawings.append((f"{caption}: {title}", drawn))
            c = s["calibration"]
            if not c["n"]:
                continue
            t = c.get("temperature")
            of = "of its label probabilities " if c.get("believed") else ""
            tempered = f"; {of}{c['nll_tempered']:.3f} at a temperature of {t:.2f}" if t else ""
            section.text.append(
                f"{title}: expected calibration error {c['ece']:.3f}, Brier {c['brier']:.3f}, "
                f"negative log-likelihood {c['nll']:.3f} nats{tempered}."
            )
            drawn = figures.reliability(drawings, f"reliability_{stem}", c)
            section.drawings.append((f"Weight of the top emotion and how often it is right: {title}", drawn))
    if not found:
        section.missing = f"selfemo evaluate {shlex.quote(str(run))} --data SOURCE --out DIR"
    return section
