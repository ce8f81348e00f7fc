"""Step "one thing at a time": what each setting of SELF-GRPO does to RL on new labels, all else equal.

From the start of `rl_alone`, seed 0, each arm draws the same 2,048 new gold prompts in the same order, at the
rate that `rl_alone` chose. `base` is causal credit, the mean as divisor, G 16, no KL, lambda 0; each other
arm changes the one thing that it is named after. `completion` is credit alone: whole completions, one
advantage for all of their tokens.

    python -m experiments.gpu.one_thing --data meld:PATH --data emorynlp:PATH --out OUT
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.gpu.study import Study, step

from selfemo.method.types import Prompt
from selfemo.stages.flywheel import original_prompts

SEED = 0
RATE = 3e-5
MAX_SHARE = 0.25
"""Most prompts of one emotion in the arm with balanced prompts (flywheel.max_prompt_share)."""
LAM = ("grpo.lam_max=0.3",)
ARMS: Mapping[str, Sequence[str]] = {
    "base": (),
    "completion": ("grpo.credit=completion",),
    "none": ("grpo.normalise=none",),
    "kl 0.02": ("grpo.kl_coef=0.02",),
    "G 4": ("sampling.group_size=4",),
    "lambda 0.3": LAM,
    "lambda 0.3, R2 weighted": (*LAM, "reward.secondary=weighted"),
    "gold anchor 0.3": ("grpo.gold_weight=0.3",),
    "balanced prompts": (),
    "G 32": ("sampling.group_size=32",),
}


def run(study: Study) -> None:
    """The start, and each arm once; the channel before and after RL."""
    start = study.cold_start()

    def balanced() -> Sequence[Prompt]:
        inside = {p.id for p in original_prompts(study.train, SEED, MAX_SHARE)}
        return [p for p in study.fresh if p.id in inside]

    study.read_channel("start")
    for arm, settings in ARMS.items():
        prompts = balanced if arm == "balanced prompts" else None
        done = len(study.results["runs"])
        study.arm(start, arm, RATE, SEED, settings, prompts)
        if arm == "base" and len(study.results["runs"]) > done:  # made now: its weights are loaded
            study.read_channel(arm)


def main(arguments: Sequence[str] | None = None) -> None:
    step(__doc__, "one_thing.toml", run, arguments, ARMS, (SEED,))


if __name__ == "__main__":
    main()
