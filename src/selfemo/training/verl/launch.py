"""A launch of verl: a process that is followed until it ends and stopped together with its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from selfemo.errors import EngineError
from selfemo.files import write_json, write_text
from selfemo.progress import StopRequest
from selfemo.training.verl.settings import environment

POLL = 1.0
"""Seconds between two looks at what a launch has written."""


class Launch:
    """A context in which a command of verl runs; an exception inside it ends the command and its children.

    Args:
        folder: the stage's; holds the log, the metrics and the note of the process id.
        address: of a running Ray cluster, or "".
        stop: when it is asked for, a file tells verl, which saves its state and ends.
        start: starts a command.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        address: str,
        stop: StopRequest,
        start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
    ):
        self.folder, self.stop = folder, stop
        folder.mkdir(parents=True, exist_ok=True)
        end_orphan(folder / "process")
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        write_json(folder / "command.json", list(command))
        variables = {**os.environ, **environment(folder), "PYTHONUNBUFFERED": "1", "HYDRA_FULL_ERROR": "1"}
        if address:
            variables["RAY_ADDRESS"] = address
        with (folder / "verl.log").open("ab") as log:
            self.process = start(
                list(command), stdout=log, stderr=subprocess.STDOUT, env=variables, start_new_session=True
            )
        write_text(folder / "process", str(self.process.pid))

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
                break

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def pause(self) -> None:
        """Wait a moment; pass a stop request on to verl."""
        if self.stop.asked:
            (self.folder / "stop").touch()
        time.sleep(POLL)

    def wait(self) -> None:
        """Wait until the command ends (EngineError: it failed; Stopped: a stop was asked for)."""
        while not self.ended:
            self.pause()
        (self.folder / "stop").unlink(missing_ok=True)
        self.stop.check()
        if self.process.returncode:
            with (path := self.folder / "verl.log").open(encoding="utf-8", errors="replace") as f:
                tail = "".join(deque(f, 25))
            raise EngineError(
                f"verl ended with code {self.process.returncode}; its last saved state is kept. The end "
                f"of {path}:\n{tail.rstrip()}"
            )


def end_orphan(note: Path) -> None:
    """End the verl process of a launch that was killed; two in one folder would spoil its states."""
    try:
        pid = int(note.read_text())
        of_verl = b"verl.trainer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if of_verl:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    note.unlink(missing_ok=True)
