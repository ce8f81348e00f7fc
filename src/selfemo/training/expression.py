"""Expression: replies to one S are scored by a frozen listener, and learn from it (SPEC section 10 [ours]).

Behind the best E line of a group one S is drawn, and behind both of them several replies. So the replies of
a prompt differ in their words alone, and R3, compared among them, teaches the words: neither E nor S gets
anything of it. Which reply goes on, to the gate and the next prompt, `selfplay.reply` says.

A reply earns nothing that does not parse, that the gate would refuse, or that names an emotion of the set.
One that the listener cannot read breaks no rule: it is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean, pstdev
from typing import Any, Literal

from selfemo.config import Config, GateConfig, PromptConfig, RewardConfig
from selfemo.method.diversity import distinct
from selfemo.method.expression import bounded, information_gain, reply_advantages
from selfemo.method.prompts import Fitted
from selfemo.method.replies import names_label, reply_fault
from selfemo.method.scoring import completed
from selfemo.method.types import Completion, EmotionDistribution, LabelSet, Prompt, RawCompletion, Rollout
from selfemo.models.reply_readers import Read, ReplyReader, SamplerReader, open_reply_reader
from selfemo.models.sampler import Sampler
from selfemo.training.protocol import RlItem

UNPARSED, LABEL_WORD, UNREAD = "unparsed", "label_word", "unread"
"""Why a reply earns nothing, besides the verdicts of `reply_fault`."""


@dataclass(frozen=True)
class Reply:
    """One of the replies to a prompt, drawn behind one E line and one S.

    Attributes:
        raw: its tokens behind S.
        said: the completion that it ends; None where that does not parse.
        fault: why it earns nothing; "" where it earns its R3.
        gain: what the listener learned of S, nats, before it is bounded; None with a fault.
        heard: what the listener finds in it; None where it was not read.
        judged: R3 by the reader of `reward.reader`, which nothing learns from.
        advantage: of its tokens, before reward.expression_weight.
    """

    raw: RawCompletion
    said: Completion | None
    fault: str = ""
    gain: float | None = None
    heard: EmotionDistribution | None = None
    judged: float | None = None
    advantage: float = 0.0

    @property
    def reward(self) -> float | None:
        """R3; None with a fault."""
        return None if self.gain is None else bounded(self.gain)


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
        lead: the tokens of E and S that stand before each of them.
        kept: the number of the one that goes on.
    """

    lead: tuple[int, ...]
    replies: tuple[Reply, ...]
    kept: int = 0


@dataclass(frozen=True)
class Ears:
    """Who hears the replies of an RL stage: the listener, whose R3 is learned from, and the judge, whose is
    not (reward.reader)."""

    listener: ReplyReader
    judge: ReplyReader | None = None

    def hear(self, drawn: Sequence[Begun], config: Config) -> list[Spoken]:
        """`score_replies` by the settings of a run, and which reply goes on."""
        scored = score_replies(drawn, self.listener, config.gate, self.judge)
        return [
            Spoken(
                (*d.emotion.raw.token_ids, *d.lead.token_ids),
                replies,
                chosen_reply(replies, config.selfplay.reply),
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
    drawn: Sequence[Begun], listener: ReplyReader, gate: GateConfig, judge: ReplyReader | None = None
) -> list[tuple[Reply, ...]]:
    """The replies of each prompt with their R3 and advantages; all are read together.

    Args:
        judge: an independent reader that reads them too.
    """
    spoken = [
        (d.prompt, raw, completed(d.emotion, d.lead.then(raw), d.prompt.label_set).completion)
        for d in drawn
        for raw in d.replies
    ]
    found = iter(hear_replies(spoken, listener, gate, judge))
    return [compared(list(islice(found, len(d.replies)))) for d in drawn]


def compared(replies: Sequence[Reply]) -> tuple[Reply, ...]:
    """The replies of a prompt with their advantages; those that could not be read have none."""
    read = [r for r in replies if r.fault != UNREAD]
    advantages = iter(reply_advantages([r.gain for r in read]))
    return tuple(r if r.fault == UNREAD else replace(r, advantage=next(advantages)) for r in replies)


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
    heard, gains = _read(listener, asked)
    judged = _read(judge, asked)[1] if judge else [None] * len(asked)
    for (k, *_), q, gain, by_judge in zip(fit, heard, gains, judged, strict=True):
        found[k] = replace(
            found[k],
            fault=UNREAD if gain is None else "",
            gain=gain,
            heard=q,
            judged=None if by_judge is None else bounded(by_judge),
        )
    return found


def _fault(prompt: Prompt, said: Completion | None, gate: GateConfig) -> str:
    if said is None:
        return UNPARSED
    named = LABEL_WORD if names_label(said.reply, prompt.label_set) else ""
    return reply_fault(prompt, said.reply, gate) or named


def _read(
    reader: ReplyReader, spoken: Sequence[tuple[Prompt, Completion]]
) -> tuple[list[Read], list[float | None]]:
    """What a reader finds in replies, each different one read once, and what it learns of S from them; None
    where it cannot read."""
    asked = list(dict.fromkeys((prompt, said.reply) for prompt, said in spoken))
    prompts = list(dict.fromkeys(prompt for prompt, _ in spoken))
    read = dict(zip(asked, reader.read(asked), strict=True))
    expected = dict(zip(prompts, reader.expect(prompts), strict=True))
    heard, gains = list[Read](), list[float | None]()
    for prompt, said in spoken:
        q, before = read[prompt, said.reply], expected[prompt]
        heard.append(q)
        if q is None or before is None:
            gains.append(None)
        else:
            gains.append(information_gain(said.self_emotion, q, before, prompt.label_set))
    return heard, gains


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
    replies; expression_spread: mean standard deviation of the gains of a prompt; replies_flat: share of the
    prompts whose replies all have one advantage; expressed: share of the replies in which the top emotion of
    S is the one most heard; refused: share that breaks a rule; reply_entropy: nats per token;
    reply_distinct_2: share of different pairs of words.
    """
    replies = [(labels, r) for labels, group in groups for r in group]
    if not replies:
        return {}
    earned = [r.reward for _, r in replies if r.reward is not None]
    judged = [r.judged for _, r in replies if r.judged is not None]
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
        "expression_spread": fmean(spreads) if spreads else None,
        "expressed": fmean(hits) if hits else None,
        "replies_flat": fmean(flat),
        "refused": (faults.total() - faults[UNREAD]) / len(replies),
        "reply_tokens": fmean(len(r.raw.token_ids) for _, r in replies),
        "reply_entropy": fmean(r.raw.mean_entropy for _, r in replies),
        "reply_distinct_2": distinct([r.said.reply for _, r in replies if r.said], 2),
    }


def reply_items(fitted: Fitted, spoken: Spoken | None, reward: RewardConfig) -> list[RlItem]:
    """What the replies to a prompt train on: their own tokens, behind the prompt with E and S; nothing where
    there are none, or where they have no weight."""
    if spoken is None or not reward.expression_weight:
        return []
    prompt, before = fitted.prompt, (*fitted.ids, *spoken.lead)
    return [
        RlItem(
            before,
            r.raw.token_ids,
            reward.expression_weight * r.advantage,
            prompt.id,
            prompt.conversation_id,
            sampled=r.raw.logprobs or None,  # not every sampler tells them
            reply=True,
        )
        for r in spoken.replies
    ]
