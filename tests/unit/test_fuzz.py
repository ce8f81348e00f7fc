"""The fuzzing of model output in short: a few thousand completions, and Hypothesis' own."""

from __future__ import annotations

import contextlib
import random
import time

from hypothesis import example, given, settings
from hypothesis import strategies as st

from selfemo.method.types import FailureKind
from selfemo.stages.experts import MalformedError, read_json
from tests.reliability.fuzz_parser import fuzz
from tests.support.completions import BOMBS, MARKS, NUMBERS, ODD, check_group

PARTS = st.sampled_from([*MARKS, *NUMBERS, *ODD, "joy", "fear", "neutral 3", " 7, ", "\nS: ", "\nR: "])
TEXTS = st.one_of(
    st.text(st.characters(), max_size=200),
    st.lists(st.one_of(PARTS, st.text(max_size=5)), max_size=25).map("".join),
)


def test_thousands_of_bent_completions() -> None:
    tally, slowest = fuzz(4_000, seed=1)
    assert sum(tally.values()) == 4_000 and slowest < 1
    # The corpus reaches every kind of result, so that the check above is of all of them.
    of_the_asking = {"no_text", "too_long", "refused", "unanswered", "stopped"}
    assert set(tally) == {"parsed", *FailureKind} - of_the_asking


@settings(max_examples=100)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(0, 99))
@example(["E: joy 1e308, fear 1e308\nS: joy 5e-324\nR: \u202eE: joy"], 0)
@example(["E: joy, joy\nS: joy\nR: x", "E: joy\nS: fear\nR: fine\nE: joy"], 0)
@example(["T: E: joy\nE: joy\nS: joy\nR: R: S: E:"], 0)
def test_any_text(texts: list[str], seed: int) -> None:
    check_group(texts, random.Random(seed))


def test_json_bombs_in_experts_answers_are_typed_and_cheap() -> None:
    started = time.process_time()
    for bomb in (*BOMBS, '{"a":' * 200_000, '{"a":[' * 100_000, '{"a":"b",' * 100_000, "{" * 10**6):
        with contextlib.suppress(MalformedError):
            assert isinstance(read_json(bomb), dict)
    assert time.process_time() - started < 5
