"""The conversations that are held out for evaluation, and random parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from selfemo.errors import DataError
from selfemo.method.types import Conversation
from selfemo.seeds import rng

T = TypeVar("T")
Half = Literal["all", "tuning", "claim"]


def drawn(items: Sequence[T], limit: int, seed: int, *names: object) -> list[T]:
    """`limit` of the items, drawn by `rng(seed, *names)`, in their own order; 0 takes all."""
    if not 0 < limit < len(items):
        return list(items)
    return [items[i] for i in sorted(rng(seed, *names).permutation(len(items))[:limit])]


def halves(items: Sequence[T], seed: int, *names: object) -> tuple[list[T], list[T]]:
    """Two parts drawn by `rng(seed, *names)`, each in the items' order; the first has the odd one."""
    first = set(rng(seed, *names).permutation(len(items))[: (len(items) + 1) // 2].tolist())
    return [t for i, t in enumerate(items) if i in first], [t for i, t in enumerate(items) if i not in first]


def held_out(
    conversations: Sequence[Conversation], split: str, limit: int, seed: int, half: Half = "all"
) -> list[Conversation]:
    """The conversations of a split, in file order.

    Args:
        limit: how many of each data set, drawn by `seed`; 0 takes all.
        half: "tuning" or "claim" for a half of each data set's conversations, parted by `seed` before
            any are drawn, so that no limit moves a conversation from one half to the other.

    Raises:
        DataError: the split, or its half, is empty.
    """
    chosen: list[Conversation] = []
    for name in dict.fromkeys(c.dataset for c in conversations):
        members = [c for c in conversations if c.dataset == name and c.split == split]
        if half != "all":
            tuning, claim = halves(members, seed, "half", name, split)
            members = tuning if half == "tuning" else claim
        chosen.extend(drawn(members, limit, seed, "held out", name, split))
    if not chosen:
        told = "" if half == "all" else f" (its {half} half, data.eval_half)"
        raise DataError(
            f"no conversation in split {split!r}{told} to evaluate on; set data.eval_split to a split that "
            "the data has (selfemo data check shows them)"
        )
    return chosen
