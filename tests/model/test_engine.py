"""The local engine on a tiny real model: packing, sampling, SFT, SELF-GRPO, checkpoints."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfemo.config import GrpoConfig, LoraConfig, ModelConfig, SftConfig
from selfemo.errors import EngineError, NotFiniteError
from selfemo.method.prompts import Fitted, conversation_prompts
from selfemo.models import devices
from selfemo.models.generation.draws import sample_tokens
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.loading import load_policy, pick_dtype
from selfemo.models.packing import PackedRows, pack
from selfemo.models.policy import Attention
from selfemo.models.references import resolve, verify_checkpoint
from selfemo.training.engine import LocalEngine, SftItem
from selfemo.training.protocol import RlItem, epoch_batches, learning_rate, sft_batches
from selfemo.training.token_scores import inputs, score_tokens
from tests.conftest import toy_conversations
from tests.support.engines import (
    assert_same_gradients,
    drawn_items,
    engine,
    gradients,
    plain_logprobs,
    rl_items,
)

# -- packing ---------------------------------------------------------------------------------------


def test_packed_scores_and_gradients_equal_separate_rows(tiny_model: Path, attention: Attention) -> None:
    e = engine(tiny_model, attention)
    items = rl_items(1, 6)
    tree = pack([inputs(i.prompt_ids, i.completion_ids) for i in items])
    assert len(tree) < sum(len(i.prompt_ids) + len(i.completion_ids) for i in items) / 2
    scores = score_tokens(e.policy, [tree], [[i.completion_ids for i in items]])
    (scores.logp * scores.mask).sum().backward()
    packed = gradients(e.policy.core)
    e.policy.core.zero_grad(set_to_none=True)
    for row, item in enumerate(items):
        plain = plain_logprobs(e.policy.core, item)
        assert torch.allclose(scores.logp[row, : len(plain)], plain, atol=2e-5)
        plain.sum().backward()
    assert_same_gradients(packed, gradients(e.policy.core))


def test_a_last_token_is_scored_and_not_computed(tiny_model: Path) -> None:
    # Prompt 1 2 3; completions 4 5 6, 4 5 7 and 4 alone: the inputs are 1 2 3 4 5.
    e = engine(tiny_model)
    items = [RlItem((1, 2, 3), c, 1.0, "p") for c in ((4, 5, 6), (4, 5, 7), (4,))]
    assert e.rl_backward(items, GrpoConfig(kl_coef=0.0))["packed_tokens"] == 5
    tree = pack([inputs(i.prompt_ids, i.completion_ids) for i in items])
    scores = score_tokens(e.policy, [tree], [[i.completion_ids for i in items]])
    for row, item in enumerate(items):
        plain = plain_logprobs(e.policy.core, item)
        assert torch.allclose(scores.logp[row][scores.mask[row]], plain, atol=1e-5)


def test_entropy_is_that_of_the_policy_at_its_temperature(tiny_model: Path) -> None:
    e = engine(tiny_model)
    item = rl_items(1, 1)[0]
    tree = pack([inputs(item.prompt_ids, item.completion_ids)])
    for t in (1.0, 0.7):
        with torch.no_grad():
            scores = score_tokens(e.policy, [tree], [[item.completion_ids]], temperature=t)
            logits = e.policy.core(torch.tensor([tree.tokens.tolist()])).logits[0] / t
        logp = torch.log_softmax(logits, -1)[len(item.prompt_ids) - 1 :]
        assert torch.allclose(scores.entropy[0], -(logp.exp() * logp).sum(-1), atol=1e-5)


@pytest.mark.parametrize("logits", [700, 3000])
def test_logits_in_chunks_are_those_at_once(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, logits: int
) -> None:
    e = engine(tiny_model)
    items = rl_items(1, 4)
    # A completion twice: one predictor has several targets, whose order must come back.
    items = [*items, items[1], items[0]]
    tree = pack([inputs(i.prompt_ids, i.completion_ids) for i in items])
    completions = [[i.completion_ids for i in items]]
    found = []
    for at_most in (1 << 28, logits):
        monkeypatch.setattr("selfemo.training.token_scores.LOGITS", at_most)
        scores = score_tokens(e.policy, [tree], completions, temperature=0.7)
        weights = torch.arange(1.0, scores.logp.numel() + 1).reshape(scores.logp.shape)
        (scores.logp * scores.mask * weights).sum().backward()
        found.append((scores, gradients(e.policy.core)))
        e.policy.core.zero_grad(set_to_none=True)
    (whole, gradient), (chunked, same) = found
    assert torch.allclose(whole.logp, chunked.logp, atol=1e-6)
    assert torch.allclose(whole.entropy, chunked.entropy, atol=1e-5)
    assert_same_gradients(gradient, same)


# -- sampling --------------------------------------------------------------------------------------


def test_greedy_equals_transformers_generate(tiny_model: Path, attention: Attention) -> None:
    e = engine(tiny_model, attention)
    rng = np.random.default_rng(0)
    shared = rng.integers(3, 300, 15).tolist()
    prompts = [shared + rng.integers(3, 300, n).tolist() for n in (3, 9, 1)]
    prompts.append(rng.integers(3, 300, 30).tolist())
    requests = [Request(p, 2, share="s" if k < 3 else None) for k, p in enumerate(prompts)]
    got = e.sampler.generate(requests, SamplingSettings(max_new_tokens=12, temperature=0))
    for p, samples in zip(prompts, got, strict=True):
        expected = e.policy.core.generate(
            torch.tensor([p]), max_new_tokens=12, do_sample=False,
            attention_mask=torch.ones(1, len(p), dtype=torch.long),
        )[0, len(p) :].tolist()  # fmt: skip
        for s in samples:
            assert list(s.token_ids) == expected[: len(s.token_ids)]


def test_sampled_logprobs_are_the_policys(tiny_model: Path, attention: Attention) -> None:
    e = engine(tiny_model, attention)
    prompt = rl_items(1, 1)[0].prompt_ids
    for t in (1.0, 0.6):
        settings = SamplingSettings(max_new_tokens=8, temperature=t)
        for s in e.sampler.generate([Request(prompt, 4, seed=3)], settings)[0]:
            tree = pack([inputs(prompt, s.token_ids)])
            with torch.no_grad():
                scores = score_tokens(e.policy, [tree], [[s.token_ids]], temperature=t)
            assert s.logprobs == pytest.approx(scores.logp[0].tolist(), abs=1e-4)
            assert s.entropies == pytest.approx(scores.entropy[0].tolist(), abs=1e-4)


def test_samples_do_not_depend_on_the_batch(tiny_model: Path, attention: Attention) -> None:
    e = engine(tiny_model, attention)
    prompts = [i.prompt_ids for i in rl_items(3, 1)]
    settings = SamplingSettings(max_new_tokens=16)
    together = e.sampler.generate([Request(p, 3, seed=k) for k, p in enumerate(prompts)], settings)
    alone = [e.sampler.generate([Request(p, 3, seed=k)], settings)[0] for k, p in enumerate(prompts)]
    small = e.sampler.generate(
        [Request(p, 3, seed=k) for k, p in enumerate(prompts)],
        SamplingSettings(max_new_tokens=16, token_budget=1),
    )
    ids = lambda groups: [[s.token_ids for s in g] for g in groups]  # noqa: E731
    assert ids(together) == ids(alone) == ids(small)
    assert len({s.token_ids for s in together[0]}) > 1, "members of a group differ"


class Anything:
    """A constraint that allows all tokens: its copies are never one branch."""

    def __init__(self, tokens: int):
        self.tokens = tokens

    def start(self) -> Anything:
        return self

    def allowed(self) -> torch.Tensor:
        return torch.ones(self.tokens, dtype=torch.bool)

    def take(self, token: int) -> None:
        pass


@pytest.mark.parametrize("max_lines", [0, 1])
@pytest.mark.parametrize("temperature", [0.0, 0.15, 0.4, 1.0])
def test_copies_in_one_branch_are_those_computed_apart(
    tiny_model: Path,
    attention: Attention,
    temperature: float,
    max_lines: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    e = engine(tiny_model, attention)
    policy, prompts = e.policy, [i.prompt_ids for i in rl_items(4, 1)]
    apart = Anything(policy.model.config.vocab_size)
    settings = SamplingSettings(max_new_tokens=24, temperature=temperature, max_lines=max_lines)
    queries, hidden = [0], policy.hidden

    def counted(rows: PackedRows, *cache: Any) -> torch.Tensor:
        queries[-1] += rows.input_ids.numel()
        return hidden(rows, *cache)

    monkeypatch.setattr(policy, "hidden", counted)
    one, other = (
        e.sampler.generate(
            [Request(p, 6, seed=k, share=k // 2, constraints=c) for k, p in enumerate(prompts)], settings
        )
        for c in (None, apart)
        if not queries.append(0)  # type: ignore[func-returns-value]
    )
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    assert len(pairs) == 24
    for a, b in pairs:
        assert a.token_ids == b.token_ids and a.finished == b.finished
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert a.entropies == pytest.approx(b.entropies, abs=1e-4)
    _, merged, alone = queries
    assert merged <= alone
    if temperature == 0:
        assert all(len({c.token_ids for c in group}) == 1 for group in one)
        assert merged < alone / 2
    if temperature == 1:
        assert any(len({c.token_ids for c in group}) > 1 for group in one)


def test_tokens_are_drawn_with_their_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    u = torch.from_numpy(np.random.default_rng(0).random((1, 20000)))
    for top_p, expected in ((1.0, [0.5, 0.3, 0.15, 0.05]), (0.75, [0.625, 0.375, 0, 0])):
        ids, _, _ = sample_tokens(logits, u, 1.0, top_p)
        shares = torch.bincount(ids[0], minlength=4) / 20000
        assert shares.tolist() == pytest.approx(expected, abs=0.012)
    sharp, logp, _ = sample_tokens(logits, u, 0.5, 1.0)
    assert (torch.bincount(sharp[0], minlength=4) / 20000)[0].item() == pytest.approx(
        0.25 / (0.25 + 0.09 + 0.0225 + 0.0025), abs=0.012
    )
    assert logp.max().item() == pytest.approx(np.log(0.25 / 0.365), abs=1e-4)


# -- supervised ------------------------------------------------------------------------------------


def sft_items(n: int = 6) -> list[SftItem]:
    return [
        SftItem(i.prompt_ids, i.completion_ids, [1.0] * len(i.completion_ids), i.prompt)
        for i in rl_items(n // 2, 2)
    ]


def test_sft_gradient_is_the_token_mean_for_any_micro_batch(tiny_model: Path, attention: Attention) -> None:
    items = sft_items()
    e = engine(tiny_model, attention)
    total = sum(len(i.completion_ids) for i in items)
    (-sum(plain_logprobs(e.policy.core, i).sum() for i in items) / total).backward()
    plain = gradients(e.policy.core)
    for micro in (10_000, 64, 1):
        e.policy.core.zero_grad(set_to_none=True)
        e.sft_backward(items, micro)
        assert_same_gradients(plain, gradients(e.policy.core))


def test_label_weight_counts_the_e_line_alone(tiny_model: Path) -> None:
    e = engine(tiny_model)
    for thought in ("", "T: well\n", "T: I weigh E: joy against fear\n"):
        text = f"{thought}E: joy 7, fear 3\nS: joy\nR: hi, E: me"
        item = e.sft_item([1, 2], text, "c", 5.0)
        heavy = [i for i, w in zip(item.completion_ids, item.weights, strict=True) if w == 5]
        assert e.policy.decode(heavy) == "E: joy 7, fear 3"
    assert item.completion_ids[-1] == e.policy.tokenizer.eos_token_id and item.weights[-1] == 1


def test_sft_learns(tiny_model: Path) -> None:
    e = engine(tiny_model)
    losses = []
    config = SftConfig(lr=3e-3, batch_size=4, micro_tokens=512)
    e.begin_stage(config)
    items = sft_items()
    steps = [b for k in range(60) for b in epoch_batches([i.tree for i in items], 4, 8, 0, k)]
    for step, batch in enumerate(steps):
        lr = learning_rate(config, step, len(steps))
        losses.append(e.sft_step([items[i] for i in batch], config, lr)["loss"])
    assert losses[-1] < 0.3 * losses[0]


def test_epochs_hold_every_sample_once_and_keep_conversations_together() -> None:
    shares = [f"c{i // 5}" for i in range(23)]
    batches = epoch_batches(shares, 8, 4, seed=1, epoch=0)
    assert sorted(i for b in batches for i in b) == list(range(23))
    assert batches != epoch_batches(shares, 8, 4, seed=1, epoch=1)
    assert batches == epoch_batches(shares, 8, 4, seed=1, epoch=0)
    assert all(len({shares[i] for i in b}) > 1 for b in batches)


def test_schedules() -> None:
    c = SftConfig(lr=1.0, schedule="linear", warmup=0.2)
    rates = [learning_rate(c, s, 10) for s in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1]) and rates[-1] == pytest.approx(1 / 8)
    cosine = learning_rate(SftConfig(lr=1.0, schedule="cosine", warmup=0), 5, 10)
    assert cosine == pytest.approx(0.5)
    assert learning_rate(GrpoConfig(lr=0.3), 7, 10) == 0.3


# -- reinforcement ---------------------------------------------------------------------------------


def test_agrees_with_trl(tiny_model: Path, tmp_path: Path) -> None:
    """Loss and gradient of vanilla GRPO equal TRL's on the same tensors.

    "bnpo" is TRL's token mean. Its newer default multiplies the KL term by the ratio, which eq. 14 (and
    verl) does not; that is switched off.
    """
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    items = rl_items(2, 3)
    e = engine(tiny_model)
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        now = [plain_logprobs(e.policy.core, i) for i in items]
    old = [lp + 0.3 * torch.randn(lp.shape, generator=rng) for lp in now]
    ref = [lp + 0.3 * torch.randn(lp.shape, generator=rng) for lp in now]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            loss_type="bnpo",
            beta=0.05,
            epsilon=0.2,
            use_cpu=True,
            bf16=False,
            num_generations=2,
            per_device_train_batch_size=2,
            report_to="none",
            disable_dropout=True,
            use_bias_correction_kl=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    width = max(len(i.prompt_ids) for i in items)
    pad = tokenizer.pad_token_id
    right = lambda seqs, v: torch.nn.utils.rnn.pad_sequence(  # noqa: E731
        [torch.as_tensor(s) for s in seqs], batch_first=True, padding_value=v
    )
    inputs = {
        "prompt_ids": torch.tensor([[pad] * (width - len(i.prompt_ids)) + i.prompt_ids for i in items]),
        "prompt_mask": torch.tensor(
            [[0] * (width - len(i.prompt_ids)) + [1] * len(i.prompt_ids) for i in items]
        ),
        "completion_ids": right([i.completion_ids for i in items], pad),
        "completion_mask": right([[1] * len(i.completion_ids) for i in items], 0),
        "advantages": torch.tensor([i.advantage for i in items]),
        "old_per_token_logps": right(old, 0.0),
        "ref_per_token_logps": right(ref, 0.0),
        "num_items_in_batch": torch.tensor(float(sum(len(i.completion_ids) for i in items))),
    }
    trainer.model.train()
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    e._reference_logprobs = lambda chosen, micro: ref  # the same reference tensors for both
    ours = e.rl_backward(items, GrpoConfig(kl_coef=0.05, micro_tokens=256), old)
    assert ours["loss"] == pytest.approx(theirs.item(), rel=1e-4)
    assert 0 < ours["clipped"] < 1, "the clip is active in this test"
    assert_same_gradients(gradients(trainer.model), gradients(e.policy.core), rtol=1e-4)


def test_eight_by_one_equals_one_by_eight(tiny_model: Path, attention: Attention) -> None:
    items = rl_items(8, 2)
    results = []
    for micro in (1, 100_000):
        e = engine(tiny_model, attention)
        e.begin_stage(GrpoConfig())
        e.set_reference()
        e.rl_backward(items, GrpoConfig(kl_coef=0.1, micro_tokens=micro))
        results.append(gradients(e.policy.core))
    assert_same_gradients(*results)


def test_silent_groups_are_left_out_without_changing_the_gradient(
    tiny_model: Path, attention: Attention
) -> None:
    items = rl_items(2, 4)
    silent = [RlItem(i.prompt_ids, i.completion_ids, 0.0, "silent") for i in rl_items(1, 4, seed=9)]
    e = engine(tiny_model, attention)
    measures = e.rl_backward([*items, *silent], GrpoConfig(kl_coef=0.0, micro_tokens=512))
    assert measures["silent_groups"] == 1
    skipped = gradients(e.policy.core)
    e.policy.core.zero_grad(set_to_none=True)
    tokens = sum(len(i.completion_ids) for i in [*items, *silent])
    loss = -sum(i.advantage * plain_logprobs(e.policy.core, i).sum() for i in items) / tokens
    loss.backward()
    assert_same_gradients(skipped, gradients(e.policy.core), rtol=1e-4)


def test_a_silent_group_beside_its_gold_line_costs_the_gold_line_alone(tiny_model: Path) -> None:
    gold, *samples = rl_items(1, 5)
    silent = [replace(i, advantage=0.0) for i in samples]
    e = engine(tiny_model)
    config = GrpoConfig(kl_coef=0.0, micro_tokens=512)
    alone = e.rl_backward([gold], config)
    e.policy.core.zero_grad(set_to_none=True)
    both = e.rl_backward([gold, *silent], config)
    assert both["packed_tokens"] == alone["packed_tokens"] and both["silent_groups"] == 0
    tokens = sum(len(i.completion_ids) for i in (gold, *silent))
    assert both["tokens"] == tokens > alone["tokens"], "the loss is the mean over all tokens (eq. 14)"
    found = gradients(e.policy.core)
    e.policy.core.zero_grad(set_to_none=True)
    (-gold.advantage * plain_logprobs(e.policy.core, gold).sum() / tokens).backward()
    assert_same_gradients(found, gradients(e.policy.core), rtol=1e-4)


def test_a_round_without_any_advantage_changes_nothing(tiny_model: Path) -> None:
    e = engine(tiny_model)
    before = {n: p.clone() for n, p in e.policy.core.named_parameters()}
    config = GrpoConfig(lr=0.1, kl_coef=0.0)
    e.begin_stage(config)
    e.rl_round([[RlItem(i.prompt_ids, i.completion_ids, 0.0, i.prompt) for i in rl_items()]], config, [0.1])
    assert all(torch.equal(before[n], p) for n, p in e.policy.core.named_parameters())


def test_later_minibatches_use_the_ratio_to_the_sampling_policy(tiny_model: Path) -> None:
    items = rl_items(4, 4)
    config = GrpoConfig(lr=0.02, kl_coef=0.0, micro_tokens=512)
    e = engine(tiny_model)
    e.begin_stage(config)
    first, second = e.rl_round([items[:8], items[8:]], config, [0.02, 0.02])
    assert first["clipped"] == 0, "the first step is on policy"
    assert second["clipped"] > 0, "after a large step the ratio leaves the clip range"


def with_sampled(items: list[RlItem], logps: list[torch.Tensor], shift: float) -> list[RlItem]:
    """The items as if the sampler's log-probabilities had been lower by `shift`; the last is a gold line."""
    given = [replace(i, sampled=(lp - shift).tolist()) for i, lp in zip(items, logps, strict=True)]
    return [*given[:-1], replace(items[-1], sampled=None)]


