"""The parts of a layer that this package computes itself give what their own classes give."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from selfemo.config import LoraConfig, ModelConfig
from selfemo.models import layers
from selfemo.models.generation.local import LocalSampler
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.loading import load_policy
from selfemo.models.packing import pack
from selfemo.models.policy import Policy
from selfemo.training.engine import LocalEngine
from selfemo.training.token_scores import inputs, score_tokens
from tests.conftest import MELD
from tests.support.models import edit, of_architecture

PROMPT = [5, 7, 11, 13, 17, 19, 23]
ALL = ("RMSNorm", "MLP", "Attention", "DecoderLayer", "Model")
COMPLETIONS = [[29, 31, 37], [29, 41], [43, 47, 53, 59]]


@pytest.fixture
def class_code(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A way to load a model that leaves its parts as their classes have them."""

    def load(folder: Path, **more: Any) -> Policy:
        with monkeypatch.context() as patch:
            patch.setattr(layers, "take_over", lambda model, bf16: None)
            return load_policy(str(folder), "cpu", **more)

    return load


def gradients(policy: Policy) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities of the completions, and the gradient of their mean, by parameter."""
    policy.model.zero_grad(set_to_none=True)
    tree = pack([inputs(PROMPT, c) for c in COMPLETIONS])
    logp = score_tokens(policy, [tree], [COMPLETIONS]).logp
    logp.mean().backward()
    return logp.detach(), {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The distance of two gradients, relative to their norm."""
    assert a.keys() == b.keys() and a
    far = torch.stack([(a[n] - b[n]).norm() for n in a]).norm()
    return float(far / torch.stack([x.norm() for x in b.values()]).norm())


def own_forwards(policy: Policy) -> set[str]:
    return {type(m).__name__ for m in policy.core.modules() if "forward" in vars(m)}


@pytest.mark.parametrize("rows", [256, 4])
@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("Llama", {f"Llama{part}" for part in ALL} | {"Linear"}),
        ("Mistral", {f"Mistral{part}" for part in ALL} | {"Linear"}),
        ("Qwen2", {f"Qwen2{part}" for part in ALL} | {"Linear"}),  # with biases
        ("Qwen3", {"Qwen3RMSNorm", "Qwen3MLP", "Linear"}),  # it normalises queries and keys
        ("Gemma", {"GemmaAttention", "GemmaDecoderLayer", "Linear"}),  # gelu, and norms of 1 + weight
        ("Phi", {"Linear"}),
        ("Granite", {f"Granite{part}" for part in ALL} | {"Linear"}),
        ("Olmo2", {"Linear", "Olmo2MLP", "Olmo2RMSNorm"}),
        ("GPT2", {"Linear"}),
    ],
)
def test_values_and_gradients_are_those_of_its_own_classes(
    tiny_model: Path, tmp_path: Path, class_code: Any, monkeypatch: pytest.MonkeyPatch,
    name: str, taken: set[str], rows: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(layers, "_ROWS", rows)
    folder = of_architecture(tiny_model, tmp_path / "m", name)
    ours, own = load_policy(str(folder), "cpu"), class_code(folder)
    with torch.no_grad():  # norms and biases begin as ones and zeros
        for a, b in zip(ours.core.parameters(), own.core.parameters(), strict=True):
            if a.dim() == 1:
                a.add_(torch.linspace(-0.3, 0.3, len(a)))
                b.copy_(a)
    assert own_forwards(ours) == taken and not own_forwards(own)
    (logp, found), (expected, gradient) = gradients(ours), gradients(own)
    torch.testing.assert_close(logp, expected, atol=1e-5, rtol=1e-5)
    assert apart(found, gradient) < 1e-5
    with torch.no_grad():  # without gradients another way is taken
        rows_ = [ours.rows([pack([PROMPT])]), own.rows([pack([PROMPT])])]
        torch.testing.assert_close(ours.hidden(rows_[0]), own.hidden(rows_[1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("Llama", False), ("Qwen2", False), ("Granite", False), ("Qwen3", True), ("Gemma", True)],
)
def test_completions_are_those_of_its_own_classes(
    tiny_model: Path, tmp_path: Path, class_code: Any, name: str, steps: bool
) -> None:
    """Of trees of different size, with copies that part and end at different steps.

    The modules of a model that is understood whole are called for the prefill alone, without `steps`.
    """
    folder = of_architecture(tiny_model, tmp_path / "m", name)
    requests = [Request(PROMPT[:n], 5, seed=n, share=n > 4) for n in (3, 7, 6, 2)]
    settings = SamplingSettings(max_new_tokens=12)
    ours, own = load_policy(str(folder), "cpu"), class_code(folder)
    for policy in (ours, own):  # else the tiny model hardly ever ends
        policy.core.generation_config.eos_token_id = list(range(0, policy.vocabulary, 8))
    calls: list[Any] = []
    ours.core.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    found = [LocalSampler(policy).generate(requests, settings) for policy in (ours, own)]
    assert (len(calls) > 1) == steps
    assert len({len(c.token_ids) for group in found[0] for c in group}) > 1
    for a, b in zip(*([c for group in x for c in group] for x in found), strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_a_prefill_computes_the_last_layer_for_the_ends_of_prompts(tiny_model: Path, class_code: Any) -> None:
    ours, own = load_policy(str(tiny_model), "cpu"), class_code(tiny_model)
    seen: list[int] = []
    ours.core.model.layers[-1].mlp.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].shape[1])
    )
    found = []
    for policy in (ours, own):
        rows, cache = policy.rows([pack([PROMPT, [*PROMPT[:4], 61]])]), DynamicCache()
        with torch.no_grad():
            found.append((policy.hidden_of(rows, np.array([6, 7]), cache), *cache.layers[-1].keys))
    assert seen == [2]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("matrix_unit", [False, True])
