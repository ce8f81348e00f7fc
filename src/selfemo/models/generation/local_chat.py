"""A model on this machine as a `Chat`, as an endpoint is one.

Questions that wait are answered together, one batch at a time, in a thread beside the event loop. The
answers are held to the question's JSON schema, without which a small model seldom writes any JSON.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from selfemo.errors import EngineError
from selfemo.models.generation.chat import Answer, ChatRequest, ExpertSpec, UnansweredError
from selfemo.models.generation.grammar import Grammar
from selfemo.models.generation.local import LocalGenerator
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.loading import load_policy
from selfemo.models.policy import Policy
from selfemo.models.references import resolve

T = TypeVar("T")
_GATHER = 0.02
"""Seconds to wait for more questions before a batch starts."""
_GRAMMARS_KEPT = 256


class LocalChat:
    """A model on this machine as a `Chat`; without `policy` it is loaded with the first question.

    The model of `spec` is a model reference, its concurrency the largest batch.

    Raises:
        EngineError: there is no such model; the message names the expert.
    """

    def __init__(self, spec: ExpertSpec, policy: Policy | None = None):
        self.spec, self.name, self.model = spec, spec.name, spec.model
        self.concurrency = spec.concurrency
        if policy is None:
            self._named(resolve)  # converts the weights if need be, but does not load them
        self._policy = policy
        self._waiting: list[tuple[ChatRequest, asyncio.Future[Answer]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._grammars: dict[str, Grammar] = {}

    def _named(self, step: Callable[[str], T]) -> T:
        try:
            return step(self.model)
        except EngineError as e:
            raise EngineError(f"expert {self.name}: {e}") from None

    @property
    def policy(self) -> Policy:
        """The model; a job that has all its answers stored loads none."""
        if self._policy is None:
            self._policy = self._named(partial(load_policy, dtype="auto"))
        return self._policy

    async def close(self) -> None:
        if self._worker:
            self._worker.cancel()

    async def ask(self, request: ChatRequest) -> Answer:
        """See `Chat.ask`; a question longer than the model's context is refused."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER)
            batch = self._waiting[: self.concurrency]
            del self._waiting[: len(batch)]
            answers: Sequence[Answer | Exception]
            try:
                answers = await asyncio.to_thread(self._answer, [r for r, _ in batch])
            except Exception as e:  # whatever it is, each question that waits must hear of it
                answers = [e] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _grammar(self, request: ChatRequest) -> Grammar:
        key = json.dumps(request.schema, sort_keys=True)
        if key not in self._grammars:
            if len(self._grammars) >= _GRAMMARS_KEPT:
                self._grammars.clear()
            self._grammars[key] = Grammar(self.policy, request.schema)
        return self._grammars[key]

    def _answer(self, batch: Sequence[ChatRequest]) -> list[Answer | UnansweredError]:
        longest = max(r.max_tokens for r in batch)
        room = self.policy.context
        settings = SamplingSettings(
            max_new_tokens=longest, temperature=self.spec.temperature, token_budget=16384
        )
        answers: list[Answer | UnansweredError] = []
        requests: list[Request] = []
        for request in batch:
            ids = self.policy.encode([dict(m) for m in request.messages])
            if room is not None and len(ids) + longest > room:
                said = f"{len(ids)} tokens and {longest} to write, the model holds {room}"
                answers.append(UnansweredError("refused", f"too long: {said}"))
                continue
            answers.append(Answer("", prompt_tokens=len(ids)))
            requests.append(Request(ids, 1, request.seed, constraints=self._grammar(request)))
        samples = iter(LocalGenerator(self.policy, settings).generate(requests))
        for k, given in enumerate(answers):
            if isinstance(given, Answer):
                (sample,) = next(samples)
                answers[k] = replace(given, text=sample.text, completion_tokens=len(sample.token_ids))
        return answers
