"""`selfemo predict`: the emotions of the user's transcripts, file in, file out.

OUT.part holds the finished turns, OUT.progress.json their number and bytes; both are removed at the end.
After a kill the same command continues after the last finished chunk, in the order of the input. Beside the
finished file OUT.about.json stays, with the input, model and settings that made it; what others made is kept.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfemo import __version__
from selfemo.counting import counted
from selfemo.data import ADAPTERS, load
from selfemo.data.transcripts import SUFFIXES, Reading, ReadSettings, SourceTurn, read_turns, turns_of
from selfemo.errors import ConfigError, DataError, StoreError
from selfemo.evaluation.jobs import model_digest
from selfemo.files import lock_folder, replacing
from selfemo.method.prompts import FORMAT_VERSION
from selfemo.method.types import Conversation, LabelSet, Utterance
from selfemo.models.generation.chat import endpoint_of
from selfemo.progress import Reporter, StopRequest
from selfemo.runs.settings import find_checkpoint
from selfemo.serve.answers import Recognition, shown_weight
from selfemo.serve.selfemo import SelfEmo

CHUNK = 64
"""Turns that are read together; work resumes at a multiple of it, so that batches stay the same."""
_NAMED = 10
"""Most speakers that are named."""
_PAST = 200
"""Earlier turns of a conversation that are kept as context; no prompt has more."""
_HEAD = 1 << 20
ADDED = ("emotion", "confidence", "distribution", "failure")


@dataclass
class Labelled:
    """Counts of turns in a labelled file: all, those without an emotion, those of an earlier call."""

    turns: int
    failed: int
    resumed: int


class Source:
    """The input: a file (data/transcripts.py), or a data set by its name.

    It is read once at the start: a mistake (DataError, with file and line) is reported before any work.

    Args:
        limit: take the first conversations alone; 0 takes all.
    """

    def __init__(self, name: str, settings: ReadSettings | None = None, limit: int = 0):
        self.name, self.settings, self.limit = name, settings or ReadSettings(), limit
        self.path = Path(os.path.expanduser(name))
        self.is_file = self.path.is_file() and self.path.suffix.lower() in SUFFIXES and _of_a_file(self.path)
        self.reading, self.speakers, self.conversations = Reading(), Counter[str](), 0
        self.fields: dict[str, None] = {}
        last = None
        for turn in self.turns(self.reading):
            self.speakers[turn.speaker] += 1
            self.fields |= dict.fromkeys(turn.fields)
            self.conversations += turn.conversation != last
            last = turn.conversation
        self.count = self.speakers.total()
        if not self.count:
            raise DataError(f"holds no turn{self._gone()}", self.path if self.is_file else name)

    def turns(self, reading: Reading | None = None) -> Iterator[SourceTurn]:
        """The turns in order; `reading` is filled with how the file was read."""
        if self.is_file:
            found = read_turns(self.path, self.settings, reading)
        else:
            found = turns_of(load(self.name).conversations)
        if not self.limit:
            return found
        by_conversation = itertools.groupby(found, key=lambda t: t.conversation)
        return (turn for _, turns in itertools.islice(by_conversation, self.limit) for turn in turns)

    def read_as(self) -> str:
        """One line on what was read: "talk.txt: 9 turns of 2 speakers (Ann, Bo); left out: ..."."""
        names = list(self.speakers)
        more = ", ..." if len(names) > _NAMED else ""
        who = f"{counted(len(names), 'speakers')} ({', '.join(names[:_NAMED])}{more})"
        return f"{self.name}: {counted(self.count, 'turns')} of {who}{self._gone()}"

    def _gone(self) -> str:
        gone = ", ".join(f"{kind} ({n})" for kind, n in self.reading.left_out.items())
        return f"; left out: {gone}" if gone else ""

    def columns(self, out: Path) -> list[str]:
        """The columns that are copied where input and output are both CSV."""
        of_csv = self.is_file and self.path.suffix.lower() in (".csv", ".tsv")
        return list(self.fields) if of_csv and _is_csv(out) else []

    def identity(self) -> str:
        """A text that differs between inputs, to resume only the same one."""
        part = f", the first {self.limit} conversations" if self.limit else ""
        if not self.path.is_file():
            return f"{self.name}, {self.count} turns{part}"
        with self.path.open("rb") as f:
            head = hashlib.sha256(f.read(_HEAD)).hexdigest()[:16]
        return f"{self.path.name}, {self.path.stat().st_size} bytes ({head}){part}"


def check_out(out: Path, source: Path) -> None:
    """Refuse an `out` that cannot be the output file (ConfigError)."""
    if not _is_csv(out) and out.suffix.lower() not in (".jsonl", ".ndjson"):
        raise ConfigError(f"--out {out}: name it .jsonl or .csv")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file")
    if source.exists() and out.exists() and source.samefile(out):
        raise ConfigError(f"--out {out} is the input; give another name")


def check_finished(out: Path, model: str) -> None:
    """Refuse to replace a file that another model made, or nobody knows which (StoreError); loads nothing.

    `label_file` compares the input and the settings too, once the model is there.
    """
    if out.exists():
        made = _about(out)
        if (now := model_identity(model)) != made["what"].get("model"):
            raise StoreError(_made_by(out, made, "model", now))


def label_file(
    source: Source,
    out: Path,
    model: SelfEmo,
    reporter: Reporter,
    *,
    labels: LabelSet | None = None,
    stop: StopRequest | None = None,
) -> Labelled:
    """Label each turn with its emotion.

    Args:
        out: a .jsonl file, one line a turn, or a .csv file (with the columns of a CSV input).
        labels: label set for all turns; None takes the file's, else the model's.

    Raises:
        DataError: the output cannot be written.
        StoreError: an output of this name, finished or not, has another input, model or setting.
        Stopped: `stop` was asked for; finished turns are kept.
    """
    check_out(out, source.path)
    read, stop = source.settings, stop or StopRequest()
    limits = [model.constrained, model.max_tokens, model.config.prompt.max_tokens]
    reading = [read.form, read.text, read.speaker, read.conversation, read.gap, read.encoding]
    named = list(labels or model.labels)
    settings = [FORMAT_VERSION, named, labels is None, limits, reading, out.suffix.lower()]
    what = {
        "selfemo": __version__, "input": source.identity(), "model": model_identity(model.name),
        "settings": json.dumps(settings),
    }  # fmt: skip
    guard = out.parent / f".{out.name}.lock"
    try:
        with lock_folder(guard):
            try:
                if out.exists():
                    return _finished(out, what, reporter)
                with _Output(out, what, source.columns(out)) as output:
                    done = _label(source, output, model, reporter, labels, stop)
                output.finish(model.spec.name if model.spec else model.name)
                return done
            finally:
                shutil.rmtree(guard, ignore_errors=True)
    except OSError as e:
        raise DataError(f"cannot be written: {e.strerror or e}", out) from e


def _is_csv(out: Path) -> bool:
    return out.suffix.lower() == ".csv"


def _of_a_file(path: Path) -> bool:
    """Whether a file is a transcript, not a file of a known data set."""
    known = (a for n, a in ADAPTERS.items() if n not in ("jsonl", "sample"))
    return path.suffix.lower() not in (".csv", ".tsv") or not any(a.matches(path) for a in known)


def model_identity(model: str) -> str:
    """A text that differs between models: of a reference, or of an endpoint."""
    if (spec := endpoint_of(model)) is not None:
        return f"{spec.model} at {spec.url}"
    checkpoint = find_checkpoint(model)
    return f"{Path(checkpoint).name} ({model_digest(checkpoint)})"


def _about_file(out: Path) -> Path:
    return out.with_name(out.name + ".about.json")


def _about(out: Path) -> dict[str, Any]:
    """What made a finished file (StoreError: that is not known, or it was altered since)."""
    file, instead = _about_file(out), "give another --out, or remove it to label anew"
    try:
        made = dict(json.loads(file.read_text()))
        whole = isinstance(made["what"], dict) and made["bytes"] == out.stat().st_size
    except FileNotFoundError:
        raise StoreError(f"{out} exists, and no {file.name} says which model made it; {instead}") from None
    except (ValueError, KeyError, TypeError) as e:
        raise StoreError(f"{file} cannot be read ({e}); give another --out, or remove {out}") from None
    if not whole:
        raise StoreError(f"{out} was changed after {made.get('model')} made it; {instead}")
    return made


_OTHER = {
    "selfemo": "by another version of selfemo",
    "input": "of another input",
    "settings": "by other settings",
}


def _made_by(out: Path, made: dict[str, Any], key: str, now: str) -> str:
    """The message that refuses to replace a finished file."""
    known = made["what"]
    said = f"{out} was made by the model {made.get('model')}, {known.get('model')}"
    said += f", not by {now}" if key == "model" else f", {_OTHER[key]}: {known.get(key)}; now {now}"
    return f"{said}. Give another --out, or remove it to label anew"


def _finished(out: Path, what: dict[str, str], reporter: Reporter) -> Labelled:
    """The counts of a file that is finished already (StoreError: something else made it)."""
    made = _about(out)
    for key in ("model", *what):
        if made["what"].get(key) != what[key]:
            raise StoreError(_made_by(out, made, key, what[key]))
    _Output(out, what, ()).progress.unlink(missing_ok=True)  # left where a kill came just before
    reporter.say(f"{out} is finished already, by this model; nothing is left to do")
    return Labelled(made["turns"], made["failed"], made["turns"])


def _label(
    source: Source,
    output: _Output,
    model: SelfEmo,
    reporter: Reporter,
    labels: LabelSet | None,
    stop: StopRequest,
) -> Labelled:
    turns, past, number, place = source.turns(), list[SourceTurn](), 0, -1
    resumed = output.turns
    if resumed:
        reporter.say(f"resuming after {resumed} finished turns")
    with reporter.bar("predict", source.count) as advance:
        while chunk := list(itertools.islice(turns, CHUNK)):
            segments = _segments(chunk, past)
            places = []
            for t in chunk:
                place = place + 1 if past and past[-1].conversation == t.conversation else 0
                places.append(place)
                past.append(t)
            del past[:-_PAST]
            if number >= resumed:
                stop.check()
                asked = []
                for before, mine in segments:
                    known = labels or mine[0].labels or model.labels
                    said = tuple(Utterance(t.speaker, t.text) for t in (*before, *mine))
                    c = Conversation(mine[0].conversation, "given", "test", said, known, mine[0].scene)
                    asked.append((c, range(len(before), len(said))))
                found = itertools.chain.from_iterable(model.recognise_turns(asked))
                output.write(list(zip(chunk, places, found, strict=True)))
            number += len(chunk)
            advance(len(chunk))
    return Labelled(number, output.failed, resumed)


def _segments(
    chunk: Sequence[SourceTurn], past: Sequence[SourceTurn]
) -> list[tuple[list[SourceTurn], list[SourceTurn]]]:
    """(earlier turns, turns to label) of each conversation in a chunk."""
    segments: list[tuple[list[SourceTurn], list[SourceTurn]]] = []
    for key, mine in itertools.groupby(chunk, key=lambda t: t.conversation):
        before = [t for t in past if t.conversation == key] if not segments else []
        segments.append((before, list(mine)))
    return segments


class _Output:
    """OUT.part and OUT.progress.json, as a context manager."""

    def __init__(self, out: Path, what: dict[str, str], columns: Sequence[str]):
        self.out, self.what, self.columns = out, what, columns
        self.part = out.with_name(out.name + ".part")
        self.progress = out.with_name(out.name + ".progress.json")
        self.csv = _is_csv(out)
        self.turns = self.failed = 0

    def __enter__(self) -> _Output:
        size = 0
        if self.progress.exists():
            try:
                known = json.loads(self.progress.read_text())
                keys = ("bytes", "turns", "failed", "what")
                size, self.turns, self.failed, begun = (known[key] for key in keys)
            except (ValueError, KeyError) as e:
                told = f"cannot be read ({e}); remove it and {self.part} to start again"
                raise StoreError(f"{self.progress} {told}") from None
            for key, value in self.what.items():
                if begun.get(key) != value:
                    raise StoreError(
                        f"{self.out} was begun with another {key}: {begun.get(key)}; now {value}. Give "
                        f"another --out, or remove {self.progress} to start again"
                    )
            if not self.part.exists() or self.part.stat().st_size < size:
                raise StoreError(f"{self.part} is cut off; remove {self.progress} to start again")
        self.file = self.part.open("ab")
        self.file.truncate(size)
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, rows: Sequence[tuple[SourceTurn, int, Recognition]]) -> None:
        """Add a chunk; it is on disk before the progress file counts it."""
        records = [_record(*row, self.columns) for row in rows]
        text = io.StringIO(newline="")
        if self.csv:
            writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
            if self.turns == 0:
                writer.writeheader()
            for record in records:
                writer.writerow({k: json.dumps(v) if isinstance(v, dict) else v for k, v in record.items()})
        else:
            text.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        self.file.write(text.getvalue().encode())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.turns += len(rows)
        self.failed += sum(r.emotion is None for _, _, r in rows)
        state = {"turns": self.turns, "failed": self.failed, "bytes": self.file.tell(), "what": self.what}
        with replacing(self.progress, DataError) as staging:
            staging.write_text(json.dumps(state))

    def finish(self, model: str) -> None:
        """Give the file its name, and say beside it what made it."""
        made = {"model": model, "turns": self.turns, "failed": self.failed}
        made |= {"bytes": self.part.stat().st_size, "what": self.what}
        with replacing(_about_file(self.out), DataError) as staging:
            staging.write_text(json.dumps(made, indent=1) + "\n")
        self.part.replace(self.out)
        self.progress.unlink(missing_ok=True)


def _record(turn: SourceTurn, place: int, r: Recognition, columns: Sequence[str]) -> dict[str, Any]:
    """One line of the output; an added name that the input has too gets `predicted_` before it."""
    if columns:
        record: dict[str, Any] = {c: turn.fields[c] for c in columns}
    else:
        record = {"conversation": turn.conversation, "turn": place, "speaker": turn.speaker}
        record |= {"text": turn.text, **turn.fields}
    weights = r.distribution and {e: shown_weight(w) for e, w in r.distribution.items()}
    values = (r.emotion, shown_weight(r.confidence), weights, r.failure)
    names = [f"predicted_{name}" if name in record else name for name in ADDED]
    return record | dict(zip(names, values, strict=True))