def test_sampling_in_bf16_is_in_fp32_where_bf16_would_save_memory_alone(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, matrix_unit: bool
) -> None:
    monkeypatch.setattr(layers, "has_matrix_unit", lambda: matrix_unit)
    found = []
    for dtype in ("fp32", "bf16"):
        sampler = LocalSampler(load_policy(str(tiny_model), "cpu", dtype))
        (completions,) = sampler.generate([Request(PROMPT, 8)], SamplingSettings(max_new_tokens=6))
        (labels,) = sampler.label_probabilities([("c", PROMPT, "E:")], MELD)
        found.append(([c.logprobs for c in completions], labels))
    assert (found[0] == found[1]) != matrix_unit


def test_a_layer_without_positions_is_left_alone(tiny_model: Path, tmp_path: Path, class_code: Any) -> None:
    folder = of_architecture(tiny_model, tmp_path / "m", "SmolLM3")
    edit(folder, "config.json", no_rope_layers=[1, 0], pad_token_id=0)
    ours, own = load_policy(str(folder), "cpu"), class_code(folder)
    first, second = (layer.self_attn for layer in ours.core.model.layers)
    assert "forward" in vars(first) and "forward" not in vars(second)
    (logp, found), (expected, gradient) = gradients(ours), gradients(own)
    torch.testing.assert_close(logp, expected, atol=1e-5, rtol=1e-5)
    assert apart(found, gradient) < 1e-5


