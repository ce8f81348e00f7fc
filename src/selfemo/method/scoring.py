"""From sampled completions to rollouts: parse, R1, R2 and advantage of one group (SPEC sections 2, 3, 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfemo.method.parsing import parse, parse_recognition
from selfemo.method.rewards import primary_reward, secondary_rewards
from selfemo.method.self_grpo import Normalise, advantages, scale_of
from selfemo.method.types import (
    Completion,
    EmotionDistribution,
    FailureKind,
    LabelSet,
    ParseFailure,
    RawCompletion,
    Rollout,
    RolloutGroup,
    emotion_of,
)


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
    how: Normalise = "std",
    emotion_only: bool = False,
) -> tuple[Rollout, ...]:
    """Score the G completions of one prompt against its target.

    `primary` and `secondary` are names of rewards; for `lam`, `eps`, `ddof` and `how` see
    `self_grpo.advantages`.

    Args:
        emotion_only: the samples end with the E line; R1 and R2 depend on nothing behind it.
    """
    read = _read_emotion if emotion_only else _read
    parsed = [read(s, labels) for s in samples]
    predicted = [emotion_of(p) for p in parsed]
    r1 = [primary_reward(p, target, labels, primary) for p in predicted]
    r2 = secondary_rewards(predicted, labels, secondary)
    found = advantages(r1, r2, lam, eps=eps, ddof=ddof, how=how).tolist()
    heads = [len(s.token_ids) if emotion_only else None for s in samples]
    return tuple(Rollout(*r) for r in zip(samples, parsed, r1, r2, found, heads, strict=True))


def with_rest(
    group: RolloutGroup,
    member: int,
    rest: RawCompletion,
    *,
    lam: float,
    eps: float = 1e-6,
    ddof: int = 0,
    how: Normalise = "std",
) -> RolloutGroup:
    """The group with S and reply sampled behind the E line of one of its members (SPEC section 9).

    The tokens of `rest` carry what depends on them: R1 of the member less its value had the completion
    parsed, on the scale of the group's primary rewards: 0, unless it breaks behind E. Then its R1 is 0.
    """
    rollout = group.rollouts[member]
    begun = rollout.raw
    whole = RawCompletion(
        begun.text + rest.text,
        begun.token_ids + rest.token_ids,
        begun.logprobs + rest.logprobs,
        begun.entropies + rest.entropies,
        rest.finished,
    )
    parsed = _read(whole, group.prompt.label_set)
    done = replace(rollout, raw=whole, parsed=parsed)
    if isinstance(parsed, ParseFailure):
        scale = scale_of([r.r1 for r in group.rollouts], how, eps, ddof)
        done = replace(done, r1=0.0, rest=-(1 - lam) * rollout.r1 / float(scale[0]))
    rollouts = (*group.rollouts[:member], done, *group.rollouts[member + 1 :])
    return replace(group, rollouts=rollouts)


def _read(sample: RawCompletion, labels: LabelSet) -> Completion | ParseFailure:
    return parse(sample.text, labels, finished=sample.finished)


def _read_emotion(sample: RawCompletion, labels: LabelSet) -> EmotionDistribution | ParseFailure:
    """E of a sample that ends with the E line; one that is cut, or ends as if nothing followed, fails."""
    if not sample.finished:
        return ParseFailure(FailureKind.TRUNCATED, sample.text[-80:])
    found = parse_recognition(sample.text, labels)
    if isinstance(found, EmotionDistribution) and not sample.text.endswith("\n"):
        return ParseFailure(FailureKind.NO_SELF_EMOTION, sample.text[-80:])
    return found
