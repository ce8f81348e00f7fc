"""Prefix trees: many token sequences in one row, each shared token computed once.

The G completions of a prompt share the prompt, the turns of a conversation share its history, and
rollouts often share their first tokens. `pack` merges equal prefixes into a tree; a token attends to its
ancestors alone and takes the position it has in its own sequence, so hidden states, log-probabilities and
gradients are those of separate rows (tested), while the work is that of the distinct tokens. Sequences that
do not begin alike are a forest, packed in the same way.

Shapes: b rows (trees), s padded row length, n tokens of one tree.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pack:
    """One prefix tree, flattened so that a parent comes before its children.

    Attributes:
        tokens: (n,) token ids.
        positions: (n,) position in the token's own sequence (depth in the tree).
        paths: for each packed sequence, the tree index of each of its tokens.
    """

    tokens: np.ndarray
    positions: np.ndarray
    paths: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def runs(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(start, stop, path) of each sequence that adds tokens: they follow each other in the tree."""
        done = 0
        for path in self.paths:
            new = int((path >= done).sum())
            if new:
                yield done, done + new, path
                done += new

    def ancestors(self) -> np.ndarray:
        """(n, n) bool: row i is true at i and at each ancestor of i, the keys token i may attend to."""
        n = len(self)
        mask = np.zeros((n, n), dtype=bool)
        for start, stop, path in self.runs():
            mask[start:stop, path[: len(path) - (stop - start)]] = True
            mask[start:stop, start:stop] = np.tri(stop - start, dtype=bool)
        return mask


def pack(sequences: Sequence[Sequence[int]]) -> Pack:
    """Merge sequences into one prefix tree (ValueError: there is no sequence, or one is empty)."""
    if not sequences or any(len(s) == 0 for s in sequences):
        raise ValueError("pack needs at least one sequence and none of them empty")
    arrays = [np.asarray(s, dtype=np.int64) for s in sequences]
    tokens, positions, paths = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    n = 0
    for k, sequence in enumerate(arrays):
        # The tree is the union of the sequences so far: its longest match is the longest with one of them.
        shared, with_ = 0, 0
        for j in range(k - 1, -1, -1):  # neighbours share most
            if shared == len(sequence):
                break
            if len(arrays[j]) <= shared or arrays[j][shared] != sequence[shared]:
                continue
            if (common := shared_prefix(arrays[j], sequence)) > shared:
                shared, with_ = common, j
        before = paths[with_][:shared] if shared else np.empty(0, dtype=np.int64)
        own = np.arange(n, n + len(sequence) - shared)
        if len(own):
            tokens.append(sequence[shared:])
            positions.append(np.arange(shared, len(sequence)))
            n += len(own)
        paths.append(np.concatenate([before, own]))
    return Pack(np.concatenate(tokens), np.concatenate(positions), tuple(paths))


@dataclass(frozen=True)
class PackedRows:
    """Trees padded to one rectangle, ready for a model.

    Attributes:
        input_ids, position_ids: (b, s) int64.
        mask: (b, 1, s, s) bool, true where a query may attend; padding attends to itself alone. None
            where `tree` says it instead.
        tree: an attention.TreePlan or SlotKeys, or a flex.FlexPlan.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor | None
    tree: Any = None


def to_rows(
    packs: Sequence[Pack], device: torch.device | str = "cpu", multiple: int = 1, *, masked: bool = True
) -> PackedRows:
    """Packs as padded rows of a length that `multiple` divides; with the dense mask if `masked`."""
    from selfemo.models.transfer import to_device

    b, s = len(packs), -(-max(len(p) for p in packs) // multiple) * multiple
    ids, positions = np.zeros((2, b, s), dtype=np.int64)
    for row, p in enumerate(packs):
        ids[row, : len(p)], positions[row, : len(p)] = p.tokens, p.positions
    rows = to_device(ids, device), to_device(positions, device)
    if not masked:
        return PackedRows(*rows, None)
    mask = np.zeros((b, 1, s, s), dtype=bool)
    mask[:, 0, np.arange(s), np.arange(s)] = True
    for row, p in enumerate(packs):
        mask[row, 0, : len(p), : len(p)] = p.ancestors()
    return PackedRows(*rows, to_device(mask, device))


def shared_prefix(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray) -> int:
    """Number of leading tokens that two sequences have in common."""
    n = min(len(a), len(b))
    differ = np.asarray(a[:n]) != np.asarray(b[:n])
    first = int(differ.argmax()) if n else 0
    return first if n and differ[first] else n


def group_by_key(
    sequences: Sequence[Sequence[int]],
    keys: Sequence[Hashable],
    max_tokens: int,
    extra: Sequence[int] | None = None,
) -> list[list[int]]:
    """Put sequences with the same key into one tree each, cut so that no tree exceeds `max_tokens`.

    The order inside a key is kept (neighbours share most). A sequence counts by the tokens that it adds to
    its predecessor, an upper bound of those that it adds to the tree. A longer one gets its own tree.

    Args:
        extra: tokens that each sequence will still grow by (generation), counted in full.
    """
    groups: dict[Hashable, list[list[int]]] = {}
    fill: dict[Hashable, int] = {}
    for i, (sequence, key) in enumerate(zip(sequences, keys, strict=True)):
        grow = extra[i] if extra is not None else 0
        parts = groups.setdefault(key, [])
        added = len(sequence) + grow
        if parts:
            added -= shared_prefix(sequences[parts[-1][-1]], sequence)
        if not parts or fill[key] + added > max_tokens:
            parts.append([])
            fill[key], added = 0, len(sequence) + grow
        parts[-1].append(i)
        fill[key] += added
    return [part for parts in groups.values() for part in parts]


def bins(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Put trees into rows of at most `capacity` tokens: first fit, the largest first.

    A larger tree has a row of its own. Every index appears exactly once; rows keep the order of their trees.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        at = next((k for k, left in enumerate(room) if sizes[i] <= left), None)
        if at is None:
            rows.append([])
            room.append(capacity)
            at = len(rows) - 1
        rows[at].append(i)
        room[at] -= sizes[i]
    return [sorted(row) for row in rows]


def micro_batches(sizes: Sequence[int], token_budget: int) -> list[list[int]]:
    """Batch trees of similar size so that rows x longest row stays within `token_budget`; see `bins`."""
    batches: list[list[int]] = []
    current: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        longest = max(sizes[current[0]], sizes[i]) if current else sizes[i]
        if current and longest * (len(current) + 1) > token_budget:
            batches.append(current)
            current = []
        current.append(i)
    if current:
        batches.append(current)
    return batches
