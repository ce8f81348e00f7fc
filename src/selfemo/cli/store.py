"""`selfemo store`: a run's store as Parquet shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfemo.cli import options as opt
from selfemo.cli.output import again, interruptible, print_json, use_samples
from selfemo.counting import counted

group = typer.Typer(no_args_is_help=True, help="Export a run's store; select samples from exports.")


@group.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards; go on if stopped.")],
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Rollouts of one shard.")] = 100_000,
    as_json: opt.AsJson = False,
) -> None:
    """Write prompts, rollouts and samples as Parquet shards.

    A manifest lists them; the same command again appends what is new.
    """
    from selfemo.runs.shards import MANIFEST
    from selfemo.runs.shards import export as export_run

    with interruptible(again(out)) as (reporter, stop):
        manifest = export_run(run, out, rows_per_shard, reporter, stop)
    counts = manifest.rows()
    if as_json:
        print_json({"out": str(out), "files": len(manifest.files), **counts})
        return
    said = ", ".join(f"{n:,} {t}" for t, n in counts.items())
    typer.echo(f"{out / MANIFEST}: {counted(len(manifest.files), 'files')}, {said}")


@group.command()
def select(
    folders: Annotated[list[Path], typer.Argument(help="Folders of `selfemo store export`.")],
    out: Annotated[Path, typer.Option(help="NAME.parquet, or a folder for a file a shard.")],
    lam: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Rank groups anew by (1 - LAM) R1 + LAM R2 (default: as recorded)."),
    ] = None,
    max_share: Annotated[float, typer.Option(min=0, max=1, help="Largest share of one emotion.")] = 0.5,
    max_samples: Annotated[int, typer.Option(min=0, help="Draw so many by the seed; 0: all.")] = 0,
    seed: opt.Seed = 0,
    iteration: Annotated[list[int] | None, typer.Option(help="Only rollouts of these iterations.")] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Choose SFT samples from shards, out of core.

    The best rollout of each group that passes the gate, without duplicates, at most --max-share of one
    emotion.
    """
    from selfemo.runs.selection import select as select_samples
    from selfemo.runs.shards import read_manifest
    from selfemo.runs.words import value_in_words

    with interruptible("nothing was written") as (reporter, stop):
        result = select_samples(
            folders, out, lam=lam, max_share=max_share, n=max_samples, seed=seed,
            iterations=iteration or [], reporter=reporter, stop=stop,
        )  # fmt: skip
    if as_json:
        print_json(result.as_dict())
        return
    for name, value in result.as_dict().items():
        typer.echo(f"{name.replace('_', ' '):<12} {value_in_words(value)}")
    typer.echo(use_samples(out, read_manifest(folders[0]).reasoning))
