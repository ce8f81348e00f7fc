"""This version against an earlier one: training steps, sampling and label scores, by process CPU time.

Each row runs in two processes, one of either version, in turn (A B A B) on the same inputs, weights and
settings, with the environment that the command line sets. What both compute is compared in the same calls:
loss and gradient norm, or the lines.

    python -m benchmarks.versions COMMIT --data meld:PATH [--dtype fp32,bf16] [--threads 1] [--repeats 5]

Writes versions.json here. COMMIT must have benchmarks/ours.py.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent
RESULT = HERE.with_suffix(".json")
LABELS = ("neutral", "joy", "sadness", "anger", "surprise", "fear", "disgust")
SFT_TOKENS = (1100, 1400)
"""Packed tokens of a batch of eight samples, where the data has such."""
ROWS = ("sft", "update-lines", "update-replies", "sample-lines", "sample-replies", "labels")


def packed(items: Sequence[Any]) -> int:
    """Tokens of the prefix trees of some samples."""
    from selfemo.models.packing import group_by_key, pack

    sequences = [[*i.prompt_ids, *i.completion_ids][:-1] for i in items]
    trees = group_by_key(sequences, [i.tree for i in items], 1 << 30)
    return sum(len(pack([sequences[k] for k in tree])) for tree in trees)


def work(name: str, model: str, dtype: str, data: str) -> Callable[[int], Any]:
    """A row's call; of the worker's own version of the package."""
    import numpy as np

    from benchmarks import ours as our
    from selfemo.models.generation.requests import Request, SamplingSettings
    from selfemo.training.protocol import RlItem

    side = our.Side(model, f"model.dtype={dtype}")
    e = side.engine
    if name == "sft":
        batches = our.sft_batches(data, 48, 8, e)
        sized = [b for b in batches if SFT_TOKENS[0] <= packed(b) <= SFT_TOKENS[1]]
        return our.sft(side, sized or batches, 0.0)
    if name == "update-replies":
        return our.update(side, our.random_groups(400, 1, our.vocabulary(e)), 0.0)
    if name == "sample-replies":
        return our.replies(side, [our.sample_prompts(data, 300, 4, e)])
    if name == "labels":
        return our.labels(side, our.held_out_prompts(data, 100))
    (prompts,) = our.gold_rounds(data, 1, 20, e)
    if name == "sample-lines":
        settings = SamplingSettings(our.LINES, token_budget=65536, max_lines=1)

        def sample(k: int) -> our.Done:
            requests = [
                Request(f.ids, our.G, j, share=f.prompt.conversation_id) for j, f in enumerate(prompts)
            ]
            done = [c for group in e.sampler.generate(requests, settings) for c in group]
            return our.Done(sum(len(c.token_ids) for c in done), completions=done)

        return sample
    drawn = np.random.default_rng(0)
    items = []
    for f in prompts:
        for _ in range(our.G):
            first, second = drawn.choice(LABELS, 2, replace=False)
            line = f"E: {first} 0.7, {second} 0.3\n" if drawn.random() < 0.5 else f"E: {first}\n"
            ids = e.policy.plain_ids(line)
            items.append(RlItem(f.ids, ids, float(drawn.normal()), f.prompt.conversation_id))
    return our.update(side, items, 0.0)


def worker(name: str, model: str, dtype: str, data: str) -> None:
    """Answer each number on standard input with what the call of that number took and found."""
    call = work(name, model, dtype, data)
    out = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        start, wall = time.process_time(), time.perf_counter()
        done = call(int(line))
        told = {
            "cpu": time.process_time() - start,
            "wall": time.perf_counter() - wall,
            "tokens": done.tokens,
            "measures": done.measures,
            "lines": [c.text for c in done.completions] or done.lines,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        print(json.dumps(told), file=out, flush=True)


@contextmanager
def version(commit: str) -> Iterator[Path]:
    """The files of a commit in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


def start(tree: Path, threads: int, *args: str) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "PYTHONPATH": f"{tree / 'src'}:{tree}",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # What the command line sets in both versions, before torch is loaded.
        "GOMP_SPINCOUNT": "6000",
        "THP_MEM_ALLOC_ENABLE": "1",
    }
    return subprocess.Popen(
        [sys.executable, str(HERE), "--worker", *args],
        cwd=tree, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def ask(process: subprocess.Popen[str], k: int) -> dict[str, Any]:
    to, back = process.stdin, process.stdout
    assert to is not None and back is not None
    to.write(f"{k}\n")
    to.flush()
    return _answer(back)


def _answer(back: IO[str]) -> dict[str, Any]:
    for line in back:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    raise SystemExit("a worker ended before it answered; see above")


def compare(name: str, old: Path, args: argparse.Namespace, dtype: str) -> dict[str, Any]:
    more = (name, args.model, dtype, args.data)
    before, now = (start(tree, args.threads, *more) for tree in (old, ROOT))
    pairs = []
    try:
        for k in range(args.warm + args.repeats):
            pairs.append((ask(before, k), ask(now, k)))
    finally:
        for process in (before, now):
            process.kill()
            process.wait()
    measured = pairs[args.warm :]
    ratios = [(a["cpu"] / max(1, a["tokens"])) / (b["cpu"] / max(1, b["tokens"])) for a, b in measured]
    differences = [
        abs(a["measures"][m] - b["measures"][m]) / max(1e-9, abs(a["measures"][m]))
        for a, b in pairs
        for m in a["measures"]
    ]
    lines = [x == y for a, b in pairs for x, y in zip(a["lines"], b["lines"], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        **{f"{side}, CPU s": [p[i]["cpu"] for p in measured] for i, side in enumerate(("before", "now"))},
        "tokens": [[a["tokens"], b["tokens"]] for a, b in measured],
        "largest relative difference of measures": max(differences, default=None),
        "equal lines": sum(lines) / len(lines) if lines else None,
        "peak_gib": [pairs[-1][i]["peak_gib"] for i in (0, 1)],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--dtype", default="fp32,bf16")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2, help="pairs that are not counted")
    args = parser.parse_args(argv)
    from selfemo.models.devices import BF16, cpu_flags

    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    # Of the processor's instructions; fp32 is the same with all of them but for its rate.
    flags = " ".join(sorted(cpu_flags() & BF16)) or "none"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", args.commit], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    with version(args.commit) as old:
        for dtype in args.dtype.split(","):
            for name in args.rows.split(","):
                row = {"against": commit, "threads": args.threads, "data": args.data.split(":")[0]}
                row |= compare(name, old, args, dtype)
                known.setdefault(flags, {}).setdefault(dtype, {})[name] = row
                RESULT.write_text(json.dumps(known, indent=1) + "\n")
                print(f"{dtype} {name}: {row['ratio']:.2f} ({min(row['ratios']):.2f} to "
                      f"{max(row['ratios']):.2f}), peak {row['peak_gib']}, measures apart by "
                      f"{row['largest relative difference of measures']}, equal lines {row['equal lines']}",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
