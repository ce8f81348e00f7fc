"""`selfemo baseline`: reference systems under one protocol, a command for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from selfemo.cli import options as opt
from selfemo.evaluation.baselines import BASELINES, Entry

group = typer.Typer(no_args_is_help=True, help="Train reference systems and score them by one protocol.")
_NAME = 14
"""Columns of a name in the list."""


def _command(name: str, entry: Entry) -> Callable[..., None]:
    def run(
        data: opt.Sources,
        out: Annotated[Path, typer.Option(help="Folder of the results; go on if stopped.")],
        seeds: Annotated[int, typer.Option(min=1, help="Trainings, each with a seed of its own.")] = 5,
        split: Annotated[
            Literal["dev", "test"] | None,
            typer.Option("--split", help="What is scored (default: test, or dev where there is none)."),
        ] = None,
        keep: Annotated[bool, typer.Option("--keep", help="Keep the trained models.")] = False,
        config: Annotated[
            list[Path] | None,
            typer.Option("--config", "-c", help="TOML file of settings, such as a settings.toml."),
        ] = None,
        overrides: Annotated[
            list[str] | None, typer.Option("--set", help="baseline.key=value, data.key=value.")
        ] = None,
        as_json: opt.AsJson = False,
    ) -> None:
        _run(name, data, out, seeds, split, keep, config, overrides, as_json)

    source = "" if entry.source == "-" else f"\n\nRecipe: {entry.source}."
    run.__doc__ = (
        f"{entry.what[0].upper()}{entry.what[1:]}.{source}\n\n"
        f"`selfemo baseline settings {name}` lists its settings."
    )
    return run


for _name, _entry in BASELINES.items():
    group.command(_name)(_command(_name, _entry))


@group.command("list")
def list_baselines(as_json: opt.AsJson = False) -> None:
    """List the baselines and where they are from."""
    from selfemo.cli.output import print_json, print_text

    if as_json:
        print_json({n: {"title": e.title, "what": e.what, "source": e.source} for n, e in BASELINES.items()})
        return
    for name, e in BASELINES.items():
        source = "" if e.source == "-" else f" ({e.source})"
        print_text(f"{name:<{_NAME}}{e.title}: {e.what}{source}", _NAME)


@group.command("settings")
def settings(
    name: Annotated[str, typer.Argument(help="Name of a baseline.")], as_json: opt.AsJson = False
) -> None:
    """List the settings of a baseline, with their defaults."""
    from selfemo.cli.output import print_json
    from selfemo.evaluation.baselines import baseline

    kind = baseline(name).kind
    values = kind().model_dump(mode="json")
    if as_json:
        print_json(values)
        return
    for line in _assignments("baseline", values):
        typer.echo(line)


def _assignments(name: str, values: dict[str, Any]) -> Iterator[str]:
    """Each value as `--set` takes it."""
    import json

    for key, value in values.items():
        if isinstance(value, dict):
            yield from _assignments(f"{name}.{key}", value)
        else:
            yield f"{name}.{key}={json.dumps(value)}"


@group.command("table")
def table(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of baselines, of `evaluate --out`, or runs.")
    ],
    against: Annotated[
        Path | None, typer.Option("--against", help="The system that each is compared with.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="text, markdown, latex or csv, of what is printed or of --out.")
    ] = "text",
    out: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Print systems side by side, with paired differences.

    Scores are means over seeds, with intervals by conversation.
    """
    from selfemo.cli.output import print_json, print_tables, print_text, reporter
    from selfemo.evaluation.baseline_tables import baseline_table
    from selfemo.files import write_text

    found = baseline_table(folders, against)
    text = found.written(form)
    if out is not None:
        write_text(out, text)
    if as_json:
        print_json(found.as_dict())
    elif out is None and form == "text":
        print_tables([(found.caption, *found.cells())])
        if found.notes:
            typer.echo()
        for note in found.notes:
            print_text(note)
    else:
        if out is None:
            typer.echo(text, nl=False)
        if out is not None or form == "csv":  # else they stand in what was printed
            for note in found.notes:
                reporter().say(note)


def _run(
    name: str,
    data: list[str],
    out: Path,
    seeds: int,
    split: str | None,
    keep: bool,
    config: list[Path] | None,
    overrides: list[str] | None,
    as_json: bool,
) -> None:
    from selfemo.cli.output import again, interruptible, print_files, print_json, print_tables
    from selfemo.evaluation.baseline_jobs import SETTINGS_FILE, run_baseline
    from selfemo.evaluation.baseline_tables import job_table
    from selfemo.evaluation.jobs import SCORES_FILE
    from selfemo.evaluation.overlap import evaluation_table

    sets = [*(overrides or []), *([f'data.eval_split="{split}"'] if split else [])]
    with interruptible(again(out)) as (reporter, stop):
        found = run_baseline(name, data, out, seeds, config or [], sets, reporter, keep=keep, stop=stop)
    if as_json:
        print_json(found)
        return
    tables = [job_table(found)]
    if found["overlap"] and found["overlap"]["conversations"]:
        tables.append(evaluation_table(found["overlap"], found["split"]))
    print_tables(tables)
    folders = sorted(f.name for f in out.glob("seed-*"))
    print_files(out, (SCORES_FILE, SETTINGS_FILE, *folders))
