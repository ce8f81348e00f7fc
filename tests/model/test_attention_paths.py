"""Both attention paths of packed rows, forced on a CPU: each equals plain forward passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from selfemo.config import GrpoConfig, ModelConfig, SftConfig
from selfemo.models.generation.label_scores import label_probabilities
from selfemo.models.generation.local import LocalGenerator
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.loading import load_policy
from selfemo.models.packing import pack
from selfemo.models.policy import Attention
from selfemo.training.engine import LocalEngine, SftItem
from selfemo.training.protocol import RlItem
from selfemo.training.token_scores import inputs, score_tokens
from tests.conftest import MELD

PROMPTS = [np.random.default_rng(0).integers(3, 300, 40).tolist()[: 20 + 5 * n] for n in range(4)]
"""Four prompts, each the beginning of the next."""


def engine(tiny_model: Path, attention: Attention) -> LocalEngine:
    made = LocalEngine(ModelConfig(id=str(tiny_model), device="cpu", dtype="fp32"))
    made.policy.attention = attention
    return made


def test_a_cpu_takes_the_tree_and_can_be_told_otherwise(tiny_model: Path) -> None:
    tree, dense = (
        load_policy(str(tiny_model), "cpu"),
        load_policy(str(tiny_model), "cpu", attention="dense"),
    )
    assert (tree.attention, dense.attention) == ("tree", "dense")
    packs = [pack(PROMPTS), pack(PROMPTS[:1])]
    rows = dense.rows(packs)
    assert rows.tree is None and rows.mask is not None and rows.mask.shape == (2, 1, 35, 35)
    rows = tree.rows(packs)
    assert rows.tree is not None and rows.mask is None


def test_samples_are_those_of_plain_forward_passes(tiny_model: Path, attention: Attention) -> None:
    """Log-probabilities of what was sampled, token by token; both paths sample the same."""
    policy = load_policy(str(tiny_model), "cpu", attention=attention)
    requests = [Request(p, 3, seed, "one tree") for seed, p in enumerate(PROMPTS)]
    requests.append(Request(PROMPTS[0][5:], 2, 9))
    settings = SamplingSettings(max_new_tokens=10)
    groups = LocalGenerator(policy, settings).generate(requests)
    other = load_policy(str(tiny_model), "cpu")
    assert [[s.token_ids for s in g] for g in groups] == [
        [s.token_ids for s in g] for g in LocalGenerator(other, settings).generate(requests)
    ]
    for request, group in zip(requests, groups, strict=True):
        for s in group:
            ids = torch.tensor([[*request.prompt_ids, *s.token_ids]])
            with torch.no_grad():
                logp = torch.log_softmax(policy.core(ids).logits[0, :-1].float(), -1)
            plain = logp.gather(-1, ids[0, 1:, None])[-len(s.token_ids) :, 0]
            assert torch.allclose(torch.tensor(s.logprobs), plain, atol=2e-5)


def test_probabilities_of_labels_are_those_of_plain_forward_passes(
    tiny_model: Path, attention: Attention
) -> None:
    policy = load_policy(str(tiny_model), "cpu", attention=attention)
    places = [("c", ids, "E:") for ids in PROMPTS] + [("d", PROMPTS[0][5:], "E:")]
    found = label_probabilities(policy, places, MELD)
    for (_, ids, written), distribution in zip(places, found, strict=True):
        logp = {}
        for emotion in MELD:
            tail = policy.tokenizer(f"{written} {emotion}", add_special_tokens=False).input_ids
            whole = torch.tensor([[*ids, *tail]])
            with torch.no_grad():
                scores = torch.log_softmax(policy.core(whole).logits[0, :-1].double(), -1)
            logp[emotion] = scores.gather(-1, whole[0, 1:, None])[-len(tail) :].sum()
        plain = torch.softmax(torch.stack(list(logp.values())), 0).tolist()
        assert [distribution[e] for e in MELD] == pytest.approx(plain, abs=1e-5)


def items() -> list[RlItem]:
    rng = np.random.default_rng(1)
    return [
        RlItem(prompt, rng.integers(3, 300, 4 + k).tolist(), float(rng.normal()), f"p{n}")
        for n, prompt in enumerate(PROMPTS)
        for k in range(4)
    ]


def sft_items() -> list[SftItem]:
    weights = (1.0,) * 7
    return [
        SftItem(i.prompt_ids, i.completion_ids, weights[: len(i.completion_ids)], i.prompt) for i in items()
    ]


def gradients(e: LocalEngine) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in e.policy.core.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro_tokens", [64, 4096])
def test_training_has_the_same_gradients_on_both_paths(tiny_model: Path, micro_tokens: int) -> None:
    """Of SFT and of SELF-GRPO with a KL term, whatever the micro-batches hold."""
    rl = GrpoConfig(micro_tokens=micro_tokens, kl_coef=0.1)
    found = []
    for path in ("tree", "dense"):
        e = engine(tiny_model, path)
        e.set_reference()
        assert e._reference is not None and e._reference.attention == path
        with torch.no_grad():
            e.policy.core.model.embed_tokens.weight.mul_(1.05)
        measures = e.sft_backward(sft_items(), micro_tokens)
        of_sft = gradients(e)
        e.policy.core.zero_grad(set_to_none=True)
        measures = {**measures, **{f"rl_{k}": v for k, v in e.rl_backward(items(), rl).items()}}
        del measures["packed_tokens"], measures["rl_packed_tokens"]
        found.append((measures, of_sft, gradients(e)))
    (a, sft_a, rl_a), (b, sft_b, rl_b) = found
    assert a == pytest.approx(b, rel=1e-4, abs=1e-6) and a["rl_kl"] > 0
    for left, right in ((sft_a, sft_b), (rl_a, rl_b)):
        assert left.keys() == right.keys() and left
        for name, gradient in left.items():
            scale = gradient.abs().max() + 1e-12
            assert (gradient - right[name]).abs().max() / scale < 1e-4, name


def test_a_round_and_an_sft_step_move_the_weights_alike(tiny_model: Path) -> None:
    config = GrpoConfig(micro_tokens=256)
    engines = [engine(tiny_model, path) for path in ("tree", "dense")]
    for e in engines:
        e.begin_stage(config)
        e.set_reference()
        e.rl_round([items()[:8], items()[8:]], config, [1e-3, 1e-3])
        e.begin_stage(SftConfig())
        e.sft_step(sft_items(), SftConfig(micro_tokens=256), 1e-3)
    trees = [pack([inputs(i.prompt_ids, i.completion_ids) for i in items()[:4]])]
    completions = [[i.completion_ids for i in items()[:4]]]
    scores = []
    for e in engines:
        with torch.no_grad():
            scores.append(score_tokens(e.policy, trees, completions).logp)
    untouched = engine(tiny_model, "dense")
    with torch.no_grad():
        before = score_tokens(untouched.policy, trees, completions).logp
    assert torch.allclose(scores[0], scores[1], atol=2e-3)
    assert (scores[0] - before).abs().max() > 0.05
