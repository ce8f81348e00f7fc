"""A policy's text and logits (models/policy.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selfemo.models import policy as policies
from selfemo.models.loading import load_policy
from selfemo.models.packing import pack

CHAT = [{"role": "user", "content": "I got the job!"}]


def test_a_chat_is_encoded_once_and_each_caller_has_its_own_ids(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(str(tiny_model), "cpu")
    read: list[str] = []
    plain = policies.Policy.plain_ids
    monkeypatch.setattr(
        policies.Policy, "plain_ids", lambda self, text: read.append(text) or plain(self, text)
    )
    first = policy.encode(CHAT)
    expected = list(first)
    first.append(7)
    assert policy.encode([dict(m) for m in CHAT]) == expected and len(read) == 1
    assert policy.encode([{"role": "system", "content": "I got the job!"}]) and len(read) == 2
    other = load_policy(str(tiny_model), "cpu").tokenizer
    other.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    policy.take_tokenizer(other)
    assert policy.encode(CHAT) == plain(policy, "I got the job!") != expected


def test_kept_chats_are_bounded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "_CHATS", 3)
    policy = load_policy(str(tiny_model), "cpu")
    for k in range(8):
        policy.encode([{"role": "user", "content": str(k)}])
        assert len(policy._chats) <= 3


def test_logits_in_fp32_are_not_rounded_to_bf16(tiny_model: Path) -> None:
    """Of one hidden state in bf16: by the fp32 head they are the products of fp32 weights, else rounded."""
    found = {}
    for head in (True, False):
        policy = load_policy(str(tiny_model), "cpu", "bf16", fp32_head=head)
        with torch.no_grad(), policy.autocast():
            hidden = policy.hidden(policy.rows([pack([[5, 6, 7]])]))
            found[head] = policy.logits(hidden)
        weight = policy.core.get_output_embeddings().weight
        exact = hidden.float() @ weight.detach().T
    assert torch.allclose(found[True], exact, atol=1e-6)
    assert torch.equal(found[False], found[False].bfloat16().float())
    assert not torch.equal(found[True], found[True].bfloat16().float())
