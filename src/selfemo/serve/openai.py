"""`/v1/chat/completions` and `/v1/models` as OpenAI's clients know them; emotions in the field `selfemo`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from selfemo.serve.answers import Emotion, Event, ReplyDelta, Response, SelfEmotion
from selfemo.serve.asking import Ask
from selfemo.serve.routes import EmotionResult, Name, Seed, Temperature, TokenLimit, TopP, Usage
from selfemo.serve.service import Service
from selfemo.serve.transport import EVENT_STREAM, Problem, event_stream, event_text

_END_TOKENS = 8
"""The format ends a reply, where it can, when at most so many tokens are left."""
_MESSAGES: list[JsonValue] = [
    {"role": "system", "content": "You are Bo, who laughs about what frightens him."},
    {"role": "user", "content": "Who is at the door?"},
]


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Name | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatCompletionBody(BaseModel):
    """OpenAI's request; other fields are ignored. System messages are the persona."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": _MESSAGES}]})
    model: str = ""
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ChatCompletionChoice(BaseModel):
    index: int
    message: dict[str, Any]
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatCompletionResult(BaseModel):
    """OpenAI's chat completion; `selfemo` holds emotion and self_emotion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionChoice]
    usage: Usage
    selfemo: dict[str, EmotionResult]


def routes(service: Service) -> APIRouter:
    """The routes for OpenAI's clients."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=ChatCompletionResult, responses=EVENT_STREAM)
    async def chat_completions(body: ChatCompletionBody) -> Any:
        """OpenAI's chat completions; the emotions are in the extra field `selfemo`."""
        ask = await ask_of(service, body)
        if body.stream:
            return event_stream(_chunks(service, body, ask, await service.stream(ask)))
        return _completion(service, ask, await service.respond(ask))

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that answers."""
        one = {"id": service.name, "object": "model", "created": 0, "owned_by": "selfemo"}
        return {"object": "list", "data": [one]}

    return router


async def ask_of(service: Service, body: ChatCompletionBody) -> Ask:
    """The question of a chat: system messages are the persona, the others are turns (Problem: a mistake)."""
    persona, turns, speaker = [], [], "Assistant"
    for message in body.messages:
        parts = message.content
        text = parts if isinstance(parts, str) else "\n".join(p.text for p in parts)
        if message.role in ("system", "developer"):
            persona.append(text)
        elif message.role == "user":
            turns.append((message.name or "User", text))
        else:
            speaker = message.name or "Assistant"
            turns.append((speaker, text))
    if not turns or body.messages[-1].role == "assistant":
        raise Problem(400, "bad_question", "the last message must be from the user")
    service.check_turns(len(turns))
    # A client's limit is on the reply; the two emotions before it get more room.
    asked = body.max_completion_tokens or body.max_tokens
    most = service.token_limit(asked)
    if asked:
        most += await service.check(service.model.least_tokens)
    sampling = body.model_dump(include={"temperature", "top_p", "seed"})
    ask = Ask(turns, "\n".join(persona), speaker, max_tokens=most, **sampling)
    await service.check(service.model.prepare, ask)
    return ask


def _emotions(r: Response) -> dict[str, Any]:
    return {
        "emotion": EmotionResult.model_validate(r.heard).model_dump(),
        "self_emotion": EmotionResult.model_validate(r.felt).model_dump(),
    }


def _finish_reason(ask: Ask, r: Response) -> str:
    return "length" if r.tokens[1] > ask.max_tokens - _END_TOKENS else "stop"


def _head(service: Service, kind: str) -> dict[str, Any]:
    number, now = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    return {"id": number, "object": kind, "created": now, "model": service.name}


def _unreadable(r: Response) -> Problem:
    return Problem(502, "unreadable", f"the model's answer could not be read ({r.failure})")


def _completion(service: Service, ask: Ask, r: Response) -> dict[str, Any]:
    if r.failure is not None:
        raise _unreadable(r)
    message = {"role": "assistant", "content": r.reply, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(ask, r)}
    head, usage = _head(service, "chat.completion"), Usage.of(r).model_dump()
    return {**head, "choices": [choice], "usage": usage, "selfemo": _emotions(r)}


async def _chunks(
    service: Service, body: ChatCompletionBody, ask: Ask, events: AsyncIterator[Event | Problem]
) -> AsyncIterator[str]:
    """OpenAI's chunks as server-sent events; an error ends them without [DONE]."""
    head = _head(service, "chat.completion.chunk")

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return event_text("", {**head, "choices": [choice], **more})

    yield chunk({"role": "assistant", "content": ""})
    async for event in events:
        if isinstance(event, Emotion | SelfEmotion):
            yield chunk({}, selfemo={event.kind: EmotionResult.model_validate(event.reading).model_dump()})
        elif isinstance(event, ReplyDelta):
            yield chunk({"content": event.text})
        elif isinstance(event, Problem) or event.response.failure is not None:
            problem = event if isinstance(event, Problem) else _unreadable(event.response)
            yield event_text("", problem.content())
            return
        else:
            r = event.response
            yield chunk({}, _finish_reason(ask, r), selfemo=_emotions(r))
            if body.stream_options and body.stream_options.include_usage:
                yield event_text("", {**head, "choices": [], "usage": Usage.of(r).model_dump()})
    yield event_text("", "[DONE]")
