"""Scores without the held-out conversations that overlap with the training data (SPEC section 11).

They stand beside the scores over all conversations: in the summary and report of a run, whose folder has the
record of its overlap, and in `selfemo evaluate`, which compares what it evaluates on with what the model was
trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from selfemo.config import load
from selfemo.data import load as load_data
from selfemo.data.overlap import find_overlap
from selfemo.errors import DataError, EngineError
from selfemo.evaluation.metrics import MEASURES
from selfemo.evaluation.predictions import Labels, Rows, Scores, average, score
from selfemo.evaluation.rendering import cell
from selfemo.method.types import UNION, Conversation
from selfemo.models.generation import backend_of
from selfemo.models.references import CONFIG_FILE, START, ModelReference
from selfemo.runs.inputs import load_sources
from selfemo.runs.overlap import RULE, overlap_line, told_counts
from selfemo.runs.settings import data_of

Scoring = Callable[..., dict[str, Scores]]
"""(rows, labels, *, resamples) to scores by data set: `predictions.score`, or `clean_scores` of some ids."""
Plain = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Scores by checkpoint and data set, as summary.json holds them."""


def clean_rows(rows: Rows, overlapping: Collection[str]) -> Rows:
    """Stored predictions without those of some conversations (ids)."""
    return [r for r in rows if r["conversation"] not in overlapping]


def clean_scores(
    rows: Rows, labels: Labels, *, overlapping: Collection[str], resamples: int
) -> dict[str, Scores]:
    """Scores without the conversations that overlap, of the data sets that have one, and of UNION.

    Empty where none of them was predicted. A data set of which nothing is left is not in it.
    """
    concerned = {r["dataset"] for r in rows if r["conversation"] in overlapping}
    if not concerned:
        return {}
    found = score(clean_rows(rows, overlapping), labels, resamples=resamples)
    return {d: s for d, s in found.items() if d in concerned or d == UNION}


def clean_title(data: Mapping[str, Mapping[str, int]], split: str) -> str:
    """The title of a table of clean scores, from counts by data set."""
    told = f"of split {split}: {told_counts(data)}"
    return f"Without the conversations that overlap with the training data ({told})"


def run_part(record: Mapping[str, Any] | None, scored: Callable[[Scoring], Plain]) -> dict[str, Any] | None:
    """What a run's summary says of its overlap, as plain values; None where nothing overlaps or is known.

    Args:
        record: of the run's folder (`runs.overlap.noted_overlap`).
        scored: gives scores by checkpoint and data set, made by the function that it gets.

    Returns: "exclude", "split", "data" (counts by data set), "line" (in words), and the clean "scores".
    """
    if record is None or not any(c["overlapping"] for c in record["data"].values()):
        return None
    overlapping = frozenset(record["overlapping"])
    scores = scored(partial(clean_scores, overlapping=overlapping)) if overlapping else {}
    about = {k: record[k] for k in ("exclude", "split", "data")}
    return {**about, "line": overlap_line(record), "scores": {c: s for c, s in scores.items() if s}}


def runs_of(model: str) -> list[Path]:
    """The runs that a model was trained in: its own, the one of the model that this began with, and so on.

    Raises:
        EngineError: a checkpoint in the chain is no longer there.
    """
    runs: list[Path] = []
    seen: set[str] = set()
    while model not in seen and backend_of(model)[0] == "local":
        seen.add(model)
        reference = ModelReference.parse(model)
        if reference.run is None:
            break
        if reference.checkpoint != START and reference.run not in runs:
            runs.append(reference.run)
        model = load([reference.run / CONFIG_FILE]).model.id
    return runs


def training_data(
    model: str | None, given: Sequence[str], lenient: bool, say: Callable[[str], None]
) -> list[Conversation]:
    """The conversations that a model was trained on, as far as they are known; empty where they are not.

    Args:
        model: its runs are looked up; None for a model behind an endpoint.
        given: further sources, whose training split counts.
        say: told of a run whose training data cannot be read.

    Raises:
        DataError: a source of `given` cannot be read, or has no training split.
    """
    found: list[Conversation] = []
    for source in given:
        train = [c for c in load_data(source, lenient=lenient).conversations if c.split == "train"]
        if not train:
            raise DataError("--train-data: holds no conversation of split 'train'", source)
        found += train
    try:
        for run in [] if model is None else runs_of(model):
            loaded, overlap = load_sources(data_of(run))
            trained = (c for part in loaded for c in part if c.split == "train")
            found += [c for c in trained if c.id not in overlap.not_trained_on]
    except (DataError, EngineError) as e:
        say(
            f"what {model} was trained on cannot be read ({e}): the overlap with it is not known; name it by "
            "--train-data"
        )
    return found


def evaluation_part(
    held_out: Sequence[Conversation],
    training: Sequence[Conversation],
    rows: Rows,
    labels: Labels,
    *,
    resamples: int,
) -> dict[str, Any] | None:
    """What an evaluation says of its overlap, as plain values; None where the training data are not known.

    Returns: "rule", "data" (counts by data set), "conversations" (ids of those that overlap), and without
        these "scores" by data set (`clean_scores`) and the plain "average" (None: of a data set nothing is
        left, or there is only one).
    """
    if not training:
        return None
    found = find_overlap(held_out, training)
    clean = clean_scores(rows, labels, overlapping=set(found.conversations), resamples=resamples)
    rest = clean_rows(rows, set(found.conversations))
    whole = clean and {r["dataset"] for r in rest} == {r["dataset"] for r in rows}
    mean = average(rest, labels, resamples=resamples) if whole else None
    return {
        "rule": RULE,
        "data": {d: c.as_dict() for d, c in found.counts.items()},
        "conversations": list(found.conversations),
        "scores": {d: s.as_dict() for d, s in clean.items()},
        "average": mean and {m: i.as_list() for m, i in mean.items()},
    }


def evaluation_table(found: Mapping[str, Any], split: str) -> tuple[str, list[str], list[list[str]]]:
    """(title, header, rows) of an `evaluation_part` with an overlap."""
    header = ["data", "conversations", "n", "accuracy", "weighted F1", "macro F1", "mean R1", "parsed"]
    rows = [
        [d, str(s["conversations"]), str(s["utterances"]), *(cell(s[m]) for m in MEASURES)]
        for d, s in found["scores"].items()
    ]
    for d, n in found["data"].items():
        if n["overlapping"] == n["conversations"]:
            rows.append([d, "0", "0", *["-"] * len(MEASURES)])
    if found["average"]:
        rows.append(["average", "", "", *(cell(found["average"][m]) for m in MEASURES)])
    return clean_title(found["data"], split), header, rows
