"""JSON of this server's own routes: `...Body` is what a client sends, `...Result` what it gets."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from selfemo.serve.api import Reading, Response

Name = Annotated[str, Field(max_length=200)]
Labels = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=40)]], Field(min_length=2, max_length=32)
]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
TokenLimit = Annotated[int, Field(ge=1)]


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

    last_only: bool = False


class RespondBody(_ConversationBody):
    """Asks for a character's answer to the last turn."""

    persona: str = ""
    speaker: Name = ""
    max_tokens: TokenLimit | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stream: bool = False


class EmotionResult(BaseModel):
    """One emotion; `failure` says why there is none."""

    emotion: str | None
    confidence: float
    distribution: dict[str, float] | None
    failure: str | None = None

    @classmethod
    def of(cls, r: Reading, **more: int | str) -> Self:
        return cls.model_validate(
            {
                "emotion": r.emotion,
                "confidence": r.confidence,
                "distribution": None if r.distribution is None else dict(r.distribution),
                "failure": r.failure,
                **more,
            }
        )


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
    model: str
    speaker: str
    emotion: EmotionResult
    self_emotion: EmotionResult
    reply: str
    failure: str | None
    usage: Usage

    @classmethod
    def of(cls, model: str, r: Response) -> Self:
        return cls(
            model=model,
            speaker=r.speaker,
            emotion=EmotionResult.of(r.heard),
            self_emotion=EmotionResult.of(r.felt),
            reply=r.reply,
            failure=r.failure,
            usage=Usage.of(r),
        )


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str


class ErrorResult(BaseModel):
    error: ErrorDetail
