"""Table 1 with published and measured rows, and the table of data sets of training against evaluation.

The published values are in published.toml, copied from the paper. They are marked as published and are never
mixed with measured values.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from selfemo.config import load
from selfemo.errors import StoreError
from selfemo.evaluation.jobs import SCORES_FILE, trained_on
from selfemo.evaluation.predictions import UNION
from selfemo.runs.folder import CONFIG_FILE, START, checkpoints, evaluation_name
from selfemo.runs.store import STORE_FILE, Store

PAPER_SETS = ("iemocap", "meld", "emorynlp")
_TITLES = {"iemocap": "IEMOCAP", "meld": "MELD", "emorynlp": "EmoryNLP"}


@dataclass(frozen=True)
class Measured:
    """One evaluated model and its scores (`Scores.as_dict`) by data set."""

    name: str
    split: str
    trained_on: Sequence[str]
    scores: Mapping[str, Mapping[str, Any]]


@contextmanager
def written_by(command: str, path: Path) -> Iterator[Any]:
    """The content of a JSON file that a command wrote.

    Raises:
        StoreError: the file cannot be read, or the block finds that it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise StoreError(f"{path}: cannot be read ({e}); `{command}` makes it") from None
    try:
        yield content
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise StoreError(f"{path}: not what `{command}` writes ({e!r}); run it again") from None


def measured(folder: Path) -> Measured:
    """The scores in a folder of `selfemo evaluate --out`, or of a run's last evaluated checkpoint.

    Raises:
        StoreError: there are none, or they cannot be read.
    """
    file = folder / SCORES_FILE
    if file.exists():
        with written_by("selfemo evaluate --out", file) as content:
            return Measured(*(content[k] for k in ("model", "split", "trained_on", "scores")))
    if not (folder / CONFIG_FILE).exists() or not (folder / STORE_FILE).exists():
        raise StoreError(
            f"{folder} holds no scores: it is neither a run nor a folder of a finished `selfemo evaluate "
            "--out`"
        )
    config = load([folder / CONFIG_FILE])
    with Store(folder / STORE_FILE, read_only=True) as store:
        for checkpoint in reversed(checkpoints(config)):
            row = store.stage(evaluation_name(checkpoint))
            if row is not None and row["status"] == "done":
                sets = [] if checkpoint == START else trained_on(str(folder))
                # Scores by data set; texts beside them say where they are from.
                record = json.loads(row["info"])
                scores = {d: s for d, s in record.items() if not isinstance(s, str)}
                return Measured(f"{folder.name} {checkpoint}", config.data.evaluated_on, sets, scores)
    raise StoreError(f"{folder} is a run without a finished evaluation; resume it first")


def published() -> dict[str, Any]:
    """The paper's values: source, table1 (rows) and table2 (rows)."""
    return tomllib.loads(files("selfemo.reports").joinpath("published.toml").read_text(encoding="utf-8"))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def table1(folders: Sequence[Path], *, intervals: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows, in per cent: the paper's rows in its order, then a row for each folder.

    A measured row has an AVG only where all three data sets of the paper were measured, so that it is the
    average that the paper gives. Further data sets get columns of their own.

    Args:
        intervals: also columns with the ends of the 95% intervals (for CSV).
    """
    found = [measured(p) for p in folders]
    sets = list(dict.fromkeys([*PAPER_SETS, *(d for m in found for d in m.scores if d != UNION)]))
    kinds = (("accuracy", "Acc."), ("weighted_f1", "W-F1"))
    header = ["Setting", "Method", "Backbone", "External-free"]
    for d in [*sets, "avg"]:
        for _, short in kinds:
            name = f"{_TITLES.get(d, d.upper() if d == 'avg' else d)} {short}"
            header.append(name)
            if intervals and d != "avg":
                header += [f"{name} low", f"{name} high"]
    header += ["Parsed", "n", "Source"]
    rows = []
    for row in published()["table1"]:
        cells = [row["setting"], row["method"], row["backbone"] or "-", row["external_free"] or "-"]
        for d in [*sets, "avg"]:
            for key, _ in kinds:
                cells.append(_percent(row.get(d, {}).get(key)))
                cells += ["", ""] if intervals and d != "avg" else []
        rows.append([*cells, "-", "-", "published"])
    for m in found:
        cells = ["measured", m.name, "-", "-"]
        for d in sets:
            for key, _ in kinds:
                value = m.scores[d][key] if d in m.scores else [None, None, None]
                value = [None if v is None else 100 * v for v in value]
                cells += [_percent(v) for v in (value if intervals else value[:1])]
        for key, _ in kinds:
            parts = [m.scores[d][key][0] for d in PAPER_SETS if d in m.scores]
            whole = len(parts) == len(PAPER_SETS) and None not in parts
            cells.append(_percent(100 * (sum(parts) / len(parts)) if whole else None))
        single = [s for d, s in m.scores.items() if d != UNION]
        n = sum(s["utterances"] for s in single)
        parsed = 100 * sum(s["parse_rate"][0] * s["utterances"] for s in single) / n
        rows.append([*cells, _percent(parsed), str(n), f"measured on {m.split}"])
    return header, rows


def cross(folders: Sequence[Path]) -> tuple[list[str], list[list[str]]]:
    """Data sets of training (rows) against data sets of evaluation (columns).

    Cells: accuracy / weighted F1 in per cent, with the split where it is not test.
    """
    found = [measured(p) for p in folders]
    sets = list(dict.fromkeys(d for m in found for d in m.scores if d != UNION))
    header = ["Trained on", "Model", *(f"on {_TITLES.get(d, d)}" for d in sets)]
    rows = []
    for m in found:
        cells = []
        for d in sets:
            s = m.scores.get(d)
            text = "-" if s is None else f"{100 * s['accuracy'][0]:.2f} / {100 * s['weighted_f1'][0]:.2f}"
            cells.append(text + (f" ({m.split})" if s is not None and m.split != "test" else ""))
        names = " + ".join(_TITLES.get(d, d) for d in m.trained_on)
        rows.append([names or "unknown or nothing", m.name, *cells])
    return header, sorted(rows, key=lambda r: r[0])
