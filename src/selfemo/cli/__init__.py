"""The `selfemo` command: thin over pipeline.py; errors of the user's are one message, exit code 1.

Only typer is imported up here, so that --help answers at once.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfemo import __version__
from selfemo.errors import SelfEmoError

if TYPE_CHECKING:
    from selfemo.config import Config
    from selfemo.runs.folder import RunFolder

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Look at conversation data.")
app.add_typer(data_app, name="data")
personas_app = typer.Typer(no_args_is_help=True, help="Personas: extract, merge, cluster.")
app.add_typer(personas_app, name="personas")
coldstart_app = typer.Typer(no_args_is_help=True, help="Cold-start samples.")
app.add_typer(coldstart_app, name="coldstart")
store_app = typer.Typer(no_args_is_help=True, help="A run's store as Parquet shards.")
app.add_typer(store_app, name="store")

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

Experts = Annotated[
    list[str] | None,
    typer.Option(
        "--expert",
        help="NAME=URL,model=MODEL[,key=ENV_VARIABLE,concurrency=,rpm=,tpm=,timeout=,attempts=,"
        "temperature=,json=none|object|schema], or local[,model=ID]; may be repeated.",
    ),
]
Splits = Annotated[list[str], typer.Option("--split", help="train, dev, test or all.")]
Limit = Annotated[int, typer.Option(min=0, help="First N conversations; 0 takes all.")]
Rounds = Annotated[int, typer.Option(min=1, help="Tries per question, each with one repair.")]
RetryFailed = Annotated[bool, typer.Option(help="Ask anew what ended in an unusable answer.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say how many calls and tokens; ask nothing.")
]
Lenient = Annotated[bool, typer.Option(help="Skip and count broken rows.")]
EmbedderId = Annotated[str, typer.Option(help="Folder or hub id of a sentence embedder.")]
# What a full disk, a limit on it or a folder that cannot be written say.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}
_EMBEDDER = "builtin:all-minilm-l6-v2"
_BUILTIN = "builtin:smollm2-135m"
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Run folder, model folder, id, or endpoint NAME=URL,model=MODEL[,...].",
    ),
]


EngineName = Annotated[
    str | None,
    typer.Option("--engine", help="local (one device) or verl (a cluster of GPUs); --set engine=."),
]
ShowPlan = Annotated[
    bool, typer.Option("--dry-run", help="Show what verl would be told to run; run nothing.")
]


def _with_engine(overrides: list[str] | None, engine: str | None) -> list[str]:
    return [*(overrides or []), *([f"engine={engine}"] if engine else [])]


def _show_plan(config: Config, model: str, folder: Path) -> None:
    """The launches of an RL stage with verl, their commands ready for a shell."""
    import shlex

    from selfemo.errors import ConfigError
    from selfemo.training.verl.waves import plan

    if config.engine != "verl":
        raise ConfigError("--dry-run shows what verl would run; add --engine verl")
    found = plan(config, model, folder)
    for i, wave in enumerate(found["waves"]):
        first, last = wave["steps"]
        typer.echo(
            f"# wave {i}: steps {first} to {last}, {wave['prompts']} prompts, of them at most "
            f"{wave['synthetic_at_most']} of self-play"
        )
        typer.echo(" \\\n  ".join(map(shlex.quote, wave["command"])) + "\n")
    typer.echo(
        f"# {found['gpus']} GPUs, {found['prompts']} prompts, {found['completions']} completions, "
        f"{found['rounds']} rounds, {found['optimiser_steps']} optimiser steps"
    )


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

    from selfemo.evaluation.summary import HEADER, table_rows

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title=title)
    for name in HEADER:
        table.add_column(name, no_wrap=name in ("checkpoint", "data", "n"))
    for row in table_rows(scores):
        table.add_row(*row)
    console.print(table)


def _show_summary(run: RunFolder, summary: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console

    from selfemo.evaluation.summary import change_line, next_commands, scores_of

    if as_json:
        typer.echo(json.dumps({"run": str(run.path), **summary}))
        return
    console = Console(highlight=False, soft_wrap=True)
    _print_table("Held-out scores, 95% intervals by conversation", scores_of(run))
    console.print(change_line(summary))
    console.print("\nWhat the stages did:")
    for stage in summary["stages"]:
        said = ", ".join(f"{k} {v}" for k, v in stage.items() if k not in ("name", "seconds"))
        console.print(f"  {stage['name']:<20} {stage['seconds']:5.0f} s  {said}", markup=False)
    console.print("\nThree self-play dialogues:\n")
    console.print((run.path / "dialogues.txt").read_text(), markup=False)
    console.print(f"Run folder: {run.path}")
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
    for command in next_commands(run.path, run.config.data.sources):
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
    engine: EngineName = None,
    dry_run: ShowPlan = False,
    as_json: AsJson = False,
) -> None:
    """Cold start, then iterations of self-play with SELF-GRPO and the data flywheel (algorithm 1)."""
    from selfemo.errors import ConfigError
    from selfemo.evaluation.predictions import evaluate_checkpoint
    from selfemo.evaluation.summary import finish
    from selfemo.progress import Stopped, StopRequest
    from selfemo.runs.evolve import evolve as run_evolve
    from selfemo.runs.folder import new_run_folder

    if resume is not None:
        if config or out or engine or dry_run:
            raise ConfigError(
                "--resume takes its settings from the run; leave out --config, --out, --engine, --dry-run"
            )
        folder, settings = resume, None
    else:
        settings = _config(config, _with_engine(overrides, engine))
        folder = out or new_run_folder()
        if dry_run:
            _show_plan(settings, settings.model.id, folder)
            return
    reporter = _reporter()
    reporter.say(f"run folder: {folder}")
    stop = StopRequest()
    try:
        with stop.on_signals(reporter.say):
            changes = overrides or [] if resume else []
            run = run_evolve(folder, settings, evaluate_checkpoint, reporter, stop, changes)
    except (Stopped, KeyboardInterrupt):
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
    from selfemo.runs.standalone import sft_alone

    info = sft_alone(out, _config(config, overrides), _reporter())
    typer.echo(f"{out}: trained on {info['samples']} samples in {info['steps']} steps")


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="Model id, folder or run to start from.")],
    out: Annotated[Path, typer.Option(help="Run folder; the model goes to checkpoints/.")],
    config: Configs = None,
    overrides: Overrides = None,
    engine: EngineName = None,
    dry_run: ShowPlan = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the stage that --out holds.")
    ] = False,
) -> None:
    """SELF-GRPO alone, with self-play, from a model that already writes the format."""
    from selfemo.errors import ConfigError
    from selfemo.progress import Stopped, StopRequest
    from selfemo.runs.settings import find_checkpoint
    from selfemo.runs.standalone import train_alone

    settings = None
    if not resume:
        settings = _config(config, _with_engine(overrides, engine))
    elif config or overrides or engine or dry_run:
        raise ConfigError("--resume takes its settings from the run; leave out the others")
    if dry_run and settings is not None:
        _show_plan(settings, find_checkpoint(model), out)
        return
    reporter, stop = _reporter(), StopRequest()
    try:
        with stop.on_signals(reporter.say):
            counts = train_alone(model, out, settings, reporter, stop)
    except (Stopped, KeyboardInterrupt):
        reporter.say(f"stopped; go on with: selfemo train {model} --out {out} --resume")
        raise typer.Exit(130) from None
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
    from selfemo.runs.folder import new_run_folder
    from selfemo.runs.standalone import selfplay_alone

    folder = out or new_run_folder()
    counts, texts = selfplay_alone(
        model, data, prompts, folder, config or [], overrides or [], _reporter()
    )
    for text in texts:
        typer.echo(text + "\n")
    typer.echo(f"{folder / 'store.sqlite'}: {json.dumps(counts)}")


@app.command()
def predict(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="CSV, TSV, JSONL, TXT, SRT or VTT file; or a data set: sample, a path, NAME:PATH.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="A .jsonl or .csv file; go on if stopped.")],
    model: ModelName = _BUILTIN,
    labels: Annotated[
        str | None, typer.Option(help="Emotions to tell apart, by commas, or meld, emorynlp, ...")
    ] = None,
    text: Annotated[str, typer.Option(help="CSV column of the text.")] = "",
    speaker: Annotated[str, typer.Option(help="CSV column of the speaker.")] = "",
    conversation: Annotated[str, typer.Option(help="CSV column of the conversation's id.")] = "",
    gap: Annotated[
        float, typer.Option(min=0, help="Seconds of silence that part two scenes of subtitles.")
    ] = 30.0,
    encoding: Annotated[str, typer.Option(help="Of the input file.")] = "utf-8-sig",
    config: Configs = None,
    overrides: Overrides = None,
) -> None:
    """Label each turn of transcripts with its emotion, how sure the model is, and all probabilities."""
    from selfemo.data.transcripts import ReadSettings
    from selfemo.progress import Stopped, StopRequest
    from selfemo.serve.asking import label_set_of
    from selfemo.serve.labelling import Source, check_out, label_file
    from selfemo.serve.selfemo import SelfEmo

    known = None
    if labels:
        known = label_set_of(labels.split(",") if "," in labels else labels)
    reporter, stop = _reporter(), StopRequest()
    read = Source(source, ReadSettings(text, speaker, conversation, encoding, gap))
    check_out(out, read.path)
    opened = SelfEmo(model, labels=known, files=config or [], overrides=overrides or [])
    try:
        with stop.on_signals(reporter.say):
            done = label_file(read, out, opened, reporter, labels=known, stop=stop)
    except (Stopped, KeyboardInterrupt):
        reporter.say(f"stopped; run the same command again to go on with {out}")
        raise typer.Exit(130) from None
    finally:
        opened.close()
    typer.echo(f"{out}: {done.turns} turns, {done.failed} without a prediction")


@app.command()
def serve(
    model: ModelName = _BUILTIN,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines ask without a token.")
    ] = False,
    name: Annotated[str, typer.Option(help="How answers call the model.")] = "",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one answer.")] = 60.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Questions answered together.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=1, help="Questions that may wait.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=32, help="Most tokens of an answer.")] = 512,
    max_body: Annotated[int, typer.Option(min=1000, help="Bytes of a request.")] = 262_144,
    config: Configs = None,
    overrides: Overrides = None,
) -> None:
    """Emotions and answers over HTTP, also for OpenAI clients. SELFEMO_TOKEN: a token clients must send."""
    import os

    from selfemo.errors import MissingExtraError

    try:
        from selfemo.serve import server
    except ImportError as e:
        raise MissingExtraError(
            f"{e.name}, which serves HTTP,", "pip install 'selfemo[serve]'"
        ) from None
    from selfemo.serve.selfemo import SelfEmo

    token = os.environ.get("SELFEMO_TOKEN", "")
    server.check_host(host, token, insecure)
    opened = SelfEmo(model, files=config or [], overrides=overrides or [])
    limits = server.Limits(
        max_body=max_body, timeout=timeout, max_batch=max_batch, max_waiting=max_waiting,
        max_tokens=max_tokens,
    )  # fmt: skip
    try:
        server.serve(
            opened, host=host, port=port, limits=limits, token=token, insecure=insecure, name=name
        )
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
    finally:
        opened.close()


@data_app.command("check")
def data_check(
    source: Annotated[str, typer.Argument(help='"sample", a path, or NAME:PATH.')],
    lenient: Lenient = False,
) -> None:
    """Name the data set, count it, compare with the official counts, report blemishes."""
    from selfemo.data import check_lines, resolve

    adapter, path = resolve(source)
    for line in check_lines(adapter.load(path, lenient), adapter):
        typer.echo(line)


def _counts(counts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(counts))
        return
    for key, value in counts.items():
        typer.echo(f"{key.replace('_', ' ')}: {value}")


def _specs(texts: list[str] | None) -> Any:
    from selfemo.models.generation.chat import parse_experts

    return parse_experts(texts or [])


@personas_app.command("extract")
def personas_extract(
    source: Annotated[str, typer.Argument(help='"sample", a path, or NAME:PATH.')],
    out: Annotated[Path, typer.Option(help="Folder for the records; go on if stopped.")],
    experts: Experts = None,
    split: Splits = ["train"],  # noqa: B006 (typer copies it)
    limit: Limit = 0,
    segment_turns: Annotated[int, typer.Option(min=2, help="Longest segment, in turns.")] = 16,
    rounds: Rounds = 2,
    retry_failed: RetryFailed = False,
    merge: Annotated[bool, typer.Option(help="Experts merge a speaker's descriptions.")] = False,
    embedder: EmbedderId = _EMBEDDER,
    lenient: Lenient = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Ask experts for the personality of each speaker (eq. 4); one profile a speaker at the end."""
    from selfemo.errors import ConfigError
    from selfemo.runs.expert_jobs import conversations_of, extract_personas, plan_personas

    specs = _specs(experts)
    if not specs:
        raise ConfigError(
            "name an expert: --expert NAME=URL,model=MODEL, or --expert local,model=ID for a model on this "
            "machine. Without any, runs use a plain description of each speaker, which needs no command"
        )
    found = conversations_of(source, split, limit, lenient)
    if dry_run:
        _counts(plan_personas(found, specs, out, segment_turns), as_json)
        return
    counts = extract_personas(
        found,
        specs,
        out,
        _reporter(),
        segment_turns=segment_turns,
        rounds=rounds,
        retry_failed=retry_failed,
        merge=merge,
        embedder=embedder,
    )
    _counts(counts, as_json)
    if not as_json:
        typer.echo(f"use them: selfemo evolve --set 'data.personas=[\"{out}\"]' ...")


