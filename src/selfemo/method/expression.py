"""R3: how far a reply shows the emotion that it declares (SPEC section 10 [ours]).

    R3 = sum_e S(e) [ log q(e | H, r) - log q(e | H) ],    bounded to [-c, c], c = 3 nats

q is a frozen listener, who reads the last utterance of a history; q(. | H) is what it expects of the speaker
before the reply r. The second term takes away what could be guessed without the reply.

The replies of one prompt share their E and their S, so that their R3 differ by what was said alone:
log q(e | H) cancels within the group, but for the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from selfemo.method.self_grpo import Normalise, normalise
from selfemo.method.types import EmotionDistribution, LabelSet

BOUND = 3.0
"""c: most nats that one reply earns or loses."""
FLOOR = 0.01
"""Weight of the uniform distribution that is mixed into a listener's one before its logarithm is taken: what
an endpoint writes leaves emotions out, and an encoder is often surer than it is right."""


def expression_reward(
    declared: EmotionDistribution,
    heard: EmotionDistribution,
    expected: EmotionDistribution,
    labels: LabelSet,
    *,
    bound: float = BOUND,
    floor: float = FLOOR,
) -> float:
    """R3 of a reply, in nats.

    Args:
        declared: S.
        heard, expected: q(. | H, r) and q(. | H).
    """

    def log(distribution: EmotionDistribution, emotion: str) -> float:
        return math.log((1 - floor) * distribution.weight(emotion) + floor / len(labels))

    gained = math.fsum(w * (log(heard, e) - log(expected, e)) for e, w in declared.items())
    return min(bound, max(-bound, gained))


def reply_advantages(
    rewards: Sequence[float | None], eps: float = 1e-6, ddof: int = 0, how: Normalise = "std"
) -> list[float]:
    """The advantages of the replies of one prompt from their R3, normalised within the group.

    A reply that earns nothing (None) counts as 0, and as the worst of the others where that is below 0: else
    a reply that breaks the rules would be better than one that shows another emotion.

    Args:
        eps, ddof, how: see `self_grpo.normalise`; "mean" is for rewards that are not negative, and is taken
            as "none" here.
    """
    return [float(a) for a in normalise(or_nothing(rewards), eps, ddof, "none" if how == "mean" else how)]


def or_nothing(rewards: Sequence[float | None]) -> list[float]:
    """R3 of some replies, with what counts for those that earn nothing: see `reply_advantages`."""
    earned = [r for r in rewards if r is not None]
    nothing = min(0.0, *earned) if earned else 0.0
    return [nothing if r is None else r for r in rewards]
