"""Timing of two ways in turn, in one process, and the record of a row.

The machine's speed drifts, so the two are run A B A B, and what is reported is the ratio of each pair.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfemo.runs.store import Store


@dataclass
class Row:
    """One line of docs/performance.md.

    Attributes:
        name, peer, unit: what was measured, against what, in which unit.
        goal: the ratio (peer / ours) that is asked for; None where only a bound on ours is.
        ours, theirs: the measured values, pair by pair.
        checked: what was asserted to be equal in the same run.
        details: anything else that a reader needs.
    """

    name: str
    peer: str
    goal: float | None
    unit: str = "s"
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    checked: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        return [t / o for o, t in zip(self.ours, self.theirs, strict=True)] if self.theirs else []

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.theirs else None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "ratios": self.ratios}


def _finished() -> None:
    """Wait for what a GPU still has in hand; no row without torch loads it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    _finished()
    start = time.perf_counter()
    result = work()
    _finished()
    return time.perf_counter() - start, result


def in_turn(
    row: Row,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    repeats: int,
    check: Callable[[Any, Any], None] | None = None,
    warm: bool = True,
) -> Row:
    """Run both in turn; the first pair is a warm-up (where `warm`) on which `check` is called."""
    if warm:
        a, b = ours(), theirs()
        if check:
            check(a, b)
    for k in range(repeats):
        spent, a = timed(ours)
        other, b = timed(theirs)
        row.ours.append(spent)
        row.theirs.append(other)
        print(f"{row.name} [{k + 1}/{repeats}]: {spent:.3f} against {other:.3f}", file=sys.stderr)
        if check and not warm:
            check(a, b)
    return row


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
