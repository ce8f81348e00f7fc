"""A small reverse proxy below a path, in a thread; it passes streams on as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from tests.support.server import serving

httpx = pytest.importorskip("httpx2")
_OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-length"}


@contextmanager
def proxied(to: str, path: str, *, own_host: bool = True, strip: bool = True) -> Iterator[str]:
    """The address below `path` of a proxy to the server `to`.

    Args:
        own_host: pass on the Host that the client named, else the server's.
        strip: take the path off before a request is passed on.
    """
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    client: Any = None

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        nonlocal client
        async with httpx.AsyncClient(timeout=60) as client:
            yield

    async def pass_on(request: Request) -> Any:
        asked = request.url.path
        if asked == "/favicon.ico":  # a browser asks any host for it
            return PlainTextResponse("", 204)
        if asked != path and not asked.startswith(f"{path}/"):
            return PlainTextResponse("outside of the path", 421)
        below = (asked.removeprefix(path) or "/") if strip else asked
        headers = [(k, v) for k, v in request.headers.items() if k not in _OF_ONE_CONNECTION | {"host"}]
        if own_host:
            headers.append(("host", request.headers["host"]))
        query = f"?{request.url.query}" if request.url.query else ""
        sent = client.build_request(
            request.method, to + below + query, headers=headers, content=await request.body()
        )
        answer = await client.send(sent, stream=True)

        async def parts() -> AsyncIterator[bytes]:
            async for part in answer.aiter_raw():
                yield part
            await answer.aclose()

        passed = StreamingResponse(parts(), answer.status_code)
        passed.raw_headers = [
            (k.lower(), v) for k, v in answer.headers.raw if k.decode().lower() not in _OF_ONE_CONNECTION
        ]
        return passed

    methods = ["GET", "HEAD", "POST", "OPTIONS", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", pass_on, methods=methods)], lifespan=lifespan)
    with serving(app, log_level="critical", timeout_graceful_shutdown=1) as url:
        yield url + path
