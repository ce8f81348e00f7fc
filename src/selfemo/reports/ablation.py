"""Tables, CSV and figures of an ablation (table 2), from the content of ablation.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfemo.counting import counted
from selfemo.evaluation.constants import MAJORITY, PRIOR
from selfemo.evaluation.experiments.compare import FIT, SIGNAL, same_labels_line
from selfemo.evaluation.rendering import cell, render
from selfemo.files import write_text
from selfemo.reports import figures
from selfemo.reports.tables import published

_MEASURES = (
    "arm", "seed", "data", "measure", "value", "low", "high", "difference", "difference_low",
    "difference_high", "p_value",
)  # fmt: skip
_CURVES = {"r1": ("R1", "mean over rollouts"), "sampling_entropy": ("Entropy", "nats per token")}


def write_tables(
    out: Path, result: Mapping[str, Any], rounds: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
) -> list[str]:
    """Write ablation.md, ablation.csv and OUT/figures; returns the figures' names (see `ablate.Present`)."""
    write_text(out / "ablation.md", _markdown(result))
    figures.write_csv(out / "ablation.csv", _MEASURES, _measures(result))
    folder = out / "figures"
    names = [figures.arm_dots(folder, result["arms"], m) for m in ("accuracy", "mean_r1")]
    for key, (title, unit) in _CURVES.items():
        curves = {a: [[m.get(key) for m in seed] for seed in by] for a, by in rounds.items()}
        names.append(figures.arm_curves(folder, title, unit, curves))
    return names


def _measures(result: Mapping[str, Any]) -> list[list[Any]]:
    """One row of _MEASURES for each arm, seed, data set and measure; None is an empty cell."""
    rows = []
    for arm, run in ((a, r) for a in result["arms"] for r in a["runs"]):
        for d, m, value in ((d, m, v) for d, by in run["scores"].items() for m, v in by.items()):
            against = run.get("against_full", {}).get(d, {}).get(m)
            more = [*against["difference"], against["p_value"]] if against else [None] * 4
            rows.append([arm["name"], run["seed"], d, m, *value, *more])
    return rows


def _signed(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    interval = " [{:+.3f}, {:+.3f}]".format(*entry["interval"]) if entry["interval"] else ""
    return f"{entry['mean']:+.3f}{interval}"


def ablation_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean (sd) over seeds by arm and data set, and the difference from the full arm.

    Below stand the constant answers (`constants.constant_scores`) on the same turns.
    """
    header = [
        "arm", "data", "accuracy", "weighted F1", "mean R1", "accuracy - full", "p over seeds",
        "p within seeds",
    ]  # fmt: skip
    rows = []
    for arm in result["arms"]:
        for d, by in arm["scores"].items():
            cells = [
                f"{by[m]['mean']:.3f}" + ("" if by[m]["sd"] is None else f" ({by[m]['sd']:.3f})")
                for m in ("accuracy", "weighted_f1", "mean_r1")
            ]
            against = arm.get("against_full", {}).get(d, {}).get("accuracy")
            by_seed = (r.get("against_full", {}).get(d) for r in arm["runs"])
            within = ", ".join(cell(c["accuracy"]["p_value"]) for c in by_seed if c)
            p = cell(against and against["p_value"])
            rows.append([arm["name"], d, *cells, _signed(against), p, within or "-"])
    for d, c in result.get("constants", {}).items():
        measures = ("accuracy", "weighted_f1", "mean_r1")
        for which in (MAJORITY, PRIOR):
            cells = [cell(c[which][m][0]) if m in c[which] else "-" for m in measures]
            rows.append([which, d, *cells, "-", "-", "-"])
    return header, rows


def signal_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: how much the RL of each arm could learn from its groups (`compare.SIGNAL`)."""
    rows = [[a["name"], *(cell(a["signal"].get(k)) for k in SIGNAL)] for a in result["arms"] if a["rl"]]
    return ["arm", *SIGNAL.values()], rows


def share_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the share of each predicted emotion by arm, gold first, and its calibration."""

    def show(shares: Mapping[str, float]) -> str:
        said = sorted(((v, e) for e, v in shares.items() if v > 0), key=lambda x: (-x[0], x[1]))
        missing = 1 - sum(shares.values())
        more = [f"(failed {missing:.0%})"] if missing > 1e-9 else []
        return ", ".join([*(f"{e} {v:.0%}" for v, e in said), *more]) or "-"

    rows = [["gold", d, show(s), *["-"] * len(FIT)] for d, s in result["gold_share"].items()]
    rows += [
        [PRIOR, d, f"as in the {c['source']}", "-", "-", cell(c[PRIOR]["nll"][0])]
        for d, c in result.get("constants", {}).items()
        if d in result["gold_share"]
    ]
    for a in result["arms"]:
        for d, s in a["predicted_share"].items():
            rows.append([a["name"], d, show(s), *(cell(a["fit"][d][k]) for k in FIT)])
    return ["arm", "data", "emotions", *FIT.values()], rows


def _markdown(result: Mapping[str, Any]) -> str:
    arms = [[a["name"], a["paper"], a["what"], " ".join(a["overrides"]) or "-"] for a in result["arms"]]
    paper = [
        [r["model"], r["synthetic"], r["original"], *(f"{v:.2f}" for v in r["accuracy"].values())]
        for r in published()["table2"]
    ]
    runs = [(a["name"], r) for a in result["arms"] for r in a["runs"] if "same_labels" in r]
    labels = "".join(f"- {same_labels_line(name, run)}\n" for name, run in runs)
    made = [(a["name"], r) for a in result["arms"] for r in a["runs"]]
    kept = "".join(f"- {n}, seed {r['seed']}: {line}\n" for n, r in made for line in r.get("choices", ()))
    paper_header = ["model", "synthetic", "original", "EmoryNLP", "IEMOCAP", "MELD", "AVG"]
    return (
        f"# Ablation (table 2): {counted(result['seeds'], 'seeds')}, "
        f"{counted(result['prompts'], 'prompts')} each\n\n"
        f"Split {result['split']}, checkpoint {result['checkpoint']}. Mean (standard deviation) over seeds; "
        "differences are arm minus full with 95% t intervals over seeds. p over seeds: paired t-test; p "
        "within seeds: each seed's paired test by conversation, accuracy.\n\n"
        + render(*ablation_table(result), "markdown")
        + "\n"
        + render(["arm", "row of table 2", "what", "overrides"], arms, "markdown")
        + (f"\nGold labels that RL drew:\n\n{labels}" if labels else "")
        + (f"\nStages that were kept or rolled back:\n\n{kept}" if kept else "")
        + "\nWhat is predicted:\n\n"
        + render(*share_table(result), "markdown")
        + "\nWhat RL had to learn from: means over its groups. A group whose completions have one R1, or one "
        "R2, learns nothing from it.\n\n"
        + render(*signal_table(result), "markdown")
        + "\nPublished (table 2, accuracy in per cent, Qwen3-4B):\n\n"
        + render(paper_header, paper, "markdown")
    )
