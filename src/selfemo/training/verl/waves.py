"""The waves of an RL stage, and what a stage would launch (`--dry-run`).

Self-play over turns happens between waves, which keeps eq. 7 exact: the next prompt is made from the best
rollout of a group, by the policy that sampled it. A stage is selfplay.max_turns waves of RL rounds; each wave
is one launch of verl, draws original prompts and what earlier waves left, and goes on from the state that the
wave before it saved.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from selfemo.config import Config
from selfemo.training.verl.settings import check_config, rl_command, rl_overrides, weights_path


def part(rounds: int, max_turns: int, synthetic_share: float) -> list[range]:
    """The waves of a stage: its rounds, as evenly as they part into max_turns."""
    n = max_turns if synthetic_share > 0 else 1
    ends = [rounds * k // n for k in range(n + 1)]
    return [range(a, b) for a, b in pairwise(ends) if b > a]


def waves(config: Config) -> list[range]:
    """The waves of an RL stage with these settings: whole batches alone."""
    rounds = config.flywheel.prompts // config.grpo.prompts_per_step
    return part(rounds, config.selfplay.max_turns, config.selfplay.synthetic_share)


def wave_files(folder: Path, wave: range) -> tuple[Path, Path]:
    """The prompts of a wave in a stage's folder, as verl reads them, and their ids."""
    return folder / f"wave-from-{wave.start}.parquet", folder / f"wave-from-{wave.start}.json"


def wave_command(config: Config, model: str, folder: Path, wave: range, rounds: int) -> list[str]:
    """The launch of a wave of the stage in `folder`, which has so many rounds in all."""
    return rl_command(
        rl_overrides(
            config,
            weights_path(model),
            folder,
            train=wave_files(folder, wave)[0],
            held=folder / "held.parquet",
            last_step=wave.stop,
            rounds=rounds,
        )
    )


def plan(config: Config, model: str, folder: Path) -> dict[str, Any]:
    """What an RL stage would launch, without doing it.

    Args:
        model: what it would start from.
        folder: the run's.

    Returns:
        waves, each with its steps, prompts and command; totals of prompts, completions, steps.

    Raises:
        ConfigError: verl cannot run these settings.
    """
    check_config(config)
    stage = folder.resolve() / "cluster" / "iteration-1-rl"
    parts = waves(config)
    rounds, size = parts[-1].stop, config.grpo.prompts_per_step
    share = config.selfplay.synthetic_share * size

    def synthetic(i: int) -> int:
        # The first wave has no synthetic prompts, so the later ones take its share too.
        if not i:
            return 0
        return round(share * parts[i].stop) - (round(share * parts[i].start) if i > 1 else 0)

    return {
        "waves": [
            {
                "steps": [w.start + 1, w.stop],
                "prompts": len(w) * size,
                "synthetic_at_most": synthetic(i),
                "command": wave_command(config, model, stage, w, rounds),
            }
            for i, w in enumerate(parts)
        ],
        "prompts": rounds * size,
        "completions": rounds * size * config.sampling.group_size,
        "rounds": rounds,
        "optimiser_steps": rounds * (size // config.grpo.mini_batch),
        "gpus": config.cluster.nodes * config.cluster.gpus_per_node,
    }
