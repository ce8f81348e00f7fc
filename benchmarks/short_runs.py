"""Attention over a tree of many short runs: one masked call a tree against one call a run.

The tree is that of an RL round: the prompts of eight turns of one conversation, four E lines of four tokens
each. Process CPU time on one thread, the least of some repetitions, of one layer of SmolLM2-135M (9 query
heads, 3 key heads of 64).

    python -m benchmarks.short_runs
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch

from selfemo.models import attention
from selfemo.models.packing import Pack, pack

HEADS, KEYS, WIDTH, REPEATS = 9, 3, 64, 7


def tree() -> Pack:
    rng = np.random.default_rng(0)

    def tokens(n: int) -> list[int]:
        return rng.integers(0, 1000, n).tolist()

    history, sequences = tokens(150), []
    for _ in range(8):
        history = history + tokens(20)
        prompt = history + tokens(45)
        sequences += [prompt + tokens(4) for _ in range(4)]
    return pack(sequences)


def cost(plan: attention.TreePlan) -> dict[str, float]:
    """Least CPU milliseconds of a forward and of a backward pass."""
    spent = []
    for _ in range(REPEATS):
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(1, h, plan.length, WIDTH, generator=generator).requires_grad_()
            for h in (HEADS, KEYS, KEYS)
        )
        start = time.process_time()
        out, _ = attention.tree_attention(None, q, k, v, None, tree=plan)
        middle = time.process_time()
        (out * out).sum().backward()
        spent.append((middle - start, time.process_time() - middle))
    forward, backward = (1000 * min(x) for x in zip(*spent, strict=True))
    return {"forward_ms": round(forward, 1), "backward_ms": round(backward, 1)}


def main() -> None:
    torch.set_num_threads(1)
    packed, short = tree(), attention._SHORT
    runs = [stop - start for start, stop, _ in packed.runs()]
    result: dict[str, object] = {"tokens": len(packed), "runs": len(runs), "torch": torch.__version__}
    costs = {}
    for name, most in (("one call a run", 0), ("one call a tree", short)):
        attention._SHORT = most
        costs[name] = cost(attention.plan([packed], len(packed), "cpu"))
    attention._SHORT = short
    each, together = (sum(c.values()) for c in costs.values())
    result |= {**costs, "ratio": round(each / together, 2)}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
