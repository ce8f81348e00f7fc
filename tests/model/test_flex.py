"""FlexAttention over prefix trees (models/flex.py), as plain operations on a CPU, against the other paths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.config import GrpoConfig, ModelConfig
from selfemo.models import flex
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.packing import pack
from selfemo.training.engine import LocalEngine
from tests.support.engines import assert_same_gradients, gradients, rl_items

trees = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(trees)
def test_entry_and_exit_times_tell_ancestors(sequences: list[list[int]]) -> None:
    tree = pack(sequences)
    entry, exit_ = flex.times(tree)
    assert sorted(entry.tolist()) == list(range(len(tree)))
    seen = (entry[None] <= entry[:, None]) & (entry[:, None] < exit_[None])
    assert (seen == tree.ancestors()).all()


def test_times_of_a_tree_worked_by_hand() -> None:
    """a b c, then a d behind a, then e of its own: the walk is a b c d e."""
    entry, exit_ = flex.times(pack([[1, 2, 3], [1, 4], [5]]))
    assert entry.tolist() == [0, 1, 2, 3, 4]
    assert exit_.tolist() == [4, 3, 3, 4, 5]


@settings(max_examples=60, deadline=None)
@given(st.lists(trees, min_size=1, max_size=3), st.sampled_from([4, 16]))
def test_blocks_hold_all_that_is_visible(rows: list[list[list[int]]], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "BLOCK", block)
        packs = [pack(r) for r in rows]
        length = -(-max(map(len, packs)) // block) * block
        made = flex.plan(packs, length, "cpu").mask
        n = length // block
        computed = np.zeros((len(packs), n, n), dtype=bool)
        for b, q in np.ndindex(len(packs), n):
            count = int(made.kv_num_blocks[b, 0, q])
            computed[b, q, made.kv_indices[b, 0, q, :count].numpy()] = True
        at = torch.arange(length)
        for b, p in enumerate(packs):
            seen = made.mask_mod(torch.tensor(b), torch.tensor(0), at[:, None], at[None]).numpy()
            expected = np.eye(length, dtype=bool)
            expected[: len(p), : len(p)] = p.ancestors()
            assert (seen == expected).all()
            visible = expected.reshape(n, block, n, block).any((1, 3))
            assert (computed[b] | ~visible).all(), "no visible block is left out"
            assert not computed[b][np.triu_indices(n, 1)].any(), "nothing looks ahead"


def engine(tiny_model: Path, attention: str) -> LocalEngine:
    return LocalEngine(ModelConfig(id=str(tiny_model), device="cpu", dtype="fp32", attention=attention))


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
def test_scores_and_gradients_are_those_of_the_tree(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, gradients and completions; short rows take the dense mask."""
    called: list[int] = []
    attend = flex.attend
    monkeypatch.setattr("selfemo.models.flex.attend", lambda *a: called.append(a[0].shape[2]) or attend(*a))
    config = GrpoConfig(kl_coef=0, entropy_coef=0.01, micro_tokens=300)
    found = {}
    for name in ("flex", "tree"):
        for least in (0, 1000):
            monkeypatch.setattr(flex, "LEAST_TOKENS", least)
            e = engine(tiny_model, name)
            e.begin_stage(config)
            measures = e.rl_backward(rl_items(5, 4), config)
            greedy = e.sampler.generate(
                [Request(i.prompt_ids, 2, 7, share="s") for i in rl_items(4, 1)],
                SamplingSettings(8, temperature=0.0),
            )
            found[name, least] = (
                gradients(e.policy.core),
                measures,
                [[c.token_ids for c in g] for g in greedy],
            )
            assert bool(called) == (name == "flex" and least == 0), (name, least)
            assert all(length % flex.BLOCK == 0 for length in called)
            called.clear()
    for least in (0, 1000):
        (a, measures, greedy), (b, expected, same) = found["flex", least], found["tree", least]
        assert_same_gradients(a, b, rtol=1e-4)
        assert measures == pytest.approx(expected, rel=1e-5)
        assert greedy == same


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
def test_the_kernel_computes_what_the_dense_mask_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient a CPU has the kernel too: rows of several blocks, shared key heads, padding."""
    rng = np.random.default_rng(0)
    stem = rng.integers(0, 9, 150).tolist()
    packs = [pack([[*stem[:n], *rng.integers(0, 9, 40)] for n in (150, 90, 20)]), pack([stem])]
    plan = flex.plan(packs, 384, "cpu")
    q, k, v = (torch.from_numpy(rng.normal(size=(2, h, 384, 16))).float() for h in (6, 2, 2))
    with torch.no_grad():
        kernel = flex.attend(q, k, v, plan, 0.3)
    dense = flex.attend(q, k, v, plan, 0.3)
    for row, p in enumerate(packs):
        seen = torch.from_numpy(p.ancestors())
        n = len(p)
        keys, values = (x[row, :, :n].repeat_interleave(3, 0) for x in (k, v))
        scores = (q[row, :, :n] @ keys.mT * 0.3).masked_fill(~seen, -torch.inf)
        expected = (scores.softmax(-1) @ values).transpose(0, 1)
        assert torch.allclose(kernel[row, :n], expected, atol=1e-5)
        assert torch.allclose(dense[row, :n], expected, atol=1e-5)
