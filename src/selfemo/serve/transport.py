"""HTTP for the server: errors in OpenAI's form, checks before a request is read, server-sent events."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfemo.serve.binding import is_loopback

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
EVENT_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}
"""The OpenAPI entry of a route that can also answer with server-sent events."""


class Problem(HTTPException):
    """An error with a status and a machine-readable code; `param` is the field that is wrong, if one is."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
    ):
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    def content(self) -> dict[str, Any]:
        """The error in the form that OpenAI clients read."""
        other = "server_error" if self.status_code >= 500 else "invalid_request_error"
        # A message may quote the client, and half of a surrogate pair cannot be sent.
        message = self.detail.encode("utf-8", errors="replace").decode()
        detail = ErrorDetail(
            message=message, type=_KINDS.get(self.status_code, other), param=self.param, code=self.code
        )
        return ErrorResult(error=detail).model_dump()

    def response(self) -> JSONResponse:
        return JSONResponse(self.content(), self.status_code, headers=self.headers)


def event_text(name: str, data: Any) -> str:
    """One server-sent event; "" is no name; data other than text becomes JSON."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


def event_stream(texts: AsyncIterator[str]) -> StreamingResponse:
    """A response of server-sent events that proxies do not buffer."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(texts, media_type="text/event-stream", headers=headers)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorResult(BaseModel):
    """Every error of the server."""

    error: ErrorDetail


def path_of(request: Request) -> str:
    """The path of a request below the server's root path."""
    return str(request.scope["path"]).removeprefix(request.scope.get("root_path", ""))


class UnderPath:
    """Middleware for a server below `root_path` of a proxy, which may take the path off or leave it on."""

    def __init__(self, app: ASGIApp, root_path: str):
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            root, path = self.root_path, scope["path"]
            whole = path if path == root or path.startswith(f"{root}/") else root + path
            scope = {**scope, "root_path": root, "path": whole}
        await self.app(scope, receive, send)


class AllowedOrigins:
    """Middleware by which pages of other origins may read the answers; "*" stands for all.

    To any other origin the server answers as without it: nothing that a browser would let its page read.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]):
        self.app, self.origins = app, origins
        self.open = CORSMiddleware(
            app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=["Retry-After"], allow_private_network=True,
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = Headers(scope=scope).get("origin") if scope["type"] == "http" else None
        allowed = origin is not None and ("*" in self.origins or origin in self.origins)
        await (self.open if allowed else self.app)(scope, receive, send)


class LocalHosts:
    """Middleware that refuses requests to another host name than this machine's (400).

    A web page whose own name resolves to this machine sends that name.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _names_this_machine(given := Headers(scope=scope).get("host", "")):
            told = (
                f"this server answers requests to localhost or 127.0.0.1 alone, not to {given[:100]!r}; "
                "set a token (SELFEMO_TOKEN) to open it to others or to a proxy that passes on its own name, "
                "or let the proxy send the header Host: 127.0.0.1"
            )
            await Problem(400, "wrong_host", told).response()(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _names_this_machine(host: str) -> bool:
    """Whether a Host header names this machine: localhost or a loopback address, with or without a port."""
    parts = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]@]+))(?::\d*)?", host)
    return parts is not None and is_loopback((parts[1] or parts[2]).lower())


class BodyLimit:
    """Middleware that reads a request's whole body before the application sees it.

    It refuses bodies of more than `max_body` bytes (413) and those that take over `timeout` seconds (408).
    """

    def __init__(self, app: ASGIApp, max_body: int, timeout: float):
        self.app, self.max_body, self.timeout = app, max_body, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._body(scope, receive)
        except Problem as e:
            await e.response()(scope, receive, send)
            return
        if body is None:
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client has left (Problem: too large, or too slow)."""
        told = f"the request is larger than {self.max_body} bytes"
        large = Problem(413, "too_large", told, {"Connection": "close"})
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self.max_body:
                raise large
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self.timeout):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.max_body:
                        raise large
        except TimeoutError:
            raise Problem(408, "slow_request", "the request did not arrive in time") from None
        return bytes(body)
