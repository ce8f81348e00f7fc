"""The tables of the queue's step on the engine, from its committed result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from benchmarks.harness import shown
from experiments.gpu.provenance import VERSIONS, made_by
from experiments.gpu.steps import RESULTS

from selfemo.evaluation.rendering import render


def engine() -> str:
    """Step 1: each change of the engine, the engine against TRL, a round's parts, sampler against trainer."""
    try:
        result = json.loads((RESULTS / "engine.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "not run\n"
    versions = ", ".join(f"{name} {result[name] or 'not installed'}" for name in VERSIONS)
    tests = result["rows"].get("cuda tests", {})
    counts = ", ".join(f"{n} {name}" for name, n in tests.get("tests", {}).items())
    return "\n".join(
        [
            f"{made_by(result)}; {versions}",
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
    header = ["model", "settings", "mean |difference|, nats", "99th percentile", "ratios beyond the clip",
              "tokens"]  # fmt: skip
    return render(header, rows, "markdown")
