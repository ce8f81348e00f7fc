"""`selfemo personas`: extract, profiles, cluster."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from selfemo.cli import options as opt
from selfemo.cli.options import expert_specs
from selfemo.cli.output import again, print_counts, print_json, program, reporter, stopped_with
from selfemo.counting import counted

group = typer.Typer(no_args_is_help=True, help="Describe speakers by experts, and cluster them.")


@group.command()
def extract(
    source: opt.SourceArgument,
    out: Annotated[Path, typer.Option(help="Folder for the records; go on if stopped.")],
    experts: opt.Experts = None,
    split: opt.Splits = ["train"],  # noqa: B006 (typer copies it)
    limit: opt.Limit = 0,
    segment_turns: Annotated[int, typer.Option(min=2, help="Longest segment, in turns.")] = 16,
    rounds: opt.Rounds = 2,
    retry_failed: opt.RetryFailed = False,
    merge: Annotated[bool, typer.Option("--merge", help="Experts merge a speaker's descriptions.")] = False,
    embedder: opt.EmbedderId = opt.EMBEDDER,
    lenient: opt.Lenient = False,
    dry_run: opt.DryRun = False,
    as_json: opt.AsJson = False,
) -> None:
    """Ask experts for the personality of each speaker (equation 4).

    The result is one profile a speaker.
    """
    from selfemo.errors import ConfigError
    from selfemo.runs.expert_jobs import conversations_of, extract_personas, plan_personas

    specs = expert_specs(experts)
    if not specs:
        raise ConfigError(
            "name an expert: --expert NAME=URL,model=MODEL, or --expert local,model=ID for a model on this "
            "machine. Without any, runs use a plain description of each speaker, which needs no command"
        )
    found = conversations_of(source, split, limit, lenient)
    if dry_run:
        print_counts(plan_personas(found, specs, out, segment_turns), as_json)
        return
    with stopped_with(again(out)):
        counts = extract_personas(
            found, specs, out, reporter(), segment_turns=segment_turns, rounds=rounds,
            retry_failed=retry_failed, merge=merge, embedder=embedder,
        )  # fmt: skip
    personas = f'data.personas=["{out}"]'
    use = shlex.join(["evolve", "-c", "quickstart", "--data", source, "--set", personas])
    print_counts(counts, as_json, f"use them: {program()} {use}")


@group.command()
def profiles(
    folder: Annotated[Path, typer.Argument(help="Folder of `personas extract`.")],
    experts: opt.Experts = None,
    embedder: opt.EmbedderId = opt.EMBEDDER,
    as_json: opt.AsJson = False,
) -> None:
    """Make the profiles anew from the records.

    Experts merge the descriptions of a speaker; without one the most central description is taken.
    """
    from selfemo.runs.expert_jobs import merge_profiles

    with stopped_with(again(folder)):
        counts = merge_profiles(folder, expert_specs(experts), reporter(), embedder)
    print_counts(counts, as_json)


@group.command()
def cluster(
    folder: Annotated[Path, typer.Argument(help="Folder of `personas extract`, or a run.")],
    runs: Annotated[opt.Paths, typer.Option("--run", help="Runs whose stores get the clusters.")] = None,
    min_size: Annotated[int, typer.Option(min=0, help="Smallest cluster; 0: 1%, at least 5.")] = 0,
    embedder: opt.EmbedderId = opt.EMBEDDER,
    seed: opt.Seed = 0,
    as_json: opt.AsJson = False,
) -> None:
    """Cluster persona descriptions (figure 4, tables 6 and 7).

    With --run also mean R1 by cluster (table 3).
    """
    from selfemo.reports.figures import persona_map
    from selfemo.runs.expert_jobs import cluster_personas

    result, rewards = cluster_personas(folder, runs or [], min_size, embedder, seed)
    persona_map(folder / "figures", result)
    if as_json:
        clusters = [{"name": c.name, "count": c.size, "example": c.example} for c in result.clusters]
        print_json({"clusters": clusters, "noise": result.noise, "reward_by_cluster": rewards})
        return
    total = len(result.descriptions)
    typer.echo(
        f"{counted(total, 'descriptions')}, {counted(len(result.clusters), 'clusters')}, {result.noise} noise"
    )
    for c in result.clusters:
        typer.echo(f"{c.size:6}  {c.name}\n        e.g. {c.example}")
    for r in rewards:
        typer.echo(
            f"{r['run']} {r['stage']}: {r['name']} R1 {r['r1']:.3f} ({counted(r['rollouts'], 'rollouts')})"
        )
    typer.echo(f"map and tables: {folder / 'figures'}")
