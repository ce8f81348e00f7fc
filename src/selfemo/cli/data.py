"""`selfemo data`: look at conversation data."""

from __future__ import annotations

import typer

from selfemo.cli import options as opt

group = typer.Typer(no_args_is_help=True, help="Look at conversation data.")


@group.command()
def check(source: opt.SourceArgument, lenient: opt.Lenient = False) -> None:
    """Name the data set, count it, and report blemishes.

    The counts are compared with the official ones, where there are any.
    """
    from selfemo.data import resolve
    from selfemo.data.base import check_lines

    adapter, path = resolve(source)
    for line in check_lines(adapter.load(path, lenient), adapter):
        typer.echo(line)
