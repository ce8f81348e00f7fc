"""Replies of whole completions, each behind E and S of its own: R3 in TRL and in verl (SPEC section 10).

Neither draws several replies to one S. So the replies of the completions of a group that parse are compared,
each by its own S; some S are easier to show than others, and that difference, which the local engine does not
have, is in what they learn. What a reply learns is that of the tokens from the R line on, behind its own S
alone.

A reader is asked about the turns that the prompt shows, with neither target nor emotions: they are columns of
a row (TRL), or travel with a task (verl).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from selfemo.config import Config
from selfemo.errors import ConfigError
from selfemo.method.parsing import reply_line
from selfemo.method.types import LABEL_SETS, Completion, LabelSet, Persona, Prompt, RawCompletion, Utterance
from selfemo.training.expression import Ears, Reply, compared, hear_replies

REPLY_COLUMNS = ("history", "answerer", "persona", "scenario")
"""Columns that a reader of replies needs of a prompt, besides its id and label set: [speaker, text] of each
turn that it shows, who answers it, and what it says of them and of the scene."""
Decode = Callable[[Sequence[int]], str]
"""From token ids of a completion to its text, without an end token."""


def reply_columns(prompt: Prompt) -> dict[str, Any]:
    """`REPLY_COLUMNS` of a prompt, as JSON has them."""
    return {
        "history": [[u.speaker, u.text] for u in prompt.history],
        "answerer": prompt.answerer,
        "persona": prompt.persona.description,
        "scenario": prompt.scenario,
    }


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """What a reader of replies is asked about, from the columns prompt_id, label_set (its name), labels and
    `REPLY_COLUMNS`. Its label set is the known one of that name, where the labels are the same.

    Raises: ConfigError: its labels are none.
    """
    name, labels = row["label_set"], tuple(row["labels"])
    known = LABEL_SETS.get(name)
    try:
        label_set = known if known and known.labels == labels else LabelSet(name, labels)
    except ValueError as e:
        raise ConfigError(f"column 'labels': {e}") from e
    answerer = row["answerer"]
    return Prompt(
        id=row["prompt_id"],
        dataset=name,
        conversation_id=row["prompt_id"],
        label_set=label_set,
        history=tuple(Utterance(speaker, text) for speaker, text in row["history"]),
        answerer=answerer,
        persona=Persona(answerer, row["persona"]),
        target=None,
        scenario=row["scenario"],
    )


def tokens_of(decode: Decode, ids: Sequence[int], end: int) -> int:
    """The least number of tokens that make up the first `end` characters of a completion."""
    return bisect_left(range(len(ids)), end, key=lambda n: len(decode(ids[:n])))


def lead_of(decode: Decode, ids: Sequence[int]) -> int:
    """The number of tokens before the R line; a token that reaches into it is one of them."""
    return tokens_of(decode, ids, reply_line(decode(ids)))


class Gain(NamedTuple):
    """What the tokens of a reply carry: `advantage`, on each token behind the first `lead`."""

    lead: int
    advantage: float


@dataclass(frozen=True)
class OwnReplies:
    """The scored replies of a group's completions that parse.

    Attributes:
        numbered: by the number of the completion.
        leads: of each the tokens before its R line.
    """

    numbered: Mapping[int, Reply]
    leads: Mapping[int, int]

    @property
    def replies(self) -> tuple[Reply, ...]:
        return tuple(self.numbered.values())

    def goes_on(self, best: int) -> Reply | None:
        """The reply of the best completion of the group; None where that does not parse."""
        return self.numbered.get(best)

    def gains(self, weight: float) -> dict[int, Gain]:
        """What the tokens of each reply carry, by completion.

        Args:
            weight: reward.expression_weight.
        """
        return {i: Gain(self.leads[i], weight * r.advantage) for i, r in self.numbered.items()}


@dataclass(frozen=True)
class WholeEars(Ears):
    """`Ears` for an engine that samples whole completions."""

    decode: Decode = field(kw_only=True)

    def hear_whole(
        self,
        groups: Sequence[tuple[Prompt, Sequence[tuple[RawCompletion, Completion | None]]]],
        config: Config,
    ) -> list[OwnReplies]:
        """The replies of each group, compared among its completions that parse; all are read together.

        Args:
            groups: the prompt of each, as the policy saw it, and its completions with what they say, None
                where one does not parse.
        """
        leads = [
            {i: lead_of(self.decode, raw.token_ids) for i, (raw, said) in enumerate(completions) if said}
            for _, completions in groups
        ]
        spoken = [
            (prompt, _reply(completions[i][0], lead), completions[i][1])
            for (prompt, completions), own in zip(groups, leads, strict=True)
            for i, lead in own.items()
        ]
        found = iter(hear_replies(spoken, self.listener, config.gate, self.judge))
        return [
            OwnReplies(
                dict(zip(own, compared(list(islice(found, len(own))), config.reward.contrast), strict=True)),
                own,
            )
            for own in leads
        ]


def _reply(raw: RawCompletion, lead: int) -> RawCompletion:
    """The R line of a completion."""
    return raw.part(lead, None, raw.text[reply_line(raw.text) :], finished=raw.finished)
