"""`selfemo judge` over real HTTP: two systems and judges behind endpoints, faults, kills, planted judges."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from selfemo.errors import ConfigError, DataError, EndpointError, EngineError, StoreError
from selfemo.evaluation.judge_jobs import judge_models, judge_table
from selfemo.models.generation import endpoint
from selfemo.models.generation.chat import parse_experts
from selfemo.progress import Quiet
from tests.support.experts import write_conversations


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.02)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_conversations(tmp_path / "data.jsonl", 12)


SETTINGS = "timeout=1,attempts=12,concurrency=4"


@pytest.fixture
def systems(expert) -> tuple[str, str]:
    """Two systems whose replies differ by their last word."""
    good, bad = expert(salt="g", reply="gladly"), expert(salt="b", reply="never")
    return f"x={good},model=first-model,{SETTINGS}", f"y={bad},model=second-model,{SETTINGS}"


def judge(systems, judges: list[str], data: Path, out: Path, **more) -> dict:
    specs = parse_experts(judges)
    return judge_models(*systems, [str(data)], specs, out, [], [], Quiet(), **more)


def test_a_judge_that_goes_by_content_finds_the_better_one(expert, systems, data, tmp_path) -> None:
    url = expert(judge="gladly")
    out = tmp_path / "judged"
    found = judge(systems, [f"k={url},model=m,{SETTINGS}"], data, out)
    reply = found["kinds"]["reply"]
    both = reply["pairs"] - reply["unparsed_a"] - reply["unparsed_b"]
    assert reply["wins"] >= both and reply["flips"] == 0 and reply["win_rate"][0] > 0.8
    assert reply["p_value"] < 0.01 and reply["position_bias"] == 0.5
    assert json.loads((out / "judge.json").read_text()) == found
    assert (found["a"], found["b"]) == ("x (first-model)", "y (second-model)")
    frame = pl.read_parquet(out / "judgements.parquet")
    asked = frame.filter(pl.col("kind") == "reply")
    assert set(asked["winner"]) == {"a"} and set(asked["verdict"]) == {"1", "2"}
    assert (asked["shown_a"].str.ends_with("gladly")).all()
    assert frame["persona"].str.starts_with("Seen ").all()
    header, rows = judge_table(found)
    assert len(rows) == 4 and len(rows[0]) == len(header)
    # Nothing that a judge read says who is who.
    store = (out / "store.sqlite").read_bytes()
    assert b"first-model" not in store and b"second-model" not in store


def test_a_planted_position_bias_yields_no_false_winner(expert, systems, data, tmp_path) -> None:
    url = expert(judge="1")
    found = judge(systems, [f"k={url},model=m,{SETTINGS}"], data, tmp_path / "j")
    for kind in found["kinds"].values():
        decided = kind["unparsed_a"] + kind["unparsed_b"]
        assert kind["position_bias"] == 1.0 and kind["wins"] + kind["losses"] <= decided
        assert kind["win_rate"][1] <= 0.5 <= kind["win_rate"][2] and kind["p_value"] > 0.05
    frame = pl.read_parquet(tmp_path / "j" / "judgements.parquet")
    for name, kind in found["kinds"].items():
        assert kind["flips"] == frame.filter(pl.col("kind") == name)["prompt"].n_unique() > 0


def test_two_judges_agree_or_not(expert, systems, data, tmp_path) -> None:
    same, other = expert(judge="gladly"), expert(judge="never")
    judges = [f"k={same},model=m1,{SETTINGS}", f"l={other},model=m2,{SETTINGS}"]
    found = judge(systems, judges, data, tmp_path / "j")
    reply = found["kinds"]["reply"]
    assert reply["alpha"] < 0 and reply["by_judge"]["k"]["wins"] > reply["by_judge"]["l"]["wins"]
    assert set(found["judges"]) == {"k", "l"}


def test_faults_change_nothing_and_nothing_is_asked_twice(expert, systems, data, tmp_path) -> None:
    clean = judge(systems, [f"k={expert()},model=m,{SETTINGS}"], data, tmp_path / "clean")
    log = tmp_path / "log"
    url = expert(faults=0.4, hang=1.2, log=log)
    judges = [f"k={url},model=m,{SETTINGS}"]
    found = judge(systems, judges, data, tmp_path / "faulty", rounds=6)
    assert found["kinds"] == clean["kinds"]
    calls = log.read_text().splitlines()
    again = judge(systems, judges, data, tmp_path / "faulty", rounds=6)
    assert again["kinds"] == clean["kinds"] and again["judges"]["k"]["calls"] == 0
    assert log.read_text().splitlines() == calls
    frames = [pl.read_parquet(tmp_path / n / "judgements.parquet") for n in ("clean", "faulty")]
    assert frames[0].equals(frames[1])


def test_the_plan_and_the_limit(expert, systems, data, tmp_path) -> None:
    url = expert()
    judges = [f"k={url},model=m,{SETTINGS}"]
    plan = judge(systems, judges, data, tmp_path / "j", dry_run=True)
    assert plan["pairs"] == 48 and plan["calls"] == 4 * 48 and not (tmp_path / "j").exists()
    found = judge(systems, judges, data, tmp_path / "j", limit=10)
    assert found["prompts"] == 10 and found["judges"]["k"]["calls"] <= 40


def test_kill_and_go_on(expert, systems, data, tmp_path) -> None:
    log = tmp_path / "log"
    url = expert(latency=0.05, log=log)
    out = tmp_path / "j"
    command = [
        sys.executable, "-m", "selfemo.cli", "judge", *systems, "--data", str(data), "--split", "test",
        "--conversations", "0", "--prompts", "0", "--out", str(out),
        "--judge", f"k={url},model=m,{SETTINGS}", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not log.exists() or len(log.read_text().splitlines()) < 20:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    asked = Counter(log.read_text().splitlines())
    # Those under way at the kill (at most 4) were answered and not kept.
    assert sum(n - 1 for n in asked.values()) <= 4
    assert found["kinds"]["reply"]["unanswered"] == 0


def test_what_cannot_be_judged(expert, systems, data, tmp_path) -> None:
    url = expert()
    good = f"k={url},model=m,{SETTINGS}"
    with pytest.raises(ConfigError, match="no judge"):
        judge(systems, [], data, tmp_path / "j")
    with pytest.raises(ConfigError, match="two experts have this name"):
        judge(systems, [good, good], data, tmp_path / "j")
    with pytest.raises(EndpointError):
        judge(systems, ["k=http://127.0.0.1:9/v1,model=m,attempts=1,timeout=1"], data, tmp_path / "j")
    with pytest.raises(StoreError, match="another model"):
        judge(systems[::-1], [good], data, tmp_path / "j")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("")
    with pytest.raises(EngineError, match="has no checkpoint 'last'; there are: start"):
        judge((f"{run}@last", systems[1]), [good], data, tmp_path / "k")
    talker = expert(only="prose", times=10**6)
    with pytest.raises(DataError, match="no prompt was answered by both"):
        judge((systems[0], f"z={talker},model=t,{SETTINGS}"), [good], data, tmp_path / "l")
