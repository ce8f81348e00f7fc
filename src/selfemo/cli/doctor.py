"""`selfemo doctor`: check the machine and the settings, and estimate an iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfemo.cli import completion
from selfemo.cli import options as opt
from selfemo.cli.options import settings
from selfemo.cli.output import print_json, print_tables


def doctor(
    data: opt.Data = None,
    config: opt.Configs = None,
    overrides: opt.Overrides = None,
    engine: Annotated[
        str,
        typer.Option(help="local or verl (default: the configuration's).", autocompletion=completion.engines),
    ] = "",
    out: Annotated[Path, typer.Option(help="Where the run would go.")] = Path("runs"),
    gpus: Annotated[int, typer.Option(min=0, help="GPUs (verl) or cores to estimate for.")] = 0,
    machine: Annotated[str, typer.Option(help="h100, h200, a100, l40s, rtx4090 or cpu-core.")] = "",
    prompt_tokens: Annotated[float, typer.Option(min=0, help="Mean; 0: that of the data.")] = 0,
    completion_tokens: Annotated[float, typer.Option(min=0, help="Mean; 0: of gold ones.")] = 0,
    as_json: opt.AsJson = False,
) -> None:
    """Check machine, data and model; estimate an iteration.

    Looks at GPUs, versions, disk, data and model, and says what is missing and how to get it.
    """
    from selfemo.runs.doctor import diagnose, estimate_rows

    told = diagnose(
        settings(config, overrides, data=data), out, engine=engine, count=gpus, machine=machine,
        prompt_tokens=prompt_tokens, completion_tokens=completion_tokens,
    )  # fmt: skip
    if as_json:
        print_json(told.as_dict())
        raise typer.Exit(0 if told.healthy else 1)
    if not config:
        typer.echo("without -c these are the paper's settings; the demo's are -c quickstart\n")
    for f in told.findings:
        how = f"\n{'':9}{f.get}" if f.get else ""
        typer.echo(f"{f.state:<8} {f.what}: {f.found}{how}")
    if e := told.estimate:
        lengths = f"prompts of {e['prompt_tokens']} and completions of {e['completion_tokens']} tokens"
        print_tables([(f"{e['model']} on {e['machine']}, {lengths}", *estimate_rows(e))])
        parts = ", ".join(f"{k} {v:.1f}" for k, v in e["memory_gib"].items())
        typer.echo(f"memory by device, GiB: {e['peak_gib']:.1f} at the peak ({parts})")
        typer.echo("disk, GiB: " + ", ".join(f"{k} {v:.1f}" for k, v in e["disk_gib"].items()))
    if not told.healthy:
        raise typer.Exit(1)
