"""Measure models: `selfemo evaluate`, `table1`, `ablate`, `judge` and `analyse`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfemo.cli import options as opt
from selfemo.cli.options import expert_specs, settings, with_data
from selfemo.cli.output import (
    again,
    confirm,
    interruptible,
    print_counts,
    print_files,
    print_json,
    print_tables,
    print_text,
    reporter,
)

_JUDGES = "NAME=URL,model=MODEL or local; may be repeated."
_TRAINED = "A source that the model was trained on, besides those of its run; may be repeated."
_LEAST_PARSED = 0.1
"""Share of answers that can be read, under which scores say little of a model."""
_ARMS = (
    "An arm beside the full one, in place of those of table 2; may be repeated: vanilla-grpo, sft-only, "
    "original-only, gold-cold-start, same-labels, replay-only, placebo, cold-start, backbone, or a TOML file."
)


def _sets(overrides: list[str] | None, split: str | None) -> list[str]:
    return [*(overrides or []), *([f'data.eval_split="{split}"'] if split else [])]


def evaluate(
    model: opt.SystemArgument,
    data: opt.Sources,
    split: opt.HeldOut = None,
    conversations: Annotated[
        int | None, typer.Option(min=0, help="Of each data set, drawn; 0: all (default: the settings').")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the results here; go on if stopped.")] = None,
    other: Annotated[Path | None, typer.Option("--compare", help="Another evaluation, or a run.")] = None,
    train_data: Annotated[list[str] | None, typer.Option("--train-data", help=_TRAINED)] = None,
    backend: opt.Backend = None,
    config: opt.Configs = None,
    overrides: opt.Overrides = None,
    as_json: opt.AsJson = False,
) -> None:
    """Score a model on held-out conversations (table 1).

    Accuracy, F1, mean R1, calibration and confusion; beside, without what overlaps with the training data.
    """
    from selfemo.evaluation.console import evaluation_tables
    from selfemo.evaluation.constants import constants_lines
    from selfemo.evaluation.jobs import PREDICTIONS_FILE, SCORES_FILE, evaluate_model
    from selfemo.runs.words import value_in_words

    sets = _sets(opt.with_backend(overrides, backend), split)
    if conversations is not None:
        sets.append(f"data.eval_conversations={conversations}")
    with interruptible(again(out) if out else "nothing is kept without --out") as (reporter, stop):
        result = evaluate_model(
            model, data, out, config or [], sets, reporter, other=other, train_data=train_data or [],
            stop=stop,
        )  # fmt: skip
    if as_json:
        print_json(result.as_dict())
        return
    print_tables(evaluation_tables(result))
    typer.echo("")
    for line in constants_lines(result.constants, {d: c["against"] for d, c in result.constants.items()}):
        print_text(line)
    if result.overlap and not result.overlap["conversations"]:
        typer.echo("\nno conversation overlaps with the training data")
    for dataset, s in result.scores.items():
        if s.failures:
            typer.echo(f"\n{dataset}, predictions without an emotion: {value_in_words(s.failures)}")
        if s.parse_rate.value < _LEAST_PARSED:
            print_text(
                f"{dataset}: few answers are in the format, so these scores say little. A model that was not "
                "trained for it is scored by its label probabilities: --set evaluation.span=probabilities"
            )
    if out is not None:
        print_files(out, (SCORES_FILE, PREDICTIONS_FILE))


def table1(
    folders: Annotated[opt.Paths, typer.Argument(help="Folders of `evaluate --out`, or runs.")] = None,
    form: Annotated[str, typer.Option("--format", help="text, markdown, latex or csv.")] = "text",
    out: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
    cross: Annotated[bool, typer.Option("--cross", help="Data sets of training against evaluation.")] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Print table 1: the paper's rows beside what was measured."""
    from selfemo.errors import ConfigError
    from selfemo.evaluation.rendering import render
    from selfemo.files import write_text
    from selfemo.reports import tables

    if cross and not folders:
        raise ConfigError("--cross needs folders of `selfemo evaluate --out`, or runs")
    where: dict[str, tables.Intervals] = {"csv": "columns", "latex": "cells"}
    intervals = where.get(form, "none")
    table = tables.cross(folders or []) if cross else tables.table1(folders or [], intervals=intervals)
    text = render(*table, form)
    if out is not None:
        write_text(out, text)
    if as_json:
        header, rows = table
        print_json({"header": header, "rows": rows})
    elif out is None:
        typer.echo(text, nl=False)


