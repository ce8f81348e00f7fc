"""Readers of replies: the emotion that a frozen model finds in what a speaker says (SPEC section 10 [ours]).

One reader judges (`selfemo analyse --reader`), another one, the listener, rewards (`reward.listener`). An
encoder that `selfemo baseline encoder --keep` kept reads turns alone; any other model reference or endpoint
reads as the recogniser of this package does, from the prompt whose history ends with the reply.

    read      q(. | H, r): the emotion of the reply
    expect    q(. | H): what is expected of the speaker before the reply. A model tells it as the S that it
              would declare itself, behind the E that it finds most probable. An encoder has no such answer: a
              turn without words is none that it has seen (MELD: NLL of the next turn's gold emotion 2.0 to
              3.2 nats by what it reads in "..." or in nothing, 1.62 by the shares of the labels). So it
              expects the shares of the labels that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from selfemo.config import ModelConfig, PromptConfig
from selfemo.errors import ConfigError, UnsupportedError
from selfemo.method.parsing import parse_emotions, split_fields
from selfemo.method.prompts import Fitted, fit, messages
from selfemo.method.types import (
    Conversation,
    EmotionDistribution,
    LabelSet,
    ParseFailure,
    Persona,
    Prompt,
    Utterance,
)
from selfemo.models.generation import open_sampler
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.references import READER_FILE
from selfemo.models.sampler import Sampler

if TYPE_CHECKING:
    from selfemo.models.classifiers.reader import TurnReader

Said = tuple[Prompt, str]
"""A prompt, and the reply that its answerer gives."""
Read = EmotionDistribution | None
"""What is read; None where a prompt is too long, or the answer of an endpoint cannot be read."""
_LINE_TOKENS = 40


class ReplyReader(Protocol):
    """Reads the emotion of replies; nothing changes it."""

    def read(self, said: Sequence[Said]) -> list[Read]:
        """q(. | H, r) of each reply."""

    def expect(self, prompts: Sequence[Prompt]) -> list[Read]:
        """q(. | H) of the answerer of each prompt, before it speaks.

        Raises:
            UnsupportedError: the reader cannot tell.
        """


def open_reply_reader(reference: str, model: ModelConfig, prompt: PromptConfig) -> ReplyReader:
    """The reader that a reference names: the folder of a kept encoder, or what `open_sampler` takes.

    Args:
        model: device, precision and threads of a local model.
        prompt: the limit of tokens of a model that reads prompts.

    Raises:
        EngineError: no such model, or an encoder that is not whole; and others, as `open_sampler`.
    """
    if (Path(reference) / READER_FILE).exists():
        from selfemo.models.classifiers.reader import TurnReader

        return EncoderReader(TurnReader.load(Path(reference), model.device))
    return SamplerReader(open_sampler(reference, model), prompt)


def _in_label_sets(
    prompts: Sequence[Prompt], of: Callable[[list[int], LabelSet], Sequence[Read]]
) -> list[Read]:
    """What `of` tells of the prompts of each label set, given their numbers; in the order of the prompts."""
    found: list[Read] = [None] * len(prompts)
    for labels in dict.fromkeys(p.label_set for p in prompts):
        mine = [k for k, p in enumerate(prompts) if p.label_set == labels]
        for k, read in zip(mine, of(mine, labels), strict=True):
            found[k] = read
    return found


@dataclass(frozen=True)
class EncoderReader:
    """A kept encoder as a reader of replies."""

    encoder: TurnReader

    def read(self, said: Sequence[Said]) -> list[Read]:
        conversations = [
            Conversation(p.id, p.dataset, "dev", (*p.history, Utterance(p.answerer, reply)), p.label_set)
            for p, reply in said
        ]
        rows = self.encoder.read_last(conversations)
        return [
            EmotionDistribution(dict(zip(p.label_set, map(float, row), strict=True)))
            for (p, _), row in zip(said, rows, strict=True)
        ]

    def expect(self, prompts: Sequence[Prompt]) -> list[Read]:
        def shares(mine: list[int], labels: LabelSet) -> list[Read]:
            return [self.encoder.expected(labels)] * len(mine)

        return _in_label_sets(prompts, shares)


@dataclass(frozen=True)
class SamplerReader:
    """A model that completes prompts as a reader of replies.

    Its prompt is that of the other speaker, who is told no persona, so that no reader depends on what a user
    says of it. An endpoint, which tells no probabilities, is asked to write E, and S.
    """

    sampler: Sampler
    prompt: PromptConfig

    def __post_init__(self) -> None:
        if self.prompt.reasoning != "none":
            raise ConfigError(
                f"prompt.reasoning = {self.prompt.reasoning!r}: labels are read right behind the prompt, and "
                'this model reasons first; it needs "none"'
            )

    def read(self, said: Sequence[Said]) -> list[Read]:
        prompts = [_after(p, reply) for p, reply in said]
        try:
            return self._probabilities(prompts, lambda mine, labels: ["E:"] * len(mine))
        except UnsupportedError:
            return self._written(prompts, "E")

    def expect(self, prompts: Sequence[Prompt]) -> list[Read]:
        def written(mine: list[Fitted], labels: LabelSet) -> list[str]:
            places = [(f.prompt.conversation_id, f.ids, "E:") for f in mine]
            return [f"E: {e.top(labels)}\nS:" for e in self.sampler.label_probabilities(places, labels)]

        try:
            return self._probabilities(prompts, written)
        except UnsupportedError:
            return self._written(prompts, "S")

    def _probabilities(
        self, prompts: Sequence[Prompt], written: Callable[[list[Fitted], LabelSet], list[str]]
    ) -> list[Read]:
        """The probability of each label behind each prompt and the text that `written` gives to it."""
        fitted = [fit(p, self.sampler.encode, self.prompt.max_tokens) for p in prompts]

        def read(mine: list[int], labels: LabelSet) -> list[Read]:
            inside = {k: f for k in mine if (f := fitted[k]) is not None}
            texts = written(list(inside.values()), labels)
            places = [
                (f.prompt.conversation_id, f.ids, text)
                for f, text in zip(inside.values(), texts, strict=True)
            ]
            told = dict(zip(inside, self.sampler.label_probabilities(places, labels), strict=True))
            return [told.get(k) for k in mine]

        return _in_label_sets(prompts, read)

    def _written(self, prompts: Sequence[Prompt], field: Literal["E", "S"]) -> list[Read]:
        """E or S as an endpoint writes it; what it does not write is None."""
        settings = SamplingSettings(_LINE_TOKENS, temperature=0.0, max_lines=1 if field == "E" else 2)
        requests = [Request((), messages=messages(p)) for p in prompts]
        found: list[Read] = []
        for prompt, (sample,) in zip(prompts, self.sampler.generate(requests, settings), strict=True):
            line = dict(split_fields(sample.text)[1]).get(field, "")
            read = parse_emotions(line, prompt.label_set)
            found.append(None if isinstance(read, ParseFailure) else read)
        return found


def _after(prompt: Prompt, reply: str) -> Prompt:
    """The prompt whose history goes on with the reply: its reader answers for the other speaker."""
    other = prompt.interlocutor
    return replace(
        prompt,
        id=f"{prompt.id}+",
        history=(*prompt.history, Utterance(prompt.answerer, reply)),
        answerer=other,
        persona=Persona(other, ""),
        target=None,
    )
