"""The local engine on the tiny model, items to train it on, and its gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from selfemo.config import ModelConfig
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.policy import Attention
from selfemo.training.engine import LocalEngine
from selfemo.training.protocol import RlItem


def engine(tiny_model: Path, attention: Attention = "tree", **kw) -> LocalEngine:
    made = LocalEngine(ModelConfig(id=str(tiny_model), device="cpu", dtype="fp32", **kw))
    made.policy.attention = attention
    return made


def rl_items(n_groups: int = 3, g: int = 4, seed: int = 0) -> list[RlItem]:
    rng = np.random.default_rng(seed)
    items = []
    for group in range(n_groups):
        prompt = rng.integers(3, 300, 20 + 5 * group).tolist()
        for _ in range(g):
            completion = rng.integers(3, 300, int(rng.integers(3, 12))).tolist()
            items.append(RlItem(prompt, completion, float(rng.normal()), f"p{group}"))
    return items


def drawn_items(engine: LocalEngine, prompts: int, g: int, tokens: int) -> list[RlItem]:
    """Groups that the engine samples, with the sampler's log-probabilities; advantages 1 and -1 in turn."""
    asked = [i.prompt_ids for i in rl_items(prompts, 1)]
    groups = engine.sampler.generate(
        [Request(p, g, k) for k, p in enumerate(asked)], SamplingSettings(tokens)
    )
    return [
        RlItem(p, c.token_ids, (-1.0) ** k, f"p{n}", sampled=c.logprobs)
        for n, (p, group) in enumerate(zip(asked, groups, strict=True))
        for k, c in enumerate(group)
    ]


def plain_logprobs(model, item) -> torch.Tensor:
    ids = torch.tensor([[*item.prompt_ids, *item.completion_ids]])
    logp = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
    tokens = logp.gather(-1, ids[0, 1:, None])[:, 0]
    return tokens[len(item.prompt_ids) - 1 :]


def gradients(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(a: dict, b: dict, rtol: float = 1e-5) -> None:
    assert a.keys() == b.keys() and a
    for name in a:
        scale = a[name].abs().max() + 1e-12
        assert (a[name] - b[name]).abs().max() / scale < rtol, name
