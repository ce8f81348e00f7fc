"""Stop sequences: a streamed reply never shows one, nor what comes after it, and equals the whole reply."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.method.types import LABEL_SETS, Persona, Prompt, Utterance
from selfemo.serve.answers import Event, EventWriter, ReplyDelta, Response, cut_at, response_of

MELD = LABEL_SETS["meld"]
PROMPT = Prompt("p", "d", "c", MELD, (Utterance("Ann", "Hello."),), "Bo", Persona("Bo", ""), None)


def written(reply: str, stops: Sequence[str], sizes: Sequence[int]) -> tuple[str, Response, str]:
    """What a reader sees of a reply that grows by `sizes` characters, the response, and the text then."""
    seen: list[str] = []

    def on_event(_: int, event: Event) -> bool:
        seen.extend([event.text] if isinstance(event, ReplyDelta) else [])
        return True

    writer = EventWriter(0, MELD, on_event, stops=stops)
    head, text, at = "E: joy\nS: fear\nR: ", "", 0
    for size in [*sizes, len(reply)]:
        at = min(at + size, len(reply))
        text = head + reply[:at]
        if not writer.go_on(text):
            break
        assert not any(stop in "".join(seen) for stop in stops)
    response = response_of(PROMPT, text, at == len(reply), writer)
    return "".join(seen), response, text.removeprefix(head)


@pytest.mark.parametrize(
    ("reply", "stops", "kept", "stop"),
    [
        ("Oh no, not again.", ("not",), "Oh no, ", "not"),
        ("Oh no, not again.", ("again", "no,"), "Oh ", "no,"),
        ("Oh no, not again.", ("Oh",), "", "Oh"),
        ("Oh no, not again.", ("nope", "agains", "\n"), "Oh no, not again.", ""),
        ("a  b   c", ("b c",), "a ", "b c"),  # blanks as the client sees them
        ("aaab", ("aab",), "a", "aab"),
        ("It is a cat", ("cats",), "It is a cat", ""),  # held back, then sent
        ("so\u0301 e\u0301", ("e\u0301",), "so\u0301 ", "e\u0301"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_reply_ends_before_the_first_stop(
    reply: str, stops: tuple[str, ...], kept: str, stop: str, size: int
) -> None:
    seen, response, _ = written(reply, stops, [size] * 30)
    assert (response.reply, response.stop, response.failure) == (kept, stop, None)
    assert seen == kept and response.emotion == "joy" and response.self_emotion == "fear"


def test_an_answer_is_written_no_further_than_its_stop() -> None:
    _, response, text = written("one two three four", ("two",), [1] * 20)
    assert text == "one two" and response.reply == "one "


pieces = st.text("abc ", min_size=1, max_size=6)


@given(st.text("abc ", min_size=1, max_size=30), st.lists(pieces, max_size=4), st.lists(st.integers(1, 5)))
def test_what_is_seen_is_the_reply_whatever_the_parts(reply: str, stops: list[str], sizes: list[int]) -> None:
    if not reply.strip():
        reply += "a"
    seen, response, text = written(reply, stops, sizes)
    whole = " ".join(text.split())
    assert response.failure is None and seen == response.reply
    assert not any(stop in seen for stop in stops)
    if response.stop:
        assert whole.startswith(seen + response.stop)
    else:
        assert seen == " ".join(reply.split()) == whole
    assert (response.reply, response.stop) == cut_at(whole, stops)
