"""Data sets, one adapter a file, all to `Conversation`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from selfemo.data.base import Adapter, LoadResult, must_be_text, must_exist
from selfemo.data.cped import Cped
from selfemo.data.dailydialog import DailyDialog
from selfemo.data.emorynlp import EmoryNlp
from selfemo.data.emowoz import EmoWoz
from selfemo.data.iemocap import Iemocap
from selfemo.data.jsonl import Jsonl
from selfemo.data.meisd import Meisd
from selfemo.data.meld import Meld, MeldDyadic
from selfemo.data.sample import SampleSet
from selfemo.data.tables import Tables
from selfemo.errors import DataError
from selfemo.method.types import Conversation

_OWN = (
    SampleSet(), Meld(), MeldDyadic(), EmoryNlp(), Iemocap(), DailyDialog(), Meisd(), Cped(), EmoWoz(),
    Jsonl(),
)  # fmt: skip
ADAPTERS: dict[str, Adapter] = {a.name: a for a in (*_OWN, Tables([a.name for a in _OWN]))}
_DEPTH = 2
"""Levels below a folder that data sets are looked for in: a clone of MELD has them in the second."""


def _below(path: Path, adapters: Iterable[Adapter]) -> list[tuple[Adapter, Path]]:
    """The data sets in folders below a folder, such as those of a clone; links and hidden folders are left
    out, and what lies below a data set's folder."""
    found: list[tuple[Adapter, Path]] = []
    level = [path]
    for _ in range(_DEPTH):
        inside: list[Path] = []
        for folder in level:
            with contextlib.suppress(OSError):
                inside += sorted(f for f in folder.iterdir() if f.is_dir() and not f.is_symlink())
        level = []
        for folder in (f for f in inside if not f.name.startswith(".")):
            with contextlib.suppress(DataError):
                fits = [(a, folder) for a in adapters if a.matches(folder)]
                found += fits
                if not fits:
                    level.append(folder)
    return found


def _only_below(path: Path, adapters: Iterable[Adapter]) -> tuple[Adapter, Path] | None:
    """The one data set in the folders below a folder, or None (DataError: there are several)."""
    found = _below(path, list(adapters)) if path.is_dir() else []
    if len(found) > 1:
        there = ", ".join(f"{a.name}:{p}" for a, p in found)
        raise DataError(f"holds several data sets in folders below; name one of them: {there}", path)
    return found[0] if found else None


def detect(path: Path) -> tuple[Adapter, Path]:
    """The data set that a path looks like: its adapter, and its place, which is the path or the one folder
    below that holds a data set.

    Raises:
        DataError: the path is missing, no adapter knows it, or several folders below hold data sets.
    """
    must_exist(path)
    for adapter in ADAPTERS.values():
        if adapter.matches(path):
            return adapter, path
    if only := _only_below(path, ADAPTERS.values()):
        return only
    if not os.path.isdir(path):
        must_be_text(path)
    elif not os.listdir(path):
        raise DataError("the folder is empty", path)
    looked = "; ".join(f"{a.name}: {a.looks_for}" for a in ADAPTERS.values())
    plain = " (a transcript without emotions? `selfemo predict` labels it)" if path.is_file() else ""
    raise DataError(f"is of no known data set{plain}. Looked for {looked}", path)


def split_source(spec: str) -> tuple[str, str]:
    """The data set's name and the path of "NAME:PATH"; "" and the whole of another source."""
    name, separator, rest = spec.partition(":")
    return (name, rest) if separator and name in ADAPTERS and name != "sample" else ("", spec)


def whole_path(spec: str) -> str:
    """The same source as it is called from any folder."""
    if spec == "sample":
        return spec
    name, rest = split_source(spec)
    path = os.path.abspath(os.path.expanduser(rest))
    return f"{name}:{path}" if name else path


def resolve(spec: str) -> tuple[Adapter, Path]:
    """Adapter and path of "sample", a path (its data set is detected), or "NAME:PATH".

    A folder may also hold the data set in one folder below, as a clone does; then the path is that folder.

    Raises:
        DataError: no adapter knows the path; it is missing; it looks like another data set's.
    """
    if spec == "sample":
        return ADAPTERS["sample"], SampleSet.path()
    name, rest = split_source(spec)
    if name:
        if not rest:
            raise DataError(f"{spec!r} names no path; write {name}:PATH")
        # os.path.expanduser leaves ~nobody as it is, where pathlib raises RuntimeError.
        adapter, path = ADAPTERS[name], Path(os.path.expanduser(rest))
        must_exist(path)
        if not adapter.matches(path):
            other = next((a.name for a in ADAPTERS.values() if a.matches(path)), None)
            if not other and (only := _only_below(path, [adapter])):
                return only
            # A lone file of no other data set is a broken one of this: loading it names the fault.
            if other or path.is_dir():
                looks = f"; it looks like {other}: use {other}:{rest}" if other else ""
                raise DataError(f"is not {name} data (looked for {adapter.looks_for}){looks}", path)
        return adapter, path
    path, (name, separator, _) = Path(os.path.expanduser(spec)), spec.partition(":")
    if separator and name.replace("-", "").isalpha() and len(name) > 1 and not os.path.exists(path):
        valid = ", ".join(n for n in ADAPTERS if n != "sample")
        raise DataError(f"no such file or folder, and no data set {name!r}; valid are {valid}", path)
    return detect(path)


def speakers_recur(conversation: Conversation) -> bool:
    """Whether the speakers of a conversation are the same people in all of its data set."""
    adapter = ADAPTERS.get(conversation.dataset)
    return adapter is not None and adapter.recurring_speakers


def speakers_named(conversation: Conversation) -> bool:
    """Whether the speakers of a conversation have names, and not merely those of their places in it."""
    adapter = ADAPTERS.get(conversation.dataset)
    return adapter is None or adapter.named_speakers


def load(spec: str, lenient: bool = False) -> LoadResult:
    """Conversations of a source, with a report of the findings; see `resolve` and `Adapter.load`."""
    return load_from(*resolve(spec), lenient)


def load_from(adapter: Adapter, path: Path, lenient: bool = False) -> LoadResult:
    """`Adapter.load` of what `resolve` found (DataError: a line takes the name of another data set)."""
    result = adapter.load(path, lenient)
    for c in result.conversations:
        if c.dataset != adapter.name and c.dataset in ADAPTERS:
            raise DataError(
                f"{c.id}: dataset {c.dataset!r} is another data set's name; give another one", path
            )
    return result
