from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SERVER = Path(__file__).parent.parent / "expert_server.py"


@pytest.fixture
def expert(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts servers in processes of their own; returns the base URL of each."""
    running: list[subprocess.Popen[str]] = []

    def start(**options: object) -> str:
        flags = [str(x) for k, v in options.items() for x in (f"--{k}", v)]
        process = subprocess.Popen(
            [sys.executable, str(SERVER), *flags], stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout is not None
        return f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"

    yield start
    for process in running:
        process.kill()
        process.wait()
