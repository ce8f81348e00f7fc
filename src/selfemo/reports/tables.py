"""Table 1 with published and measured rows, and the table of data sets of training against evaluation.

The published values are in published.toml, copied from the paper. They are marked as published and are never
mixed with measured values.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from selfemo.config import load
from selfemo.counting import counted
from selfemo.errors import StoreError
from selfemo.evaluation.constants import HELD_OUT, MAJORITY
from selfemo.evaluation.jobs import SCORES_FILE, trained_on
from selfemo.evaluation.summary import read_summary
from selfemo.method.types import UNION
from selfemo.runs.folder import CONFIG_FILE, START, checkpoints, evaluation_name
from selfemo.runs.store import STORE_FILE, Store

PAPER_SETS = ("iemocap", "meld", "emorynlp")
_TITLES = {"iemocap": "IEMOCAP", "meld": "MELD", "emorynlp": "EmoryNLP"}


@dataclass(frozen=True)
class Measured:
    """One evaluated model and its scores (`Scores.as_dict`) by data set.

    Attributes:
        constants: what constant answers score (`constants.constant_scores`) by data set; empty where that is
            not known.
        identity: a text that is the same for one model under the same settings.
        saw: modalities, context and the data that its epoch was chosen on; "-" where that is not known.
        kind: of a baseline, whether one model was trained for all data sets; "" of others.
    """

    name: str
    split: str
    trained_on: Sequence[str]
    scores: Mapping[str, Mapping[str, Any]]
    constants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    identity: str = ""
    saw: str = "T, past, -"
    kind: str = ""

    @property
    def single(self) -> dict[str, Mapping[str, Any]]:
        """The scores without those of the union."""
        return {d: s for d, s in self.scores.items() if d != UNION}


@contextmanager
def written_by(command: str, path: Path) -> Iterator[Any]:
    """The content of a JSON file that a command wrote.

    Raises:
        StoreError: the file cannot be read, or the block finds that it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise StoreError(f"{path}: cannot be read ({why}); `{command}` makes it") from None
    try:
        yield content
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise StoreError(f"{path}: not what `{command}` writes ({e!r}); run it again") from None


def measured(folder: Path) -> Measured:
    """The scores in a folder of `selfemo evaluate --out` or of a baseline, or of a run's last checkpoint that
    was evaluated. Prompts of evaluations and runs have nothing later than the turn that is read.

    Raises:
        StoreError: there are none, or they cannot be read.
    """
    file = folder / SCORES_FILE
    if file.exists():
        with written_by("selfemo evaluate --out", file) as content:
            name, split, trained, scores = (content[k] for k in ("model", "split", "trained_on", "scores"))
            identity = "; ".join(content.get(f"evaluated_{k}", "") for k in ("model", "settings"))
            saw, kind = Measured.saw, ""
            if "baseline" in content:
                saw, limit = what_baseline_saw(content), content.get("train_conversations", 0)
                kind = "unified" if len(trained) > 1 else "dataset-specific"
                kind += f", {counted(limit, 'training conversations')} a data set" if limit else ""
                identity += f"; {kind}" + (f" {trained}" if len(trained) > 1 else "")
            constants = content.get("constants", {})
            return Measured(name, split, trained, scores, constants, identity, saw, kind)
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
                constants = (read_summary(folder, lambda _: None) or {}).get("constants", {})
                name = f"{folder.name} {checkpoint}"
                return Measured(name, config.data.evaluated_on, sets, scores, constants, str(folder))
    raise StoreError(f"{folder} is a run without a finished evaluation; resume it first")


def what_baseline_saw(content: Mapping[str, Any]) -> str:
    """Modalities, context and what chose the epoch, from a baseline's scores.json; "-" of constant answers.

    Where all of dev is scored, a part of the training split chooses (`baseline_jobs.parts_of`).
    """
    if not content.get("reads", True):
        return "-"
    context = "both" if content["sees_later"] else "past"
    return f"T, {context}, {'train' if content['split'] == 'dev' else 'dev'}"


def merged(found: Sequence[Measured]) -> list[Measured]:
    """One for each model, split and settings, in order: folders of one data set each become one row.

    A data set that a model was evaluated on twice begins a row of its own.
    """
    rows: list[Measured] = []
    for m in found:
        same = (
            k
            for k, r in enumerate(rows)
            if (r.name, r.split, r.identity) == (m.name, m.split, m.identity)
            and not r.single.keys() & m.single
        )
        if (at := next(same, None)) is None:
            rows.append(m)
            continue
        old = rows[at]
        rows[at] = replace(
            old,
            scores={**old.single, **m.single},
            constants={**old.constants, **m.constants},
            trained_on=list(dict.fromkeys([*old.trained_on, *m.trained_on])),
        )
    return rows


def published() -> dict[str, Any]:
    """The paper's values: source, table1 (rows) and table2 (rows)."""
    return tomllib.loads(files("selfemo.reports").joinpath("published.toml").read_text(encoding="utf-8"))


