"""A server that answers with what no model says: each body can be kept, or is asked anew."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from selfemo.models.generation.chat import Answer, ChatRequest, UnansweredError, parse_expert
from selfemo.models.generation.endpoint import Endpoint
from selfemo.runs.store import Store


@contextmanager
def server(bodies: list[bytes]) -> Iterator[str]:
    """Answers each request with the next body."""
    left = iter(bodies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = next(left)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1"
    finally:
        running.shutdown()
        running.server_close()


def body(content: object, usage: object = None) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps({**answer, **({} if usage is None else {"usage": usage})}).encode()


def ask(bodies: list[bytes]) -> list[Answer | UnansweredError]:
    async def each(url: str):
        chat = Endpoint(parse_expert(f"e={url},model=m,timeout=5,attempts=1"))
        request = ChatRequest([{"role": "user", "content": "x"}], {}, 8)
        try:
            return [(await asyncio.gather(chat.ask(request), return_exceptions=True))[0] for _ in bodies]
        finally:
            await chat.close()

    with server(bodies) as url:
        return asyncio.run(each(url))


def test_odd_answers_can_be_kept(tmp_path: Path) -> None:
    cases = [
        (body("half \ud800 a pair"), "half ? a pair", 0),
        (body("\x00\u202e"), "\x00\u202e", 0),
        (body("x", {"prompt_tokens": 10**30, "completion_tokens": -1}), "x", 0),
        (body("x", {"prompt_tokens": "7", "completion_tokens": [1]}), "x", 0),
        (body("x", {"prompt_tokens": 7, "completion_tokens": 1}), "x", 7),
        (body(None), "", 0),
    ]
    found = ask([answer for answer, _, _ in cases])
    with Store(tmp_path / "s.sqlite") as store:
        for k, (got, (_, text, tokens)) in enumerate(zip(found, cases, strict=True)):
            assert isinstance(got, Answer) and (got.text, got.prompt_tokens) == (text, tokens)
            store.add_answer(str(k), got, "p", "i", "e", "m")
            assert store.answer(str(k)) == got


def test_bodies_that_are_no_answer_end_typed() -> None:
    bodies = [
        body(["a", "list"]),
        body({"an": "object"}),
        body(7),
        body("x" * 4_000_001),
        b"[" * 100_000,
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b"null",
        b"\xff\xfe",
    ]
    for sent, got in zip(bodies, ask(bodies), strict=True):
        assert isinstance(got, UnansweredError), (sent[-30:], got)
