"""The tables of docs/results.md that come from committed results: `python -m experiments.tables`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.harness import shown

from selfemo.evaluation.metrics import PairedDifference, paired_difference
from selfemo.evaluation.rendering import render

RESULTS = Path(__file__).parent / "gpu" / "results"
START, SHIFTED = "start", "nll_shifted"
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


Runs = Sequence[Mapping[str, Any]]


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


def scarce() -> str:
    """The arms with 200 labelled conversations, by result, and their changes over the seeds that both sides
    have in one result.

    Raises:
        ValueError: the results are not of the same utterances, or have a run in common.
    """
    files = sorted(RESULTS.glob("scarce*.json"))
    results = [read(f.stem) for f in files]
    if len({json.dumps(r["utterances"]) for r in results}) > 1:
        raise ValueError("the results of the step scarce are not of the same utterances")
    names = [run["run"] for r in results for run in r["runs"] if run["run"] != START]
    if again := {n for n in names if names.count(n) > 1}:
        raise ValueError(f"in more than one result of the step scarce: {sorted(again)}")
    each = [by_arm(r) for r in results]
    written = [
        f"{f.name}: {r['device']}\n\n{score_table(r, arms)}"
        for f, r, arms in zip(files, results, each, strict=True)
    ]
    for chosen in (SCARCE, SCARCE_MORE):
        found = [(a, b, *same_seeds(each, a, b)) for a, b in chosen]
        pairs = [(a, before, f"{b}, {len(after)} seeds", after) for a, b, before, after in found if before]
        written.append(change_table(results[0], pairs, brief=chosen is SCARCE_MORE))
    pairs_of = [(a, b, *same_seeds(each, a, b)) for a, b in SCARCE + SCARCE_MORE]
    return "\n".join([*written, shifted_table(results[0], pairs_of)])


def one_thing() -> str:
    """One setting changed at a time, each against the base of the same seed."""
    result = read("one_thing")
    arms = by_arm(result)
    pairs = [("base", arms["base"], b, runs) for b, runs in arms.items() if b not in (START, "base")]
    return f"{score_table(result, arms)}\n{change_table(result, pairs)}"


def engine() -> str:
    """Step 1: each change of the engine, the engine against TRL, a round's parts, sampler against trainer."""
    try:
        result = read("engine")
    except FileNotFoundError:
        return "not run\n"
    versions = ", ".join(f"{name} {v or 'not installed'}" for name, v in result["versions"].items())
    tests = result["rows"].get("cuda tests", {})
    counts = ", ".join(f"{n} {name}" for name, n in tests.get("tests", {}).items())
    source = f"commit {result['commit'] or 'unknown'}, source {result['digests']['src/selfemo'][:12]}"
    return "\n".join(
        [
            f"{result['card']}; {versions}; {source}",
            f"tests/model/test_cuda.py: {counts or _undone(tests)}\n",
            _change_table(result),
            _trl_table(result),
            _part_table(result),
            _mismatch_table(result),
        ]
    )


def _undone(record: Mapping[str, Any]) -> str:
    """Why a row has no figures; empty where it has."""
    if "failed" in record:
        return f"failed: {record['failed']}"
    return "" if record and "not_run" not in record else f"not run{_why(record.get('not_run'))}"


