"""How experts are named, what is read from their answers, and what a cache key depends on."""

from __future__ import annotations

import json
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.errors import ConfigError
from selfemo.models.generation.chat import ChatRequest, parse_expert, parse_experts
from selfemo.models.generation.endpoint import LONGEST_RETRY_AFTER, estimate_tokens, retry_after
from selfemo.stages.experts import MalformedError, answer_key, choose, read_json


def test_an_endpoint_with_settings() -> None:
    spec = parse_expert("seed=https://api.example.org/v1, model=seed-1.8, rpm=60, json=schema")
    assert (spec.name, spec.url, spec.model) == ("seed", "https://api.example.org/v1", "seed-1.8")
    assert spec.rpm == 60 and spec.json_mode == "schema" and not spec.local
    assert spec.key_variable == "SEED_API_KEY"
    assert parse_expert("my-box=http://h/v1,model=m").key_variable == "MY_BOX_API_KEY"


def test_local_stands_for_the_built_in_model() -> None:
    assert parse_expert("local").local and parse_expert("local").model == "builtin:smollm2-135m"
    named = parse_expert("mine=local,model=some/folder,concurrency=4")
    assert named.local and named.model == "some/folder" and named.concurrency == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://h/v1", "NAME=URL"),
        ("a=ftp://h/v1,model=m", "no http"),
        ("a=http://h/v1", "model: is missing"),
        ("a=http://h/v1,model=m,speed=3", "unknown setting; valid are model, key, concurrency"),
        ("a=http://h/v1,model=m,rpm=fast", "rpm"),
        ("a=http://h/v1,model=m,concurrency=0", "concurrency"),
        ("a=http://h/v1,model", "key=value"),
        ("a=http://h/v1,model=m,name=b", "before the first comma"),
        ("a=http://me:pw@h/v1,model=m", "environment variable"),
    ],
)
def test_a_malformed_expert_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match="--expert") as e:
        parse_expert(text)
    assert says in str(e.value)
    assert "pw" not in str(e.value).replace("NAME=URL", "")


def test_a_key_given_in_place_of_its_variable_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="NAME of an environment variable") as e:
        parse_expert("a=http://h/v1,model=m,key=sk-12-secret")
    assert "secret" not in str(e.value)


def test_a_named_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(ConfigError, match="NOT_THERE is not set"):
        parse_expert("a=http://h/v1,model=m,key=NOT_THERE").read_key()
    assert parse_expert("a=http://h/v1,model=m").read_key() == "none"


def test_two_experts_of_one_name() -> None:
    with pytest.raises(ConfigError, match="two experts"):
        parse_experts(["a=http://h/v1,model=m", "a=http://g/v1,model=m"])


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        'Sure!\n```json\n{"a": 1}\n```\nAnything else {x}?',
        '<think>maybe {"a": 2}</think>{"a": 1}',
        'a {set} of {"a": 1}',
        '[{"a": 1}]',
    ],
)
def test_json_is_found_in_prose(text: str) -> None:
    assert read_json(text) == {"a": 1}


@pytest.mark.parametrize("text", ["", "no", '{"a": 1', "[1, 2]", "<think>{}", "{" * 9999])
def test_no_json_is_a_typed_failure(text: str) -> None:
    with pytest.raises(MalformedError) as e:
        read_json(text)
    assert e.value.kind == "no_json"


@given(st.text())
def test_any_text_gives_json_or_a_typed_failure(text: str) -> None:
    try:
        assert isinstance(read_json(text), dict)
    except MalformedError as e:
        assert e.kind == "no_json"


@given(
    st.dictionaries(st.text(), st.integers() | st.text(), min_size=1),
    st.text(alphabet="abc \n:`", max_size=30),
)
def test_json_survives_prose_around_it(value: dict, prose: str) -> None:
    assert read_json(prose + json.dumps(value) + prose) == value


def test_retry_after_in_seconds_milliseconds_or_as_a_date() -> None:
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert 8 < retry_after({"retry-after": formatdate(time.time() + 10, usegmt=True)}) <= 10
    assert retry_after({"retry-after": "99999"}) == LONGEST_RETRY_AFTER
    for bad in ({}, {"retry-after": "soon"}, {"retry-after": "-3"}, {"retry-after": "inf"}):
        assert retry_after(bad) is None


def _request(text: str = "hi", tokens: int = 10) -> ChatRequest:
    return ChatRequest([{"role": "user", "content": text}], {}, tokens)


def test_the_cache_key_depends_on_all_that_the_answer_does() -> None:
    base = answer_key("m", _request(), 0)
    assert base == answer_key("m", _request(), 0)
    others = [
        answer_key("n", _request(), 0),
        answer_key("m", _request("ho"), 0),
        answer_key("m", _request(tokens=11), 0),
        answer_key("m", _request(), 1),
    ]
    assert len({base, *others}) == 5


def test_tokens_are_a_quarter_of_the_characters_and_the_longest_answer() -> None:
    assert estimate_tokens(_request("x" * 400, 50)) == 150


def test_items_are_spread_evenly_and_always_alike() -> None:
    counts = [0, 0, 0]
    for i in range(3000):
        counts[choose(f"item {i}", 3)] += 1
    assert min(counts) > 900  # 1000 each, standard deviation 26
    assert choose("item 1", 3) == choose("item 1", 3)
