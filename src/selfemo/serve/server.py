"""`selfemo serve`: emotions and answers over HTTP, in this project's form and in OpenAI's.

    POST /v1/emotions           the emotion of each turn
    POST /v1/respond            what a character hears, feels and says; "stream": true for events
    POST /v1/chat/completions   the same for OpenAI clients; emotions in the extra field `selfemo`
    GET  /v1/models, /healthz, /metrics, /docs, /openapi.json

Each error is {"error": {"message", "type", "code"}}, the form that OpenAI clients read.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfemo import __version__
from selfemo.errors import ConfigError, DataError, EndpointError, SelfEmoError
from selfemo.serve.api import (
    TOO_LONG,
    UNANSWERED,
    Ask,
    Done,
    Emotion,
    Event,
    Reading,
    Recognition,
    ReplyDelta,
    Response,
    SelfEmo,
    SelfEmotion,
    conversation_of,
    label_set_of,
)
from selfemo.serve.batching import Batcher, BusyError, Job
from selfemo.serve.binding import check_binding, is_loopback

_BEARER = HTTPBearer(auto_error=False)
logger = logging.getLogger("selfemo.serve.server")

_LABELS = 32
_END_TOKENS = 8
"""The format ends a reply when so few tokens are left, at a place where it can."""


@dataclass(frozen=True)
class Limits:
    """What one server takes.

    Attributes:
        max_body: bytes of a request.
        timeout: seconds for one answer, waiting included.
        max_batch, max_waiting: see `Batcher`.
        max_tokens: most tokens that a client may ask for.
        max_turns: most turns of a conversation.
    """

    max_body: int = 262_144
    timeout: float = 60.0
    max_batch: int = 16
    max_waiting: int = 64
    max_tokens: int = 512
    max_turns: int = 500


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Turn(_Body):
    speaker: Annotated[str, Field(min_length=1, max_length=200)]
    text: Annotated[str, Field(min_length=1)]


Turns = Annotated[list[Turn], Field(min_length=1)]
Labels = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=40)]],
    Field(min_length=2, max_length=_LABELS),
]
Unit = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Heat = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Tokens = Annotated[int, Field(ge=1)]


class EmotionsRequest(_Body):
    """Which emotions are in a conversation."""

    turns: Turns
    scene: str = ""
    labels: Labels | None = None
    last_only: bool = False


class RespondRequest(_Body):
    """What a character answers to the last turn."""

    turns: Turns
    persona: str = ""
    speaker: Annotated[str, Field(max_length=200)] = ""
    scene: str = ""
    labels: Labels | None = None
    max_tokens: Tokens | None = None
    temperature: Heat | None = None
    top_p: Unit | None = None
    seed: Seed | None = None
    stream: bool = False


class Part(BaseModel):
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: Annotated[str, Field(max_length=200)] | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """OpenAI's form; what is not named here is ignored. System messages are the persona."""

    model: str = ""
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Heat | None = None
    top_p: Unit | None = None
    seed: Seed | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ReadingBody(BaseModel):
    emotion: str | None
    confidence: float
    distribution: dict[str, float] | None
    failure: str | None = None


class TurnBody(ReadingBody):
    turn: int
    speaker: str


class EmotionsBody(BaseModel):
    model: str
    labels: list[str]
    emotions: list[TurnBody]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class RespondBody(BaseModel):
    model: str
    speaker: str
    emotion: ReadingBody
    self_emotion: ReadingBody
    reply: str
    failure: str | None
    usage: Usage


class ChatChoice(BaseModel):
    index: int
    message: dict[str, Any]
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatBody(BaseModel):
    """OpenAI's chat completion; `selfemo` holds emotion and self_emotion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    selfemo: dict[str, ReadingBody]


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str


class ErrorBody(BaseModel):
    error: ErrorDetail


class Problem(HTTPException):
    """An error with its machine-readable code."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(status, message, headers)
        self.code = code


_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": _EVENT}}}
}
_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


