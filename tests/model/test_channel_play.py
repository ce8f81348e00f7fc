"""Self-play with an S that is given, and with a teacher that reads replies, in runs of a tiny model."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from selfemo.config import GrpoConfig, LoraConfig, ModelConfig
from selfemo.method.types import Completion, EmotionDistribution
from selfemo.models.generation.local import LocalSampler
from selfemo.models.loading import load_policy
from selfemo.runs.folder import RunFolder
from selfemo.runs.inputs import load_conversations
from selfemo.seeds import derive
from selfemo.stages.channel import e_x_channel, read_pairs
from selfemo.stages.completions import balanced_emotions
from selfemo.stages.selfplay import next_prompt, persona_book
from selfemo.training.local import LocalTrainer
from selfemo.training.protocol import RlItem, RlSpan
from tests.conftest import MELD
from tests.support.runs import Silent, Watcher, assert_same_run, begun, evolve, settings

STAGE = "iteration-1-rl"
CAUSAL = (
    "grpo.credit=causal", "grpo.mini_batch=6", "grpo.lr=1e-3", "save.every_steps=1", "flywheel.iterations=1",
    "model.threads=1",
)  # fmt: skip


def rows(run: Path, query: str, *args: Any) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(run / "store.sqlite")) as db:
        db.row_factory = sqlite3.Row
        return db.execute(query, args).fetchall()


def whole_and_resumed(finished: Path, tmp_path: Path, config: Any) -> RunFolder:
    """A whole run from the beginning of RL; one that is stopped after its second round ends as it did."""
    watcher = Watcher()
    whole = evolve(begun(finished, STAGE, tmp_path / "whole", config), None, watcher)
    (tmp_path / "said.txt").write_text("\n".join(watcher.said))
    stopped, n = begun(finished, STAGE, tmp_path / "stopped", config), 0

    def stop_in_rl(stage: str, note: str) -> None:
        nonlocal n
        n += stage == STAGE and bool(note)
        if n == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(stopped, None, Watcher(on_advance=stop_in_rl))
    evolve(stopped, None, Silent()).close()
    assert_same_run(stopped, tmp_path / "whole")
    return whole


@pytest.mark.slow
def test_a_run_is_given_its_self_emotions(
    finished: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    config = settings(tiny_model, data, *CAUSAL, "selfplay.self_emotion=balanced")
    with whole_and_resumed(finished, tmp_path, config):
        pass
    run, kept = tmp_path / "whole", Counter[str]()
    for step in range(3):
        best = rows(
            run, "SELECT * FROM rollouts WHERE stage = ? AND step = ? AND best = 1 ORDER BY id", STAGE, step
        )
        begun_ = [r for r in best if "\nS: " in r["text"]]
        assert len(begun_) > 2
        given = balanced_emotions([MELD] * len(begun_), derive(config.seed, STAGE, step))
        assert len(set(given)) == len(given), "at most six of seven"
        for r, label in zip(begun_, given, strict=True):
            assert r["text"].split("\n")[1:][0] == f"S: {label}" and r["text"].split("\n")[2].startswith("R:")
            if r["gate"] != "unparsed":
                assert json.loads(r["self_emotion"]) == {label: 1.0}
                kept[label] += 1
            assert r["mean_logprob"] < 0 < r["entropy"], "those of the sampled tokens"
    assert len(kept) > 3
    following = rows(run, "SELECT p.target, r.self_emotion FROM prompts p JOIN rollouts r "
                          "ON r.prompt = p.parent AND r.best = 1 WHERE p.stage = ?", STAGE)  # fmt: skip
    assert following and all(r["target"] == r["self_emotion"] for r in following)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("gate.channel=top", "grpo.kl_coef=0"),
        ("gate.channel=0.2", "selfplay.targets=channel", "selfplay.self_emotion=balanced", "seed=3"),
    ],
)
def test_a_run_reads_its_replies_by_its_frozen_start(
    finished: Path, tiny_model: Path, data: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    config = settings(tiny_model, data, *CAUSAL, *more)
    with whole_and_resumed(finished, tmp_path, config) as run:
        info = json.loads(run.store.stage(STAGE)["info"])
        refused, passed = info.get("channel_disagrees", 0), info.get("pass", 0)
        assert refused > 0 and passed > 0
        teacher = LocalSampler(load_policy(str(run.checkpoint("cold-start")), "cpu"))
        best = [
            r
            for step in range(3)
            for r in rows(
                run.path,
                "SELECT * FROM rollouts WHERE stage = ? AND step = ? AND best = 1 "
                "AND gate IN ('pass', 'channel_disagrees') ORDER BY id",
                STAGE,
                step,
            )
        ]
        assert len(best) == refused + passed
        personas = persona_book([c for c in load_conversations(config.data) if c.split == "train"])
        pairs = []
        for r in best:
            prompt = run.store.prompt(r["prompt"])
            declared = EmotionDistribution(json.loads(r["self_emotion"]))
            said = Completion(EmotionDistribution(json.loads(r["emotion"])), declared, r["reply"])
            pairs.append((prompt, next_prompt(prompt, said, personas, 1, f"{STAGE}.{r['step']}")))
        targets = {r["id"]: json.loads(r["target"]) for r in rows(run.path, "SELECT * FROM prompts")}
        heard_targets = other_top = 0
        for r, (prompt, following), scored in zip(
            best, pairs, read_pairs(teacher, pairs, config.prompt), strict=True
        ):
            assert scored is not None and following.target is not None
            heard, top = e_x_channel(MELD, scored), following.target.top(MELD)
            agrees = heard.top(MELD) == top if "gate.channel=top" in more else heard.weight(top) >= 0.2
            assert (r["gate"] == "pass") == agrees
            if r["gate"] == "pass" and prompt.lineage.turn + 1 < config.selfplay.max_turns:
                target = heard if "selfplay.targets=channel" in more else following.target
                if targets[following.id] == pytest.approx(dict(target), abs=1e-4):
                    heard_targets += 1
                    other_top += heard.top(MELD) != top
        if "selfplay.targets=channel" in more:
            # One original that is drawn twice into a round has one next prompt.
            assert heard_targets >= info["targets_heard"] > 0 == info["targets_unheard"]
            assert info["targets_other_top"] <= other_top
        assert any("replies that were read" in line for line in said_in(tmp_path))


def said_in(folder: Path) -> list[str]:
    return (folder / "said.txt").read_text().splitlines()


@pytest.mark.parametrize("lora", [False, True])
def test_the_teacher_is_the_start_of_the_stage_whatever_was_trained_since(
    tiny_model: Path, tmp_path: Path, lora: bool
) -> None:
    """With a KL term, without one, and under adapters; also in another process that resumes."""
    place = ("c", list(range(5, 25)), "E:")
    channel = ("c", list(range(5, 25)), "E: joy\nS:", "Who is there?")
    start = LocalSampler(load_policy(str(tiny_model), "cpu"))
    wanted = start.label_probabilities([place], MELD), start.channel_scores([channel], MELD)
    model = ModelConfig(
        id=str(tiny_model), device="cpu", dtype="fp32", lora=LoraConfig(rank=2) if lora else None
    )
    items = [RlItem(list(range(5, 25)), [30 + k, 31], 1.0 - 2 * k, "p", "c") for k in range(2)]
    for kl in (0.1, 0.0):
        grpo = GrpoConfig(kl_coef=kl, lr=0.05)
        states = tmp_path / f"{kl}"

        def begun_trainer(grpo: GrpoConfig = grpo, states: Path = states) -> LocalTrainer:
            trainer = LocalTrainer(model, 1.0, lambda stage: states)
            trainer.begin_rl("s", str(tiny_model), grpo, [], RlSpan())
            return trainer

        trainer = begun_trainer()
        for _ in range(3):
            trainer.update(0, [items], grpo, [0.05])
        trainer.save_state(1, lambda done: None)
        again = begun_trainer()
        assert again.resume(1, print) == 1
        for t in (trainer, again):
            present = t.engine.sampler.label_probabilities([place], MELD)
            teacher = t.teacher()
            found = teacher.label_probabilities([place], MELD), teacher.channel_scores([channel], MELD)
            assert dict(found[0][0]) == pytest.approx(dict(wanted[0][0]), abs=1e-6)
            assert found[1][0].reply == pytest.approx(wanted[1][0].reply, abs=1e-4)
            assert dict(present[0]) != pytest.approx(dict(wanted[0][0]), abs=1e-3), "the policy has moved"
            assert t.engine.sampler.label_probabilities([place], MELD) == present, "and is as it was"
