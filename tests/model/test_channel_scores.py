"""The noisy channel's scores equal those of the plain forward pass of each whole sequence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selfemo.method.types import LabelSet
from selfemo.models.generation.branches import branch_logp
from selfemo.models.generation.local import LocalSampler
from selfemo.models.loading import load_policy
from selfemo.models.policy import Attention, Policy
from tests.conftest import MELD

OWN = LabelSet("own", ("sad", "sadly", "calm"))


def plain(policy: Policy, ids: list[int]) -> torch.Tensor:
    """(n - 1,) log-probability of each token of a sequence but the first."""
    whole = torch.tensor([ids])
    with torch.no_grad():
        scores = torch.log_softmax(policy.core(whole).logits[0, :-1].double(), -1)
    return scores.gather(-1, whole[0, 1:, None])[:, 0]


def lines(policy: Policy, prompt: list[int], *texts: str) -> list[float]:
    """Log-probability of each text, one written after the other behind a prompt, then of the end token."""
    parts = [policy.plain_ids(t) for t in texts]
    parts[-1] = [*parts[-1], policy.tokenizer.eos_token_id]
    logp = plain(policy, [*prompt, *(i for p in parts for i in p)])
    sizes = [len(prompt) - 1, *map(len, parts)]
    return [float(x.sum()) for x in torch.split(logp, sizes)[1:]]


@pytest.mark.parametrize("labels", [MELD, OWN], ids=["meld", "one begins another"])
def test_scores_are_those_of_plain_forward_passes(
    tiny_model: Path, attention: Attention, labels: LabelSet
) -> None:
    policy = load_policy(str(tiny_model), "cpu", attention=attention)
    chats = ["Ann: hi", "Ann: hi\nBo: The bus leaves.", "Cy: é 😀 no"]
    prompts = [policy.encode([{"role": "user", "content": t}]) for t in chats]
    places = [
        ("c", prompts[0], f"E: {labels.labels[0]}\nS:", "The bus leaves at nine."),
        ("c", prompts[1], f"E: {labels.labels[1]}\nS:", "Ok"),
        ("d", prompts[2], f"E: {labels.labels[0]}\nS:", "Çé 😀?"),
    ]
    found = LocalSampler(policy).channel_scores(places, labels)
    assert len(found) == 3
    for (_, ids, written, reply), scores in zip(places, found, strict=True):
        for k, e in enumerate(labels):
            _, prior, said = lines(policy, ids, written, f" {e}\n", f"R: {reply}")
            assert scores.prior[k] == pytest.approx(prior, abs=1e-4)
            assert scores.reply[k] == pytest.approx(said, abs=1e-4)
    assert len(set(found[0].reply)) == len(labels), "each S gives the reply another probability"


def test_the_prior_is_a_part_of_the_whole(tiny_model: Path) -> None:
    """All label lines together have at most probability 1: "sad" is closed by its line end."""
    policy = load_policy(str(tiny_model), "cpu")
    ids = policy.encode([{"role": "user", "content": "Ann: hi"}])
    (found,) = LocalSampler(policy).channel_scores([("c", ids, "E: calm\nS:", "No.")], OWN)
    assert 0 < sum(torch.tensor(found.prior).exp().tolist()) < 1


def test_many_predicting_tokens_are_scored_part_by_part(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(str(tiny_model), "cpu")
    ids = policy.encode([{"role": "user", "content": "Ann: hi"}])
    places = [("c", ids, "E: joy\nS:", "The bus leaves at nine, and the next one never.")] * 2
    whole = LocalSampler(policy).channel_scores(places, MELD)
    monkeypatch.setattr("selfemo.models.generation.branches._PREDICTORS", {"cpu": 7})
    parts = LocalSampler(policy).channel_scores(places, MELD)
    for a, b in zip(whole, parts, strict=True):
        assert a.reply == pytest.approx(b.reply, abs=1e-5) and a.prior == pytest.approx(b.prior, abs=1e-5)


def test_nothing_of_nothing_and_a_place_that_is_none(tiny_model: Path) -> None:
    policy = load_policy(str(tiny_model), "cpu")
    assert LocalSampler(policy).channel_scores([], MELD) == [] and branch_logp(policy, [], []) == []
    with pytest.raises(ValueError, match="written up to S:"):
        LocalSampler(policy).channel_scores([("c", [5, 6], "E: joy\n", "No.")], MELD)