def test_mismatch_of_sampler_and_trainer_is_measured_and_weighed(tiny_model: Path) -> None:
    """A sampler that is 0.3 nats too low on every token: the gradient grows by e^0.3, or by the cap."""
    items = rl_items(4, 2)
    e = engine(tiny_model)
    logps = [plain_logprobs(e.policy.core, i).detach() for i in items]
    found = {}
    for cap in (0.0, 1.2, 5.0):
        config = GrpoConfig(kl_coef=0.0, importance_cap=cap)
        e.begin_stage(config)
        measures = e.rl_backward(with_sampled(items, logps, 0.3), config)
        found[cap] = gradients(e.policy.core)
        assert measures["mismatch"] == pytest.approx(0.3, abs=1e-4)
        assert measures["mismatch_p99"] == pytest.approx(0.3, abs=1e-4)
        assert measures["mismatch_clipped"] == 1.0, "e^0.3 is outside 1.2"
        e.policy.model.zero_grad()
    *sampled, gold = items
    tokens = sum(len(i.completion_ids) for i in items)
    parts = []
    for some in (sampled, [gold]):
        e.rl_backward(some, GrpoConfig(kl_coef=0.0))
        share = sum(len(i.completion_ids) for i in some) / tokens
        parts.append({n: g * share for n, g in gradients(e.policy.core).items()})
        e.policy.model.zero_grad()
    for cap, weight in ((0.0, 1.0), (1.2, 1.2), (5.0, math.exp(0.3))):
        expected = {n: weight * parts[0][n] + parts[1][n] for n in parts[0]}
        assert_same_gradients(found[cap], expected, rtol=1e-3)


