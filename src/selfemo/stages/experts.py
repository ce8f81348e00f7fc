"""Ask experts many questions that are answered with JSON: spread, cached, repaired, resumable.

A question goes to one expert, chosen by the question's item, so a second run asks the same one. Each answer
is kept in a book before it is used, under a hash of the model and the question, and is never paid for again.
After an answer that cannot be read comes one repair question, then the question anew (`rounds` times in all),
then it counts as failed. Memory holds only the questions under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from selfemo.errors import EndpointError, SelfEmoError
from selfemo.method.prompts import clean
from selfemo.models.generation.chat import Answer, Chat, ChatRequest, ExpertSpec, UnansweredError
from selfemo.seeds import derive

T = TypeVar("T")

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+")
_SHOWN = 2000
"""Characters of a bad answer that a repair question quotes."""
_OPENINGS = 64
"""Braces of an answer that are tried as the start of its JSON object."""


class AnswerBook(Protocol):
    """Keeps the answers of experts, and the items that failed; a run's store is one."""

    def answer(self, key: str) -> Answer | None: ...

    def add_answer(
        self, key: str, answer: Answer, purpose: str, item: str, expert: str, model: str
    ) -> None: ...

    def failed_rounds(self, purpose: str) -> dict[str, int]: ...

    def add_failure(
        self, purpose: str, item: str, expert: str, kind: str, detail: str, rounds: int
    ) -> None: ...

    def clear_failure(self, purpose: str, item: str) -> None: ...


class MalformedError(Exception):
    """An answer that cannot be used, with its kind and a reason that the repair question can quote."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind, self.reason = kind, reason


@dataclass(frozen=True)
class Question(Generic[T]):
    """One question; `item` names the record, and picks the expert."""

    item: str
    messages: Sequence[Mapping[str, str]]
    schema: Mapping[str, Any]
    read: Callable[[str], T]
    """Makes a value of an answer's text; raises MalformedError."""
    max_tokens: int


@dataclass(frozen=True)
class Reply(Generic[T]):
    """The result of a question: a value, or a failure with its kind and detail.

    `kind` is unreachable, refused, or that of the last MalformedError. Tokens are those of all answers to the
    question, repairs included; `paid` counts the answers that were not in the book.
    """

    item: str
    value: T | None
    expert: str
    model: str
    kind: str = ""
    detail: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    paid: int = 0
    rounds: int = 0


@dataclass
class Tally:
    """Counts over a batch of questions."""

    asked: int = 0
    cached: int = 0
    answered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, reply: Reply[Any]) -> None:
        self.asked += reply.paid
        self.cached += reply.value is not None and not reply.paid
        if reply.value is None:
            self.failures[reply.kind] += 1
        else:
            self.answered += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens

    def as_dict(self) -> dict[str, Any]:
        return {
            "answered": self.answered,
            "from_cache": self.cached,
            "calls": self.asked,
            "failures": dict(self.failures),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


def without_thoughts(text: str) -> str:
    """An answer without the thoughts of a reasoning model (<think>...</think>)."""
    return _THOUGHT.sub("", text)


def read_json(text: str, *keys: str) -> dict[str, Any]:
    """The first JSON object in an answer, whatever prose, code fences and thoughts are around it.

    Raises: MalformedError: there is no complete object ("no_json"), or it lacks one of `keys` ("schema").
    """
    body = without_thoughts(text)
    decoder = json.JSONDecoder()
    start = body.find("{")
    # Each opening of a long broken answer would be read to its end: quadratic in what a server sends.
    for _ in range(_OPENINGS):
        if start < 0:
            break
        with suppress(ValueError, RecursionError):
            found, _ = decoder.raw_decode(body, start)
            if isinstance(found, dict):
                if missing := [k for k in keys if k not in found]:
                    raise MalformedError("schema", f"the key {missing[0]!r} is missing")
                return found
        start = body.find("{", start + 1)
    cut = "it is cut off or broken" if "{" in body else "there is none in the answer"
    raise MalformedError("no_json", f"no complete JSON object: {cut}")


def one_line(value: Any, what: str, longest: int, least_words: int = 1) -> str:
    """A text of an expert's answer, on one line and without the openings of chat-template tokens.

    Raises: MalformedError ("schema"): not a text, too long, or fewer than `least_words` words.
    """
    text = clean(value) if isinstance(value, str) else ""
    if len(_WORD.findall(text)) < least_words:
        wanted = "a text that is not empty" if least_words == 1 else f"{least_words} words or more"
        raise MalformedError("schema", f"{what} must be {wanted}")
    if len(text) > longest:
        raise MalformedError("schema", f"{what} has {len(text)} characters, at most {longest} fit")
    return text


def json_text(longest: int) -> dict[str, Any]:
    """The JSON schema of a text."""
    return {"type": "string", "minLength": 1, "maxLength": longest}


def json_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object with all of these keys and no other."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def json_question(
    item: str, role: str, task: str, properties: Mapping[str, Any], read: Callable[[str], T], max_tokens: int
) -> Question[T]:
    """A question to an expert of this role, answered with one JSON object of `properties` (JSON schemas)."""
    messages = [
        {"role": "system", "content": f"{role} You answer with one JSON object and nothing else."},
        {"role": "user", "content": task},
    ]
    return Question(item, messages, json_object(properties), read, max_tokens)


def choose(item: str, n: int) -> int:
    """Index of the expert (of n) that a question goes to; it depends on the item alone."""
    return derive(0, "expert", item) % n


