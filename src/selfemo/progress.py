"""How stages say what they do: nothing (library use) or bars with rate and time left (command line)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


class Console:
    """Rich progress bars on standard error; plain lines where that is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console as RichConsole

        self.console = RichConsole(stderr=True)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        if not self.console.is_terminal:
            yield from lines(self.say, label, total)
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        with Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        ) as progress:
            task = progress.add_task(label, total=total, note="")
            yield lambda n=1, note="": progress.update(task, advance=n, note=note)


def lines(say: Callable[[str], None], label: str, total: int) -> Iterator[Advance]:
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
            say(f"{label}: {done}/{total}, {spent:.0f} s, {left:.0f} s left {note}")

    yield advance


class Lines:
    """Plain lines on standard error, each with the name of what says it: for jobs side by side."""

    def __init__(self, name: str) -> None:
        self.name = name

    def say(self, text: str) -> None:
        print(f"[{self.name}] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        yield from lines(self.say, label, total)
