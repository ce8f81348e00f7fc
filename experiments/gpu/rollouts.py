"""Step "rollouts": RL whose completions vLLM draws, against the local sampler's, all else equal.

From one start each arm draws the same gold prompts in the same order. Both samplers draw from one policy with
other random numbers, so that their rewards must agree within their intervals; how far their probabilities
are apart is measured each round (`mismatch`), and whether vLLM has the present weights before each
(`vllm_gap`, `check_weights`). `vllm, unweighted` leaves out the truncated importance weights.

Where vLLM is not installed, or too old, the step stops, which is a result: "stopped" says why.

    python -m experiments.gpu.rollouts --data meld:PATH --data emorynlp:PATH --out OUT
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from experiments.gpu.study import Study, step

from selfemo.errors import SelfEmoError
from selfemo.models.generation.vllm_here import check_version
from selfemo.seeds import rng

SEEDS = (0,)
RATE = 3e-5
VLLM = ("sampling.backend=vllm",)
ARMS: Mapping[str, Sequence[str]] = {
    "local": (),
    "vllm": VLLM,
    "vllm, unweighted": (*VLLM, "grpo.importance_cap=0"),
}
_DRAWS = 10_000


def run(study: Study) -> None:
    """The start, each arm, and how their rewards compare."""
    try:
        check_version()
    except SelfEmoError as e:
        study.say(f"stopped: {e}")
        study.keep("stopped", str(e))
        return
    start = study.cold_start()
    made = {arm: study.arm(start, arm, RATE, 0, settings) for arm, settings in ARMS.items()}
    found = {arm: compared(made["local"], r) for arm, r in made.items() if r and made["local"]}
    study.keep("compared", found)
    for arm, c in found.items():
        mean, low, high = c["r1"]
        study.say(f"{arm}: R1 {mean:.3f} [{low:.3f}, {high:.3f}] over {c['rounds']} rounds, {c['told']}")


def compared(local: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Mean R1 of a run over its rounds, and its difference to the local sampler's of the same rounds.

    Returns:
        "r1" and "difference" as (mean, low, high), 95% by bootstrap over rounds; the means of the mismatch.
    """
    mine, theirs = (np.array([r["r1"] for r in run["rounds"]]) for run in (other, local))
    n = min(len(mine), len(theirs))
    # A round whose groups all have equal rewards trains on nothing.
    about = {
        k: float(np.mean([r[k] for r in other["rounds"] if k in r])) for k in ("mismatch", "mismatch_p99")
    }
    gaps = [r["vllm_gap"] for r in other["rounds"] if "vllm_gap" in r]
    told = f"mismatch {about['mismatch']:.2g}, p99 {about['mismatch_p99']:.2g}"
    return {
        "rounds": n,
        "r1": _interval(mine[:n]),
        "difference": _interval(mine[:n] - theirs[:n]),
        **about,
        **({"largest_vllm_gap": max(gaps)} if gaps else {}),
        "told": told,
    }


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    draws = values[rng(0, "rounds").integers(0, len(values), (_DRAWS, len(values)))].mean(1)
    return float(values.mean()), float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def main(arguments: Sequence[str] | None = None) -> None:
    step(__doc__, "rollouts.toml", run, arguments, ARMS, SEEDS)


if __name__ == "__main__":
    main()
