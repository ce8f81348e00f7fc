"""SFT steps on two threads, quiet and beside busy processes, by how long waiting threads of OpenMP spin.

Each setting runs in a process of its own, in turn, as often as --repeats says; then all again beside one
process a core that computes all the time. A setting is a value of GOMP_SPINCOUNT, `default` none, `passive`
OMP_WAIT_POLICY=passive.

    python -m benchmarks.waiting --data meld:PATH [--spins default,6000,20000,passive] [--repeats 3]

Writes waiting.json here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULT = Path(__file__).with_suffix(".json")
STEPS = 2
"""Steps of a process that are timed, after one that is not."""


def step(model: str, data: str) -> dict[str, float]:
    """Seconds of an SFT step in this process; the median of some."""
    from benchmarks import ours as our

    side = our.Side(model, "model.dtype=fp32", "model.threads=2")
    call = our.sft(side, our.sft_batches(data, STEPS + 1, 8, side.engine), 0.0)
    call(0)
    wall, cpu = [], []
    for k in range(1, STEPS + 1):
        began, used = time.perf_counter(), time.process_time()
        call(k)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    return {"wall_s": statistics.median(wall), "cpu_s": statistics.median(cpu)}


@contextmanager
def busy(n: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for p in processes:
            p.kill()
            p.wait()


def measured(setting: str, arguments: list[str]) -> dict[str, float]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MKL_"))}
    chosen = {"default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}.get(
        setting, {"GOMP_SPINCOUNT": setting}
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.waiting", "--one", *arguments],
        env={**clean, "THP_MEM_ALLOC_ENABLE": "1", **chosen}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="sample")
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--spins", default="default,3000,6000,10000,20000,passive")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(step(a.model, a.data)))
        return
    rows: dict[str, dict[str, Any]] = {}
    for load, others in (("quiet", 0), ("busy", os.cpu_count() or 1)):
        found: dict[str, list[dict[str, float]]] = {s: [] for s in a.spins.split(",")}
        with busy(others):
            for _ in range(a.repeats):
                for setting, runs in found.items():
                    runs.append(measured(setting, ["--data", a.data, "--model", a.model]))
                    print(load, setting, runs[-1], flush=True)
        for setting, runs in found.items():
            of = {name: sorted(round(r[name], 2) for r in runs) for name in runs[0]}
            rows.setdefault(setting, {})[load] = {
                **{k: statistics.median(v) for k, v in of.items()},
                "all": of,
            }
    held = {"cores": os.cpu_count(), "machine": platform.processor() or platform.machine(), "rows": rows}
    RESULT.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
