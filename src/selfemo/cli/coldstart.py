"""`selfemo coldstart`: samples for the cold start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfemo.cli import options as opt
from selfemo.cli.options import expert_specs
from selfemo.cli.output import again, print_counts, reporter, stopped_with, use_samples

group = typer.Typer(no_args_is_help=True, help="Make samples for the cold start.")

SamplesFile = Annotated[Path, typer.Option(help="Parquet file of chats.")]


@group.command()
def generate(
    source: opt.SourceArgument,
    out: SamplesFile,
    experts: opt.Experts = None,
    personas: Annotated[list[Path] | None, typer.Option(help="Folders of `personas extract`.")] = None,
    split: opt.Splits = ["train"],  # noqa: B006 (typer copies it)
    limit: opt.Limit = 0,
    max_samples: Annotated[int, typer.Option(min=0, help="0 takes all.")] = 0,
    seed: opt.Seed = 0,
    reasoning: Annotated[str, typer.Option(help="none, brief or full.")] = "none",
    agreement: Annotated[float, typer.Option(min=0, max=1, help="Least R1 of an expert's E.")] = 0.5,
    rounds: opt.Rounds = 2,
    retry_failed: opt.RetryFailed = False,
    lenient: opt.Lenient = False,
    dry_run: opt.DryRun = False,
    as_json: opt.AsJson = False,
) -> None:
    """Write cold-start samples as Parquet.

    Experts write them (equation 5); without one they come from gold data.
    """
    from typing import cast, get_args

    from selfemo.errors import ConfigError
    from selfemo.method.prompts import Reasoning
    from selfemo.runs import expert_jobs as jobs

    specs = expert_specs(experts)
    if reasoning not in get_args(Reasoning):
        raise ConfigError(f"--reasoning {reasoning}: valid are {', '.join(get_args(Reasoning))}")
    if reasoning != "none" and not specs:
        raise ConfigError("--reasoning needs an --expert: gold data hold no reasoning")
    kind = cast(Reasoning, reasoning)
    found = jobs.conversations_of(source, split, limit, lenient, personas or [])
    if dry_run:
        print_counts(jobs.plan_cold_start(found, specs, out, max_samples, seed, kind), as_json)
        return
    with stopped_with(again(jobs.answers_folder(out)) if specs else "nothing was written"):
        counts = jobs.generate_cold_start(
            found, specs, out, reporter(), max_samples=max_samples, seed=seed, reasoning=kind,
            agreement=agreement, rounds=rounds, retry_failed=retry_failed,
        )  # fmt: skip
    print_counts(counts, as_json, use_samples(out, kind, source))


@group.command()
def soften(
    model: Annotated[str, typer.Argument(help="Run folder, model folder or id.")],
    samples: Annotated[list[Path], typer.Argument(help="Parquet files of `coldstart generate`.")],
    out: SamplesFile,
    own_weight: Annotated[float, typer.Option(help="Weight of a sample's own emotion, from 0.6 to 1.")] = 0.7,
    overrides: opt.Overrides = None,
    as_json: opt.AsJson = False,
) -> None:
    """Make samples that name several emotions, without an expert.

    A sample keeps its gold emotion and gets those that the model believes in beside it.
    """
    from selfemo.runs.standalone import soften_alone

    with stopped_with("nothing was written"):
        counts, config, reasoning = soften_alone(model, samples, out, own_weight, overrides or [], reporter())
    print_counts(counts, as_json, use_samples(out, reasoning, config=config))
