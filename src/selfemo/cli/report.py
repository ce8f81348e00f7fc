"""`selfemo report`: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option(help="The HTML file; figures go to NAME-figures beside it.")],
    judges: Annotated[
        list[Path] | None, typer.Option("--judge", help="Folder with judge.json; may be repeated.")
    ] = None,
    ablation: Annotated[Path | None, typer.Option(help="Folder of `selfemo ablate`.")] = None,
    evaluations: Annotated[
        list[Path] | None, typer.Option("--evaluation", help="Folder of `evaluate --out`; may be repeated.")
    ] = None,
    personas: Annotated[Path | None, typer.Option(help="Folder of `selfemo personas cluster`.")] = None,
) -> None:
    """Write a run as one self-contained HTML file.

    What ran, results, curves, errors, dialogues and configuration.
    """
    from selfemo.reports.report import build

    written = build(
        run, out, judges=judges or [], ablation=ablation, evaluations=evaluations or [],
        personas=personas,
    )  # fmt: skip
    typer.echo(", ".join(map(str, written)))
