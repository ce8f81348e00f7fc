"""`selfemo report`: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfemo.cli import options as opt
from selfemo.cli.output import print_json, reporter


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file; figures go to NAME-figures beside it (default: RUN/report.html)."),
    ] = None,
    judges: Annotated[opt.Paths, typer.Option("--judge", help="Folders of `selfemo judge`.")] = None,
    ablation: Annotated[Path | None, typer.Option(help="Folder of `selfemo ablate`.")] = None,
    evaluations: Annotated[opt.Paths, typer.Option("--evaluation", help="Of `evaluate --out`.")] = None,
    personas: Annotated[Path | None, typer.Option(help="Folder of `selfemo personas cluster`.")] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Write a run as one self-contained HTML file.

    What ran, results, curves, errors, dialogues and configuration.
    """
    from selfemo.reports.report import build

    reporter().say(f"reading {run} and drawing its figures")
    written = build(
        run, out or run / "report.html", judges=judges or [], ablation=ablation,
        evaluations=evaluations or [], personas=personas,
    )  # fmt: skip
    if as_json:
        print_json({"files": [str(path) for path in written]})
        return
    typer.echo(", ".join(map(str, written)))
