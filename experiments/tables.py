"""The tables of docs/results.md that come from committed results: `python -m experiments.tables`."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from experiments.engine_tables import engine
from experiments.gpu.provenance import made_by
from experiments.gpu.scoring import outcomes_of
from experiments.gpu.settings import SPEED, differing, told
from experiments.gpu.steps import RESULTS
from experiments.gpu.study import HERE

from selfemo.config import load
from selfemo.evaluation.metrics import Outcomes, PairedDifference, paired_average, paired_difference
from selfemo.evaluation.rendering import render
from selfemo.method.types import BUILTIN_MODEL

START, SHIFTED = "start", "nll_shifted"
ARMS = {
    "mean": "RL, divided by the mean",
    "ce": "cross-entropy, same labels",
    "std": "RL, divided by the deviation",
    "plain": "RL, eq. 14 (completions, deviation)",
}
PRIMARY, WANTED = (START, "full"), 0.0633
"""The primary endpoint, fixed before the first run of the step evidence: the mean over the data sets and
over seeds 0, 1 and 2 of weighted F1 on the claim half of dev, by probability, of `full` minus that of its
cold start, of the built-in model under evidence.toml. Interval and test are paired by conversation, all seeds
of one together, and F1 is computed anew in each draw. It is reached where the difference is at least WANTED
(of 1, not in points) and p < .05. A seed whose start stopped the step leaves it open."""
CAUSES = (("original", "full"), ("sft", "full"), ("placebo", "full"))
"""Fixed with it, since labels alone can reach it: what self-play adds at equal prompts, what the method adds
to cross-entropy, and what the reply adds to its steps. All else in the tables is exploratory."""
PRIMARY_SEEDS = (0, 1, 2)


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
    mine, u = claimed(result, dataset, clean=clean), result["utterances"]
    a, b = (np.mean([r[key] for r in runs], 0)[mine].tolist() for runs in (before, after))
    return paired_difference(a, b, [u["conversation"][i] for i in mine], resamples=10_000)


def claimed(result: Mapping[str, Any], dataset: str = "", *, clean: bool = False) -> list[int]:
    """Where the utterances of the claim half are, of one data set or all."""
    u = result["utterances"]
    return [
        i
        for i, (half, d, shared) in enumerate(zip(u["half"], u["dataset"], u["overlaps"], strict=True))
        if half == "claim" and dataset in ("", d) and not (clean and shared)
    ]


Runs = Sequence[Mapping[str, Any]]
Predicted = Callable[[Mapping[str, Any]], Sequence[int]]
"""From a run to the places of its predicted labels by utterance."""


def by_probability(run: Mapping[str, Any]) -> Sequence[int]:
    places: Sequence[int] = run["predicted"]
    return places


def by_greedy(run: Mapping[str, Any]) -> Sequence[int]:
    places: Sequence[int] = run["greedy"]["predicted"]
    return places


def f1_parts(
    result: Mapping[str, Any],
    runs: Runs,
    predicted: Predicted = by_probability,
    dataset: str = "",
    *,
    clean: bool = False,
) -> list[tuple[int, Outcomes]]:
    """What each run predicted on the claim half, counted by conversation: each data set that has such an
    utterance, or one alone, with its number."""
    u, found = result["utterances"], list[tuple[int, Outcomes]]()
    for run in runs:
        for k, (d, labels) in enumerate(result["labels"].items()):
            if dataset in ("", d) and (mine := claimed(result, d, clean=clean)):
                told = [predicted(run)[i] for i in mine]
                gold, conversations = ([u[key][i] for i in mine] for key in ("gold", "conversation"))
                found.append((k, outcomes_of(gold, told, conversations, labels)))
    return found


def f1_change(
    before: Sequence[tuple[int, Outcomes]], after: Sequence[tuple[int, Outcomes]]
) -> PairedDifference:
    """The paired change of weighted F1, the mean over data sets and runs."""
    pairs = [(a, b) for (_, a), (_, b) in zip(before, after, strict=True)]
    return paired_average(pairs, of=[k for k, _ in before], resamples=10_000)["weighted_f1"]


def mean_f1(parts: Iterable[tuple[int, Outcomes]]) -> float:
    """Weighted F1, the mean over data sets and runs."""
    return float(np.mean([p.measures()["weighted_f1"] for _, p in parts]))


def points(change: PairedDifference) -> str:
    """A change of F1 with its interval, in points."""
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * v for v in change.difference.as_list()))


def score_table(result: Mapping[str, Any], arms: Mapping[str, Runs]) -> str:
    """Scores of each arm on the claim half, the mean over its seeds."""
    rows = []
    for name, runs in arms.items():
        for d in dict.fromkeys(result["utterances"]["dataset"]):
            scored = [r["claim"][d] for r in runs]
            means = [
                np.mean([s[m] for s in scored]) for m in ("accuracy", "weighted_f1", "macro_f1", "nll_at_t")
            ]
            temperature = np.mean([s["temperature"] for s in scored])
            rate = f"{runs[0]['lr']:g}" if "lr" in runs[0] else "-"
            label = ARMS.get(name, name)
            rows.append([label, d, rate, str(len(runs)), *(f"{m:.3f}" for m in means), f"{temperature:.2f}"])
    header = ["arm", "data", "rate", "seeds", "accuracy", "weighted F1", "macro F1", "NLL at T", "T"]
    return render(header, rows, "markdown")


def change_table(
    result: Mapping[str, Any], pairs: Sequence[tuple[str, Runs, str, Runs]], *, brief: bool = False
) -> str:
    """Paired changes on the claim half: by data set, together and without what overlaps, or, brief,
    together alone."""
    datasets, rows = dict.fromkeys(result["utterances"]["dataset"]), []
    for first, before, second, after in pairs:
        for d, clean in [("", False)] if brief else [*((d, False) for d in (*datasets, "")), ("", True)]:
            cells = []
            for key in ("hits", "nll_at_t"):
                found = compared(result, before, after, key, d, clean=clean)
                value, low, high = found.difference.as_list()
                cells += [f"{value:+.3f} [{low:+.3f}, {high:+.3f}]", f"{found.p_value:.4f}"]
            change = f"{ARMS.get(first, first)} to {ARMS.get(second, second)}"
            rows.append([change, d or ("both, clean" if clean else "both"), *cells])
    return render(["change", "data", "accuracy", "p", "NLL at T", "p"], rows, "markdown")


def shifted_table(result: Mapping[str, Any], pairs: Sequence[tuple[str, str, Runs, Runs]]) -> str:
    """Paired changes of NLL at T after a prior shift, of the runs that kept it; nothing where none did."""
    datasets, rows = (*dict.fromkeys(result["utterances"]["dataset"]), ""), []
    for first, second, *sides in pairs:
        kept = [(a, b) for a, b in zip(*sides, strict=True) if SHIFTED in a and SHIFTED in b]
        if kept:
            found = [compared(result, *zip(*kept, strict=True), SHIFTED, d) for d in datasets]
            cells = ("{:+.3f} [{:+.3f}, {:+.3f}]".format(*f.difference.as_list()) for f in found)
            rows.append([f"{first} to {second}", str(len(kept)), *cells])
    header = ["change of NLL at T, prior shift", "seeds", *datasets[:-1], "both"]
    return render(header, rows, "markdown") if rows else ""


def rl_alone() -> str:
    """Each arm, and its changes from the start and from cross-entropy."""
    result = read("rl_alone")
    start = [r for r in result["runs"] if r["run"] == START]
    arms = chosen_runs(result)
    pairs = [(START, start, name, runs) for name, runs in arms.items()]
    pairs.append(("ce", arms["ce"], "mean", arms["mean"]))
    return f"{score_table(result, {START: start, **arms})}\n{change_table(result, pairs)}"


SCARCE = (("original", "balanced"), ("twice", "balanced"))
"""The comparisons of the step scarce that its question hangs on."""
SCARCE_MORE = (
    (START, "original"),
    (START, "twice"),
    (START, "balanced"),
    (START, "full"),
    ("original", "twice"),
    ("original", "full"),
    ("full", "balanced"),
    ("placebo", "balanced"),
    ("original", "unlabelled"),
    ("twice", "unlabelled"),
    ("twice", "more"),
)
"""Its others."""


def by_arm(result: Mapping[str, Any]) -> dict[str, Runs]:
    """The runs of each arm by seed, the start first."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for r in result["runs"]:
        arms.setdefault(r.get("arm", r["run"]), []).append(r)
    return {arm: sorted(runs, key=lambda r: r.get("seed", 0)) for arm, runs in arms.items()}


