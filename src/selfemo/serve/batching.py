"""Answers questions of many clients together: those that arrive while a batch runs make the next one.

A local model answers one batch at a time, in a thread beside the event loop. An endpoint makes its own
batches, so each question is sent to it at once, up to its concurrency.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from selfemo.method.types import Conversation
from selfemo.serve.answers import Event, Recognition, Response
from selfemo.serve.asking import Ask
from selfemo.serve.selfemo import SelfEmo

GATHER = 0.005
"""Seconds to wait for more questions before a batch starts."""
TurnsQuestion = tuple[Conversation, Sequence[int]]
"""A question: the emotions of some turns of a conversation."""


class BusyError(Exception):
    """The queue is full."""


@dataclass(eq=False)
class Job:
    """A question that waits or is being answered; `cancel` ends its answer early."""

    question: Ask | TurnsQuestion
    future: asyncio.Future[Any]
    on_event: Callable[[Event], None] | None = None
    _left: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self._left.set()
        self.future.cancel()

    @property
    def cancelled(self) -> bool:
        return self._left.is_set()


class Batcher:
    """The queue of questions, and the workers that answer it in batches.

    Args:
        max_batch: most questions of one batch.
        max_waiting: most questions that wait; one more raises `BusyError`.
        on_batch: called with the number of questions of each batch.
    """

    def __init__(
        self,
        model: SelfEmo,
        *,
        max_batch: int = 16,
        max_waiting: int = 64,
        on_batch: Callable[[int], None] = lambda n: None,
    ):
        self.model, self.max_waiting, self.on_batch, spec = model, max_waiting, on_batch, model.spec
        self.max_batch, self._slots = (max_batch, 1) if spec is None else (1, spec.concurrency)
        self._threads = ThreadPoolExecutor(self._slots, thread_name_prefix="selfemo")
        self._queue: list[Job] = []
        self._more = asyncio.Event()
        self._closed = False
        self._workers: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def submit(self, question: Ask | TurnsQuestion, on_event: Callable[[Event], None] | None = None) -> Job:
        """Queue a question; the job's future gets its `Response`, or its recognitions.

        Args:
            on_event: called on the event loop with each part of the answer as it is written.

        Raises:
            BusyError: the queue is full, or the server is going down.
        """
        if self._closed or len(self._queue) >= self.max_waiting:
            raise BusyError
        loop = asyncio.get_running_loop()
        job = Job(question, loop.create_future(), on_event)
        self._queue.append(job)
        self._more.set()
        if not self._workers:
            self._workers = [loop.create_task(self._work()) for _ in range(self._slots)]
        return job

    async def close(self) -> None:
        """Cancel the waiting questions, end the running answers early, and stop the threads."""
        self._closed = True
        for job in self._queue:
            job.cancel()
        self._queue.clear()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                self._more.clear()
                await self._more.wait()
            if self.max_batch > 1:
                await asyncio.sleep(GATHER)
            batch = [j for j in self._queue[: self.max_batch] if not j.cancelled]
            del self._queue[: self.max_batch]
            if not batch:
                continue
            self.on_batch(len(batch))
            try:
                answers = await loop.run_in_executor(self._threads, self._answer, batch, loop)
            except asyncio.CancelledError:
                for job in batch:
                    job.cancel()
                raise
            for job, answer in zip(batch, answers, strict=True):
                if job.future.done():
                    continue
                if isinstance(answer, Exception):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(answer)

    def _answer(self, batch: Sequence[Job], loop: asyncio.AbstractEventLoop) -> list[Any]:
        """In the thread: an answer or an exception for each job."""
        turns = [j for j in batch if not isinstance(j.question, Ask)]
        asks = [j for j in batch if isinstance(j.question, Ask)]
        answers = dict(zip(turns, self._safely(self._read, turns), strict=True))
        answers |= zip(asks, self._safely(partial(self._respond, loop), asks), strict=True)
        return [answers[j] for j in batch]

    def _safely(self, work: Callable[[Sequence[Job]], Sequence[Any]], jobs: Sequence[Job]) -> Sequence[Any]:
        """The answers; if a batch fails, its questions one by one, so that one does not fail the others."""
        if not jobs:
            return []
        try:
            return work(jobs)
        except Exception as e:
            if len(jobs) == 1:
                return [e]
            return [self._safely(work, [job])[0] for job in jobs]

    def _read(self, jobs: Sequence[Job]) -> list[list[Recognition]]:
        return self.model.recognise_turns([j.question for j in jobs if not isinstance(j.question, Ask)])

    def _respond(self, loop: asyncio.AbstractEventLoop, jobs: Sequence[Job]) -> list[Response]:
        def on_event(n: int, event: Event | None) -> bool:
            job = jobs[n]
            if event is not None and job.on_event is not None and not job.cancelled:
                loop.call_soon_threadsafe(job.on_event, event)
            return not job.cancelled

        return self.model.respond_many([j.question for j in jobs if isinstance(j.question, Ask)], on_event)
