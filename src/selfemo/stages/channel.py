"""The channel reader: turns of real conversations by the recogniser E and by the noisy channel [ours].

A turn r that follows another speaker's is read twice by the same policy (SPEC section 9):

    E         the prompt whose history ends with r: the probability of each label after "E:"
    channel   the prompt one turn earlier, which the speaker of r answers: log p(S) and log p(r | S) of each
              label, behind the E that the policy itself finds most probable there

The gold emotion of the turn before is not used: E does not see it either, and a user's own data have none.
Nothing after r is in either prompt. A reply of self-play is read in the same way (`read_pairs`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfemo.config import PromptConfig
from selfemo.errors import ConfigError
from selfemo.method.channel import ChannelScores, log_weights, product_of_experts
from selfemo.method.prompts import Fitted, clean, fit, prompt_at
from selfemo.method.types import Conversation, EmotionDistribution, FailureKind, LabelSet, Prompt
from selfemo.models.sampler import Sampler

TurnPlace = tuple[Conversation, int]
"""A conversation and the index of one of its turns."""

Scored = tuple[EmotionDistribution, ChannelScores]
"""A turn as E and the channel read it."""


@dataclass(frozen=True)
class TurnReading:
    """One turn as E and the channel read it."""

    conversation: Conversation
    turn: int
    recognised: EmotionDistribution
    scores: ChannelScores

    @property
    def combined(self) -> EmotionDistribution:
        """See `e_x_channel`."""
        return e_x_channel(self.conversation.label_set, (self.recognised, self.scores))


def e_x_channel(labels: LabelSet, scored: Scored) -> EmotionDistribution:
    """The product of p(e | H, r) by E and p(r | H, S = e) by the channel, normalised.

    p(S) is not in it: each S counts alike before r is heard, but for what E makes of it.
    """
    recognised, scores = scored
    return product_of_experts(labels, log_weights(recognised, labels), scores.reply)


def readable_turns(
    conversations: Sequence[Conversation], *, gold: bool
) -> tuple[list[TurnPlace], Counter[str]]:
    """The turns that the channel can read: those after a turn of another speaker.

    Args:
        gold: whether to take the turns that have a gold emotion, or those that have none.

    Returns:
        the turns in order, and counts of those left out: `first_turn`, `same_speaker`.
    """
    found, left_out = list[TurnPlace](), Counter[str]()
    for c in conversations:
        for k, turn in enumerate(c.turns):
            if (turn.emotion is not None) != gold:
                continue
            if k == 0:
                left_out["first_turn"] += 1
            elif c.turns[k - 1].speaker == turn.speaker:
                left_out["same_speaker"] += 1
            else:
                found.append((c, k))
    return found, left_out


def read_turns(
    sampler: Sampler,
    turns: Sequence[TurnPlace],
    prompt: PromptConfig,
    on_done: Callable[[int], None] = lambda n: None,
) -> tuple[list[TurnReading], Counter[str]]:
    """Read turns that follow another speaker's; a turn whose prompts do not fit is counted as `too_long`.

    Args:
        on_done: called with a number of turns after each part; may raise to stop.

    Raises:
        ConfigError: the policy reasons first, so that labels do not stand right behind the prompt.
        UnsupportedError: the sampler cannot tell these probabilities.
    """
    readings, left_out = list[TurnReading](), Counter[str]()
    for start in range(0, len(turns), sampler.chunk):
        part = turns[start : start + sampler.chunk]
        # Who speaks turn k is known once r is there to be read.
        pairs = [(prompt_at(c, k - 1, gold=True), prompt_at(c, k)) for c, k in part]
        read = [(at, r) for at, r in zip(part, read_pairs(sampler, pairs, prompt), strict=True) if r]
        left_out.update({FailureKind.TOO_LONG.value: len(part) - len(read)})
        for labels in dict.fromkeys(c.label_set for (c, _), _ in read):
            readings += [TurnReading(c, k, *r) for (c, k), r in read if c.label_set == labels]
        on_done(len(part))
    return readings, +left_out


def read_pairs(
    sampler: Sampler, pairs: Sequence[tuple[Prompt, Prompt]], prompt: PromptConfig
) -> list[Scored | None]:
    """Read the last turns of some histories, all in two calls of the model for each label set.

    Args:
        pairs: (the prompt that the speaker of r answers, the prompt whose history goes on with r).

    Returns:
        what each r is read as; None where one of its prompts does not fit `prompt.max_tokens`.

    Raises: as `read_turns`.
    """
    if prompt.reasoning != "none":
        raise ConfigError(
            f"prompt.reasoning = {prompt.reasoning!r}: the channel reader reads the labels right behind the "
            'prompt, and this model reasons first; it needs "none"'
        )
    fitted = dict[int, tuple[Fitted, Fitted]]()
    for k, pair in enumerate(pairs):
        before, heard = (fit(p, sampler.encode, prompt.max_tokens) for p in pair)
        if before is not None and heard is not None:
            fitted[k] = before, heard
    found: list[Scored | None] = [None] * len(pairs)
    for labels in dict.fromkeys(before.prompt.label_set for before, _ in fitted.values()):
        mine = {k: f for k, f in fitted.items() if f[0].prompt.label_set == labels}
        for k, scored in zip(mine, _read(sampler, list(mine.values()), labels), strict=True):
            found[k] = scored
    return found


def _read(sampler: Sampler, fitted: Sequence[tuple[Fitted, Fitted]], labels: LabelSet) -> list[Scored]:
    places = [(f.prompt.conversation_id, f.ids, "E:") for pair in fitted for f in pair]
    read = sampler.label_probabilities(places, labels)
    scores = sampler.channel_scores(
        [
            (
                before.prompt.conversation_id,
                before.ids,
                f"E: {of_before.top(labels)}\nS:",
                clean(heard.prompt.history[-1].text),
            )
            for (before, heard), of_before in zip(fitted, read[::2], strict=True)
        ],
        labels,
    )
    return list(zip(read[1::2], scores, strict=True))
