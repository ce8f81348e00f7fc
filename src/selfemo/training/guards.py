"""Guards over a training stage [ours]: numbers, KL, collapse, reward hacking, expression.

    numbers    a loss, gradient or measure that is not finite. The engine leaves such a step out, so it
               reaches neither weights nor a checkpoint
    kl         mean KL to the reference policy per token over guard.max_kl (measured where kl_coef > 0)
    collapse   over guard.window rounds: mean sampling entropy under guard.min_entropy, or the most
               frequent recognised emotion over guard.max_emotion_share
    hacking    over guard.window rounds: mean R2 of the second half above that of the first by
               guard.hacking_change or more while mean R1 fell by as much
    expression where replies are rewarded (reward.expression), over the last guard.window rounds with
               replies: since the stage's first rounds the listener's R3 rose by guard.expression_change or
               more, and that of the independent reader of reward.reader on the same replies by less than a
               quarter of it (the policy learns what the listener likes, not to show its emotion), or their
               length halved or doubled, or is less like that of people's turns by
               guard.length_change or more; the replies' entropy is under guard.min_entropy; less than
               guard.min_distinct of their pairs of words differ; more than guard.max_refused of them break a
               rule; one declared emotion has more than guard.max_emotion_share

Alarms depend on the stage's metrics records alone, so a resumed run raises the same ones. After an alarm of a
kind that has a window, a new window starts.

Each kind has its action: `warn` goes on; `stop` saves the state after the step and raises; `rollback` goes
back to the last state saved before it and halves the learning rate for the rest of the stage. No prompt is
left out: most alarms are the result of many steps, and the next batch would lead the same policy there too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfemo.config import Config, GuardAction, GuardConfig

NOT_FINITE = "not_finite"
"""Measure of a step: how many optimiser steps were left out because their numbers were not finite."""


@dataclass(frozen=True)
class Alarm:
    """One alarm after a step; `kind` is also the key of its action in [guard]."""

    kind: str
    reason: str


def _window(records: Sequence[Mapping[str, Any]], kind: str, size: int) -> list[Mapping[str, Any]]:
    """The last `size` records with rollouts since the last alarm of a kind; empty if there are fewer."""
    start = next((k + 1 for k in reversed(range(len(records))) if kind in records[k].get("alarms", ())), 0)
    measured = [r for r in records[start:] if "r1" in r]
    return measured[-size:] if len(measured) >= size else []


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> float:
    return math.fsum(r[key] for r in records) / len(records)


def _numbers(record: Mapping[str, Any]) -> str | None:
    if left_out := record.get(NOT_FINITE):
        return f"the loss or gradient of {left_out:.0f} optimiser steps is not finite; they were left out"
    bad = sorted(k for k, v in record.items() if isinstance(v, float) and not math.isfinite(v))
    return f"not finite: {', '.join(bad)}" if bad else None


def _kl(record: Mapping[str, Any], config: GuardConfig) -> str | None:
    if (kl := record.get("kl")) is None or kl <= config.max_kl:
        return None
    return f"KL to the reference is {kl:.3g} nats per token, over guard.max_kl = {config.max_kl:g}"


def _collapse(records: Sequence[Mapping[str, Any]], config: GuardConfig) -> str | None:
    if not (window := _window(records, "collapse", config.window)):
        return None
    entropy = _mean(window, "sampling_entropy")
    if entropy < config.min_entropy:
        return (
            f"the entropy of the policy is {entropy:.3g} nats per token over {len(window)} rounds, "
            f"under guard.min_entropy = {config.min_entropy:g}"
        )
    if not (found := _most(window, "emotions")) or found[1] <= config.max_emotion_share:
        return None
    most, share = found
    return (
        f"{share:.1%} of the completions of {len(window)} rounds recognise {most!r}, over "
        f"guard.max_emotion_share = {config.max_emotion_share:g}"
    )


def _hacking(records: Sequence[Mapping[str, Any]], config: GuardConfig) -> str | None:
    if not (window := _window(records, "hacking", config.window)):
        return None
    early, late = window[: len(window) // 2], window[-(len(window) // 2) :]
    r1, r2 = (_mean(late, k) - _mean(early, k) for k in ("r1", "r2"))
    if r2 < config.hacking_change or -r1 < config.hacking_change:
        return None
    return (
        f"over {len(window)} rounds mean R2 rose by {r2:.3f} while mean R1 fell by {-r1:.3f}: the "
        "policy learns to agree with itself and not with the target"
    )


def _most(window: Sequence[Mapping[str, Any]], key: str) -> tuple[str, float] | None:
    """The emotion with the largest mean share over a window, and that share; None where none was taken."""
    emotions = sorted({e for r in window for e in r.get(key, ())})
    shares = {e: math.fsum(r[key].get(e, 0.0) for r in window) / len(window) for e in emotions}
    return max(shares.items(), key=lambda s: s[1]) if shares else None


def _change(records: Sequence[Mapping[str, Any]], key: str, half: int) -> tuple[float, float] | None:
    """Means of a measure over the first and the last `half` records that have it; None for too few."""
    taken = [r for r in records if r.get(key) is not None]
    if len(taken) < 2 * half:
        return None
    return _mean(taken[:half], key), _mean(taken[-half:], key)


def _expression(records: Sequence[Mapping[str, Any]], config: GuardConfig) -> str | None:
    spoken = [r for r in records if r.get("replies")]
    if not (window := _window(spoken, "expression", config.window)):
        return None
    found, half = [], len(window) // 2
    # A drift of many rounds is small within each window.
    listener, reader = _change(spoken, "expression", half), _change(spoken, "expression_reader", half)
    if listener and reader:
        rise, real = listener[1] - listener[0], reader[1] - reader[0]
        if rise >= config.expression_change and real < rise / 4:
            found.append(
                f"the listener's R3 rose by {rise:.2f} nats and the reader's by {real:.2f}: the policy "
                "learns what the listener likes, and not to show what it feels"
            )
    if listener and (contrast := _change(spoken, "expression_contrast", half)):
        rise, real = listener[1] - listener[0], contrast[1] - contrast[0]
        if rise >= config.expression_change and real < rise / 4:
            found.append(
                f"R3 rose by {rise:.2f} nats, and what replies tell of their S beyond the other emotions by "
                f"{real:.2f}: they change whatever is declared"
            )
    if (lengths := _change(spoken, "reply_tokens", half)) and not 0.5 * lengths[0] < lengths[1] < 2 * lengths[
        0
    ]:
        found.append(f"replies went from {lengths[0]:.0f} to {lengths[1]:.0f} tokens")
    gains = _change(spoken, "reply_length_gain", half)
    if gains and (lost := gains[0] - gains[1]) >= config.length_change:
        found.append(
            f"the lengths of replies are less like those of people's turns than at first, by {lost:.2f} nats "
            f"(guard.length_change = {config.length_change:g}); reward.length_weight is against it"
        )
    if (entropy := _mean(window, "reply_entropy")) < config.min_entropy:
        found.append(
            f"the entropy of the replies is {entropy:.3g} nats per token, under guard.min_entropy = "
            f"{config.min_entropy:g}"
        )
    distinct = [r["reply_distinct_2"] or 0.0 for r in window]
    if (share := math.fsum(distinct) / len(distinct)) < config.min_distinct:
        found.append(
            f"{share:.1%} of the pairs of words in the replies differ, under guard.min_distinct = "
            f"{config.min_distinct:g}"
        )
    if (share := _mean(window, "refused")) > config.max_refused:
        kinds = Counter[str]()
        for r in window:
            kinds.update(r["replies_refused"])
        told = ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in kinds.most_common())
        found.append(
            f"{share:.1%} of the replies earn nothing ({told}), over guard.max_refused = "
            f"{config.max_refused:g}"
        )
    if (most := _most(window, "self_emotions")) and most[1] > config.max_emotion_share:
        found.append(
            f"{most[1]:.1%} of the replies declare {most[0]!r}, over guard.max_emotion_share = "
            f"{config.max_emotion_share:g}"
        )
    return f"over {len(window)} rounds {'; '.join(found)}" if found else None


def alarms(records: Sequence[Mapping[str, Any]], config: GuardConfig) -> list[Alarm]:
    """The alarms after the last of a stage's metrics records (all of them, in order)."""
    found = {
        "numbers": _numbers(records[-1]),
        "kl": _kl(records[-1], config),
        "collapse": _collapse(records, config),
        "hacking": _hacking(records, config),
        "expression": _expression(records, config),
    }
    return [Alarm(kind, reason) for kind, reason in found.items() if reason]


