"""This project's own routes: a client sends a `...Body` and gets a `...Result`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Self

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from selfemo.method.types import Conversation
from selfemo.serve.answers import Emotion, Event, Recognition, ReplyDelta, Response, SelfEmotion, shown_weight
from selfemo.serve.asking import MOST_REPLIES, Ask, conversation_of, label_set_of
from selfemo.serve.service import Service
from selfemo.serve.transport import EVENT_STREAM, Problem, event_stream, event_text

Name = Annotated[str, Field(max_length=200)]
Labels = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=40)]], Field(min_length=2, max_length=32)
]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
TokenLimit = Annotated[int, Field(ge=1)]
BestOf = Annotated[int, Field(ge=1, le=MOST_REPLIES)]
_TALK: list[JsonValue] = [
    {"speaker": "Ann", "text": "Did you hear that noise?"},
    {"speaker": "Bo", "text": "It was only the cat."},
]


class _StrictBody(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TurnBody(_StrictBody):
    speaker: Annotated[str, Field(min_length=1, max_length=200)]
    text: Annotated[str, Field(min_length=1)]


class _ConversationBody(_StrictBody):
    turns: Annotated[list[TurnBody], Field(min_length=1)]
    scene: str = ""
    labels: Labels | None = None


class EmotionsBody(_ConversationBody):
    """Asks for the emotions of a conversation."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"turns": _TALK}]})
    last_only: bool = False


class RespondBody(_ConversationBody):
    """Asks for a character's answer to the last turn."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"turns": _TALK, "speaker": "Ann", "persona": "Easily frightened."}]}
    )
    persona: str = ""
    speaker: Name = ""
    max_tokens: TokenLimit | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    best_of: BestOf | None = None
    stream: bool = False


Weight = Annotated[float, AfterValidator(shown_weight)]


class EmotionResult(BaseModel):
    """One emotion; `failure` says why there is none."""

    model_config = ConfigDict(from_attributes=True)
    emotion: str | None
    confidence: Weight
    distribution: dict[str, Weight] | None
    failure: str | None = None


class TurnEmotionResult(EmotionResult):
    turn: int
    speaker: str


class EmotionsResult(BaseModel):
    model: str
    labels: list[str]
    emotions: list[TurnEmotionResult]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, r: Response) -> Self:
        prompt, written = r.tokens
        return cls(prompt_tokens=prompt, completion_tokens=written, total_tokens=prompt + written)


class RespondResult(BaseModel):
    """A character's answer; `shown` is what a reader finds in the reply, null where none was asked.

    `expressed` is the reader's probability of what `self_emotion` declares; `sound_replies` how many of the
    replies drawn break no rule (0: all break one, this one too).
    """

    model: str
    speaker: str
    emotion: EmotionResult
    self_emotion: EmotionResult
    reply: str
    shown: EmotionResult | None
    expressed: Weight | None
    sound_replies: int | None
    failure: str | None
    usage: Usage

    @classmethod
    def of(cls, model: str, r: Response) -> Self:
        heard, felt = EmotionResult.model_validate(r.heard), EmotionResult.model_validate(r.felt)
        shown = None if r.shown is None else EmotionResult.model_validate(r.shown)
        return cls(
            model=model, speaker=r.speaker, emotion=heard, self_emotion=felt, reply=r.reply, shown=shown,
            expressed=r.expressed, sound_replies=r.sound_replies, failure=r.failure, usage=Usage.of(r),
        )  # fmt: skip


def routes(service: Service) -> APIRouter:
    """This project's own routes."""
    router = APIRouter()
    model = service.model

    @router.post("/v1/emotions", response_model=EmotionsResult)
    async def emotions(body: EmotionsBody) -> EmotionsResult:
        """The emotion of each turn, with the probability of every label."""

        def question() -> tuple[Conversation, range]:
            labels = model.check_labels(body.labels and label_set_of(body.labels))
            c = conversation_of([t.model_dump() for t in body.turns], labels, body.scene)
            return c, range(len(c.turns) - 1 if body.last_only else 0, len(c.turns))

        service.check_turns(len(body.turns))
        c, turns = await service.check(question)
        found: list[Recognition] = await service.wait(service.submit((c, turns)))
        read = [TurnEmotionResult.model_validate(r) for r in found]
        return EmotionsResult(model=service.name, labels=list(c.label_set), emotions=read)

    @router.post("/v1/respond", response_model=RespondResult, responses=EVENT_STREAM)
    async def respond(body: RespondBody) -> Any:
        """A character's answer: the emotion it hears in the last turn, its own emotion, and its reply.

        With "stream": true, server-sent events: emotion, self_emotion, reply (its parts), done, error.
        With "best_of": n, the most expressive of n replies, which is one part.
        """
        service.check_turns(len(body.turns))
        given = body.model_dump(exclude={"turns", "max_tokens", "stream"})
        turns, most = [t.model_dump() for t in body.turns], service.token_limit(body.max_tokens)
        ask = Ask(turns, max_tokens=most, **given)
        await service.check(model.prepare, ask)
        if body.stream:
            return event_stream(_respond_events(service.name, await service.stream(ask)))
        return RespondResult.of(service.name, await service.respond(ask))

    return router


async def _respond_events(name: str, events: AsyncIterator[Event | Problem]) -> AsyncIterator[str]:
    async for event in events:
        if isinstance(event, Problem):
            yield event_text("error", event.content())
        elif isinstance(event, Emotion | SelfEmotion):
            yield event_text(event.kind, EmotionResult.model_validate(event.reading).model_dump())
        elif isinstance(event, ReplyDelta):
            yield event_text("reply", {"text": event.text})
        else:
            yield event_text("done", RespondResult.of(name, event.response).model_dump())
