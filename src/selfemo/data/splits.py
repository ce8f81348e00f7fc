"""The conversations that are held out for evaluation, and random parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from selfemo.errors import DataError
from selfemo.method.types import Conversation
from selfemo.seeds import rng

T = TypeVar("T")


def drawn(items: Sequence[T], limit: int, seed: int, *names: object) -> list[T]:
    """`limit` of the items, drawn by `rng(seed, *names)`, in their own order; 0 takes all."""
    if not 0 < limit < len(items):
        return list(items)
    return [items[i] for i in sorted(rng(seed, *names).permutation(len(items))[:limit])]


def held_out(conversations: Sequence[Conversation], split: str, limit: int, seed: int) -> list[Conversation]:
    """The conversations of a split, in file order.

    Args:
        limit: how many of each data set, drawn by `seed`; 0 takes all.

    Raises:
        DataError: the split is empty.
    """
    chosen: list[Conversation] = []
    for name in dict.fromkeys(c.dataset for c in conversations):
        members = [c for c in conversations if c.dataset == name and c.split == split]
        chosen.extend(drawn(members, limit, seed, "held out", name, split))
    if not chosen:
        raise DataError(
            f"no conversation in split {split!r} to evaluate on; set data.eval_split to a split that "
            "the data has (selfemo data check shows them)"
        )
    return chosen
