"""`/v1/chat/completions` and `/v1/models` as OpenAI's clients know them; emotions in the field `selfemo`.

The request is in openai_request.py.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from selfemo.serve.answers import Emotion, Event, ReplyDelta, Response, SelfEmotion, shown_weight
from selfemo.serve.asking import Ask
from selfemo.serve.openai_request import ChatCompletionBody, check_fields, talk_of
from selfemo.serve.routes import EmotionResult, Usage, Weight
from selfemo.serve.service import Service
from selfemo.serve.transport import EVENT_STREAM, ErrorResult, Problem, event_stream, event_text

CHAT = "/v1/chat/completions"


class ChatCompletionChoice(BaseModel):
    index: int
    message: dict[str, Any]
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatCompletionResult(BaseModel):
    """OpenAI's chat completion; `selfemo` holds emotion, self_emotion and, if a reader was asked, shown,
    expressed and sound_replies (see `RespondResult`)."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionChoice]
    usage: Usage
    selfemo: dict[str, EmotionResult | Weight]


def routes(service: Service) -> APIRouter:
    """The routes for OpenAI's clients."""
    router = APIRouter()

    @router.post(CHAT, response_model=ChatCompletionResult, responses=EVENT_STREAM)
    async def chat_completions(body: ChatCompletionBody) -> Any:
        """OpenAI's chat completions; the emotions are in the extra field `selfemo`."""
        ask = await ask_of(service, body)
        if body.stream:
            return event_stream(_chunks(service, body, await service.stream(ask)))
        return _completion(service, await service.respond(ask))

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that answers."""
        return {"object": "list", "data": [_model(service.name)]}

    @router.get("/v1/models/{model:path}", responses={404: {"model": ErrorResult}})
    async def one_model(model: str) -> dict[str, Any]:
        """The model of this name, if it is the one that answers."""
        if not model:
            return await models()
        if model != service.name:
            told = f"no model {model[:200]!r} here; this server answers with {service.name!r}"
            raise Problem(404, "model_not_found", told, param="model")
        return _model(model)

    return router


async def ask_of(service: Service, body: ChatCompletionBody) -> Ask:
    """The question of a request (Problem: a field or message that cannot be obeyed)."""
    check_fields(body)
    talk = talk_of(body.messages)
    service.check_turns(len(talk.turns))
    asked = body.max_completion_tokens or body.max_tokens
    most = service.token_limit(asked)
    # The smallest nucleus is the likeliest token.
    temperature, top_p = (0.0, None) if body.top_p == 0 else (body.temperature, body.top_p)
    if service.model.spec is not None and top_p not in (None, 1):
        told = "top_p is not supported: the endpoint behind this server is given the temperature alone"
        raise Problem(400, "unsupported", told, param="top_p")
    ask = Ask(
        talk.turns, talk.persona, talk.speaker, max_tokens=most, temperature=temperature, top_p=top_p,
        seed=body.seed, stop=tuple(body.stop or ()), best_of=body.best_of,
    )  # fmt: skip
    if asked:
        # A client's limit is on the reply; the two emotions before it get more room.
        room = await service.check(service.model.least_tokens)
        ask = replace(ask, max_tokens=most + room, reply_tokens=most)
    await service.check(service.model.prepare, ask)
    return ask


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "selfemo"}


def _emotions(r: Response) -> dict[str, Any]:
    found = {"emotion": r.heard, "self_emotion": r.felt} | ({"shown": r.shown} if r.shown else {})
    emotions: dict[str, Any] = {k: EmotionResult.model_validate(e).model_dump() for k, e in found.items()}
    if r.expressed is not None:
        emotions["expressed"] = shown_weight(r.expressed)
    return emotions if r.sound_replies is None else {**emotions, "sound_replies": r.sound_replies}


def _finish_reason(r: Response) -> str:
    return "length" if r.cut else "stop"


def _head(service: Service, kind: str) -> dict[str, Any]:
    number, now = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    return {"id": number, "object": kind, "created": now, "model": service.name}


def _unreadable(r: Response) -> Problem:
    return Problem(502, "unreadable", f"the model's answer could not be read ({r.failure})")


def _completion(service: Service, r: Response) -> dict[str, Any]:
    if r.failure is not None:
        raise _unreadable(r)
    message = {"role": "assistant", "content": r.reply, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(r)}
    head, usage = _head(service, "chat.completion"), Usage.of(r).model_dump()
    return {**head, "choices": [choice], "usage": usage, "selfemo": _emotions(r)}


async def _chunks(
    service: Service, body: ChatCompletionBody, events: AsyncIterator[Event | Problem]
) -> AsyncIterator[str]:
    """OpenAI's chunks as server-sent events; an error ends them without [DONE]."""
    head = _head(service, "chat.completion.chunk")
    usage_last = bool(body.stream_options and body.stream_options.include_usage)
    # With the usage at the end, OpenAI's other chunks have the field too.
    no_usage: dict[str, Any] = {"usage": None} if usage_last else {}

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return event_text("", {**head, "choices": [choice], **no_usage, **more})

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
            yield chunk({}, _finish_reason(r), selfemo=_emotions(r))
            if usage_last:
                yield event_text("", {**head, "choices": [], "usage": Usage.of(r).model_dump()})
    yield event_text("", "[DONE]")
