"""The model with its queue, limits and metrics, as the routes call it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from selfemo.errors import ConfigError, DataError, EndpointError
from selfemo.method.types import FailureKind
from selfemo.serve.answers import Done, Event, Response
from selfemo.serve.asking import Ask
from selfemo.serve.batching import Batcher, BusyError, Job, TurnsQuestion
from selfemo.serve.selfemo import SelfEmo
from selfemo.serve.transport import Problem

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Limits of one server; for the batches see `Batcher`."""

    max_body: int = 262_144  # bytes of a request
    timeout: float = 60.0  # seconds for one answer, waiting included
    max_batch: int = 16
    max_waiting: int = 64
    max_tokens: int = 512  # most tokens that a client may ask for
    max_turns: int = 500  # most turns of a conversation


class Metrics:
    """The metrics of /metrics, in a registry for each application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("selfemo_requests", "Requests answered", ["path", "status"], **own)
        self.seconds = Histogram("selfemo_request_seconds", "Time until the answer begins", ["path"], **own)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batch = Histogram("selfemo_batch_size", "Questions of a batch", buckets=sizes, **own)
        self.tokens = Counter("selfemo_tokens", "Tokens", ["kind"], **own)
        self.waiting = Gauge("selfemo_waiting", "Questions that wait", **own)


class Service:
    """The model with its queue; `name` is what answers call the model."""

    def __init__(self, model: SelfEmo, limits: Limits, name: str):
        self.model, self.limits, self.name = model, limits, name
        self.metrics = Metrics()
        self.batcher = Batcher(
            model, max_batch=limits.max_batch, max_waiting=limits.max_waiting,
            on_batch=self.metrics.batch.observe,
        )  # fmt: skip
        self.metrics.waiting.set_function(lambda: self.batcher.waiting)

    async def check(self, work: Callable[..., T], *args: Any) -> T:
        """The result of a check (Problem: 400), in a thread: the grammar of a new label set takes a while."""
        try:
            return await asyncio.to_thread(work, *args)
        except (DataError, ConfigError) as e:
            raise Problem(400, "bad_question", str(e)) from None

    def check_turns(self, n: int) -> None:
        """Refuse a conversation of more turns than the limit (Problem: 413)."""
        if n > (most := self.limits.max_turns):
            raise Problem(413, "too_large", f"a conversation has at most {most} turns here")

    def token_limit(self, asked: int | None) -> int:
        """Most tokens of an answer: the client's wish, else the model's setting, up to the limit."""
        return min(asked or self.model.max_tokens, self.limits.max_tokens)

    def submit(self, question: Ask | TurnsQuestion, on_event: Callable[[Event], None] | None = None) -> Job:
        """Queue a question (Problem: 429, too many wait)."""
        try:
            return self.batcher.submit(question, on_event)
        except BusyError:
            told = "too many questions wait; ask again later"
            raise Problem(429, "busy", told, {"Retry-After": "1"}) from None

    async def wait(self, job: Job) -> Any:
        """The answer of a job (Problem: it took too long, or the endpoint or the server stopped)."""
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await job.future
        except TimeoutError:
            raise self._late() from None
        except EndpointError as e:
            raise Problem(502, "endpoint", str(e)) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise _going_down() from None
        finally:
            job.cancel()

    async def respond(self, ask: Ask) -> Response:
        """The whole answer (Problem: see `wait` and `checked`)."""
        response: Response = await self.wait(self.submit(ask))
        return self.checked(response)

    def checked(self, response: Response) -> Response:
        """Count the tokens of an answer (Problem: the prompt is too long, or the endpoint did not answer)."""
        if response.failure == FailureKind.TOO_LONG:
            raise Problem(400, "context_length_exceeded", "persona and last turn are too long for the model")
        if response.failure == FailureKind.UNANSWERED:
            raise Problem(502, "endpoint", "the model's endpoint did not answer")
        prompt, written = response.tokens
        self.metrics.tokens.labels("prompt").inc(prompt)
        self.metrics.tokens.labels("written").inc(written)
        return response

    async def stream(self, ask: Ask) -> AsyncIterator[Event | Problem]:
        """Wait for the first event of an answer, so that an earlier `Problem` can be the response's status.

        A problem after the first event is the last item.
        """
        events = self._events(ask)
        try:
            first = await anext(events)
        except StopAsyncIteration:
            raise _going_down() from None

        async def from_first() -> AsyncIterator[Event | Problem]:
            yield first
            try:
                async for event in events:
                    yield event
            except Problem as e:
                yield e

        return from_first()

    async def _events(self, ask: Ask) -> AsyncIterator[Event]:
        """The events of an answer as it is written; closing the iterator ends the answer."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        job = self.submit(ask, queue.put_nowait)
        job.future.add_done_callback(lambda _: queue.put_nowait(None))
        # Not asyncio.timeout: several tasks read the parts of a stream.
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
            raise self._late() from None
        finally:
            job.cancel()
        await self.wait(job)  # raises the error that ended the job, if any

    def _late(self) -> Problem:
        return Problem(504, "timeout", f"no answer within {self.limits.timeout:g} s")


def _going_down() -> Problem:
    return Problem(503, "going_down", "the server is going down")
