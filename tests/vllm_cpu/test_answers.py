"""`--backend vllm`: the commands that ask a model give by vLLM what they give by this package."""

from __future__ import annotations

import csv
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from selfemo.cli.main import app
from selfemo.config import ModelConfig
from selfemo.models.generation import vllm_here
from selfemo.models.generation.vllm import VllmSampler
from selfemo.serve.selfemo import SelfEmo
from tests.support.server import running

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
TALK = [("Ann", "Did you hear that noise?"), ("Bo", "It was only the cat, I promise.")]


@pytest.fixture(scope="module")
def models(taught: Path) -> tuple[SelfEmo, SelfEmo]:
    own = ["model.dtype=fp32", "model.device=cpu"]
    by_vllm = SelfEmo(str(taught), overrides=[*own, 'model.backend="vllm"'])
    return SelfEmo(str(taught), overrides=own), by_vllm


def test_emotions_and_answers_are_the_same(models: tuple[SelfEmo, SelfEmo]) -> None:
    here, there = models
    assert there.policy is None
    for a, b in zip(here.recognise(TALK), there.recognise(TALK), strict=True):
        assert a.emotion == b.emotion and a.confidence == pytest.approx(b.confidence, abs=1e-3)
    a, b = (m.respond(TALK, persona="Dry and loyal.") for m in models)
    assert a.text == b.text and a.reply and a.failure is b.failure is None
    assert a.felt.confidence == pytest.approx(b.felt.confidence, abs=1e-3)
    events = list(there.stream(TALK, persona="Dry and loyal."))
    assert "".join(e.text for e in events if e.kind == "reply") == b.reply


def test_several_replies_stand_behind_one_self_emotion(models: tuple[SelfEmo, SelfEmo]) -> None:
    answer = models[1].respond(TALK, persona="Dry and loyal.", best_of=3)
    assert answer.reply and answer.expressed is not None


def test_a_server_answers_by_vllm(models: tuple[SelfEmo, SelfEmo]) -> None:
    body = {"turns": [{"speaker": s, "text": t} for s, t in TALK]}
    with running(models[1]) as url:
        asked = urllib.request.Request(
            f"{url}/v1/emotions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            told: dict[str, Any] = json.load(answer)
    wanted = [r.emotion for r in models[0].recognise(TALK)]
    assert [t["emotion"] for t in told["emotions"]] == wanted


def test_evaluate_and_predict_take_the_backend(
    taught: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option opens vLLM, and scores and labels are those of the local backend."""
    opened, open_here = [], vllm_here.open_here

    def counted(reference: str, config: ModelConfig) -> VllmSampler:
        opened.append(reference)
        return open_here(reference, config)

    monkeypatch.setattr(vllm_here, "open_here", counted)
    scores, labels = {}, {}
    talk = tmp_path / "talk.csv"
    talk.write_text("speaker,text\n" + "".join(f'{s},"{t}"\n' for s, t in TALK))
    for backend in ("local", "vllm"):
        out = tmp_path / backend
        app(
            ["predict", str(talk), "--out", f"{out}.csv", "--model", str(taught), "--backend", backend,
             "--set", "model.dtype=fp32"],
            standalone_mode=False,
        )  # fmt: skip
        rows = list(csv.DictReader((tmp_path / f"{backend}.csv").open()))
        labels[backend] = [r["emotion"] for r in rows]
        app(
            ["evaluate", str(taught), "--data", str(data), "--out", str(out), "--backend", backend, "--set",
             "model.dtype=fp32", "--set", "evaluation.resamples=50", "--set", "evaluation.max_new_tokens=40"],
            standalone_mode=False,
        )  # fmt: skip
        (scores[backend],) = json.loads((out / "scores.json").read_text())["scores"].values()
    assert len(opened) == 2, "one for each command"
    assert labels["local"] == labels["vllm"] and len(labels["vllm"]) == 2
    assert scores["local"]["accuracy"] == scores["vllm"]["accuracy"]
    assert scores["local"]["parse_rate"] == scores["vllm"]["parse_rate"]