@pytest.mark.parametrize("matrix_unit", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3"])
def test_bf16_is_near_fp32_with_and_without_a_matrix_unit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, matrix_unit: bool
) -> None:
    folder = of_architecture(tiny_model, tmp_path / "m", name)
    expected, gradient = gradients(load_policy(str(folder), "cpu"))
    monkeypatch.setattr(layers, "has_matrix_unit", lambda: matrix_unit)
    policy = load_policy(str(folder), "cpu", "bf16")
    logp, found = gradients(policy)
    # bf16 keeps 8 bits of each value.
    torch.testing.assert_close(logp, expected, atol=3e-2, rtol=0)
    assert not torch.equal(logp, expected)
    assert apart(found, gradient) < 2e-2
    assert all(g.dtype == torch.float32 for g in found.values())
    with torch.no_grad(), policy.autocast():
        hidden = policy.hidden(policy.rows([pack([PROMPT])]))
        assert hidden.dtype == torch.bfloat16
        # The reference policy of a KL term is a copy.
        other = copy.deepcopy(policy.core)
        assert torch.equal(other.get_output_embeddings()(hidden), policy.core.get_output_embeddings()(hidden))


def test_gradients_have_the_layout_of_their_weights(tiny_model: Path) -> None:
    policy = load_policy(str(tiny_model), "cpu")
    gradients(policy)
    linear = [m for m in policy.core.modules() if type(m) is nn.Linear]
    head = policy.core.get_output_embeddings()
    assert {m.weight.is_contiguous() for m in linear if m is not head} == {
        False
    } and head.weight.is_contiguous()
    for p in policy.core.parameters():
        assert p.grad is not None and p.grad.stride() == p.stride()


def test_adapters_train_as_they_do_on_the_classes_of_the_model(tiny_model: Path, class_code: Any) -> None:
    config = ModelConfig(id=str(tiny_model), device="cpu", dtype="fp32", lora=LoraConfig(rank=4))
    ours = LocalEngine(config).policy
    found = []
    for policy in (ours, class_code(tiny_model)):
        if policy is not ours:
            import peft

            torch.manual_seed(0)
            settings = peft.LoraConfig(
                r=4, lora_alpha=config.lora.alpha, lora_dropout=0.0, task_type="CAUSAL_LM",
                target_modules=config.lora.targets if isinstance(config.lora.targets, str)
                else list(config.lora.targets),
            )  # fmt: skip
            policy.model = peft.get_peft_model(policy.core, settings)
            policy.core = policy.model.get_base_model()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # one factor begins as zero
            for n, p in policy.model.named_parameters():
                if "lora_B" in n:
                    p.normal_(0, 0.1, generator=generator)
        policy.model.eval()
        found.append(gradients(policy))
    (logp, mine), (expected, theirs) = found
    assert all("lora_" in n for n in mine)
    torch.testing.assert_close(logp, expected, atol=1e-5, rtol=1e-5)
    assert apart(mine, theirs) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows", [1, 32])
def test_token_scores_are_those_of_log_softmax(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, temperature: float, rows: int
) -> None:
    from selfemo.training import token_scores

    monkeypatch.setattr(token_scores, "_ROWS", rows)
    policy = load_policy(str(tiny_model), "cpu")
    tree = pack([inputs(PROMPT, c) for c in COMPLETIONS])
    scores = score_tokens(policy, [tree], [COMPLETIONS], temperature=temperature)
    weights = torch.linspace(-1, 2, scores.logp.numel()).view_as(scores.logp)
    (scores.logp * weights * scores.mask).sum().backward()
    found = {n: p.grad for n, p in policy.core.named_parameters()}
    policy.core.zero_grad(set_to_none=True)
    total = 0.0
    for row, c in enumerate(COMPLETIONS):
        logits = policy.core(torch.tensor([inputs(PROMPT, c)])).logits[0, len(PROMPT) - 1 :] / temperature
        logp = torch.log_softmax(logits, -1)
        own = logp[torch.arange(len(c)), torch.tensor(c)]
        torch.testing.assert_close(scores.logp[row, : len(c)], own, atol=1e-5, rtol=1e-5)
        entropy = -(logp.exp() * logp).sum(-1)
        torch.testing.assert_close(scores.entropy[row, : len(c)], entropy, atol=1e-5, rtol=1e-5)
        total = total + (own * weights[row, : len(c)]).sum()
    total.backward()
    assert apart(found, {n: p.grad for n, p in policy.core.named_parameters()}) < 1e-5
