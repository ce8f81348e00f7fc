"""Drawing tokens: random numbers that depend on a completion alone, and the inverse CDF."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class Drawn:
    """The tokens of one completion, with log-probability and entropy (nats) of each.

    Attributes:
        request, copy: which of the request's completions it is.
        finished: it ended by itself, by an end token or its last line.
    """

    request: int
    copy: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    finished: bool = False


def draw_uniforms(seed: int, copy: int, n: int) -> np.ndarray:
    """(n,) the random numbers in [0, 1) of the tokens of a request's completion, by (seed, copy) alone."""
    generator = np.random.default_rng([seed & 0xFFFFFFFF, seed >> 32, copy])
    return generator.random(n)


def sample_tokens(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    temperature: float,
    top_p: float,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw tokens of each row by inverse CDF.

    Args:
        logits: (q, v) float32.
        uniforms: (q, n) in [0, 1), one for each draw of a row.
        temperature: 0 takes the most likely token.
        top_p: nucleus mass; the smallest set of tokens that reaches it is kept.
        allowed: (q, v) bool, tokens that may be drawn.

    Returns:
        ids (q, n), log-probabilities (q, n) and entropies in nats (q,) of the policy softmax(logits / T),
        before top_p or `allowed` cut it; greedy decoding reports those of T = 1.
    """
    if temperature not in (0, 1):
        logits = logits / temperature
    logp = torch.log_softmax(logits, -1)
    probs = logp.exp()
    entropies = -(probs * logp).sum(-1)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if temperature == 0:
        ids = logits.argmax(-1, keepdim=True).expand(uniforms.shape)
    else:
        if allowed is not None:
            probs = torch.softmax(logits, -1)
        if top_p < 1:
            ordered, order = probs.sort(-1, descending=True)
            ordered = ordered * ((ordered.cumsum(-1) - ordered) < top_p)
            probs = torch.zeros_like(probs).scatter(-1, order, ordered)
        cdf = probs.double().cumsum(-1)
        # Scaling by the last value keeps rounding from pushing a draw past the end.
        draws = uniforms.double().to(cdf.device) * cdf[:, -1:]
        ids = torch.searchsorted(cdf, draws, right=True).clamp_(max=logits.shape[-1] - 1)
    return ids, logp.gather(-1, ids), entropies
