"""What readers of transcripts share: which form a file is read as, what is refused, how much is held."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfemo.data.transcripts import FORMS, Reading, ReadSettings, read_turns
from selfemo.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.pdf", "a.pdf: of no known form; there are .csv, .*; save it as text"),
        ("a.xlsx", "save it as CSV UTF-8"), ("a.zip", "unpack it"), ("a.ass", "convert the subtitles to SRT"),
        ("a.log", r"name the form by --form \(csv, "),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_told_what_to_do(tmp_path: Path, name: str, says: str) -> None:
    path = tmp_path / name
    path.write_text("Ann: Hi\n")
    with pytest.raises(DataError, match=says):
        list(read_turns(path))


def test_the_form_may_be_named(tmp_path: Path) -> None:
    path, reading = tmp_path / "a.log", Reading()
    path.write_text("Ann: Hi\nBo: Yo\n")
    turns = list(read_turns(path, ReadSettings(form="lines"), reading))
    assert [(t.speaker, t.text) for t in turns] == [("Ann", "Hi"), ("Bo", "Yo")]
    assert reading.form == FORMS["lines"].says and reading.encoding == "utf-8"
    with pytest.raises(ConfigError, match="--form chat: valid are csv, "):
        list(read_turns(path, ReadSettings(form="chat")))


def test_a_column_of_a_file_without_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Ann: Hi\nBo: Yo\n")
    with pytest.raises(ConfigError, match=r"--speaker-column who: a\.txt is read as lines of .* no columns"):
        list(read_turns(path, ReadSettings(speaker="who")))


def test_a_file_larger_than_what_is_held(tmp_path: Path) -> None:
    """Reading holds one turn at a time, not the file."""
    import tracemalloc

    path = tmp_path / "big.csv"
    with path.open("w") as f:
        f.write("speaker,text\n")
        for n in range(1_500):
            f.write(f"Ann,Line {n} of a long monologue{' that goes on and on' * 80}.\n")
    assert path.stat().st_size > 2_000_000
    turns = read_turns(path)
    next(turns)
    tracemalloc.start()
    count = 1 + sum(1 for _ in turns)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1_500 and peak < 500_000
