"""R3: how far a reply shows the emotion that it declares (SPEC section 10 [ours]).

    R3 = sum_e S(e) [ log q(e | H, r) - log q(e | H) ],    bounded to [-c, c], c = 3 nats

q is a frozen listener, who reads the last utterance of a history; q(. | H) is what it expects of the speaker
before the reply r. The second term takes away what could be guessed without the reply.

The replies of one prompt share their E and their S, so that log q(e | H) cancels among them. Two departures
[ours]. Their R3 is centred and not divided by its deviation: it has a unit, nats, and where a listener hardly
tells replies apart the division would make an advantage of its noise. And the bound is on the difference from
the mean of the replies: an R3 that is cut before would call replies to a rare S equal.

R3 can rise without any S being shown: a reply that leaves the listener unsure, or that hints at emotions
which are rare, tells more of most S than was expected, whichever was declared. What a reply tells of S beyond
what it tells of the other emotions is its contrast. Its mean over all S is 0 for every reply, so that only a
reply which depends on S earns it. And since a listener answers for all emotions, each reply says behind every
S whether it belongs there (`contrasts`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from selfemo.method.types import EmotionDistribution, LabelSet

BOUND = 3.0
"""c: most nats that one reply earns or loses."""
FLOOR = 0.01
"""Weight of the uniform distribution that is mixed into a listener's one before its logarithm is taken: what
an endpoint writes leaves emotions out, and an encoder is often surer than it is right."""
FAULT = 1.0
"""Nats that a reply which breaks a rule is worse than the worst that does not."""


def bounded(nats: float) -> float:
    """Within [-c, c]."""
    return min(BOUND, max(-BOUND, nats))


def information_gain(
    declared: EmotionDistribution,
    heard: EmotionDistribution,
    expected: EmotionDistribution,
    labels: LabelSet,
    *,
    floor: float = FLOOR,
) -> float:
    """What a reply has told the listener of S, in nats: R3 before it is `bounded`.

    Args:
        declared: S.
        heard, expected: q(. | H, r) and q(. | H).
    """

    def log(distribution: EmotionDistribution, emotion: str) -> float:
        return math.log((1 - floor) * distribution.weight(emotion) + floor / len(labels))

    return math.fsum(w * (log(heard, e) - log(expected, e)) for e, w in declared.items())


def gains(heard: EmotionDistribution, expected: EmotionDistribution, labels: LabelSet) -> dict[str, float]:
    """`information_gain` of each emotion of the set, had it alone been declared."""
    return {e: information_gain(EmotionDistribution({e: 1}), heard, expected, labels) for e in labels.labels}


def contrasts(told: Mapping[str, float]) -> dict[str, float]:
    """What a reply tells of each emotion beyond what it tells of all on the average, nats; their sum is 0."""
    mean = math.fsum(told.values()) / len(told)
    return {e: gain - mean for e, gain in told.items()}


def reply_advantages(gains: Sequence[float | None]) -> list[float]:
    """The advantages of the replies of one prompt: their gain less the mean, within [-c, c].

    A reply that earns nothing (None) counts as FAULT below the least of the others, and below 0: as 0 alone
    it would be better than one that shows another emotion, and as the least, breaking a rule would cost
    nothing where no reply shows S.
    """
    if not gains:
        return []
    values = or_nothing(gains)
    mean = math.fsum(values) / len(values)
    return [bounded(v - mean) for v in values]


def or_nothing(gains: Sequence[float | None]) -> list[float]:
    """The gains of some replies, with what counts for those that earn nothing: see `reply_advantages`."""
    nothing = min([0.0, *(g for g in gains if g is not None)]) - FAULT
    return [nothing if g is None else g for g in gains]
