"""bf16 against fp32 on this CPU: a policy update, and the sampling of replies.

Process CPU time per 1,000 tokens of the two in turn, median of the pairs' ratios. It says on which CPUs
`model.dtype = "auto"` should take bf16 (`selfemo.models.loading.pick_dtype`).

    python -m benchmarks.precision --data sample [--threads 1] [--model builtin:smollm2-135m]

Adds to precision.json here, one entry for each kind of CPU instructions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import ours as our
from selfemo.models.devices import BF16, cpu_flags

PROMPT, GROUPS, PROMPTS = 400, 2, 2
RESULT = Path(__file__).with_suffix(".json")


def work(model: str, dtype: str, data: str) -> dict[str, Callable[[], our.Done]]:
    side = our.Side(model, f"model.dtype={dtype}")
    items = our.random_groups(PROMPT, GROUPS, our.vocabulary(side.engine))
    update = our.update(side, items, rate=0.0)
    replies = our.replies(side, [our.sample_prompts(data, PROMPT, PROMPTS, side.engine)])
    return {"update": lambda: update(0), "sampling": lambda: replies(0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sides = {dtype: work(args.model, dtype, args.data) for dtype in ("fp32", "bf16")}
    flags = " ".join(sorted(cpu_flags() & BF16)) or "none"
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows = known.setdefault(flags, {})
    rows |= {"torch": torch.__version__, "threads": args.threads, "model": args.model}
    for name in sides["fp32"]:
        spent: dict[str, list[float]] = {dtype: [] for dtype in sides}
        for k in range(args.repeats + 1):
            for dtype, calls in sides.items():
                start = time.process_time()
                tokens = calls[name]().tokens
                if k:  # the first call warms up
                    spent[dtype].append(1000 * (time.process_time() - start) / tokens)
        ratios = [b / f for f, b in zip(spent["fp32"], spent["bf16"], strict=True)]
        rows[name] = {**{f"{d}, CPU s": [round(s, 2) for s in v] for d, v in spent.items()},
                      "bf16 / fp32": round(statistics.median(ratios), 2)}  # fmt: skip
        print(name, rows[name], flush=True)
        RESULT.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
