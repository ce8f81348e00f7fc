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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import ours as our
from selfemo.extras import version_of
from selfemo.method.types import RawCompletion
from selfemo.models.devices import BF16, cpu_flags
from selfemo.models.generation.branches import branch_logp
from selfemo.models.generation.local import LocalSampler
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.generation.vllm import VllmSampler
from selfemo.models.generation.vllm_here import Here
from selfemo.models.policy import Policy

PROMPT, PROMPTS, GROUP = 300, 16, 8
WORK = {"whole completions": SamplingSettings(48), "first lines": SamplingSettings(24, max_lines=1)}
"""What is sampled: up to 48 tokens, or up to the first line end, as where E lines are sampled alone."""
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
    vllm = Here(policy.source, policy.device, args.dtype, policy, context=512, cache_tokens=65536)
    sides = {"local": LocalSampler(policy), "vllm": VllmSampler(policy, vllm)}
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    flags = " ".join(sorted(cpu_flags() & BF16)) or "none"
    rows = known.setdefault(f"{flags}, {args.dtype}", {})
    rows |= {
        "torch": torch.__version__, "vllm": version_of("vllm"), "threads": args.threads,
        "model": args.model, "prompts": PROMPTS, "group": GROUP,
    }  # fmt: skip
    for name, settings in WORK.items():
        spent: dict[str, list[float]] = {side: [] for side in sides}
        apart: list[float] = []
        for k in range(args.repeats + 1):
            requests = [Request(ids, GROUP, 1000 * k + i) for i, ids in enumerate(prompts)]
            for of, sampler in sides.items():
                # A round samples with new weights, of which nothing is cached.
                vllm._llm.reset_prefix_cache()
                begun = time.process_time()
                groups = sampler.generate(requests, replace(settings, token_budget=16384))
                seconds = time.process_time() - begun
                if k:  # the first call warms up
                    spent[of].append(1000 * seconds / sum(len(c.token_ids) for g in groups for c in g))
            if not k:
                apart = distances(policy, requests, groups)
        ratios = [a / b for a, b in zip(spent["local"], spent["vllm"], strict=True)]
        rows[name] = {
            **{f"{of}, CPU s per 1,000 tokens": [round(s, 2) for s in v] for of, v in spent.items()},
            "local / vllm": round(statistics.median(ratios), 2),
            "|difference of log p|": {"mean": float(np.mean(apart)), "max": float(np.max(apart))},
        }
        print(name, rows[name], flush=True)
        RESULT.write_text(json.dumps(known, indent=1) + "\n")


def distances(
    policy: Policy, requests: Sequence[Request], groups: Sequence[Sequence[RawCompletion]]
) -> list[float]:
    """|vLLM's log-probability - the policy's| of each token that vLLM drew."""
    places = [
        (k, r.prompt_ids, [c.token_ids for c in g])
        for k, (r, g) in enumerate(zip(requests, groups, strict=True))
    ]
    read = branch_logp(policy, places, [0] * len(places))
    return [
        abs(a - b)
        for g, branches in zip(groups, read, strict=True)
        for c, logp in zip(g, branches, strict=True)
        for a, b in zip(c.logprobs, logp, strict=True)
    ]


if __name__ == "__main__":
    main()
