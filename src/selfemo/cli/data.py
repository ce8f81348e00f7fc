"""`selfemo data`: look at conversation data."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfemo.cli import options as opt
from selfemo.counting import counted

if TYPE_CHECKING:
    from selfemo.data.overlap import Comparison, Counts
    from selfemo.method.types import Conversation

group = typer.Typer(no_args_is_help=True, help="Look at conversation data.")


@group.command()
def check(
    sources: opt.SourceArguments,
    lenient: opt.Lenient = False,
    copies: Annotated[
        Path | None, typer.Option(help="Write each utterance that two splits share to this JSONL file.")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Name each data set, count it, and report blemishes.

    The counts are compared with the official ones, where there are any. Of several data sets, and of one that
    repeats itself, it shows what training and held-out splits share.
    """
    from selfemo.cli.output import print_json
    from selfemo.data import load_from, resolve, split_source
    from selfemo.data.checks import check_lines, check_record
    from selfemo.data.overlap import compare_splits
    from selfemo.files import write_text

    found = [resolve(source) for source in sources]
    several = Counter(adapter.name for adapter, _ in found)
    loaded: list[tuple[str, Sequence[Conversation]]] = []
    records: list[dict[str, Any]] = []
    for source, (adapter, path) in zip(sources, found, strict=True):
        result = load_from(adapter, path, lenient)
        records.append({"source": source, "path": str(path), **check_record(result, adapter)})
        if not as_json:
            named = Path(os.path.expanduser(split_source(source)[1]))
            first, *lines = check_lines(result, adapter)
            below = [f"found in: {path}"] if named.is_dir() and named != path else []
            typer.echo(("\n" if loaded else "") + "\n".join([first, *below, *lines]))
        loaded.append((source if several[adapter.name] > 1 else adapter.name, result.conversations))
    compared = compare_splits(loaded)
    shared = [c for c in compared if c.overlap.copies]
    shown = compared if len(sources) > 1 else shared
    if as_json:
        overlap = [{"of": c.held_out, "in": c.training, **_only(c).as_dict()} for c in shown]
        print_json({"data_sets": records, "overlap": overlap})
    else:
        _show_overlap(shown)
    if copies is not None:
        lines = [
            json.dumps({"of": c.held_out, "in": c.training, **copy.as_dict()}, ensure_ascii=False)
            for c in shared
            for copy in c.overlap.copies
        ]
        write_text(copies, "".join(f"{line}\n" for line in lines))
        typer.echo(f"{copies}: {counted(len(lines), 'utterances')}", err=as_json)


@group.command()
def preview(
    source: opt.Transcript,
    turns: Annotated[int, typer.Option(min=0, help="How many of the first turns to show.")] = 10,
    form: opt.Form = "",
    text: opt.TextColumn = "",
    speaker: opt.SpeakerColumn = "",
    conversation: opt.ConversationColumn = "",
    limit: opt.Limit = 0,
    gap: opt.Gap = 30.0,
    encoding: opt.Encoding = "",
    as_json: opt.AsJson = False,
) -> None:
    """Show how `selfemo predict` reads a file.

    Form, encoding, columns, speakers, what is left out and why, and the first turns.
    """
    from itertools import groupby, islice

    from selfemo.cli.output import print_json, print_text
    from selfemo.data.transcripts import ReadSettings
    from selfemo.data.transcripts.source import Source

    read = Source(source, ReadSettings(form, text, speaker, conversation, encoding, gap), limit)
    if as_json:
        print_json(read.as_record(turns))
        return
    for line in read.read_as():
        print_text(line)
    for conversation, said in groupby(islice(read.turns(), turns), key=lambda t: t.conversation):
        typer.echo("")
        print_text(f"conversation {conversation}")
        for turn in said:
            print_text(f"  {turn.speaker}: {turn.text}")
    if turns and read.count > turns:
        typer.echo("")
        print_text(f"and {counted(read.count - turns, 'more turns')} (--turns shows more)")


def _only(compared: Comparison) -> Counts:
    """The counts of a comparison, which is of one held-out data set."""
    (counts,) = compared.overlap.counts.values()
    return counts


def _show_overlap(compared: list[Comparison]) -> None:
    from selfemo.cli.output import print_tables
    from selfemo.data.overlap import LEAST_COPIES, LEAST_SHARE, LEAST_WORDS

    if not compared:
        return
    rows = []
    for c in compared:
        n = _only(c)
        shares = (f"{n.copies} of {n.utterances}", f"{n.overlapping} of {n.conversations}")
        rows.append([c.held_out, c.training, *shares])
    title = (
        f"Overlap: utterances of {LEAST_WORDS} words or more that both have, and conversations with "
        f"{LEAST_COPIES} of them or over {LEAST_SHARE:.0%}"
    )
    print_tables([(title, ["of", "in", "utterances", "conversations"], rows)])
