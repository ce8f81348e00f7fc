"""Known answers of SPEC section 8 for eq. 13, edges, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import GrpoConfig
from selfemo.method.self_grpo import advantages, lambda_at, normalise
from selfemo.training.protocol import RlSpan

rewards = st.lists(st.floats(0, 1), min_size=2, max_size=16)


def test_known_advantages() -> None:
    r1, r2 = (1, 0, 0, 1), (1 / 3, 1 / 3, 2 / 3, 2 / 3)
    assert normalise(r1, eps=0) == pytest.approx([1, -1, -1, 1])
    assert normalise(r2, eps=0) == pytest.approx([-1, -1, 1, 1])
    lam = lambda_at(50, 100, 1.0)
    assert advantages(r1, r2, lam, eps=0) == pytest.approx([0, -1, 0, 1])


def test_each_row_is_a_group_of_its_own() -> None:
    rows = np.array([[1.0, 0, 0, 1], [0.5] * 4, [0, 0, 1, 3], [7.0] * 4])
    # Third row: mean 1, population variance (1 + 1 + 0 + 4) / 4.
    third = np.array([-1, -1, 0, 2]) / 1.5**0.5
    assert normalise(rows, eps=0) == pytest.approx(np.array([[1, -1, -1, 1], [0] * 4, third, [0] * 4]))
    both = advantages(rows, rows[::-1], 0.25, eps=0)
    assert both[0] == pytest.approx([0.75, -0.75, -0.75, 0.75])
    assert both[2] == pytest.approx(0.75 * third) and both[1] == pytest.approx(0.25 * third)
    assert normalise(np.full((500, 8), 0.3)).tolist() == [[0.0] * 8] * 500


def test_eps_is_added_to_the_spread_and_ddof_is_taken_in_both_terms() -> None:
    assert normalise([0, 2], eps=1) == pytest.approx([-0.5, 0.5])  # std 1
    sample = 1 / (2**0.5 + 1)  # std sqrt(2)
    assert normalise([0, 2], eps=1, ddof=1) == pytest.approx([-sample, sample])
    assert normalise([0, 2]) == pytest.approx([-1 / 1.000001, 1 / 1.000001], abs=1e-9)
    for lam in (0, 1):
        assert advantages([0, 2], [0, 2], lam, eps=1, ddof=1) == pytest.approx([-sample, sample])
        assert advantages([0, 2], [0, 2], lam, eps=1) == pytest.approx([-0.5, 0.5])
    assert advantages([0, 2], [0, 2], 0.5) == pytest.approx(normalise([0, 2]), abs=1e-12)


def test_lambda_schedule() -> None:
    assert lambda_at(1, 2) == 0.5 and lambda_at(1, 1) == 1 and lambda_at(0, 1) == 0
    assert [lambda_at(t, 4, 0.5) for t in range(5)] == [0, 0.125, 0.25, 0.375, 0.5]
    for step, total in ((-1, 4), (5, 4), (0, 0)):
        with pytest.raises(ValueError, match="outside"):
            lambda_at(step, total)


def test_lambda_is_counted_over_the_rl_stages_of_a_run() -> None:
    """Two iterations of 4 rounds, 2 optimiser steps a round: t / T of the first step of each round."""
    config = GrpoConfig(lam_max=0.5)
    over = [RlSpan.of(config, i, 2).lam(r, 4, 0.5) for i in (1, 2) for r in range(4)]
    assert over == pytest.approx([0.5 * t / 16 for t in range(0, 16, 2)])
    literal = GrpoConfig(lam_span="stage")
    assert [RlSpan.of(literal, i, 2).lam(r, 4, 1.0) for i in (1, 2) for r in range(4)] == [
        0, 0.25, 0.5, 0.75, 0, 0.25, 0.5, 0.75,
    ]  # fmt: skip
    for span in ("run", "stage"):
        assert RlSpan.of(GrpoConfig(lam_span=span), 1, 1) == RlSpan(), "one stage has one way to count"
    with pytest.raises(ValueError, match="outside"):
        RlSpan(1, 1).lam(1, 4, 1.0)


@pytest.mark.parametrize("r", [[0.7], [0.1] * 8, [0.0] * 3, []])
def test_no_variance_gives_zero_not_the_raw_reward(r: list[float]) -> None:
    assert normalise(r, eps=0).tolist() == [0] * len(r)
    assert advantages(r, r, 0.5, eps=0).tolist() == [0] * len(r)


def test_vanilla_is_lambda_zero() -> None:
    r1, r2 = [0.2, 0.9, 0.4], [1.0, 0.0, 0.0]
    assert advantages(r1, r2, 0.0).tolist() == normalise(r1).tolist()


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"primary rewards \(2,\) and secondary rewards \(3,\)"):
        advantages([0, 1], [0, 1, 1], 0.5)


@given(rewards, st.floats(0.1, 10), st.floats(-5, 5))
def test_normalised_is_centred_and_affine_invariant(r: list[float], scale: float, shift: float) -> None:
    a = normalise(r, eps=0)
    assert abs(a.sum()) < 1e-6
    if np.ptp(r) > 1e-3:
        assert a.std() == pytest.approx(1)
        moved = normalise([scale * x + shift for x in r], eps=0)
        assert moved == pytest.approx(a, abs=1e-6)


@given(rewards, st.randoms(use_true_random=False))
def test_order_of_rollouts_does_not_matter(r: list[float], random) -> None:
    order = list(range(len(r)))
    random.shuffle(order)
    a = advantages(r, r[::-1], 0.3)
    b = advantages([r[i] for i in order], [r[::-1][i] for i in order], 0.3)
    assert b == pytest.approx(a[order], abs=1e-9)
