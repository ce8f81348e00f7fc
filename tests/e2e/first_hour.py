"""The first hour of a new user, as a script: what README says, and what `make demo` says under "Try next".

    python -m tests.e2e.first_hour [--short] [--keep]

In a fresh clone, with the environment that `make demo` makes, in order. Each line must end with exit code 0.
Chats get two lines to say; servers are asked for their page and stopped. --short cuts the demo down: it shows
that all commands work, not what they give.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tests.support.signals import hear_ctrl_c

ROOT = Path(__file__).parents[2]
SECTION = "## After the demo"
SHORT = "--set flywheel.prompts=36 --set data.eval_conversations=3 --set sft.max_samples=48"
TALK = "Hello, how was your day?\n/quit\n"
_ADDRESS = re.compile(r"http://[\w.]+:\d+")


def block(readme: str, section: str) -> list[str]:
    """The lines of code in a section of README, in order."""
    body = readme.split(f"{section}\n", 1)[1].split("\n## ", 1)[0]
    return [line.strip() for line in body.splitlines() if line.startswith("    ") and line.strip()]


def try_next(output: str) -> list[str]:
    """The commands that a run prints at its end."""
    lines = output.split("Try next:\n", 1)[1].splitlines()
    return [line.strip() for line in lines if line.startswith("  ")]


def serves(line: str) -> bool:
    return "selfemo serve" in line or "--web" in line


class Shell:
    """Runs lines one after another; variables and the activated environment stay, as in a terminal."""

    def __init__(self, home: Path):
        self.home, self.begun = home, ""
        own = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}
        self.environment = {k: v for k, v in os.environ.items() if k not in own}
        self.environment["PATH"] = os.pathsep.join(
            p for p in os.environ["PATH"].split(os.pathsep) if not p.startswith(str(ROOT))
        )

    def run(self, line: str) -> str:
        """Returns what the line prints (SystemExit: it failed)."""
        print(f"\n$ {line}", flush=True)
        start = time.monotonic()
        if line.startswith((". ", "source ")) or re.match(r"\w+=", line):
            self.begun += f"{line}\n"
            line = ":"
        whole = ["bash", "-euo", "pipefail", "-c", self.begun + line]
        text = self._served(whole) if serves(line) else self._ended(whole)
        print(f"[{time.monotonic() - start:.0f} s]", flush=True)
        return text

    def _ended(self, whole: list[str]) -> str:
        done = subprocess.run(
            whole, cwd=self.home, env=self.environment, input=TALK, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        print(done.stdout, end="", flush=True)
        if done.returncode:
            raise SystemExit(f"failed with exit code {done.returncode}")
        return done.stdout

    def _served(self, whole: list[str]) -> str:
        process = subprocess.Popen(
            whole, cwd=self.home, env=self.environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout
        text = ""
        for said in process.stdout:
            print(said, end="", flush=True)
            text += said
            if found := _ADDRESS.search(said):
                break
        else:
            raise SystemExit(f"failed with exit code {process.wait()}")
        page = f"{found[0]}/docs" if "selfemo serve" in whole[-1] else found[0]
        for _ in range(120):
            try:
                with urllib.request.urlopen(page, timeout=10) as answer:
                    print(f"{page}: {answer.status}", flush=True)
                    break
            except OSError:
                time.sleep(0.5)
        else:
            raise SystemExit(f"{page} does not answer")
        os.killpg(process.pid, signal.SIGINT)
        process.stdout.read()
        process.wait(timeout=60)
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--short", action="store_true", help="cut the demo down")
    parser.add_argument("--keep", action="store_true", help="keep the clone")
    args = parser.parse_args()
    hear_ctrl_c()
    home = Path(tempfile.mkdtemp(prefix="first-hour-"))
    try:
        clone = home / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        shell = Shell(clone)
        arguments = f" ARGS='{SHORT}'" if args.short else ""
        told = shell.run(f"make demo{arguments}")
        lines = block((clone / "README.md").read_text(), SECTION)
        activate, rest = lines[0], lines[1:]
        # What the demo prints works before anything is activated.
        for line in try_next(told):
            shell.run(line)
        for line in (activate, *rest):
            shell.run(line)
        print("\nall of it passes")
    finally:
        if args.keep:
            print(f"kept: {home}", file=sys.stderr)
        else:
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
