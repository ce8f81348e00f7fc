"""A run that another process holds is left as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from selfemo.runs.folder import RunFolder
from tests.support.runs import settings

HOLD = """
import fcntl, sys
with open(sys.argv[1], "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print(flush=True)
    sys.stdin.read()
"""


def test_settings_of_a_run_in_use_are_not_changed(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    RunFolder(folder, settings(tiny_model, data)).close()
    before = (folder / "config.toml").read_bytes()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    command = [sys.executable, "-m", "selfemo.cli", "evolve", "--resume", str(folder)]
    try:
        done = subprocess.run(
            [*command, "--set", "flywheel.iterations=3"], capture_output=True, text=True, check=False
        )
    finally:
        holder.communicate()
    assert done.returncode == 1 and "in use" in done.stderr
    assert (folder / "config.toml").read_bytes() == before
