"""Sections of the report from folders other than the run's: evaluations, judges, an ablation, personas."""

from __future__ import annotations

import base64
import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfemo.errors import StoreError
from selfemo.evaluation.predictions import UNION
from selfemo.evaluation.rendering import cell
from selfemo.reports import figures, tables
from selfemo.reports.ablation import ablation_table, share_table, signal_table
from selfemo.reports.page import Section, Table, visible


def table1(folders: Sequence[Path]) -> Section:
    """Published and measured scores side by side."""
    return Section(
        "table1", "Beside the published results (table 1)",
        ["Rows marked as published are the paper's; they were not measured here."],
        [Table("Accuracy and weighted F1, per cent", *tables.table1(folders))],
    )  # fmt: skip


def ablation(folder: Path | None, drawings: Path) -> Section:
    """The tables and dots of an ablation."""
    title, command = "Ablation (table 2)", "selfemo ablate --out DIR"
    if folder is None:
        return Section("ablation", title, missing=command)
    with tables.written_by(command, folder / "ablation.json") as found:
        made = [
            Table("Mean (sd) over seeds", *ablation_table(found)),
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


def personas(by_cluster: Sequence[Any], run: Path, folder: Path | None) -> Section:
    """Table 3 of a run, and the clusters and map in a folder of `selfemo personas cluster`."""
    section = Section("personas", "Personas (figure 4, table 3)")
    if by_cluster:
        header = ("cluster", "stage", "rollouts", "mean R1")
        rewards = [[r["name"], r["stage"], str(r["rollouts"]), f"{r['r1']:.3f}"] for r in by_cluster]
        section.tables.append(Table("Mean R1 by persona cluster (table 3)", header, rewards))
    if folder is not None:
        try:
            table, drawn = (folder / "figures" / n for n in ("persona_clusters.csv", "persona_map.png"))
            with table.open(newline="", encoding="utf-8") as f:
                header_, *rows = list(csv.reader(f))
            picture = base64.b64encode(drawn.read_bytes()).decode()
        except (OSError, ValueError) as e:
            raise StoreError(
                f"{folder}: holds no persona clusters ({e}); `selfemo personas cluster` makes them"
            ) from None
        section.tables.append(Table("Clusters", header_, rows))
        section.pictures.append(("Map of the largest persona clusters", picture))
    if not section.tables:
        section.missing = f"selfemo personas cluster FOLDER --run {run}"
    return section


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
            plain = str(visible(title)).replace("$", r"\$")  # "$" would begin mathematics
            drawn = figures.confusion_map(drawings, f"confusion_{stem}", plain, s["confusion"])
            section.drawings.append((f"Gold by predicted emotion: {title}", drawn))
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
            drawn = figures.reliability(drawings, f"reliability_{stem}", plain, c)
            section.drawings.append((f"Weight of the top emotion and how often it is right: {title}", drawn))
    if not found:
        section.missing = f"selfemo evaluate {run} --data SOURCE --out DIR"
    return section
