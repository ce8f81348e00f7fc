"""Sampling by vLLM in this process against the local sampler, on a CPU.

Process CPU time per 1,000 sampled tokens of the two in turn, on the same prompts with G completions each,
median of the pairs' ratios; and how far vLLM's log-probabilities are from the policy's on what it drew.

    python -m benchmarks.vllm_sampling --data sample [--dtype fp32] [--threads 1] [--repeats 3]

Adds to vllm_sampling.json here, one entry for each kind of CPU instructions and precision.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import ours as our
from selfemo.models.devices import BF16, cpu_flags
from selfemo.models.generation.branches import branch_logp
from selfemo.models.generation.local import LocalSampler
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.generation.vllm import VllmSampler
from selfemo.models.generation.vllm_here import Here

PROMPT, PROMPTS, GROUP, TOKENS = 300, 32, 8, 48
RESULT = Path(__file__).with_suffix(".json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    side = our.Side(args.model, f"model.dtype={args.dtype}")
    policy = side.engine.policy
    prompts = [f.ids for f in our.sample_prompts(args.data, PROMPT, PROMPTS, side.engine)]
    settings = SamplingSettings(TOKENS, token_budget=16384)
    context = PROMPT + TOKENS + 64
    vllm = Here(policy.source, policy.device, args.dtype, policy, context=context, cache_tokens=65536)
    sides = {"local": LocalSampler(policy), "vllm": VllmSampler(policy, vllm)}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    apart: list[float] = []
    for k in range(args.repeats + 1):
        for name, sampler in sides.items():
            requests = [Request(ids, GROUP, 1000 * k + i) for i, ids in enumerate(prompts)]
            begun = time.process_time()
            groups = sampler.generate(requests, settings)
            seconds = time.process_time() - begun
            tokens = sum(len(c.token_ids) for g in groups for c in g)
            if k:  # the first call warms up
                spent[name].append(1000 * seconds / tokens)
            if k == 1 and name == "vllm":
                places = [
                    (i, r.prompt_ids, [c.token_ids for c in g])
                    for i, (r, g) in enumerate(zip(requests, groups, strict=True))
                ]
                read = branch_logp(policy, places, [0] * len(places))
                for group, branches in zip(groups, read, strict=True):
                    for c, logp in zip(group, branches, strict=True):
                        apart += [abs(a - b) for a, b in zip(c.logprobs, logp, strict=True)]
        print(k, {n: v[-1:] for n, v in spent.items()}, flush=True)
    ratios = [a / b for a, b in zip(spent["local"], spent["vllm"], strict=True)]
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    flags = " ".join(sorted(cpu_flags() & BF16)) or "none"
    known[f"{flags}, {args.dtype}"] = {
        "torch": torch.__version__, "threads": args.threads, "model": args.model, "prompts": PROMPTS,
        "group": GROUP, "tokens": TOKENS,
        **{f"{n}, CPU s per 1,000 tokens": [round(s, 2) for s in v] for n, v in spent.items()},
        "local / vllm": round(statistics.median(ratios), 2),
        "|difference of log p|": {"mean": float(np.mean(apart)), "max": float(np.max(apart))},
    }  # fmt: skip
    RESULT.write_text(json.dumps(known, indent=1) + "\n")
    print(known)


if __name__ == "__main__":
    main()
