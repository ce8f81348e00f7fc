"""The built-in model and the command as the README gives it, at the smallest real budget."""

from __future__ import annotations

import json
import resource
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.data import load
from selfemo.method.parsing import parse
from selfemo.method.prompts import conversation_prompts, format_completion, gold_completion, messages
from selfemo.method.types import Completion

BUILTIN = "builtin:smollm2-135m"


def cpu_seconds() -> float:
    """Of the children that have ended: other work on the machine counts little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_at_once() -> None:
    times = []
    for _ in range(3):
        start = cpu_seconds()
        done = subprocess.run(
            [sys.executable, "-m", "selfemo.cli", "--help"], capture_output=True, text=True, check=True
        )
        times.append(cpu_seconds() - start)
    assert "evolve" in done.stdout
    heavy = "import sys, selfemo.cli; print([m for m in ('torch', 'transformers', 'matplotlib', " \
            "'sklearn', 'pydantic') if m in sys.modules])"  # fmt: skip
    loaded = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]", "no heavy library before it is used"
    assert min(times) < 1.5  # 0.5 s on a quiet machine; benchmarks measure it, this guards it


def test_data_check_of_the_sample_set() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "selfemo.cli", "data", "check", "sample"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "data set: sample" in done.stdout and "train: " in done.stdout


@pytest.fixture(scope="module")
def policy() -> Any:
    from selfemo.models.loading import load_policy

    return load_policy(BUILTIN, "cpu")


@pytest.mark.slow
def test_prompts_are_those_of_every_earlier_version(policy: Any) -> None:
    """To the byte: runs and checkpoints of earlier versions read them. Nothing of the template is mended."""
    from selfemo.models.chat_template import mend, probe
    from selfemo.models.tokenizers import check_text, load_tokenizer

    system, user = (m["content"] for m in messages(probe()))
    ids = policy.encode(messages(probe()))
    assert policy.tokenizer.decode(ids) == (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    )
    digest = "0e41ff4d4cf1ce296dc49ef7d19405e85c8e5d5e38ceba16be6ec2df5667a00c"  # of the version before
    assert sha256(repr(ids).encode()).hexdigest() == digest
    assert policy.end_ids == {policy.end_id} == {policy.tokenizer.eos_token_id} and policy.spare is None
    reader = load_tokenizer(BUILTIN)
    assert mend(reader.tokenizer).notes == () == reader.mended.notes
    start = time.perf_counter()
    assert check_text(reader, policy.core.config.vocab_size) == []
    assert time.perf_counter() - start < 1  # 0.06 s on a quiet machine


@pytest.mark.slow
def test_format_costs_at_most_25_tokens_beyond_its_content(policy: Any) -> None:
    worst = 0
    for c in load("sample").conversations[:40]:
        for i in range(len(c.turns)):
            gold = gold_completion(c, i)
            if gold is None:
                continue
            text = format_completion(gold)
            assert isinstance(parse(text, c.label_set), Completion)
            content = [*gold.emotion, *gold.self_emotion, gold.reply]
            inside = sum(len(policy.encode_completion(" " + t)[0]) - 1 for t in content)
            worst = max(worst, len(policy.encode_completion(text)[0]) - inside)
    assert 0 < worst <= 25


@pytest.mark.slow
def test_builtin_weights_are_checked_and_speak(policy: Any) -> None:
    from selfemo.models.generation.local import LocalGenerator
    from selfemo.models.generation.requests import Request, SamplingSettings

    ids = policy.encode([{"role": "user", "content": "What is the capital of France?"}])
    settings = SamplingSettings(max_new_tokens=24, temperature=0)
    text = LocalGenerator(policy, settings).generate([Request(ids)])[0][0].text
    assert "Paris" in text


@pytest.mark.slow
def test_a_small_real_evolution(tmp_path: Path) -> None:
    """cold start, self-play, refit, evaluation with real weights and the sample set."""
    folder = tmp_path / "run"
    sets = [
        "sft.max_samples=8", "sft.label_samples=4", "sft.epochs=2", "sft.batch_size=2", "sft.lr=4e-4",
        "flywheel.iterations=1", "flywheel.prompts=4", "grpo.prompts_per_step=4", "grpo.mini_batch=4",
        "flywheel.replay=0.1", "data.eval_conversations=1", "evaluation.max_new_tokens=40",
        "selfplay.max_turns=2", "sampling.group_size=4",
    ]  # fmt: skip
    command = [
        sys.executable, "-m", "selfemo.cli", "evolve", "-c", "quickstart",
        "--out", str(folder), *[x for s in sets for x in ("--set", s)],
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = ("cold-start", "iteration-1", "From cold-start to iteration-1: ", "Try next", "selfemo predict")
    for text in said:
        assert text in done.stdout
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [m["loss"] for m in metrics if m["stage"] == "cold-start"]
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])
    entropies = [m["sampling_entropy"] for m in metrics if m["stage"] == "iteration-1-rl"]
    with closing(sqlite3.connect(folder / "store.sqlite")) as db:
        stored = db.execute("SELECT avg(entropy) FROM rollouts GROUP BY step ORDER BY step").fetchall()
    assert entropies == pytest.approx([h for (h,) in stored])
    assert all(0.2 < h < 5 for h in entropies), "log of the vocabulary's size is 10.8"
    out = tmp_path / "predictions.jsonl"
    told = CliRunner().invoke(
        app, ["predict", str(tiny_data(tmp_path)), "--model", str(folder), "--out", str(out)]
    )
    assert told.exit_code == 0, told.output
    assert len(out.read_text().splitlines()) == len(conversation_prompts(sample_one()))


def sample_one():
    return load("sample").conversations[0]


def tiny_data(folder: Path) -> Path:
    c = sample_one()
    path = folder / "one.jsonl"
    turns = [{"speaker": t.speaker, "text": t.text, "emotion": dict(t.emotion)} for t in c.turns]
    path.write_text(json.dumps({"id": c.id, "turns": turns}) + "\n")
    return path
