"""Asking experts many structured questions: spread, cached, repaired, resumable.

Each question goes to one expert, chosen by its content, so that a second run asks the same one. Every
answer is committed to a book before it is used and is never paid for again: its key is a hash of the
model and the whole question. An answer that cannot be read gets one repair question, then the question is
put afresh (`rounds` times in all), then it is a typed failure. Memory holds the questions under way alone.
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


class AnswerBook(Protocol):
    """Keeps what experts answered, and which items failed; a run's store is one."""

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
    """One thing to ask.

    Attributes:
        item: what it is about; names the record, and picks the expert.
        read: text to value; raises MalformedError.
    """

    item: str
    messages: Sequence[Mapping[str, str]]
    schema: Mapping[str, Any]
    read: Callable[[str], T]
    max_tokens: int


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What became of a question: a value, or a failure kind with its detail.

    `kind` is unreachable, refused, or that of the last MalformedError. Tokens are those of all answers to
    the question, repairs included; `paid` counts the answers that this run asked for.
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
    """What a batch of questions came to."""

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


_OPENINGS = 64
"""Braces of an answer that are tried as the start of its JSON object."""


def without_thoughts(text: str) -> str:
    """An answer without what a reasoning model thought aloud before it (<think>...</think>)."""
    return _THOUGHT.sub("", text)


def read_json(text: str) -> dict[str, Any]:
    """The first JSON object in an answer; prose, code fences and thoughts around it are passed over.

    Raises:
        MalformedError("no_json"): there is none that is complete.
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
                return found
        start = body.find("{", start + 1)
    cut = "it is cut off or broken" if "{" in body else "there is none in the answer"
    raise MalformedError("no_json", f"no complete JSON object: {cut}")


def one_line(value: Any, what: str, longest: int, least_words: int = 1) -> str:
    """A text of an expert's answer, on one line and without the openings of chat-template tokens.

    Raises:
        MalformedError("schema"): no text, too long, or with fewer words than `least_words`.
    """
    text = clean(value) if isinstance(value, str) else ""
    if len(_WORD.findall(text)) < least_words:
        wanted = "a text that is not empty" if least_words == 1 else f"{least_words} words or more"
        raise MalformedError("schema", f"{what} must be {wanted}")
    if len(text) > longest:
        raise MalformedError("schema", f"{what} has {len(text)} characters, at most {longest} fit")
    return text


def choose(item: str, n: int) -> int:
    """Which of n experts a question goes to: fixed by the item alone."""
    return derive(0, "expert", item) % n


def answer_key(model: str, request: ChatRequest, round_: int) -> str:
    """The cache key of a question: everything that its answer depends on."""
    content = [model, list(map(dict, request.messages)), request.max_tokens, round_]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _repair(question: Question[Any], answer: str, reason: str) -> list[dict[str, str]]:
    return [
        *map(dict, question.messages),
        {"role": "assistant", "content": answer[:_SHOWN] or "(nothing)"},
        {
            "role": "user",
            "content": f"That answer cannot be used: {reason}. Give the whole answer again, as one JSON "
            "object of the form asked for and nothing else.",
        },
    ]


def first_request(question: Question[Any], round_: int = 0) -> ChatRequest:
    """The question as it is put first in a round."""
    return ChatRequest(
        question.messages, question.schema, question.max_tokens, derive(0, question.item, round_)
    )


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
                last = e
                request = ChatRequest(
                    _repair(question, given.text, e.reason),
                    question.schema,
                    question.max_tokens,
                    derive(0, question.item, round_, "repair"),
                )
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
    """Put questions to experts, each expert up to its `concurrency` at once.

    Args:
        questions: read as they are needed; an iterator of any length costs no more memory than a short
            one.
        on_reply: called with each question and its reply, in the order they come in; a failure is in the
            book by then.
        rounds: how often a question is put afresh, each time with one repair question.
        retry_failed: put questions again that ended in an unreadable answer, instead of reading it again.

    Raises:
        EndpointError: an expert cannot be used at all, or has stopped answering. Replies so far were
            delivered.
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
        first: BaseException = ours
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    return tally


def open_chat(spec: ExpertSpec) -> Chat:
    """The backend of an expert."""
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
    """`ask_all` on experts that are opened for it and closed behind it."""

    async def run() -> Tally:
        chats = [open_chat(s) for s in specs]
        try:
            return await ask_all(questions, chats, book, purpose, on_reply, rounds, retry_failed)
        finally:
            for chat in chats:
                await chat.close()

    return asyncio.run(run())
