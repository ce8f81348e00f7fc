"""What independent readers find in the replies of a run, kept in RUN/analysis.json (readers.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from selfemo.errors import StoreError
from selfemo.evaluation.blind import compare_blind
from selfemo.evaluation.readers import GIVEN, Found, Reply, expression_by_data, read_replies, weight_sums
from selfemo.files import write_json
from selfemo.method.types import Prompt
from selfemo.models.reply_readers import ReplyReader
from selfemo.progress import Reporter, StopRequest
from selfemo.runs.folder import START, RunFolder
from selfemo.stages.clusters import NOISE

ANALYSIS_FILE = "analysis.json"
VERSION = 1


def read_analysis(folder: Path) -> dict[str, Any] | None:
    """The analysis of a run; None where it has none.

    Raises:
        StoreError: the file is not an analysis of this version.
    """
    path = folder / ANALYSIS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] == VERSION and isinstance(content["checkpoints"], dict):
            return {"replies": {}, "readers": {}, **content}  # an earlier version had neither
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError):
        pass
    raise StoreError(
        f"{path}: not an analysis of version {VERSION}; delete it and run `selfemo analyse {folder}`"
    )


class OtherRun(NamedTuple):
    """The replies of another run's last checkpoint to a given S: its name, the replies, what was found."""

    name: str
    replies: Mapping[str, Any]
    found: Found


def other_run(folder: Path, reader: str, result: Mapping[str, Any]) -> OtherRun:
    """What a reader found in the last replies of another run to a given S.

    Raises: StoreError: they are not there, or to other prompts.
    """
    analysed = read_analysis(folder)
    entry = analysed["readers"].get(reader) if analysed else None
    names = [name for name in entry["found"] if name.endswith(GIVEN)] if entry else []
    if analysed is None or entry is None or not names:
        raise StoreError(
            f"--against {folder}: it was not read by {reader}; run `selfemo analyse {folder} --reader "
            f"{reader}` first, with the same --prompts"
        )
    if entry["weights"] != weight_sums(reader):
        raise StoreError(
            f"--against {folder}: {reader} had other weights then; run the same command on it again"
        )
    if analysed["prompts"] != result["prompts"]:
        raise StoreError(
            f"--against {folder}: its analysis is of other prompts; the same data, evaluation settings, seed "
            "and --prompts give the same"
        )
    return OtherRun(f"{folder}: {names[-1]}", analysed["replies"][names[-1]], entry["found"][names[-1]])


def compare_runs(
    entry: dict[str, Any], said: Mapping[str, Sequence[Reply]], other: OtherRun, by_id: Mapping[str, Prompt]
) -> None:
    """Add the last checkpoint against that of another run to what a reader found."""
    late = [name for name in said if name.endswith(GIVEN)][-1]
    early = [Reply.kept(by_id[i], record) for i, record in other.replies.items()]
    found = {late: entry["found"][late], other.name: other.found}
    by_data = compare_blind(early, said[late], found, (other.name, late))
    _add(entry, {"early": other.name, "late": late, "by_data": by_data})


def _add(entry: dict[str, Any], blind: dict[str, Any]) -> None:
    """Keep a comparison, in the place of an earlier one with the same checkpoint."""
    kept = {b["early"]: b for b in entry.get("blind", [])}
    entry["blind"] = list((kept | {blind["early"]: blind}).values())


def read_run(
    reference: str,
    judge: ReplyReader,
    said: Mapping[str, Sequence[Reply]],
    run: RunFolder,
    result: dict[str, Any],
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Have a reader read what it has not read of the replies of each checkpoint (and REAL), and count it.

    What is counted is counted anew each time, since personas may have been clustered in between.
    """
    weights, copied = weight_sums(reference), run.copied()
    copied |= {name + GIVEN: source + GIVEN for name, source in copied.items()}
    entry = result["readers"].get(reference)
    if entry is None or entry["weights"] != weights:
        entry = result["readers"][reference] = {"weights": weights, "found": {}, "expression": {}}
    found = entry["found"]
    clusters = {description: name for description, n, name, *_ in run.store.clusters() if n != NOISE}
    for name, replies in said.items():
        mine = found.setdefault(name, dict(found.get(copied.get(name, ""), {})))
        if rest := [r for r in replies if r.prompt.id not in mine]:
            with reporter.bar(f"read {name}", len(rest)) as advance:

                def on_done(k: int, advance: Callable[..., None] = advance) -> None:
                    advance(k)
                    stop.check()

                mine |= read_replies(judge, rest, on_done)
        entry["expression"][name] = expression_by_data(
            replies, mine, clusters, run.config.evaluation.resamples
        )
        write_json(run.path / ANALYSIS_FILE, result)
    # The cold start against the last checkpoint, to the same S.
    names = [name for name in said if name.endswith(GIVEN) and name != START + GIVEN]
    if len(names) > 1:
        early, late = names[0], names[-1]
        by_data = compare_blind(said[early], said[late], found, (early, late))
        _add(entry, {"early": early, "late": late, "by_data": by_data})
        write_json(run.path / ANALYSIS_FILE, result)
