"""`selfemo serve`: emotions and answers over HTTP, in this project's form and in OpenAI's.

Further routes are in routes.py and openai.py. Each error is {"error": {"message", "type", "code"}}, the form
that OpenAI clients read.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from selfemo import __version__
from selfemo.errors import SelfEmoError
from selfemo.serve import openai, routes
from selfemo.serve.binding import check_binding, is_loopback
from selfemo.serve.selfemo import SelfEmo
from selfemo.serve.service import Limits as Limits
from selfemo.serve.service import Service
from selfemo.serve.transport import BodyLimit, ErrorResult, Problem, error_response

_BEARER = HTTPBearer(auto_error=False)
logger = logging.getLogger("selfemo.serve.server")


def create_app(
    model: SelfEmo, *, limits: Limits | None = None, token: str = "", name: str = "", local_only: bool = False
) -> FastAPI:
    """The application.

    Args:
        token: the bearer token that clients must send; "" asks for none.
        name: what answers call the model.
        local_only: refuse requests to another host name than this machine's, as those of a web page whose
            own name resolves to this machine.
    """
    limits = limits or Limits()
    service = Service(model, limits, name or model.name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.batcher.close()

    app = FastAPI(
        title="SELF-EMO", version=__version__, lifespan=lifespan,
        description="Emotions of a conversation, and answers in character.",
        responses={s: {"model": ErrorResult} for s in (400, 401, 408, 413, 422, 429, 502, 503, 504)},
    )  # fmt: skip
    app.state.service = service
    guarded = [Depends(_guard(token))]
    app.include_router(routes.routes(service), dependencies=guarded)
    app.include_router(openai.routes(service), dependencies=guarded)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=guarded)
    async def metrics() -> PlainTextResponse:
        """Prometheus metrics."""
        text = generate_latest(service.metrics.registry).decode()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    _add_error_handlers(app)
    _add_measuring(app, service)
    app.add_middleware(BodyLimit, max_body=limits.max_body, timeout=limits.timeout)
    if local_only:
        hosts = ["localhost", "127.0.0.1", "[::1]", "::1"]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    return app


def _guard(token: str) -> Callable[..., Awaitable[None]]:
    """A dependency that refuses requests without the token."""

    async def allowed(request: Request, _: Annotated[Any, Depends(_BEARER)]) -> None:
        given = request.headers.get("authorization", "").encode("utf-8", errors="replace")
        if token and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            told = "send the server's token: Authorization: Bearer ..."
            raise Problem(401, "no_token", told, {"WWW-Authenticate": "Bearer"})

    return allowed


def _add_error_handlers(app: FastAPI) -> None:
    """Give every error OpenAI's form."""

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, e: HTTPException) -> JSONResponse:
        code = e.code if isinstance(e, Problem) else "http"
        return error_response(e.status_code, code, str(e.detail), e.headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, e: RequestValidationError) -> JSONResponse:
        # Without the input itself: it may be of any size, and not JSON.
        wrong = [f"{'.'.join(map(str, i['loc'][1:]))[:100]}: {i['msg']}" for i in e.errors()[:5]]
        return error_response(422, "invalid", "; ".join(wrong))

    @app.exception_handler(SelfEmoError)
    async def on_ours(request: Request, e: SelfEmoError) -> JSONResponse:
        logger.error("%s: %s", request.url.path, e)
        return error_response(500, "model", str(e))

    @app.exception_handler(Exception)
    async def on_bug(request: Request, e: Exception) -> JSONResponse:
        logger.error("%s", request.url.path, exc_info=e)
        return error_response(500, "internal", "the server failed; its log says how")


def _add_measuring(app: FastAPI, service: Service) -> None:
    """Count and time the answers of each known path."""
    known = {*app.openapi()["paths"], *(getattr(r, "path", "") for r in app.routes)}

    @app.middleware("http")
    async def measured(request: Request, call_next: Any) -> Any:
        start = time.perf_counter()
        response = await call_next(request)
        path = request.url.path if request.url.path in known else "other"
        service.metrics.requests.labels(path, str(response.status_code)).inc()
        service.metrics.seconds.labels(path).observe(time.perf_counter() - start)
        return response


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
    """Serve until SIGINT or SIGTERM; running answers get `grace` seconds (ConfigError: `check_binding`)."""
    import uvicorn

    check_binding(host, token, insecure)
    local_only = is_loopback(host) and not token and not insecure
    app = create_app(model, limits=limits, token=token, name=name, local_only=local_only)
    config = uvicorn.Config(
        app, host, port, log_level="info", access_log=False, timeout_graceful_shutdown=int(grace)
    )
    uvicorn.Server(config).run()
