"""Progress where there is no terminal."""

from __future__ import annotations

from types import SimpleNamespace

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
        "sft: 3/40", "sft: 6/40", "sft: 10/40", "sft: 20/40", "sft: 30/40", "sft: 40/40",
    ]  # fmt: skip
    assert said[0] == "sft: 3/40, 75 s, 925 s left loss 3"
