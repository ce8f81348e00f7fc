"""Replies that a listener rewards, in runs of a tiny model, and readers of replies that are real models."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfemo.config import GrpoConfig, ModelConfig, PromptConfig
from selfemo.errors import ConfigError, DataError, EngineError
from selfemo.files import write_json
from selfemo.method.expression import bounded, information_gain
from selfemo.method.types import LABEL_SETS, Conversation, EmotionDistribution, LabelSet, Utterance
from selfemo.models.classifiers.reader import TurnReader
from selfemo.models.generation.chat import Answer, UnansweredError, parse_expert
from selfemo.models.generation.endpoint import EndpointSampler
from selfemo.models.generation.local import LocalSampler
from selfemo.models.loading import load_policy
from selfemo.models.references import READER_FILE, SCORES_FILE
from selfemo.models.reply_readers import EncoderReader, SamplerReader, open_reply_reader, reader_of
from selfemo.runs import doctor
from selfemo.runs.preflight import check_start
from selfemo.runs.store import read_distribution
from selfemo.training.engine import LocalEngine
from selfemo.training.protocol import RlItem
from tests.conftest import MELD, Built, dist, make_prompt
from tests.support.encoders import SHARES, build_encoder, kept
from tests.support.runs import Silent, Watcher, assert_same_run, begun, evolve, settings

STAGE = "iteration-1-rl"
ON = (
    "grpo.credit=causal", "grpo.mini_batch=6", "grpo.lr=1e-3", "save.every_steps=1", "flywheel.iterations=1",
    "model.threads=1", "reward.expression=listener", "reward.replies=3", "grpo.self_anchor=0.5",
    "reward.length_weight=0.5",
)  # fmt: skip
UNSEEN = LabelSet(*(getattr(MELD, f) for f in ("name", "labels", "unscored")))


@pytest.fixture(scope="session")
def base(built_once: Built) -> Path:
    return built_once("encoder-bert", build_encoder)


def replies_of(run: Path) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(run / "store.sqlite")) as db:
        db.row_factory = sqlite3.Row
        return db.execute("SELECT * FROM replies ORDER BY id").fetchall()


def evolved(finished: Path, where: Path, config: Any) -> Path:
    with evolve(begun(finished, STAGE, where, config), None, Watcher()) as run:
        return Path(run.path)


@pytest.mark.slow
def test_a_run_rewards_its_replies_by_its_frozen_start(
    finished: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    config = settings(tiny_model, data, *ON, "grpo.kl_coef=0")
    whole = evolved(finished, tmp_path / "whole", config)
    stopped, n = begun(finished, STAGE, tmp_path / "stopped", config), 0

    def stop_in_rl(stage: str, note: str) -> None:
        nonlocal n
        n += stage == STAGE and bool(note)
        if n == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(stopped, None, Watcher(on_advance=stop_in_rl))
    evolve(stopped, None, Silent()).close()
    assert_same_run(stopped, whole)

    rows = replies_of(whole)
    by_group: dict[tuple[int, str], list[sqlite3.Row]] = {}
    for r in rows:
        by_group.setdefault((r["step"], r["prompt"]), []).append(r)
    assert len(rows) > 9 and all(len(g) % 3 == 0 for g in by_group.values())
    earned = [r for r in rows if r["r3"] is not None]
    assert len({r["r3"] for r in earned}) > 3 and all(r["fault"] == "" for r in earned)
    # The listener is the policy of the stage's start, whatever the policy has become.
    teacher = LocalSampler(load_policy(str(whole / "checkpoints" / "cold-start"), "cpu"))
    listener = SamplerReader(teacher, config.prompt)
    with evolve(whole, None, Silent()) as run:
        said = [(run.store.prompt(r["prompt"]), r["text"]) for r in earned]
    heard, before = listener.read(said), listener.expect([p for p, _ in said])
    for r, q, expected in zip(earned, heard, before, strict=True):
        s, stored = read_distribution(r["self_emotion"]), read_distribution(r["heard"])
        assert s is not None and q is not None and expected is not None and stored is not None
        assert dict(stored) == pytest.approx(dict(q), abs=1e-4)
        assert r["r3"] == pytest.approx(bounded(information_gain(s, q, expected, MELD)), abs=1e-3)
    with closing(sqlite3.connect(whole / "store.sqlite")) as db:
        records = [
            json.loads(r) for (r,) in db.execute("SELECT record FROM metrics WHERE stage = ?", [STAGE])
        ]
    assert sum(r.get("replies", 0) for r in records) == len(rows)
    for r in (r for r in records if r.get("replies")):
        refused = sum(r["replies_refused"].values())
        assert r["replies"] - refused > 0 and r["expression"] is not None and r["reply_tokens"] > 0


@pytest.mark.slow
def test_an_encoder_listens_and_another_one_watches(
    finished: Path, tiny_model: Path, data: Path, base: Path, tmp_path: Path
) -> None:
    listener, judge = kept(tmp_path / "a", base), kept(tmp_path / "b", base, window=0, pooling="mean")
    config = settings(
        tiny_model, data, *ON, f'reward.listener="{listener}"', f'reward.reader="{judge}"',
        "selfplay.self_emotion=balanced",
    )  # fmt: skip
    run = evolved(finished, tmp_path / "run", config)
    rows = [r for r in replies_of(run) if r["r3"] is not None]
    assert len(rows) > 9 and len({json.loads(r["self_emotion"]).popitem()[0] for r in rows}) > 3
    assert all(r["judged"] is not None for r in rows) and any(r["judged"] != r["r3"] for r in rows)


def test_replies_have_a_token_mean_of_their_own(tiny_model: Path) -> None:
    """The gradient of E lines and replies together is that of both by themselves, whatever their lengths."""
    engine = LocalEngine(ModelConfig(id=str(tiny_model), device="cpu", dtype="fp32"))
    config = GrpoConfig(kl_coef=0.0, lr=1e-3)
    prompt, e, s = [5, 6, 7, 8], [9, 10, 11], [12, 13]
    lines = [RlItem(prompt, e, 1.0, "p", "c"), RlItem(prompt, [9, 14], -1.0, "p", "c")]
    said = [
        RlItem([*prompt, *e, *s], list(range(20, 20 + n)), a, "p", "c", reply=True)
        for n, a in ((12, 0.5), (9, -0.75), (15, 0.25))
    ]

    def gradient(items: list[RlItem], old: Any = None) -> tuple[torch.Tensor, dict[str, float]]:
        engine.begin_stage(config)
        found = engine.rl_backward(items, config, old)
        grads = torch.cat([p.grad.flatten() for p in engine.policy.model.parameters() if p.grad is not None])
        engine.end_stage()
        return grads, found

    (both, of_both), (first, of_lines), (second, of_said) = map(gradient, (lines + said, lines, said))
    assert first.norm() > 0.01 and second.norm() > 0.01
    torch.testing.assert_close(both, first + second, atol=1e-6, rtol=1e-4)
    assert of_both["loss"] == pytest.approx(of_lines["loss"] + of_said["loss"], abs=1e-6)
    assert of_both["tokens"] == 5 + 36
    # The same by what the sampling policy gave them, as where a round has several mini-batches.
    old = engine.logprobs(engine.policy, lines + said, config.micro_tokens)
    torch.testing.assert_close(gradient(lines + said, old)[0], both, atol=1e-6, rtol=1e-4)


def test_what_was_sampled_behind_another_s_weighs_no_more_than_its_likelihood(tiny_model: Path) -> None:
    """The gradient of an item that was sampled elsewhere, by hand: A w d log p, w = min(1, p / p_sampled)."""
    engine = LocalEngine(ModelConfig(id=str(tiny_model), device="cpu", dtype="fp32"))
    config = GrpoConfig(kl_coef=0.0, lr=1e-3)
    item = RlItem([5, 6, 7], [20, 21, 22, 23], 0.5, "p", "c", reply=True)
    (logp,) = engine.logprobs(engine.policy, [item], config.micro_tokens)
    shift = torch.tensor([-1.0, 0.5, 2.0, 0.0])  # how much likelier each token was where it was sampled
    there = replace(item, sampled=tuple((logp + shift).tolist()), elsewhere=True)

    def gradient(items: list[RlItem], **settings: float) -> tuple[torch.Tensor, dict[str, float]]:
        engine.begin_stage(config)
        found = engine.rl_backward(items, config.model_copy(update=settings))
        grads = torch.cat([p.grad.flatten() for p in engine.policy.model.parameters() if p.grad is not None])
        engine.end_stage()
        return grads, found

    # One token after another, each with the weight that it has.
    parts = []
    for k, weight in enumerate(torch.exp(-shift).clamp(max=1.0).tolist()):
        alone = replace(item, prompt_ids=[5, 6, 7, *item.completion_ids[:k]],
                        completion_ids=item.completion_ids[k : k + 1], advantage=0.5 * weight)  # fmt: skip
        parts.append(gradient([alone])[0])
    found, measures = gradient([there])
    torch.testing.assert_close(found, sum(parts) / 4, atol=1e-6, rtol=1e-4)
    assert "mismatch" not in measures, "the sampler is not to blame for it"
    plain = replace(there, elsewhere=False)
    assert gradient([plain])[1]["mismatch"] == pytest.approx(3.5 / 4, abs=1e-3)
    # Beside an item of the policy's own, which a cap of importance leaves at its own weight.
    own = replace(item, completion_ids=[30, 31, 32, 33], sampled=None)
    both, first = gradient([own, there], importance_cap=2.0)[0], gradient([own])[0]
    torch.testing.assert_close(both, (first + found) / 2, atol=1e-6, rtol=1e-4)


def test_an_endpoint_writes_what_it_hears_and_refusals_are_none() -> None:
    asked: list[str] = []

    class Server(EndpointSampler):
        def answers(self, questions: Any, *_: Any, **__: Any) -> list[Any]:
            asked.extend(q.messages[-1]["content"] for q in questions)
            told = ["E: joy 7, fear 3\nS: anger\nR: Hm.", UnansweredError("refused", "HTTP 400"), "I cannot"]
            return [Answer(t) if isinstance(t, str) else t for t in told][: len(questions)]

    reader = reader_of(Server(parse_expert("x=http://127.0.0.1:9/v1,model=y")), PromptConfig())
    prompt = make_prompt()
    found = reader.read([(prompt, "Hooray!"), (prompt, "No."), (prompt, "Well.")])
    assert found == [dist(joy=7, fear=3), None, None]
    assert f"{prompt.answerer}: Hooray!" in asked[0]
    assert reader.expect([prompt]) == [dist(anger=1)]
    assert "Hooray" not in asked[-1]


def test_an_encoder_reads_the_last_turn_alone(base: Path, tmp_path: Path) -> None:
    for name, layout in (("rows", "utterance"), ("packed", "conversation")):
        reader = TurnReader.load(kept(tmp_path / name, base, layout=layout))
        opened = open_reply_reader(
            str(tmp_path / name), ModelConfig(device="cpu", dtype="fp32"), PromptConfig()
        )
        assert isinstance(opened, EncoderReader)
        prompt = make_prompt()
        said = [(prompt, "Yes, hooray."), (prompt, "No!"), (prompt, "Yes, hooray.")]
        found = opened.read(said)
        assert found[0] == found[2] != found[1]
        turns = (*prompt.history, Utterance(prompt.answerer, "No!"))
        (whole,) = reader.read([Conversation("c", "toy", "dev", turns, MELD)])
        assert found[1] is not None
        np.testing.assert_allclose(
            found[1].vector(MELD), whole[-1], atol=1e-6 if reader.dtype == "fp32" else 1e-3
        )
        (expected,) = opened.expect([prompt])
        assert expected is not None and expected.vector(MELD) == pytest.approx(SHARES)


def test_a_model_tells_what_it_hears_and_what_it_expected(tiny_model: Path) -> None:
    reader = open_reply_reader(str(tiny_model), ModelConfig(device="cpu"), PromptConfig(max_tokens=300))
    long = "word " * 400
    prompts = [make_prompt("a/1"), make_prompt("b/1", history=(Utterance("Ann", long),))]
    assert reader.read([(prompts[0], long)]) == [None], "too long to be read"
    (heard, _), (other, _) = (reader.read([(p, r) for p in prompts]) for r in ("Hi.", "Stop it!"))
    expected, none = reader.expect(prompts)
    assert none is None and isinstance(heard, EmotionDistribution) and heard != other
    assert expected is not None and sum(expected.values()) == pytest.approx(1)
    with pytest.raises(ConfigError, match="this model reasons first"):
        open_reply_reader(str(tiny_model), ModelConfig(device="cpu"), PromptConfig(reasoning="brief"))


@pytest.mark.parametrize(
    ("key", "labels", "shares", "told"),
    [
        ("reward.listener", LABEL_SETS["emorynlp"], True, "reward.listener = .*trained on those of emorynlp"),
        ("reward.reader", LABEL_SETS["emorynlp"], True, "reward.reader = .*trained on those of emorynlp"),
        ("reward.listener", MELD, False, "train it again with `selfemo baseline encoder --keep`"),
        ("reward.listener", UNSEEN, True, "trained on no turn that is disgust or fear,"),
    ],
)
def test_a_reader_that_cannot_listen_is_refused_before_anything_is_made(
    key: str,
    labels: LabelSet,
    shares: bool,
    told: str,
    tiny_model: Path,
    data: Path,
    base: Path,
    tmp_path: Path,
) -> None:
    folder = kept(tmp_path / "kept", base, labels)
    if labels is UNSEEN:
        held = json.loads((folder / READER_FILE).read_text())
        write_json(folder / READER_FILE, held | {"shares": [[0.4, 0.2, 0.2, 0.1, 0.1, 0.0, 0.0]]})
    if not shares:
        held = json.loads((folder / READER_FILE).read_text())
        del held["shares"]
        write_json(folder / READER_FILE, held)
    config = settings(tiny_model, data, *ON, f'{key}="{folder}"')
    with pytest.raises(EngineError, match=told):
        check_start(config, tmp_path / "run")
    for wrong, error, says in (
        ("no-such-model", EngineError, "no-such-model"),
        ("x=http://127.0.0.1:9/v1,modl=y", ConfigError, "modl"),
        ("scripted:no-such-file", DataError, "no-such-file"),
    ):
        with pytest.raises(error, match=says):
            check_start(settings(tiny_model, data, *ON, f'reward.listener="{wrong}"'), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_listener_that_knows_no_more_than_the_label_shares_is_told_of(
    tiny_model: Path, data: Path, base: Path, tmp_path: Path
) -> None:
    folder = kept(tmp_path / "model", base)
    config = settings(tiny_model, data, *ON, f'reward.listener="{folder}"')
    labels = dict.fromkeys(MELD, 0.1)

    def told(verdict: str | None, gold: dict[str, float] = labels) -> list[str]:
        """What is said of a listener with such a verdict in the scores beside it."""
        of = {"scores": {"mine": {"gold_share": gold}, "all": {"gold_share": gold}}}
        against = {"against": {"nll_verdict": verdict}}
        write_json(tmp_path / SCORES_FILE, {**of, "constants": {"mine": against, "all": against}})
        said: list[str] = []
        check_start(config, tmp_path / "run", say=said.append)
        (finding,) = [f for f in doctor.diagnose(config, tmp_path).findings if f.what == "reward.listener"]
        assert finding.state == ("warning" if said else "ok")
        assert not said or "on held-out turns of mine it did not do better" in finding.found
        return said

    for verdict in ("not told apart", "below"):
        (line,) = told(verdict)
        assert line.startswith(
            f"reward.listener = {folder}: on held-out turns of mine it did not do better than"
        )
    assert not told("above") and not told(None), "no probabilities were scored"
    assert not told("below", {"calm": 0.5, "upset": 0.5}), "the run has no data of those labels"
    (tmp_path / SCORES_FILE).write_text("[]")
    said: list[str] = []
    check_start(config, tmp_path / "run", say=said.append)
    assert not said
