"""`selfemo evolve`: algorithm 1 from the cold start to the last iteration."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfemo.cli import options as opt
from selfemo.cli.options import settings
from selfemo.cli.output import confirm, interruptible, print_json, print_tables, print_text, program, reporter
from selfemo.cli.train import show_plan

if TYPE_CHECKING:
    from selfemo.runs.folder import RunFolder

_FILES = (
    ("dialogues.txt", "self-play to read"),
    ("checkpoints/", "models that transformers opens"),
    ("store.sqlite, metrics.jsonl", "every rollout with its lineage, every step"),
    ("config.toml", "the resolved settings"),
)


def evolve(
    config: opt.Configs = None,
    overrides: opt.Overrides = None,
    out: opt.Out = None,
    data: opt.Data = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    engine: opt.EngineName = None,
    dry_run: opt.ShowPlan = False,
    yes: opt.Yes = False,
    as_json: opt.AsJson = False,
) -> None:
    """Run algorithm 1: cold start, then self-play and refits.

    Each iteration lets the model talk to itself, trains it with SELF-GRPO, and refits it on the best
    rollouts (the data flywheel).
    """
    from selfemo.errors import ConfigError, InUseError, SelfEmoError, StoreError
    from selfemo.evaluation.changes import belief_changes
    from selfemo.evaluation.predictions import evaluate_checkpoint
    from selfemo.evaluation.summary import finish
    from selfemo.reports.figures import draw
    from selfemo.runs.evolve import evolve as run_evolve
    from selfemo.runs.folder import CONFIG_FILE, new_run_folder
    from selfemo.runs.preflight import check_run

    if resume is not None and (config or out or data or engine or dry_run):
        raise ConfigError(
            "--resume takes its settings from the run; leave out --config, --out, --data, --engine, --dry-run"
        )
    # A new run has its overrides in its settings; a run that is resumed checks and takes them itself.
    chosen = settings(config, overrides, engine, data) if resume is None else None
    changes = (overrides or []) if resume is not None else []
    folder = resume or out or new_run_folder()
    if dry_run and chosen is not None:
        show_plan(chosen, chosen.model.id, folder, max(1, chosen.flywheel.iterations), as_json=as_json)
        return
    go_on = f"go on with: {program()} evolve --resume {shlex.quote(str(folder))}"
    inputs = None
    if chosen is None and not (folder / CONFIG_FILE).exists():
        raise StoreError(f"{folder} is not a run folder: it has no {CONFIG_FILE}")
    if chosen is not None:
        chosen, inputs, need = check_run(chosen, folder, reporter())
        confirm(need, reporter(), yes)
    with interruptible(go_on) as (said, stop):
        said.say(f"run folder: {folder}")
        try:
            run = run_evolve(folder, chosen, evaluate_checkpoint, said, stop, changes, belief_changes, inputs)
        except SelfEmoError as e:
            if not isinstance(e, ConfigError | InUseError) and (folder / CONFIG_FILE).exists():
                said.say(f"what is done is kept; {go_on}")
            raise
    with run:
        _show_summary(run, finish(run, draw), as_json)


def _show_summary(run: RunFolder, summary: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console

    from selfemo.evaluation.changes import change_line
    from selfemo.evaluation.console import CHANGES_NOTE, run_tables
    from selfemo.evaluation.summary import next_commands, overlap_tables
    from selfemo.runs.dialogues import NO_DIALOGUE
    from selfemo.runs.inputs import load_sources
    from selfemo.runs.words import in_words

    if as_json:
        print_json({"run": str(run.path), **summary})
        return
    console = Console(highlight=False, soft_wrap=True)
    print_tables([*run_tables(summary, run.config.data.evaluated_on), *overlap_tables(summary["overlap"])])
    said = [CHANGES_NOTE, *summary["choices_said"], change_line(summary["change"])]
    for line in (*said, *summary["constants_said"]):
        typer.echo("")
        print_text(line)
    console.print("\nWhat the stages did:")
    for stage in summary["stages"]:
        done = in_words({k: v for k, v in stage.items() if k not in ("name", "seconds")})
        print_text(f"  {stage['name']:<20} {stage['seconds']:5.0f} s  {done}", 33)
    if dialogues := (run.path / "dialogues.txt").read_text().strip():
        console.print("\nThree self-play dialogues:\n")
        console.print(dialogues + "\n", markup=False)
    else:
        print_text(f"\n{NO_DIALOGUE}\n")
    console.print(f"Run folder: {run.path}")
    first = (
        ("summary.md, summary.json", "the tables above, and free changes beside them"),
        ("figures/", ", ".join(summary["figures"])),
    )
    for name, what in (*first, *_FILES):
        console.print(f"  {name:<28} {what}", markup=False)
    console.print("\nTry next:")
    data, iterations = run.config.data, run.config.flywheel.iterations
    splits = {c.split for c in load_sources(data)[0][0]}  # of the first source, which the commands name
    for command in next_commands(run.path, data, iterations, program(), splits, run.config.reward.reader):
        console.print(f"  {command}", markup=False)
