"""Progress of stages, and requests to stop them.

The first signal lets the current step end and be saved, a second one stops at once. The handler sets a flag
that stages read after each step: one that raises would do so anywhere, inside an import or where a library
swallows it. (CPython also ends with the signal's own exit status once a KeyboardInterrupt has passed through
`exec`, caught or not.)
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

Advance = Callable[..., None]
"""advance(n=1, note="")"""


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
        """A bar in words: a line for each quarter, and after a minute without one."""
        start, done, shown = time.monotonic(), 0, 0
        last = start

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal done, shown, last
            done += n
            now = time.monotonic()
            if done * 4 // max(1, total) > shown or done >= total or now - last >= 60:
                shown, last = done * 4 // max(1, total), now
                spent = now - start
                left = spent / done * (total - done) if done else 0.0
                self.say(f"{label}: {done}/{total}, {spent:.0f} s, {left:.0f} s left {note}")

        yield advance


class Console(Lines):
    """Rich progress bars on standard error; plain lines where that is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console as RichConsole

        super().__init__("")
        self.console = RichConsole(stderr=True)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        if not self.console.is_terminal:
            with super().bar(label, total) as advance:
                yield advance
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        with Progress(
            "{task.description:<24}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            "left",
            TimeRemainingColumn(),
            "{task.fields[note]}",
            console=self.console,
        ) as progress:
            task = progress.add_task(label, total=total, note="")
            yield lambda n=1, note="": progress.update(task, advance=n, note=note)


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
