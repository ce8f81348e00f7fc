"""Figures of a run, each as SVG and PNG with its data as CSV.

Emotions have the colours of `palette`. All else has those of the Okabe-Ito set, which colour-blind eyes tell
apart; its lines also differ in dash and marker, so that they stay readable in grey. Figures are narrow, with
legends below, for a phone's page and a journal's column; what they show stands in their caption.
"""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from selfemo.evaluation.predictions import Scores
from selfemo.evaluation.summary import MEASURES
from selfemo.files import replacing
from selfemo.reports.palette import emotion_colours
from selfemo.stages.clusters import MAPPED, NOISE, Clustering

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH = 4.6
"""Inches."""
_STYLE = {
    "font.size": 10,
    "text.parse_math": False,  # names of data, arms and folders may hold "$"
    "svg.fonttype": "none",
    "svg.hashsalt": "selfemo",  # fixed ids: the same data give the same bytes
}


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


@contextmanager
def _axes(x: str, y: str, height: float = 2.9, width: float = _WIDTH) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, in inches without the legend; all drawing of it is done inside."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        axes.set(xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        yield figure, axes
        plt.close(figure)


def _save(figure: Any, folder: Path, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a figure as SVG and PNG, and the values in it as CSV; returns its name."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=200)
    write_csv(folder / f"{name}.csv", header, rows)
    return name


def _wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width` characters; words that are longer are cut."""
    return "\n".join(textwrap.wrap(text, width) or [""])


def _legend(figure: Any, axes: Any) -> None:
    """A legend below the axes, in as many columns as fit; the figure grows by it."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [_wrapped(text, 46) for text in labels]
    width = figure.get_figwidth() * figure.dpi
    for columns in range(len(labels), 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside lower left", ncols=columns, frameon=False, columnspacing=1.2,
            handlelength=2.2,
        )  # fmt: skip
        box = legend.get_window_extent(figure.canvas.get_renderer())
        if box.width <= width or columns == 1:
            figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)
            return
        legend.remove()


def _name_ticks(axes: Any, names: Sequence[str]) -> None:
    """Names of checkpoints below the x axis; where they would run into each other, they lean."""
    lean = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, names)) > 40 else {}
    if len(names) > 14:
        lean = {"rotation": 90}
    if lean:
        axes.figure.set_figheight(axes.figure.get_figheight() + 0.045 * max(map(len, names)))
    axes.set_xticks(range(len(names)), [_wrapped(n, 30) for n in names], **lean)


def _name_rows(figure: Any, axes: Any, names: Sequence[str], each: float, width: int = 22) -> None:
    """Names beside the rows of the y axis, the first on top; a row is `each` inches high, or as its name."""
    shown = [_wrapped(n, width) for n in names]
    lines = max((n.count("\n") + 1 for n in shown), default=1)
    figure.set_figheight(0.75 + max(each, 0.15 * lines + 0.06) * len(names))
    axes.set_yticks(range(len(names)), shown)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _words(measure: str) -> str:
    """The name of a measure as text: "mean R1"."""
    return " ".join(w.upper() if w in ("r1", "f1") else w for w in measure.split("_"))


def _error_bars(
    axes: Any, n: int, at: Sequence[float], values: Sequence[Sequence[float]], label: str
) -> None:
    """The n-th series of values [value, low, high]."""
    value, low, high = np.asarray(values, dtype=float).reshape(-1, 3).T
    axes.errorbar(at, value, yerr=[value - low, high - value], **_line(n), capsize=3, label=label)


def _curve(folder: Path, name: str, unit: str, records: _Records, keys: Mapping[str, str]) -> str:
    """One line per key over the RL rounds of all iterations; a grey line parts the iterations."""
    rows = [[k + 1, r["iteration"], *(r.get(key) for key in keys)] for k, r in enumerate(records)]
    with _axes("RL round, over iterations", unit) as (figure, axes):
        for n, (key, label) in enumerate(keys.items()):
            points = [(k + 1, r[key]) for k, r in enumerate(records) if r.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), **_line(n), markersize=4, label=label)
        for k in range(1, len(records)):
            if records[k]["iteration"] != records[k - 1]["iteration"]:
                axes.axvline(k + 0.5, color="0.6", linewidth=1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _legend(figure, axes)
        return _save(figure, folder, name, ["round", "iteration", *keys], rows)


_CURVES: list[tuple[str, str, dict[str, str]]] = [
    (
        "reward", "mean over rollouts",
        {"r1": "R1, all prompts", "r1_original": "R1, original prompts", "r2": "R2"},
    ),
    ("entropy", "nats per token", {"sampling_entropy": "sampled tokens"}),
    ("parse_rate", "share", {"parse_rate": "parsed", "pass_rate": "passed the gate"}),
    (
        "expression", "nats, mean over replies",
        {"expression": "R3 by the listener", "expression_reader": "R3 by the reader, which rewards nothing",
         "expression_contrast": "contrast: told of S beyond other emotions",
         "expression_spread": "deviation of R3 within a prompt",
         "reply_length_gain": "likeness to people's turns in length"},
    ),
    (
        "replies", "share",
        {"expressed": "the declared emotion is the one most heard",
         "reply_distinct_2": "pairs of words that differ", "refused": "break a rule, earn nothing"},
    ),
]  # fmt: skip
"""File name, unit, and label by metric; a figure whose metrics no round has is left out."""


def draw(folder: Path, records: _Records, scores: Mapping[str, Mapping[str, Scores]]) -> list[str]:
    """Draw the figures that a run has data for; returns their names (see `evaluation.summary.Draw`)."""
    known = {k for r in records for k, v in r.items() if v is not None}
    names = [_curve(folder, n, unit, records, keys) for n, unit, keys in _CURVES if known & keys.keys()]
    for dataset in dict.fromkeys(d for s in scores.values() for d in s if d != "all"):
        mine = {c: s[dataset] for c, s in scores.items() if dataset in s}
        names += [_scores_figure(folder, dataset, mine), _shares_figure(folder, dataset, mine)]
    return names


def _scores_figure(folder: Path, dataset: str, scores: Mapping[str, Scores]) -> str:
    rows = []
    with _axes("", "score, 95% interval") as (figure, axes):
        for n, measure in enumerate(MEASURES):
            values = [getattr(s, measure).as_list() for s in scores.values()]
            at = [k + (n - 1.5) * 0.08 for k in range(len(values))]
            _error_bars(axes, n, at, values, _words(measure))
            rows += [[c, measure, *v] for c, v in zip(scores, values, strict=True)]
        _name_ticks(axes, list(scores))
        axes.set_ylim(-0.02, 1.02)
        _legend(figure, axes)
        header = ["checkpoint", "measure", "value", "low", "high"]
        return _save(figure, folder, f"scores_{dataset}", header, rows)


def _shares_figure(folder: Path, dataset: str, scores: Mapping[str, Scores]) -> str:
    """Stacked shares of predicted emotions below the gold shares: a collapse onto one emotion shows."""
    first = next(iter(scores.values()))
    bars = {"gold": first.gold_share, **{c: s.predicted_share for c, s in scores.items()}}
    colours = emotion_colours(first.gold_share)
    with _axes("share of turns", "") as (figure, axes):
        left = np.zeros(len(bars))
        edge = {"edgecolor": "#000000", "linewidth": 0.5}  # light colours need an outline
        for emotion, colour in colours.items():
            share = np.array([b.get(emotion, 0.0) for b in bars.values()])
            axes.barh(range(len(bars)), share, left=left, color=colour, label=emotion, **edge)
            left += share
        if (failed := np.maximum(0, 1 - left)).max() > 1e-9:
            axes.barh(range(len(bars)), failed, left=left, color="#FFFFFF", hatch="//", **edge,
                      label="failed to parse")  # fmt: skip
        axes.set_xlim(0, 1)
        axes.grid(visible=False)
        _name_rows(figure, axes, list(bars), 0.34)
        _legend(figure, axes)
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
        ticks = list(dict.fromkeys(c for by in held_out.values() for c in by))
        rows = []
        with _axes("", "reward") as (figure, axes):
            for n, (dataset, by) in enumerate(held_out.items()):
                for k, kind in enumerate(("accuracy-based", "IoU-based")):
                    look = {**_line(n), "linestyle": _DASHES[k], "color": _COLOURS[(2 * n + k) % 8]}
                    at, values = [ticks.index(c) for c in by], [v[k] for v in by.values()]
                    axes.plot(at, values, **look, linewidth=(3, 1.5)[k], label=f"{dataset}, {kind}")
                    rows += [[dataset, c, kind, v[k]] for c, v in by.items()]
            _name_ticks(axes, ticks)
            axes.set_ylim(-0.02, 1.02)
            _legend(figure, axes)
            header = ["data", "checkpoint", "reward", "value"]
            names.append(_save(figure, folder, "fig5_held_out", header, rows))
    if rounds:
        keys = {
            "accuracy": "accuracy-based, self-played", "r1": "IoU-based, self-played",
            "accuracy_original": "accuracy-based, original", "r1_original": "IoU-based, original",
        }  # fmt: skip
        names.append(_curve(folder, "fig5_self_play", "mean over rollouts", rounds, keys))
    return names


def span_entropy(folder: Path, checkpoints: Mapping[str, Mapping[str, Any]]) -> str:
    """Fig. 6, right: mean token entropy of each span by checkpoint (`analysis.json`)."""
    rows = []
    spans = {"emotion": "emotion E", "self_emotion": "self-emotion S", "reply": "reply"}
    with _axes("", "nats per token, 95% interval") as (figure, axes):
        for n, (span, label) in enumerate(spans.items()):
            found = [(k, c, r["entropy"][span]) for k, (c, r) in enumerate(checkpoints.items())]
            points = [(k, c, v) for k, c, v in found if v is not None]
            _error_bars(axes, n, [k + (n - 1) * 0.06 for k, *_ in points], [v for *_, v in points], label)
            rows += [[c, span, *v] for _, c, v in points]
        _name_ticks(axes, list(checkpoints))
        axes.set_ylim(bottom=0)
        _legend(figure, axes)
        return _save(figure, folder, "fig6_spans", ["checkpoint", "span", "value", "low", "high"], rows)


def arm_dots(folder: Path, arms: _Records, measure: str = "accuracy") -> str:
    """Table 2 as dots: the seeds of each arm (a record in ablation.json) and their mean by data set."""
    datasets = list(dict.fromkeys(d for a in arms for d in a["scores"]))
    rows = []
    with _axes(f"{_words(measure)}: seeds (bars) and their mean", "") as (figure, axes):
        for n, d in enumerate(datasets):
            at = [i + 0.16 * (n - (len(datasets) - 1) / 2) for i in range(len(arms))]
            means = [a["scores"][d][measure]["mean"] for a in arms]
            for y, a in zip(at, arms, strict=True):
                seeds = [r["scores"][d][measure][0] for r in a["runs"]]
                axes.plot(seeds, [y] * len(seeds), "|", color=_COLOURS[n % 8], markersize=9)
                rows += [[a["name"], d, r["seed"], v] for r, v in zip(a["runs"], seeds, strict=True)]
            axes.plot(means, at, _MARKERS[n % 7], color=_COLOURS[n % 8], markersize=6, label=d)
        _name_rows(figure, axes, [a["name"] for a in arms], 0.42)
        _legend(figure, axes)
        return _save(figure, folder, f"arms_{measure}", ["arm", "data", "seed", measure], rows)


def arm_curves(
    folder: Path, key: str, unit: str, arms: Mapping[str, Sequence[Sequence[float | None]]]
) -> str:
    """One measure of the RL rounds by arm: the mean over seeds, with their range as a band.

    `arms` has, by name, for each seed the measure of each round; None where a round has none.
    """
    rows: list[list[Any]] = []
    with _axes("RL round", f"{key}, {unit}") as (figure, axes):
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
        _legend(figure, axes)
        called = f"arms_{key.lower().replace(' ', '_')}"
        return _save(figure, folder, called, ["arm", "seed", "round", key], rows)


def judge_bars(folder: Path, comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    """Fig. 3: wins, ties and losses of each comparison (name to a record with these counts)."""
    outcomes = ("wins", "ties", "losses")
    with _axes("share of pairs", "") as (figure, axes):
        left = [0.0] * len(comparisons)
        for n, outcome in enumerate(outcomes):
            share = [c[outcome] / max(1, sum(c[k] for k in outcomes)) for c in comparisons.values()]
            bars = axes.barh(
                range(len(left)), share, left=left, color=("#0072B2", "#DDDDDD", "#E69F00")[n],
                hatch=("", "", "//")[n], edgecolor="#FFFFFF", label=outcome,
            )  # fmt: skip
            counts = [str(c[outcome] or "") for c in comparisons.values()]
            box = {"facecolor": "#FFFFFF", "edgecolor": "none", "pad": 1}
            axes.bar_label(bars, counts, label_type="center", bbox=box)
            left = [a + b for a, b in zip(left, share, strict=True)]
        axes.set_xlim(0, 1)
        _name_rows(figure, axes, list(comparisons), 0.42)
        _legend(figure, axes)
        rows = [[name, *(c[k] for k in outcomes)] for name, c in comparisons.items()]
        return _save(figure, folder, "fig3_judge", ["comparison", *outcomes], rows)


def confusion_map(folder: Path, name: str, confusion: Mapping[str, Any]) -> str:
    """Counts of gold (rows) by predicted (columns, the last one failed); shade: share of the row."""
    from matplotlib.patches import Rectangle

    labels, counts = confusion["labels"], confusion["rows"]
    columns = [*labels, "failed"]
    with _axes("predicted", "gold", width=max(_WIDTH, 1.6 + 0.34 * len(columns))) as (figure, axes):
        axes.grid(visible=False)
        for i, row in enumerate(counts):
            for j, v in enumerate(row):
                share = v / max(1, sum(row))
                # A see-through shade is right on a light and a dark page; white text only where it is dense.
                axes.add_patch(
                    Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=_SHADE, alpha=share, linewidth=0)
                )
                colour = "#FEFEFE" if share > 0.55 else "#000000"
                axes.text(j, i, str(v), ha="center", va="center", color=colour)
        _name_rows(figure, axes, labels, 0.3, 16)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
        figure.set_figheight(figure.get_figheight() + 0.07 * max(map(len, columns)))
        rows = [[g, *row] for g, row in zip(labels, counts, strict=True)]
        return _save(figure, folder, name, ["gold", *columns], rows)


_SHADE = "#1F6FB2"


def reliability(folder: Path, name: str, calibration: Mapping[str, Any]) -> str:
    """Share of right top emotions against the weight given to them, by bin; below each point its n."""
    bins = [b for b in calibration["bins"] if b["n"]]
    with _axes("mean weight of the top emotion", "share right", 3.2) as (figure, axes):
        axes.plot([0, 1], [0, 1], ":", color="0.5", label="calibrated")
        axes.plot([b["weight"] for b in bins], [b["accuracy"] for b in bins], **_line(0), label="measured")
        for b in bins:
            axes.text(b["weight"], -0.06, f"n={b['n']}", rotation=90, ha="center", va="top", fontsize=8)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.32, 1.04), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
        _legend(figure, axes)
        header = ["lower", "upper", "n", "weight", "accuracy"]
        return _save(figure, folder, name, header, [[b[k] for k in header] for b in bins])


MAP, CLUSTERS = "persona_map", "persona_clusters"
"""Names of the files of `persona_map`."""


def persona_map(folder: Path, result: Clustering) -> None:
    """Fig. 4: the largest clusters of personas in two dimensions; tables 6 and 7 as CSV."""
    names = {c.number: c.name for c in result.clusters}
    points = [
        (f"{x:.4f}", f"{y:.4f}", names.get(a, ""), d)
        for (x, y), a, d in zip(result.points.tolist(), result.assigned, result.descriptions, strict=True)
    ]
    draw_map(folder, points, [(c.name, c.size) for c in result.clusters])
    write_csv(
        folder / f"{CLUSTERS}.csv",
        ("cluster", "count", "example"),
        [(c.name, c.size, c.example) for c in result.clusters] + [(NO_CLUSTER, result.noise, "")],
    )


NO_CLUSTER = "(noise)"


def draw_map(
    folder: Path, points: Sequence[tuple[str, str, str, str]], clusters: Sequence[tuple[str, int]]
) -> str:
    """Fig. 4 from its CSV: (x, y, cluster or "", description), and (name, count) of each cluster by size.

    The number of a cluster stands above its points, its name beside that number in the legend.

    Raises: ValueError: a cluster that is drawn has no point.
    """
    drawn = {name: n for n, (name, _) in enumerate(clusters[:MAPPED])}
    if lacking := drawn.keys() - {name for *_, name, _ in points}:
        raise ValueError(f"{MAP}.csv has no point of cluster {min(lacking)!r}")
    with _axes("t-SNE 1", "t-SNE 2", 3.6) as (figure, axes):
        at = np.array([[float(x), float(y)] for x, y, *_ in points]).reshape(-1, 2)
        of = [drawn.get(name, NOISE) for *_, name, _ in points]
        rest = at[[n == NOISE for n in of]]
        axes.scatter(*rest.T, s=6, color="0.6", label=f"in another or no cluster ({len(rest)})")
        for name, n in drawn.items():
            mine = at[[k == n for k in of]]
            label = f"{n + 1}: {name} ({clusters[n][1]})"
            axes.scatter(*mine.T, s=18, marker=_MARKERS[n % 7], color=_COLOURS[n % 8], label=label)
            above = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "va": "bottom"}
            top = (float(np.median(mine[:, 0])), float(mine[:, 1].max()))
            axes.annotate(str(n + 1), top, weight="bold", **above)
        axes.margins(0.1)
        _legend(figure, axes)
        return _save(figure, folder, MAP, ("x", "y", "cluster", "description"), points)
