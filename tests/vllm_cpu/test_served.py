"""A vLLM server by token ids: the same scores as the model here, and what happens when it is not there."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from selfemo.errors import EndpointError, EngineError, UnsupportedError
from selfemo.models.generation import open_sampler
from selfemo.models.generation.local import LocalSampler
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.loading import load_policy
from selfemo.serve.selfemo import SelfEmo
from tests.conftest import MELD
from tests.vllm_cpu.conftest import asked

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
CONTEXT = 640


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def server(model: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    own = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [
        str(Path(sys.executable).with_name("vllm")), "serve", str(model), "--served-model-name", "tiny",
        "--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT), "--host", "127.0.0.1",
        "--port", str(port), "--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048",
    ]  # fmt: skip
    with subprocess.Popen(command, env={**os.environ, **own}, start_new_session=True) as process:
        try:
            for _ in range(600):
                assert process.poll() is None, "the server died"
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
                time.sleep(0.5)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def url(untied: Path, port: int) -> Iterator[str]:
    with server(untied, port):
        yield f"http://127.0.0.1:{port}/v1"


def named(url: str, tokenizer: Path | str, model: str = "tiny", more: str = "") -> str:
    return f"served={url},model={model},tokenizer={tokenizer},attempts=2{more}"


def test_it_gives_what_the_model_here_gives(url: str, untied: Path) -> None:
    policy = load_policy(str(untied), "cpu", "fp32")
    sampler, local = open_sampler(named(url, untied)), LocalSampler(policy)
    requests = asked(policy)
    greedy = SamplingSettings(12, 0.0)
    mine, theirs = sampler.generate(requests, greedy), local.generate(requests, greedy)
    assert [[c.token_ids for c in g] for g in mine] == [[c.token_ids for c in g] for g in theirs]
    assert mine[0][0].logprobs == pytest.approx(theirs[0][0].logprobs, abs=1e-3)
    for group in sampler.generate(requests, SamplingSettings(12, max_lines=2)):
        assert len(group) == 3
        for c in group:
            assert int(policy.line_ends[list(c.token_ids[:-1])].sum()) < 2
    places = [(k, r.prompt_ids, "E:") for k, r in enumerate(requests)]
    for a, b in zip(
        sampler.label_probabilities(places, MELD), local.label_probabilities(places, MELD), strict=True
    ):
        assert a.vector(MELD) == pytest.approx(b.vector(MELD), abs=1e-3)
    channel = [(k, r.prompt_ids, "E: joy\nS:", "So what?") for k, r in enumerate(requests)]
    for c, d in zip(sampler.channel_scores(channel, MELD), local.channel_scores(channel, MELD), strict=True):
        assert c.prior + c.reply == pytest.approx(d.prior + d.reply, abs=1e-2)


def test_emotions_are_read_as_by_the_model_here(url: str, untied: Path) -> None:
    talk = [("Ann", "Hooray, we won it!"), ("Bo", "And nobody told me?")]
    there, here = SelfEmo(named(url, untied)), SelfEmo(str(untied), overrides=["model.dtype=fp32"])
    for a, b in zip(there.recognise(talk), here.recognise(talk), strict=True):
        assert a.emotion == b.emotion and a.confidence == pytest.approx(b.confidence, abs=1e-3)
    there.close()


def test_what_it_cannot_do_is_refused(url: str, untied: Path, tied: Path) -> None:
    policy, settings = load_policy(str(untied), "cpu", "fp32"), SamplingSettings(8)
    sampler = open_sampler(named(url, untied))
    with pytest.raises(EngineError, match=f"{CONTEXT} tokens leaves no room in vLLM's context of {CONTEXT}"):
        sampler.generate([Request([5] * CONTEXT)], settings)
    with pytest.raises(UnsupportedError, match="cannot be held to constraints"):
        sampler.generate(asked(policy), SamplingSettings(8, no_repeat_ngram=2))
    with pytest.raises(UnsupportedError, match="cannot load weights"):
        sampler.load(str(tied))
    with pytest.raises(EndpointError, match="it serves no 'other', but tiny; mend model="):
        open_sampler(named(url, untied, "other")).generate(asked(policy), settings)
    with pytest.raises(EndpointError, match="another tokenizer than builtin:smollm2-135m"):
        open_sampler(named(url, "builtin:smollm2-135m")).generate(asked(policy), settings)
    with pytest.raises(EngineError, match="no-such-model"):
        open_sampler(named(url, "/no-such-model"))


def predicted(out: Path) -> int:
    with suppress(sqlite3.Error), sqlite3.connect(f"file:{out}/store.sqlite?mode=ro", uri=True) as store:
        return int(store.execute("SELECT count(*) FROM predictions").fetchone()[0])
    return 0


def test_a_server_that_dies_ends_the_evaluation_which_then_goes_on(untied: Path, tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "out"
    model = named(f"http://127.0.0.1:{port}/v1", untied, more=",concurrency=2")
    command = [
        sys.executable, "-m", "selfemo.cli", "evaluate", model, "--data", "sample", "--split", "dev", "--out",
        str(out), "--set", "evaluation.max_new_tokens=8", "--set", "evaluation.resamples=50", "--set",
        "prompt.max_tokens=400",
    ]  # fmt: skip
    with server(untied, port) as process:
        evaluation = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while predicted(out) == 0:
            assert evaluation.poll() is None
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
        _, said = evaluation.communicate(timeout=120)
    assert evaluation.returncode == 1 and "Traceback" not in said
    assert "vLLM server served at" in said and "run the same command again" in said
    before = predicted(out)
    assert before > 0
    with server(untied, port):
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert predicted(out) > before
