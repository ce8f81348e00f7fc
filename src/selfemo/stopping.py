"""Stop requests: the first signal lets the step in hand end and be saved, a second one stops at once.

A handler that raises would do so anywhere: inside an import, or where a library swallows it. (CPython
also ends with the signal's own exit status once a KeyboardInterrupt has passed through `exec`, caught or
not.) A flag that the stages read after each step has neither fault.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

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