def _saw(saw: Mapping[str, str]) -> str:
    """A published row's `saw` in words: "T, both, dev"."""
    seen = ", ".join(saw[k] for k in ("modalities", "context", "selection"))
    return f"{seen}; {saw['note']}" if "note" in saw else seen


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


_KINDS = {"accuracy": "Acc.", "weighted_f1": "W-F1"}
Intervals = Literal["none", "columns", "cells"]
"""Where the ends of 95% intervals stand: nowhere, in columns of their own, or behind the value."""


def table1(folders: Sequence[Path], *, intervals: Intervals = "none") -> tuple[list[str], list[list[str]]]:
    """Header and rows, in per cent: the paper's rows in its order, then a row for each model.

    Folders of one model are one row (`merged`). Below it stands what always saying the most frequent label
    scores on the same turns. A measured row has an AVG only where all three data sets of the paper were
    measured, so that it is the average that the paper gives. Further data sets get columns of their own. The
    first column says which rows are not of the test split, as the published ones are, and of baselines
    whether one model was trained for all data sets. "Saw" has modalities (text, audio, video), context
    ("both" with later turns) and the split that the epoch was chosen by.
    """
    found = merged([measured(p) for p in folders])
    sets = list(dict.fromkeys([*PAPER_SETS, *(d for m in found for d in m.single)]))
    header = ["Setting", "Method", "Backbone", "External-free", "Saw"]
    for d in [*sets, "avg"]:
        for short in _KINDS.values():
            name = f"{_TITLES.get(d, d.upper() if d == 'avg' else d)} {short}"
            header.append(name)
            if intervals == "columns" and d != "avg":
                header += [f"{name} low", f"{name} high"]
    header += ["Parsed", "n", "Source"]
    rows = []
    for row in published()["table1"]:
        named = [row["setting"], row["method"], row["backbone"] or "-", row["external_free"] or "-"]
        cells = [*named, _saw(row["saw"])]
        known = {d: {k: [v / 100, None, None] for k, v in row[d].items()} for d in sets if d in row}
        avg = [_percent(row.get("avg", {}).get(k)) for k in _KINDS]
        rows.append([*cells, *_cells(known, sets, intervals), *avg, "-", "-", "published"])
    for m in found:
        n = sum(s["utterances"] for s in m.single.values())
        parsed = 100 * sum(s["parse_rate"][0] * s["utterances"] for s in m.single.values()) / n
        split = "" if m.split == "test" else m.split
        setting, plain = (", ".join(filter(None, ("measured", *of))) for of in ((m.kind, split), (split,)))
        end = [str(n), f"measured on {m.split}"]
        cells = [*_cells(m.single, sets, intervals), *_average(m.single)]
        rows.append([setting, m.name, "-", "-", m.saw, *cells, _percent(parsed), *end])
        if constant := _majority(m):
            said = [plain, "majority label", "-", "-", "-"]
            cells = [*_cells(constant, sets, intervals), *_average(constant)]
            line = [*said, *cells, "100.00", end[0], f"{_sources(m)}, on {m.split}"]
            if line not in rows:
                rows.append(line)
    return header, rows


def _majority(m: Measured) -> dict[str, Mapping[str, Any]]:
    """Scores of the most frequent label by data set; of older folders those of the held-out data's own."""
    found: dict[str, Mapping[str, Any]] = {}
    for d, s in m.single.items():
        if d in m.constants:
            found[d] = m.constants[d][MAJORITY]
        elif "gold_share" in s:  # precision is its share, recall is 1
            share = max(s["gold_share"].values())
            found[d] = {
                "accuracy": [share, None, None],
                "weighted_f1": [2 * share**2 / (1 + share), None, None],
            }
    return found


def _sources(m: Measured) -> str:
    known = (m.constants[d]["source"] if d in m.constants else HELD_OUT for d in m.single)
    return "labels of the " + " and the ".join(dict.fromkeys(known))


def _cells(scores: Mapping[str, Mapping[str, Any]], sets: Sequence[str], intervals: Intervals) -> list[str]:
    cells = []
    for d in sets:
        for key in _KINDS:
            value = scores.get(d, {}).get(key, [None, None, None])
            v, low, high = (None if x is None else 100 * x for x in value)
            cells.append(_percent(v))
            if intervals == "cells" and low is not None and high is not None:
                cells[-1] += f" [{low:.2f}, {high:.2f}]"
            elif intervals == "columns":
                cells += ["" if x is None else _percent(x) for x in (low, high)]
    return cells


def _average(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    whole = all(d in scores for d in PAPER_SETS)
    parts = {k: [scores[d][k][0] for d in PAPER_SETS] if whole else [] for k in _KINDS}
    return [_percent(100 * sum(p) / len(p) if p and None not in p else None) for p in parts.values()]


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
