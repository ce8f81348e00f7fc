"""Freed memory between steps: kept until the process grows."""

from __future__ import annotations

import sys

import pytest

from selfemo.models import memory


def test_memory_is_given_back_once_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100, 109, 110, 111, 70, 77, 78])
    given: list[int] = []
    now = 0

    def resident() -> int:
        nonlocal now
        now = next(sizes)
        return now

    monkeypatch.setattr(memory, "resident_bytes", resident)
    monkeypatch.setattr(memory, "return_memory", lambda: given.append(now))
    monkeypatch.setattr(memory, "_usual", 0)
    for _ in range(7):
        memory.after_step()
    # 111 is more than a tenth above 100; after it 70 is the new measure, and 78 is more than a tenth above.
    assert given == [111, 78]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_follows_an_allocation() -> None:
    before = memory.resident_bytes()
    block = bytearray(b"x" * (64 << 20))
    assert memory.resident_bytes() - before > 48 << 20
    del block
    memory.return_memory()
    assert memory.resident_bytes() - before < 48 << 20
