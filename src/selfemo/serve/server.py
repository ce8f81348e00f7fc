"""`selfemo serve`: emotions and answers over HTTP, in this project's form and in OpenAI's.

Further routes are in routes.py and openai.py. Each error is {"error": {"message", "type", "param", "code"}},
the form that OpenAI clients read.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException

from selfemo import __version__
from selfemo.errors import SelfEmoError
from selfemo.serve import openai, routes
from selfemo.serve.binding import check_binding, is_loopback
from selfemo.serve.selfemo import SelfEmo
from selfemo.serve.service import Limits as Limits
from selfemo.serve.service import Service
from selfemo.serve.transport import (
    AllowedOrigins,
    BodyLimit,
    ErrorResult,
    LocalHosts,
    Problem,
    UnderPath,
    path_of,
)

_BEARER = HTTPBearer(auto_error=False)
_PAGE_FILES = "/docs-files"
"""Where the scripts and styles of /docs are."""
logger = logging.getLogger("selfemo.serve.server")


def create_app(
    model: SelfEmo,
    *,
    limits: Limits | None = None,
    token: str = "",
    name: str = "",
    local_only: bool = False,
    origins: Collection[str] = (),
    root_path: str = "",
) -> FastAPI:
    """The application.

    Args:
        token: the bearer token that clients must send; "" asks for none.
        name: what answers call the model (default: `SelfEmo.title`).
        local_only: refuse requests to another host name than this machine's (`LocalHosts`).
        origins: pages of these origins may read the answers (`AllowedOrigins`).
        root_path: path of the server behind a proxy (`UnderPath`).
    """
    limits = limits or Limits()
    service = Service(model, limits, name or model.title)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.batcher.close()

    # FastAPI's own page loads its scripts from elsewhere on the internet; here they come from the package.
    app = FastAPIOffline(
        redoc_url=None, static_url=_PAGE_FILES, swagger_ui_parameters={"defaultModelsExpandDepth": 0},
        title="SELF-EMO", version=__version__, lifespan=lifespan,
        description="Emotions of a conversation, and answers in character.",
        responses={s: {"model": ErrorResult} for s in (400, 401, 408, 413, 415, 422, 429, 502, 503, 504)},
    )  # fmt: skip
    app.state.service = service
    guarded = [Depends(_guard(token))]
    app.include_router(routes.routes(service), dependencies=guarded, tags=["emotions and answers"])
    app.include_router(openai.routes(service), dependencies=guarded, tags=["for OpenAI's clients"])

    @app.get("/", include_in_schema=False)
    async def home() -> RedirectResponse:
        return RedirectResponse(f"{root_path}/docs")

    @app.get("/healthz", tags=["the server"])
    async def healthz() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=guarded, tags=["the server"])
    async def metrics() -> PlainTextResponse:
        """Prometheus metrics."""
        text = generate_latest(service.metrics.registry).decode()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    _add_error_handlers(app)
    _add_measuring(app, service)
    app.add_middleware(BodyLimit, max_body=limits.max_body, timeout=limits.timeout)
    if local_only:
        app.add_middleware(LocalHosts)
    if root_path:
        app.add_middleware(UnderPath, root_path=root_path)
    if origins:
        app.add_middleware(AllowedOrigins, origins=origins)
    return app


def _guard(token: str) -> Callable[..., Awaitable[None]]:
    """A dependency that refuses requests without the token."""

    async def allowed(request: Request, _: Annotated[Any, Depends(_BEARER)]) -> None:
        given = request.headers.get("authorization", "").encode("utf-8", errors="replace")
        if token and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            said = "the token is not the server's" if given else "the server asks for its token"
            told = f"{said}: send the header Authorization: Bearer TOKEN (an OpenAI client's api_key)"
            raise Problem(401, "wrong_token" if given else "no_token", told, {"WWW-Authenticate": "Bearer"})

    return allowed


def _add_error_handlers(app: FastAPI) -> None:
    """Give every error OpenAI's form; `_add_measuring` does so for faults of the server."""

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, e: HTTPException) -> JSONResponse:
        problem = e if isinstance(e, Problem) else _http_problem(request, e)
        return problem.response()

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, e: RequestValidationError) -> JSONResponse:
        # OpenAI's own server answers so, and its clients know it.
        status = 400 if path_of(request) == openai.CHAT else 422
        return _invalid(request, e.errors(), status).response()

    @app.exception_handler(SelfEmoError)
    async def on_ours(request: Request, e: SelfEmoError) -> JSONResponse:
        logger.error("%s: %s", request.url.path, e)
        return Problem(500, "model", str(e)).response()


