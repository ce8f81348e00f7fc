"""FlexAttention over prefix trees: one kernel that leaves out the blocks that no token of them may see.

A token attends to its ancestors and itself. With entry and exit times of a walk through the tree, depth
first, that is one comparison: k is an ancestor of q, or q itself, where entry[k] <= entry[q] < exit[k].

Shapes: b rows, s row length, n tokens of one tree; blocks of `BLOCK` x `BLOCK` queries and keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from selfemo.models.compiling import for_all_lengths
from selfemo.models.packing import Pack
from selfemo.models.transfer import to_device

BLOCK = 128
LEAST_TOKENS = 1000
"""Shorter rows take the dense mask, whose kernel is said to be faster there."""


@dataclass(frozen=True)
class FlexPlan:
    """The blocks that each row of packed trees computes."""

    mask: BlockMask


def times(pack: Pack) -> tuple[np.ndarray, np.ndarray]:
    """(n,) entry and (n,) exit of each token: when a walk, depth first, comes to it and has left what is
    behind it."""
    n = len(pack)
    runs = [(start, stop, path[-(stop - start) - 1] if len(path) > stop - start else -1)
            for start, stop, path in pack.runs()]  # fmt: skip
    size, branches = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for start, stop, parent in reversed(runs):
        size[start:stop] = np.cumsum(1 + branches[start:stop][::-1])[::-1]
        if parent >= 0:
            branches[parent] += size[start]
    entry, free, root = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), 0
    for start, stop, parent in runs:
        # The walk follows a run to its end before it turns to what branches off.
        first = root if parent < 0 else free[parent]
        entry[start:stop] = first + np.arange(stop - start)
        free[start:stop] = entry[start:stop] + size[start:stop] - branches[start:stop]
        if parent < 0:
            root += size[start]
        else:
            free[parent] += size[start]
    return entry, entry + size


def plan(packs: Sequence[Pack], length: int, device: torch.device | str) -> FlexPlan:
    """The blocks of packed trees that are padded to `length`, a multiple of `BLOCK`; padding sees itself."""
    b, blocks = len(packs), length // BLOCK
    entry = np.tile(np.arange(length), (b, 1))
    exit_ = entry + 1
    touched = np.zeros((b, blocks, blocks), dtype=bool)
    touched[:, np.arange(blocks), np.arange(blocks)] = True
    for row, p in enumerate(packs):
        entry[row, : len(p)], exit_[row, : len(p)] = times(p)
        for start, stop, path in p.runs():
            seen = np.unique(path // BLOCK)
            touched[row, start // BLOCK : (stop - 1) // BLOCK + 1, seen] = True
    touched &= np.tri(blocks, dtype=bool)  # an ancestor stands before its descendants
    # Blocks in the order of their keys, those to compute first.
    order = np.argsort(~touched, axis=-1, kind="stable")
    counts, indices = (to_device(x.astype(np.int32)[:, None], device) for x in (touched.sum(-1), order))
    first, last = (to_device(x.astype(np.int32), device) for x in (entry, exit_))
    mask = BlockMask.from_kv_blocks(
        counts, indices, BLOCK_SIZE=BLOCK, mask_mod=_ancestor(first, last), seq_lengths=(length, length)
    )
    return FlexPlan(mask)


def _ancestor(entry: torch.Tensor, exit_: torch.Tensor) -> Callable[..., torch.Tensor]:
    def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (entry[b, k] <= entry[b, q]) & (entry[b, q] < exit_[b, k])

    return seen


@functools.cache
def _kernel(device: str) -> Callable[..., Any]:
    """Compiled for all lengths on CUDA; elsewhere plain operations, which compute masked blocks too."""
    return for_all_lengths(flex_attention) if device == "cuda" else cast(Any, flex_attention)


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, scaling: float | None
) -> torch.Tensor:
    """The same with a gradient where the kernel has none (CPU), over the dense mask."""
    rows, at = (torch.arange(n, device=query.device) for n in (query.shape[0], query.shape[2]))
    seen = mask.mask_mod(rows[:, None, None, None], at[:1], at[:, None], at)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=scaling, enable_gqa=True
    )


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan_: FlexPlan, scaling: float | None
) -> torch.Tensor:
    """(b, s, h, d) outputs for queries (b, h, s, d), keys and values (b, g, s, d)."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    if query.device.type != "cuda" and torch.is_grad_enabled():
        out = _plain(query, key, value, plan_.mask, scaling)
    else:
        kernel = _kernel(query.device.type)
        out = kernel(query, key, value, block_mask=plan_.mask, scale=scaling, enable_gqa=True)
    found: torch.Tensor = out.transpose(1, 2).contiguous()
    return found
