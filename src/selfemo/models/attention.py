"""Attention over prefix trees that computes no masked block.

A packed tree (packing.py) is a row of runs: the first sequence, then the tokens that each further sequence
does not share. A run attends to its ancestors and causally to itself, so its scores are a
rectangle of (run length, path length) and the row's work is the sum of these, not the square of its
length: 2.4 times less for eight replies of 96 tokens to a prompt of 1,000. Runs of a few tokens, as of E
lines and of the turns of one conversation, are one masked call against their tree: there the gathering of
a run's path, and its gradient, would cost more than the scores.

Registered with transformers as the attention implementation `IMPLEMENTATION`; without a `TreePlan` it is
transformers' own scaled dot product attention.

Shapes: b rows, h query heads, g key/value heads, s row length, d head size, m run length, p path length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from selfemo.models.flex import FlexPlan, attend
from selfemo.models.packing import Pack

IMPLEMENTATION = "selfemo_tree"
_OTHER_TERMS = ("position_bias", "s_aux", "sinks", "softcap")
"""Arguments by which some architectures change the scores; no path here, nor PyTorch's own, takes them."""
_FEW_QUERIES = 64
"""Up to here keys are not repeated for the query heads that share them."""
_SHORT = 64
"""Most tokens of a run that joins the masked call of its tree."""
_SCORES = 1 << 20
"""About the most scores of such a call for one head; bounds memory."""


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `stop` of a row, which follow each other in one sequence.

    Attributes:
        path: (p,) the row's tokens that they may attend to, their own last; None: all before `stop`.
        mask: (m, p) bool, true where a token may attend; None where `path` is (p = m, causal).
    """

    start: int
    stop: int
    path: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(frozen=True)
class ShortRuns:
    """The tokens of several short runs of one tree.

    Attributes:
        tokens: (n,) their places in the row.
        first, stop: the part of the row that holds their ancestors and themselves.
        mask: (n, stop - first) bool, true where a token may attend.
    """

    tokens: torch.Tensor
    first: int
    stop: int
    mask: torch.Tensor


@dataclass(frozen=True)
class RowPlan:
    """How a row is divided.

    Attributes:
        runs: runs with a call of their own.
        short: the others, by tree.
        stop: the row's length without padding.
        order: (stop,) where each token of the row stands in the results of `runs`, then `short`; None where
            they are in order.
    """

    runs: tuple[Span, ...]
    short: tuple[ShortRuns, ...]
    stop: int
    order: torch.Tensor | None


@dataclass(frozen=True)
class SlotKeys:
    """The keys of completions in fixed slots behind shared prefixes (generation/slots.py).

    Attributes:
        prefix: of each layer, keys and values (b, g, p, d) of the rows' prefixes.
        own: of each layer, keys and values (b, g, w, t, d) of the tokens in each slot.
        visible: (b, 1, 1, w, p + t) bool, the keys of either that a slot may attend to.
        at: (1,) where the present token's key goes in `own`.
    """

    prefix: Sequence[tuple[torch.Tensor, torch.Tensor]]
    own: Sequence[tuple[torch.Tensor, torch.Tensor]]
    visible: torch.Tensor
    at: torch.Tensor


@dataclass(frozen=True)
class TreePlan:
    """The plan of each row of packed trees, and the padded row length."""

    rows: tuple[RowPlan, ...]
    length: int


def plan(packs: Sequence[Pack], length: int, device: torch.device | str) -> TreePlan:
    """The runs of packed trees that are padded to `length`."""
    return TreePlan(tuple(_row_plan(p, device) for p in packs), length)


def _row_plan(pack: Pack, device: torch.device | str) -> RowPlan:
    runs, short, tokens = list[Span](), list[ShortRuns](), list[np.ndarray]()
    waiting: list[tuple[int, int, np.ndarray]] = []
    root = 0

    def close() -> None:
        if waiting:
            short.append(_short_runs(waiting, root, device))
        waiting.clear()

    for start, stop, path in pack.runs():
        if path[0] != root:  # a run of another tree
            close()
            root = int(path[0])
        elif sum(b - a for a, b, _ in waiting) * (stop - root) > _SCORES:
            close()
        if start > 0 and stop - start <= _SHORT:
            waiting.append((start, stop, path))
            continue
        tokens.append(np.arange(start, stop))
        if start == 0:
            runs.append(Span(0, stop, None, None))
            continue
        mask = torch.ones(stop - start, len(path), dtype=torch.bool).tril(len(path) - (stop - start))
        runs.append(Span(start, stop, torch.from_numpy(path).to(device), mask.to(device)))
    close()
    order = None
    if short:
        flat = torch.cat([torch.from_numpy(np.concatenate(tokens)), *(s.tokens.cpu() for s in short)])
        order = flat.argsort().to(device)
    return RowPlan(tuple(runs), tuple(short), len(pack), order)


def _short_runs(
    found: Sequence[tuple[int, int, np.ndarray]], first: int, device: torch.device | str
) -> ShortRuns:
    tokens = np.concatenate([np.arange(start, stop) for start, stop, _ in found])
    end = int(tokens[-1]) + 1
    mask, row = np.zeros((len(tokens), end - first), dtype=bool), 0
    for start, stop, path in found:
        n = stop - start
        mask[row : row + n, path - first] = np.tri(n, len(path), len(path) - n, dtype=bool)
        row += n
    return ShortRuns(torch.from_numpy(tokens).to(device), first, end, torch.from_numpy(mask).to(device))


def tree_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree: TreePlan | SlotKeys | FlexPlan | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """(b, s, h, d) outputs for queries (b, h, s, d), keys and values (b, g, s, d); zero at padding.

    Raises: ValueError: the architecture's scores have a further term, such as sinks.
    """
    if other := [name for name in _OTHER_TERMS if kwargs.get(name) is not None]:
        raise ValueError(f"its attention scores have a further term: {', '.join(other)}")
    if isinstance(tree, SlotKeys):
        return _slots(query, key, value, tree, module.layer_idx, scaling), None
    if isinstance(tree, FlexPlan):
        return attend(query, key, value, tree, scaling), None
    share = query.shape[1] // key.shape[1]
    if tree is None and attention_mask is not None and share > 1 and query.shape[2] <= _FEW_QUERIES:
        return _few_queries(query, key, value, attention_mask, scaling), None
    if tree is None:
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return out
    rows = []
    for q, k, v, row in zip(query.unbind(), key.unbind(), value.unbind(), tree.rows, strict=True):
        parts = []
        for run in row.runs:
            if run.path is None:
                ks, vs = k[:, : run.stop], v[:, : run.stop]
            else:
                ks, vs = k.index_select(1, run.path), v.index_select(1, run.path)
            parts.append(_attend(q[:, run.start : run.stop], ks, vs, run.mask, dropout, scaling))
        for some in row.short:
            ks, vs = k[:, some.first : some.stop], v[:, some.first : some.stop]
            parts.append(_attend(q.index_select(1, some.tokens), ks, vs, some.mask, dropout, scaling))
        if row.order is not None:
            parts = [torch.cat(parts, 1).index_select(1, row.order)]
        if padding := tree.length - row.stop:
            parts.append(q.new_zeros(q.shape[0], padding, q.shape[2]))
        rows.append(torch.cat(parts, 1))
    return torch.stack(rows).transpose(1, 2).contiguous(), None


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """(h, m, d) outputs for queries (h, m, d) over keys (g, p, d); causal where there is no mask."""
    share = q.shape[0] // k.shape[0]
    return functional.scaled_dot_product_attention(
        q[None],
        k.repeat_interleave(share, 0)[None],
        v.repeat_interleave(share, 0)[None],
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
    )[0]


def _few_queries(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Decoding: the query heads of one key head become further queries, so that no cache is copied."""
    b, h, q, d = query.shape
    g = key.shape[1]
    folded = query.reshape(b, g, h // g * q, d)
    seen = mask.expand(b, 1, q, key.shape[2])[:, :, None].expand(-1, -1, h // g, -1, -1)
    out = functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=seen.reshape(b, 1, h // g * q, -1), scale=scaling
    )
    return out.reshape(b, h, q, d).transpose(1, 2).contiguous()


def _slots(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: SlotKeys,
    layer: int,
    scaling: float | None,
) -> torch.Tensor:
    """(b, w, h, d) outputs of one token a slot, queries (b, h, w, d), whose key and value join `keys.own`.

    Scores over the prefix and over the slot's own tokens are two products and one softmax, in fp32.
    """
    b, h, w, d = query.shape
    (before, before_v), (own, own_v) = keys.prefix[layer], keys.own[layer]
    for buffer, x in ((own, key), (own_v, value)):
        buffer.index_copy_(3, keys.at, x[:, :, :, None].to(buffer.dtype))
    g, p = before.shape[1:3]
    query = query.reshape(b, g, h // g, w, d)
    shared = (query.flatten(2, 3) @ before.mT).view(b, g, h // g, w, p)
    scores = torch.cat([shared, torch.einsum("bgrwd,bgwtd->bgrwt", query, own)], -1).float()
    scores = scores * (d**-0.5 if scaling is None else scaling)
    weights = scores.masked_fill(~keys.visible, -torch.inf).softmax(-1).to(before.dtype)
    out = (weights[..., :p].flatten(2, 3) @ before_v).view(b, g, h // g, w, d)
    out = out + torch.einsum("bgrwt,bgwtd->bgrwd", weights[..., p:], own_v)
    return out.reshape(b, h, w, d).transpose(1, 2).contiguous()


AttentionInterface.register(IMPLEMENTATION, tree_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
