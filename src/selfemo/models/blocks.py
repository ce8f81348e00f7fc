"""Attention over packed trees, by blocks of queries against the keys that any of them sees.

A packed tree (packing.py) is a row of runs: the first sequence, then the tokens that each further sequence
does not share. Consecutive tokens form a block; its keys are the union of their ancestors, so other branches
cost nothing, whether a run has one token or a thousand. Scores are explicit products of one block at a time,
and the backward pass computes them again: one node of autograd a layer, no gradient of slices that would fill
whole rows, and keys and values are never repeated for the query heads that share them.

What is computed is fp32, whatever the precision of the inputs: on a CPU scores are bound by their softmax.

Shapes: b rows, h query heads, g key/value heads, r = h / g, s row length, d head size, n queries of a block,
p its keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from selfemo.models.packing import Pack

_BLOCK = 64
"""Queries of a block: fewer make more and smaller products, more compute scores that no query sees."""


@dataclass(frozen=True)
class Block:
    """Tokens `start` to `stop` of a row, which follow each other in one tree.

    Attributes:
        first, end: the part of the row that holds their keys.
        keys: (p,) the places of the keys in the row; None: all of that part.
        common: the leading keys that all of the tokens see.
        hidden: (n, p - common) bool, true where a token does not see one of the other keys.
    """

    start: int
    stop: int
    first: int
    end: int
    keys: torch.Tensor | None
    common: int
    hidden: torch.Tensor


@dataclass(frozen=True)
class TreePlan:
    """How the attention of packed trees is computed.

    Attributes:
        rows: the blocks of each row.
        length: the padded row length.
        only: the tokens that are queries, from which blocks count; None: all.
        last: of the last layer, where not all of its tokens are needed.
    """

    rows: tuple[tuple[Block, ...], ...]
    length: int
    only: torch.Tensor | None = None
    last: TreePlan | None = None

    def narrowed(self, only: np.ndarray) -> TreePlan:
        """This plan of one row, where of the last layer some tokens (u,) are needed, in ascending order."""
        kept = []
        for b in self.rows[0]:
            low, high = np.searchsorted(only, [b.start, b.stop]).tolist()
            if low < high:
                rows = torch.from_numpy(only[low:high] - b.start).to(b.hidden.device)
                kept.append(replace(b, start=low, stop=high, hidden=b.hidden[rows]))
        where = torch.from_numpy(only).to(self.rows[0][0].hidden.device)
        return replace(self, last=TreePlan((tuple(kept),), len(only), where))


def plan(packs: Sequence[Pack], length: int, device: torch.device | str) -> TreePlan:
    """The blocks of packed trees that are padded to `length`."""
    return TreePlan(tuple(tuple(_blocks(p, device)) for p in packs), length)


def _blocks(pack: Pack, device: torch.device | str) -> Iterator[Block]:
    waiting: list[tuple[int, int, np.ndarray]] = []
    for start, stop, path in pack.runs():
        at = start
        while at < stop:
            if waiting and (waiting[0][2][0] != path[0] or at - waiting[0][0] == _BLOCK):
                yield _block(waiting, device)
                waiting = []
            end = min(stop, (waiting[0][0] if waiting else at) + _BLOCK)
            waiting.append((at, end, path[: len(path) - (stop - end)]))
            at = end
    yield _block(waiting, device)


def _block(pieces: Sequence[tuple[int, int, np.ndarray]], device: torch.device | str) -> Block:
    """Of tokens that follow each other, each piece (start, stop, path) on one path of the tree."""
    start, stop = pieces[0][0], pieces[-1][1]
    used = np.zeros(stop, dtype=bool)
    for *_, path in pieces:
        used[path] = True
    keys = np.flatnonzero(used)
    column = np.cumsum(used) - 1
    seen = np.zeros((stop - start, len(keys)), dtype=bool)
    for a, b, path in pieces:
        seen[a - start : b - start, column[path]] = np.tri(b - a, len(path), len(path) - (b - a), dtype=bool)
    everyone = seen.all(0)
    common = len(keys) if everyone.all() else int(everyone.argmin())
    first, end = int(keys[0]), int(keys[-1]) + 1
    return Block(
        start, stop, first, end,
        None if len(keys) == end - first else torch.from_numpy(keys).to(device),
        common, torch.from_numpy(~seen[:, common:]).to(device),
    )  # fmt: skip


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: TreePlan,
    scaling: float | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """(b, s, h, d) outputs for queries (b, h, s, d), keys and values (b, g, s, d); zero at padding."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows = [
        _with_dropout(q, k, v, blocks, scale, dropout)
        if dropout
        else _Attention.apply(q, k, v, blocks, scale)
        for q, k, v, blocks in zip(query.unbind(), key.unbind(), value.unbind(), plan.rows, strict=True)
    ]
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)


