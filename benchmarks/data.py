"""Rows without a model: rewards and advantages, the store, the start of the command line."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.harness import Row, in_turn

G = 8


def rewards(n: int, repeats: int) -> Row:
    """Weighted IoU, consensus and advantages of n rollouts in groups of 8.

    Both take what a trainer hands over: weights of seven emotions per rollout. The peer is the loop over
    samples with dictionaries, as eqs. 8-13 are read.
    """
    from selfemo.method.rewards.consensus import consensus_rows
    from selfemo.method.rewards.iou import iou_rows
    from selfemo.method.self_grpo import advantages

    rng = np.random.default_rng(0)
    groups = n // G
    p = rng.dirichlet(np.full(7, 0.3), (groups, G)).round(1)
    p /= np.maximum(p.sum(-1, keepdims=True), 1e-9)
    y = rng.dirichlet(np.full(7, 0.3), groups)
    as_lists, targets = p.tolist(), y.tolist()

    def ours() -> np.ndarray:
        return advantages(iou_rows(p, y[:, None]), consensus_rows(p), 0.5)

    def theirs() -> list[list[float]]:
        result = []
        for group, target in zip(as_lists, targets, strict=True):
            r1 = []
            for row in group:
                low = sum(min(a, b) for a, b in zip(row, target, strict=True))
                high = sum(max(a, b) for a, b in zip(row, target, strict=True))
                r1.append(low / high)
            mean = [sum(row[e] for row in group) / G for e in range(7)]
            core = sorted((e for e in range(7) if mean[e] > 0), key=lambda e: -mean[e])[:3]
            r2 = [sum(row[e] > 0 for e in core) / 3 for row in group]
            parts = []
            for r in (r1, r2):
                mu, sd = statistics.fmean(r), statistics.pstdev(r)
                flat = max(r) - min(r) < 1e-12
                parts.append([0.0 if flat else (x - mu) / (sd + 1e-6) for x in r])
            result.append([0.5 * a + 0.5 * b for a, b in zip(*parts, strict=True)])
        return result

    def check(a: np.ndarray, b: list[list[float]]) -> None:
        np.testing.assert_allclose(a, np.array(b), atol=1e-6)

    row = Row(f"rewards and advantages, {n:,} rollouts", "a per-sample Python loop", 20.0)
    row.checked = "all advantages, 1e-6"
    return in_turn(row, ours, theirs, repeats, check)


def _records(n: int) -> Any:
    """n rollouts in groups of 8, as plain fields."""
    rng = np.random.default_rng(0)
    r1 = rng.random(n)
    for i in range(n):
        yield i // G, i % G, float(r1[i])


_OURS = """
import sys, time, json, resource
from pathlib import Path
from benchmarks.data import G, _records
from benchmarks.harness import add_rollouts
from selfemo.runs.store import Store
n, folder = int(sys.argv[1]), Path(sys.argv[2])
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
times, start = {}, time.perf_counter()
store = Store(folder / "store.sqlite")
step = []
def flush():
    with store.transaction():
        add_rollouts(store, step)
    step.clear()
for group, member, r1 in _records(n):
    step.append(("s", group // 64, 1, f"p{group}", member, "E: joy 7, fear 3", 40, None,
                 '{"joy": 0.7, "fear": 0.3}', '{"joy": 1.0}', "Yes, let us go.", r1, 0.5, 0.1, -0.4,
                 1.2, 0, None))
    if len(step) == 64 * G:
        flush()
flush()
times["insert"] = time.perf_counter() - start
start = time.perf_counter()
best = store.stream("SELECT prompt, max(r1) FROM rollouts WHERE stage = ? GROUP BY prompt", "s")
total = sum(r for _, r in best)
times["best"] = time.perf_counter() - start
start = time.perf_counter()
last = store.value("SELECT max(step) FROM rollouts WHERE stage = ?", "s")
times["resume"] = time.perf_counter() - start
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
print(json.dumps({**times, "peak MiB": peak, "best total": total, "last": last}))
"""

_THEIRS = """
import sys, time, json, resource
from pathlib import Path
import pandas as pd
from benchmarks.data import G, _records
n, path = int(sys.argv[1]), Path(sys.argv[2]) / "rollouts.jsonl"
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
times, start = {}, time.perf_counter()
step = []
def flush():
    pd.DataFrame(step).to_json(path, orient="records", lines=True, mode="a")
    step.clear()
for group, member, r1 in _records(n):
    step.append({"stage": "s", "step": group // 64, "iteration": 1, "prompt": f"p{group}",
                 "member": member, "text": "E: joy 7, fear 3", "tokens": 40, "failure": None,
                 "emotion": '{"joy": 0.7, "fear": 0.3}', "self_emotion": '{"joy": 1.0}',
                 "reply": "Yes, let us go.", "r1": r1, "r2": 0.5, "advantage": 0.1,
                 "mean_logprob": -0.4, "entropy": 1.2, "best": 0, "gate": None})
    if len(step) == 64 * G:
        flush()
if step:
    flush()
times["insert"] = time.perf_counter() - start
start = time.perf_counter()
frame = pd.read_json(path, lines=True)
best = frame.loc[frame.groupby("prompt").r1.idxmax()]
total = float(best.r1.sum())
times["best"] = time.perf_counter() - start
start = time.perf_counter()
last = int(pd.read_json(path, lines=True).step.max())
times["resume"] = time.perf_counter() - start
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
print(json.dumps({**times, "peak MiB": peak, "best total": total, "last": last}))
"""


def store(n: int, repeats: int) -> Row:
    """Insert n rollouts step by step, the best of each group, and where a resumed stage goes on."""
    seen: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}

    def run(script: str, side: str) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", script, str(n), folder]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result: dict[str, float] = json.loads(out)
        seen[side].append(result)
        return result

    def check(a: dict[str, float], b: dict[str, float]) -> None:
        assert abs(a["best total"] - b["best total"]) < 1e-3 * abs(b["best total"])
        assert a["last"] == b["last"]

    name = f"store: insert {n:,} rollouts, best of each group, resume scan"
    row = Row(name, "pandas over JSONL", 5.0, checked="sum of the best rewards, last step")
    in_turn(row, lambda: run(_OURS, "ours"), lambda: run(_THEIRS, "theirs"), repeats, check, warm=False)
    for side, runs in seen.items():
        row.details[side] = {k: statistics.median(r[k] for r in runs) for k in runs[0]}
    row.ours = [r["insert"] + r["best"] + r["resume"] for r in seen["ours"]]
    row.theirs = [r["insert"] + r["best"] + r["resume"] for r in seen["theirs"]]
    return row


def start(repeats: int) -> Row:
    """`selfemo --help`, whole process."""
    row = Row("selfemo --help", "", None, details={"bound": 0.5})
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        command = [sys.executable, "-m", "selfemo.cli", "--help"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        row.ours.append(time.perf_counter() - begin)
    del row.ours[0]
    return row