def _http_problem(request: Request, e: HTTPException) -> Problem:
    """An error of the framework's: no such path or method, or a body that it cannot read."""
    asked = f"{request.method} {path_of(request)[:200]}"
    if e.status_code == 404:
        paths = request.app.openapi()["paths"]
        there = ", ".join(f"{method.upper()} {path}" for path in paths for method in paths[path])
        told = f"{asked}: there is no such path; there are {there}"
        return Problem(404, "not_found", told, e.headers)
    if e.status_code == 405:
        allowed = (e.headers or {}).get("Allow", "another method")
        return Problem(405, "method_not_allowed", f"{asked}: this path takes {allowed}", e.headers)
    if e.status_code == 400:
        return Problem(400, "bad_json", "the body is not JSON that can be read", e.headers)
    return Problem(e.status_code, "http", e.detail, e.headers)


def _invalid(request: Request, mistakes: Sequence[Any], status: int) -> Problem:
    """What is wrong in a request; its input is not quoted: it may be of any size, and not JSON."""
    first = mistakes[0]
    if first["type"] == "json_invalid":
        told = f"the body is not JSON: {first['ctx']['error']}, at character {first['loc'][-1]}"
        return Problem(400, "bad_json", told)
    if first["loc"] == ("body",):
        if first["type"] == "missing":
            return Problem(status, "invalid", "the body is empty: send a JSON object")
        if "json" not in request.headers.get("content-type", ""):
            return Problem(415, "not_json", "send JSON with the header Content-Type: application/json")
    fields = [".".join(map(str, i["loc"][1:]))[:100] for i in mistakes]
    told = "; ".join(f"{f or 'the body'}: {i['msg']}" for f, i in zip(fields[:5], mistakes, strict=False))
    return Problem(status, "invalid", told, param=fields[0] or None)


def _add_measuring(app: FastAPI, service: Service) -> None:
    """Count and time the answers of each known path, a fault of the server among them.

    Starlette answers a fault outside all middleware, where a page of another origin could not read it.
    """
    known = {*app.openapi()["paths"], *(getattr(r, "path", "") for r in app.routes)}

    @app.middleware("http")
    async def measured(request: Request, call_next: Any) -> Any:
        start, status = time.perf_counter(), 500
        try:
            response = await call_next(request)
            status = response.status_code
        except Exception as e:
            logger.error("%s", request.url.path, exc_info=e)
            response = Problem(500, "internal", "the server failed; its log says how").response()
        finally:
            path = asked if (asked := path_of(request)) in known else "other"
            service.metrics.requests.labels(path, str(status)).inc()
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
    origins: Collection[str] = (),
    root_path: str = "",
    grace: float = 30.0,
) -> None:
    """Serve until SIGINT or SIGTERM; running answers get `grace` seconds (ConfigError: `check_binding`)."""
    import uvicorn

    check_binding(host, token, insecure)
    local_only = is_loopback(host) and not token and not insecure
    app = create_app(
        model, limits=limits, token=token, name=name, local_only=local_only, origins=origins,
        root_path=root_path,
    )  # fmt: skip
    config = uvicorn.Config(
        app, host, port, log_level="info", access_log=False, timeout_graceful_shutdown=int(grace)
    )
    uvicorn.Server(config).run()
