"""Progress of stages, and requests to stop them.

The first signal lets the current step end and be saved, a second one stops at once. The handler sets a flag
that stages read after each step: one that raises would do so anywhere, inside an import or where a library
swallows it. (CPython also ends with the signal's own exit status once a KeyboardInterrupt has passed through
`exec`, caught or not.)
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

Advance = Callable[..., None]
"""advance(n=1, note="")"""

NOTES = logging.getLogger("selfemo.notes")
"""Lines of code that has no reporter, such as the loading of weights; silent until `show_notes`."""


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def show_notes() -> None:
    """Print NOTES on standard error, as the commands do."""
    if not NOTES.handlers:
        NOTES.addHandler(_Notes())
        NOTES.setLevel(logging.INFO)
        NOTES.propagate = False


def duration(seconds: float) -> str:
    """A time for people: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Pace:
    """How far a piece of work is, and how long the rest takes at the rate so far.

    What is counted in the first second was mostly done by an earlier call that this one goes on with, so the
    rate is that of what comes after.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.start = time.monotonic()
        self._since = (self.start, 0)

    def advance(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.start < 1:
            self._since = (now, self.done)

    def left(self) -> float | None:
        """Seconds that the rest takes; None before there is a rate."""
        since, before = self._since
        if self.done <= before:
            return None
        return (time.monotonic() - since) / (self.done - before) * max(0, self.total - self.done)

    def __str__(self) -> str:
        """ "12 of 40, about 3 min left"; at the end "40 of 40 in 4 min"."""
        count = f"{self.done:,} of {self.total:,}"
        if self.done >= self.total:
            return f"{count} in {duration(time.monotonic() - self.start)}"
        left = self.left()
        return count if left is None else f"{count}, about {duration(left)} left"


class Reporter(Protocol):
    def say(self, text: str) -> None: ...

    def bar(self, label: str, total: int) -> Any:
        """A context manager that yields an `Advance`."""


class Quiet:
    def say(self, text: str) -> None:
        pass

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda n=1, note="": None


class Lines:
    """Plain lines on standard error, each with the name of the job that says it: for jobs side by side."""

    def __init__(self, name: str) -> None:
        self.name = name

    def say(self, text: str) -> None:
        print(f"[{self.name}] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        """A bar in words: a line for each quarter, after a minute without one, and at the end.

        Lines are five seconds apart or more.
        """
        pace, shown = Pace(total), 0
        last = pace.start

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal shown, last
            pace.advance(n)
            quarter, silent = pace.done * 4 // max(1, total), time.monotonic() - last
            ended = pace.done >= total and shown < 4
            if ended or (quarter > shown and silent >= 5) or silent >= 60:
                shown, last = quarter, time.monotonic()
                self.say(f"{label}: {pace}{note and f', {note}'}")

        yield advance


class Console(Lines):
    """Rich progress bars on standard error; plain lines where that is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console as RichConsole

        super().__init__("")
        self.console = RichConsole(stderr=True)

    def say(self, text: str) -> None:
        # Lines of a file or pipe are not cut to a width, and a path in brackets is no markup.
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        if not self.console.is_terminal:
            with super().bar(label, total) as advance:
                yield advance
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        pace = Pace(total)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[pace]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(label, total=total, note="", pace=str(pace))

            def advance(n: int = 1, note: str = "") -> None:
                pace.advance(n)
                progress.update(task, advance=n, note=note, pace=str(pace))

            yield advance


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The run was asked to stop and has saved what is done."""


class StopRequest:
    """`asked` is true once a stop was asked for."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Raises: Stopped, where a stop was asked for."""
        if self.asked:
            raise Stopped

    @contextmanager
    def on_signals(self, say: Callable[[str], None]) -> Iterator[StopRequest]:
        """Take SIGINT and SIGTERM as requests while the block runs (main thread only)."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            say("stopping after this step; once more stops at once")

        before = {s: signal.signal(s, ask) for s in SIGNALS}
        try:
            yield self
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)
