"""The gate: which replies may join the data (SPEC section 5, step 3), be they of self-play or of experts.

Departure [ours]: against a mixed target R1 >= tau would refuse right answers (gold joy .6, surprise .4, and
joy named alone: R1 = .6 / 1.4 = .43), so there a completion also passes whose top emotion is the target's.
"""

from __future__ import annotations

from selfemo.config import GateConfig
from selfemo.method.replies import reply_fault
from selfemo.method.types import EmotionDistribution, LabelSet, Prompt, Rollout

PASS = "pass"
NO_REPLY = "no_reply_sampled"
"""Instead of a verdict: nothing uses the reply, so that none was sampled (two-stage rollouts)."""
CHANNEL_DISAGREES = "channel_disagrees"
CHANNEL_TOO_LONG = "channel_too_long"


def right_enough(prompt: Prompt, rollout: Rollout, tau: float) -> bool:
    """Whether R1 >= tau, or the target is mixed and its top emotion is the completion's [ours].

    Either distribution's top is the first in the label set among equal weights. A rollout that did not parse
    has no top emotion; a prompt without a target is judged by R1 alone.
    """
    if rollout.r1 >= tau:
        return True
    target, emotion, labels = prompt.target, rollout.emotion, prompt.label_set
    if target is None or len(target) < 2 or emotion is None:
        return False
    return emotion.top(labels) == target.top(labels)


def gate(prompt: Prompt, rollout: Rollout, config: GateConfig) -> str:
    """`PASS`, or the reason why the rollout may not join the data."""
    if rollout.emotion is None:
        return "unparsed"
    if not right_enough(prompt, rollout, config.tau):
        return "low_reward"
    if rollout.completion is None:
        return NO_REPLY
    return reply_fault(prompt, rollout.completion.reply, config) or PASS


def channel_fault(
    declared: EmotionDistribution, heard: EmotionDistribution | None, labels: LabelSet, config: GateConfig
) -> str:
    """The reason why a reply may not join the data by what the teacher hears in it; "" if it may [ours].

    Args:
        declared: S; its top emotion counts.
        heard: E x channel of the reply by the teacher; None where its prompts were too long.
    """
    if not config.channel:
        return ""
    if heard is None:
        return CHANNEL_TOO_LONG
    top = declared.top(labels)
    agrees = heard.top(labels) == top if config.channel == "top" else heard.weight(top) >= config.channel
    return "" if agrees else CHANNEL_DISAGREES
