"""The kill harness in short; the long form's results are in docs/reliability.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.parametrize(("journal", "locks"), [("wal", "system"), ("delete", "system"), ("wal", "file")])
def test_killed_anywhere_a_run_ends_as_if_never_interrupted(
    journal: str, locks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFEMO_LOCKS", locks)
    # A process of its own: it forks, which this one's threads forbid.
    command = [sys.executable, "-m", "tests.reliability.kill_anywhere", "--kills", "4", "--journal", journal]
    done = subprocess.run(
        [*command, "--seed", "3", "--out", str(tmp_path / "r.json")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    result = json.loads((tmp_path / "r.json").read_text())
    assert done.returncode == 0 and not result["differences"], result
    assert result["kills"] == 4 and result["runs_compared"] >= 1
