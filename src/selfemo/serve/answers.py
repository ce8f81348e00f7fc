"""A model's answers, typed: emotions that it reads, responses of a character, and events of a stream."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from selfemo.method.parsing import field_spans, parse, parse_emotions, parse_recognition
from selfemo.method.types import (
    Completion,
    EmotionDistribution,
    FailureKind,
    LabelSet,
    ParseFailure,
    Prompt,
    Utterance,
)

if TYPE_CHECKING:
    from selfemo.models.generation.own_format import LimitedFormat


DIGITS = 4
"""Decimals of a probability in files and HTTP answers. With bf16 hidden states the second one already depends
on the batch, and fp32 is sure of these four on any processor: further ones would tell nothing."""


def shown_weight(weight: float) -> float:
    """A probability as files and HTTP answers have it."""
    return round(weight, DIGITS)


@dataclass(frozen=True, slots=True)
class ReadEmotion:
    """One emotion that the model read or declared.

    Attributes:
        emotion: its name; None if there is no emotion (`failure`).
        confidence: weight of `emotion` in `distribution`, or 0.
        distribution: probability of each label (see selfemo.py), or the written weights.
        written: the weights that the model wrote; None if it was not asked to write.
        failure: why there is no emotion.
    """

    emotion: str | None
    confidence: float = 0.0
    distribution: EmotionDistribution | None = None
    written: EmotionDistribution | None = None
    failure: FailureKind | None = None

    def with_probabilities(self, probabilities: EmotionDistribution) -> Self:
        """This emotion, with probabilities in place of the written weights."""
        if self.emotion is None:
            return self
        return replace(self, confidence=probabilities.weight(self.emotion), distribution=probabilities)


@dataclass(frozen=True, slots=True)
class Recognition(ReadEmotion):
    """The emotion of one utterance: `turn` is its place in the conversation, from 0."""

    turn: int = 0
    speaker: str = ""
    text: str = ""

    @classmethod
    def of(cls, r: ReadEmotion, turn: int, said: Utterance) -> Self:
        values = (r.emotion, r.confidence, r.distribution, r.written, r.failure)
        return cls(*values, turn, said.speaker, said.text)


@dataclass(frozen=True, slots=True)
class Response:
    """A character's answer: the emotion it hears, the one it feels, and its reply.

    Attributes:
        reply: "" if the answer could not be read (`failure`).
        reasoning: its thoughts before the answer, if the model was trained to write them.
        text: the answer as the model wrote it.
        failure: why there is no reply.
        tokens: (prompt, written), if known.
        stop: the text of `Ask.stop` before which the reply ends; "" if none is in it.
        cut: a token limit ended the reply.
        shown: the emotion that a reader finds in the reply; None if it was not asked, or could not read.
        expressed: the probability that it gives to the emotions declared (`felt`), weighted as they are.
        sound_replies: how many of the replies drawn behind `heard` and `felt` break no rule; 0: all break
            one, `reply` too. None if none was to be read.
    """

    speaker: str
    heard: ReadEmotion
    felt: ReadEmotion
    reply: str
    reasoning: str = ""
    text: str = ""
    failure: FailureKind | None = None
    tokens: tuple[int, int] = (0, 0)
    stop: str = ""
    cut: bool = False
    shown: ReadEmotion | None = None
    expressed: float | None = None
    sound_replies: int | None = None

    @classmethod
    def failed(cls, prompt: Prompt, failure: FailureKind, text: str = "") -> Self:
        """The response to a prompt that got no readable answer."""
        nothing = ReadEmotion(None, failure=failure)
        return cls(prompt.answerer, nothing, nothing, "", text=text, failure=failure)

    @property
    def emotion(self) -> str | None:
        return self.heard.emotion

    @property
    def self_emotion(self) -> str | None:
        return self.felt.emotion


@dataclass(frozen=True, slots=True)
class Emotion:
    """Stream event: the emotion of the last utterance is written.

    Its distribution is that of the response, but the written weights if two labels begin with the same token.
    """

    reading: ReadEmotion
    kind: Literal["emotion"] = "emotion"


@dataclass(frozen=True, slots=True)
class SelfEmotion:
    """Stream event: the character's own emotion is written."""

    reading: ReadEmotion
    kind: Literal["self_emotion"] = "self_emotion"


@dataclass(frozen=True, slots=True)
class ReplyDelta:
    """Stream event: the next part of the reply."""

    text: str
    kind: Literal["reply"] = "reply"


@dataclass(frozen=True, slots=True)
class Done:
    """Last stream event: the complete response."""

    response: Response
    kind: Literal["done"] = "done"


