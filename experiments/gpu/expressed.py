"""The tables of step "expression": what the reader finds, each arm over its seeds and against "off"; how the
replies are made, beside people's; scores of E, and their changes from the start and from "off".

    PYTHONPATH=src:. python -m experiments.gpu.expressed RESULTS.json...

Kappa is of the replies of all seeds together, with the 95% interval of a bootstrap over conversations: what
several seeds write to one conversation is drawn together. A difference is of the same draws.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments.tables import by_arm, f1_table, same_seeds, score_table

from selfemo.evaluation.expression import cohens_kappa
from selfemo.evaluation.metrics import cluster_weights, percentile_interval

KINDS = {"read": "its own S", "read_given": "S given"}
RESAMPLES = 4000
FORMS = {"words": ".1f", "short": ".0%", "distinct_2": ".2f", "self_bleu": ".2f"}


def counts(
    result: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], kind: str, dataset: str
) -> np.ndarray:
    """(c, k, k) what was declared and read, by conversation of the claim half, of some runs together."""
    u = result["utterances"]
    of = zip(u["conversation"], u["dataset"], u["half"], strict=True)
    mine = dict.fromkeys(c for c, d, half in of if d == dataset and half == "claim")
    rows, labels = ({x: i for i, x in enumerate(xs)} for xs in (mine, result["labels"][dataset]))
    found = np.zeros((len(rows), len(labels), len(labels)))
    for run in runs:
        for conversation, declared, read in run.get(kind, {}).values():
            if conversation in rows and read is not None:
                found[rows[conversation], labels[declared], labels[read]] += 1
    return found


def _drawn(found: np.ndarray) -> np.ndarray:
    weights = cluster_weights(len(found), RESAMPLES)
    drawn: np.ndarray = (weights @ found.reshape(len(found), -1)).reshape(-1, *found.shape[1:])
    return cohens_kappa(drawn)


def _cell(value: float, draws: np.ndarray) -> str:
    i = percentile_interval(value, draws)
    return f"{i.value:+.3f} [{i.low:+.3f}, {i.high:+.3f}]"


def rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """[data set, S, arm, seeds, replies, kappa, less that of "off"] of the runs of some results, whose dev
    utterances are the same."""
    first, arms = results[0], dict[str, list[Mapping[str, Any]]]()
    if any(r["utterances"] != first["utterances"] for r in results):
        raise ValueError("the results have other utterances")
    for result in results:
        for run in result["runs"]:
            arms.setdefault(run.get("arm", "start"), []).append(run)
    table = []
    for dataset in first["labels"]:
        for kind, called in KINDS.items():
            off = counts(first, arms.get("off", []), kind, dataset)
            for arm, runs in arms.items():
                found = counts(first, runs, kind, dataset)
                if not found.sum():
                    continue
                value, draws = float(cohens_kappa(found.sum(0))), _drawn(found)
                more = "-"
                if off.sum() and arm not in ("off", "start"):
                    more = _cell(value - float(cohens_kappa(off.sum(0))), draws - _drawn(off))
                table.append(
                    [dataset, called, arm, str(len(runs)), f"{found.sum():.0f}", _cell(value, draws), more]
                )
    return table


def talk_rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """[data set, S, arm, words of a reply, share of three words or fewer, different pairs of words,
    self-BLEU], means over the seeds of an arm, and of people's next turns."""
    made = dict[tuple[str, str, str], list[Mapping[str, float | None]]]()
    for dataset, people in results[0].get("people", {}).items():
        made[dataset, "-", "people"] = [people]
    for result in results:
        for run in result["runs"]:
            for kind, called in {"talk": "its own S", "talk_given": "S given"}.items():
                for dataset, found in run.get(kind, {}).items():
                    made.setdefault((dataset, called, run.get("arm", "start")), []).append(found)
    return [
        [*key, *(_mean([f[name] for f in found], form) for name, form in FORMS.items())]
        for key, found in sorted(made.items(), key=lambda m: m[0][:2])
    ]


def _mean(values: Sequence[float | None], form: str) -> str:
    """Their mean; a single reply has no self-BLEU."""
    known = [v for v in values if v is not None]
    return f"{np.mean(known):{form}}" if known else "-"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path)
    args = parser.parse_args(arguments)
    results = [json.loads(f.read_text(encoding="utf-8")) for f in args.results]
    print("| data | S | arm | seeds | replies | kappa | more than off |\n|" + " --- |" * 7)
    for row in rows(results):
        print(f"| {' | '.join(row)} |")
    print("\n| data | S | arm | words | of 3 or fewer | distinct-2 | self-BLEU |\n|" + " --- |" * 7)
    for row in talk_rows(results):
        print(f"| {' | '.join(row)} |")
    for result in results:
        arms = by_arm(result)
        start, *others = arms
        pairs = [(start, name, [*arms[start]] * len(arms[name]), arms[name]) for name in others]
        if "off" in arms:
            rest = [name for name in others if name != "off"]
            pairs += [("off", name, *same) for name in rest if (same := same_seeds([arms], "off", name))[0]]
        print(f"\n{score_table(result, arms)}\n\n{f1_table(result, pairs)}")


if __name__ == "__main__":
    main()
