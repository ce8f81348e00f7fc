"""Where the time of an update goes, by operator: the torch profiler over one step after two to warm up.

python -m benchmarks.profile_update --model ID [--prompt 400] [--groups 32] [--device cuda]
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.ours import LR, SETTINGS, engine, random_groups
from selfemo.config import GrpoConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", type=int, default=400)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--micro-tokens", type=int, default=40000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    args = parser.parse_args()
    SETTINGS.update(device=args.device, dtype=args.dtype)
    e = engine(args.model)
    items = random_groups(args.prompt, args.groups)
    config = GrpoConfig(lr=LR, kl_coef=0.0, micro_tokens=args.micro_tokens)
    e.begin_stage(config)
    for _ in range(2):
        e.rl_round([items], config, [LR])
    activities = [torch.profiler.ProfilerActivity.CPU]
    by = "self_cpu_time_total"
    if args.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        by = "self_cuda_time_total"
    with torch.profiler.profile(activities=activities) as profile:
        e.rl_round([items], config, [LR])
    print(profile.key_averages().table(sort_by=by, row_limit=22, max_name_column_width=60))


if __name__ == "__main__":
    main()