def test_what_the_sampler_drew_is_what_the_trainer_scores(tiny_model: Path) -> None:
    """In fp32 both are one model: no token of a round would be clipped for a difference of theirs."""
    e = engine(tiny_model)
    items = drawn_items(e, 4, 4, 8)
    config = GrpoConfig(kl_coef=0.0, lr=1e-3)
    e.begin_stage(config)
    first, second = e.rl_round([items[:8], items[8:]], config, [1e-3, 1e-3])
    for measures in (first, second):
        assert measures["mismatch_p99"] < 1e-4 and measures["mismatch_clipped"] == 0
    e.begin_stage(config)
    plain = e.rl_backward([replace(i, sampled=None) for i in items], config)
    assert "mismatch" not in plain


def test_rl_raises_what_is_rewarded(tiny_model: Path) -> None:
    """REINFORCE in miniature: one token is rewarded, its probability rises."""
    e = engine(tiny_model)
    prompt, wanted = rl_items(1, 1)[0].prompt_ids, 42
    config = GrpoConfig(lr=2e-3, kl_coef=0.0)
    e.begin_stage(config)

    def logp() -> float:
        with torch.no_grad():
            return float(plain_logprobs(e.policy.core, RlItem(prompt, [wanted], 0, "")).item())

    before = logp()
    for step in range(40):
        samples = e.sampler.generate(
            [Request(prompt, 16, seed=step)], SamplingSettings(max_new_tokens=1, temperature=1.0)
        )[0]
        rewards = np.array([float(s.token_ids[0] == wanted) for s in samples] + [1.0])
        ids = [*(s.token_ids for s in samples), (wanted,)]
        adv = rewards - rewards.mean()
        e.rl_round(
            [[RlItem(prompt, i, float(a), "p") for i, a in zip(ids, adv, strict=True)]], config, [2e-3]
        )
    assert logp() > before + 1


