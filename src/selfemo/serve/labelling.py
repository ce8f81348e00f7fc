"""`selfemo predict`: the emotions of the user's transcripts, file in, file out.

OUT.part holds the finished turns, OUT.progress.json their number and bytes; both are removed at the end.
After a kill the same command continues after the last finished chunk, in the order of the input. Beside the
finished file OUT.about.json stays, with the input, model and settings that made it; what others made is kept.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfemo import __version__
from selfemo.data.transcripts import SourceTurn
from selfemo.data.transcripts.source import Source
from selfemo.errors import ConfigError, DataError, StoreError
from selfemo.evaluation.jobs import model_digest
from selfemo.files import lock_folder, replacing
from selfemo.method.prompts import FORMAT_VERSION
from selfemo.method.types import Conversation, FailureKind, LabelSet, Utterance
from selfemo.models.generation.chat import endpoint_of
from selfemo.progress import Reporter, StopRequest
from selfemo.runs.settings import find_checkpoint
from selfemo.serve.answers import Recognition, shown_weight
from selfemo.serve.selfemo import SelfEmo

CHUNK = 64
"""Turns that are read together; work resumes at a multiple of it, so that batches stay the same."""
_PAST = 200
"""Earlier turns of a conversation that are kept as context; no prompt has more."""
ADDED = ("emotion", "confidence", "distribution", "failure")
_OWN = ("conversation", "turn", "speaker", "text")
_NO_TEXT = Recognition(None, failure=FailureKind.NO_TEXT)


@dataclass
class Labelled:
    """Counts of turns in a labelled file: all, those without an emotion, those of an earlier call."""

    turns: int
    failed: int
    resumed: int


def check_out(out: Path, source: Path) -> None:
    """Refuse an `out` that cannot be the output file (ConfigError)."""
    if not _is_csv(out) and out.suffix.lower() not in (".jsonl", ".ndjson"):
        raise ConfigError(f"--out {out}: name it .jsonl or .csv")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file")
    if source.exists() and out.exists() and source.samefile(out):
        raise ConfigError(f"--out {out} is the input; give another name")


def check_unmixed(out: Path, source: Source, model: str, labels: LabelSet | None) -> None:
    """Refuse an output, finished or begun, that something else made (StoreError); loads nothing.

    `label_file` compares the settings of the loaded model too.
    """
    now = _made_of(source, model, labels)
    if out.exists():
        _refuse_other(out, _about(out), now)
    elif _progress_file(out).exists():
        _refuse_other(out, _progress(out), now)


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
    stop = stop or StopRequest()
    what = _made_of(source, model.name, labels)
    if labels is None:
        what["--labels"] = f"of the file, else {', '.join(model.labels)}"
    what |= {
        "model.constrained": str(model.constrained), "most tokens of an answer": str(model.max_tokens),
        "prompt.max_tokens": str(model.config.prompt.max_tokens),
    }  # fmt: skip
    guard = out.parent / f".{out.name}.lock"
    try:
        with lock_folder(guard):
            try:
                if out.exists():
                    return _finished(out, what, reporter)
                with _Output(out, what, _columns(source, out)) as output:
                    done = _label(source, output, model, reporter, labels, stop)
                output.finish(model.spec.name if model.spec else model.name)
                return done
            finally:
                shutil.rmtree(guard, ignore_errors=True)
    except OSError as e:
        raise DataError(f"cannot be written: {e.strerror or e}", out) from e


def _is_csv(out: Path) -> bool:
    return out.suffix.lower() == ".csv"


def _columns(source: Source, out: Path) -> Columns:
    """The columns of the input in an output."""
    if _is_csv(out) and source.is_file and source.path.suffix.lower() in (".csv", ".tsv"):
        return Columns({name: name for name in source.fields}, whole=True)
    kept = source.carried()
    taken = {name.casefold() for name in kept}
    names = {name: _free(name, "input_", taken) if name in _OWN else name for name in kept}
    return Columns(names, whole=False)


def _free(name: str, prefix: str, taken: Collection[str]) -> str:
    """A name with a prefix before it, or as many as it takes to be none of those in `taken` (casefolded)."""
    while name in taken:
        name = prefix + name
    return name


def _made_of(source: Source, model: str, labels: LabelSet | None) -> dict[str, str]:
    """What makes an output, as far as it is known before the model is loaded."""
    read = source.settings
    options = {
        "--form": read.form, "--text-column": read.text, "--speaker-column": read.speaker,
        "--conversation-column": read.conversation, "--encoding": read.encoding,
        **({"--gap": f"{read.gap:g}"} if source.has_gaps else {}),
    }  # fmt: skip
    return {
        "model": model_identity(model), "selfemo": f"{__version__}, format {FORMAT_VERSION}",
        "input": source.identity(), **({"--labels": ", ".join(labels)} if labels else {}), **options,
    }  # fmt: skip


def model_identity(model: str) -> str:
    """A text that differs between models: of a reference, or of an endpoint."""
    if (spec := endpoint_of(model)) is not None:
        return f"{spec.model} at {spec.url}"
    checkpoint = find_checkpoint(model)
    return f"{Path(checkpoint).name} ({model_digest(checkpoint)})"


def _about_file(out: Path) -> Path:
    return out.with_name(out.name + ".about.json")


def _progress_file(out: Path) -> Path:
    return out.with_name(out.name + ".progress.json")


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


def _progress(out: Path) -> dict[str, Any]:
    """How far an output is (StoreError: its record cannot be read)."""
    file = _progress_file(out)
    try:
        known = dict(json.loads(file.read_text()))
        if isinstance(known["what"], dict) and all(
            type(known[k]) is int for k in ("bytes", "turns", "failed")
        ):
            return known
        reason = "not what `predict` writes"
    except (ValueError, KeyError, TypeError) as e:
        reason = str(e)
    raise StoreError(
        f"{file} cannot be read ({reason}); remove it and {out}.part to start again, or give another --out"
    )


def _refuse_other(out: Path, made: dict[str, Any], now: dict[str, str]) -> None:
    """Refuse an output that something else than `now` made (StoreError)."""
    verb, file = ("was made", out) if out.exists() else ("was begun", _progress_file(out))
    for key, value in now.items():
        known = made["what"].get(key)
        if known == value:
            continue
        if key == "model" and "model" in made:
            said = f"by the model {made['model']}, {known}, not by {value}"
        else:
            said = f"with {key} {known or 'not given'}; now {value or 'not given'}"
        raise StoreError(f"{out} {verb} {said}. Give another --out, or remove {file} to label anew")


def _finished(out: Path, what: dict[str, str], reporter: Reporter) -> Labelled:
    """The counts of a file that is finished already (StoreError: something else made it)."""
    made = _about(out)
    _refuse_other(out, made, what)
    _progress_file(out).unlink(missing_ok=True)  # left where a kill came just before
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
    turns, past, number, place, last = source.turns(), list[SourceTurn](), 0, -1, None
    resumed = output.turns
    if resumed:
        reporter.say(f"resuming after {resumed} finished turns")
    with reporter.bar("predict", source.count) as advance:
        while chunk := list(itertools.islice(turns, CHUNK)):
            said = [t for t in chunk if t.text]
            segments = _segments(said, past)
            places = []
            for t in chunk:
                place = place + 1 if t.conversation == last else 0
                last = t.conversation
                places.append(place)
            past.extend(said)
            del past[:-_PAST]
            if number >= resumed:
                stop.check()
                asked = []
                for before, mine in segments:
                    known = labels or mine[0].labels or model.labels
                    talk = tuple(Utterance(t.speaker, t.text) for t in (*before, *mine))
                    c = Conversation(mine[0].conversation, "given", "test", talk, known, mine[0].scene)
                    asked.append((c, range(len(before), len(talk))))
                found = itertools.chain.from_iterable(model.recognise_turns(asked))
                read = [next(found) if t.text else _NO_TEXT for t in chunk]
                output.write(list(zip(chunk, places, read, strict=True)))
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


@dataclass
class Columns:
    """What an output keeps of the input.

    Attributes:
        names: each field's name in the output.
        whole: the rows are those of the input, so they need no columns of this project for what was said.
    """

    names: dict[str, str]
    whole: bool

    def record(self, turn: SourceTurn, place: int, r: Recognition, every: bool) -> dict[str, Any]:
        """One line of the output; `predicted_` parts an added name from the input's.

        Args:
            every: give a turn that lacks a field an empty one.
        """
        kept = {
            name: turn.fields.get(field, "")
            for field, name in self.names.items()
            if every or field in turn.fields
        }
        if not self.whole:
            kept = dict(zip(_OWN, (turn.conversation, place, turn.speaker, turn.text), strict=True)) | kept
        weights = r.distribution and {e: shown_weight(w) for e, w in r.distribution.items()}
        values = (r.emotion, shown_weight(r.confidence), weights, r.failure)
        taken = {name.casefold() for name in self.names.values()}
        names = [_free(name, "predicted_", taken) for name in ADDED]
        return kept | dict(zip(names, values, strict=True))


class _Output:
    """OUT.part and OUT.progress.json, as a context manager."""

    def __init__(self, out: Path, what: dict[str, str], columns: Columns):
        self.out, self.what, self.columns = out, what, columns
        self.part = out.with_name(out.name + ".part")
        self.progress = _progress_file(out)
        self.csv = _is_csv(out)
        self.turns = self.failed = 0

    def __enter__(self) -> _Output:
        size = 0
        if self.progress.exists():
            known = _progress(self.out)
            _refuse_other(self.out, known, self.what)
            size, self.turns, self.failed = known["bytes"], known["turns"], known["failed"]
            if not self.part.exists() or self.part.stat().st_size < size:
                raise StoreError(f"{self.part} is cut off; remove {self.progress} to start again")
        self.file = self.part.open("ab")
        self.file.truncate(size)
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, rows: Sequence[tuple[SourceTurn, int, Recognition]]) -> None:
        """Add a chunk; it is on disk before the progress file counts it."""
        records = [self.columns.record(*row, every=self.csv) for row in rows]
        text = io.StringIO(newline="")
        if self.csv:
            writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
            if self.turns == 0:
                writer.writeheader()
            for record in records:
                writer.writerow({k: _cell(v) for k, v in record.items()})
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


def _cell(value: Any) -> Any:
    """A value as a CSV cell has it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) else value