def _error(status: int, code: str, message: str, headers: Any = None) -> JSONResponse:
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    # What the client sent may stand in a message; a half of a surrogate pair could not be sent back.
    plain = message.encode("utf-8", errors="replace").decode()
    return JSONResponse(
        {"error": {"message": plain, "type": kind, "code": code}}, status, headers=headers
    )


class _Bodies:
    """Reads a request's body whole before the application sees it, up to a limit of bytes and time."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, body, more = self.limits.max_body, bytearray(), True
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > limit:
                await self._refuse(scope, receive, send)
                return
        try:
            async with asyncio.timeout(self.limits.timeout):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limit:
                        await self._refuse(scope, receive, send)
                        return
        except TimeoutError:
            late = _error(408, "slow_request", "the request did not arrive in time")
            await late(scope, receive, send)
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = f"the request is larger than {self.limits.max_body} bytes"
        await _error(413, "too_large", text, {"Connection": "close"})(scope, receive, send)


class _Metrics:
    """The figures of /metrics; a registry of its own for each application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("selfemo_requests", "Requests answered", ["path", "status"], **own)
        self.seconds = Histogram(
            "selfemo_request_seconds", "Time to the answer's beginning", ["path"], **own
        )
        self.batch = Histogram(
            "selfemo_batch_size", "Questions of a batch", buckets=(1, 2, 4, 8, 16, 32, 64), **own
        )
        self.tokens = Counter("selfemo_tokens", "Tokens", ["kind"], **own)
        self.waiting = Gauge("selfemo_waiting", "Questions that wait", **own)


def _reading(r: Reading) -> ReadingBody:
    weights = None if r.distribution is None else dict(r.distribution)
    return ReadingBody(
        emotion=r.emotion, confidence=r.confidence, distribution=weights, failure=r.failure
    )


def _usage(r: Response) -> Usage:
    prompt, written = r.tokens
    return Usage(prompt_tokens=prompt, completion_tokens=written, total_tokens=prompt + written)


def _event(name: str, data: Any) -> str:
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


