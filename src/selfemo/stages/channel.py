"""The channel reader: turns of real conversations by the recogniser E and by the noisy channel [ours].

A turn r that follows another speaker's is read twice by the same policy (SPEC section 9):

    E         the prompt whose history ends with r: the probability of each label after "E:"
    channel   the prompt one turn earlier, which the speaker of r answers: log p(S) and log p(r | S) of each
              label, behind the E that the policy itself finds most probable there

The gold emotion of the turn before is not used: E does not see it either, and a user's own data have none.
Nothing after r is in either prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfemo.config import PromptConfig
from selfemo.errors import ConfigError
from selfemo.method.channel import ChannelScores, log_weights, product_of_experts
from selfemo.method.prompts import Fitted, clean, fit, prompt_at
from selfemo.method.types import Conversation, EmotionDistribution, FailureKind, LabelSet
from selfemo.models.sampler import Sampler

_CHUNK = 64
"""Turns of one call of the model."""
TurnPlace = tuple[Conversation, int]
"""A conversation and the index of one of its turns."""


@dataclass(frozen=True)
class TurnReading:
    """One turn as E and the channel read it."""

    conversation: Conversation
    turn: int
    recognised: EmotionDistribution
    scores: ChannelScores

    @property
    def combined(self) -> EmotionDistribution:
        """E x channel: the product of p(e | H, r) by E and p(r | H, S = e) by the channel, normalised."""
        labels = self.conversation.label_set
        return product_of_experts(labels, log_weights(self.recognised, labels), self.scores.reply)


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
    if prompt.reasoning != "none":
        raise ConfigError(
            f"prompt.reasoning = {prompt.reasoning!r}: the channel reader reads the labels right behind the "
            'prompt, and this model reasons first; it needs "none"'
        )
    readings, left_out = list[TurnReading](), Counter[str]()
    for start in range(0, len(turns), _CHUNK):
        part, fitted = turns[start : start + _CHUNK], list[tuple[TurnPlace, Fitted, Fitted]]()
        for c, k in part:
            heard = fit(prompt_at(c, k), sampler.encode, prompt.max_tokens)
            # Who speaks turn k is known once r is there to be read.
            before = fit(prompt_at(c, k - 1, gold=True), sampler.encode, prompt.max_tokens)
            if heard is None or before is None:
                left_out[FailureKind.TOO_LONG.value] += 1
            else:
                fitted.append(((c, k), heard, before))
        for labels in dict.fromkeys(c.label_set for (c, _), _, _ in fitted):
            mine = [f for f in fitted if f[0][0].label_set == labels]
            readings += _read(sampler, mine, labels)
        on_done(len(part))
    return readings, left_out


def _read(
    sampler: Sampler, fitted: Sequence[tuple[TurnPlace, Fitted, Fitted]], labels: LabelSet
) -> list[TurnReading]:
    places = [(c.id, f.ids, "E:") for (c, _), heard, before in fitted for f in (before, heard)]
    read = sampler.label_probabilities(places, labels)
    scores = sampler.channel_scores(
        [
            (c.id, before.ids, f"E: {of_before.top(labels)}\nS:", clean(c.turns[k].text))
            for ((c, k), _, before), of_before in zip(fitted, read[::2], strict=True)
        ],
        labels,
    )
    return [
        TurnReading(c, k, recognised, s)
        for ((c, k), _, _), recognised, s in zip(fitted, read[1::2], scores, strict=True)
    ]
