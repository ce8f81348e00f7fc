"""Tree attention and decoding attention equal scaled dot product attention under the dense mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from selfemo.models import blocks
from selfemo.models.attention import few_queries, tree_attention
from selfemo.models.blocks import plan
from selfemo.models.packing import pack, to_rows

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=6)
HEADS, KEYS, WIDTH = 6, 2, 8


def dense(query, key, value, mask):
    share = HEADS // KEYS
    k, v = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    return functional.scaled_dot_product_attention(query, k, v, attn_mask=mask).transpose(1, 2)


def states(rows: int, queries: int, keys: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(queries * 100 + keys)
    shapes = [(rows, HEADS, queries), (rows, KEYS, keys), (rows, KEYS, keys)]
    return [torch.randn(*s, WIDTH, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


@given(st.lists(sequences, min_size=1, max_size=3))
def test_trees_forward_and_backward(groups: list[list[list[int]]]) -> None:
    packs = [pack(g) for g in groups]
    rows = to_rows(packs, multiple=4)
    length = rows.input_ids.shape[1]
    qkv = states(len(packs), length, length)
    real = torch.zeros(len(packs), length, 1, 1)
    for b, p in enumerate(packs):
        real[b, : len(p)] = 1
    outputs, gradients = [], []
    for how in ("tree", "dense"):
        if how == "tree":
            out, _ = tree_attention(None, *qkv, None, tree=plan(packs, length, "cpu"))
            assert (out * (1 - real) == 0).all(), "padding is zero"
        else:
            out = dense(*qkv, rows.mask)
        out = out * real
        outputs.append(out)
        gradients.append(torch.autograd.grad((out * torch.arange(WIDTH)).sum(), qkv))
    torch.testing.assert_close(*outputs)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("queries", [1, 5])
def test_decoding_folds_heads_into_queries(queries: int) -> None:
    qkv = states(3, queries, 11)
    mask = torch.rand(3, 1, queries, 11, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[..., 0] = True
    few = few_queries(mask, HEADS // KEYS, torch.float64)
    assert few is not None and few.mask.shape == (3, 1, queries * HEADS // KEYS, 11)
    out, _ = tree_attention(None, *qkv, None, tree=few)
    torch.testing.assert_close(out, dense(*qkv, mask))


def test_many_queries_or_heads_of_their_own_are_not_folded() -> None:
    assert few_queries(torch.ones(1, 1, 65, 70, dtype=torch.bool), 3, torch.float32) is None
    assert few_queries(torch.ones(1, 1, 5, 70, dtype=torch.bool), 1, torch.float32) is None


TREE = pack([[1, 2, 3, 4], [1, 2, 3, 5, 6], [9, 8]])


def test_dropout_leaves_weights_out_and_nothing_else() -> None:
    qkv = states(1, len(TREE), len(TREE))
    row = plan([TREE], len(TREE), "cpu")
    plain = blocks.attend(*qkv, row, None)
    torch.testing.assert_close(blocks.attend(*qkv, row, None, 1e-12), plain)
    torch.manual_seed(0)
    mean = torch.stack([blocks.attend(*qkv, row, None, 0.3) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(mean, plain, atol=0.1, rtol=0)
    assert not torch.allclose(blocks.attend(*qkv, row, None, 0.3), plain)


def test_bf16_is_computed_in_fp32() -> None:
    wide = [x.float().detach() for x in states(1, len(TREE), len(TREE))]
    narrow = [x.bfloat16().requires_grad_() for x in wide]
    rounded = [x.detach().float().requires_grad_() for x in narrow]
    row = plan([TREE], len(TREE), "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        out = blocks.attend(*narrow, row, None)
    exact = blocks.attend(*rounded, row, None)
    assert out.dtype == torch.bfloat16
    assert (out == exact.bfloat16()).all()
    out.backward(torch.ones_like(out))
    exact.backward(torch.ones_like(exact))
    for a, b in zip(narrow, rounded, strict=True):
        assert (a.grad == b.grad.bfloat16()).all()
