"""Progress where there is no terminal."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from selfemo import progress


def test_a_line_for_each_quarter_and_after_a_minute_without_one(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    said: list[str] = []
    job = progress.Lines("job")
    monkeypatch.setattr(job, "say", said.append)
    with job.bar("sft", 40) as advance:
        for step in range(1, 41):
            clock[0] += 25 if step <= 8 else 1  # slow at first
            advance(note=f"loss {step}")
    assert [s.split(",")[0] for s in said] == [
        "sft: 3 of 40", "sft: 6 of 40", "sft: 10 of 40", "sft: 20 of 40", "sft: 30 of 40",
        "sft: 40 of 40 in 4 min",
    ]  # fmt: skip
    assert said[0] == "sft: 3 of 40, about 15 min left, loss 3", "37 steps of 25 s"


def test_a_quick_job_says_one_line(monkeypatch) -> None:
    said = lines(monkeypatch, total=8, seconds=[0.5] * 8)
    assert said == ["sft: 8 of 8 in 4 s"]


def test_what_an_earlier_call_did_makes_no_rate(monkeypatch) -> None:
    """30 of 40 are there at once; then 10 s each: of the ten left nine take 90 s, not 3."""
    said = lines(monkeypatch, total=40, seconds=[0.1, *[10] * 10], first=30)
    assert said[0] == "sft: 31 of 40, about 2 min left"


def lines(monkeypatch, total: int, seconds: list[float], first: int = 1) -> list[str]:
    """What a bar says whose steps take these seconds; the first one counts for `first`."""
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    said: list[str] = []
    job = progress.Lines("job")
    monkeypatch.setattr(job, "say", said.append)
    with job.bar("sft", total) as advance:
        for k, took in enumerate(seconds):
            clock[0] += took
            advance(1 if k else first)
    return said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (754, "13 min"),
        (3600, "1 h 0 min"),
        (12_000, "3 h 20 min"),
    ],
)
def test_a_time_for_people(seconds: float, said: str) -> None:
    assert progress.duration(seconds) == said


def test_a_terminal_and_a_pipe_say_the_same(monkeypatch, capsys) -> None:
    """One piece of code for both: count and time left."""
    from rich.console import Console as RichConsole

    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for terminal in (True, False):
        console, out = progress.Console(), io.StringIO()
        console.console = RichConsole(file=out, force_terminal=terminal, width=100)
        clock[0] = 0.0
        with console.bar("predict", 4) as advance:
            clock[0] = 30.0
            advance(1, "at [x]")
        assert "1 of 4, about 2 min left" in out.getvalue() and "at [x]" in out.getvalue()


def test_notes_are_silent_until_they_are_shown(capsys) -> None:
    code = (
        "from selfemo.progress import NOTES, show_notes\n"
        "NOTES.info('unseen'); show_notes(); show_notes(); NOTES.info('loading %s', 'x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "loading x\n")