def judge(
    a: Annotated[str, typer.Argument(metavar="MODEL_A", help="RUN[@CHECKPOINT], folder, id or endpoint.")],
    b: Annotated[str, typer.Argument(metavar="MODEL_B", help="The other one.")],
    out: Annotated[Path, typer.Option(help="Folder of judge.json, judgements.parquet.")],
    data: opt.Sources,
    judges: Annotated[list[str] | None, typer.Option("--judge", help=_JUDGES)] = None,
    split: opt.HeldOut = None,
    conversations: Annotated[int, typer.Option(min=0, help="Of each data set; 0: all.")] = 20,
    limit: Annotated[int, typer.Option("--prompts", min=0, help="Prompts to judge; 0: all.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Draws the prompts.")] = 0,
    rounds: opt.Rounds = 2,
    retry_failed: opt.RetryFailed = False,
    dry_run: opt.DryRun = False,
    config: opt.Configs = None,
    overrides: opt.Overrides = None,
    as_json: opt.AsJson = False,
) -> None:
    """Compare two models blind by judges (figure 3, tables 8 to 11).

    Each pair of answers is shown in both orders.
    """
    from selfemo.evaluation.judge_jobs import judge_models, judge_table

    sets = [f"data.eval_conversations={conversations}", *_sets(overrides, split)]
    with interruptible(again(out)) as (reporter, stop):
        result = judge_models(
            a, b, data, expert_specs(judges), out, config or [], sets, reporter, limit=limit,
            seed=seed, rounds=rounds, retry_failed=retry_failed, dry_run=dry_run, stop=stop,
        )  # fmt: skip
    if dry_run:
        print_counts(result, as_json)
        return
    if as_json:
        print_json(result)
        return
    print_tables([("Wins, ties and losses of the first", *judge_table(result))])
    print_files(out, ("judge.json", "judgements.parquet"))


def ablate(
    out: Annotated[Path, typer.Option(help="Folder of the runs and of ablation.json, .md, .csv.")],
    data: opt.Data = None,
    config: opt.Configs = None,
    overrides: opt.Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm: seeds 0 to N - 1.")] = 3,
    arm: Annotated[list[str] | None, typer.Option("--arm", help=_ARMS)] = None,
    keep: Annotated[str, typer.Option(help="Checkpoints of a finished run: all, last, none.")] = "last",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in its own process.")] = 1,
    yes: opt.Yes = False,
    as_json: opt.AsJson = False,
) -> None:
    """Run table 2: the full system against its ablations.

    Each arm runs over several seeds; arms that are done are not run again.
    """
    from selfemo.errors import ConfigError
    from selfemo.evaluation.experiments.ablate import ablate as run_ablation
    from selfemo.evaluation.experiments.arms import arms_for
    from selfemo.evaluation.experiments.runs import KEPT
    from selfemo.reports.ablation import ablation_table, write_tables
    from selfemo.reports.figures import draw
    from selfemo.runs.folder import CONFIG_FILE
    from selfemo.runs.preflight import check_run

    if keep not in KEPT:
        raise ConfigError(f"--keep {keep}: valid are {', '.join(KEPT)}")
    chosen = settings(config, overrides, data=data)
    checked, _, need = check_run(chosen, out, reporter())
    sets = with_data(overrides, data)
    if checked.data.hold_out:
        sets += [f"data.hold_out={checked.data.hold_out}", f"data.eval_split={checked.data.eval_split}"]
    runs = seeds * len(arms_for(chosen, arm or []))
    if not any(out.rglob(CONFIG_FILE)):  # what goes on was confirmed
        confirm(need, reporter(), yes, f"all {runs} runs", runs, min(jobs, runs))
    with interruptible(again(out)) as (said, stop):
        result = run_ablation(
            config or [], sets, out, seeds, said, stop=stop, keep=keep,
            only=arm or [], jobs=jobs, draw=draw, present=write_tables,
        )  # fmt: skip
    if as_json:
        print_json(result)
        return
    print_tables([("Mean (sd) over seeds; difference from the full arm", *ablation_table(result))])
    print_files(out, ("ablation.json", "ablation.md", "ablation.csv"))


