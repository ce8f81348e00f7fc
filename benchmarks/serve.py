"""`selfemo serve` under load: batching against one at a time, then many clients for a while.

    python -m benchmarks.serve --model builtin:smollm2-135m --out benchmarks/serve.json

Each client asks /v1/respond about a conversation of its own, greedily, and waits for the answer. "One at
a time" is one client; "batched" is several at once, the same questions, so the ratio is that of the wall
times. The long part counts answers, errors, latencies, and the resident memory of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx

LINES = [
    "Did you hear that noise last night?", "It was only the cat, I promise.",
    "I lost my keys again.", "We won the match, can you believe it?",
    "Stop it right now!", "I miss her so much.", "The bus leaves at nine.",
    "You never told me that you were leaving.", "What a lovely surprise!",
]  # fmt: skip


def question(number: int, max_tokens: int) -> dict[str, Any]:
    draw = random.Random(number)
    turns = [
        {"speaker": ("Ann", "Bo")[k % 2], "text": f"{draw.choice(LINES)} ({number}.{k})"} for k in range(4)
    ]
    return {"turns": turns, "persona": "Dry, loyal, easily moved.", "max_tokens": max_tokens}


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def cpu_seconds(pid: int) -> float:
    """Processor time of the server: unlike wall time, other work on the machine does not add to it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ask_all(url: str, questions: list[dict[str, Any]], clients: int) -> tuple[float, int]:
    """Wall seconds and tokens written, with so many clients at once."""
    written, rest = 0, iter(questions)

    async def client() -> None:
        nonlocal written
        async with httpx.AsyncClient(timeout=300) as http:
            for q in rest:
                answer = await http.post(url + "/v1/respond", json=q)
                answer.raise_for_status()
                body = answer.json()
                assert body["failure"] is None, body
                written += body["usage"]["completion_tokens"]

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - start, written


async def load(url: str, pid: int, clients: int, seconds: float, max_tokens: int) -> dict[str, Any]:
    latencies: list[float] = []
    statuses: dict[str, int] = {}
    memory: list[float] = []
    end = time.perf_counter() + seconds

    async def client(n: int) -> None:
        async with httpx.AsyncClient(timeout=300) as http:
            k = 0
            while time.perf_counter() < end:
                k += 1
                start = time.perf_counter()
                body = question(1000 * n + k, max_tokens)
                answer = await http.post(url + "/v1/respond", json=body)
                statuses[str(answer.status_code)] = statuses.get(str(answer.status_code), 0) + 1
                if answer.status_code == 200:
                    latencies.append(time.perf_counter() - start)
                    assert answer.json()["failure"] is None
                else:
                    await asyncio.sleep(float(answer.headers.get("retry-after", 1)))

    async def watch() -> None:
        while time.perf_counter() < end:
            memory.append(resident_mib(pid))
            await asyncio.sleep(seconds / 60)

    await asyncio.gather(watch(), *(client(n) for n in range(clients)))
    ordered, third = sorted(latencies), max(1, len(memory) // 3)
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": len(latencies),
        "statuses": statuses,
        "p50_s": ordered[len(ordered) // 2],
        "p95_s": ordered[int(len(ordered) * 0.95)],
        "rss_mib_first_third": max(memory[:third]),
        "rss_mib_last_third": max(memory[-third:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable, "-m", "selfemo.cli", "serve", given.model, "--port", str(port),
            "--timeout", "300", "--max-waiting", "64", "--set", "model.threads=1",
        ]
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(url + "/healthz")
                break
            except httpx.TransportError:
                if server.poll() is not None:
                    raise SystemExit("the server ended") from None
                time.sleep(0.2)
        questions = [question(n, given.max_tokens) for n in range(given.questions)]
        asyncio.run(ask_all(url, questions[:2], 2))  # what is compiled once is not measured
        pairs = []
        for _ in range(given.repeats):
            before = cpu_seconds(server.pid)
            single, tokens = asyncio.run(ask_all(url, questions, 1))
            between = cpu_seconds(server.pid)
            together, _ = asyncio.run(ask_all(url, questions, given.questions))
            cpu = (between - before, cpu_seconds(server.pid) - between)
            pairs.append(
                {
                    "one_at_a_time_s": single, "batched_s": together, "tokens": tokens,
                    "one_at_a_time_cpu_s": cpu[0], "batched_cpu_s": cpu[1],
                }
            )  # fmt: skip
            print(f"{single:.1f} s one at a time, {together:.1f} s batched", file=sys.stderr)
        ratios = sorted(p["one_at_a_time_cpu_s"] / p["batched_cpu_s"] for p in pairs)
        result = {
            "model": given.model,
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} core(s), 1 thread",
            "questions": given.questions,
            "max_tokens": given.max_tokens,
            "pairs": pairs,
            "cpu_ratio_median": ratios[len(ratios) // 2],
            "load": asyncio.run(load(url, server.pid, given.clients, given.seconds, given.max_tokens)),
        }
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    text = json.dumps(result, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
