"""Use a model: `selfemo predict` on files, `serve` over HTTP, `chat` with a character."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from selfemo.cli import completion
from selfemo.cli import options as opt
from selfemo.cli.output import interruptible, print_json, reporter
from selfemo.counting import counted
from selfemo.serve.asking import MOST_REPLIES


def predict(
    source: opt.Transcript,
    out: Annotated[Path, typer.Option(help="A .jsonl or .csv file; go on if stopped.")],
    model: opt.ModelName = opt.BUILTIN,
    labels: Annotated[
        str | None,
        typer.Option(help="Emotions by commas, or meld, emorynlp, ...", autocompletion=completion.label_sets),
    ] = None,
    form: opt.Form = "",
    text: opt.TextColumn = "",
    speaker: opt.SpeakerColumn = "",
    conversation: opt.ConversationColumn = "",
    limit: opt.Limit = 0,
    gap: opt.Gap = 30.0,
    encoding: opt.Encoding = "",
    backend: opt.Backend = None,
    config: opt.Configs = None,
    overrides: opt.Overrides = None,
    as_json: opt.AsJson = False,
) -> None:
    """Label each turn of a transcript with its emotion.

    Each line of the result has the emotion, how sure the model is, and all probabilities. How the file was
    read is told first; `selfemo data preview` shows it without a model.
    """
    from selfemo.data.transcripts import ReadSettings
    from selfemo.data.transcripts.source import Source
    from selfemo.serve.asking import label_set_of
    from selfemo.serve.labelling import check_out, check_unmixed, label_file
    from selfemo.serve.selfemo import SelfEmo

    known = label_set_of(labels.split(",") if "," in labels else labels) if labels else None
    check_out(out, Path(os.path.expanduser(source)))
    read = Source(source, ReadSettings(form, text, speaker, conversation, encoding, gap), limit)
    for line in read.read_as():
        reporter().say(line)
    check_unmixed(out, read, model, known)
    sets = opt.with_backend(overrides, backend)
    with (
        closing(SelfEmo(model, labels=known, files=config or [], overrides=sets)) as opened,
        interruptible(f"run the same command again to go on with {out}") as (said, stop),
    ):
        done = label_file(read, out, opened, said, labels=known, stop=stop)
    if as_json:
        print_json({"out": str(out), **asdict(done)})
        return
    typer.echo(f"{out}: {counted(done.turns, 'turns')}, {done.failed} without a prediction")


def serve(
    model: opt.SystemArgument = opt.BUILTIN,
    host: opt.Host = "127.0.0.1",
    port: opt.Port = 8000,
    insecure: opt.Insecure = False,
    name: Annotated[str, typer.Option(help="How answers call the model.")] = "",
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="SCHEME://HOST[:PORT] of web pages that may ask from a browser; repeatable; * is all."
        ),
    ] = None,
    root_path: opt.RootPath = "",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one answer.")] = 60.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Questions answered together.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=1, help="Questions that may wait.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=32, help="Most tokens of an answer.")] = 512,
    reader: opt.Reader = "",
    best_of: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_REPLIES,
            help="Give the most expressive of N replies, if the client does not say; 1: only tell how "
            "expressive the one is; 0: not even that without --reader.",
        ),
    ] = 0,
    max_body: Annotated[int, typer.Option(min=1000, help="Bytes of a request.")] = 262_144,
    backend: opt.Backend = None,
    config: opt.Configs = None,
    overrides: opt.Overrides = None,
) -> None:
    """Serve emotions and answers over HTTP, also to OpenAI clients.

    Clients must send the token in the environment variable SELFEMO_TOKEN, where it is set.
    """
    from selfemo.extras import require
    from selfemo.serve.binding import check_binding, check_free, check_origins, check_root_path

    token = os.environ.get("SELFEMO_TOKEN", "")
    check_binding(host, token, insecure)
    origins, root_path = check_origins(allow_origin or []), check_root_path(root_path)
    if "*" in origins:
        without = "" if token else " without a token; set one (SELFEMO_TOKEN), or name the origins"
        reporter().say(f"--allow-origin '*': every web page in a browser here may ask this server{without}")
    check_free(host, port)
    require("`selfemo serve`", "fastapi", "fastapi-offline", "uvicorn", "prometheus_client")
    from selfemo.serve import server
    from selfemo.serve.selfemo import SelfEmo

    limits = server.Limits(
        max_body=max_body, timeout=timeout, max_batch=max_batch,
        max_waiting=max_waiting, max_tokens=max_tokens,
    )  # fmt: skip
    sets = opt.with_backend(overrides, backend)
    with closing(
        SelfEmo(model, reader=reader, best_of=best_of, files=config or [], overrides=sets)
    ) as opened:
        try:
            server.serve(
                opened, host=host, port=port, limits=limits, token=token, insecure=insecure, name=name,
                origins=origins, root_path=root_path,
            )  # fmt: skip
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)


def chat(
    model: opt.SystemArgument,
    persona: Annotated[
        str, typer.Option(help="NAME: what they are like; or a name of the sample set.")
    ] = "Mia: warm, quick to laugh, hides it when she is hurt",
    second: Annotated[
        str, typer.Option(help="A second character: /watch lets the two talk.")
    ] = "Bo: calm and dry, slow to trust",
    scene: Annotated[str, typer.Option(help="Where the conversation takes place.")] = "",
    you: Annotated[str, typer.Option(help="Your name in it.")] = "You",
    web: Annotated[bool, typer.Option("--web", help="A page in the browser.")] = False,
    compare: Annotated[str | None, typer.Option(help="Another model for blind votes on the page.")] = None,
    votes: Annotated[Path, typer.Option(help="Where blind votes go.")] = Path("votes.jsonl"),
    host: opt.Host = "127.0.0.1",
    port: opt.Port = 7860,
    insecure: opt.Insecure = False,
    root_path: opt.RootPath = "",
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest.")] = 0.3,
    reader: opt.Reader = "",
    best_of: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_REPLIES,
            help="Give the most expressive of N replies; 0: do not read replies without --reader.",
        ),
    ] = 1,
    seed: opt.Seed = 0,
    config: opt.Configs = None,
    overrides: opt.Overrides = None,
) -> None:
    """Talk with a character and see the emotions of each turn.

    In the terminal, or on a page in the browser with --web.
    """
    from selfemo.errors import ConfigError
    from selfemo.extras import require
    from selfemo.runs.settings import find_checkpoint
    from selfemo.serve.binding import check_binding, check_free, check_root_path
    from selfemo.serve.chat.session import Session, character
    from selfemo.serve.expressing import Reader
    from selfemo.serve.selfemo import SelfEmo

    if compare and not web:
        raise ConfigError("--compare needs --web")
    check_binding(host, None, insecure)
    root_path = check_root_path(root_path, or_address=True)
    if root_path and not web:
        raise ConfigError("--root-path needs --web")
    if web:
        require("`selfemo chat --web`", "gradio")
        check_free(host, port)
    pair = (character(persona), character(second))
    session = Session(pair, scene, you)
    for name in (model, *([compare] if compare else [])):
        find_checkpoint(name)  # a wrong one is told before the other is loaded

    def opened(name: str, by: str | Reader) -> SelfEmo:
        return SelfEmo(
            name, temperature=temperature, seed=seed, reader=by, best_of=best_of, files=config or [],
            overrides=overrides or [],
        )  # fmt: skip

    if not web:
        from rich.console import Console

        from selfemo.serve.chat.terminal import chat as talk

        talk(opened(model, reader), replace(session, characters=pair[:1]), Console(), pair[1])
        return
    from selfemo.serve.chat.web import build, launch

    first = opened(model, reader)
    # One reader for both models; where none is named, each reads its own replies.
    other = opened(compare, first.reader if reader else "") if compare else None
    page = build(first, other, session, votes)
    typer.echo(f"{launch(page, host, port, root_path)} (Ctrl-C ends it)")
    page.block_thread()
