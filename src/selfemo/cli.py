"""The `selfemo` command: thin over pipeline.py; errors of the user's are one message, exit code 1.

Only typer is imported up here, so that --help answers at once.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfemo import __version__
from selfemo.errors import SelfEmoError

if TYPE_CHECKING:
    from selfemo.config import Config
    from selfemo.pipeline import Run

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Look at conversation data.")
app.add_typer(data_app, name="data")

Configs = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="TOML file; several merge left to right."),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value.")]
Out = Annotated[Path | None, typer.Option(help="Run folder (default: runs/DATE-TIME).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Sources = Annotated[
    list[str], typer.Option("--data", help='"sample", a path, or NAME:PATH; may be repeated.')
]


def _config(files: list[Path] | None, overrides: list[str] | None) -> Config:
    from selfemo.config import load

    return load(files or [], overrides or [])


def _reporter() -> Any:
    from selfemo.progress import Console

    return Console()


def _print_table(title: str, scores: Any) -> None:
    """Scores by checkpoint and data set; intervals may wrap in a narrow terminal, names never do."""
    from rich.console import Console
    from rich.table import Table

    from selfemo.summary import HEADER, table_rows

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title=title)
    for name in HEADER:
        table.add_column(name, no_wrap=name in ("checkpoint", "data", "n"))
    for row in table_rows(scores):
        table.add_row(*row)
    console.print(table)


def _show_summary(run: Run, summary: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console

    from selfemo.pipeline import scores_of
    from selfemo.summary import change_line, next_commands

    if as_json:
        typer.echo(json.dumps({"run": str(run.folder), **summary}))
        return
    console = Console(highlight=False, soft_wrap=True)
    _print_table("Held-out scores, 95% intervals by conversation", scores_of(run))
    console.print(change_line(summary))
    console.print("\nWhat the stages did:")
    for stage in summary["stages"]:
        said = ", ".join(f"{k} {v}" for k, v in stage.items() if k not in ("name", "seconds"))
        console.print(f"  {stage['name']:<20} {stage['seconds']:5.0f} s  {said}", markup=False)
    console.print("\nThree self-play dialogues:\n")
    console.print((run.folder / "dialogues.txt").read_text(), markup=False)
    console.print(f"Run folder: {run.folder}")
    for name, what in (
        ("summary.md, summary.json", "the table above"),
        ("figures/", ", ".join(summary["figures"])),
        ("dialogues.txt", "self-play to read"),
        ("checkpoints/", "models that transformers opens"),
        ("store.sqlite, metrics.jsonl", "every rollout with its lineage, every step"),
        ("config.toml", "the resolved settings"),
    ):
        console.print(f"  {name:<28} {what}", markup=False)
    console.print("\nTry next:")
    for command in next_commands(run.folder, run.config.data.sources):
        console.print(f"  {command}", markup=False)


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """SELF-EMO: models that read the emotions of a conversation and evolve by talking to themselves."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def evolve(
    config: Configs = None,
    overrides: Overrides = None,
    out: Out = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Cold start, then iterations of self-play with SELF-GRPO and the data flywheel (algorithm 1)."""
    from selfemo.errors import ConfigError
    from selfemo.pipeline import evolve as run_evolve
    from selfemo.pipeline import extend_run, new_run_folder
    from selfemo.summary import finish

    if resume is not None:
        if config or out:
            raise ConfigError(
                "--resume takes its settings from the run; leave out --config and --out"
            )
        folder, settings = resume, None
        if overrides:
            extend_run(resume, overrides)
    else:
        settings = _config(config, overrides)
        folder = out or new_run_folder()
    reporter = _reporter()
    reporter.say(f"run folder: {folder}")
    try:
        run = run_evolve(folder, settings, reporter)
    except KeyboardInterrupt:
        reporter.say(f"stopped; go on with: selfemo evolve --resume {folder}")
        raise typer.Exit(130) from None
    except SelfEmoError:
        if (folder / "config.toml").exists():
            reporter.say(f"what is done is kept; go on with: selfemo evolve --resume {folder}")
        raise
    try:
        _show_summary(run, finish(run), as_json)
    finally:
        run.close()


@app.command()
def sft(
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    config: Configs = None,
    overrides: Overrides = None,
) -> None:
    """Supervised training alone: the cold start on gold data."""
    from selfemo.standalone import sft_alone

    info = sft_alone(out, _config(config, overrides), _reporter())
    typer.echo(f"{out}: trained on {info['samples']} samples in {info['steps']} steps")


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="Model id, folder or run to start from.")],
    out: Annotated[Path, typer.Option(help="Run folder; the model goes to checkpoints/.")],
    config: Configs = None,
    overrides: Overrides = None,
) -> None:
    """SELF-GRPO alone, with self-play, from a model that already writes the format."""
    from selfemo.standalone import train_alone

    counts = train_alone(model, out, _config(config, overrides), _reporter())
    typer.echo(f"{out}: {json.dumps(counts)}")


@app.command()
def selfplay(
    model: Annotated[str, typer.Argument(help="Model id, folder or run.")],
    data: Sources,
    prompts: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the store of what was played.")
    ] = None,
    config: Configs = None,
    overrides: Overrides = None,
) -> None:
    """Let a model talk to itself from real histories, without training, and read the dialogues."""
    from selfemo.pipeline import new_run_folder
    from selfemo.standalone import selfplay_alone

    folder = out or new_run_folder()
    counts, texts = selfplay_alone(
        model, data, prompts, folder, config or [], overrides or [], _reporter()
    )
    for text in texts:
        typer.echo(text + "\n")
    typer.echo(f"{folder / 'store.sqlite'}: {json.dumps(counts)}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model id, folder or run.")],
    data: Sources,
    split: Annotated[
        str | None, typer.Option(help="dev or test (default: the configuration's).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep predictions here; go on if stopped.")
    ] = None,
    config: Configs = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Accuracy, weighted F1, mean R1 and parse rate on held-out conversations."""
    from selfemo.standalone import evaluate_alone

    changes = [*(overrides or []), *([f'data.eval_split="{split}"'] if split else [])]
    scores = evaluate_alone(model, data, out, config or [], changes, _reporter())
    if as_json:
        typer.echo(json.dumps({d: s.as_dict() for d, s in scores.items()}))
        return
    _print_table("95% intervals by conversation", {model: scores})
    for dataset, s in scores.items():
        if s.failures:
            typer.echo(f"{dataset}, failures by kind: {s.failures}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Model id, folder or run.")],
    data: Annotated[str, typer.Argument(help='"sample", a path, or NAME:PATH.')],
    out: Annotated[Path, typer.Option(help="JSONL file: one line per turn.")],
    config: Configs = None,
    overrides: Overrides = None,
) -> None:
    """Label each turn of conversations with the emotions that the model reads in it."""
    from selfemo.standalone import predict_alone

    n, failed = predict_alone(model, data, out, config or [], overrides or [], _reporter())
    typer.echo(f"{out}: {n} turns, {failed} without a prediction")


@data_app.command("check")
def data_check(
    source: Annotated[str, typer.Argument(help='"sample", a path, or NAME:PATH.')],
    lenient: Annotated[bool, typer.Option(help="Skip and count broken rows.")] = False,
) -> None:
    """Name the data set, count it, compare with the official counts, report blemishes."""
    from selfemo.datasets import check_lines, resolve

    adapter, path = resolve(source)
    for line in check_lines(adapter.load(path, lenient), adapter):
        typer.echo(line)


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


def run() -> None:
    """Entry point: user errors end as one message on standard error and exit code 1."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except SelfEmoError as e:
        typer.echo(f"error: {e}", err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise SystemExit(130) from None


if __name__ == "__main__":
    run()
