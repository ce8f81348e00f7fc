"""Let one process train for a long time, with stops and resumes, and watch what grows.

    python -m tests.reliability.soak --minutes 30 --out docs/data/soak.json

Each cycle gives a run one more iteration (self-play, RL, gate, refit, evaluation; a tiny model that really
trains, a state after each step), stops it in the middle of a stage that changes from cycle to cycle, resumes
it, writes summary and figures now and then, and uses the new checkpoint through `SelfEmo`. After each
cycle: resident memory, open file handles, threads, and the disk by what it is used for.

What may grow, and no more: one checkpoint an iteration (the policy after RL is pruned,
save.keep_stage_checkpoints = false), the store and its copy by the rows of the iteration, and memory by what
those rows take while they are read. `faults` says what is beyond that.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

STAGES = ("rl", "refit", "evaluate", "")
"""Where cycle k is stopped: the stages in turn, every fourth not at all."""
SUMMARY_EVERY = 10
MIB_A_CYCLE = 0.5
"""Most resident memory that a cycle may add, as a slope over all cycles after the first quarter. A stage
reads the store, and a summary draws every checkpoint so far: a longer run takes more while it does (a summary
of the same run, written again and again, adds nothing)."""
STORE_FACTOR = 3.0
"""Most that a cycle may add to the store, against the median cycle (pages come in lumps)."""


class _Mallinfo2(ctypes.Structure):
    """glibc's struct mallinfo2 (malloc.h, 2.33 and later)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated_mib() -> float:
    """What glibc's allocator has handed out and not got back, heaps and mappings; NaN elsewhere.

    Where this stays while resident memory grows, the growth is free pieces between what is in use.
    """
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return float("nan")
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return (info.uordblks + info.hblkhd) / 2**20


def measured(run: Path) -> dict[str, Any]:
    """Memory (MiB; Python's blocks), file handles, threads; bytes and names in the run's folder."""
    from selfemo.models.memory import resident_bytes

    gc.collect()
    sizes = {p: p.stat().st_size for p in run.rglob("*") if p.is_file()}
    checkpoints = run / "checkpoints"
    inside = {p: n for p, n in sizes.items() if checkpoints in p.parents}
    return {
        "rss_mib": round(resident_bytes() / 2**20, 1),
        "allocated_mib": round(allocated_mib(), 1),
        "python_blocks": sys.getallocatedblocks(),
        "handles": len(os.listdir("/proc/self/fd")) - 1,  # one is the listing's own
        "threads": len(os.listdir("/proc/self/task")),
        "checkpoints": sorted(p.name for p in checkpoints.iterdir()),
        "checkpoint_bytes": sum(inside.values()),
        "store_bytes": sum(n for p, n in sizes.items() if "sqlite" in p.name),
        "other_bytes": sum(n for p, n in sizes.items() if p not in inside and "sqlite" not in p.name),
        "half_written": sorted(p.name for p in sizes if ".tmp" in p.name or "partial" in str(p)),
    }  # fmt: skip


def cycles(folder: Path) -> Iterator[dict[str, Any]]:
    """One more iteration of a run in `folder`, again and again; yields the measurements after each."""
    import torch

    torch.set_num_threads(1)
    from selfemo import SelfEmo
    from selfemo.config import load
    from selfemo.evaluation.summary import finish
    from selfemo.progress import Quiet, Stopped, StopRequest
    from selfemo.reports.figures import draw
    from tests.conftest import build_tiny_model, toy_conversations, write_jsonl
    from tests.support.runs import SETTINGS, evolve

    data, run = folder / "toy.jsonl", folder / "run"
    write_jsonl(data, [*toy_conversations(10), *toy_conversations(3, "test")])
    own = [
        f'model.id="{build_tiny_model(folder / "tiny")}"', f'data.sources=["{data}"]',
        "flywheel.iterations=1", "flywheel.prompts=12", "flywheel.replay=0.05", "save.every_steps=1",
        "save.keep_stage_checkpoints=false", "evaluation.resamples=20",
    ]  # fmt: skip
    config = load([], [*SETTINGS.split(), *own])

    class Stopping(Quiet):
        """Asks for a stop in the middle of a stage."""

        def __init__(self, stage: str, stop: StopRequest):
            self.stage, self.stop = stage, stop

        def bar(self, label: str, total: int) -> Any:
            @contextmanager
            def bar() -> Iterator[Any]:
                def advance(n: int = 1, note: str = "") -> None:
                    self.stop.asked |= label == self.stage

                yield advance

            return bar()

    k = 0
    while True:
        k += 1
        started, where = time.monotonic(), STAGES[k % len(STAGES)]
        changes: list[str] = []
        if k > 1:
            changes = [f"flywheel.iterations={k}"]
        stop, resumes = StopRequest(), 0
        names = {"evaluate": f"evaluate-iteration-{k}", "": ""}
        reporter = Stopping(names.get(where, f"iteration-{k}-{where}"), stop)
        begin = config if k == 1 else None
        try:
            done = evolve(run, begin, reporter, stop, changes)
        except Stopped:
            resumes = 1
            done = evolve(run, None, Quiet())
        if k % SUMMARY_EVERY == 1:
            finish(done, draw)
        (rollouts,) = done.store.rows("SELECT count(*) FROM rollouts")
        done.close()
        model = SelfEmo(run, max_tokens=72)
        talk = [("Ann", "Hooray, we won it!"), ("Bo", "Stop it right now!")]
        assert len(model.recognise(talk)) == 2 and model.respond(talk, "Plain.").failure is None
        model.close()
        del model, done
        yield {
            "cycle": k, "seconds": round(time.monotonic() - started, 2), "stopped_in": where,
            "resumes": resumes, "rollouts": rollouts[0], **measured(run),
        }  # fmt: skip


