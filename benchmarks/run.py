"""`make bench`: every row, each in a process of its own, into results.json and docs/performance.md.

    python -m benchmarks.run [--rows rollouts-400,store] [--threads 1] [--data meld:PATH] [--model ID]
    python -m benchmarks.run --device cuda --dtype bf16 --peak-tflops 989 --results gpu.json

A row that was measured before stays until it is measured again, with the versions it was measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.harness import Row

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.json", HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def _memory(args: argparse.Namespace) -> Row:
    row = Row("peak memory of one RL step, prompt 400 + 96, G 8", "TRL GRPOTrainer", 1 / 0.6, "GiB")
    for _ in range(args.repeats):
        for side, into in (("ours", row.ours), ("theirs", row.theirs)):
            command = [sys.executable, "-m", "benchmarks.run", "--memory", side]
            command += ["--model", args.model, "--threads", str(args.threads)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            into.append(float(out.split()[-1]))
    row.checked = "the same tokens; a generation and two updates each"
    return row


def rows(args: argparse.Namespace) -> dict[str, Callable[[], Row]]:
    def training(name: str, *more: Any) -> Callable[[], Row]:
        def run() -> Row:
            from benchmarks import training as t

            return getattr(t, name)(args.model, *more)

        return run

    def generation(name: str, *more: Any) -> Callable[[], Row]:
        def run() -> Row:
            from benchmarks import generation as g

            return getattr(g, name)(args.model, args.data, *more)

        return run

    def data(name: str, *more: Any) -> Callable[[], Row]:
        def run() -> Row:
            from benchmarks import data as d

            return getattr(d, name)(*more)

        return run

    n = args.repeats
    return {
        "update-1000": training("policy_update", 1000, n, 4.5, args.micro),
        "update-400": training("policy_update", 400, n, 3.5, args.micro),
        "rollouts-400": generation("rollouts", 400, n),
        "rollouts-1000": generation("rollouts", 1000, n),
        "rl-step": training("rl_step", args.data, n),
        "memory": lambda: _memory(args),
        "evaluation": generation("evaluation", args.prompts),
        "sft-step": training("sft_step", args.data, n),
        "rewards": data("rewards", 1_000_000, n),
        "store": data("store", 1_000_000, n),
        "start": data("start", 5),
    }


def _shown(values: list[float]) -> str:
    if not values:
        return ""
    middle = statistics.median(values)
    digits = 2 if middle < 10 else 1
    return f"{middle:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(results: dict[str, Any]) -> str:
    lines = [
        "| row | peer | ours | peer's | ratio | goal | checked in the same run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results.values():
        goal = "" if r["goal"] is None else f"{r['goal']:.1f}"
        if "bound" in r["details"]:
            goal = f"under {r['details']['bound']} {r['unit']}"
        cells = [
            r["name"], r["peer"], f"{_shown(r['ours'])} {r['unit']}",
            f"{_shown(r['theirs'])} {r['unit']}" if r["theirs"] else "", _shown(r["ratios"]), goal,
            r["checked"],
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _write(name: str, row: Row, args: argparse.Namespace) -> None:
    path = HERE / args.results
    results = json.loads(path.read_text()) if path.exists() else {}
    versions = {}
    for package in ("torch", "transformers", "trl", "numpy", "pandas"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    results[name] = {**row.as_dict(), "threads": args.threads, "device": args.device,
                     "dtype": args.dtype, "versions": versions}  # fmt: skip
    order = list(rows(args))
    results = {k: results[k] for k in sorted(results, key=order.index)}
    path.write_text(json.dumps(results, indent=1) + "\n")
    if path != RESULTS:
        return
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", help="names, by commas; all where left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=500, help="of the evaluation row")
    parser.add_argument("--data", default="sample", help="conversations, as in data.sources")
    parser.add_argument("--model", default="builtin:smollm2-135m", help="id or folder")
    parser.add_argument("--micro", type=int, default=8, help="rows of TRL's micro-batches (memory)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the device, dense")
    parser.add_argument("--results", default=RESULTS.name, help="file name beside this script")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(args.threads)
    if args.one or args.memory:
        from benchmarks.training import SETTINGS

        SETTINGS.update(device=args.device, dtype=args.dtype, peak_tflops=args.peak_tflops)
    if args.memory:
        from benchmarks.training import memory

        print(memory(args.model, args.memory).ours[0])
        return
    available = rows(args)
    if args.one:
        row = available[args.one]()
        _write(args.one, row, args)
        print(f"{row.name}: {_shown(row.ours)} {row.unit}, ratio {_shown(row.ratios)}")
        return
    chosen = args.rows.split(",") if args.rows else list(available)
    if unknown := set(chosen) - set(available):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are: {', '.join(available)}")
    failed = []
    for name in chosen:
        command = [sys.executable, "-m", "benchmarks.run", "--one", name]
        for option in vars(args).keys() - {"rows", "one", "memory"}:
            command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
