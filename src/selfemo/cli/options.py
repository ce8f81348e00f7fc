"""Options and arguments that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from selfemo.cli import completion

if TYPE_CHECKING:
    from selfemo.config import Config
    from selfemo.models.generation.chat import ExpertSpec

BUILTIN = "builtin:smollm2-135m"
EMBEDDER = "builtin:all-minilm-l6-v2"

Configs = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        help="TOML file, or the name of one that is shipped (quickstart, ...); several merge left to right.",
        autocompletion=completion.configurations,
    ),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value.")]
Out = Annotated[Path | None, typer.Option(help="Run folder (default: runs/DATE-TIME).")]
Paths = list[Path] | None
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random draws.")]

# data
Data = Annotated[
    list[str] | None,
    typer.Option("--data", help='"sample", a path, or NAME:PATH; repeatable (default: data.sources).'),
]
Sources = Annotated[list[str], typer.Option("--data", help='"sample", a path, or NAME:PATH; repeatable.')]
SourceArgument = Annotated[str, typer.Argument(metavar="DATA", help='"sample", a path, or NAME:PATH.')]
SourceArguments = Annotated[
    list[str], typer.Argument(metavar="DATA...", help='"sample", a path, or NAME:PATH; several are compared.')
]
Splits = Annotated[
    list[str], typer.Option("--split", help="train, dev, test or all.", autocompletion=completion.splits)
]
HeldOut = Annotated[
    Literal["dev", "test"] | None, typer.Option("--split", help="dev or test (default: the configuration's).")
]
Transcript = Annotated[
    str,
    typer.Argument(
        metavar="IN",
        help="CSV, TSV, JSON, JSONL, text or subtitle file; or a data set: sample, a folder, NAME:PATH.",
    ),
]
Form = Annotated[
    str, typer.Option("--form", help="How to read it, if not as its suffix and first lines say.")
]
TextColumn = Annotated[str, typer.Option("--text-column", help="Column or key of the text.")]
SpeakerColumn = Annotated[str, typer.Option("--speaker-column", help="Column or key of the speaker.")]
ConversationColumn = Annotated[
    str,
    typer.Option(
        "--conversation-column",
        help='Column or key of the conversation\'s id; several by commas; "none": there is one conversation.',
    ),
]
Gap = Annotated[float, typer.Option(min=0, help="Seconds of silence between scenes of subtitles; 0: none.")]
Encoding = Annotated[str, typer.Option(help="Encoding of the input file (default: UTF-8, or as marked).")]
Limit = Annotated[int, typer.Option("--conversations", min=0, help="The first N conversations; 0 takes all.")]
Lenient = Annotated[bool, typer.Option("--lenient", help="Skip and count broken rows.")]

# models
ModelName = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Run folder, model folder, id, or endpoint NAME=URL,model=MODEL[,...]."
    ),
]
ModelArgument = Annotated[str, typer.Argument(help="Model id, folder or run.")]
SystemArgument = Annotated[
    str, typer.Argument(help="RUN[@CHECKPOINT], model folder or id, or NAME=URL,model=MODEL.")
]
Reader = Annotated[
    str,
    typer.Option(
        help="Who reads the emotion of replies: a kept encoder, another model or an endpoint (default: the "
        "model itself)."
    ),
]
Backend = Annotated[
    Literal["local", "vllm"] | None,
    typer.Option("--backend", help="What runs a model on this machine (default: model.backend, local)."),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine", help="local (one device) or verl (GPU cluster).", autocompletion=completion.engines
    ),
]
ShowPlan = Annotated[bool, typer.Option("--dry-run", help="Show what verl would run; run nothing.")]
EmbedderId = Annotated[str, typer.Option(help="Folder or hub id of a sentence embedder.")]

# long jobs
ResumeStage = Annotated[bool, typer.Option("--resume", help="Go on with the stage that --out holds.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Start a long run without asking.")]

# experts
Experts = Annotated[
    list[str] | None,
    typer.Option(
        "--expert",
        help="NAME=URL,model=MODEL, or local[,model=ID]; may be repeated. An endpoint takes more after "
        "commas: key=ENV_VARIABLE, concurrency=, rpm=, tpm=, timeout=, attempts=, temperature=, "
        "json=none|object|schema.",
    ),
]
Rounds = Annotated[int, typer.Option(min=1, help="Tries per question, each with one repair.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Ask anew what ended in an unusable answer.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how many calls and tokens; ask nothing.")]

# servers
Host = Annotated[str, typer.Option(help="Address to listen at.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")]
RootPath = Annotated[str, typer.Option(help="Path of the server behind a proxy, as in /emo.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Let other machines ask without a password.")]


def settings(
    files: list[Path] | None,
    overrides: list[str] | None,
    engine: str | None = None,
    data: list[str] | None = None,
) -> Config:
    """The configuration that --config, --set, --engine and --data give."""
    from selfemo.config import load

    return load(files or [], with_data(overrides, data) + ([f"engine={engine}"] if engine else []))


def new_settings(
    resume: bool,
    files: list[Path] | None,
    overrides: list[str] | None,
    engine: str | None,
    data: list[str] | None,
    dry_run: bool = False,
) -> Config | None:
    """`settings` of a new stage; None with --resume (ConfigError: there are settings beside it)."""
    from selfemo.errors import ConfigError

    if not resume:
        return settings(files, overrides, engine, data)
    if files or overrides or engine or data or dry_run:
        raise ConfigError("--resume takes its settings from the run; leave out the others")
    return None


def with_backend(overrides: list[str] | None, backend: str | None) -> list[str]:
    """The overrides of --set and --backend."""
    return [*(overrides or []), *([f'model.backend="{backend}"'] if backend else [])]


def with_data(overrides: list[str] | None, data: list[str] | None) -> list[str]:
    """The overrides of --data and --set."""
    return [*([f"data.sources={json.dumps(data)}"] if data else []), *(overrides or [])]


def expert_specs(texts: list[str] | None) -> list[ExpertSpec]:
    """The experts of some options, each of which can be asked (see `ExpertSpec.check`)."""
    from selfemo.models.generation.chat import parse_experts

    specs = parse_experts(texts or [])
    for spec in specs:
        spec.check()
    return specs
