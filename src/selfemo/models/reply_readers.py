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
from selfemo.errors import ConfigError, EngineError
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
from selfemo.models.generation.chat import ChatRequest, UnansweredError
from selfemo.models.generation.endpoint import EndpointSampler
from selfemo.models.references import READER_FILE
from selfemo.models.sampler import Sampler

if TYPE_CHECKING:
    from selfemo.models.classifiers.reader import TurnReader

Said = tuple[Prompt, str]
"""A prompt, and the reply that its answerer gives."""
Read = EmotionDistribution | None
"""What is read; None where a prompt is too long, or the answer of an endpoint cannot be read."""
_ANSWER_TOKENS = 128
"""Of an endpoint's answer: E, S and a reply, of which the first lines count."""


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
    check_not_above(reference)
    # One vLLM a process: it takes the GPU's memory, or the CPU's threads.
    return reader_of(open_sampler(reference, model.model_copy(update={"backend": "local"})), prompt)


def check_not_above(reference: str) -> None:
    """Refuse a folder of `selfemo baseline` that has a kept encoder below it (EngineError), by its name."""
    folder = Path(reference)
    below = [p.parent for pattern in ("model", "*/model") for p in folder.glob(f"{pattern}/{READER_FILE}")]
    if below:
        raise EngineError(f"{reference}: the encoder that was kept is {below[0]}; name that folder")


def reader_of(sampler: Sampler, prompt: PromptConfig) -> ReplyReader:
    """The reader that a sampler makes."""
    return EndpointReader(sampler) if isinstance(sampler, EndpointSampler) else SamplerReader(sampler, prompt)


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
    says of it.
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
        return self._probabilities(prompts, lambda mine, labels: ["E:"] * len(mine))

    def expect(self, prompts: Sequence[Prompt]) -> list[Read]:
        def written(mine: list[Fitted], labels: LabelSet) -> list[str]:
            places = [(f.prompt.conversation_id, f.ids, "E:") for f in mine]
            return [f"E: {e.top(labels)}\nS:" for e in self.sampler.label_probabilities(places, labels)]

        return self._probabilities(prompts, written)

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


@dataclass(frozen=True)
class EndpointReader:
    """An endpoint as a reader of replies: it tells no probabilities, and is asked to write E, or S.

    Raises of its methods: EndpointError: nobody answers, or the key is wrong. A question that is refused, or
    answered by something else, is read as None.
    """

    sampler: EndpointSampler

    def read(self, said: Sequence[Said]) -> list[Read]:
        return self._written([_after(p, reply) for p, reply in said], "E")

    def expect(self, prompts: Sequence[Prompt]) -> list[Read]:
        return self._written(prompts, "S")

    def _written(self, prompts: Sequence[Prompt], field: Literal["E", "S"]) -> list[Read]:
        asked = [ChatRequest(messages(p), {}, _ANSWER_TOKENS, temperature=0.0) for p in prompts]
        found: list[Read] = []
        for prompt, answer in zip(prompts, self.sampler.answers(asked), strict=True):
            line = (
                ""
                if isinstance(answer, UnansweredError)
                else dict(split_fields(answer.text)[1]).get(field, "")
            )
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