class _Attention(torch.autograd.Function):
    """(s, h, d) outputs of one row for queries (h, s, d), keys and values (g, s, d)."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: tuple[Block, ...], scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.blocks, ctx.scale = blocks, scale
        with torch.autocast(q.device.type, enabled=False):
            queries, keys, values = _folded(q, len(k)), _wide(k), _wide(v)
            out = torch.empty_like(queries)
            for block in blocks:
                weights = _weights(_rows(queries, block), _of(block, keys), block, scale)
                torch.bmm(weights, _of(block, values), out=_rows(out, block))
            return _unfolded(out, blocks[-1].stop, q.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        q, k, v = ctx.saved_tensors
        blocks, scale = ctx.blocks, ctx.scale
        queries, keys, values = _folded(q, len(k)), _wide(k), _wide(v)
        outgoing = _folded(grad.transpose(0, 1), len(k))
        d_queries, d_keys, d_values = (torch.empty_like(queries), *(torch.zeros_like(keys) for _ in "kv"))
        for block in blocks:
            qb, gb = _rows(queries, block), _rows(outgoing, block)
            kb, vb = _of(block, keys), _of(block, values)
            weights = _weights(qb, kb, block, scale)
            _add(d_values, block, weights.mT, gb)
            scores = torch._softmax_backward_data(gb @ vb.mT, weights, -1, weights.dtype)
            _add(d_keys, block, scores.mT, qb, scale)
            _rows(d_queries, block).baddbmm_(scores, kb, beta=0, alpha=scale)
        d_query = _unfolded(d_queries, blocks[-1].stop, q.dtype).transpose(0, 1)
        return d_query, d_keys.to(k.dtype), d_values.to(v.dtype), None, None


def _with_dropout(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: tuple[Block, ...], scale: float, dropout: float
) -> torch.Tensor:
    """What `_Attention` computes, where some weights are left out; no common model trains so."""
    out = []
    for b in blocks:
        kb, vb = _of(b, k), _of(b, v)
        seen = torch.ones(b.stop - b.start, kb.shape[1], dtype=torch.bool, device=q.device)
        seen[:, b.common :] = ~b.hidden
        out.append(
            functional.scaled_dot_product_attention(
                q[None, :, b.start : b.stop], kb[None], vb[None], seen, dropout, scale=scale, enable_gqa=True
            )[0]
        )
    found = torch.cat(out, 1).transpose(0, 1)
    return functional.pad(found, (0, 0, 0, 0, 0, q.shape[1] - len(found)))


def _folded(x: torch.Tensor, g: int) -> torch.Tensor:
    """(g, s, r, d) fp32 of (h, s, d): the query heads of one key head side by side."""
    return _wide(x.unflatten(0, (g, -1)).transpose(1, 2))


def _unfolded(x: torch.Tensor, stop: int, dtype: torch.dtype) -> torch.Tensor:
    """(s, h, d) of (g, s, r, d); zero from `stop` on."""
    g, s, r, d = x.shape
    out = x.new_empty(s, g * r, d, dtype=dtype)
    out.view(s, g, r, d).copy_(x.transpose(0, 1))
    out[stop:] = 0
    return out


def _wide(x: torch.Tensor) -> torch.Tensor:
    """x, in fp32 if it is in bf16, contiguous, by one copy at the most."""
    if x.dtype != torch.bfloat16:
        return x.contiguous()
    return torch.empty(x.shape, device=x.device).copy_(x)


def _rows(x: torch.Tensor, block: Block) -> torch.Tensor:
    """(g, n r, d) the block's part of (g, s, r, d)."""
    return x[:, block.start : block.stop].flatten(1, 2)


def _of(block: Block, x: torch.Tensor) -> torch.Tensor:
    """(g, p, d) the block's keys or values of a row's (g, s, d)."""
    return x[:, block.first : block.end] if block.keys is None else x.index_select(1, block.keys)


def _add(into: torch.Tensor, block: Block, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> None:
    """Add scale a @ b (g, p, d) to the places of the block's keys in (g, s, d)."""
    if block.keys is None:
        into[:, block.first : block.end].baddbmm_(a, b, alpha=scale)
    else:
        into.index_add_(1, block.keys, a @ b, alpha=scale)


def _weights(q: torch.Tensor, k: torch.Tensor, block: Block, scale: float) -> torch.Tensor:
    """(g, n r, p) weights of queries (g, n r, d) over keys (g, p, d)."""
    scores = q.new_empty(len(q), q.shape[1], k.shape[1]).baddbmm_(q, k.mT, beta=0, alpha=scale)
    if block.common < scores.shape[-1]:
        own = scores.unflatten(1, (block.stop - block.start, -1))[..., block.common :]
        own.masked_fill_(block.hidden[:, None], -torch.inf)
    return torch.softmax(scores, -1)
