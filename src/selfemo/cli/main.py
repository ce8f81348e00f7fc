"""All commands in one list, and the entry point."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Annotated

import typer

from selfemo import __version__
from selfemo.cli import (
    baseline,
    coldstart,
    data,
    doctor,
    evaluate,
    evolve,
    personas,
    report,
    serve,
    store,
    train,
)
from selfemo.errors import SelfEmoError

EXIT_CODES = {
    0: "done",
    1: "an error of input, settings, model, disk or machine, named on stderr",
    2: "wrong usage: an unknown command or option, or a bad value",
    130: "stopped by Ctrl-C or SIGTERM; stderr says what is kept, if anything",
}
"""Exit status of every command, and what it means (docs/reliability.md)."""

# Help in plain text: rich takes longer to import than all the rest.
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="\b\nExit codes:\n" + "\n".join(f"  {code:<4} {what}" for code, what in EXIT_CODES.items()),
)
for command in (
    evolve.evolve, train.sft, train.train, train.selfplay,
    serve.predict, serve.serve, serve.chat,
    evaluate.evaluate, evaluate.table1, evaluate.ablate, evaluate.judge, evaluate.analyse, report.report,
    doctor.doctor,
):  # fmt: skip
    app.command()(command)
GROUPS = {
    "baseline": baseline.group,
    "data": data.group,
    "personas": personas.group,
    "coldstart": coldstart.group,
    "store": store.group,
}
for name, group in GROUPS.items():
    app.add_typer(group, name=name)
for listed in (app, *GROUPS.values()):
    for known in listed.registered_commands:
        # Lists and shells show this line whole; of a docstring they would cut it at 45 letters.
        known.short_help = (known.callback.__doc__ or "").partition("\n")[0] if known.callback else None

# A full disk, a limit on it, or a folder that cannot be written.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"selfemo {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """SELF-EMO: models that read the emotions of a conversation and evolve by talking to themselves."""
    from selfemo.progress import show_notes

    show_notes()


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


def run() -> None:
    """Run the command; a user error is one message on standard error and exit code 1."""
    if sys.platform == "win32":  # its locks, signals and renames are others, and no test has run there
        typer.echo("error: selfemo does not run on Windows itself; use it in WSL2", err=True)
        raise SystemExit(1)
    signal.signal(signal.SIGTERM, _terminate)
    # Before torch loads OpenMP: waiting threads that spin for long take the time of those they wait for where
    # anything else runs on the cores, and those that sleep at once wake up late (benchmarks/waiting.py).
    os.environ.setdefault("GOMP_SPINCOUNT", "6000")
    # Before torch allocates: large tensors in pages of 2 MiB, where Linux leaves that to the program.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        app()
    except SelfEmoError as e:
        typer.echo(f"error: {e}", err=True)
        raise SystemExit(1) from None
    except OSError as e:
        if e.errno not in _DISK:
            raise
        where = f"{e.filename}: " if e.filename else ""
        typer.echo(f"error: {where}{e.strerror}; what was finished before is kept", err=True)
        raise SystemExit(1) from None
    except SystemExit as e:
        # typer ends with 130 and no word at a KeyboardInterrupt; `interruptible` has said how to go on.
        if e.code == 130 and isinstance(getattr(e.__context__, "__cause__", None), KeyboardInterrupt):
            typer.echo("stopped", err=True)
        raise
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise SystemExit(130) from None