def test_a_step_that_is_not_finite_touches_no_weight_and_no_optimiser_state(tiny_model: Path) -> None:
    e = engine(tiny_model)
    e.begin_stage(GrpoConfig())
    before = e.policy.core.lm_head.weight.clone()
    items = [RlItem([5, 6], [7, 8], float("nan"), "p"), RlItem([5, 6], [9], 1.0, "p")]
    (measures,) = e.rl_round([items], GrpoConfig(kl_coef=0.0), [1e-3])
    assert measures["not_finite"] == 1 and torch.equal(before, e.policy.core.lm_head.weight)
    assert not e._optimizer.state, "no moment of a bad gradient is kept"
    good = RlItem([5, 6], [9], 1.0, "p")
    steps = e.rl_round([items, [good]], GrpoConfig(kl_coef=0.0), [1e-3, 1e-3])
    assert [s.get("not_finite") for s in steps] == [1, None], "the good mini-batch is taken"
    alone = engine(tiny_model)
    alone.begin_stage(GrpoConfig())
    alone.rl_round([[good]], GrpoConfig(kl_coef=0.0), [1e-3])
    moved = (alone.policy.core.lm_head.weight - before).abs().max().item()
    assert moved == pytest.approx(1e-3, rel=0.01), "Adam's first step is the learning rate"
    assert torch.allclose(e.policy.core.lm_head.weight, alone.policy.core.lm_head.weight, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_written(
    tiny_model: Path, tmp_path: Path, value: float
) -> None:
    e = engine(tiny_model)
    e.begin_stage(SftConfig())
    with torch.no_grad():
        e.policy.core.model.layers[1].mlp.up_proj.weight[3, 4] = value
    with pytest.raises(NotFiniteError, match=r"up_proj.weight is not finite"):
        e.save(tmp_path / "c")
    with pytest.raises(NotFiniteError, match="up_proj"):
        e.save_training_state(tmp_path / "s.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(NotFiniteError, match="not numbers"):
        e.sampler.generate([Request([5, 6], 2, 0)], SamplingSettings(4, 1.0, 1.0))


# -- adapters, precision, checkpoints --------------------------------------------------------------


def test_lora_trains_adapters_only_and_merges_on_save(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    e = engine(tiny_model, lora=LoraConfig(rank=4, alpha=8))
    config = GrpoConfig(lr=5e-2, kl_coef=0.1)
    base = plain_logprobs(load_policy(str(tiny_model), "cpu").core, rl_items()[0])
    e.begin_stage(config)
    e.set_reference()
    e.rl_round([rl_items()], config, [5e-2])
    tuned = e.logprobs(e.policy, rl_items()[:1], 512)[0]
    assert not torch.allclose(tuned, base, atol=1e-3)
    assert torch.allclose(e._reference_logprobs(rl_items()[:1], 512)[0], base, atol=1e-5)
    e.save(tmp_path / "merged")
    merged = load_policy(str(tmp_path / "merged"), "cpu")
    assert torch.allclose(plain_logprobs(merged.core, rl_items()[0]), tuned, atol=1e-4)


def test_lora_targets_that_are_none(tiny_model: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(EngineError, match=r"model\.lora\.targets"):
        engine(tiny_model, lora=LoraConfig(targets=("no_such_layer",)))


def test_bf16_is_close_to_fp32(tiny_model: Path) -> None:
    full, half = (
        LocalEngine(ModelConfig(id=str(tiny_model), device="cpu", dtype=d)) for d in ("fp32", "bf16")
    )
    a, b = (e.logprobs(e.policy, rl_items(), 512) for e in (full, half))
    assert max((x - y).abs().max().item() for x, y in zip(a, b, strict=True)) < 0.1


def test_gradient_checkpointing_changes_nothing(tiny_model: Path) -> None:
    results = []
    for on in (False, True):
        e = engine(tiny_model, gradient_checkpointing=on)
        e.sft_backward(sft_items(), 512)
        results.append(gradients(e.policy.core))
    assert_same_gradients(*results)


def test_checkpoints_open_in_transformers_and_are_whole(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    e = engine(tiny_model)
    folder = tmp_path / "checkpoints" / "a"
    e.save(folder)
    e.save(folder)  # a second save replaces the first
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(model.lm_head.weight, e.policy.core.lm_head.weight)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"
    verify_checkpoint(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["a"], "no staging folder is left"
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EngineError, match=r"model\.safetensors: missing or altered"):
        verify_checkpoint(folder)


def test_a_full_disk_leaves_no_half_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real file-size limit makes the write fail half way, as a full disk does."""
    import resource
    import signal

    e = engine(tiny_model)
    good = tmp_path / "good"
    e.save(good)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(EngineError, match="could not be written"):
            e.save(tmp_path / "new")
        with pytest.raises(EngineError, match="could not be written"):
            e.save(good)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    verify_checkpoint(good)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good"]


def test_training_state_continues_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    config = GrpoConfig(lr=1e-2, kl_coef=0.0)
    rounds = [rl_items(seed=s) for s in range(4)]

    def run(e: LocalEngine, batches: list) -> None:
        for items in batches:
            e.rl_round([items], config, [1e-2])

    whole = engine(tiny_model)
    whole.begin_stage(config)
    run(whole, rounds)
    first, second = engine(tiny_model), engine(tiny_model)
    first.begin_stage(config)
    run(first, rounds[:2])
    first.save_training_state(tmp_path / "s.safetensors")
    second.begin_stage(config)
    second.load_training_state(tmp_path / "s.safetensors")
    run(second, rounds[2:])
    for (n, a), (_, b) in zip(
        whole.policy.core.named_parameters(), second.policy.core.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), n
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "s.safetensors").read_bytes()[:1000])
    with pytest.raises(EngineError, match="not a whole training state"):
        second.load_training_state(cut)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: str(p / "none" / "deep" / "er"), "no model folder"),
        (lambda p: str(p), r"no config\.json"),
        (lambda p: "builtin:none", "no built-in model"),
        (lambda p: str(p / "x.gguf"), "no such GGUF"),
    ],
)
def test_what_is_no_model(tmp_path: Path, make, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        resolve(make(tmp_path))


def test_pickled_weights_are_not_loaded(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_model, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(EngineError, match="pickled weights are not loaded"):
        load_policy(str(tmp_path / "m"), "cpu")


def test_cuda_without_cuda(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="sees no CUDA"):
        load_policy(str(tiny_model), "cuda")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("how", ["cut", "noise", "empty"])
def test_a_broken_model_folder_is_one_error(tiny_model: Path, tmp_path: Path, file: str, how: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    whole = (folder / file).read_bytes()
    noise = np.random.default_rng(0).bytes(len(whole))
    (folder / file).write_bytes({"cut": whole[:60], "noise": noise, "empty": b""}[how])
    with pytest.raises(EngineError, match="cannot load model"):
        load_policy(str(folder), "cpu")


def test_a_model_in_shards_loads_and_one_of_them_gone_is_named(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    core = load_policy(str(folder), "cpu").core
    (folder / "model.safetensors").unlink()
    core.save_pretrained(folder, max_shard_size="60KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    again = load_policy(str(folder), "cpu").core.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in core.state_dict().items())
    shards[1].unlink()
    with pytest.raises(EngineError, match=rf"cannot load model .*{shards[1].name}"):
        load_policy(str(folder), "cpu")


def test_an_altered_checkpoint_is_refused_wherever_it_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    engine(tiny_model).save(tmp_path / "c")
    load_policy(str(tmp_path / "c"), "cpu")
    weights = tmp_path / "c" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(EngineError, match=r"model\.safetensors: missing or altered"):
        load_policy(str(tmp_path / "c"), "cpu")


def test_auto_is_bf16_only_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for flags, dtype in (
        ("flags : avx avx2 fma", "fp32"),
        ("flags : avx512f avx512_bf16", "fp32"),
        ("flags : avx512_bf16 amx_bf16 amx_tile", "bf16"),
        ("Features : asimd bf16 i8mm", "bf16"),
    ):
        monkeypatch.setattr(devices, "cpu_flags", lambda flags=flags: frozenset(flags.split()))
        assert pick_dtype("auto", cpu) == dtype
        assert pick_dtype("bf16", cpu) == "bf16" and pick_dtype("fp32", cpu) == "fp32"


def test_e_lines_come_after_all_passes_over_whole_samples() -> None:
    def sample(k: int, text: str) -> tuple[Fitted, str]:
        prompt = conversation_prompts(toy_conversations(1)[0])[0]
        return Fitted(replace(prompt, id=str(k), conversation_id=str(k // 4)), (1,), 0), text

    whole = [sample(k, "E: joy\nS: joy\nR: Yes.") for k in range(10)]
    alone = [sample(k, "E: joy\n") for k in range(10, 17)]
    samples = [*alone[:3], *whole, *alone[3:]]
    config = SftConfig(batch_size=4, run_length=2, label_samples=7, label_order="last")
    batches = sft_batches(samples, config, 2, 0)
    assert [len(b) for b in batches] == [4, 4, 2, 4, 4, 2, 4, 3, 4, 3]
    first, last = batches[:6], batches[6:]
    assert sorted(i for b in first for i in b) == sorted([*range(3, 13)] * 2)
    assert sorted(i for b in last for i in b) == sorted([0, 1, 2, 13, 14, 15, 16] * 2)
    mixed = sft_batches(samples, config.model_copy(update={"label_order": "mixed"}), 2, 0)
    shares = [f.prompt.conversation_id for f, _ in samples]
    assert mixed == [b for epoch in (0, 1) for b in epoch_batches(shares, 4, 2, 0, epoch)]
    with pytest.raises(ValueError, match="label_samples = 0: there are no E lines"):
        SftConfig(label_order="last")
