"""The conversations that are held out for evaluation, and random parts of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from selfemo.errors import DataError
from selfemo.method.types import Conversation, Split
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


def hold_out(conversations: Sequence[Conversation], ids: Collection[str], share: float) -> list[Conversation]:
    """Give some conversations, by id, a split: a share (at least one) "dev", the others "train".

    Which ones depends on their ids alone, so every run holds out the same.
    """
    order = sorted(ids)
    chosen = rng(0, "hold out").permutation(len(order))[: max(1, round(share * len(order)))]
    kept = {order[i] for i in chosen}
    return [replace(c, split="dev" if c.id in kept else "train") if c.id in ids else c for c in conversations]


def existing_split(conversations: Sequence[Conversation], wanted: Split) -> Split:
    """The wanted split if there is one, else the first that there is of test, dev and train."""
    there = {c.split for c in conversations}
    order: tuple[Split, ...] = (wanted, "test", "dev", "train")
    return next((s for s in order if s in there), wanted)


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
        there = ", ".join(f"{n} {s}" for s, n in Counter(c.split for c in conversations).items())
        raise DataError(
            f"no conversation in split {split!r}{told} to evaluate on; there are: {there}. Name another: "
            "--split, or data.eval_split in the configuration"
        )
    return chosen
