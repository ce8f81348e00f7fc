"""Tables and JSON at random: what was written is read back, and no word of a broken file is lost untold."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from selfemo.data.transcripts import SPEAKER, Reading, ReadSettings, SourceTurn, read_turns
from selfemo.errors import DataError

ONCE = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
LETTERS = st.sampled_from([*'abÄя7 \'""",;|\\.-:\n', "\r\n", "Hi", "é"])
CELLS = st.lists(LETTERS, max_size=8).map("".join)
LINES = CELLS.map(lambda s: re.sub(r"[\r\n]", "", s))


def folded(text: str) -> str:
    return " ".join(text.split())


def written(header: list[str], rows: list[list[str]], **dialect: Any) -> str:
    made = io.StringIO(newline="")
    csv.writer(made, **dialect).writerows([header, *rows])
    return made.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


QUOTING = [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]


@ONCE
@given(
    data=st.data(),
    comma=st.sampled_from(",;|\t"),
    quoting=st.sampled_from(QUOTING),
    ends=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    suffix=st.sampled_from([".csv", ".tsv"]),
    further=st.lists(st.sampled_from(["note", "Zeit", "a b", "Emotion", "id"]), unique=True, max_size=3),
)
def test_what_a_program_wrote_is_read_back(
    folder: Path,
    data: st.DataObject,
    comma: str,
    quoting: int,
    ends: str,
    encoding: str,
    suffix: str,
    further: list[str],
) -> None:
    header = data.draw(st.permutations(["speaker", "text", *further]))
    cells = LINES if comma == "\t" else CELLS
    rows = data.draw(st.lists(st.tuples(*[cells] * len(header)).map(list), min_size=1, max_size=6))
    texts = [row[header.index("text")] for row in rows]
    assume(any(t.strip() for t in texts))
    path = folder / f"t{suffix}"
    path.write_bytes(
        written(header, rows, delimiter=comma, quoting=quoting, lineterminator=ends).encode(encoding)
    )
    reading = Reading()
    try:
        turns = list(read_turns(path, ReadSettings(text="text", speaker="speaker"), reading))
    except DataError as e:
        # A text may look like rows.
        assume("looks like a row of its own" not in str(e))
        raise
    kept = [dict(zip(header, row, strict=True)) for row in rows if any(map(str.strip, row))]
    assert [t.fields for t in turns] == kept
    assert [t.text for t in turns] == [folded(k["text"]) for k in kept]
    assert [t.speaker for t in turns] == [folded(k["speaker"]) or SPEAKER for k in kept]
    assert reading.left_out["empty rows"] == len(rows) - len(kept)


def words_of(value: Any) -> list[str]:
    """The words of a value's texts, with those of its keys."""
    if isinstance(value, dict):
        return [w for item in value.items() for v in item for w in words_of(v)]
    if isinstance(value, list):
        return [w for v in value for w in words_of(v)]
    return re.findall(r"\w+", str(value))


def lost(words: list[str], turns: list[SourceTurn], left_out: list[str]) -> Counter[str]:
    """The words that are in no turn's fields, conversation or scene, and were not told as left out."""
    said = [w for t in turns for v in (t.fields, t.conversation, t.scene, t.text) for w in words_of(v)]
    said += [w for t in turns for label in t.labels or () for w in words_of(label)]
    known = set(said) | {w for text in left_out for w in words_of(text)}
    return Counter(w for w in words if w not in known)


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["cut", *'",;\t|\n\\ x', '""', '"\n', ",,", "\r\n"])),
    min_size=1,
    max_size=4,
)


@settings(ONCE, max_examples=300)
@given(
    comma=st.sampled_from(",;|\t"),
    quoting=st.sampled_from(QUOTING),
    suffix=st.sampled_from([".csv", ".tsv"]),
    changes=MUTATIONS,
)
def test_no_word_of_a_broken_table_is_lost(
    folder: Path, comma: str, quoting: int, suffix: str, changes: list[tuple[int, str]]
) -> None:
    rows = [
        ["c1", "Ann", "w1 w2, w3", "n1"], ["c1", "Bo", 'w4 "w5" w6', ""], ["c1", "Ann", "w7; w8|w9", "n2"],
        ["c2", "Bo", "", "n3"], ["c2", "Cy", "w10", "n4"], ["c2", "Ann", "w11", ""],
    ]  # fmt: skip
    made = written(
        ["ticket", "by", "text", "note"], rows, delimiter=comma, quoting=quoting, lineterminator="\n"
    )
    for place, change in changes:
        at = place % (len(made) + 1)
        made = made[:at] + (made[at + 1 :] if change == "cut" else change + made[at:])
    path, left_out = folder / f"m{suffix}", list[str]()
    path.write_text(made, newline="")
    reading = Reading(lambda kind, text, line: left_out.append(text))
    try:
        turns = list(read_turns(path, ReadSettings(), reading))
    except DataError as e:
        assert re.search(r"m\.[ct]sv(:\d+)?: ", str(e))
        return
    assert not lost(words_of(made), turns, left_out)
    # Two lines are one row only where that is told.
    lines = io.StringIO(made, newline="").readlines()
    empty = reading.left_out["empty rows"]
    if not reading.report.blemishes["texts over several lines"]:
        assert len(turns) + empty == len(lines) - 1 - leading(lines)
    else:
        assert len(turns) + empty < len(lines)


def leading(lines: list[str]) -> int:
    return next((n for n, line in enumerate(lines) if line.strip(' \t\r\n,;|"')), 0)


NAMES = st.sampled_from(
    [
        "text",
        "speaker",
        "message",
        "id",
        "turns",
        "messages",
        "data",
        "author",
        "scene",
        "labels",
        "x",
        "type",
        "name",
    ]
)
WORDS = st.integers(0, 10**9).map(lambda n: f"w{n}")
SHAPES = st.recursive(
    WORDS | st.none() | st.integers(0, 99) | WORDS.map(lambda w: {"text": w}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=15,
)


@settings(ONCE, max_examples=300)
@given(
    values=st.lists(SHAPES, min_size=1, max_size=3), indent=st.sampled_from([None, 1]), lines=st.booleans()
)
def test_no_word_of_json_is_lost(folder: Path, values: list[Any], indent: int | None, lines: bool) -> None:
    path, left_out = folder / ("j.jsonl" if lines else "j.json"), list[str]()
    path.write_text("\n".join(json.dumps(v, indent=indent) for v in values))
    try:
        turns = list(read_turns(path, None, Reading(lambda kind, text, line: left_out.append(text))))
    except DataError as e:
        assert re.search(r"j\.json(l)?(:\d+)?: ", str(e))
        return
    assert not lost([w for w in words_of(values) if re.fullmatch(r"w\d+", w)], turns, left_out)
