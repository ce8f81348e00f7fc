"""How cost grows: step time with G and prompt length, a round's draw with the size of the buffer.

    python -m benchmarks.growth [--threads 1]

Writes growth.json here and docs/figures/growth.svg; an exponent is the slope of log time over log size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import add_rollouts, timed
from benchmarks.ours import LR, REPLY, engine
from selfemo.config import GrpoConfig, load
from selfemo.method.types import LABEL_SETS, EmotionDistribution, Lineage, Persona, Place, Prompt, Utterance
from selfemo.runs.store import Store
from selfemo.stages.flywheel import PromptQueue
from selfemo.training.protocol import RlItem

HERE = Path(__file__).parent


def exponent(sizes: list[int], times: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def step_time(e: Any, prompt: int, group: int, repeats: int) -> float:
    """Seconds of one policy update over random tokens: the median."""
    rng = np.random.default_rng(prompt + group)
    ids = [int(x) for x in rng.integers(1000, 40000, prompt)]
    items = [
        RlItem(ids, [int(x) for x in rng.integers(1000, 40000, REPLY)], float(a), "g")
        for a in rng.normal(size=group)
    ]
    config = GrpoConfig(lr=LR, kl_coef=0.0, micro_tokens=prompt + group * REPLY)
    return statistics.median(timed(lambda: e.rl_round([items], config, [LR]))[0] for _ in range(repeats))


def draw_time(n: int, repeats: int) -> dict[str, float]:
    """Seconds to open a queue on a store of n answered prompts, and of one round's draw and inserts."""
    labels = LABEL_SETS["meld"]
    joy = EmotionDistribution({"joy": 1})

    def prompt(i: int, parent: str | None) -> Prompt:
        return Prompt(
            id=f"p{i}", dataset="bench", conversation_id=f"c{i // 10}", label_set=labels,
            history=(Utterance("Ann", "Hello.", joy),), answerer="Bo", persona=Persona("Bo", "calm"),
            target=joy, scenario="", lineage=Lineage(0, "", 0, parent),
        )  # fmt: skip

    row = ("E: joy\nS: joy\nR: Yes.", 12, None, '{"joy": 1}', '{"joy": 1}', "Yes.", 1.0, 0.3, 0.0,
           -0.4, 1.2, 0, None)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store.sqlite")
        originals = [prompt(i, None) for i in range(n)]
        for start in range(0, n, 10_000):
            with store.transaction():
                part = originals[start : start + 10_000]
                store.add_prompts(part, Place("s"))
                add_rollouts(store, (("s", 0, 1, p.id, 0, *row) for p in part))
        opening, queue = timed(lambda: PromptQueue(originals, store, 0, load([]).selfplay.synthetic_share))
        queue.draw(64)  # shuffles the originals once an epoch

        def one(k: int) -> None:
            queue.draw(64)
            with store.transaction():
                store.add_prompts([prompt(n + 64 * k + i, "p0") for i in range(64)], Place("s", k))
                ids = [f"p{n + 64 * k + i}" for i in range(64)]
                add_rollouts(store, (("s", k, 1, p, m, *row) for p in ids for m in range(8)))

        rounds = statistics.median(timed(lambda k=k: one(k))[0] for k in range(max(5, repeats)))
        store.close()
    return {"open": opening, "round": rounds}


def draw(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    titles = {
        "group": "update against G",
        "prompt": "update against prompt length",
        "buffer": "one round's draw and inserts\nagainst prompts in the store",
    }
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        r = results[key]
        ax.loglog(r["sizes"], r["times"], "o-", color="#0072B2")
        ax.set(title=f"{title}\nexponent {r['exponent']:.2f}", xlabel=key, ylabel="s")
        ax.grid(alpha=0.3, which="both")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--largest-buffer", type=int, default=1_000_000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    sizes = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= args.largest_buffer]
    buffers = [draw_time(n, args.repeats) for n in sizes]
    for key in ("round", "open"):
        times = [b[key] for b in buffers]
        results["buffer" if key == "round" else "buffer open"] = {
            "sizes": sizes, "times": times, "exponent": exponent(sizes, times),
        }  # fmt: skip
    e = engine(args.model)
    e.begin_stage(GrpoConfig(lr=LR))
    step_time(e, 200, 2, 1)
    for key, grid, at in (
        ("group", (2, 4, 8, 16, 32), lambda g: (400, g)),
        ("prompt", (200, 500, 1000, 2000, 4000), lambda p: (p, 8)),
    ):
        times = [step_time(e, *at(x), args.repeats) for x in grid]
        results[key] = {"sizes": list(grid), "times": times, "exponent": exponent(list(grid), times)}
        print(key, results[key], flush=True)
    (HERE / "growth.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, HERE.parent / "docs" / "figures" / "growth.svg")


if __name__ == "__main__":
    main()
