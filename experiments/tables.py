"""The tables of docs/results.md that come from committed results: `python -m experiments.tables`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfemo.evaluation.metrics import PairedDifference, paired_difference
from selfemo.evaluation.rendering import render

RESULTS = Path(__file__).parent / "gpu" / "results"
START = "start"
ARMS = {
    "mean": "RL, divided by the mean",
    "ce": "cross-entropy, same labels",
    "std": "RL, divided by the deviation",
    "plain": "RL, eq. 14 (completions, deviation)",
}


def read(name: str) -> dict[str, Any]:
    """A committed result of the queue."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def chosen_runs(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each arm at the learning rate that its tuning half chose, by seed."""
    rates, runs = result["chosen"], result["runs"]
    found = {
        arm: [r for r in runs if r.get("arm") == arm and r["lr"] == rates.get(arm, r["lr"])] for arm in ARMS
    }
    return {arm: mine for arm, mine in found.items() if mine}


def compared(
    result: Mapping[str, Any],
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    key: str,
    dataset: str = "",
    *,
    clean: bool = False,
) -> PairedDifference:
    """The paired change of a value by utterance on the claim half, seeds pooled: the mean over an utterance's
    seeds, with an interval and p by conversation. `clean` leaves out what overlaps with training data."""
    u = result["utterances"]
    mine = [
        i
        for i, (half, d, shared) in enumerate(zip(u["half"], u["dataset"], u["overlaps"], strict=True))
        if half == "claim" and dataset in ("", d) and not (clean and shared)
    ]
    a, b = (np.mean([r[key] for r in runs], 0)[mine].tolist() for runs in (before, after))
    return paired_difference(a, b, [u["conversation"][i] for i in mine], resamples=10_000)


def rl_alone() -> str:
    """Scores of each arm on the claim half, and its changes from the start and from cross-entropy."""
    result = read("rl_alone")
    start = [r for r in result["runs"] if r["run"] == START]
    arms, datasets = chosen_runs(result), list(dict.fromkeys(result["utterances"]["dataset"]))
    rows = []
    for name, runs in {START: start, **arms}.items():
        for d in datasets:
            scored = [r["claim"][d] for r in runs]
            means = [
                np.mean([s[m] for s in scored]) for m in ("accuracy", "weighted_f1", "macro_f1", "nll_at_t")
            ]
            temperature = np.mean([s["temperature"] for s in scored])
            rate = f"{runs[0]['lr']:g}" if "lr" in runs[0] else "-"
            label = ARMS.get(name, name)
            rows.append([label, d, rate, str(len(runs)), *(f"{m:.3f}" for m in means), f"{temperature:.2f}"])
    header = ["arm", "data", "rate", "seeds", "accuracy", "weighted F1", "macro F1", "NLL at T", "T"]
    changes = []
    pairs = [(START, start, name, runs) for name, runs in arms.items()]
    pairs.append(("ce", arms["ce"], "mean", arms["mean"]))
    for first, before, second, after in pairs:
        for d, clean in (*((d, False) for d in (*datasets, "")), ("", True)):
            cells = []
            for key in ("hits", "nll_at_t"):
                found = compared(result, before, after, key, d, clean=clean)
                value, low, high = found.difference.as_list()
                cells += [f"{value:+.3f} [{low:+.3f}, {high:+.3f}]", f"{found.p_value:.4f}"]
            changes.append(
                [
                    f"{ARMS.get(first, first)} to {ARMS[second]}",
                    d or ("both, clean" if clean else "both"),
                    *cells,
                ]
            )
    change_header = ["change", "data", "accuracy", "p", "NLL at T", "p"]
    return f"{render(header, rows, 'markdown')}\n{render(change_header, changes, 'markdown')}"


def main() -> None:
    print(rl_alone())


if __name__ == "__main__":
    main()