Event = Emotion | SelfEmotion | ReplyDelta | Done
OnEvent = Callable[[int, Event | None], bool]
"""Takes (question, event) and says whether to continue; False ends the answer with the failure "stopped".
None instead of an event only asks that."""


def written(parsed: EmotionDistribution | ParseFailure, labels: LabelSet) -> ReadEmotion:
    """The emotion of weights as the model wrote them."""
    if isinstance(parsed, ParseFailure):
        return ReadEmotion(None, failure=parsed.kind)
    emotion = parsed.top(labels)
    return ReadEmotion(emotion, parsed[emotion], parsed, parsed)


def probable(distribution: EmotionDistribution, labels: LabelSet) -> ReadEmotion:
    """The emotion of probabilities, of a model that wrote nothing."""
    return replace(written(distribution, labels), written=None)


def up_to(text: str, field: str) -> str:
    """A completion up to the content of its first field of this letter, without the space before it."""
    start = next(a for f, a, _ in field_spans(text) if f == field)
    return text[:start].rstrip(" \t")


def cut_at(reply: str, stops: Sequence[str]) -> tuple[str, str]:
    """The reply before the first of the stop sequences in it, and that one; (reply, "") without any."""
    found = [(at, stop) for stop in stops if (at := reply.find(stop)) >= 0]
    if not found:
        return reply, ""
    at, stop = min(found)
    return reply[:at], stop


def _without_open_stop(reply: str, stops: Sequence[str]) -> str:
    """A growing reply without the end that may turn out to begin a stop sequence."""
    begun = (
        n for stop in stops for n in range(min(len(stop) - 1, len(reply)), 0, -1) if reply.endswith(stop[:n])
    )
    return reply[: len(reply) - max(begun, default=0)]


def response_of(prompt: Prompt, text: str, finished: bool, writer: EventWriter) -> Response:
    """The response in a completion; its writer gets the rest of the reply."""
    labels = prompt.label_set
    if writer.stopped:
        return Response.failed(prompt, FailureKind.STOPPED, text)
    parsed = parse(text, labels, finished=finished or writer.ended)
    if isinstance(parsed, Completion):
        heard, felt = written(parsed.emotion, labels), written(parsed.self_emotion, labels)
        reply, stop = cut_at(parsed.reply, writer.stops)
        writer.finish(reply)
        return Response(prompt.answerer, heard, felt, reply, parsed.reasoning, text, stop=stop)
    # The emotion may be readable though the rest is not.
    heard = written(parse_recognition(text, labels), labels)
    return replace(Response.failed(prompt, parsed.kind, text), heard=heard)


class EventWriter:
    """Turns the growing text of the answer to question `number` into events.

    The format that constrains the answer (`limited`) may know the probabilities of labels. What may begin one
    of the stop sequences `stops` is held back.

    Attributes:
        stopped: the reader of the events wants no more.
        ended: the reply has come to a stop sequence.
    """

    def __init__(
        self,
        number: int,
        labels: LabelSet,
        on_event: OnEvent | None,
        limited: LimitedFormat | None = None,
        stops: Sequence[str] = (),
    ):
        self._number, self._labels, self._on_event, self._limited = number, labels, on_event, limited
        self._told: set[str] = set()
        self._reply = ""
        self.stops, self.stopped, self.ended = stops, False, False

    def go_on(self, text: str) -> bool:
        """Send the events of the new part of `text`; False if the answer is to end here."""
        fields = [(f, text[a:b]) for f, a, b in field_spans(text)]
        events: list[Event] = []
        for (field, content), _ in itertools.pairwise(fields):
            if field in "ES" and field not in self._told:
                self._told.add(field)
                read = written(parse_emotions(content, self._labels), self._labels)
                if self._limited and (known := self._limited.probabilities(field)):
                    read = read.with_probabilities(known)
                events.append(Emotion(read) if field == "E" else SelfEmotion(read))
        if fields and fields[-1][0] == "R":
            # An incomplete character decodes to a replacement character.
            reply = " ".join(fields[-1][1].rstrip("\ufffd").split())
            cut, stop = cut_at(reply, self.stops)
            self.ended = bool(stop)
            events += self._deltas(cut if stop else _without_open_stop(reply, self.stops))
        self._send(events)
        return not (self.stopped or self.ended)

    def finish(self, reply: str) -> None:
        """Send what was held back of the whole reply."""
        self._send(self._deltas(reply))

    def _deltas(self, reply: str) -> list[Event]:
        """The event of what is new in the reply, if anything is."""
        known = self._reply
        if len(reply) <= len(known) or not reply.startswith(known):
            return []
        self._reply = reply
        return [ReplyDelta(reply[len(known) :])]

    def _send(self, events: Sequence[Event]) -> None:
        for event in events:
            if self._on_event is not None and not self._on_event(self._number, event):
                self.stopped = True
