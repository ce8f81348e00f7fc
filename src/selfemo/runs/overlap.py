"""The overlap in a run's data: what data.exclude_overlap leaves out, and the run's record of it.

overlap.json   the rule; counts by data set; held-out conversations that overlap with the training data; those
               left out; each held-out utterance that the training data have too, with its places

The training data are the whole training split of data.sources, whichever conversations of it
data.train_conversations draws: personas and samples come from all of it, and what is held out must not
depend on a seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfemo.config import DataConfig
from selfemo.data import whole_path
from selfemo.data.overlap import LEAST_COPIES, LEAST_SHARE, LEAST_WORDS, Overlap, find_overlap
from selfemo.errors import DataError, StoreError
from selfemo.files import write_json
from selfemo.method.types import Conversation

OVERLAP_FILE = "overlap.json"
_KEYS = {"exclude", "split", "data", "overlapping", "left_out", "left_out_of"}
RULE = {"least_words": LEAST_WORDS, "least_copies": LEAST_COPIES, "least_share": LEAST_SHARE}


@dataclass(frozen=True)
class DataOverlap:
    """The overlap between the training and the evaluation split of some sources.

    Attributes:
        exclude, split: data.exclude_overlap and data.eval_split.
        found: before anything was left out.
        left_out: ids of the conversations that data.exclude_overlap leaves out, of `of` in their split.
        sources: data.sources with whole paths, so that they are known from another folder too.
    """

    exclude: str
    split: str
    found: Overlap
    left_out: tuple[str, ...] = ()
    of: int = 0
    sources: tuple[str, ...] = ()

    @property
    def overlapping(self) -> tuple[str, ...]:
        """Held-out conversations that are evaluated though they overlap."""
        return self.found.conversations if self.exclude == "no" else ()

    @property
    def not_trained_on(self) -> frozenset[str]:
        """The training conversations that are left out."""
        return frozenset(self.left_out if self.exclude == "train" else ())

    def line(self) -> str:
        """One line on what was found and left out; "" where nothing overlaps."""
        return overlap_line(self.as_dict()) if self.found.conversations else ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "rule": RULE,
            "exclude": self.exclude,
            "split": self.split,
            "data": {d: c.as_dict() for d, c in self.found.counts.items()},
            "overlapping": list(self.overlapping),
            "left_out": list(self.left_out),
            "left_out_of": self.of,
            "copies": [c.as_dict() for c in self.found.copies],
            "sources": list(self.sources),
        }


def told_counts(data: Mapping[str, Mapping[str, int]]) -> str:
    """The data sets that overlap in words, from counts by data set: "12 of 114 meld, 25 of 89 emorynlp"."""
    found = {d: n for d, n in data.items() if n["overlapping"]}
    return ", ".join(f"{n['overlapping']} of {n['conversations']} {d}" for d, n in found.items())


def overlap_line(record: Mapping[str, Any]) -> str:
    """One line on a record (`DataOverlap.as_dict`) with an overlap."""
    told = (
        f"Overlap with the training data: {told_counts(record['data'])} conversations of split "
        f"{record['split']}"
    )
    if record["exclude"] == "no":
        if all(n["overlapping"] == n["conversations"] for n in record["data"].values()):
            return (
                f"{told}; none is left to score without it, so these scores say nothing of new conversations"
            )
        return f"{told}; scores without them stand beside (data.exclude_overlap takes them out)"
    split = "train" if record["exclude"] == "train" else record["split"]
    return (
        f'{told}; data.exclude_overlap = "{record["exclude"]}" left out {len(record["left_out"])} of '
        f"{record['left_out_of']} conversations of split {split}"
    )


def check_overlap(conversations: Sequence[Conversation], data: DataConfig) -> DataOverlap:
    """Find what overlaps in all conversations of data.sources, and what is to be left out.

    Raises:
        DataError: data.exclude_overlap leaves no conversation to train or to evaluate on.
    """
    training = [c for c in conversations if c.split == "train"]
    held = [c for c in conversations if c.split == data.eval_split]
    found, sources = find_overlap(held, training), tuple(map(whole_path, data.sources))
    if data.exclude_overlap == "no":
        return DataOverlap("no", data.eval_split, found, sources=sources)
    if data.exclude_overlap == "train":
        of, gone = training, found.training_conversations()
    else:
        of, gone = held, set(found.conversations)
    left_out = tuple(c.id for c in of if c.id in gone)
    if of and len(left_out) == len(of):
        raise DataError(
            f'data.exclude_overlap = "{data.exclude_overlap}" leaves no conversation of split '
            f'{of[0].split!r}: all {len(of)} overlap; use other data, or data.exclude_overlap = "no"'
        )
    return DataOverlap(data.exclude_overlap, data.eval_split, found, left_out, len(of), sources)


def note_overlap(folder: Path, overlap: DataOverlap, say: Callable[[str], None]) -> None:
    """Say what overlaps in a run's data, and write it into the run's folder."""
    if line := overlap.line():
        say(line)
    write_json(folder / OVERLAP_FILE, overlap.as_dict())


def noted_overlap(folder: Path) -> dict[str, Any] | None:
    """The record in a run's folder; None for a run of a version that kept none.

    Raises:
        StoreError: it cannot be read.
    """
    path = folder / OVERLAP_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.keys() >= _KEYS:
            return found
        fault = "it is no record of an overlap"
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        fault = str(e)
    raise StoreError(f"{path}: cannot be read ({fault}); resume the run, which writes it anew")
