"""An OpenAI-compatible chat server that goes wrong on purpose.

Try `python tests/support/expert_server.py --help`.

What it answers depends on the question alone, so answers with and without faults can be compared. A fault
is drawn from the question and how often it was put, so a run can be repeated. Each answer that was sent out
whole is a line of the log: the hash of its messages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = (
    "429-after", "429", "500", "timeout", "drop", "cut-body", "no-chat", "cut-json", "prose", "schema",
    "unknown",
)  # fmt: skip
"""prose is no fault of its own: a reader must get over it. The last four are answers, and are logged."""
_MOODS = ("quick to laugh", "slow to trust", "warm and patient", "blunt under stress", "easily hurt")


JUDGE = ["random"]
"""What a judge goes by: --judge."""


def digest(*parts: object) -> int:
    return int(hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:12], 16)


def write_answer(messages: list[dict[str, str]]) -> dict:
    """A valid answer to the first question of a chat, fixed by its words."""
    asked = next(m["content"] for m in messages if m["role"] == "user")
    form = json.loads(asked[asked.rindex("Form: ") + 6 :])
    if set(form) == {"scenario", "personality"}:
        people = {
            name: f"{_MOODS[digest(asked, name) % 5]}, then {_MOODS[digest(name, asked) % 5]}"
            for name in form["personality"]
        }
        return {"scenario": f"a scene of number {digest(asked)}", "personality": people}
    if "verdict" in form:
        return judge_answer(asked, JUDGE[0])
    if set(form) == {"personality"}:
        return {"personality": f"on the whole {_MOODS[digest(asked) % 5]}"}
    labels = re.search(r"at most \d of (.+), each with", asked)[1].split(", ")
    first, second = labels[digest(asked) % len(labels)], labels[(digest(asked) + 1) % len(labels)]
    thought = {"reasoning": "it shows in the words"} if "reasoning" in form else {}
    return {
        **thought,
        "emotion": f"{first} 7, {second} 3",
        "self_emotion": {second: 5},
        "reply": f"Well, {digest(asked)}.",
    }


def judge_answer(asked: str, how: str) -> dict:
    """A verdict of a judge that goes by position, by content, at random or by nothing."""
    first, second = re.findall(r"^Answer [12]: (.*)$", asked, re.MULTILINE)[-2:]
    if how in ("1", "2", "tie"):
        verdict = how
    elif how == "random":
        verdict = str(1 + digest(asked) % 2)
    else:  # the side whose answer has the word is better
        has = [how in first, how in second]
        verdict = "tie" if has[0] == has[1] else str(1 + has.index(True))
    texts = dict.fromkeys(
        ("persona", "situation", "answer_1", "answer_2", "comparison"), f"Seen {digest(asked)}."
    )
    return {**texts, "verdict": verdict}


def format_answer(messages: list[dict[str, str]], salt: str = "", word: str = "") -> str:
    """A completion in the project's own format, as an evaluated model writes it; one in eight is wrong."""
    labels = re.match(r"Emotions: (.+)\.\n", messages[0]["content"])[1].split(", ")
    draw = digest(salt, *(m["content"] for m in messages))
    first, second = labels[draw % len(labels)], labels[(draw + 1) % len(labels)]
    if draw % 8 == 0:
        first = "melancholy"
    return f"E: {first} 7, {second} 3\nS: {second}\nR: So I hear, {draw}. {word}".rstrip()


