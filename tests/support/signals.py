"""Signals of the tests and of the processes that they start."""

from __future__ import annotations

import signal


def hear_ctrl_c() -> None:
    """Take SIGINT, and let what is started take it, also where a shell started this in its background.

    Such a shell has SIGINT ignored, and every process below it inherits that.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
