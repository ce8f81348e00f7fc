"""Which conversations of the data are held out for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from selfemo.errors import DataError
from selfemo.method.types import Conversation
from selfemo.seeds import rng


def held_out(
    conversations: Sequence[Conversation], split: str, limit: int, seed: int
) -> list[Conversation]:
    """The conversations of a split, in file order.

    Args:
        limit: how many of each data set, drawn by `seed`; 0 takes all.

    Raises:
        DataError: the split is empty.
    """
    chosen: list[Conversation] = []
    for name in dict.fromkeys(c.dataset for c in conversations):
        members = [c for c in conversations if c.dataset == name and c.split == split]
        if limit and limit < len(members):
            drawn = rng(seed, "held out", name, split).permutation(len(members))[:limit]
            members = [members[i] for i in sorted(drawn)]
        chosen.extend(members)
    if not chosen:
        raise DataError(
            f"no conversation in split {split!r} to evaluate on; set data.eval_split to a split that "
            "the data has (selfemo data check shows them)"
        )
    return chosen
