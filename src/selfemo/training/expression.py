"""Expression: replies to one S are scored by a frozen listener, and learn from it (SPEC section 10 [ours]).

Behind the best E line of a group one S is drawn, and behind both of them several replies (where whole
completions are sampled, by TRL or verl, each has its own: whole_replies.py). So the replies of
a prompt differ in their words alone, and R3, compared among them, teaches the words: neither E nor S gets
anything of it. Which reply goes on, to the gate and the next prompt, `selfplay.reply` says.

With `reward.contrast` a reply earns by what it tells of its S beyond the other emotions, and it trains behind
those too: the listener has said how well it would show each. There it was not sampled, so that its tokens
weigh min(1, p(token | that S) / p(token | its own S)). Most of what a listener says there is small: an
advantage under ROUGH nats is taken as ROUGH, as seldom as keeps its mean.

A reply earns nothing that does not parse, that the gate would refuse, or that names an emotion of the set.
One that the listener cannot read breaks no rule: it is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import fmean, pstdev
from typing import Any, Literal

from selfemo.config import Config, GateConfig, PromptConfig, RewardConfig
from selfemo.method.diversity import distinct
from selfemo.method.expression import bounded, contrasts, gains, information_gain, reply_advantages
from selfemo.method.lengths import Lengths, length_gain, lengths_of
from selfemo.method.prompts import Fitted, s_like
from selfemo.method.replies import names_label, reply_fault
from selfemo.method.scoring import completed
from selfemo.method.types import Completion, EmotionDistribution, LabelSet, Prompt, RawCompletion, Rollout
from selfemo.models.reply_readers import Read, ReplyReader, SamplerReader, open_reply_reader
from selfemo.models.sampler import Sampler
from selfemo.seeds import rng
from selfemo.training.protocol import RlItem

UNPARSED, LABEL_WORD, UNREAD = "unparsed", "label_word", "unread"
"""Why a reply earns nothing, besides the verdicts of `reply_fault`."""
ROUGH = 1.0
"""Nats. Of seven emotions and MELD's start, three in ten advantages are larger; half as many items make a
round half as long."""


@dataclass(frozen=True)
class Reply:
    """One of the replies to a prompt, drawn behind one E line and one S.

    Attributes:
        raw: its tokens behind S.
        said: the completion that it ends; None where that does not parse.
        fault: why it earns nothing; "" where it earns its R3.
        gain: what the listener learned of S, nats, before it is bounded; None with a fault.
        contrast: by emotion, what the listener learned of it beyond what it learned of the others, nats;
            empty with a fault.
        length_gain: how like a person's turn it is in length beside the replies to other prompts, nats
            (method/lengths.py); None with a fault, or where nothing is known of people.
        heard: what the listener finds in it; None where it was not read.
        judged: R3 by the reader of `reward.reader`, which nothing learns from.
        advantage: of its tokens, before reward.expression_weight.
        elsewhere: the same behind each emotion that it does not declare.
    """

    raw: RawCompletion
    said: Completion | None
    fault: str = ""
    gain: float | None = None
    contrast: Mapping[str, float] = field(default_factory=dict)
    length_gain: float | None = None
    heard: EmotionDistribution | None = None
    judged: float | None = None
    advantage: float = 0.0
    elsewhere: Mapping[str, float] = field(default_factory=dict)

    @property
    def reward(self) -> float | None:
        """R3; None with a fault."""
        return None if self.gain is None else bounded(self.gain)

    @property
    def contrasted(self) -> float | None:
        """What the listener learned of S beyond what it learned of the other emotions; None with a fault."""
        if self.said is None or not self.contrast:
            return None
        return math.fsum(w * self.contrast[e] for e, w in self.said.self_emotion.items())


@dataclass(frozen=True)
class Begun:
    """A prompt with E and S, and replies that were drawn behind them, not scored yet.

    Attributes:
        emotion: the rollout of the E line.
        lead: the tokens between the E line and the replies: S, as it was drawn or given.
    """

    prompt: Prompt
    emotion: Rollout
    lead: RawCompletion
    replies: Sequence[RawCompletion]


@dataclass(frozen=True)
class Spoken:
    """The scored replies to a prompt.

    Attributes:
        line: the tokens of E that stand before each of them.
        lead: S, behind it.
        kept: the number of the one that goes on.
    """

    line: tuple[int, ...]
    lead: RawCompletion
    replies: tuple[Reply, ...]
    kept: int = 0

    @property
    def numbered(self) -> dict[int, Reply]:
        return dict(enumerate(self.replies))

    def goes_on(self, best: int) -> Reply | None:
        """The reply that goes on; all of them are behind the best E line of the group."""
        return self.replies[self.kept]


@dataclass(frozen=True)
class Ears:
    """Who hears the replies of an RL stage.

    Attributes:
        listener: its R3 is learned from.
        judge: its R3 is not (reward.reader).
        people: lengths of people's turns in the conversations that the stage's prompts are of.
    """

    listener: ReplyReader
    judge: ReplyReader | None = None
    people: Lengths | None = None

    def hear(self, drawn: Sequence[Begun], config: Config) -> list[Spoken]:
        """`score_replies` by the settings of a run, and which reply goes on."""
        reward = config.reward
        scored = score_replies(
            drawn,
            self.listener,
            config.gate,
            self.judge,
            contrast=reward.contrast,
            people=self.people,
            length_weight=reward.length_weight,
        )
        return [
            Spoken(
                tuple(d.emotion.raw.token_ids), d.lead, replies, chosen_reply(replies, config.selfplay.reply)
            )
            for d, replies in zip(drawn, scored, strict=True)
        ]


def open_ears(config: Config, teacher: Callable[[], Sampler]) -> Ears | None:
    """The listener and the judge that a run names; None where replies are not rewarded.

    Args:
        teacher: gives the policy of the stage's start, the reference.

    Raises: as `open_reply_reader`.
    """
    if not config.expresses:
        return None
    reward, judge = config.reward, config.reward.reader

    def opened(reference: str) -> ReplyReader:
        return open_reply_reader(reference, config.model, PromptConfig(max_tokens=config.prompt.max_tokens))

    listener = (
        SamplerReader(teacher(), config.prompt) if reward.heard_by_reference else opened(reward.listener)
    )
    return Ears(listener, opened(judge) if judge else None)


def score_replies(
    drawn: Sequence[Begun],
    listener: ReplyReader,
    gate: GateConfig,
    judge: ReplyReader | None = None,
    *,
    contrast: bool = False,
    people: Lengths | None = None,
    length_weight: float = 0.0,
) -> list[tuple[Reply, ...]]:
    """The replies of each prompt with their R3 and advantages; all are read together.

    Args:
        judge: an independent reader that reads them too.
        contrast: see reward.contrast.
        people: see `Ears`.
        length_weight: see reward.length_weight.
    """
    spoken = [
        (d.prompt, raw, completed(d.emotion, d.lead.then(raw), d.prompt.label_set).completion)
        for d in drawn
        for raw in d.replies
    ]
    found = iter(hear_replies(spoken, listener, gate, judge))
    groups = [list(islice(found, len(d.replies))) for d in drawn]
    return [compared(g, contrast, length_weight) for g in with_lengths(groups, people)]


def with_lengths(groups: Sequence[list[Reply]], people: Lengths | None) -> list[list[Reply]]:
    """The replies of several prompts with what their length gains beside those of the others; as they are
    where nothing is known of people."""
    if people is None:
        return list(groups)
    had = [lengths_of(r.said.reply for r in g if r.said and not r.fault) for g in groups]
    total = sum(had, Lengths())
    return [
        [
            replace(r, length_gain=length_gain(r.said.reply, people, total - own))
            if r.said and not r.fault
            else r
            for r in g
        ]
        for g, own in zip(groups, had, strict=True)
    ]


def compared(
    replies: Sequence[Reply], contrast: bool = False, length_weight: float = 0.0
) -> tuple[Reply, ...]:
    """The replies of a prompt with their advantages; those that could not be read have none."""

    def worth(told: float | None, r: Reply) -> float | None:
        return None if told is None else told + length_weight * (r.length_gain or 0.0)

    read = [r for r in replies if r.fault != UNREAD]
    advantages = iter(reply_advantages([worth(r.contrasted if contrast else r.gain, r) for r in read]))
    found = [r if r.fault == UNREAD else replace(r, advantage=next(advantages)) for r in replies]
    if not contrast:
        return tuple(found)
    # What breaks a rule is charged behind its own S alone.
    worths = [{e: c + length_weight * (r.length_gain or 0.0) for e, c in r.contrast.items()} for r in found]
    sound = [w for w, r in zip(worths, found, strict=True) if r.said is not None and w]
    mean = {e: fmean(w[e] for w in sound) for e in (sound[0] if sound else ())}
    declared = [dict(r.said.self_emotion.items()) if r.said else {} for r in found]
    return tuple(
        replace(r, elsewhere={e: bounded(v - mean[e]) for e, v in w.items() if e not in own})
        for r, w, own in zip(found, worths, declared, strict=True)
    )


def hear_replies(
    spoken: Sequence[tuple[Prompt, RawCompletion, Completion | None]],
    listener: ReplyReader,
    gate: GateConfig,
    judge: ReplyReader | None = None,
) -> list[Reply]:
    """Replies with what they earn or their fault, without advantages; all are read together.

    Args:
        spoken: the prompt of each, its tokens, and the completion that it ends, None where that does not
            parse.
        judge: as in `score_replies`.
    """
    found = [Reply(raw, said, _fault(prompt, said, gate)) for prompt, raw, said in spoken]
    fit = [
        (k, prompt, said)
        for k, (prompt, _, said) in enumerate(spoken)
        if said is not None and not found[k].fault
    ]
    asked = [(prompt, said) for _, prompt, said in fit]
    by_listener = _read(listener, asked)
    by_judge = _read(judge, asked) if judge else [_Heard()] * len(asked)
    for (k, *_), heard, judged in zip(fit, by_listener, by_judge, strict=True):
        found[k] = replace(
            found[k],
            fault=UNREAD if heard.gain is None else "",
            gain=heard.gain,
            contrast=heard.contrast,
            heard=heard.emotion,
            judged=None if judged.gain is None else bounded(judged.gain),
        )
    return found


def _fault(prompt: Prompt, said: Completion | None, gate: GateConfig) -> str:
    if said is None:
        return UNPARSED
    named = LABEL_WORD if names_label(said.reply, prompt.label_set) else ""
    return reply_fault(prompt, said.reply, gate) or named


@dataclass(frozen=True)
class _Heard:
    """What a reader finds in a reply, learned of S and of each emotion; empty where it cannot read."""

    emotion: Read = None
    gain: float | None = None
    contrast: Mapping[str, float] = field(default_factory=dict)


def _read(reader: ReplyReader, spoken: Sequence[tuple[Prompt, Completion]]) -> list[_Heard]:
    """What a reader finds in replies, each different one read once."""
    asked = list(dict.fromkeys((prompt, said.reply) for prompt, said in spoken))
    prompts = list(dict.fromkeys(prompt for prompt, _ in spoken))
    read = dict(zip(asked, reader.read(asked), strict=True))
    expected = dict(zip(prompts, reader.expect(prompts), strict=True))
    heard = list[_Heard]()
    for prompt, said in spoken:
        q, before, labels = read[prompt, said.reply], expected[prompt], prompt.label_set
        if q is None or before is None:
            heard.append(_Heard(q))
        else:
            gain = information_gain(said.self_emotion, q, before, labels)
            heard.append(_Heard(q, gain, contrasts(gains(q, before, labels))))
    return heard


def chosen_reply(replies: Sequence[Reply], which: Literal["first", "best"]) -> int:
    """The index of the reply that goes on: of those that break no rule the first, or the one with the highest
    gain; where all do, the first that parses, or the first."""
    fit = [i for i, r in enumerate(replies) if not r.fault or r.fault == UNREAD]
    if which == "best" and (earned := [i for i in fit if replies[i].gain is not None]):
        return max(earned, key=lambda i: (replies[i].gain, -i))
    parsed = [i for i, r in enumerate(replies) if r.said is not None]
    return next(iter([*fit, *parsed]), 0)


def reply_measures(groups: Sequence[tuple[LabelSet, Sequence[Reply]]]) -> dict[str, Any]:
    """The measures of a round's replies, from the replies to each prompt; empty where none was drawn.

    expression: mean R3 by the listener; expression_reader: by the reader of reward.reader, on the same
    replies; expression_contrast: what the listener learned of S beyond the other emotions, mean;
    reply_length_gain: mean; expression_spread: mean standard deviation of the gains of a prompt;
    replies_flat: share of the prompts whose replies all have one advantage; expressed: share of the replies
    in which the top emotion of S is the one most heard; refused: share that breaks a rule; reply_entropy:
    nats per token; reply_distinct_2: share of different pairs of words.
    """
    replies = [(labels, r) for labels, group in groups for r in group]
    if not replies:
        return {}
    earned = [r.reward for _, r in replies if r.reward is not None]
    judged = [r.judged for _, r in replies if r.judged is not None]
    beyond = [c for _, r in replies if (c := r.contrasted) is not None]
    lengths = [r.length_gain for _, r in replies if r.length_gain is not None]
    spreads = [pstdev(v) for _, g in groups if len(v := [r.gain for r in g if r.gain is not None]) > 1]
    hits = [
        r.heard.top(labels) == r.said.self_emotion.top(labels)
        for labels, r in replies
        if r.heard is not None and r.said is not None
    ]
    faults = Counter(r.fault for _, r in replies if r.fault)
    flat = [len({r.advantage for r in g}) < 2 for _, g in groups if g]
    return {
        "replies": len(replies),
        "replies_refused": dict(sorted(faults.items())),
        "expression": fmean(earned) if earned else None,
        **({"expression_reader": fmean(judged)} if judged else {}),
        "expression_contrast": fmean(beyond) if beyond else None,
        "expression_spread": fmean(spreads) if spreads else None,
        **({"reply_length_gain": fmean(lengths)} if lengths else {}),
        "expressed": fmean(hits) if hits else None,
        "replies_flat": fmean(flat),
        "refused": (faults.total() - faults[UNREAD]) / len(replies),
        "reply_tokens": fmean(len(r.raw.token_ids) for _, r in replies),
        "reply_entropy": fmean(r.raw.mean_entropy for _, r in replies),
        "reply_distinct_2": distinct([r.said.reply for _, r in replies if r.said], 2),
    }


def reply_items(
    fitted: Fitted,
    spoken: Spoken | None,
    reward: RewardConfig,
    encode: Callable[[str], Sequence[int]],
    seed: int,
) -> list[RlItem]:
    """What the replies to a prompt train on: their own tokens, behind the prompt with E and S, and behind the
    S that they are contrasted with; nothing where there are none, or where they have no weight.

    Args:
        encode: from a part of a completion to its token ids.
        seed: of the round, by which small advantages are kept.
    """
    if spoken is None or not reward.expression_weight:
        return []
    prompt, line = fitted.prompt, (*fitted.ids, *spoken.line)
    own = (*line, *spoken.lead.token_ids)
    leads = {e: (*line, *encode(s_like(spoken.lead.text, e))) for e in prompt.label_set.labels}

    def item(before: Sequence[int], r: Reply, advantage: float, *, elsewhere: bool) -> RlItem:
        return RlItem(
            before,
            r.raw.token_ids,
            reward.expression_weight * advantage,
            prompt.id,
            prompt.conversation_id,
            sampled=r.raw.logprobs or None,  # not every sampler tells them
            reply=True,
            elsewhere=elsewhere,
        )

    items, chance = [item(own, r, r.advantage, elsewhere=False) for r in spoken.replies], rng(seed, prompt.id)
    return items + [
        item(leads[e], r, rounded, elsewhere=True)
        for r in spoken.replies
        if r.raw.logprobs
        for e, advantage in r.elsewhere.items()
        if (rounded := _rough(advantage, chance.random()))
    ]


def _rough(advantage: float, drawn: float) -> float:
    """An advantage of ROUGH nats or more as it is; a smaller one as ROUGH or 0, with its own mean.

    Args:
        drawn: uniform in [0, 1).
    """
    if abs(advantage) >= ROUGH:
        return advantage
    return math.copysign(ROUGH, advantage) if drawn < abs(advantage) / ROUGH else 0.0
