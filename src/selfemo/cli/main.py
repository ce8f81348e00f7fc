"""All commands in one list, and the entry point."""

from __future__ import annotations

import errno
import os
import signal
from typing import Annotated

import typer

from selfemo import __version__
from selfemo.cli import coldstart, data, doctor, evaluate, evolve, personas, report, serve, store, train
from selfemo.errors import SelfEmoError

# Help in plain text: rich takes longer to import than all the rest.
app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
for command in (
    evolve.evolve, train.sft, train.train, train.selfplay,
    serve.predict, serve.serve, serve.chat,
    evaluate.evaluate, evaluate.table1, evaluate.ablate, evaluate.judge, evaluate.analyse, report.report,
    doctor.doctor,
):  # fmt: skip
    app.command()(command)
app.add_typer(data.group, name="data")
app.add_typer(personas.group, name="personas")
app.add_typer(coldstart.group, name="coldstart")
app.add_typer(store.group, name="store")

# A full disk, a limit on it, or a folder that cannot be written.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}


@app.callback()
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """SELF-EMO: models that read the emotions of a conversation and evolve by talking to themselves."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


def run() -> None:
    """Run the command; a user error is one message on standard error and exit code 1."""
    signal.signal(signal.SIGTERM, _terminate)
    # Before torch loads OpenMP: threads that spin while they wait slow each other down where anything else
    # runs on the cores (two threads on two cores beside two busy processes take more than twice as long).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
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
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise SystemExit(130) from None