class Expert(ThreadingHTTPServer):
    """Listens on a free port of the loopback address."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, args: argparse.Namespace):
        super().__init__(("127.0.0.1", args.port), Handler)
        self.args = args
        self.lock = threading.Lock()
        self.seen: Counter[str] = Counter()
        self.open_requests = self.most_open = 0

    def fault(self, key: str, n: int) -> str:
        if self.args.only:
            return self.args.only if n < self.args.times else ""
        draw = digest("fault", key, n) % 10_000 / 10_000
        return FAULTS[digest("kind", key, n) % len(FAULTS)] if draw < self.args.faults else ""

    def handle_error(self, request, client_address) -> None:
        pass  # clients that go away are part of the game


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Expert

    def log_message(self, *args) -> None:
        pass

    def _send(self, status: int, body: bytes, *, short: int = 0, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body[: len(body) - short])
        if short:
            self.close_connection = True

    def do_POST(self) -> None:
        server, args = self.server, self.server.args
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        messages = body["messages"]
        key = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
        with server.lock:
            n = server.seen[key]
            server.seen[key] += 1
            server.open_requests += 1
            server.most_open = max(server.most_open, server.open_requests)
        try:
            if args.key and self.headers["Authorization"] != f"Bearer {args.key}":
                self._send(401, b'{"error": {"message": "bad key"}}')
                return
            if self.headers["OpenAI-Organization"] or self.headers["OpenAI-Project"]:
                self._send(400, b'{"error": {"message": "told who you are"}}')
                return
            if args.latency:
                time.sleep(args.latency)
            self._answer(messages, key, server.fault(key, n), bool(body.get("stream")))
        finally:
            with server.lock:
                server.open_requests -= 1

    def _stream(self, text: str) -> None:
        """Server-sent events, a few letters each."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        for k in range(0, len(text), 7):
            delta = {"index": 0, "delta": {"content": text[k : k + 7]}, "finish_reason": None}
            chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "planted",
                     "choices": [delta]}  # fmt: skip
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _answer(self, messages: list[dict[str, str]], key: str, fault: str, stream: bool) -> None:
        error = b'{"error": {"message": "planted"}}'
        if fault == "429-after":
            return self._send(429, error, Retry_After="0.05")
        if fault == "429":
            return self._send(429, error)
        if fault == "500":
            return self._send(500, error)
        if fault == "timeout":
            time.sleep(self.server.args.hang)
            self.close_connection = True
            return None
        if fault == "drop":
            self.close_connection = True
            return None
        if messages[0]["content"].startswith("Emotions: "):
            answer, text = ({}, format_answer(messages, self.server.args.salt, self.server.args.reply))
        else:
            answer = write_answer(messages)
            text = json.dumps(answer)
        if fault == "cut-json":
            text = text[: len(text) * 2 // 3]
        elif fault == "prose":
            text = f"Of course! Here it is:\n```json\n{text}\n```\nI hope {{this}} helps."
        elif fault == "schema":
            text = json.dumps({"answer": list(answer.values())})
        elif fault == "unknown":
            text = json.dumps(
                {**answer, "emotion": "melancholy 5"}
                if "emotion" in answer
                else {**answer, "personality": {"Nobody at all": "kind"}}
            )
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        chat = {
            "id": "x", "object": "chat.completion", "created": 0, "model": "planted", "choices": [choice],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }  # fmt: skip
        if fault == "no-chat":
            return self._send(200, b'{"hello": "world"}')
        whole = json.dumps(chat).encode()
        if fault == "cut-body":
            return self._send(200, whole, short=len(whole) // 2)
        if stream and self.server.args.streams:
            return self._stream(text)
        if self.server.args.log:
            with self.server.lock, self.server.args.log.open("a") as log:
                log.write(key + "\n")
        self._send(200, whole)
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that go wrong")
    parser.add_argument("--only", default="", help="the one fault of the first --times requests")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--hang", type=float, default=3.0, help="seconds that a time-out hangs")
    parser.add_argument("--key", default="", help="the bearer token that is asked for")
    parser.add_argument("--salt", default="", help="another one: another model's answers")
    parser.add_argument("--judge", default="random", help="1, 2, tie, random, or a word to look for")
    parser.add_argument("--reply", default="", help="a word at the end of each reply of a model")
    parser.add_argument("--streams", type=int, default=1, help="0: stream=true is ignored")
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    JUDGE[0] = args.judge
    server = Expert(args)
    print(server.server_address[1], flush=True)
    with suppress(KeyboardInterrupt):
        server.serve_forever(poll_interval=0.05)
    print(server.most_open, file=sys.stderr)


if __name__ == "__main__":
    main()