def decide(found: Sequence[Alarm], config: GuardConfig) -> GuardAction | None:
    """The strictest action that is set for these alarms: stop, then rollback, then warn."""
    strict: tuple[GuardAction, ...] = ("stop", "rollback", "warn")
    return min((getattr(config, a.kind) for a in found), key=strict.index, default=None)


def rate_scale(rollbacks: Sequence[Mapping[str, Any]], step: int) -> float:
    """The factor of a step's learning rate: one half for each rollback to the step or before it."""
    return float(0.5 ** sum(r["to"] <= step for r in rollbacks))


def silent(record: Mapping[str, Any], config: Config) -> bool:
    """Whether the rewards of an RL round teach nothing: all completions of each prompt have one advantage,
    and so have its replies, where they are rewarded.

    No alarm: the policy may be as good as its rewards can tell, or not able to answer yet.
    """
    if config.reward.expression_weight and record.get("replies_flat", 1) < 1:
        return False
    learns = config.grpo.reward_weight or config.expresses
    return bool(learns) and record.get("silent") == 1


def about_silence(record: Mapping[str, Any], config: Config) -> str:
    """What the completions of a silent round were like, what it learns all the same, and what may help."""
    grpo, sampling = config.grpo, config.sampling
    terms = ["KL"] * bool(grpo.kl_coef) + ["entropy"] * bool(grpo.entropy_coef)
    left = ["the gold E lines"] if grpo.gold_weight else []
    left += [f"the {' and '.join(terms)} term{'s' * (len(terms) > 1)}"] if terms else []
    if record.get("grad_norm") and not left:
        left = ["completions that break behind their E line"]
    learned = f"Only {' and '.join(left)} can change the policy" if left else "The policy stays as it is"
    shares = f"mean R1 {record['r1']:.3f}, {record['parse_rate']:.0%} can be read"
    if record["parse_rate"] < 0.5:
        cut = f", {record['truncated']:.0%} are cut by sampling.max_new_tokens = {sampling.max_new_tokens}"
        advice = "a longer cold start (sft.epochs, sft.max_samples) teaches the format"
        shares += cut if record["truncated"] else ""
    else:
        advice = (
            "a higher sampling.temperature, a larger sampling.group_size or a shorter cold start makes the "
            f"completions of a prompt differ (now {sampling.temperature:g} and {sampling.group_size})"
        )
    return (
        f"the rewards teach nothing: in all groups ({record['prompts']}) the {sampling.group_size} "
        f"completions earn the same ({shares}). {learned}. What may help: {advice}"
    )
