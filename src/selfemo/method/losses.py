"""The policy objective of eq. 14 and its parts, per token.

    ratio = exp(logp - old);  L = -w min(ratio A, clip(ratio, 1 - low, 1 + high) A) + beta k3 - alpha H
    w = 1, or min(exp(old - sampled), cap) where trainer and sampler differ [ours]
    k3 = exp(d) - d - 1, d = ref - logp                   (low-variance estimator, verl's low_var_kl)

Aggregation is the token mean over the mini-batch: the caller divides the sum by the tokens of the whole
mini-batch, so 8 x 1 micro-batches equal 1 x 8.

Shapes: n sequences, l padded completion length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def k3(logp: Float[Tensor, "n l"], ref: Float[Tensor, "n l"]) -> Float[Tensor, "n l"]:
    """Low-variance KL estimate of each token, >= 0, exact in expectation under the policy."""
    d = ref - logp
    return torch.exp(d) - d - 1


@dataclass(frozen=True)
class TokenLoss:
    """Per-token loss, and values to log (detached)."""

    loss: Float[Tensor, "n l"]
    clipped: Bool[Tensor, "n l"]
    kl: Float[Tensor, "n l"]
    ratio: Float[Tensor, "n l"]


def token_loss(
    logp: Float[Tensor, "n l"],
    old: Float[Tensor, "n l"],
    advantage: Float[Tensor, "n l"],
    ref: Float[Tensor, "n l"] | None = None,
    entropy: Float[Tensor, "n l"] | None = None,
    weight: Float[Tensor, "n l"] | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.001,
    entropy_coef: float = 0.0,
) -> TokenLoss:
    """The clipped objective of eq. 14 for each token.

    Args:
        logp: log-probabilities under the policy being trained (carries gradient).
        old: the same tokens under the policy that sampled them.
        advantage: of each token.
        ref: under the reference policy; needed if kl_coef > 0.
        entropy: of the policy at each token; needed if entropy_coef > 0.
        weight: w of each token (`importance`); 1 where left out.

    Raises:
        ValueError: a coefficient is set without the tensor it weighs.
    """
    if kl_coef and ref is None:
        raise ValueError("kl_coef is set but there are no reference log-probabilities")
    if entropy_coef and entropy is None:
        raise ValueError("entropy_coef is set but there are no entropies")
    ratio = torch.exp(logp - old)
    unclipped = ratio * advantage
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    loss = -torch.minimum(unclipped, clipped)
    if weight is not None:
        loss = loss * weight
    kl = torch.zeros_like(logp) if ref is None else k3(logp, ref)
    if kl_coef:
        loss = loss + kl_coef * kl
    if entropy_coef and entropy is not None:
        loss = loss - entropy_coef * entropy
    return TokenLoss(loss, (clipped < unclipped).detach(), kl.detach(), ratio.detach())


def importance(old: Float[Tensor, "n l"], sampled: Float[Tensor, "n l"], cap: float) -> Float[Tensor, "n l"]:
    """The truncated importance weight min(exp(old - sampled), cap); 1 where `sampled` is NaN."""
    weight = torch.exp((old - sampled).detach()).clamp(max=cap)
    return torch.where(sampled.isnan(), torch.ones_like(weight), weight)


def masked_sum(values: Float[Tensor, "n l"], mask: Bool[Tensor, "n l"]) -> Float[Tensor, ""]:
    """Sum over real tokens; padding may hold anything, NaN included."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()
