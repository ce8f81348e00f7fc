"""From sampled completions to rollouts: parse, R1, R2 and advantage of one group (SPEC sections 2, 3)."""

from __future__ import annotations

from collections.abc import Sequence

from selfemo.method.parsing import parse
from selfemo.method.rewards import primary_reward, secondary_rewards
from selfemo.method.self_grpo import advantages
from selfemo.method.types import Completion, EmotionDistribution, LabelSet, RawCompletion, Rollout


def score_completions(
    labels: LabelSet,
    target: EmotionDistribution,
    samples: Sequence[RawCompletion],
    *,
    lam: float,
    primary: str = "iou",
    secondary: str = "count",
    eps: float = 1e-6,
    ddof: int = 0,
) -> tuple[Rollout, ...]:
    """Score the G completions of one prompt against its target.

    `primary` and `secondary` are names of rewards; for `lam`, `eps` and `ddof` see `self_grpo.advantages`.
    """
    parsed = [parse(s.text, labels, finished=s.finished) for s in samples]
    predicted = [p.emotion if isinstance(p, Completion) else None for p in parsed]
    r1 = [primary_reward(p, target, labels, primary) for p in predicted]
    r2 = secondary_rewards(predicted, labels, secondary)
    found = advantages(r1, r2, lam, eps=eps, ddof=ddof)
    rollouts = zip(samples, parsed, r1, r2, found.tolist(), strict=True)
    return tuple(Rollout(*r) for r in rollouts)
