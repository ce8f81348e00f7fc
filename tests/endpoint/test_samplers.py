"""One contract for all generation backends: a tiny model, an endpoint over HTTP, and scripted answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.config import ModelConfig
from selfemo.errors import DataError, EndpointError, EngineError, UnsupportedError
from selfemo.method.prompts import messages
from selfemo.method.types import LABEL_SETS
from selfemo.models.generation import SAMPLERS, open_sampler
from selfemo.models.generation.chat import parse_expert
from selfemo.models.generation.endpoint import EndpointSampler
from selfemo.models.generation.grammar import Grammar
from selfemo.models.generation.local import LocalSampler
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.generation.scripted import ScriptedSampler
from selfemo.models.generation.vllm import VllmSampler
from selfemo.models.loading import load_policy
from selfemo.models.sampler import Sampler
from tests.conftest import MELD, Built, build_tiny_model, make_prompt
from tests.support.expert_server import format_answer

CHATS = [messages(make_prompt(f"c/{n}", history=make_prompt().history[: n + 1])) for n in (0, 1)]
TEXTS = ["E: joy\nS: joy\nR: Hooray.", "E: fear\nS: anger\nR: Who is there?", "E: anger"]


HERE = (LocalSampler, VllmSampler)
"""Backends with the weights in this process."""
NEEDS = {"vllm": [pytest.mark.slow, pytest.mark.vllm]}


@pytest.fixture(scope="module")
def by_vllm(built_once: Built) -> Sampler:
    model = built_once("vllm-tied", lambda f: build_tiny_model(f, 128))
    return open_sampler(str(model), ModelConfig(device="cpu", dtype="fp32", backend="vllm"))


@pytest.fixture(params=[pytest.param(name, marks=NEEDS.get(name, ())) for name in sorted(SAMPLERS)])
def sampler(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path, expert: Callable[..., str]
) -> Sampler:
    if request.param == "local":
        return open_sampler(str(tiny_model), ModelConfig(device="cpu", dtype="fp32"))
    if request.param == "vllm":
        return request.getfixturevalue("by_vllm")
    if request.param == "endpoint":
        return open_sampler(f"mine={expert()},model=m")
    assert request.param == "scripted", f"open the backend {request.param} here, so that it is tested"
    script = tmp_path / "answers.jsonl"
    script.write_text("\n".join(map(json.dumps, TEXTS)))
    return open_sampler(f"scripted:{script}")


def asked(sampler: Sampler, chat: list[dict[str, str]], n: int = 1, seed: int = 0) -> Request:
    return Request(sampler.encode(chat), n, seed, messages=chat)


def texts(sampler: Sampler, requests: list[Request], **settings: object) -> list[list[str]]:
    limits = SamplingSettings(max_new_tokens=12, **settings)  # type: ignore[arg-type]
    return [[s.text for s in group] for group in sampler.generate(requests, limits)]


def test_order_number_and_progress(sampler: Sampler) -> None:
    """Each request has its own n completions, whatever stands beside it."""
    requests = [asked(sampler, CHATS[0], 3, 5), asked(sampler, CHATS[1], 1, 6)]
    done: list[int] = []
    together = sampler.generate(requests, SamplingSettings(12), done.append)
    assert [len(group) for group in together] == [3, 1] and sum(done) == 4
    for request, group in zip(requests, together, strict=True):
        assert texts(sampler, [request]) == [[s.text for s in group]]
        for s in group:
            assert len(s.token_ids) == len(s.logprobs) == len(s.entropies) <= 12


def test_a_seed_gives_the_same_completions(sampler: Sampler) -> None:
    first, again = (texts(sampler, [asked(sampler, CHATS[1], 2, 3)]) for _ in range(2))
    assert first == again and all(first[0])


def test_a_chat_has_the_length_of_its_text(sampler: Sampler) -> None:
    assert 0 < len(sampler.encode(CHATS[0])) < len(sampler.encode(CHATS[1]))


def test_lines_stop_where_they_are_told_to(sampler: Sampler) -> None:
    for group in texts(sampler, [asked(sampler, CHATS[0], 3)], max_lines=1, temperature=0.0):
        assert all(t.count("\n") <= 1 for t in group)


def test_nothing_is_asked_of_nobody(sampler: Sampler) -> None:
    assert sampler.generate([], SamplingSettings()) == []


def test_probabilities_of_labels_or_a_refusal(sampler: Sampler) -> None:
    places = [("c", list(sampler.encode(chat)), "E:") for chat in CHATS]
    if isinstance(sampler, EndpointSampler):
        with pytest.raises(UnsupportedError, match="endpoint mine cannot tell the probability"):
            sampler.label_probabilities(places, MELD)
        return
    found = sampler.label_probabilities(places, MELD)
    assert len(found) == 2
    for distribution in found:
        assert set(distribution) == set(MELD)
        assert sum(distribution.values()) == pytest.approx(1)


def test_probabilities_of_a_given_reply_or_a_refusal(sampler: Sampler) -> None:
    places = [("c", list(sampler.encode(chat)), "E: joy\nS:", "So it is.") for chat in CHATS]
    if not isinstance(sampler, HERE):
        with pytest.raises(UnsupportedError, match="probability of a given reply; use a model on this"):
            sampler.channel_scores(places, MELD)
        return
    found = sampler.channel_scores(places, MELD)
    assert len(found) == 2
    for scores in found:
        assert len(scores.prior) == len(scores.reply) == len(MELD)
        assert max(scores.prior) < 0 and max(scores.reply) < 0


def test_what_a_backend_cannot_do_is_refused_by_name(
    sampler: Sampler, tiny_model: Path, tmp_path: Path
) -> None:
    policy = sampler.policy if isinstance(sampler, LocalSampler) else load_policy(str(tiny_model))
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    request = asked(sampler, CHATS[0])
    held = replace(request, constraints=Grammar(policy, {**schema, "additionalProperties": False}))
    if isinstance(sampler, HERE):
        assert texts(sampler, [held]) == [['{"a":1}']]
        with pytest.raises(EngineError, match=r"no config\.json"):
            sampler.load(str(tmp_path))
        return
    with pytest.raises(UnsupportedError, match="constraints; use a model on this machine"):
        texts(sampler, [held])
    if isinstance(sampler, EndpointSampler):
        for settings in ({"no_repeat_ngram": 3}, {"top_p": 0.5}):
            with pytest.raises(UnsupportedError, match=next(iter(settings))):
                texts(sampler, [request], **settings)
        with pytest.raises(UnsupportedError, match="token ids"):
            texts(sampler, [replace(request, messages=())])
        with pytest.raises(UnsupportedError, match="endpoint mine cannot load weights"):
            sampler.load("x")


def test_an_unknown_backend_is_told_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"no backend 'vlm'; there are: local, endpoint, scripted"):
        open_sampler("vlm:gpt2")
    with pytest.raises(EngineError, match=r"no config\.json"):
        open_sampler(str(tmp_path))
    with pytest.raises(UnsupportedError, match="vllm:gpt2: name the model alone, gpt2, with --backend vllm"):
        open_sampler("vllm:gpt2")


def test_an_endpoint_answers_with_what_its_server_writes(expert: Callable[..., str]) -> None:
    sampler = EndpointSampler(parse_expert(f"mine={expert()},model=m"))
    (group,) = texts(sampler, [asked(sampler, CHATS[0], 2)])
    assert group == [format_answer(CHATS[0])] * 2
    sampler.close()
    assert texts(sampler, [asked(sampler, CHATS[0])], max_lines=1) == [
        [format_answer(CHATS[0]).split("\n")[0] + "\n"]
    ]


def test_an_endpoint_that_does_not_answer_is_one_error(expert: Callable[..., str]) -> None:
    url = expert(only="500", times=9)
    sampler = EndpointSampler(parse_expert(f"mine={url},model=m,attempts=1"))
    with pytest.raises(EndpointError, match="endpoint mine gave no answer: HTTP 500"):
        texts(sampler, [asked(sampler, CHATS[0])])


def test_the_answers_of_a_script_follow_from_the_request() -> None:
    """Answer k of seed s is number s + k of three; a limit cuts words, a stop cuts lines."""
    s = ScriptedSampler(TEXTS)
    assert texts(s, [Request([1], 3, 0), Request([1], 2, 4)]) == [TEXTS, TEXTS[1:]]
    ((whole,),) = s.generate([Request([1])], SamplingSettings(7))
    assert whole.finished and len(whole.token_ids) == 7, "six words and the end"
    ((cut,),) = s.generate([Request([1])], SamplingSettings(6))
    assert not cut.finished and (cut.text, len(cut.token_ids)) == (TEXTS[0], 6)
    ((cut,),) = s.generate([Request([1])], SamplingSettings(4))
    assert not cut.finished and cut.text == "E: joy\nS: joy"
    ((line,),) = s.generate([Request([1])], SamplingSettings(2, max_lines=1))
    assert line.finished and line.text == "E: joy\n" and len(line.token_ids) == 2


def test_a_script_sees_the_chat_behind_the_token_ids() -> None:
    s = ScriptedSampler(lambda chat, request, k: f"{len(chat)} {request.seed} {k}", {"joy": 3, "fear": 1})
    ids = s.encode(CHATS[0])
    assert texts(s, [Request(ids, 2, 9)]) == [[f"{len(CHATS[0])} 9 {k}" for k in (0, 1)]]
    (found,) = s.label_probabilities([("", ids, "E:")], MELD)
    assert dict(found) == {"joy": 0.75, "fear": 0.25}
    (even,) = s.label_probabilities([("", ids, "E:")], LABEL_SETS["iemocap"])
    assert "joy" not in even and len(set(even.values())) == 1
    s.load("runs/x@iteration-1")
    assert s.loaded == ["runs/x@iteration-1"]


def test_a_script_goes_on_behind_the_begun_answer() -> None:
    """Of the answers that begin so one is drawn, as a model would: "E: joy" does not begin "E: joyful"."""
    answers = ["E: joy\nS: fear\nR: Ah.", "E: joyful\nS: anger\nR: No.", "E: joy\nS: joy\nR: Oh."]
    for s in (ScriptedSampler(answers), ScriptedSampler(lambda chat, request, k: answers[2 * (k % 2)])):
        ids = list(s.encode(CHATS[0]))
        ((head,),) = s.generate([Request(ids)], SamplingSettings(max_lines=1))
        assert head.text == "E: joy\n" and head.finished
        assert texts(s, [Request([*ids, *head.token_ids], 2)], temperature=1.0) == [
            ["S: fear\nR: Ah.", "S: joy\nR: Oh."]
        ]


@pytest.mark.parametrize(
    ("content", "said"), [('"a"\n{}\n', ":2: write one answer a line"), ("", "no answer"), (None, "read")]
)
def test_a_broken_script_names_its_line(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "s.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=said):
        open_sampler(f"scripted:{file}")


def test_local_weights_are_replaced_in_place(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    sampler, other = (LocalSampler(load_policy(str(tiny_model), "cpu")) for _ in range(2))
    with torch.no_grad():
        other.policy.core.model.embed_tokens.weight.add_(0.1 * torch.randn(48))
    other.policy.core.save_pretrained(tmp_path / "m")
    other.policy.tokenizer.save_pretrained(tmp_path / "m")
    weight = sampler.policy.core.model.embed_tokens.weight
    request = asked(sampler, CHATS[0], 2, 1)
    before, wanted = (texts(s, [request]) for s in (sampler, other))
    sampler.load(str(tmp_path / "m"))
    assert texts(sampler, [request]) == wanted != before
    assert sampler.policy.core.model.embed_tokens.weight is weight, "an optimiser still holds it"
