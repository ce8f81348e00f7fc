"""Labels in bf16: told apart in fp32, and the same in whatever batch their turns stand (label_scores.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from selfemo.models.generation import label_scores
from selfemo.models.generation.branches import branch_logp
from selfemo.models.generation.label_scores import label_probabilities
from selfemo.models.loading import load_policy
from selfemo.models.packing import pack, shared_prefix
from selfemo.models.policy import Attention, Policy
from tests.conftest import MELD

RNG = np.random.default_rng(0)
PLACES = [
    (f"c{n}", RNG.integers(3, 300, 30 + 7 * k).tolist(), "E:") for n in range(6) for k in range(3)
]  # fmt: skip


def tops(found: list) -> list[str]:
    return [d.top(MELD) for d in found]


def test_a_tie_in_bf16_is_resolved_in_fp32(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two labels whose rows of the head round to one row of bf16 have one logit there, and two in fp32."""
    monkeypatch.setattr(
        "selfemo.models.layers.has_matrix_unit", lambda: True
    )  # else all products are in fp32
    policy = load_policy(str(tiny_model), "cpu", "bf16")
    heads = [policy.plain_ids(f"E: {e}") for e in MELD]
    start = min(shared_prefix(heads[0], h) for h in heads[1:])
    joy, anger = (heads[MELD.index(e)][start] for e in ("joy", "anger"))
    weight = policy.core.get_output_embeddings().weight
    with torch.no_grad():
        weight[joy] = weight[joy].bfloat16().float()
        weight[anger] = weight[joy] * (1 + 2**-11)
    assert torch.equal(weight[joy].bfloat16(), weight[anger].bfloat16())
    ids = PLACES[0][1]

    def gap(fp32_head: bool) -> float:
        branches = [[*heads[MELD.index(e)][: start + 1]] for e in ("joy", "anger")]
        (found,) = branch_logp(policy, [("c", ids, branches)], [start], fp32_head=fp32_head)
        return found[1][0] - found[0][0]

    with torch.no_grad(), policy.autocast():
        row = policy.rows([pack([[*ids, *heads[0][:start]]])])
        logit = float(policy.hidden(row)[0, -1].float() @ weight[joy])
    assert gap(fp32_head=False) == 0
    assert gap(fp32_head=True) == pytest.approx(logit * 2**-11, rel=0.05) and logit != 0


def test_a_turn_has_one_label_in_any_batch(tiny_model: Path, attention: Attention) -> None:
    """Alone, with its conversation, and among others in another order: the label that fp32 gives, each time.

    An untrained model has its labels near each other, so all of them are read in fp32.
    """
    exact = label_probabilities(load_policy(str(tiny_model), "cpu", attention=attention), PLACES, MELD)
    policy = load_policy(str(tiny_model), "cpu", "bf16", attention)
    order = np.random.default_rng(1).permutation(len(PLACES)).tolist()
    other = label_probabilities(policy, [PLACES[i] for i in order], MELD)
    shuffled = [other[order.index(i)] for i in range(len(PLACES))]
    alone = [label_probabilities(policy, [p], MELD)[0] for p in PLACES]
    for found in (label_probabilities(policy, PLACES, MELD), shuffled, alone):
        assert tops(found) == tops(exact)
        for mine, theirs in zip(found, exact, strict=True):
            assert mine.vector(MELD) == pytest.approx(theirs.vector(MELD), abs=1e-5)


def test_only_what_is_near_is_read_again(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfemo.models.layers.has_matrix_unit", lambda: True)
    policy = load_policy(str(tiny_model), "cpu", "bf16")
    read: list[tuple[str, int]] = []
    plain = label_scores.branch_logp

    def noted(p: Policy, asked: list, common: list, **kwargs: bool) -> list:
        read.append((p.dtype, len(asked)))
        return plain(p, asked, common, **kwargs)

    monkeypatch.setattr(label_scores, "branch_logp", noted)
    monkeypatch.setattr(label_scores, "NEAR", -1.0)
    in_bf16 = label_probabilities(policy, PLACES, MELD)
    gaps = [float(np.diff(np.sort(np.log(d.vector(MELD)))[-2:])[0]) for d in in_bf16]
    middle = float(np.median(gaps))
    near = [i for i, gap in enumerate(gaps) if gap < middle]
    assert len(near) == len(PLACES) // 2
    monkeypatch.setattr(label_scores, "NEAR", middle)
    found = label_probabilities(policy, PLACES, MELD)
    assert read == [("bf16", len(PLACES)), ("fp32", 0), ("bf16", len(PLACES)), ("fp32", len(near))]
    for i, (mine, theirs) in enumerate(zip(found, in_bf16, strict=True)):
        assert (mine == theirs) == (i not in near)