def _why(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def _planned(result: Mapping[str, Any]) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """(model, change or peer, work, record) of each planned row; an empty record where it was not made."""
    names = [n.split("/") for n in result["planned"] if n.count("/") == 2]
    return [(m, kind, work, result["rows"].get(f"{m}/{kind}/{work}", {})) for m, kind, work in names]


def _sides(record: Mapping[str, Any], work: str, scale: float = 1.0) -> list[str]:
    """What the two sides of a row reached, in the unit of its work."""
    found = []
    for k, side in enumerate(("ours", "theirs")):
        values, unit = [v * scale for v in record[side]], "s"
        if work.startswith("rollouts"):
            tokens = record["details"]["tokens"][k] if "tokens" in record["details"] else [1000] * len(values)
            values, unit = [n / v for n, v in zip(tokens, values, strict=True)], "tokens/s"
        found.append(f"{shown(values)} {unit}" if values else "")
    return found


def _gib(record: Mapping[str, Any]) -> list[str]:
    peaks = record.get("peak_gib") or []
    return [*("-" if p is None else f"{p:.2f}" for p in peaks), "-", "-"][:2]


def _percent(share: Sequence[float] | None) -> str:
    return f"{100 * float(np.median(share)):.1f}%" if share else "-"


def _change_table(result: Mapping[str, Any]) -> str:
    rows = []
    for model, change, work, r in _planned(result):
        if change in ("trl", "mismatch"):
            continue
        if undone := _undone(r):
            rows.append([model, change, work, undone, *[""] * 7])
            continue
        (ours, theirs), (mine, other) = _sides(r, work), _gib(r)
        share = [_percent(s) for s in r["details"].get("share", [None, None])]
        first = "{:.1f}, {:.1f}".format(*r["first_less_later_s"])
        agree = "yes" if r["agree"] else "THEY DIFFER"
        rows.append([model, change, work, ours, theirs, shown(r["ratios"]), mine, other, first,
                     ", ".join(share), f"{agree} ({r['checked']})"])  # fmt: skip
    header = ["model", "change", "work", "with it", "baseline", "ratio", "peak GiB", "baseline's",
              "first call less later, s", "share of the card's peak", "agree"]  # fmt: skip
    return render(header, rows, "markdown")


def _trl_table(result: Mapping[str, Any]) -> str:
    rows, goals = [], result["goals"]
    for model, peer, work, r in _planned(result):
        if peer != "trl":
            continue
        if undone := _undone(r):
            rows.append([model, work, undone, *[""] * 8])
            continue
        # A round's seconds are kept a prompt.
        scale = r["details"]["prompts"]["ours"] if work == "round" else 1.0
        (ours, theirs), (mine, other) = _sides(r, work, scale), _gib(r)
        peaks = r["peak_gib"]
        less = f"{peaks[0] / peaks[1]:.2f}" if len(peaks) == 2 and all(peaks) else "-"
        goal = "" if r["goal"] is None else f"{r['goal']:.1f}"
        share = _percent(r["details"].get("utilisation"))
        peak = f"{goals['share'][model]:.0%}" if work.startswith("update") else ""
        rows.append([model, work, ours, theirs or "no peer", shown(r["ratios"]), goal, share, peak,
                     mine, other, less])  # fmt: skip
    header = ["model", "row", "ours", "peer's", "ratio", "goal", "share of the card's peak", "goal",
              "peak GiB", "peer's", f"ours of the peer's (goal {goals['memory']})"]  # fmt: skip
    return render(header, rows, "markdown")


def _part_table(result: Mapping[str, Any]) -> str:
    """The parts of a two-stage round, seconds."""
    rows, names = [], ("sampling", "rewards", "packing", "update")
    for model, kind, work, r in _planned(result):
        if work != "round" or _undone(r):
            continue
        if kind == "trl":
            rounds = r["details"]["parts of a round, s"]
            sides = {"ours, beside TRL": {n: np.median([p[n] for p in rounds]) for n in names}}
        else:
            sides = dict(zip((kind, f"baseline of {kind}"), r["details"]["parts"], strict=True))
        rows += [[model, side, *(f"{parts[n]:.3f}" for n in names)] for side, parts in sides.items()]
    return render(["model", "round of", *names], rows, "markdown")


def _mismatch_table(result: Mapping[str, Any]) -> str:
    rows = []
    for model, kind, name, r in _planned(result):
        if kind != "mismatch":
            continue
        if undone := _undone(r):
            rows.append([model, name, undone, "", "", ""])
            continue
        m = r["mismatch"]
        apart = (f"{m['mismatch']:.2e}", f"{m['mismatch_p99']:.2e}", f"{m['mismatch_clipped']:.3%}")
        rows.append([model, name, *apart, str(m["tokens"])])
    header = [
        "model",
        "settings",
        "mean |difference|, nats",
        "99th percentile",
        "ratios beyond the clip",
        "tokens",
    ]
    return render(header, rows, "markdown")


def main() -> None:
    for step in (engine, rl_alone, scarce, one_thing):
        print(f"{step.__name__}\n\n{step()}")


if __name__ == "__main__":
    main()
