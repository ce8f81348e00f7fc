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


@given(sequences, st.sampled_from([1, 2, 64]))
def test_a_plan_covers_a_tree_and_its_masks_are_those_of_the_ancestors(
    seqs: list[list[int]], most: int
) -> None:
    from selfemo.models import blocks

    tree = pack(seqs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_BLOCK", most)
        (row,) = blocks.plan([tree], len(tree) + 3, "cpu").rows
    seen = np.zeros((len(tree), len(tree)), dtype=bool)
    for block in row:
        keys = np.arange(block.first, block.end) if block.keys is None else block.keys.numpy()
        assert (keys[0], keys[-1] + 1) == (block.first, block.end)
        seen[block.start : block.stop, keys[: block.common]] = True
        for token, hidden in enumerate(block.hidden.numpy(), block.start):
            seen[token, keys[block.common :][~hidden]] = True
    assert (seen == tree.ancestors()).all()
    assert [b.start for b in row[1:]] == [b.stop for b in row[:-1]], "blocks follow each other"
    assert (row[0].start, row[-1].stop) == (0, len(tree))
    assert all(b.stop - b.start <= most for b in row)


def test_a_block_holds_one_tree_and_no_key_of_another_branch() -> None:
    from selfemo.models import blocks

    # Two conversations, one of a shared past of three tokens with two endings.
    row = pack([[1, 2, 3, 4], [1, 2, 3, 5, 6], [9, 8]])
    first, second = blocks.plan([row], len(row), "cpu").rows[0]
    assert (first.start, first.stop, second.start, second.stop) == (0, 6, 6, 8)
    assert (second.first, second.end, second.keys) == (6, 8, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_BLOCK", 4)
        _, ending, _ = blocks.plan([row], len(row), "cpu").rows[0]
    assert ending.keys is not None and ending.keys.tolist() == [0, 1, 2, 4, 5], "not 3, the other ending"
    assert ending.common == 4 and ending.hidden.tolist() == [[True], [False]]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(10, 60))
def test_bins_hold_every_tree_once_and_their_capacity(sizes: list[int], capacity: int) -> None:
    rows = bins(sizes, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    for row in rows:
        assert sum(sizes[i] for i in row) <= capacity or len(row) == 1
    filled = [sum(sizes[i] for i in row) for row in rows]
    assert sum(f <= capacity / 2 for f in filled) <= 1, "two half-empty rows would be one"
