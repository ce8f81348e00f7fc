"""Several jobs at once, each in its own process."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from selfemo.errors import SelfEmoError
from selfemo.progress import Lines, Reporter, Stopped, StopRequest

Work = Callable[..., Any]
"""work(*args, reporter, stop), of a module's top level; it raises Stopped where `stop` was asked for."""
_WAIT = 0.2


@dataclass(frozen=True)
class Job:
    """A piece of work; `name` stands before each line that it says."""

    name: str
    work: Work
    args: tuple[Any, ...]


def _run(job: Job, sender: Any) -> None:
    reporter, stop = Lines(job.name), StopRequest()
    try:
        with stop.on_signals(reporter.say):
            job.work(*job.args, reporter, stop)
    except (Stopped, KeyboardInterrupt):
        raise SystemExit(130) from None
    except SelfEmoError as e:
        sender.send(str(e))
        raise SystemExit(1) from None


def side_by_side(
    jobs: Sequence[Job], at_once: int, reporter: Reporter, stop: StopRequest | None = None
) -> None:
    """Run all jobs, `at_once` at a time, each with its share of the processor cores.

    A job that fails does not end the others.

    Raises:
        SelfEmoError: what the first job that failed says, once all others have ended.
        Stopped: `stop` was asked for; each running job was asked to stop, and has.
    """
    context = multiprocessing.get_context("spawn")
    waiting, failed = list(jobs), list[str]()
    running: list[tuple[Job, Any, Any]] = []
    asked = False
    threads = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} - os.environ.keys()
    try:
        os.environ.update(dict.fromkeys(threads, str(max(1, (os.cpu_count() or 1) // at_once))))
        while running or (waiting and not asked):
            if stop is not None and stop.asked and not asked:
                asked = True
                for _, process, _ in running:
                    process.terminate()
            while waiting and len(running) < at_once and not asked:
                job = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(job, sender), name=job.name)
                process.start()
                sender.close()
                running.append((job, process, receiver))
            for job, process, receiver in list(running):
                process.join(_WAIT / len(running))
                if process.is_alive():
                    continue
                running.remove((job, process, receiver))
                if process.exitcode == 0 or (asked and process.exitcode == 130):
                    continue
                try:
                    said = receiver.recv()
                except EOFError:
                    said = f"ended with status {process.exitcode}; what it wrote stands above"
                failed.append(f"{job.name}: {said}")
                reporter.say(failed[-1])
    finally:
        for key in threads:
            os.environ.pop(key, None)
        for _, process, _ in running:
            process.terminate()
            process.join()
    if asked:
        raise Stopped
    if failed:
        raise SelfEmoError(failed[0])