def slope(values: list[float]) -> float:
    """Least squares: growth a step."""
    if len(values) < 2:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope


def faults(rows: list[dict[str, Any]]) -> list[str]:
    """What grew beyond what is documented.

    Args:
        rows: of `measured`, one a cycle, in order.
    """
    found = []
    for r in rows:
        expected = sorted(["cold-start", *(f"iteration-{i}" for i in range(1, r["cycle"] + 1))])
        if r["checkpoints"] != expected:
            found.append(f"cycle {r['cycle']}: checkpoints {r['checkpoints']}")
        if r["half_written"]:
            found.append(f"cycle {r['cycle']}: {r['half_written']} left behind")
    later = rows[max(1, len(rows) // 4) :]
    for what in ("handles", "threads"):
        if len({r[what] for r in later}) > 1:
            found.append(f"{what}: {sorted({r[what] for r in later})} after the first cycles")
    pairs = list(pairwise(rows))
    models = {b["checkpoint_bytes"] - a["checkpoint_bytes"] for a, b in pairs}
    if models and max(models) > 1.01 * min(models):
        found.append(f"checkpoints grew by {min(models)} to {max(models)} bytes a cycle")
    grown = [b["store_bytes"] - a["store_bytes"] for a, b in pairs]
    if grown and max(grown) > STORE_FACTOR * max(statistics.median(grown), 2**18):
        found.append(f"the store grew by {max(grown)} bytes in a cycle, {statistics.median(grown)} usually")
    # A few cycles say nothing of memory: allocators keep what they may need again.
    if len(rows) >= 20 and (growth := slope([r["rss_mib"] for r in later])) > MIB_A_CYCLE:
        found.append(f"memory grew by {growth:.2f} MiB a cycle")
    return found  # fmt: skip


def soak(folder: Path, minutes: float, at_most: int = 0, say: Any = print) -> list[dict[str, Any]]:
    """Cycles until the time is up, or `at_most` of them."""
    end, rows = time.monotonic() + 60 * minutes, []
    for row in cycles(folder):
        rows.append(row)
        say(f"cycle {row['cycle']}: {row['seconds']} s, {row['rss_mib']} MiB, {row['handles']} handles")
        if len(rows) == at_most or time.monotonic() > end:
            break
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, help="where the result goes as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="selfemo-soak-") as folder:
        rows = soak(Path(folder), args.minutes)
    later = rows[max(1, len(rows) // 4) :]
    shown = [r for r in rows if r["cycle"] % max(1, len(rows) // 30) == 0 or r in (rows[0], rows[-1])]
    result = {
        "command": f"python -m tests.reliability.soak --minutes {args.minutes:g}",
        "cycles": len(rows), "resumes": sum(r["resumes"] for r in rows),
        "minutes": round(sum(r["seconds"] for r in rows) / 60, 1),
        "mib_a_cycle": round(slope([r["rss_mib"] for r in later]), 4),
        "allocated_mib_a_cycle": round(slope([r["allocated_mib"] for r in later]), 4),
        "python_blocks_a_cycle": round(slope([r["python_blocks"] for r in later]), 1),
        "handles": sorted({r["handles"] for r in later}), "threads": sorted({r["threads"] for r in later}),
        "checkpoint_bytes_a_cycle": round(slope([r["checkpoint_bytes"] for r in rows])),
        "store_bytes_a_cycle": round(slope([r["store_bytes"] for r in rows])),
        "faults": faults(rows),
        "some_cycles": [{k: v for k, v in r.items() if k != "checkpoints"} for r in shown],
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    sys.exit(bool(result["faults"]))


if __name__ == "__main__":
    main()
