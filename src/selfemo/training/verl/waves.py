"""The waves of an RL stage, and the plan of its launches (`--dry-run`).

The turns of self-play happen between waves, which keeps eq. 7 exact: the next prompt is made from the best
rollout of a group, by the policy that sampled it. Each wave is one launch of verl, from the state that the
wave before it saved.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from selfemo.config import Config
from selfemo.training.protocol import RlSpan
from selfemo.training.verl.settings import check_config, rl_command, rl_overrides, weights_path


def part(rounds: int, max_turns: int, synthetic_share: float) -> list[range]:
    """The waves of a stage: its rounds, divided into max_turns parts as evenly as possible."""
    n = max_turns if synthetic_share > 0 else 1
    ends = [rounds * k // n for k in range(n + 1)]
    return [range(a, b) for a, b in pairwise(ends) if b > a]


def waves(config: Config) -> list[range]:
    """The waves of an RL stage with these settings; a last, partial batch is left out."""
    rounds = config.flywheel.prompts // config.grpo.prompts_per_step
    return part(rounds, config.selfplay.max_turns, config.selfplay.synthetic_share)


def wave_files(folder: Path, wave: range) -> tuple[Path, Path]:
    """The files of a wave in a stage's folder: its prompts as verl reads them, and their ids."""
    return folder / f"wave-from-{wave.start}.parquet", folder / f"wave-from-{wave.start}.json"


def wave_command(
    config: Config, model: str, folder: Path, wave: range, rounds: int, span: RlSpan
) -> list[str]:
    """The command of a wave of the stage in `folder`; `rounds` are those of the stage, `span` is lambda's."""
    train, held = wave_files(folder, wave)[0], folder / "held.parquet"
    model = weights_path(model)
    files = {"train": train, "held": held}
    return rl_command(
        rl_overrides(config, model, folder, **files, last_step=wave.stop, rounds=rounds, span=span)
    )


def plan(config: Config, model: str, folder: Path, stages: int = 1) -> dict[str, Any]:
    """The launches of the first RL stage of the run in `folder`, from the weights `model`; launches nothing.

    Args:
        stages: RL stages of the run.

    Raises: ConfigError: verl cannot run these settings.
    """
    check_config(config)
    stage = folder.resolve() / "cluster" / "iteration-1-rl"
    parts = waves(config)
    rounds, size = parts[-1].stop, config.grpo.prompts_per_step
    share, span = config.selfplay.synthetic_share * size, RlSpan.of(config.grpo, 1, stages)

    # The first wave has no synthetic prompts, so the second takes its share too.
    synthetic = [0, *(round(share * b.stop) - round(share * a.stop) for a, b in pairwise(parts))]
    if len(parts) > 1:
        synthetic[1] = round(share * parts[1].stop)
    return {
        "waves": [
            {
                "steps": [w.start + 1, w.stop],
                "prompts": len(w) * size,
                "synthetic_at_most": most,
                "command": wave_command(config, model, stage, w, rounds, span),
            }
            for w, most in zip(parts, synthetic, strict=True)
        ],
        "prompts": rounds * size,
        "completions": rounds * size * config.sampling.group_size,
        "rounds": rounds,
        "optimiser_steps": rounds * (size // config.grpo.mini_batch),
        "gpus": config.cluster.nodes * config.cluster.gpus_per_node,
    }
