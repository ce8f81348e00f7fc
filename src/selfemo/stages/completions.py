"""Completions of a round: whole ones, or E lines, S and replies by themselves (SPEC sections 5, 9, 10)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from selfemo.config import Config, GrpoConfig, SamplingConfig
from selfemo.method.parsing import parse_emotions, split_fields
from selfemo.method.prompts import Fitted, Reasoning, fit, format_self_emotion
from selfemo.method.scoring import with_rest
from selfemo.method.types import (
    EmotionDistribution,
    FailureKind,
    LabelSet,
    ParseFailure,
    Place,
    Prompt,
    RawCompletion,
    Rollout,
    RolloutGroup,
)
from selfemo.models.generation.requests import SamplingSettings
from selfemo.models.sampler import Message
from selfemo.seeds import derive, rng
from selfemo.stages.gate import right_enough
from selfemo.training.expression import Begun, Ears, Spoken

EMOTION_TOKENS = 40
"""Most tokens of an E line that is sampled alone: three emotions with weights take about 15."""
Encode = Callable[[str], Sequence[int]]
"""From a part of a completion to its token ids, without an end token."""
Sample = Callable[[Sequence[Fitted], int, Sequence[int], SamplingSettings], list[list[RawCompletion]]]
"""From (prompts, n, their seeds, settings) to n completions of each."""


def scale_settings(grpo: GrpoConfig) -> dict[str, Any]:
    """How advantages are scaled, as `scoring` takes it."""
    return {"eps": grpo.eps, "ddof": grpo.ddof, "how": grpo.normalise}


def fit_all(
    prompts: Sequence[Prompt],
    encode: Callable[[list[Message]], Sequence[int]],
    max_tokens: int,
    reasoning: Reasoning,
) -> tuple[list[Fitted], Counter[str]]:
    """Shorten prompts to the length limit; counts: `too_long` (left out), `shortened`, `turns_dropped`."""
    counts: Counter[str] = Counter()
    fitted = []
    for prompt in prompts:
        f = fit(prompt, encode, max_tokens, reasoning)
        if f is None:
            counts[FailureKind.TOO_LONG.value] += 1
            continue
        if f.dropped:
            counts["shortened"] += 1
            counts["turns_dropped"] += f.dropped
        fitted.append(f)
    return fitted, counts


def sampling_settings(s: SamplingConfig) -> SamplingSettings:
    """The settings under which completions are sampled for training."""
    return SamplingSettings(s.max_new_tokens, s.temperature, s.top_p, token_budget=s.token_budget)


def sample_groups(
    sample: Sample, prompts: Sequence[Fitted], config: Config, place: Place, *, replies: bool = True
) -> list[list[RawCompletion]]:
    """G completions of each prompt; where credit is causal, their first part, up to the end of the E line.

    Args:
        replies: whether anything uses the replies; if not, and grpo.reward_weight is 0, nothing learns from
            a group, so that one completion stands for it in the metrics.
    """
    settings = sampling_settings(config.sampling)
    seeds = [derive(config.seed, place.stage, place.step, f.prompt.id) for f in prompts]
    if config.grpo.credit == "causal":
        lines, most = 1, EMOTION_TOKENS
        if config.prompt.reasoning != "none":
            lines, most = 2, settings.max_new_tokens
        settings = replace(settings, max_lines=lines, max_new_tokens=min(most, settings.max_new_tokens))
    n = config.sampling.group_size if replies or config.grpo.reward_weight else 1
    return sample(prompts, n, seeds, settings)


def balanced_emotions(label_sets: Sequence[LabelSet], seed: int) -> list[str]:
    """A self-emotion for each turn of a round, each label of a set as often as the others give or take one.

    [ours]. As many turns in a row as a label set has labels get all of them, in an order that is drawn.

    Args:
        label_sets: of the turns, in order.
        seed: of this round.
    """
    members: dict[LabelSet, list[int]] = {}
    for i, labels in enumerate(label_sets):
        members.setdefault(labels, []).append(i)
    given = [""] * len(label_sets)
    for labels, turns in members.items():
        generator = rng(seed, "self-emotions", labels.name)
        for start in range(0, len(turns), len(labels)):
            order = generator.permutation(labels.labels).tolist()
            for turn, label in zip(turns[start : start + len(labels)], order, strict=False):
                given[turn] = label
    return given


def complete_best(
    sample: Sample,
    prompts: Sequence[Fitted],
    groups: Sequence[RolloutGroup],
    best: Sequence[int],
    config: Config,
    place: Place,
    lam: float,
    *,
    encode: Encode,
    every: bool = True,
    ears: Ears | None = None,
) -> tuple[list[RolloutGroup], dict[int, Spoken]]:
    """Sample S and the reply behind the best E line of each group (two-stage rollouts, SPEC section 9).

    What is kept has the distribution of a whole completion that was sampled at once and then chosen by its E.
    Its limit of tokens is that of a whole one, however long the other E lines are. With
    `selfplay.self_emotion = "balanced"` S is given (`balanced_emotions`) and the reply alone is sampled;
    nothing behind the E line is on policy then, so that none of it is trained on but by R3.

    With `ears` S is drawn first, and then several replies to it, of which one is kept
    (training/expression.py). What breaks in a reply is R3's then; the S line is charged for itself.

    Args:
        every: behind each E line that parsed; else where something comes of it: the gate may let it pass, or
            its tokens carry credit, since S is sampled and the E line has a reward to lose.

    Returns:
        the groups, and by the number of the group the replies that were drawn, with `ears`.
    """
    settings = sampling_settings(config.sampling)
    sampled_s = config.selfplay.self_emotion == "sampled"

    lines = [g.rollouts[b] for g, b in zip(groups, best, strict=True)]
    open_ = [
        k for k, (g, r) in enumerate(zip(groups, lines, strict=True))
        if r.emotion is not None and (every or _comes_of(g.prompt, r, config))
    ]  # fmt: skip
    draw = partial(_behind, sample, prompts, lines, config.seed, place)
    leads = dict.fromkeys(open_, RawCompletion(""))
    if not sampled_s:
        given = balanced_emotions(
            [groups[k].prompt.label_set for k in open_], derive(config.seed, place.stage, place.step)
        )
        leads = {k: _given(e, encode) for k, e in zip(open_, given, strict=True)}
    elif ears:
        line = replace(settings, max_lines=1, max_new_tokens=min(EMOTION_TOKENS, settings.max_new_tokens))
        leads = {k: s for k, (s,) in draw(leads, 1, "self-emotion", line).items()}
    room = {
        k: settings.max_new_tokens - len(lines[k].raw.token_ids) - len(s.token_ids) for k, s in leads.items()
    }
    going = leads
    if ears:
        # What follows an S line that says nothing, has no end or leaves no room is no reply.
        going = {
            k: s for k, s in leads.items()
            if room[k] > 0 and (not sampled_s or says_s(s.text, groups[k].prompt.label_set))
        }  # fmt: skip
    n = (config.reward.replies or config.sampling.group_size) if ears else 1
    most = max([1, *(room[k] for k in going)])
    drawn = draw(going, n, "rest", replace(settings, max_new_tokens=most))
    rests = {k: [_within(raw, room[k]) for raw in raws] for k, raws in drawn.items()}
    spoken: dict[int, Spoken] = {}
    if ears:
        begun = [Begun(groups[k].prompt, lines[k], leads[k], raws) for k, raws in rests.items()]
        spoken = dict(zip(rests, ears.hear(begun, config), strict=True))
    result = list(groups)
    for k, lead in leads.items():
        kept = spoken[k].kept if k in spoken else 0
        rest = lead.then(rests[k][kept]) if k in rests else lead
        charged, scale = sampled_s and k not in spoken, scale_settings(config.grpo)
        result[k] = with_rest(groups[k], best[k], rest, lam=lam, on_policy=charged, **scale)
    return result, spoken


def says_s(line: str, labels: LabelSet) -> bool:
    """Whether a text is an S line that parses, with its end."""
    fields = split_fields(line)[1]
    said = line.endswith("\n") and len(fields) == 1 and fields[0][0] == "S"
    return said and not isinstance(parse_emotions(fields[0][1], labels), ParseFailure)


def _behind(
    sample: Sample,
    prompts: Sequence[Fitted],
    lines: Sequence[Rollout],
    seed: int,
    place: Place,
    leads: Mapping[int, RawCompletion],
    n: int,
    name: str,
    settings: SamplingSettings,
) -> dict[int, list[RawCompletion]]:
    """What follows the E line and a lead of some groups, n times each.

    Args:
        lines: the best E line of each group.
        leads: by the number of the group.
        name: of this draw, for its seeds.
    """
    begun = [
        replace(prompts[k], ids=(*prompts[k].ids, *lines[k].raw.token_ids, *lead.token_ids))
        for k, lead in leads.items()
    ]
    seeds = [derive(seed, place.stage, place.step, f.prompt.id, name) for f in begun]
    return dict(zip(leads, sample(begun, n, seeds, settings) if begun else [], strict=True))


def _comes_of(prompt: Prompt, line: Rollout, config: Config) -> bool:
    """Whether something comes of what follows an E line: the gate may let it pass, or S carries credit."""
    sampled = config.selfplay.self_emotion == "sampled"
    credit = sampled and bool(config.grpo.reward_weight) and line.r1 > 0
    return credit or right_enough(prompt, line, config.gate.tau)


def _given(emotion: str, encode: Encode) -> RawCompletion:
    """An S line that is given, not sampled: its tokens have neither probability nor entropy."""
    text = format_self_emotion(EmotionDistribution({emotion: 1}))
    ids = tuple(encode(text))
    unknown = (math.nan,) * len(ids)
    return RawCompletion(text, ids, unknown, unknown)


def _within(raw: RawCompletion, most: int) -> RawCompletion:
    """A completion, cut off if it has more than `most` tokens; the text, which fails then, stays whole."""
    if len(raw.token_ids) <= most:
        return raw
    return raw.part(0, max(0, most), raw.text, finished=False)
