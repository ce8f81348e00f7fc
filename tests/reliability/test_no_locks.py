"""Commands where a C library refuses all locks, flock and fcntl, as a file system without any does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfemo.config import to_toml
from tests.support.runs import SHORT, settings

REFUSING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

int flock(int fd, int how) { errno = ENOLCK; return -1; }

#define WITHOUT_LOCKS(name) \\
    int name(int fd, int command, ...) { \\
        va_list more; \\
        va_start(more, command); \\
        void *value = va_arg(more, void *); \\
        va_end(more); \\
        if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) { errno = NUMBER; return -1; } \\
        int (*real)(int, int, ...) = dlsym(RTLD_NEXT, #name); \\
        return real(fd, command, value); \\
    }
WITHOUT_LOCKS(fcntl)
WITHOUT_LOCKS(fcntl64)
"""

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("cc"), reason="preloads a C library on Linux"
)


def refusing(folder: Path, number: str) -> dict[str, str]:
    """An environment in which every lock is refused, SQLite's with an error of this name."""
    source, library = folder / "refusing.c", folder / "refusing.so"
    source.write_text(REFUSING)
    command = ["cc", "-shared", "-fPIC", f"-DNUMBER={number}", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return {"LD_PRELOAD": str(library)}


def selfemo(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "selfemo.cli", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", ["ENOSYS", "ENOLCK"])
def test_a_command_says_that_there_are_no_locks_and_works_with_files(number: str, tmp_path: Path) -> None:
    without = refusing(tmp_path, number)
    script, played = tmp_path / "answers.jsonl", tmp_path / "played"
    script.write_text(json.dumps("E: joy\nS: joy\nR: Well.") + "\n")
    line = ["selfplay", f"scripted:{script}", "--data", "sample", "--prompts", 2, "--out", played]
    done = selfemo(*line, **without)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "its file system gives no locks (No locks available)" in done.stderr
    assert "SELFEMO_LOCKS=file" in done.stderr and "in use" not in done.stderr
    assert selfemo(*line, **without, SELFEMO_LOCKS="file").returncode == 0
    # A reader takes no lock of the folder, but SQLite does.
    read = ["evaluate", f"scripted:{script}", "--data", "sample", "--split", "dev", "--compare", played]
    told = selfemo(*read, **without).stderr
    assert (
        "Traceback" not in told and "its file system gives no locks" in told and "SELFEMO_LOCKS=file" in told
    )
    assert "holds no predictions yet" in selfemo(*read, **without, SELFEMO_LOCKS="file").stderr


@pytest.mark.slow
def test_a_whole_run_on_a_file_system_without_locks(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    toml, run = tmp_path / "c.toml", tmp_path / "run"
    short = (
        *SHORT,
        "sft.epochs=1",
        "flywheel.prompts=6",
        "sampling.max_new_tokens=8",
        "evaluation.max_new_tokens=8",
    )
    toml.write_text(to_toml(settings(tiny_model, data, *short)))
    without = {**refusing(tmp_path, "ENOSYS"), "SELFEMO_LOCKS": "file"}
    done = selfemo("evolve", "-c", toml, "--out", run, **without)
    assert done.returncode == 0, done.stderr
    assert (run / "summary.json").exists() and not (run / ".lock.pid").exists()
    done = selfemo("report", run, **without)
    assert done.returncode == 0, done.stderr
    # On a local disk again: the store is converted back to what its settings say.
    done = selfemo("evolve", "--resume", run)
    assert done.returncode == 0, done.stderr
    assert (run / "store.sqlite").read_bytes()[18:20] == b"\2\2"
