"""A key with a value that occurs nowhere else, used by every command that takes one: it stays in memory."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

KEY = "sk-canary-7f3a91c5e2d84b60"
WRONG = "sk-canary-wrong-0d9e8f7a6b5c"


def forms(secret: str) -> list[bytes]:
    raw = secret.encode()
    return [raw, raw[::-1], base64.b64encode(raw), raw.hex().encode(), secret.encode("utf-16-le")]


@pytest.mark.slow
def test_a_key_is_in_no_log_store_report_or_traceback(expert: Callable[..., str], tmp_path: Path) -> None:
    out, data = tmp_path / "out", tmp_path / "d.jsonl"
    out.mkdir()
    with data.open("w") as f:
        for i in range(4):
            turns = [{"speaker": "AB"[k % 2], "text": f"Line {k} of {i}.", "emotion": "joy"}
                     for k in range(4)]  # fmt: skip
            f.write(json.dumps({"id": f"c{i}", "split": "test", "turns": turns}) + "\n")
    good, flaky = expert(key=KEY), expert(key=KEY, faults=0.5, hang=1.2)
    said = []

    def call(key: str, *arguments: str, crash: bool = False) -> int:
        command = [sys.executable, "-m", "selfemo.cli", *arguments]
        if crash:  # a bug of ours, in the middle: a traceback with the locals' reprs of every frame
            command = [sys.executable, "-X", "dev", "-c", CRASH, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path,
            env={**os.environ, "CANARY": key, "OPENAI_LOG": "debug", "COLUMNS": "300"},
        )  # fmt: skip
        said.append(done.stdout + done.stderr)
        return done.returncode

    def named(url: str) -> str:
        return f"e={url},model=planted,key=CANARY,timeout=1,attempts=9"

    extract = ["personas", "extract", f"jsonl:{data}", "--split", "test", "--expert", named(flaky)]
    evaluate = ["evaluate", named(good), "--data", str(data)]
    assert call(KEY, *extract, "--out", str(out / "personas")) == 0, said[-1]
    assert call(KEY, *evaluate, "--out", str(out / "evaluation"), "--json") == 0, said[-1]
    for wrong in ([*evaluate, "--out", str(out / "e2")], [*extract, "--out", str(out / "p2")]):
        assert call(WRONG, *wrong) == 1
        assert "CANARY" in said[-1], "the message names the variable"
    assert call(KEY, *evaluate, "--out", str(out / "e3"), crash=True) == 1
    assert "Traceback" in said[-1] and "planted bug" in said[-1]
    assert any("openai" in s for s in said), "the client's own debug log was on"
    written = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert len(written) > 8
    for secret in (KEY, WRONG):
        for form in forms(secret):
            assert not [p for p, content in written.items() if form in content]
            assert not [s for s in said if form.decode("latin-1") in s]


CRASH = """
import sys, traceback, selfemo.evaluation.predictions as e
def broken(*a, **k): raise RuntimeError("planted bug")
e.keep = broken
sys.argv = ["selfemo", *sys.argv[1:]]
from selfemo.cli import run
try:
    run()
except BaseException as error:
    print("".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()))
    raise SystemExit(1)
"""