@personas_app.command("profiles")
def personas_profiles(
    folder: Annotated[Path, typer.Argument(help="Folder of `personas extract`.")],
    experts: Experts = None,
    embedder: EmbedderId = _EMBEDDER,
    as_json: AsJson = False,
) -> None:
    """Make the profiles anew: merged by experts, or without one the most central description."""
    from selfemo.runs.expert_jobs import merge_profiles

    _counts(merge_profiles(folder, _specs(experts), _reporter(), embedder), as_json)


@personas_app.command("cluster")
def personas_cluster(
    folder: Annotated[Path, typer.Argument(help="Folder of `personas extract`, or a run.")],
    runs: Annotated[
        list[Path] | None, typer.Option("--run", help="Runs whose stores get the clusters too.")
    ] = None,
    min_size: Annotated[int, typer.Option(min=0, help="Smallest cluster; 0: 1%, at least 5.")] = 0,
    embedder: EmbedderId = _EMBEDDER,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Cluster persona descriptions (fig. 4, tables 6 and 7) and mean R1 by cluster (table 3)."""
    from selfemo.reports.figures import persona_map
    from selfemo.runs.expert_jobs import cluster_personas

    result, rewards = cluster_personas(folder, runs or [], min_size, embedder, seed)
    persona_map(folder / "figures", result)
    if as_json:
        clusters = [
            {"name": c.name, "count": c.size, "example": c.example} for c in result.clusters
        ]
        typer.echo(
            json.dumps({"clusters": clusters, "noise": result.noise, "reward_by_cluster": rewards})
        )
        return
    total = len(result.descriptions)
    typer.echo(f"{total} descriptions, {len(result.clusters)} clusters, {result.noise} noise")
    for c in result.clusters:
        typer.echo(f"{c.size:6}  {c.name}\n        e.g. {c.example}")
    for r in rewards:
        typer.echo(
            f"{r['run']} {r['stage']}: {r['name']} R1 {r['r1']:.3f} ({r['rollouts']} rollouts)"
        )
    typer.echo(f"map and tables: {folder / 'figures'}")


@coldstart_app.command("generate")
def coldstart_generate(
    source: Annotated[str, typer.Argument(help='"sample", a path, or NAME:PATH.')],
    out: Annotated[Path, typer.Option(help="Parquet file of chats.")],
    experts: Experts = None,
    personas: Annotated[
        list[Path] | None, typer.Option(help="Folders of `personas extract`.")
    ] = None,
    split: Splits = ["train"],  # noqa: B006
    limit: Limit = 0,
    max_samples: Annotated[int, typer.Option(min=0, help="0 takes all.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    reasoning: Annotated[str, typer.Option(help="none, brief or full.")] = "none",
    agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Least R1 of the expert's E with gold.")
    ] = 0.5,
    rounds: Rounds = 2,
    retry_failed: RetryFailed = False,
    lenient: Lenient = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Cold-start samples as Parquet: written by experts (eq. 5), or from gold data without one."""
    from typing import get_args

    from selfemo.errors import ConfigError
    from selfemo.method.prompts import Reasoning
    from selfemo.runs import expert_jobs as jobs

    specs = _specs(experts)
    if reasoning not in get_args(Reasoning):
        raise ConfigError(f"--reasoning {reasoning}: valid are {', '.join(get_args(Reasoning))}")
    if reasoning != "none" and not specs:
        raise ConfigError("--reasoning needs an --expert: gold data hold no reasoning")
    found = jobs.conversations_of(source, split, limit, lenient, personas or [])
    if dry_run:
        _counts(jobs.plan_cold_start(found, specs, out, max_samples, seed, reasoning), as_json)  # type: ignore[arg-type]
        return
    counts = jobs.generate_cold_start(
        found,
        specs,
        out,
        _reporter(),
        max_samples=max_samples,
        seed=seed,
        reasoning=reasoning,  # type: ignore[arg-type]
        agreement=agreement,
        rounds=rounds,
        retry_failed=retry_failed,
    )
    _counts(counts, as_json)
    if not as_json:
        typer.echo(f"use them: selfemo evolve --set sft.samples={out} ...")


@coldstart_app.command("soften")
def coldstart_soften(
    model: Annotated[str, typer.Argument(help="Run folder, model folder or id.")],
    samples: Annotated[list[Path], typer.Argument(help="Parquet files of `coldstart generate`.")],
    out: Annotated[Path, typer.Option(help="Parquet file of chats.")],
    own_weight: Annotated[
        float, typer.Option(help="Weight of a sample's own emotion, from 0.6 to 1.")
    ] = 0.7,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Samples that name several emotions, without an expert: the gold one and what a model believes in."""
    from selfemo.runs.standalone import soften_alone

    _counts(soften_alone(model, samples, out, own_weight, overrides or [], _reporter()), as_json)
    if not as_json:
        typer.echo(f"use them: selfemo evolve --set sft.samples={out} ...")


@app.command()
def doctor(
    config: Configs = None,
    overrides: Overrides = None,
    engine: Annotated[str, typer.Option(help="local or verl (default: the configuration's).")] = "",
    out: Annotated[Path, typer.Option(help="Where the run would go.")] = Path("runs"),
    gpus: Annotated[int, typer.Option(min=0, help="GPUs (verl) or cores to estimate for.")] = 0,
    machine: Annotated[
        str, typer.Option(help="Estimate for h100, h200, a100, l40s, rtx4090 or cpu-core.")
    ] = "",
    parameters: Annotated[
        float, typer.Option(min=0, help="Size of a model that is not on this machine, as 4e9.")
    ] = 0,
    prompt_tokens: Annotated[float, typer.Option(min=0, help="Mean; 0: that of the data.")] = 0,
    completion_tokens: Annotated[float, typer.Option(min=0, help="Mean; 0: of gold ones.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Check GPUs, versions, disk, data and model, say what is missing, and estimate an iteration."""
    from selfemo.runs.doctor import diagnose, estimate_rows

    told = diagnose(
        _config(config, overrides), out, engine=engine, count=gpus, machine=machine,
        parameters=int(parameters), prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(told.as_dict()))
    else:
        for f in told.findings:
            how = f"\n{'':9}{f.get}" if f.get else ""
            typer.echo(f"{f.state:<8} {f.what}: {f.found}{how}")
        if e := told.estimate:
            title = f"{e['model']} on {e['machine']}, prompts of {e['prompt_tokens']} and completions of "
            _print_tables([(f"{title}{e['completion_tokens']} tokens", *estimate_rows(e))])
            parts = ", ".join(f"{k} {v:.1f}" for k, v in e["memory_gib"].items())
            typer.echo(f"memory by device, GiB: {e['peak_gib']:.1f} at the peak ({parts})")
            typer.echo("disk, GiB: " + ", ".join(f"{k} {v:.1f}" for k, v in e["disk_gib"].items()))
    if not told.healthy:
        raise typer.Exit(1)


@store_app.command("export")
def export_store(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards; go on if stopped.")],
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Rollouts of one shard.")] = 100_000,
    as_json: AsJson = False,
) -> None:
    """Prompts, rollouts and samples as Parquet shards with a manifest; again: append what is new."""
    from selfemo.progress import Stopped, StopRequest
    from selfemo.runs.shards import MANIFEST, export

    reporter, stop = _reporter(), StopRequest()
    try:
        with stop.on_signals(reporter.say):
            manifest = export(run, out, rows_per_shard, reporter, stop)
    except (Stopped, KeyboardInterrupt):
        reporter.say(f"stopped; run the same command again to go on in {out}")
        raise typer.Exit(130) from None
    counts = manifest.rows()
    if as_json:
        typer.echo(json.dumps({"out": str(out), "files": len(manifest.files), **counts}))
        return
    said = ", ".join(f"{n:,} {t}" for t, n in counts.items())
    typer.echo(f"{out / MANIFEST}: {len(manifest.files)} files, {said}")


@store_app.command("select")
def select_samples(
    folders: Annotated[list[Path], typer.Argument(help="Folders of `selfemo store export`.")],
    out: Annotated[Path, typer.Option(help="NAME.parquet, or a folder for a file a shard.")],
    lam: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Rank groups anew by (1 - LAM) R1 + LAM R2 (default: as recorded)."
        ),
    ] = None,
    max_share: Annotated[
        float, typer.Option(min=0, max=1, help="Most of the samples of any one emotion.")
    ] = 0.5,
    n: Annotated[int, typer.Option("-n", min=0, help="Draw so many by the seed; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    iteration: Annotated[
        list[int] | None, typer.Option(help="Rollouts of this one alone; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """SFT samples from shards, out of core: best of each group, gate, no duplicates, emotion cap."""
    from selfemo.progress import Stopped, StopRequest
    from selfemo.runs.selection import select

    reporter, stop = _reporter(), StopRequest()
    try:
        with stop.on_signals(reporter.say):
            result = select(
                folders, out, lam=lam, max_share=max_share, n=n, seed=seed,
                iterations=iteration or [], reporter=reporter, stop=stop,
            )  # fmt: skip
    except (Stopped, KeyboardInterrupt):
        reporter.say("stopped; nothing was written")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
        return
    for name, value in result.as_dict().items():
        typer.echo(f"{name.replace('_', ' '):<12} {value}")
    typer.echo(f"use them: selfemo evolve --set sft.samples={out} ...")


def _print_tables(tables: list[tuple[str, list[str], list[list[str]]]]) -> None:
    from selfemo.reports.tables import render

    for title, header, rows in tables:
        typer.echo(f"\n{title}\n\n{render(header, rows)}", nl=False)


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="Model id, folder, run, or an endpoint as NAME=URL,model=MODEL[,...]."),
    ],
    data: Sources,
    split: Annotated[
        str | None, typer.Option(help="dev or test (default: the configuration's).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep predictions and scores here; go on if stopped.")
    ] = None,
    other: Annotated[
        Path | None,
        typer.Option(
            "--compare", help="Folder of another evaluation, or a run: paired differences."
        ),
    ] = None,
    config: Configs = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Accuracy, F1, mean R1, calibration and confusion on held-out conversations (table 1)."""
    from selfemo.evaluation.jobs import evaluate_model, shown
    from selfemo.progress import Stopped, StopRequest

    changes = [*(overrides or []), *([f'data.eval_split="{split}"'] if split else [])]
    reporter, stop = _reporter(), StopRequest()
    try:
        with stop.on_signals(reporter.say):
            result = evaluate_model(
                model, data, out, config or [], changes, reporter, other=other, stop=stop
            )
    except (Stopped, KeyboardInterrupt):
        kept = (
            f"run the same command again to go on in {out}"
            if out
            else "nothing is kept without --out"
        )
        reporter.say(f"stopped; {kept}")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
        return
    _print_tables(shown(result))
    for dataset, s in result.scores.items():
        if s.failures:
            typer.echo(f"\n{dataset}, failures by kind: {s.failures}")
    if out is not None:
        typer.echo(f"\n{out}: scores.json, predictions.parquet")


def _write(text: str, out: Path | None) -> None:
    """To a file, or to standard output where none is named."""
    from selfemo.errors import StoreError

    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as e:
        raise StoreError(f"{out}: cannot be written: {e.strerror or e}") from e


@app.command()
def table1(
    places: Annotated[
        list[Path] | None, typer.Argument(help="Folders of `evaluate --out`, or runs.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="text, markdown, latex or csv (with intervals).")
    ] = "text",
    out: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
    cross: Annotated[
        bool, typer.Option("--cross", help="Trained on against evaluated on instead.")
    ] = False,
) -> None:
    """Table 1: the paper's published rows, and beside them what was measured."""
    from selfemo.errors import ConfigError
    from selfemo.reports import tables

    if cross and not places:
        raise ConfigError("--cross needs folders of `selfemo evaluate --out`, or runs")
    if cross:
        header, rows = tables.cross(places or [])
    else:
        header, rows = tables.table1(places or [], intervals=form == "csv")
    _write(tables.render(header, rows, form), out)


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(help="Run, RUN@CHECKPOINT, model folder or id, endpoint.")
    ],
    persona: Annotated[
        str,
        typer.Option(help="NAME: what they are like; or a name of the sample set."),
    ] = "Mia: warm, quick to laugh, hides it when she is hurt",
    second: Annotated[
        str, typer.Option(help="A second character, to watch the two talk.")
    ] = "Bo: calm and dry, slow to trust",
    scene: Annotated[str, typer.Option(help="Where the conversation takes place.")] = "",
    you: Annotated[str, typer.Option(help="Your name in it.")] = "You",
    web: Annotated[bool, typer.Option("--web", help="A page in the browser.")] = False,
    compare: Annotated[
        str | None, typer.Option(help="Another model for blind votes on the page.")
    ] = None,
    votes: Annotated[Path, typer.Option(help="Where blind votes go.")] = Path("votes.jsonl"),
    host: Annotated[str, typer.Option(help="Address of the page.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 7860,
    insecure: Annotated[
        bool, typer.Option(help="Let everybody who reaches another --host use the page.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest.")] = 0.3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    config: Configs = None,
    overrides: Overrides = None,
) -> None:
    """Talk with a character, in the terminal or on a page, with the emotions beside each turn."""
    from selfemo.errors import ConfigError
    from selfemo.serve.binding import check_binding
    from selfemo.serve.chat.session import Session, character
    from selfemo.serve.selfemo import SelfEmo

    if compare and not web:
        raise ConfigError("--compare needs --web")
    check_binding(
        host, protected=False, insecure=insecure,
        what="the page, which asks for no password: put a proxy with a password before it",
    )  # fmt: skip
    pair = (character(persona), character(second))
    names = [*(c.name for c in pair), you]
    if len(set(names)) < len(names):
        raise ConfigError(f"three have to have different names: {', '.join(names)}")

    def opened(name: str) -> SelfEmo:
        return SelfEmo(
            name, temperature=temperature, seed=seed, files=config or [], overrides=overrides or []
        )

    if not web:
        from rich.console import Console

        from selfemo.serve.chat.terminal import chat as talk

        talk(opened(model), Session(pair[:1], scene, you), Console())
        return
    from selfemo.serve.chat.web import build, launch

    page = build(
        opened(model), opened(compare) if compare else None, Session(pair, scene, you), votes
    )
    address = launch(page, host, port, wait=False)
    typer.echo(f"{address} (Ctrl-C ends it)")
    page.block_thread()


@app.command()
def judge(
    a: Annotated[str, typer.Argument(help="Run, RUN@CHECKPOINT, model folder or id, endpoint.")],
    b: Annotated[str, typer.Argument(help="The other one.")],
    out: Annotated[Path, typer.Option(help="Folder of judge.json, judgements.parquet.")],
    data: Sources,
    judges: Annotated[
        list[str] | None,
        typer.Option("--judge", help="NAME=URL,model=MODEL or local; may be repeated."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Held-out split.")] = None,
    conversations: Annotated[
        int, typer.Option(min=0, help="Held-out conversations of each data set; 0: all.")
    ] = 20,
    limit: Annotated[int, typer.Option(min=0, help="Prompts to judge; 0: all.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Draws the prompts.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Times a question is put afresh.")] = 2,
    retry_failed: Annotated[bool, typer.Option(help="Ask again what was unreadable.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be asked; ask nothing.")] = False,
    config: Configs = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Blind comparison of two models by judges, in both orders (fig. 3, tables 8 to 11)."""
    from selfemo.evaluation.judge_jobs import judge_models, judge_table
    from selfemo.progress import Stopped, StopRequest

    sets = [f"data.eval_conversations={conversations}", *(overrides or [])]
    if split:
        sets.append(f'data.eval_split="{split}"')
    reporter, stop = _reporter(), StopRequest()
    try:
        with stop.on_signals(reporter.say):
            result = judge_models(
                a, b, data, _specs(judges), out, config or [], sets, reporter, limit=limit, seed=seed,
                rounds=rounds, retry_failed=retry_failed, dry_run=dry_run, stop=stop,
            )  # fmt: skip
    except (Stopped, KeyboardInterrupt):
        reporter.say(f"stopped; run the same command again to go on in {out}")
        raise typer.Exit(130) from None
    if as_json or dry_run:
        typer.echo(json.dumps(result))
        return
    _print_tables([("Wins, ties and losses of the first", *judge_table(result))])
    typer.echo(f"\n{out}: judge.json, judgements.parquet")


@app.command()
def ablate(
    out: Annotated[Path, typer.Option(help="Folder of the runs and of ablation.json, .md, .csv.")],
    config: Configs = None,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm: seeds 0 to N - 1.")] = 3,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            help="An arm beside the full one, in place of those of table 2: vanilla-grpo, original-only, "
            "gold-cold-start, sft-only, cold-start, backbone, or a TOML file; may be repeated.",
        ),
    ] = None,
    keep: Annotated[
        str, typer.Option(help="Checkpoints that stay of a finished run: all, last, none.")
    ] = "last",
    jobs: Annotated[
        int,
        typer.Option(min=1, help="Runs at a time, each in a process of its own."),
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Table 2: the full system against its ablations, over several seeds, in one command."""
    from selfemo.errors import ConfigError
    from selfemo.evaluation.experiments import KEPT, ablation_table
    from selfemo.evaluation.experiments import ablate as run_ablation
    from selfemo.progress import Stopped, StopRequest

    if keep not in KEPT:
        raise ConfigError(f"--keep {keep}: valid are {', '.join(KEPT)}")
    reporter, stop = _reporter(), StopRequest()
    try:
        with stop.on_signals(reporter.say):
            result = run_ablation(
                config or [], overrides or [], out, seeds, reporter, stop=stop, keep=keep,
                only=arm or [], jobs=jobs,
            )  # fmt: skip
    except (Stopped, KeyboardInterrupt):
        reporter.say(f"stopped; run the same command again to go on in {out}")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(result))
        return
    _print_tables([("Mean (sd) over seeds; difference from the full arm", *ablation_table(result))])
    typer.echo(f"\n{out}: ablation.json, ablation.md, ablation.csv")


@app.command()
def analyse(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    prompts: Annotated[
        int, typer.Option(min=0, help="Held-out prompts, the same for all checkpoints; 0: all.")
    ] = 64,
    as_json: AsJson = False,
) -> None:
    """Span entropies (fig. 6), round trip and diversity by checkpoint, into RUN/analysis.json."""
    from selfemo.evaluation.analysis import analyse as run_analysis
    from selfemo.evaluation.analysis import analysis_table
    from selfemo.progress import Stopped, StopRequest

    reporter, stop = _reporter(), StopRequest()
    try:
        with stop.on_signals(reporter.say):
            result = run_analysis(run, prompts, reporter, stop)
    except (Stopped, KeyboardInterrupt):
        reporter.say("stopped; run the same command again to go on")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(result))
        return
    _print_tables([("By checkpoint; entropies in nats, 95% intervals", *analysis_table(result))])
    typer.echo(f"\n{run}: analysis.json")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option(help="The HTML file; figures go to NAME-figures beside it.")],
    judges: Annotated[
        list[Path] | None, typer.Option("--judge", help="Folder with judge.json; may be repeated.")
    ] = None,
    ablation: Annotated[Path | None, typer.Option(help="Folder of `selfemo ablate`.")] = None,
    evaluations: Annotated[
        list[Path] | None,
        typer.Option("--evaluation", help="Folder of `evaluate --out`; may be repeated."),
    ] = None,
    personas: Annotated[
        Path | None, typer.Option(help="Folder of `selfemo personas cluster`.")
    ] = None,
) -> None:
    """One self-contained HTML file: what ran, results, curves, errors, dialogues, configuration."""
    from selfemo.reports.report import build

    written = build(
        run, out, judges=judges or [], ablation=ablation, evaluations=evaluations or [],
        personas=personas,
    )  # fmt: skip
    typer.echo(", ".join(map(str, written)))


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


def run() -> None:
    """Entry point: user errors end as one message on standard error and exit code 1."""
    signal.signal(signal.SIGTERM, _terminate)
    # Before torch loads OpenMP: threads that spin for their turn take it from each other where anything else
    # runs on the cores (two threads on two cores beside two busy processes: more than twice as long).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # Before torch allocates: large tensors in pages of 2 MiB, where Linux leaves that to the program.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        app()
    except SelfEmoError as e:
        typer.echo(f"error: {e}", err=True)
        raise SystemExit(1) from None
    except OSError as e:
        if e.errno not in _DISK:
            raise
        where = f"{e.filename}: " if e.filename else ""
        typer.echo(f"error: {where}{e.strerror}; what was finished before is kept", err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise SystemExit(130) from None