def answer_key(model: str, request: ChatRequest, round_: int) -> str:
    """The cache key of a question: a hash of all that its answer depends on."""
    content = [model, list(map(dict, request.messages)), request.max_tokens, round_]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_request(question: Question[Any], round_: int = 0) -> ChatRequest:
    """The question as it is asked first in a round."""
    return ChatRequest(
        question.messages, question.schema, question.max_tokens, derive(0, question.item, round_)
    )


def _repair_request(question: Question[Any], round_: int, answer: str, reason: str) -> ChatRequest:
    task = (
        f"That answer cannot be used: {reason}. Give the whole answer again, as one JSON "
        "object of the form asked for and nothing else."
    )
    messages: list[Mapping[str, str]] = [
        *question.messages,
        {"role": "assistant", "content": answer[:_SHOWN] or "(nothing)"},
        {"role": "user", "content": task},
    ]
    seed = derive(0, question.item, round_, "repair")
    return ChatRequest(messages, question.schema, question.max_tokens, seed)


async def _put(
    question: Question[T], expert: Chat, book: AnswerBook, purpose: str, first: int, rounds: int
) -> Reply[T]:
    """Ask one question until an answer can be read, or `rounds` rounds from `first` on are over."""
    read = written = paid = 0
    last = MalformedError("no_json", "never asked")

    async def answer(request: ChatRequest, round_: int) -> Answer:
        nonlocal paid, read, written
        key = answer_key(expert.model, request, round_)
        known = book.answer(key)
        if known is None:
            known = await expert.ask(request)
            book.add_answer(key, known, purpose, question.item, expert.name, expert.model)
            paid += 1
        read += known.prompt_tokens
        written += known.completion_tokens
        return known

    def reply(value: T | None, kind: str = "", detail: str = "", done: int = 0) -> Reply[T]:
        return Reply(question.item, value, expert.name, expert.model, kind, detail, read, written, paid, done)

    for round_ in range(first, first + rounds):
        request = first_request(question, round_)
        for _ in range(2):
            try:
                given = await answer(request, round_)
            except UnansweredError as e:
                return reply(None, e.kind, e.detail, round_)
            try:
                return reply(question.read(given.text), done=round_ + 1)
            except MalformedError as e:
                last, request = e, _repair_request(question, round_, given.text, e.reason)
    return reply(None, last.kind, last.reason, first + rounds)


async def ask_all(
    questions: Iterable[Question[T]],
    experts: Sequence[Chat],
    book: AnswerBook,
    purpose: str,
    on_reply: Callable[[Question[T], Reply[T]], None],
    rounds: int = 2,
    retry_failed: bool = False,
) -> Tally:
    """Ask experts, each expert up to its `concurrency` questions at once.

    Args:
        questions: read as they are needed, so a long iterator costs no more memory than a short one.
        on_reply: called with each question and its reply, in the order they come in; a failure is in the book
            by then.
        rounds: how often a question is asked anew, each time with one repair question.
        retry_failed: ask again what ended in an unreadable answer, instead of reading that answer again.

    Raises:
        EndpointError: an expert cannot be used at all, or has stopped answering. `on_reply` has got all
            replies up to then.
    """
    tally = Tally()
    failed = book.failed_rounds(purpose)
    queues: list[asyncio.Queue[Question[T] | None]] = [
        asyncio.Queue(maxsize=2 * e.concurrency) for e in experts
    ]
    unreachable = [0] * len(experts)

    async def work(k: int) -> None:
        expert = experts[k]
        while (question := await queues[k].get()) is not None:
            first = failed.get(question.item, 0) if retry_failed else 0
            reply = await _put(question, expert, book, purpose, first, rounds)
            if reply.value is None:
                book.add_failure(purpose, reply.item, reply.expert, reply.kind, reply.detail, reply.rounds)
            elif reply.item in failed:
                book.clear_failure(purpose, reply.item)
            tally.add(reply)
            on_reply(question, reply)
            unreachable[k] = unreachable[k] + 1 if reply.kind == "unreachable" else 0
            if unreachable[k] >= max(3, expert.concurrency):
                raise EndpointError(
                    f"expert {expert.name} has stopped answering ({reply.detail}); what it answered is "
                    "kept, run the same command again to go on"
                )

    async def feed() -> None:
        for question in questions:
            await queues[choose(question.item, len(experts))].put(question)
        for queue, expert in zip(queues, experts, strict=True):
            for _ in range(expert.concurrency):
                await queue.put(None)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            for k, expert in enumerate(experts):
                for _ in range(expert.concurrency):
                    group.create_task(work(k))
    except BaseExceptionGroup as several:
        ours, others = several.split(SelfEmoError)
        if others is not None or ours is None:
            raise
        raise ours.exceptions[0] from None
    return tally


def _open_chat(spec: ExpertSpec) -> Chat:
    if spec.local:
        from selfemo.models.generation.local_chat import LocalChat

        return LocalChat(spec)
    from selfemo.models.generation.endpoint import Endpoint

    return Endpoint(spec)


def ask_experts(
    questions: Iterable[Question[T]],
    specs: Sequence[ExpertSpec],
    book: AnswerBook,
    purpose: str,
    on_reply: Callable[[Question[T], Reply[T]], None],
    rounds: int = 2,
    retry_failed: bool = False,
) -> Tally:
    """`ask_all` with experts that are opened before it and closed after it."""

    async def run() -> Tally:
        chats = [_open_chat(s) for s in specs]
        try:
            return await ask_all(questions, chats, book, purpose, on_reply, rounds, retry_failed)
        finally:
            for chat in chats:
                await chat.close()

    return asyncio.run(run())
