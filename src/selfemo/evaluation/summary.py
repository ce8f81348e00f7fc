"""What a finished run says of itself: the table, the change from cold start, the files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfemo.evaluation.metrics import Interval, PairedDifference, paired_difference
from selfemo.evaluation.predictions import Scores, score
from selfemo.files import write_json, write_text
from selfemo.reports.figures import draw
from selfemo.runs.dialogues import dialogues
from selfemo.runs.folder import COLD, RunFolder, checkpoints, evaluation_name
from selfemo.runs.inputs import load_conversations
from selfemo.runs.store import Store

SUMMARY_FILE = "summary.json"
MEASURES = ("accuracy", "weighted_f1", "mean_r1", "parse_rate")


def scores_of(run: RunFolder) -> dict[str, dict[str, Scores]]:
    """Scores by checkpoint and data set, of the evaluations that are done."""
    known = run.store.predicted_datasets()
    sets = {
        c.dataset: c.label_set for c in load_conversations(run.config.data) if c.dataset in known
    }
    return {
        name: score(run.store, evaluation_name(name), sets, run.config)
        for name in checkpoints(run.config)
        if (row := run.store.stage(evaluation_name(name))) is not None and row["status"] == "done"
    }


def table_rows(scores: Mapping[str, Mapping[str, Scores]]) -> list[list[str]]:
    """Rows of text: checkpoint, data set, n, then each measure with its 95% interval."""
    rows = []
    for checkpoint, by_set in scores.items():
        for dataset, s in by_set.items():
            measures = [str(getattr(s, m)) for m in MEASURES]
            rows.append([checkpoint, dataset, str(s.utterances), *measures])
    return rows


HEADER = ["checkpoint", "data", "n", "accuracy", "weighted F1", "mean R1", "parse rate"]


def markdown(scores: Mapping[str, Mapping[str, Scores]]) -> str:
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    lines += ["| " + " | ".join(row) + " |" for row in table_rows(scores)]
    return "\n".join(lines) + "\n"


def r1_change(store: Store, before: str, after: str) -> PairedDifference | None:
    """Paired change of R1 on the same held-out turns, from checkpoint `before` to `after`."""

    def r1(name: str) -> dict[str, tuple[str, float]]:
        rows = store.predictions(evaluation_name(name))
        return {r["prompt"]: (r["conversation"], r["r1"]) for r in rows}

    a, b = r1(before), r1(after)
    common = [p for p in a if p in b]
    if not common:
        return None
    return paired_difference(
        [a[p][1] for p in common], [b[p][1] for p in common], [a[p][0] for p in common]
    )


def _interval(i: Interval) -> list[float]:
    return [i.value, i.low, i.high]


def finish(run: RunFolder) -> dict[str, Any]:
    """Write summary.json, summary.md, dialogues.txt and the figures; returns the summary."""
    scores = scores_of(run)
    last = checkpoints(run.config)[-1]
    change = r1_change(run.store, COLD, last) if last != COLD else None
    rounds = [m for m in run.store.metrics() if m["stage"].endswith("-rl")]
    figures = draw(run.path / "figures", rounds, scores)
    played = dialogues(run.store)
    stages = run.store.stages()
    summary: dict[str, Any] = {
        "scores": {c: {d: s.as_dict() for d, s in by.items()} for c, by in scores.items()},
        "r1_change": None
        if change is None
        else {
            "from": COLD,
            "to": last,
            "change": _interval(change.difference),
            "p_value": change.p_value,
        },
        "stages": [
            {"name": r["name"], "seconds": r["seconds"], **json.loads(r["info"])}
            for r in stages
            if not r["name"].startswith("evaluate-")
        ],
        "figures": figures,
    }
    write_text(run.path / "summary.md", markdown(scores) + "\n" + change_line(summary) + "\n")
    write_text(run.path / "dialogues.txt", "\n\n".join(played) + "\n")
    write_json(run.path / SUMMARY_FILE, summary)  # the last: it says that the run is done
    return summary


def change_line(summary: Mapping[str, Any]) -> str:
    """The change of mean R1 from cold start to the last iteration, in words."""
    change = summary["r1_change"]
    if change is None:
        return "Mean R1: nothing to compare."
    value, low, high = change["change"]
    return (
        f"Mean R1 from {change['from']} to {change['to']}: {value:+.3f} "
        f"[{low:+.3f}, {high:+.3f}], p = {change['p_value']:.3f} (paired, by conversation)"
    )


def next_commands(folder: Path, dataset_specs: Sequence[str]) -> list[str]:
    data = dataset_specs[0]
    return [
        f"selfemo selfplay {folder} --data {data} --prompts 4",
        f"selfemo predict {data} --model {folder} --out predictions.jsonl",
        f"selfemo evaluate {folder} --data {data} --split dev",
        f"selfemo evolve --resume {folder} --set flywheel.iterations=3",
    ]
