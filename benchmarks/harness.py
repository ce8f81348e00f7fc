"""Timing of two ways in turn, in one process, and the record of a row.

The machine's speed drifts, so the two are run A B A B, and what is reported is the ratio of each pair.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from selfemo.runs.store import Store

Result = TypeVar("Result")


@dataclass
class Row:
    """One line of docs/performance.md.

    Attributes:
        name, peer, unit: what was measured, against what, in which unit.
        goal: the ratio (peer / ours) that is asked for; None where only a bound on ours is.
        ours, theirs: the measured values, pair by pair.
        checked: what was asserted to be equal in the same run.
        details: anything else that a reader needs.
        first: seconds of the warm-up call of ours and theirs, which compiles what is compiled; empty without.
        peak_gib: of ours and theirs, as `Meter` counts it; None where there is no GPU.
    """

    name: str
    peer: str
    goal: float | None
    unit: str = "s"
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    checked: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    first: list[float] = field(default_factory=list)
    peak_gib: list[float | None] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [t / o for o, t in zip(self.ours, self.theirs, strict=True)] if self.theirs else []

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.theirs else None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "ratios": self.ratios}


def _cuda() -> Any:
    """torch.cuda where a GPU is in use, else None; no row without torch loads it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


class Meter:
    """GPU memory of one of the sides that share a process.

    Two sides hold their weights at once, so the peak of the process says nothing of either. What a side's
    own calls allocated and did not give back is its own; its peak is that, with what a call takes on top.
    Not seen are buffers that a CUDA graph keeps and does not hand out.
    """

    def __init__(self) -> None:
        self._kept = self._peak = self._before = 0

    def start(self) -> None:
        if cuda := _cuda():
            cuda.reset_peak_memory_stats()
            self._before = cuda.memory_allocated()

    def stop(self) -> None:
        if cuda := _cuda():
            self._peak = max(self._peak, self._kept + cuda.max_memory_allocated() - self._before)
            self._kept += cuda.memory_allocated() - self._before

    def run(self, work: Callable[[], Result]) -> Result:
        self.start()
        try:
            return work()
        finally:
            self.stop()

    def anew(self) -> None:
        """Forget the peak, not what is kept."""
        self._peak = self._kept

    @property
    def peak_gib(self) -> float | None:
        return self._peak / 2**30 if _cuda() else None


def finished() -> None:
    """Wait for what a GPU still has in hand."""
    if cuda := _cuda():
        cuda.synchronize()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    finished()
    start = time.perf_counter()
    result = work()
    finished()
    return time.perf_counter() - start, result


def in_turn(
    row: Row,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    repeats: int,
    check: Callable[[Any, Any], None] | None = None,
    warm: bool = True,
    memory: tuple[Meter, Meter] | None = None,
) -> Row:
    """Run both in turn; the first pair is a warm-up (where `warm`) on which `check` is called.

    Args:
        memory: of ours and theirs, where it was counted from their weights on.
    """
    mine, other = memory or (Meter(), Meter())

    def pair() -> tuple[tuple[float, Any], tuple[float, Any]]:
        return mine.run(lambda: timed(ours)), other.run(lambda: timed(theirs))

    if warm:
        (first, a), (second, b) = pair()
        row.first = [first, second]
        if check:
            check(a, b)
    for k in range(repeats):
        (spent, a), (against, b) = pair()
        row.ours.append(spent)
        row.theirs.append(against)
        print(f"{row.name} [{k + 1}/{repeats}]: {spent:.3f} against {against:.3f}", file=sys.stderr)
        if check and not warm:
            check(a, b)
    if memory:
        row.peak_gib = [mine.peak_gib, other.peak_gib]
    return row


@contextmanager
def counted(*places: tuple[Any, str]) -> Iterator[Callable[[], float]]:
    """Seconds inside some functions while the context is open, by the names that their callers call them by.

    Args:
        places: (module or object, attribute); AttributeError where there is none. A call inside another
            counts once.
    """
    spent, depth = 0.0, 0
    saved = [(place, name, getattr(place, name), name in vars(place)) for place, name in places]

    def watched(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent, depth
            depth, start = depth + 1, time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                depth -= 1
                if not depth:
                    spent += time.perf_counter() - start

        return call

    try:
        for place, name, work, _ in saved:
            setattr(place, name, watched(work))
        yield lambda: spent
    finally:
        for place, name, work, own in saved:
            if own:
                setattr(place, name, work)
            else:
                delattr(place, name)


def shown(values: Sequence[float]) -> str:
    """Median and range; empty where there is no value."""
    if not values:
        return ""
    middle = statistics.median(values)
    digits = 2 if middle < 10 else 1
    return f"{middle:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def close(a: float, b: float, what: str, rel: float = 1e-3) -> None:
    """Raise where two results of one computation differ."""
    if abs(a - b) > rel * max(abs(a), abs(b), 1e-9):
        raise AssertionError(f"{what}: {a} and {b} differ")


ROLLOUTS = (
    "INSERT INTO rollouts (stage, step, iteration, prompt, member, text, tokens, failure, emotion, "
    "self_emotion, reply, r1, r2, advantage, mean_logprob, entropy, best, gate) "
    "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)


def add_rollouts(store: Store, rows: Iterable[Sequence[Any]]) -> None:
    """Insert ready rows of the table of rollouts, as `Store.add_group` does with the rows that it makes."""
    store.db.executemany(ROLLOUTS, rows)
