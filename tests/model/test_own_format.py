"""The format's grammar: whatever the model, each completion parses, under any limit that can hold one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.errors import ConfigError
from selfemo.method.parsing import parse, parse_emotions
from selfemo.method.prompts import Reasoning, format_emotions
from selfemo.method.types import LABEL_SETS, Completion, EmotionDistribution, LabelSet
from selfemo.models.generation.local import LocalGenerator
from selfemo.models.generation.own_format import OwnFormat, emotions_regex
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.loading import load_policy
from selfemo.models.policy import Policy

SETS = (
    *LABEL_SETS.values(),
    LabelSet("own", ("sad", "sadly", "very sad", "half-hearted")),
    LabelSet("two", ("calm", "upset")),
)


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    return load_policy(str(tiny_model))


def sample(policy: Policy, format_: OwnFormat, limit: int, n: int, seed: int, heat: float) -> list:
    generator = LocalGenerator(policy, SamplingSettings(limit, temperature=heat))
    ids = policy.encode([{"role": "user", "content": "Ann: hello"}])
    return generator.generate([Request(ids, n, seed, constraints=format_.limited(limit))])[0]


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    labels=st.sampled_from(SETS),
    reasoning=st.sampled_from(["none", "brief", "full"]),
    spare=st.integers(0, 60),
    heat=st.sampled_from([0.0, 1.0, 5.0]),
    no_repeat=st.sampled_from([0, 3]),
)
def test_each_completion_of_a_random_model_parses(
    policy: Policy, seed: int, labels: LabelSet, reasoning: Reasoning, spare: int, heat: float,
    no_repeat: int,
) -> None:  # fmt: skip
    format_ = OwnFormat(policy, labels, reasoning, no_repeat)
    limit = format_.least_tokens() + spare
    for drawn in sample(policy, format_, limit, 4, seed, heat):
        parsed = parse(drawn.text, labels, finished=drawn.finished)
        assert isinstance(parsed, Completion), (parsed, drawn.text)
        assert len(drawn.token_ids) <= limit
        assert "\ufffd" not in drawn.text, "the reply ends inside a character"
        assert bool(parsed.reasoning) == (reasoning != "none")


@pytest.mark.parametrize("labels", SETS[-2:], ids=lambda labels: labels.name)
def test_a_limit_of_the_reply_is_of_its_tokens_alone(policy: Policy, labels: LabelSet) -> None:
    format_ = OwnFormat(policy, labels)
    ids = policy.encode([{"role": "user", "content": "Ann: hello"}])
    generator = LocalGenerator(policy, SamplingSettings(200, temperature=1.0))
    for seed in range(6):
        free, *short = (format_.limited(200, limit) for limit in (0, 1, 2, 5, 30))
        ((whole,),) = generator.generate([Request(ids, 1, seed, constraints=free)])
        for limited in short:
            ((drawn,),) = generator.generate([Request(ids, 1, seed, constraints=limited)])
            assert isinstance(parse(drawn.text, labels, finished=drawn.finished), Completion)
            head = drawn.text.index("\nR: ") + len("\nR: ")
            # The reply begins with the first token that goes beyond its marker.
            begun = next(n for n in range(200) if len(policy.decode(drawn.token_ids[:n])) > head)
            written = len(drawn.token_ids) - begun  # the end token stands for the first of the reply
            if limited.cut:
                assert limited.reply_tokens <= written < limited.reply_tokens + 4, drawn.text
                assert (
                    whole.token_ids[: begun + limited.reply_tokens - 1]
                    == (drawn.token_ids[: begun + limited.reply_tokens - 1])
                )
            else:
                assert drawn == whole and written <= limited.reply_tokens


def test_without_the_grammar_the_same_model_writes_nothing_that_parses(policy: Policy) -> None:
    ids = policy.encode([{"role": "user", "content": "Ann: hello"}])
    drawn = LocalGenerator(policy, SamplingSettings(60)).generate([Request(ids, 8)])[0]
    assert not any(isinstance(parse(d.text, SETS[0], finished=d.finished), Completion) for d in drawn)


@settings(max_examples=60)
@given(
    labels=st.sampled_from(SETS), weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=3), data=st.data()
)
def test_the_grammar_takes_what_format_emotions_writes(
    labels: LabelSet, weights: list[float], data: st.DataObject
) -> None:
    names = data.draw(st.permutations(labels.labels))[: len(weights)]
    written = format_emotions(EmotionDistribution(dict(zip(names, weights, strict=False))))
    regex = emotions_regex(labels, min(3, len(labels)))
    assert re.fullmatch(regex, written)
    assert isinstance(parse_emotions(written, labels), EmotionDistribution)


@pytest.mark.parametrize(
    "bad", ["joy, joy", "joy 4, joy 6", "joy 5", "joy 0, fear 3", "joy 1, fear 1, anger 1, sadness 1"]
)
def test_the_grammar_refuses_what_the_format_does_not_hold(bad: str) -> None:
    assert not re.fullmatch(emotions_regex(LABEL_SETS["meld"]), bad)


@pytest.mark.parametrize(
    "written", ["", "E", "E: ", "E: su", "E: joy", "E: joy ", "E: joy 7", "E: joy 7,", "E: joy 7, ",
                "E: joy 7, fear", "E: joy 7, fear 1, s", "E: joy\n", "E: joy\nS", "E: joy\nS: f",
                "E: joy\nS: fear\nR", "E: joy\nS: fear\nR: "],
)  # fmt: skip
def test_what_is_begun_can_be_closed(policy: Policy, written: str) -> None:
    format_ = OwnFormat(policy, LABEL_SETS["meld"])
    parsed = parse(written + format_.closing(written), LABEL_SETS["meld"])
    assert isinstance(parsed, Completion), (written, format_.closing(written))


def test_a_limit_too_small_is_refused(policy: Policy) -> None:
    format_ = OwnFormat(policy, LABEL_SETS["meld"])
    with pytest.raises(ConfigError, match=f"at least {format_.least_tokens()}"):
        format_.limited(format_.least_tokens() - 1)


@pytest.mark.parametrize("name", ["joy2", "Joy", "a, b", "joy 7", ""])
def test_a_label_that_could_not_be_read_back_is_refused(policy: Policy, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        OwnFormat(policy, LabelSet("bad", ("calm", name)))


def test_many_labels_are_held_to_two_at_once(policy: Policy) -> None:
    names = tuple(f"{a}{b}" for a in "abcdefg" for b in "uvwxyz")
    format_ = OwnFormat(policy, LabelSet("many", names))
    assert format_.most == 2
    for drawn in sample(policy, format_, 80, 4, 0, 1.0):
        assert isinstance(parse(drawn.text, format_.labels, finished=drawn.finished), Completion)


def test_training_is_not_constrained() -> None:
    """Rollouts and SFT never ask for a constraint: an unreadable completion must be able to happen."""
    import selfemo.stages.selfplay as selfplay
    import selfemo.training.local as engine

    for module in (engine, selfplay):
        assert "constraints" not in Path(str(module.__file__)).read_text()


def test_the_probabilities_of_labels_are_those_of_plain_rows(policy: Policy) -> None:
    from selfemo.models.generation.label_scores import label_probabilities

    labels = LabelSet("own", ("sad", "sadly", "calm"))
    prompts = [policy.encode([{"role": "user", "content": t}]) for t in ("Ann: hi", "Bo: no")]
    found = label_probabilities(policy, [("a", p, "E:") for p in prompts], labels)
    for ids, distribution in zip(prompts, found, strict=True):
        mass, heads = {}, {}
        for e in labels:
            tail = heads[e] = list(policy.tokenizer(f"E: {e}", add_special_tokens=False).input_ids)
            with torch.no_grad():
                logits = policy.core(torch.tensor([ids + tail])).logits[0].float().log_softmax(-1)
            steps = range(len(tail))
            mass[e] = sum(float(logits[len(ids) + k - 1, tail[k]]) for k in steps)
        mass = {e: float(torch.tensor(lp).exp()) for e, lp in mass.items()}
        if heads["sadly"][: len(heads["sad"])] == heads["sad"]:
            mass["sad"] -= mass["sadly"]
        total = sum(mass.values())
        for e in labels:
            assert distribution.weight(e) == pytest.approx(mass[e] / total, abs=1e-4)


def test_what_is_read_off_while_writing_is_the_models_own_probability(policy: Policy) -> None:
    labels = LABEL_SETS["meld"]
    format_ = OwnFormat(policy, labels)
    if format_.firsts is None:
        labels = LabelSet("own", ("joy", "anger", "neutral"))
        format_ = OwnFormat(policy, labels)
    assert format_.firsts is not None
    ids = policy.encode([{"role": "user", "content": "Ann: hello"}])
    limited = format_.limited(100)
    settings = SamplingSettings(100, temperature=0)
    ((drawn,),) = LocalGenerator(policy, settings).generate([Request(ids, constraints=limited)])
    for field in "ES":
        end = drawn.text.index(f"{field}:") + 2
        # The tokens that were drawn up to there: the model may have written them in another way.
        n = next(n for n in range(99) if len(policy.decode(drawn.token_ids[:n])) == end)
        with torch.no_grad():
            tokens = torch.tensor([[*ids, *drawn.token_ids[:n]]])
            logits = policy.core(tokens).logits[0, -1].float()
        expected = torch.softmax(logits[format_.firsts], -1).tolist()
        found = limited.probabilities(field)
        assert found is not None
        assert found.vector(labels) == pytest.approx(expected, abs=1e-4)


def test_labels_that_begin_alike_are_told_apart_at_the_end(tiny_model: Path) -> None:
    from selfemo.serve.selfemo import SelfEmo

    model = SelfEmo(tiny_model, labels=["sad", "sadly"], max_tokens=90)
    assert model.policy and OwnFormat(model.policy, model.labels).firsts is None
    response = model.respond([("Ann", "Hello.")])
    assert response.heard.distribution and set(response.heard.distribution) == {"sad", "sadly"}
    assert response.heard.confidence == response.heard.distribution[response.emotion or ""]
