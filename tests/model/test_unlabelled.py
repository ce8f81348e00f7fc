"""Turns without a gold emotion as prompts of a run: their targets, their teacher, and resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.config import Config, PromptConfig
from selfemo.method.channel import log_weights, product_of_experts
from selfemo.method.types import Conversation, Utterance
from selfemo.models.generation.local import LocalSampler
from selfemo.models.loading import load_policy
from selfemo.runs.inputs import load_conversations
from selfemo.stages.channel import read_turns
from selfemo.stages.unlabelled import unlabelled_prompts
from tests.conftest import MELD, toy_conversations
from tests.support.runs import SHORT, Silent, Watcher, assert_same_run, begun, evolve, settings


def bare(n: int) -> list[Conversation]:
    """Conversations of five turns, of which the third alone has a gold emotion."""
    return [
        replace(c, id=f"own{k}", turns=tuple(replace(t, emotion=t.emotion if i == 2 else None)
                                             for i, t in enumerate(c.turns)))
        for k, c in enumerate(toy_conversations(n))
    ]  # fmt: skip


def test_a_prompt_is_that_of_the_turn_with_e_x_channel_as_its_target(tiny_model: Path) -> None:
    sampler, limit = LocalSampler(load_policy(str(tiny_model), "cpu")), PromptConfig(max_tokens=400)
    (c,) = bare(1)
    long = Utterance("Ann", "word " * 500)
    more = replace(c, id="long", turns=(long, Utterance("Bo", "Yes."), Utterance("Bo", "Well.")))
    done: list[int] = []
    prompts, counts = unlabelled_prompts(sampler, [c, more], limit, "iteration-2-rl", done.append)
    # Turn 0 has nobody before it, turn 2 has gold; of the other one, turn 1 is read behind words too many.
    assert [p.id for p in prompts] == [f"iteration-2-rl/own0/{k}" for k in (1, 3, 4)]
    assert counts == {"prompts": 3, "first_turn": 2, "same_speaker": 1, "too_long": 1}
    assert sum(done) == 4
    readings, _ = read_turns(sampler, [(c, k) for k in (1, 3, 4)], limit)
    for prompt, r in zip(prompts, readings, strict=True):
        assert prompt.history == c.turns[: r.turn + 1] and prompt.lineage.parent is None
        e = log_weights(r.recognised, MELD)
        assert prompt.target == product_of_experts(MELD, e, r.scores.reply)
        assert len(prompt.target) == len(MELD), "soft: each emotion has its share"
    assert prompts[0].answerer == "Ann"


def test_conversations_with_gold_alone_give_nothing(tiny_model: Path) -> None:
    sampler = LocalSampler(load_policy(str(tiny_model), "cpu"))
    assert unlabelled_prompts(sampler, toy_conversations(2), PromptConfig(), "s") == ([], {"prompts": 0})


@pytest.fixture
def with_own(tiny_model: Path, data: Path, tmp_path: Path) -> Config:
    """The settings of the run `short`, with conversations of one's own beside its data."""
    own = tmp_path / "own.jsonl"
    lines = [
        {"id": c.id, "split": "train", "turns": [{"speaker": t.speaker, "text": t.text} for t in c.turns]}
        for c in bare(4)
    ]
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = f"data.sources={json.dumps([str(data), str(own)])}"
    return settings(
        tiny_model, data, *SHORT, sources, "flywheel.unlabelled=channel", "flywheel.prompts=66",
        "grpo.prompts_per_step=33", "grpo.mini_batch=33", "selfplay.synthetic_share=0",
        "sampling.group_size=2",
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_draws_them_from_its_frozen_start_and_goes_on_alike(
    short: Path, with_own: Config, tmp_path: Path
) -> None:
    run = evolve(begun(short, "iteration-1-rl", tmp_path / "whole", with_own), None, Silent())
    info = json.loads(run.store.stage("iteration-1-rl")["info"])
    assert info["unlabelled"] == {"first_turn": 4, "prompts": 16}
    drawn = run.store.rows("SELECT id, target, parent FROM prompts WHERE id LIKE 'iteration-1-rl/%'")
    assert len(drawn) == 16, "all 50 gold prompts and these in 66 draws"
    teacher = LocalSampler(load_policy(str(run.checkpoint("cold-start")), "cpu"))
    training = [c for c in load_conversations(with_own.data) if c.split == "train"]
    known, _ = unlabelled_prompts(teacher, training, with_own.prompt, "iteration-1-rl")
    targets = {p.id: dict(p.target or {}) for p in known}
    for row in drawn:
        assert row["parent"] is None
        assert json.loads(row["target"]) == pytest.approx(targets[row["id"]], abs=1e-5)
    run.close()

    def stop_in_rl(stage: str, note: str) -> None:
        if stage == "iteration-1-rl":
            raise KeyboardInterrupt

    stopped = begun(short, "iteration-1-rl", tmp_path / "stopped", with_own)
    with pytest.raises(KeyboardInterrupt):
        evolve(stopped, None, Watcher(on_advance=stop_in_rl))
    evolve(stopped, None, Silent()).close()
    assert_same_run(stopped, tmp_path / "whole")