def analyse(
    run: Annotated[str, typer.Argument(help="Run folder; with --channel RUN@CHECKPOINT or any model.")],
    prompts: Annotated[
        int | None, typer.Option(min=0, help="Held-out prompts; 0: all (default: 64).")
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option(
            "--reader", help="Another model, to read the replies: a kept encoder, any model, NAME=URL."
        ),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="With --reader: another run that it has read, to compare with.")
    ] = None,
    channel: Annotated[
        bool, typer.Option("--channel", help="Is the generator a better reader than the recogniser?")
    ] = False,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="For --channel (default: the run's).")
    ] = None,
    split: opt.HeldOut = None,
    out: Annotated[Path | None, typer.Option(help="For --channel: the JSON file to write.")] = None,
    config: opt.Configs = None,
    overrides: opt.Overrides = None,
    as_json: opt.AsJson = False,
) -> None:
    """Analyse the checkpoints of a run (figure 6).

    Span entropies, round trip and diversity by checkpoint, into RUN/analysis.json. With --reader: whether a
    model that is none of the run finds in the replies the emotion that they declare. With --channel: whether
    self-play can teach E what the generator knows, by one checkpoint, on held-out turns.
    """
    from selfemo.errors import ConfigError

    if channel:
        if prompts is not None:
            raise ConfigError("--prompts is not for --channel; use --set data.eval_conversations=N")
        if reader is not None or against is not None:
            raise ConfigError("--reader and --against are not for --channel, where the model itself reads")
        _analyse_channel(run, data, out, config, _sets(overrides, split), as_json)
        return
    if against is not None and reader is None:
        raise ConfigError("--against compares what a reader finds in two runs; name it with --reader")
    if data or split or out or config or overrides:
        raise ConfigError("--data, --split, --out, --config and --set are for --channel; a run has its own")
    from selfemo.evaluation.analysis import analyse as run_analysis
    from selfemo.evaluation.console import analysis_tables
    from selfemo.evaluation.reading_tables import READING_NOTE

    with interruptible("run the same command again to go on") as (reporter, stop):
        result = run_analysis(
            Path(run), 64 if prompts is None else prompts, reporter, stop, reader=reader, against=against
        )
    if as_json:
        print_json(result)
        return
    print_tables(analysis_tables(result))
    if result["readers"]:
        typer.echo("")
        print_text(READING_NOTE)
    typer.echo(f"\n{run}: analysis.json")


def _analyse_channel(
    model: str,
    data: list[str] | None,
    out: Path | None,
    config: list[Path] | None,
    overrides: list[str],
    as_json: bool,
) -> None:
    from selfemo.evaluation.channel import analyse_channel, channel_table
    from selfemo.runs.words import value_in_words

    with interruptible("nothing is kept") as (reporter, stop):
        result = analyse_channel(model, data or [], config or [], overrides, reporter, out=out, stop=stop)
    if as_json:
        print_json(result)
        return
    header, rows = channel_table(result)
    for name in result["datasets"]:
        title = f"{name}: the channel on held-out turns; 95% intervals"
        mine = [r[1:] for r in rows if r[0] == name]
        # What the cross-fit fitted is a line of its own.
        print_tables([(title, header[1:], [[r[0].partition(":")[0], *r[1:]] for r in mine])])
        print_text(mine[-1][0])
    for name, left_out in result["left_out"].items():
        if left_out:
            typer.echo(f"\n{name}, turns left out: {value_in_words(left_out)}")
    for name, found in result["datasets"].items():
        typer.echo("")
        print_text(f"{name}: {found['verdict']}")
    if out is not None:
        typer.echo(f"\n{out} has it all")
