"""Figures of a run, each as SVG and PNG with its data as CSV.

Colours are those of the Okabe-Ito set, which colour-blind eyes tell apart; lines also differ in dash and
marker, so that they stay readable in grey.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfemo.evaluation.predictions import Scores
from selfemo.evaluation.summary import MEASURES
from selfemo.files import replacing
from selfemo.stages.clusters import MAPPED, NOISE, Clustering

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
_BELOW = {"frameon": False, "loc": "upper left", "bbox_to_anchor": (0, -0.18)}
"""A legend below the axes."""


def _line(n: int) -> dict[str, Any]:
    """The look of the n-th line."""
    return {"linestyle": _DASHES[n % 4], "marker": _MARKERS[n % 7], "color": _COLOURS[n % 8]}


_Records = Sequence[Mapping[str, Any]]


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file (RFC 4180) as a whole."""
    with replacing(path) as staging, staging.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(header)
        writer.writerows(rows)


def _axes(title: str, x: str, y: str, width: float = 6.0) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(width, 3.6), layout="constrained")
    axes.set_title(title, loc="left")
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, folder: Path, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a figure as SVG and PNG, and the values in it as CSV; returns its name."""
    import matplotlib
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    # Fixed ids and no date: the same data give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "selfemo", "svg.fonttype": "none"}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=150)
    plt.close(figure)
    write_csv(folder / f"{name}.csv", header, rows)
    return name


def _name_ticks(axes: Any, names: Sequence[str]) -> None:
    """Names of checkpoints below the x axis; many of them lean, or they would run into each other."""
    lean = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if len(names) > 4 else {}
    axes.set_xticks(range(len(names)), names, **lean)


def _error_bars(
    axes: Any, n: int, at: Sequence[float], values: Sequence[Sequence[float]], label: str
) -> None:
    """The n-th series of values [value, low, high]."""
    value, low, high = np.asarray(values, dtype=float).reshape(-1, 3).T
    axes.errorbar(at, value, yerr=[value - low, high - value], **_line(n), capsize=3, label=label)


def _curve(folder: Path, name: str, title: str, unit: str, records: _Records, keys: Mapping[str, str]) -> str:
    """One line per key over the RL rounds of all iterations; a grey line parts the iterations."""
    figure, axes = _axes(title, "RL round, over iterations", unit)
    rows = [[k + 1, r["iteration"], *(r.get(key) for key in keys)] for k, r in enumerate(records)]
    for n, (key, label) in enumerate(keys.items()):
        points = [(k + 1, r[key]) for k, r in enumerate(records) if r.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), **_line(n), markersize=4, label=label)
    for k in range(1, len(records)):
        if records[k]["iteration"] != records[k - 1]["iteration"]:
            axes.axvline(k + 0.5, color="0.6", linewidth=1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(**_BELOW, ncols=2)
    return _save(figure, folder, name, ["round", "iteration", *keys], rows)


_CURVES: list[tuple[str, str, str, dict[str, str]]] = [
    (
        "reward", "Reward of self-play by round", "mean over rollouts",
        {"r1": "R1, all prompts", "r1_original": "R1, original prompts", "r2": "R2"},
    ),
    ("entropy", "Policy entropy by round", "nats per token", {"sampling_entropy": "sampled tokens"}),
    (
        "parse_rate", "Completions that parse, and best ones that pass the gate", "share",
        {"parse_rate": "parsed", "pass_rate": "passed the gate"},
    ),
]  # fmt: skip
"""File name, title, unit, and label by metric."""


def draw(folder: Path, records: _Records, scores: Mapping[str, Mapping[str, Scores]]) -> list[str]:
    """Draw the figures that a run has data for; returns their names (see `evaluation.summary.Draw`)."""
    names = [_curve(folder, n, title, unit, records, keys) for n, title, unit, keys in _CURVES if records]
    for dataset in dict.fromkeys(d for s in scores.values() for d in s if d != "all"):
        mine = {c: s[dataset] for c, s in scores.items() if dataset in s}
        names += [_scores_figure(folder, dataset, mine), _shares_figure(folder, dataset, mine)]
    return names


def _scores_figure(folder: Path, dataset: str, scores: Mapping[str, Scores]) -> str:
    figure, axes = _axes(f"Held-out scores by checkpoint: {dataset}", "", "score, 95% interval")
    rows = []
    for n, measure in enumerate(MEASURES):
        values = [getattr(s, measure).as_list() for s in scores.values()]
        _error_bars(axes, n, [k + (n - 1.5) * 0.08 for k in range(len(values))], values, measure)
        rows += [[c, measure, *v] for c, v in zip(scores, values, strict=True)]
    _name_ticks(axes, list(scores))
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, ncols=2)
    return _save(figure, folder, f"scores_{dataset}", ["checkpoint", "measure", "value", "low", "high"], rows)


def _shares_figure(folder: Path, dataset: str, scores: Mapping[str, Scores]) -> str:
    """Stacked shares of predicted emotions beside the gold shares: a collapse onto one emotion shows."""
    first = next(iter(scores.values()))
    bars = {"gold": first.gold_share, **{c: s.predicted_share for c, s in scores.items()}}
    figure, axes = _axes(f"Emotions predicted on held-out turns: {dataset}", "", "share", 7.5)
    bottom = [0.0] * len(bars)
    for n, emotion in enumerate(first.gold_share):
        heights = [b.get(emotion, 0.0) for b in bars.values()]
        axes.bar(
            range(len(bars)), heights, bottom=bottom, color=_COLOURS[n % 8],
            hatch=_HATCHES[n % 7], edgecolor="white", label=emotion,
        )  # fmt: skip
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    axes.bar(
        range(len(bars)), [1 - b for b in bottom], bottom=bottom, color="white",
        edgecolor="0.5", label="failed to parse",
    )  # fmt: skip
    _name_ticks(axes, list(bars))
    axes.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left")
    rows = [[c, e, share] for c, b in bars.items() for e, share in b.items()]
    return _save(figure, folder, f"emotions_{dataset}", ["checkpoint", "emotion", "share"], rows)


def reward_curves(
    folder: Path, held_out: Mapping[str, Mapping[str, tuple[float, float]]], rounds: _Records
) -> list[str]:
    """Fig. 5: accuracy-based and IoU-based reward, held-out by checkpoint and self-play by round.

    Args:
        held_out: (accuracy, mean R1) by data set and checkpoint.
        rounds: of each RL round: iteration, and the means accuracy and r1 over its self-played prompts,
            accuracy_original and r1_original over its original ones; None where it had none.
    """
    names = []
    if held_out:
        figure, axes = _axes("Held-out rewards by checkpoint (fig. 5)", "", "reward")
        ticks = list(dict.fromkeys(c for by in held_out.values() for c in by))
        rows = []
        for n, (dataset, by) in enumerate(held_out.items()):
            for k, kind in enumerate(("accuracy-based", "IoU-based")):
                look = {**_line(n), "linestyle": _DASHES[k], "color": _COLOURS[(2 * n + k) % 8]}
                at, values = [ticks.index(c) for c in by], [v[k] for v in by.values()]
                axes.plot(at, values, **look, linewidth=(3.5, 1.5)[k], label=f"{dataset}, {kind}")
                rows += [[dataset, c, kind, v[k]] for c, v in by.items()]
        _name_ticks(axes, ticks)
        axes.set_ylim(-0.02, 1.02)
        axes.legend(frameon=False)
        names.append(_save(figure, folder, "fig5_held_out", ["data", "checkpoint", "reward", "value"], rows))
    if rounds:
        keys = {
            "accuracy": "accuracy-based, self-played", "r1": "IoU-based, self-played",
            "accuracy_original": "accuracy-based, original", "r1_original": "IoU-based, original",
        }  # fmt: skip
        title = "Rewards of rollouts by RL round (fig. 5)"
        names.append(_curve(folder, "fig5_self_play", title, "mean over rollouts", rounds, keys))
    return names


def span_entropy(folder: Path, checkpoints: Mapping[str, Mapping[str, Any]]) -> str:
    """Fig. 6, right: mean token entropy of each span by checkpoint (`analysis.json`)."""
    figure, axes = _axes("Token entropy by span (fig. 6)", "", "nats per token, 95% interval")
    rows = []
    spans = {"emotion": "emotion E", "self_emotion": "self-emotion S", "reply": "reply"}
    for n, (span, label) in enumerate(spans.items()):
        found = [(k, c, r["entropy"][span]) for k, (c, r) in enumerate(checkpoints.items())]
        points = [(k, c, v) for k, c, v in found if v is not None]
        _error_bars(axes, n, [k + (n - 1) * 0.06 for k, *_ in points], [v for *_, v in points], label)
        rows += [[c, span, *v] for _, c, v in points]
    _name_ticks(axes, list(checkpoints))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _save(figure, folder, "fig6_spans", ["checkpoint", "span", "value", "low", "high"], rows)


def arm_dots(folder: Path, arms: _Records, measure: str = "accuracy") -> str:
    """Table 2 as dots: the seeds of each arm (a record in ablation.json) and their mean by data set."""
    words = " ".join(w.upper() if w in ("r1", "f1") else w for w in measure.split("_"))
    datasets = list(dict.fromkeys(d for a in arms for d in a["scores"]))
    title = f"{words[0].upper()}{words[1:]} by arm: seeds and their mean"
    figure, axes = _axes(title, words, "", 7.0)
    height = 1.4 + 0.5 * len(arms)  # inches
    figure.set_figheight(height)
    rows = []
    for n, d in enumerate(datasets):
        at = [i + 0.16 * (n - (len(datasets) - 1) / 2) for i in range(len(arms))]
        means = [a["scores"][d][measure]["mean"] for a in arms]
        for y, a in zip(at, arms, strict=True):
            seeds = [r["scores"][d][measure][0] for r in a["runs"]]
            axes.plot(seeds, [y] * len(seeds), "|", color=_COLOURS[n % 8], markersize=9)
            rows += [[a["name"], d, r["seed"], v] for r, v in zip(a["runs"], seeds, strict=True)]
        axes.plot(means, at, _MARKERS[n % 7], color=_COLOURS[n % 8], markersize=6, label=d)
    axes.set_yticks(range(len(arms)), [a["name"] for a in arms])
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0, -0.6 / height))
    return _save(figure, folder, f"arms_{measure}", ["arm", "data", "seed", measure], rows)


def arm_curves(
    folder: Path, key: str, unit: str, arms: Mapping[str, Sequence[Sequence[float | None]]]
) -> str:
    """One measure of the RL rounds by arm: the mean over seeds, with their range as a band.

    `arms` has, by name, for each seed the measure of each round; None where a round has none.
    """
    figure, axes = _axes(f"{key} by round, mean and range of seeds", "RL round", unit, 7.0)
    rows: list[list[Any]] = []
    for n, (name, seeds) in enumerate(arms.items()):
        points = []
        for k, values in enumerate(zip(*seeds, strict=False)):
            here = [v for v in values if v is not None]
            rows += [[name, s, k + 1, v] for s, v in enumerate(values)]
            if here:
                points.append((k + 1, sum(here) / len(here), min(here), max(here)))
        x, mean, low, high = zip(*points, strict=True)
        axes.plot(x, mean, **_line(n), markersize=3, label=name)
        axes.fill_between(x, low, high, color=_COLOURS[n % 8], alpha=0.12, linewidth=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(**_BELOW, ncols=3)
    return _save(figure, folder, f"arms_{key.lower().replace(' ', '_')}", ["arm", "seed", "round", key], rows)


def judge_bars(folder: Path, comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    """Fig. 3: wins, ties and losses of each comparison (name to a record with these counts)."""
    figure, axes = _axes("Blind comparisons (fig. 3)", "share of pairs", "", 7.0)
    left = [0.0] * len(comparisons)
    outcomes = ("wins", "ties", "losses")
    for n, outcome in enumerate(outcomes):
        share = [c[outcome] / max(1, sum(c[k] for k in outcomes)) for c in comparisons.values()]
        bars = axes.barh(
            range(len(left)), share, left=left, color=("#0072B2", "#DDDDDD", "#E69F00")[n],
            hatch=("", "", "//")[n], edgecolor="white", label=outcome,
        )  # fmt: skip
        counts = [str(c[outcome] or "") for c in comparisons.values()]
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.bar_label(bars, counts, label_type="center", bbox=box)
        left = [a + b for a, b in zip(left, share, strict=True)]
    axes.set_yticks(range(len(left)), list(comparisons))
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=3, bbox_to_anchor=(0, -0.2), loc="upper left")
    rows = [[name, *(c[k] for k in outcomes)] for name, c in comparisons.items()]
    return _save(figure, folder, "fig3_judge", ["comparison", *outcomes], rows)


def confusion_map(folder: Path, name: str, title: str, confusion: Mapping[str, Any]) -> str:
    """Counts of gold (rows) by predicted (columns, the last one failed); shade: share of the row."""
    labels, counts = confusion["labels"], confusion["rows"]
    columns = [*labels, "failed"]
    shares = [[v / max(1, sum(row)) for v in row] for row in counts]
    figure, axes = _axes(title, "predicted", "gold", 6.5)
    figure.set_figheight(1.6 + 0.42 * len(labels))
    axes.grid(visible=False)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(counts):
        for j, v in enumerate(row):
            colour = "white" if shares[i][j] > 0.55 else "black"
            axes.text(j, i, str(v), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    rows = [[g, *row] for g, row in zip(labels, counts, strict=True)]
    return _save(figure, folder, name, ["gold", *columns], rows)


def reliability(folder: Path, name: str, title: str, calibration: Mapping[str, Any]) -> str:
    """Share of right top emotions against the weight given to them, by bin; n beside each point."""
    bins = [b for b in calibration["bins"] if b["n"]]
    figure, axes = _axes(title, "mean weight of the top emotion", "share right", 4.6)
    axes.plot([0, 1], [0, 1], ":", color="0.4", label="calibrated")
    axes.plot([b["weight"] for b in bins], [b["accuracy"] for b in bins], **_line(0), label="measured")
    for b in bins:
        axes.annotate(
            f"n={b['n']}", (b["weight"], b["accuracy"]), xytext=(-6, 8),
            textcoords="offset points", ha="right", fontsize="small",
        )  # fmt: skip
    axes.set(xlim=(-0.02, 1.04), ylim=(-0.04, 1.12))
    axes.legend(frameon=False, loc="lower right")
    header = ["lower", "upper", "n", "weight", "accuracy"]
    return _save(figure, folder, name, header, [[b[k] for k in header] for b in bins])


def persona_map(folder: Path, result: Clustering) -> None:
    """Fig. 4: the 12 largest clusters of personas in two dimensions; tables 6 and 7 as CSV."""
    figure, axes = _axes("Persona clusters", "t-SNE 1", "t-SNE 2", width=9.0)
    others = [i for i, a in enumerate(result.assigned) if a == NOISE or a >= MAPPED]
    axes.scatter(*result.points[others].T, s=6, color="0.8", label="other or noise")
    for n, c in enumerate(result.clusters[:MAPPED]):
        members = [i for i, a in enumerate(result.assigned) if a == c.number]
        axes.scatter(
            *result.points[members].T, s=18, marker=_MARKERS[n % 7], color=_COLOURS[n % 8],
            label=f"{c.name.replace('_', ' ')} ({c.size})",
        )  # fmt: skip
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    names = {c.number: c.name for c in result.clusters}
    rows = [
        (f"{x:.4f}", f"{y:.4f}", names.get(a, ""), d)
        for (x, y), a, d in zip(result.points.tolist(), result.assigned, result.descriptions, strict=True)
    ]
    _save(figure, folder, "persona_map", ("x", "y", "cluster", "description"), rows)
    write_csv(
        folder / "persona_clusters.csv",
        ("cluster", "count", "example"),
        [(c.name, c.size, c.example) for c in result.clusters] + [("(noise)", result.noise, "")],
    )
