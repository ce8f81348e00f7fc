"""`make bench`: every row, each in a process of its own, into results.json and docs/performance.md.

    python -m benchmarks.run [--rows rollouts-400,store] [--threads 1] [--data meld:PATH] [--model ID]
    python -m benchmarks.run --dtype bf16            # the rows of models, ours and the peers in bf16
    python -m benchmarks.run --device cuda --dtype bf16 --peak-tflops 989 --results gpu.json

A row that was measured before stays until it is measured again, with the versions it was measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, shown

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.json", HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def _options(args: argparse.Namespace) -> list[str]:
    """The settings that a row's own process needs."""
    left = vars(args).keys() - {"rows", "one", "memory", "together"}
    return [x for o in sorted(left) for x in (f"--{o.replace('_', '-')}", str(getattr(args, o)))]


def _memory(args: argparse.Namespace) -> Row:
    name = "peak memory of one RL step, prompt 400 + 96, G 8"
    name += f", {args.groups} groups" if args.groups > 1 else ""
    row = Row(name, "TRL GRPOTrainer", 1 / 0.6, "GiB")
    for _ in range(args.repeats):
        for side, into in (("ours", row.ours), ("theirs", row.theirs)):
            command = [sys.executable, "-m", "benchmarks.run", "--memory", side, *_options(args)]
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

    def rl_prompts() -> Row:
        from benchmarks.rl_rate import rl_prompts

        return rl_prompts(args.model, args.data, args.repeats, args.micro)

    n, groups, micro = args.repeats, args.groups, args.micro
    return {
        "update-1000": training("policy_update", 1000, n, 4.5, micro, groups),
        "update-400": training("policy_update", 400, n, 3.5, micro, groups),
        "rollouts-400": generation("rollouts", 400, n, args.rollout_groups),
        "rollouts-1000": generation("rollouts", 1000, n, args.rollout_groups),
        "rl-step": training("rl_step", args.data, n, micro, groups),
        "rl-prompts": rl_prompts,
        "memory": lambda: _memory(args),
        "evaluation": generation("evaluation", args.prompts, args.batch),
        "sft-step": training("sft_step", args.data, n, args.sft_batch),
        "rewards": data("rewards", 1_000_000, n),
        "store": data("store", 1_000_000, n),
        "start": data("start", 5),
    }


def table(results: dict[str, Any]) -> str:
    lines = [
        "| row | peer | ours | peer's | ratio | goal | checked in the same run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results.values():
        goal = "" if r["goal"] is None else f"{r['goal']:.1f}"
        if "bound" in r["details"]:
            goal = f"under {r['details']['bound']} {r['unit']}"
        name = r["name"] + (", bf16" if r.get("dtype") == "bf16" else "")
        cells = [
            name, r["peer"], f"{shown(r['ours'])} {r['unit']}",
            f"{shown(r['theirs'])} {r['unit']}" if r["theirs"] else "", shown(r["ratios"]), goal,
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
    # Rows in bf16 stand beside those in fp32.
    key = f"{name}, bf16" if args.dtype == "bf16" and path == RESULTS else name
    results[key] = {**row.as_dict(), "threads": args.threads, "device": args.device,
                     "dtype": args.dtype, "model": Path(args.model).name,
                     "versions": versions}  # fmt: skip
    if args.device == "cuda":
        import torch

        results[key]["device"] = torch.cuda.get_device_name()
    order = list(rows(args))
    results = {k: results[k] for k in sorted(results, key=lambda k: (order.index(k.split(",")[0]), k))}
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
    parser.add_argument("--groups", type=int, default=1, help="of G completions in an update")
    parser.add_argument("--rollout-groups", type=int, default=4, help="of G completions sampled")
    parser.add_argument("--batch", type=int, default=16, help="of the evaluation row's peer")
    parser.add_argument("--sft-batch", type=int, default=8, help="samples of an SFT step")
    parser.add_argument("--micro-tokens", type=int, default=1 << 30, help="of our micro-batches")
    parser.add_argument("--together", action="store_true", help="all rows in this one process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the device, dense")
    parser.add_argument("--results", default=RESULTS.name, help="file name beside this script")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(args.threads)
    if args.one or args.memory or args.together:
        from benchmarks.ours import SETTINGS

        SETTINGS.update({k: getattr(args, k) for k in SETTINGS if hasattr(args, k)})
    if args.memory:
        from benchmarks.training import memory

        print(memory(args.model, args.memory, args.groups, args.micro).ours[0])
        return
    available = rows(args)
    if args.one:
        _measure(args.one, available[args.one], args)
        return
    # What computes no model has no precision.
    plain = () if args.dtype == "fp32" else ("rewards", "store", "start")
    chosen = args.rows.split(",") if args.rows else [name for name in available if name not in plain]
    if unknown := set(chosen) - set(available):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are: {', '.join(available)}")
    failed = []
    for name in chosen:
        if args.together:
            try:
                _measure(name, available[name], args)
            except Exception:  # the rows after it are still wanted
                traceback.print_exc()
                failed.append(name)
            continue
        command = [sys.executable, "-m", "benchmarks.run", "--one", name, *_options(args)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _measure(name: str, work: Callable[[], Row], args: argparse.Namespace) -> None:
    row = work()
    _write(name, row, args)
    print(f"{row.name}: {shown(row.ours)} {row.unit}, ratio {shown(row.ratios)}", flush=True)


if __name__ == "__main__":
    main()
