"""Step "RL alone": one start, new labels, several seeds, one process.

From one cold start, which knows a few labels, each arm draws the same new gold prompts in the same order:

    mean    SELF-GRPO with causal credit, advantages over the group's mean (MaxRL)
    std     the same over the group's deviation (GRPO)
    ce      cross-entropy on the same labels in the same optimiser steps (the control)
    plain   eq. 14 as the paper has it: whole completions, one advantage for all tokens, by the deviation

Each arm chooses its learning rate by the tuning half of dev with seed 0 (study.py).

    python -m experiments.gpu.rl_alone --data meld:PATH --data emorynlp:PATH --out OUT
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.gpu.study import Study, best_rate, step

SEEDS = (0, 1, 2)
ARMS: Mapping[str, Sequence[str]] = {
    "mean": ["grpo.normalise=mean"],
    "ce": ["grpo.reward_weight=0", "grpo.gold_weight=1", "sampling.group_size=2"],
    "std": ["grpo.normalise=std"],
    "plain": ["grpo.normalise=std", "grpo.credit=completion", "sampling.group_size=8"],
}
RATES: Mapping[str, Sequence[float]] = {"mean": (1e-5, 3e-5), "ce": (1e-5, 3e-5), "std": (1e-5, 3e-6)}


def run(study: Study) -> None:
    """Cold start, each arm's rate on the tuning half, the other seeds, and one run of eq. 14 as it stands."""
    study.say(f"{study.results['device']}, {len(study.dev)} dev prompts")
    start = study.cold_start()
    tried = {
        arm: [study.arm(start, arm, lr, SEEDS[0], ARMS[arm]) for lr in rates] for arm, rates in RATES.items()
    }
    chosen = {arm: best_rate(done) for arm, runs in tried.items() if (done := [r for r in runs if r])}
    if not chosen:
        raise ValueError("rates are chosen from the runs of seed 0: make them too, or give them by --after")
    study.say(f"rates chosen on the tuning half: {chosen}")
    for arm, lr in chosen.items():
        for seed in SEEDS[1:]:
            study.arm(start, arm, lr, seed, ARMS[arm])
    study.arm(start, "plain", 1e-5, SEEDS[0], ARMS["plain"])
    study.keep("chosen", chosen)


def main(arguments: Sequence[str] | None = None) -> None:
    step(__doc__, "rl_alone.toml", run, arguments, ARMS, SEEDS)


if __name__ == "__main__":
    main()