class Service:
    """The model with its queue: what the routes call.

    Args:
        model: what answers.
        limits: what is taken.
        name: how answers call the model.
    """

    def __init__(self, model: SelfEmo, limits: Limits, name: str):
        self.model, self.limits, self.name = model, limits, name
        self.metrics = _Metrics()
        self.batcher = Batcher(
            model,
            max_batch=limits.max_batch,
            max_waiting=limits.max_waiting,
            on_batch=self.metrics.batch.observe,
        )
        self.metrics.waiting.set_function(lambda: self.batcher.waiting)

    async def check(self, work: Any, *args: Any) -> Any:
        """Run what reads a question, in a thread: a new label set's grammar takes a while.

        Raises:
            Problem: the question is none.
        """
        try:
            return await asyncio.to_thread(work, *args)
        except (DataError, ConfigError) as e:
            raise Problem(400, "bad_question", str(e)) from None

    def submit(self, question: Any, on_event: Any = None) -> Job:
        try:
            return self.batcher.submit(question, on_event)
        except BusyError:
            raise Problem(
                429, "busy", "too many questions wait; ask again later", {"Retry-After": "1"}
            ) from None

    async def wait(self, job: Job) -> Any:
        """The answer of a job.

        Raises:
            Problem: it took too long, the endpoint failed, or the server goes down.
        """
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await job.future
        except TimeoutError:
            raise Problem(504, "timeout", f"no answer within {self.limits.timeout:g} s") from None
        except EndpointError as e:
            raise Problem(502, "endpoint", str(e)) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Problem(503, "going_down", "the server is going down") from None
        finally:
            job.cancel()

    async def emotions(self, body: EmotionsRequest) -> EmotionsBody:
        def question() -> tuple[Any, range]:
            labels = self.model.check_labels(body.labels and label_set_of(body.labels))
            c = conversation_of([t.model_dump() for t in body.turns], labels, body.scene)
            return c, range(len(c.turns) - 1 if body.last_only else 0, len(c.turns))

        self.check_turns(len(body.turns))
        c, turns = await self.check(question)
        found: list[Recognition] = await self.wait(self.submit((c, turns)))
        emotions = [
            TurnBody(**_reading(r).model_dump(), turn=r.turn, speaker=r.speaker) for r in found
        ]
        return EmotionsBody(model=self.name, labels=list(c.label_set), emotions=emotions)

    def check_turns(self, n: int) -> None:
        if n > self.limits.max_turns:
            raise Problem(
                413, "too_large", f"a conversation has at most {self.limits.max_turns} turns here"
            )

    async def ask_of(self, body: RespondRequest) -> Ask:
        self.check_turns(len(body.turns))
        most = min(body.max_tokens or self.model.max_tokens, self.limits.max_tokens)
        ask = Ask(
            [t.model_dump() for t in body.turns],
            body.persona,
            body.speaker,
            body.scene,
            body.labels,
            most,
            body.temperature,
            body.top_p,
            body.seed,
        )
        await self.check(self.model.prepare, ask)
        return ask

    async def ask_of_chat(self, body: ChatRequest) -> Ask:
        """System messages are the persona, users and assistant speak."""
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
            raise Problem(400, "bad_question", "the last message must be one of the user")
        self.check_turns(len(turns))
        # A client's limit is on the reply; the two emotions before it have room of their own.
        asked = body.max_completion_tokens or body.max_tokens
        most = min(asked or self.model.max_tokens, self.limits.max_tokens)
        if asked:
            most += await self.check(self.model.least_tokens)
        ask = Ask(
            turns,
            "\n".join(persona),
            speaker,
            max_tokens=most,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
        )
        await self.check(self.model.prepare, ask)
        return ask

    async def respond(self, ask: Ask) -> Response:
        response: Response = await self.wait(self.submit(ask))
        return self.checked(response)

    def checked(self, response: Response) -> Response:
        """Raises: Problem, where there is no answer at all."""
        if response.failure == TOO_LONG:
            raise Problem(
                400, "context_length_exceeded", "persona and last turn are too long for the model"
            )
        if response.failure == UNANSWERED:
            raise Problem(502, "endpoint", "the model's endpoint did not answer")
        prompt, written = response.tokens
        self.metrics.tokens.labels("prompt").inc(prompt)
        self.metrics.tokens.labels("written").inc(written)
        return response

    async def events(self, ask: Ask) -> AsyncIterator[Event]:
        """What is written, as it is written; leaving the iterator ends the answer.

        Raises: Problem, see `wait`.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        job = self.submit(ask, queue.put_nowait)
        job.future.add_done_callback(lambda _: queue.put_nowait(None))
        # Not asyncio.timeout: the parts of a stream are asked for by more than one task.
        end = time.monotonic() + self.limits.timeout
        try:
            while True:
                event = await asyncio.wait_for(queue.get(), max(0, end - time.monotonic()))
                if event is None:
                    break
                if isinstance(event, Done):
                    self.checked(event.response)
                yield event
        except TimeoutError:
            raise Problem(504, "timeout", f"no answer within {self.limits.timeout:g} s") from None
        finally:
            job.cancel()
        await self.wait(job)  # raises what ended it, if an answer did not

    def respond_body(self, r: Response) -> RespondBody:
        return RespondBody(
            model=self.name,
            speaker=r.speaker,
            emotion=_reading(r.heard),
            self_emotion=_reading(r.felt),
            reply=r.reply,
            failure=r.failure,
            usage=_usage(r),
        )


async def _begun(events: AsyncIterator[Event]) -> tuple[Event, AsyncIterator[Event]]:
    """The first event, and the rest: what fails before it can still be told by the status."""
    try:
        return await anext(events), events
    except StopAsyncIteration:
        raise Problem(503, "going_down", "the server is going down") from None


async def _respond_stream(
    service: Service, first: Event, rest: AsyncIterator[Event]
) -> AsyncIterator[str]:
    async for event in _chain(first, rest):
        if isinstance(event, Problem):
            yield _event("error", {"message": str(event.detail), "code": event.code})
        elif isinstance(event, Emotion | SelfEmotion):
            yield _event(event.kind, _reading(event.reading).model_dump())
        elif isinstance(event, ReplyDelta):
            yield _event("reply", {"text": event.text})
        else:
            yield _event("done", service.respond_body(event.response).model_dump())


async def _chain(first: Event, rest: AsyncIterator[Event]) -> AsyncIterator[Event | Problem]:
    """All events; a problem in the middle is the last one."""
    yield first
    try:
        async for event in rest:
            yield event
    except Problem as e:
        yield e


def _emotions_of(r: Response) -> dict[str, Any]:
    return {
        "emotion": _reading(r.heard).model_dump(),
        "self_emotion": _reading(r.felt).model_dump(),
    }


def _finish(ask: Ask, r: Response) -> str:
    return "length" if r.tokens[1] > ask.max_tokens - _END_TOKENS else "stop"


def _chat_head(service: Service, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": service.name,
    }


def _chat_body(service: Service, ask: Ask, r: Response) -> dict[str, Any]:
    if r.failure is not None:
        raise Problem(502, "unreadable", f"the model's answer could not be read ({r.failure})")
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": r.reply, "refusal": None},
        "logprobs": None,
        "finish_reason": _finish(ask, r),
    }
    return {
        **_chat_head(service, "chat.completion"),
        "choices": [choice],
        "usage": _usage(r).model_dump(),
        "selfemo": _emotions_of(r),
    }


async def _chat_stream(
    service: Service, body: ChatRequest, ask: Ask, first: Event, rest: AsyncIterator[Event]
) -> AsyncIterator[str]:
    head = _chat_head(service, "chat.completion.chunk")

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event("", {**head, "choices": [choice], **more})

    yield chunk({"role": "assistant", "content": ""})
    async for event in _chain(first, rest):
        if isinstance(event, Problem):
            yield _event("", {"error": {"message": str(event.detail), "code": event.code}})
            return
        if isinstance(event, Emotion | SelfEmotion):
            yield chunk({}, selfemo={event.kind: _reading(event.reading).model_dump()})
        elif isinstance(event, ReplyDelta):
            yield chunk({"content": event.text})
        else:
            r = event.response
            if r.failure is not None:
                message = f"the model's answer could not be read ({r.failure})"
                yield _event("", {"error": {"message": message, "code": "unreadable"}})
                return
            yield chunk({}, _finish(ask, r), selfemo=_emotions_of(r))
            if body.stream_options and body.stream_options.include_usage:
                yield _event("", {**head, "choices": [], "usage": _usage(r).model_dump()})
    yield _event("", "[DONE]")


def create_app(
    model: SelfEmo,
    *,
    limits: Limits | None = None,
    token: str = "",
    name: str = "",
    local_only: bool = False,
) -> FastAPI:
    """The application.

    Args:
        model: what answers.
        token: what clients must send as a bearer token; "" asks for none.
        name: how answers call the model.
        local_only: refuse requests that name another host than this machine (a web page that had its
            own name resolve to this machine would).
    """
    limits = limits or Limits()
    service = Service(model, limits, name or model.name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.batcher.close()

    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody} for status in (400, 401, 408, 413, 422, 429, 502, 503, 504)
    }
    app = FastAPI(
        title="SELF-EMO",
        version=__version__,
        description="Emotions of a conversation, and answers in character.",
        lifespan=lifespan,
        responses=errors,
    )
    app.state.service = service

    async def allowed(request: Request, _: Annotated[Any, Depends(_BEARER)]) -> None:
        given = request.headers.get("authorization", "").encode("utf-8", errors="replace")
        if token and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise Problem(
                401, "no_token", "send the server's token: Authorization: Bearer ...",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    guarded = [Depends(allowed)]

    @app.post("/v1/emotions", response_model=EmotionsBody, dependencies=guarded)
    async def emotions(body: EmotionsRequest) -> EmotionsBody:
        """The emotion of each turn, with the probability of every label."""
        return await service.emotions(body)

    @app.post("/v1/respond", response_model=RespondBody, responses=_STREAMED, dependencies=guarded)
    async def respond(body: RespondRequest) -> Any:
        """What a character hears in the last turn, feels, and answers.

        With "stream": true, server-sent events: emotion, self_emotion, reply (its parts), done, error.
        """
        ask = await service.ask_of(body)
        if not body.stream:
            return service.respond_body(await service.respond(ask))
        first, rest = await _begun(service.events(ask))
        return _sse(_respond_stream(service, first, rest))

    @app.post(
        "/v1/chat/completions",
        response_model=ChatBody,
        responses=_STREAMED,
        dependencies=guarded,
    )
    async def chat_completions(body: ChatRequest) -> Any:
        """OpenAI's chat completions; the emotions are in the extra field `selfemo`."""
        ask = await service.ask_of_chat(body)
        if not body.stream:
            return _chat_body(service, ask, await service.respond(ask))
        first, rest = await _begun(service.events(ask))
        return _sse(_chat_stream(service, body, ask, first, rest))

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        """The one model that answers."""
        one = {"id": service.name, "object": "model", "created": 0, "owned_by": "selfemo"}
        return {"object": "list", "data": [one]}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=guarded)
    async def metrics() -> PlainTextResponse:
        """Prometheus metrics."""
        text = generate_latest(service.metrics.registry).decode()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, e: HTTPException) -> JSONResponse:
        code = e.code if isinstance(e, Problem) else "http"
        return _error(e.status_code, code, str(e.detail), e.headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, e: RequestValidationError) -> JSONResponse:
        # The input itself is left out: it may be of any size, and no JSON.
        wrong = [f"{'.'.join(map(str, i['loc'][1:]))[:100]}: {i['msg']}" for i in e.errors()[:5]]
        return _error(422, "invalid", "; ".join(wrong))

    @app.exception_handler(SelfEmoError)
    async def on_ours(request: Request, e: SelfEmoError) -> JSONResponse:
        logger.error("%s: %s", request.url.path, e)
        return _error(500, "model", str(e))

    @app.exception_handler(Exception)
    async def on_bug(request: Request, e: Exception) -> JSONResponse:
        logger.error("%s", request.url.path, exc_info=e)
        return _error(500, "internal", "the server failed; its log says how")

    known = {getattr(r, "path", "") for r in app.routes}

    @app.middleware("http")
    async def measured(request: Request, call_next: Any) -> Any:
        start = time.perf_counter()
        response = await call_next(request)
        path = request.url.path if request.url.path in known else "other"
        service.metrics.requests.labels(path, str(response.status_code)).inc()
        service.metrics.seconds.labels(path).observe(time.perf_counter() - start)
        return response

    app.add_middleware(_Bodies, limits=limits)
    if local_only:
        hosts = ["localhost", "127.0.0.1", "[::1]", "::1"]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    return app


def _sse(text: AsyncIterator[str]) -> StreamingResponse:
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(text, media_type="text/event-stream", headers=headers)


def serve(
    model: SelfEmo,
    *,
    host: str,
    port: int,
    limits: Limits,
    token: str = "",
    insecure: bool = False,
    name: str = "",
    grace: float = 30.0,
) -> None:
    """Serve until SIGINT or SIGTERM; answers under way get `grace` seconds to end.

    Raises:
        ConfigError: see `check_binding`.
    """
    import uvicorn

    check_binding(host, token, insecure)
    app = create_app(
        model,
        limits=limits,
        token=token,
        name=name,
        local_only=is_loopback(host) and not token and not insecure,
    )
    config = uvicorn.Config(
        app, host, port, log_level="info", access_log=False, timeout_graceful_shutdown=int(grace)
    )
    uvicorn.Server(config).run()
