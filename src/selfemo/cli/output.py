"""How commands print results, say progress, and end when they are stopped."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from selfemo.progress import Console, StopRequest
    from selfemo.runs.preflight import Expected


def reporter() -> Console:
    from selfemo.progress import Console

    return Console()


@contextmanager
def stopped_with(go_on: str, said: Console | None = None) -> Iterator[None]:
    """End a command that is stopped within the block with exit code 130 and "stopped; " + `go_on`."""
    from selfemo.progress import Stopped

    try:
        yield
    except (Stopped, KeyboardInterrupt):
        (said or reporter()).say(f"stopped; {go_on}")
        raise typer.Exit(130) from None


@contextmanager
def interruptible(go_on: str) -> Iterator[tuple[Console, StopRequest]]:
    """Take SIGINT and SIGTERM as requests to stop the block; yields the reporter and the stop request.

    A stopped block ends as in `stopped_with`; go_on: the command that goes on, or what is lost.
    """
    from selfemo.progress import StopRequest

    said, stop = reporter(), StopRequest()
    with stopped_with(go_on, said), stop.on_signals(said.say):
        yield said, stop


_LONG = 2.0
"""Hours from which on a run is not started unasked."""


def confirm(
    told: Expected | None, said: Console, yes: bool, what: str = "this run", runs: int = 1, jobs: int = 1
) -> None:
    """Say what so many runs will take; ask before long ones, or such as do not fit into memory.

    Args:
        jobs: how many of them are made side by side, in as much time as one after another.

    Raises: ConfigError: it cannot ask, and there is no --yes. typer.Abort: the answer was no.
    """
    from dataclasses import replace

    from selfemo.errors import ConfigError

    if told is None:
        return
    told = replace(told, hours=told.hours * runs, disk=told.disk * runs, memory=told.memory * jobs)
    text = f"{what} will take about {told} (a rough estimate; selfemo doctor shows its parts)"
    said.say(text)
    if yes or (told.hours < _LONG and (not told.free or told.memory <= told.free)):
        return
    if not sys.stdin.isatty():
        raise ConfigError("that is long, or more than this machine has: add --yes, or try -c quickstart")
    typer.confirm("Start it?", abort=True, err=True)


def program() -> str:
    """How a shell calls this program: "selfemo", or its path where another or none is found by that name."""
    here = Path(sys.executable).parent / "selfemo"
    found = shutil.which("selfemo")
    if not here.exists() or (found and Path(found).resolve() == here.resolve()):
        return "selfemo"
    near = os.path.relpath(here)
    return shlex.quote(str(here) if near.startswith(os.pardir) else near)


def again(out: Path) -> str:
    """How to go on with a command that continues what its output folder or file holds."""
    return f"run the same command again to go on in {out}"


def print_json(value: object) -> None:
    typer.echo(json.dumps(value))


def print_counts(counts: Mapping[str, Any], as_json: bool, hint: str = "") -> None:
    """Counts by name, a line each, then `hint`; or one JSON object."""
    if as_json:
        print_json(counts)
        return
    from selfemo.runs.words import value_in_words

    for key, value in counts.items():
        typer.echo(f"{key.replace('_', ' ')}: {value_in_words(value)}")
    if hint:
        typer.echo(hint)


_WITH_REASONING = (
    "grpo.gold_weight=0", "grpo.reward_weight=1", "evaluation.span=emotion", "sampling.max_new_tokens=256",
)  # fmt: skip
"""What quickstart has otherwise, since its models write E right behind the prompt."""


def use_samples(samples: Path, reasoning: str = "none", source: str = "", config: Path | None = None) -> str:
    """The command that trains on samples, which a shell takes as it is printed.

    Args:
        reasoning: that of the samples; a run must ask for the same.
        source: the data set that they are of.
        config: settings that they were made for, in place of the shipped quickstart.
    """
    sets = [f"sft.samples={samples}"]
    if reasoning != "none":
        sets += [f"prompt.reasoning={reasoning}", *(() if config else _WITH_REASONING)]
    words = ["evolve", "-c", str(config or "quickstart"), *(["--data", source] if source else [])]
    words += [w for text in sets for w in ("--set", text)]
    return f"use them: {program()} {shlex.join(words)}"


def print_tables(tables: Iterable[tuple[str, list[str], list[list[str]]]]) -> None:
    """Tables as (title, header, rows), in 80 columns."""
    from selfemo.evaluation.rendering import narrow

    for title, header, rows in tables:
        typer.echo("")
        print_text(title)
        typer.echo(f"\n{narrow(header, rows)}", nl=False)


def print_text(text: str, indent: int = 0) -> None:
    """Prose, wrapped at 80 columns; further lines are indented, and a path is not broken."""
    import textwrap

    whole = textwrap.TextWrapper(80, subsequent_indent=" " * indent)
    whole.break_long_words = whole.break_on_hyphens = False
    for line in text.splitlines():
        typer.echo(whole.fill(line))


def print_files(folder: Path, names: Iterable[str]) -> None:
    """The files among `names` that a command left in its folder."""
    there = [name for name in names if (folder / name).exists()]
    typer.echo(f"\n{folder}: {', '.join(there)}")
