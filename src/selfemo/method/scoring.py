"""From sampled completions to rollouts: parse, R1, R2 and advantage of one group (SPEC sections 2, 3, 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from selfemo.method.parsing import emotion_line, parse, parse_recognition
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
    on_policy: bool = True,
) -> RolloutGroup:
    """The group with S and reply sampled behind the E line of one of its members (SPEC section 9).

    The tokens of `rest` carry what depends on them: R1 of the member less its value had the completion
    parsed, on the scale of the group's primary rewards: 0, unless it breaks behind E. Then its R1 is 0. Where
    these rewards are all equal, the scale is that of the rewards with this one at 0: else a group in which
    every E is right would teach nothing of a completion that breaks.

    Args:
        on_policy: whether the policy sampled all of `rest`. If not, its tokens carry nothing: what breaks
            behind an S that was given is no fault of the policy.
    """
    before, labels = group.rollouts, group.prompt.label_set
    done = _with_rest(before, member, rest, labels, lam, {"eps": eps, "ddof": ddof, "how": how})
    if not on_policy:
        done = replace(done, rest=0.0)
    return replace(group, rollouts=(*before[:member], done, *before[member + 1 :]))


def _with_rest(
    group: Sequence[Rollout],
    member: int,
    rest: RawCompletion,
    labels: LabelSet,
    lam: float,
    scale: Mapping[str, Any],
) -> Rollout:
    rollout = group[member]
    done = completed(rollout, rest, labels)
    if not isinstance(done.parsed, ParseFailure):
        return done
    r1 = np.array([r.r1 for r in group])
    divisor = scale_of(r1, **scale)
    if np.isinf(divisor).all():
        r1[member] = 0.0
        divisor = scale_of(r1, **scale)
    return replace(done, r1=0.0, rest=-(1 - lam) * rollout.r1 / float(divisor[0]))


def score_causally(
    labels: LabelSet,
    target: EmotionDistribution,
    samples: Sequence[RawCompletion],
    heads: Sequence[int],
    *,
    lam: float,
    primary: str = "iou",
    secondary: str = "count",
    eps: float = 1e-6,
    ddof: int = 0,
    how: Normalise = "std",
) -> tuple[Rollout, ...]:
    """Score G whole completions with causal credit: as E lines, and each with what follows its E line.

    Args:
        heads: the number of tokens of each completion up to the end of its E line, all where it has none.
    """
    scale: dict[str, Any] = {"eps": eps, "ddof": ddof, "how": how}
    parts = [_cut(s, n) for s, n in zip(samples, heads, strict=True)]
    found = score_completions(
        labels,
        target,
        [line for line, _ in parts],
        lam=lam,
        primary=primary,
        secondary=secondary,
        emotion_only=True,
        **scale,
    )
    return tuple(
        replace(r, raw=sample, head=head)
        if r.emotion is None
        else replace(_with_rest(found, k, rest, labels, lam, scale), head=head)
        for k, (r, sample, (_, rest), head) in enumerate(zip(found, samples, parts, heads, strict=True))
    )


def _cut(sample: RawCompletion, head: int) -> tuple[RawCompletion, RawCompletion]:
    """A completion in two: up to the end of the E line, where sampling it alone would stop, and the rest."""
    end = line_end(sample.text)
    if not end:
        return sample, RawCompletion("", finished=sample.finished)
    first = sample.part(0, head, sample.text[:end], finished=True)
    return first, sample.part(head, None, sample.text[end:], finished=sample.finished)


def line_end(text: str) -> int:
    """Where the E line of a completion ends, its line end included; 0 if it has none, or is not ended."""
    start, end = emotion_line(text)
    return text.find("\n", start) + 1 if end else 0


def completed(rollout: Rollout, rest: RawCompletion, labels: LabelSet) -> Rollout:
    """A rollout of an E line with the text behind it; text that goes on with E breaks the completion."""
    whole = rollout.raw.then(rest)
    parsed = _read(whole, labels)
    if isinstance(parsed, Completion) and parsed.emotion != rollout.emotion:
        parsed = ParseFailure(FailureKind.EXTRA_TEXT, rest.text[:80])
    return replace(rollout, raw=whole, parsed=parsed)


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
