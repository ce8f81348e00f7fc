"""Prefix trees: structure, masks, batching. (That they compute the same is in tests/model.)"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.models.packing import bins, group_by_key, micro_batches, pack, shared_prefix, to_rows

sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=8)


def test_a_worked_tree() -> None:
    tree = pack([[5, 6, 7], [5, 6, 8, 9], [5, 6]])
    assert tree.tokens.tolist() == [5, 6, 7, 8, 9]
    assert tree.positions.tolist() == [0, 1, 2, 2, 3]
    assert [p.tolist() for p in tree.paths] == [[0, 1, 2], [0, 1, 3, 4], [0, 1]]
    assert tree.ancestors().astype(int).tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1],
    ]  # fmt: skip


@given(sequences)
def test_paths_spell_the_sequences_and_masks_follow_them(seqs: list[list[int]]) -> None:
    tree = pack(seqs)
    mask = tree.ancestors()
    for sequence, path in zip(seqs, tree.paths, strict=True):
        assert tree.tokens[path].tolist() == sequence
        assert tree.positions[path].tolist() == list(range(len(sequence)))
        assert sorted(np.flatnonzero(mask[path[-1]])) == sorted(path)
    assert len(tree) == len({tuple(s[: i + 1]) for s in seqs for i in range(len(s))})


def test_nothing_to_pack_is_refused() -> None:
    for bad in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one"):
            pack(bad)


def test_rows_pad_to_themselves() -> None:
    rows = to_rows([pack([[1, 2, 3]]), pack([[4]])])
    assert rows.input_ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert rows.mask[1, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@given(sequences, st.integers(1, 40))
def test_grouping_keeps_all_and_bounds_trees(seqs: list[list[int]], limit: int) -> None:
    keys = [i % 3 for i in range(len(seqs))]
    groups = group_by_key(seqs, keys, limit)
    assert sorted(i for g in groups for i in g) == list(range(len(seqs)))
    for g in groups:
        assert len({keys[i] for i in g}) == 1
        assert len(pack([seqs[i] for i in g])) <= max(limit, max(len(seqs[i]) for i in g))


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_micro_batches_keep_all_within_budget(sizes: list[int], budget: int) -> None:
    batches = micro_batches(sizes, budget)
    assert sorted(i for b in batches for i in b) == list(range(len(sizes)))
    for b in batches:
        assert len(b) == 1 or len(b) * max(sizes[i] for i in b) <= budget


def test_shared_prefix() -> None:
    assert shared_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert shared_prefix([1, 2], [1, 2, 4]) == 2
    assert shared_prefix([], [1]) == 0


@given(sequences, st.sampled_from([0, 2, 64]))
def test_a_plan_covers_a_tree_and_its_masks_are_those_of_the_ancestors(
    seqs: list[list[int]], short: int
) -> None:
    from selfemo.models import attention

    tree = pack(seqs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_SHORT", short)
        (row,) = attention.plan([tree], len(tree) + 3, "cpu").rows
    seen = np.zeros((len(tree), len(tree)), dtype=bool)
    placed: list[int] = []
    for run in row.runs:
        placed += range(run.start, run.stop)
        for q in range(run.start, run.stop):
            if run.path is None or run.mask is None:
                seen[q, run.start : q + 1] = True
            else:
                seen[q, run.path[run.mask[q - run.start]].numpy()] = True
    for some in row.short:
        tokens = some.tokens.tolist()
        placed += tokens
        seen[tokens, some.first : some.stop] = some.mask.numpy()
    assert (seen == tree.ancestors()).all()
    assert row.stop == len(tree) and sorted(placed) == list(range(len(tree)))
    order = placed if row.order is None else [placed[k] for k in row.order]
    assert order == list(range(len(tree))), "the results come back in the order of the row"
    assert all(run.stop - run.start > short for run in row.runs[1:])
    assert row.runs[0].start == 0


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(10, 60))
def test_bins_hold_every_tree_once_and_their_capacity(sizes: list[int], capacity: int) -> None:
    rows = bins(sizes, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    for row in rows:
        assert sum(sizes[i] for i in row) <= capacity or len(row) == 1
    filled = [sum(sizes[i] for i in row) for row in rows]
    assert sum(f <= capacity / 2 for f in filled) <= 1, "two half-empty rows would be one"
