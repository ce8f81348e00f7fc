"""Figures of a run, each as SVG and PNG with its data as CSV.

Colours are of the Okabe-Ito set, told apart with colour-blind eyes; lines also differ in dash and
marker, so that they stay readable in grey.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfemo.clusters import MAPPED, NOISE, Clustering
from selfemo.evaluation import Scores

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(header)
        writer.writerows(rows)


def _axes(title: str, x: str, y: str, width: float = 6.0) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(width, 3.6), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, folder: Path, name: str) -> None:
    from matplotlib import pyplot as plt

    figure.savefig(folder / f"{name}.svg")
    figure.savefig(folder / f"{name}.png", dpi=150)
    plt.close(figure)


def _curve(
    folder: Path,
    name: str,
    title: str,
    unit: str,
    records: Sequence[Mapping[str, Any]],
    keys: Mapping[str, str],
) -> None:
    """One line per key over the RL rounds of all iterations, iterations parted by a grey line."""
    figure, axes = _axes(title, "RL round, over iterations", unit)
    rows = [[k + 1, r["iteration"], *(r.get(key) for key in keys)] for k, r in enumerate(records)]
    for n, (key, label) in enumerate(keys.items()):
        points = [(k + 1, r[key]) for k, r in enumerate(records) if r.get(key) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True), _DASHES[n % 4], marker=_MARKERS[n % 7], markersize=4,
                color=_COLOURS[n % 8], label=label,
            )  # fmt: skip
    for k in range(1, len(records)):
        if records[k]["iteration"] != records[k - 1]["iteration"]:
            axes.axvline(k + 0.5, color="0.6", linewidth=1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    _save(figure, folder, name)
    _write_csv(folder / f"{name}.csv", ["round", "iteration", *keys], rows)


def draw(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, Scores]],
) -> list[str]:
    """Draw what the run has data for; returns the names of the figures.

    Args:
        folder: where the files go.
        records: the metrics of the RL rounds, in order.
        scores: scores by checkpoint and data set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    if records:
        curves: list[tuple[str, str, str, dict[str, str]]] = [
            (
                "reward", "Reward of self-play by round", "mean over rollouts",
                {"r1": "R1, all prompts", "r1_original": "R1, original prompts", "r2": "R2"},
            ),
            (
                "entropy", "Policy entropy by round", "nats per token",
                {"sampling_entropy": "sampled tokens"},
            ),
            (
                "parse_rate", "Completions that parse, and best ones that pass the gate", "share",
                {"parse_rate": "parsed", "pass_rate": "passed the gate"},
            ),
        ]  # fmt: skip
        for name, title, unit, keys in curves:
            _curve(folder, name, title, unit, records, keys)
            names.append(name)
    for dataset in dict.fromkeys(d for s in scores.values() for d in s if d != "all"):
        mine = {c: s[dataset] for c, s in scores.items() if dataset in s}
        names.append(_scores_figure(folder, dataset, mine))
        names.append(_shares_figure(folder, dataset, mine))
    return names


def _scores_figure(folder: Path, dataset: str, scores: Mapping[str, Scores]) -> str:
    name = f"scores_{dataset}"
    figure, axes = _axes(f"Held-out scores by checkpoint: {dataset}", "", "score, 95% interval")
    rows = []
    measures = ("accuracy", "weighted_f1", "mean_r1", "parse_rate")
    for n, measure in enumerate(measures):
        values = [getattr(s, measure) for s in scores.values()]
        at = [k + (n - 1.5) * 0.08 for k in range(len(values))]
        axes.errorbar(
            at,
            [v.value for v in values],
            yerr=[[v.value - v.low for v in values], [v.high - v.value for v in values]],
            fmt=_DASHES[n] + _MARKERS[n], color=_COLOURS[n], capsize=3, label=measure,
        )  # fmt: skip
        rows += [[c, measure, v.value, v.low, v.high] for c, v in zip(scores, values, strict=True)]
    axes.set_xticks(range(len(scores)), list(scores))
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, ncols=2)
    _save(figure, folder, name)
    _write_csv(folder / f"{name}.csv", ["checkpoint", "measure", "value", "low", "high"], rows)
    return name


def _shares_figure(folder: Path, dataset: str, scores: Mapping[str, Scores]) -> str:
    """Stacked shares of predicted emotions beside the gold ones: a collapse onto one shows."""
    name = f"emotions_{dataset}"
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
    axes.set_xticks(range(len(bars)), list(bars))
    axes.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left")
    _save(figure, folder, name)
    rows = [[c, e, share] for c, b in bars.items() for e, share in b.items()]
    _write_csv(folder / f"{name}.csv", ["checkpoint", "emotion", "share"], rows)
    return name


def persona_map(folder: Path, result: Clustering) -> None:
    """Fig. 4: the 12 largest clusters of personas in two dimensions; tables 6 and 7 as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
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
    _save(figure, folder, "persona_map")
    names = {c.number: c.name for c in result.clusters}
    _write_csv(
        folder / "persona_map.csv",
        ("x", "y", "cluster", "description"),
        [
            (f"{x:.4f}", f"{y:.4f}", names.get(a, ""), d)
            for (x, y), a, d in zip(
                result.points.tolist(), result.assigned, result.descriptions, strict=True
            )
        ],
    )
    _write_csv(
        folder / "persona_clusters.csv",
        ("cluster", "count", "example"),
        [(c.name, c.size, c.example) for c in result.clusters] + [("(noise)", result.noise, "")],
    )
