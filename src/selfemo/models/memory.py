"""Freed memory: kept by the C library between steps, given back when the process has grown.

glibc keeps freed memory for the next allocation, which saves page faults. But packs change their sizes, which
fragments it: without giving it back, a run of ten minutes grows to twice the memory that it uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

_GROWTH = 1.1


def return_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell it this way."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class KeptMemory:
    """Freed memory is kept from step to step and given back once the process has grown by a tenth."""

    def __init__(self) -> None:
        self._usual = 0

    def after_step(self) -> None:
        now = resident_bytes()
        if not self._usual:
            self._usual = now
        elif now > _GROWTH * self._usual:
            return_memory()
            self._usual = 0