def same_seeds(
    results: Sequence[Mapping[str, Runs]], first: str, second: str
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The runs of two arms with the seeds that both have in one result, so of one start and one machine; the
    start, which has no seed, stands against each.

    Args:
        results: by arm, each.
    """
    pairs = list[tuple[Mapping[str, Any], Mapping[str, Any]]]()
    for arms in results:
        known = {r.get("seed"): r for r in arms.get(first, ())}
        pairs += [(a, b) for b in arms.get(second, ()) if (a := known.get(None, known.get(b["seed"])))]
    return [a for a, _ in pairs], [b for _, b in pairs]


def grouped(pattern: str, key: Callable[[Mapping[str, Any]], Hashable]) -> list[dict[str, dict[str, Any]]]:
    """The committed results of a step, by file name, in groups that may be pooled.

    Raises:
        ValueError: results of a group are not of the same utterances, or have a run in common.
    """
    groups: dict[Hashable, dict[str, dict[str, Any]]] = {}
    for file in sorted(RESULTS.glob(pattern)):
        result = read(file.stem)
        groups.setdefault(key(result), {})[file.name] = result
    for group in groups.values():
        if len({json.dumps(r["utterances"]) for r in group.values()}) > 1:
            raise ValueError(f"not of the same utterances: {', '.join(group)}")
        names = [run["run"] for r in group.values() for run in r["runs"] if run["run"] != START]
        if again := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"in more than one of {', '.join(group)}: {again}")
    return list(groups.values())


def model_of(result: Mapping[str, Any]) -> str:
    name: str = result["settings"]["model"]["id"]
    return name


def labels_of(result: Mapping[str, Any]) -> str:
    """How many conversations of a result of the step scarce have labels."""
    return str(result.get("budget", "200"))


def scarce() -> str:
    """The arms where some conversations have labels, by budget, result and arm, and their changes over the
    seeds that both sides have in one result (ValueError: see `grouped`)."""
    written = []
    for group in grouped("scarce*.json", lambda r: (model_of(r), labels_of(r))):
        results, first = list(group.values()), next(iter(group.values()))
        each = [by_arm(r) for r in results]
        written.append(f"{model_of(first)}, labelled conversations: {labels_of(first)}\n")
        written += [
            f"{name}: {r['device']}\n\n{score_table(r, arms)}"
            for (name, r), arms in zip(group.items(), each, strict=True)
        ]
        for chosen in (SCARCE, SCARCE_MORE):
            found = [(a, b, *same_seeds(each, a, b)) for a, b in chosen]
            pairs = [
                (a, before, f"{b}, {len(after)} seeds", after) for a, b, before, after in found if before
            ]
            written.append(change_table(first, pairs, brief=chosen is SCARCE_MORE))
        pairs_of = [(a, b, *same_seeds(each, a, b)) for a, b in SCARCE + SCARCE_MORE]
        written.append(shifted_table(first, pairs_of))
    return "\n".join(written)


def one_thing() -> str:
    """One setting changed at a time, each against the base of the same seed."""
    result = read("one_thing")
    arms = by_arm(result)
    pairs = [("base", arms["base"], b, runs) for b, runs in arms.items() if b not in (START, "base")]
    return f"{score_table(result, arms)}\n{change_table(result, pairs)}"


EVIDENCE = (
    PRIMARY,
    (START, "original"),
    (START, "sft"),
    (START, "plain"),
    (START, "vanilla"),
    (START, "placebo"),
    ("original", "full"),
    ("sft", "full"),
    ("plain", "full"),
    ("placebo", "full"),
    ("vanilla", "plain"),
)
"""The comparisons of the step evidence."""


def evidence() -> str:
    """The primary endpoint and the exploratory tables of the step evidence, by model; "not run" where there
    is no result (ValueError: see `grouped`, or results of one model have other settings)."""
    written = []
    for group in grouped("evidence*.json", model_of):
        results, first = list(group.values()), next(iter(group.values()))
        for name, r in group.items():
            if other := differing(first["settings"], r["settings"], MAY_DIFFER):
                raise ValueError(f"{name} has other settings than {next(iter(group))}: {'; '.join(other)}")
            prompts = f"{r['settings']['flywheel']['prompts']:,} prompts an arm"
            written.append(f"{name}: {model_of(r)}, {prompts}, {made_by(r)}")
            written += [f"  before that {', '.join(m['runs'])}: {made_by(m)}" for m in r.get("earlier", ())]
            if differs := r.get("start_differs"):
                written.append(f"  starts of later leases differ from the first: {differs}")
            if stopped := r.get("stopped"):
                written.append(f"  stopped: {stopped}")
        each = [by_arm(r) for r in results]
        pairs = [pair for a, b in EVIDENCE if (pair := (a, b, *same_seeds(each, a, b)))[2]]
        arms = {a: [r for runs in each for r in runs.get(a, ())] for a in dict.fromkeys(chain(*each))}
        brief = [(a, before, f"{b}, {len(after)} seeds", after) for a, b, before, after in pairs]
        written += ["", primary_table(first, each), causes_table(first, each)]
        written.append("Exploratory, all that follows:\n")
        written += [f1_table(first, pairs), score_table(first, arms), writing_table(arms)]
        written.append(change_table(first, brief, brief=True))
    return "\n".join(written) or "not run\n"


MAY_DIFFER = ("seed", "model.", *SPEED)
"""Settings in which results that are pooled may differ."""


def as_fixed(result: Mapping[str, Any]) -> bool:
    """Whether a result is of the model and the settings that the primary endpoint was fixed for."""
    fixed = told(load([HERE / "evidence.toml"]))
    return model_of(result) == BUILTIN_MODEL and not differing(fixed, result["settings"], MAY_DIFFER)


def f1_row(
    result: Mapping[str, Any], before: Runs, after: Runs, *, clean: bool = False
) -> tuple[list[str], PairedDifference]:
    """Seeds, both means, their difference, that of each seed, and p; all in points."""
    sides = [f1_parts(result, runs, clean=clean) for runs in (before, after)]
    change = f1_change(*sides)
    each = [
        mean_f1(f1_parts(result, [b], clean=clean)) - mean_f1(f1_parts(result, [a], clean=clean))
        for a, b in zip(before, after, strict=True)
    ]
    means = [f"{100 * mean_f1(side):.2f}" for side in sides]
    by_seed = ", ".join(f"{100 * x:+.2f}" for x in each)
    seeds = ", ".join(str(r["seed"]) for r in after)
    return [seeds, *means, points(change), by_seed, f"{change.p_value:.4f}"], change


def primary_table(result: Mapping[str, Any], each: Sequence[Mapping[str, Runs]]) -> str:
    """`PRIMARY`, with the seeds that it has and lacks; beside it without what overlaps with training data."""
    before, after = same_seeds(each, *PRIMARY)
    missing = [str(s) for s in PRIMARY_SEEDS if s not in {r["seed"] for r in after}]
    title = "primary endpoint" if as_fixed(result) else "of another model or other settings: exploratory"
    header = [title, "seeds", *PRIMARY, "difference, points", "by seed", "p", f"at least {100 * WANTED:+.2f}"]
    if not after:
        return render(header, [["weighted F1", "not run", *["-"] * 6]], "markdown")
    cells, change = f1_row(result, before, after)
    reached = change.difference.value >= WANTED and change.p_value < 0.05
    state = (
        f"open: seed {', '.join(missing)} not run" if missing else ("reached" if reached else "not reached")
    )
    rows = [[f"weighted F1, mean of {', '.join(result['labels'])}, claim half", *cells, state]]
    rows.append(["without what overlaps", *f1_row(result, before, after, clean=True)[0], "-"])
    return render(header, rows, "markdown")


def causes_table(result: Mapping[str, Any], each: Sequence[Mapping[str, Runs]]) -> str:
    """`CAUSES`, each with the seeds that both sides have."""
    rows = []
    for first, second in CAUSES:
        before, after = same_seeds(each, first, second)
        cells = f1_row(result, before, after)[0] if after else ["not run", *["-"] * 5]
        rows.append([f"{first} to {second}", *cells])
    header = ["what it is owed to", "seeds", "before", "after", "difference, points", "by seed", "p"]
    return render(header, rows, "markdown")


def f1_table(result: Mapping[str, Any], pairs: Sequence[tuple[str, str, Runs, Runs]]) -> str:
    """Paired changes of weighted F1 on the claim half, in points: by data set, their mean, without what
    overlaps, and of greedy completions."""
    datasets, rows = list(result["labels"]), []
    columns: dict[str, dict[str, Any]] = {d: {"dataset": d} for d in datasets}
    columns |= {"mean": {}, "mean, clean": {"clean": True}, "mean, greedy": {"predicted": by_greedy}}
    for first, second, before, after in pairs:
        cells = []
        for chosen in columns.values():
            if chosen.get("predicted") is by_greedy and not all("greedy" in r for r in (*before, *after)):
                cells.append("-")
                continue
            change = f1_change(*(f1_parts(result, runs, **chosen) for runs in (before, after)))
            cells.append(f"{points(change)} p={change.p_value:.4f}")
        rows.append([f"{first} to {second}", str(len(after)), *cells])
    return render(["change of weighted F1, points", "seeds", *columns], rows, "markdown")


def writing_table(arms: Mapping[str, Runs]) -> str:
    """What each arm writes and how sure it is, the mean over its seeds: calibration on the claim half; of
    greedy completions of dev those that did not parse; of sampled ones entropy by span, the S that the start
    hears in the reply, and different replies."""

    def mean(values: Iterable[float | None]) -> str:
        known = [v for v in values if v is not None]
        return f"{np.mean(known):.3f}" if known else "-"

    rows = []
    for arm, found in arms.items():
        runs = [r for r in found if "analysis" in r]  # its details may have failed
        analyses = [r["analysis"] for r in runs]
        trips = [[a["round_trip"][k] or [None] for a in analyses] for k in ("r1", "top_match")]
        spans = [[a["entropy"][k] or [None] for a in analyses] for k in ("emotion", "self_emotion", "reply")]
        unread = [sum(r["greedy"]["failures"].values()) / len(r["greedy"]["texts"]) for r in runs]
        rows.append(
            [
                arm, str(len(runs)),
                mean(s["calibration"]["ece"] for r in runs for s in r["claim"].values()), mean(unread),
                *(mean(v[0] for v in values) for values in (*spans, *trips)),
                mean(a["diversity"]["different_replies"] for a in analyses),
            ]
        )  # fmt: skip
    header = ["arm", "seeds", "ECE", "not parsed", "H(E)", "H(S)", "H(reply)", "round trip R1", "top match",
              "different replies"]  # fmt: skip
    return render(header, rows, "markdown")


def main() -> None:
    for step in (engine, evidence, rl_alone, scarce, one_thing):
        print(f"{step.__name__}\n\n{step()}")


if __name__ == "__main__":
    main()
