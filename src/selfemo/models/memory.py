"""Freed memory: kept by the C library between steps, given back when the process has grown.

Kept for the next allocation it saves page faults: a step on a row of 4,000 tokens otherwise spends a quarter
of its time in the kernel. But packs change their sizes, which fragments it: without giving it back, a long
run grows to far more memory than it uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

_GROWTH = 1.1
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers of glibc's mallopt."""
_usual = 0
"""Resident memory after the first step since memory was given back."""


def keep_memory() -> None:
    """Keep what is freed for the next allocation, large tensors included, where the C library can (glibc).

    Without this it gives the end of its heap back at once, and each tensor of 32 MiB and more.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return  # the user's own
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_MMAP_MAX, 0)


def return_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc)."""
    global _usual
    _usual = 0
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell it this way."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def after_step() -> None:
    """Give freed memory back once the process has grown by a tenth since that was last done."""
    global _usual
    now = resident_bytes()
    if not _usual:
        _usual = now
    elif now > _GROWTH * _usual:
        return_memory()
        _usual = 0
