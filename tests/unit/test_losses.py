"""The objective of eq. 14 by hand and by its properties."""

from __future__ import annotations

import math

import pytest
import torch

from selfemo.method.losses import importance, k3, masked_sum, token_loss


def test_k3_by_hand_and_never_negative() -> None:
    logp, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -2.0]])
    assert k3(logp, ref)[0].tolist() == pytest.approx([math.exp(-0.5) + 0.5 - 1, 0.0])
    noise = torch.randn(1000, 1)
    assert (k3(noise, noise + torch.randn(1000, 1)) >= 0).all()


def test_k3_is_the_kl_in_expectation() -> None:
    torch.manual_seed(0)
    p, q = torch.softmax(torch.randn(6), 0), torch.softmax(torch.randn(6), 0)
    expected = (p * (p / q).log()).sum()
    assert (p * k3(p.log(), q.log())).sum().item() == pytest.approx(expected.item(), abs=1e-6)


def test_clipped_objective_by_hand() -> None:
    old = torch.zeros(4, 1)
    logp = torch.log(torch.tensor([[1.5], [1.5], [0.5], [0.5]])).requires_grad_()
    a = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    got = token_loss(logp, old, a, kl_coef=0)
    # ratio 1.5: clipped at 1.2 for A > 0, not for A < 0; ratio 0.5: at 0.8 for A < 0 only.
    assert got.loss[:, 0].tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8])
    assert got.clipped[:, 0].tolist() == [True, False, False, True]
    got.loss.sum().backward()
    assert logp.grad is not None
    assert logp.grad[:, 0].tolist() == pytest.approx([0, 1.5, -0.5, 0])


def test_on_policy_gradient_is_minus_the_advantage() -> None:
    logp = torch.tensor([[-0.3, -2.0], [-1.0, -0.1]], requires_grad=True)
    token_loss(logp, logp.detach(), torch.tensor([[0.7, 0.7], [-1.2, -1.2]]), kl_coef=0).loss.sum().backward()
    assert torch.allclose(logp.grad, torch.tensor([[-0.7, -0.7], [1.2, 1.2]]))


def test_kl_and_entropy_terms() -> None:
    logp, ref = torch.tensor([[-1.0]]), torch.tensor([[-2.0]])
    zero = torch.zeros(1, 1)
    base = token_loss(logp, logp, zero, ref, torch.tensor([[0.5]]), kl_coef=0.1, entropy_coef=0.2)
    assert base.loss.item() == pytest.approx(0.1 * math.exp(-1) - 0.2 * 0.5)
    for kwargs in ({"kl_coef": 0.1}, {"kl_coef": 0.0, "entropy_coef": 0.1}):
        with pytest.raises(ValueError, match="is set but there are no"):
            token_loss(logp, logp, zero, **kwargs)


def test_truncated_importance_by_hand() -> None:
    """Twice as likely for the trainer: 2, capped at 1.5; half as likely: 0.5; not sampled: 1."""
    sampled = torch.tensor([[math.log(0.2), math.log(0.2), math.nan]])
    old = torch.tensor([[math.log(0.4), math.log(0.1), -1.0]])
    weight = importance(old, sampled, 1.5)
    assert weight[0].tolist() == pytest.approx([1.5, 0.5, 1.0])
    assert importance(old, sampled, 3.0)[0].tolist() == pytest.approx([2.0, 0.5, 1.0])
    logp = old.clone().requires_grad_()
    loss = token_loss(logp, old, torch.tensor([[1.0, -2.0, 3.0]]), kl_coef=0, weight=weight).loss
    assert loss[0].tolist() == pytest.approx([-1.5, 1.0, -3.0])
    loss.sum().backward()
    assert logp.grad is not None and logp.grad[0].tolist() == pytest.approx([-1.5, 1.0, -3.0])


def test_padding_is_never_counted() -> None:
    values = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    mask = torch.tensor([[True, False], [True, True]])
    assert masked_sum(values, mask).item() == 6
