"""Stages on their own: `selfemo sft`, `train` and `selfplay`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfemo.cli import options as opt
from selfemo.cli.options import new_settings
from selfemo.cli.output import confirm, interruptible, print_json, program, reporter, stopped_with
from selfemo.counting import counted

if TYPE_CHECKING:
    from selfemo.config import Config


def sft(
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    data: opt.Data = None,
    config: opt.Configs = None,
    overrides: opt.Overrides = None,
    engine: opt.EngineName = None,
    resume: opt.ResumeStage = False,
    as_json: opt.AsJson = False,
) -> None:
    """Train on gold data alone: the cold start."""
    from selfemo.runs.standalone import sft_alone
    from selfemo.runs.words import in_words

    chosen = new_settings(resume, config, overrides, engine, data)
    with interruptible(f"go on with: {program()} sft --out {shlex.quote(str(out))} --resume") as (said, stop):
        info = sft_alone(out, chosen, said, stop)
    if as_json:
        print_json({"out": str(out), **info})
        return
    typer.echo(f"{out}: trained on {in_words(info)}")


def train(
    model: Annotated[str, typer.Argument(help="Model id, folder or run to start from.")],
    out: Annotated[Path, typer.Option(help="Run folder; the model goes to checkpoints/.")],
    data: opt.Data = None,
    config: opt.Configs = None,
    overrides: opt.Overrides = None,
    engine: opt.EngineName = None,
    dry_run: opt.ShowPlan = False,
    resume: opt.ResumeStage = False,
    yes: opt.Yes = False,
    as_json: opt.AsJson = False,
) -> None:
    """Train with SELF-GRPO and self-play alone.

    The model must write the format already, as one of `selfemo sft` does.
    """
    from selfemo.runs.preflight import check_run
    from selfemo.runs.standalone import train_alone, train_settings
    from selfemo.runs.words import in_words

    chosen = new_settings(resume, config, overrides, engine, data, dry_run)
    if chosen is not None:
        chosen = train_settings(model, chosen)
        if dry_run:
            show_plan(chosen, chosen.model.id, out, as_json=as_json)
            return
        chosen, _, need = check_run(chosen, out, reporter(), cold_start=False, iterations=1)
        confirm(need, reporter(), yes)
    go_on = f"go on with: {program()} {shlex.join(['train', model, '--out', str(out), '--resume'])}"
    with interruptible(go_on) as (said, stop):
        checkpoint, counts = train_alone(model, out, chosen, said, stop)
    if as_json:
        print_json({"out": str(out), "checkpoint": str(checkpoint), **counts})
        return
    typer.echo(f"{checkpoint}: trained with SELF-GRPO; {in_words(counts)}")


def selfplay(
    model: opt.ModelArgument,
    data: opt.Sources,
    prompts: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Folder for the store of what was played.")] = None,
    config: opt.Configs = None,
    overrides: opt.Overrides = None,
    as_json: opt.AsJson = False,
) -> None:
    """Let a model talk to itself, without training, and read it.

    Each dialogue starts from the history of a real conversation.
    """
    from selfemo.runs.folder import new_run_folder
    from selfemo.runs.standalone import selfplay_alone
    from selfemo.runs.words import in_words

    folder = out or new_run_folder()
    with stopped_with(f"what was played is in {folder}"):
        counts, texts = selfplay_alone(
            model, data, prompts, folder, config or [], overrides or [], reporter()
        )
    if as_json:
        print_json({"out": str(folder), "counts": counts, "dialogues": texts})
        return
    for text in texts:
        typer.echo(text + "\n")
    typer.echo(f"{folder / 'store.sqlite'}: {in_words(counts)}")


def show_plan(config: Config, model: str, folder: Path, stages: int = 1, *, as_json: bool = False) -> None:
    """Print the launches of the first of a run's RL stages with verl, their commands ready for a shell."""
    from selfemo.errors import ConfigError
    from selfemo.training.verl.waves import plan

    if config.engine != "verl":
        raise ConfigError("--dry-run shows what verl would run; add --engine verl")
    found = plan(config, model, folder, stages)
    if as_json:
        print_json(found)
        return
    for i, wave in enumerate(found["waves"]):
        first, last = wave["steps"]
        typer.echo(
            f"# wave {i}: steps {first} to {last}, {counted(wave['prompts'], 'prompts')}, of them at most "
            f"{wave['synthetic_at_most']} of self-play"
        )
        typer.echo(" \\\n  ".join(map(shlex.quote, wave["command"])) + "\n")
    typer.echo(
        f"# {counted(found['gpus'], 'GPUs')}, {counted(found['prompts'], 'prompts')}, "
        f"{counted(found['completions'], 'completions')}, {counted(found['rounds'], 'rounds')}, "
        f"{counted(found['optimiser_steps'], 'optimiser steps')}"
    )
