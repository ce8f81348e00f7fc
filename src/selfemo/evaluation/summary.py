"""The summary of a finished run: scores by checkpoint, what each stage added, what free changes would have
given, self-play to read.

summary.json is written last and as a whole: a run that has one is finished.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfemo.config import DataConfig
from selfemo.evaluation.changes import (
    CHANGE_HEADER,
    CHANGE_NOTE,
    change_line,
    change_rows,
    stage_changes,
    whole_change,
)
from selfemo.evaluation.constants import (
    MAJORITY,
    PRIOR,
    against_constants,
    constant_scores,
    constants_lines,
    label_shares,
)
from selfemo.evaluation.free_changes import FREE_HEADER, FREE_NOTE, free_changes, free_rows
from selfemo.evaluation.overlap import Scoring, clean_title, run_part
from selfemo.evaluation.predictions import Labels, Scores, label_sets, score
from selfemo.evaluation.rendering import cell, render
from selfemo.files import write_json, write_text
from selfemo.method.types import Conversation
from selfemo.runs.dialogues import dialogues
from selfemo.runs.folder import (
    KEEP,
    RunFolder,
    checkpoints,
    copied_checkpoints,
    evaluation_name,
    is_evaluated,
)
from selfemo.runs.inputs import load_conversations
from selfemo.runs.overlap import noted_overlap
from selfemo.runs.rollback import choice_lines, choices
from selfemo.runs.store import Store

SUMMARY_FILE = "summary.json"
Draw = Callable[[Path, Sequence[Mapping[str, Any]], Mapping[str, Mapping[str, Scores]]], Sequence[str]]
"""draw(folder, metrics of the RL rounds, scores by checkpoint and data set) draws figures in the folder and
returns their names (`reports.figures.draw`)."""
MEASURES = ("accuracy", "weighted_f1", "mean_r1", "parse_rate")
_SHOWN = ("accuracy", "weighted_f1", "macro_f1", "mean_r1", "parse_rate")
_FIT = ("temperature", "nll_tempered")


def plain(scores: Mapping[str, Mapping[str, Scores]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores by checkpoint and data set as summary.json holds them."""
    return {c: {d: s.as_dict() for d, s in by.items()} for c, by in scores.items()}


def table_rows(
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]], constants: Mapping[str, Mapping[str, Any]]
) -> list[list[str]]:
    """Rows of text of HEADER from `plain` scores: measures with their 95% intervals, T and NLL at T.

    Args:
        constants: of `constants.constant_scores`, by data set: two rows each, below the checkpoints.
    """
    rows = [
        [
            checkpoint, dataset, str(s["utterances"]), *(cell(s[m]) for m in _SHOWN),
            *(cell(s["calibration"][k]) for k in _FIT),
        ]
        for checkpoint, by_set in scores.items()
        for dataset, s in by_set.items()
    ]  # fmt: skip
    n = {d: str(s["utterances"]) for by_set in scores.values() for d, s in by_set.items()}
    for d, c in constants.items():
        rows.append([MAJORITY, d, n[d], *(cell(c[MAJORITY][m]) for m in _SHOWN), "-", "-"])
        prior = c[PRIOR]
        rows.append([PRIOR, d, n[d], *(cell(prior.get(m)) for m in _SHOWN), "-", cell(prior["nll"])])
    return rows


HEADER = [
    "checkpoint", "data", "n", "accuracy", "weighted F1", "macro F1", "mean R1", "parse rate", "T",
    "NLL at T",
]  # fmt: skip


def checkpoint_scores(
    store: Store, names: Sequence[str], labels: Labels, *, resamples: int, scoring: Scoring = score
) -> dict[str, dict[str, Scores]]:
    """Scores of a run's finished evaluations by checkpoint (those of `names`, in order) and data set.

    Args:
        scoring: `score`, or another function of the same arguments.
    """
    return {
        name: scoring(store.predictions(evaluation_name(name)), labels, resamples=resamples)
        for name in names
        if is_evaluated(store, name)
    }


def overlap_part(
    folder: Path, store: Store, names: Sequence[str], labels: Labels, resamples: int
) -> dict[str, Any] | None:
    """`overlap.run_part` of a run: its overlap, and the scores of `names` without it."""
    return run_part(
        noted_overlap(folder),
        lambda scoring: plain(checkpoint_scores(store, names, labels, resamples=resamples, scoring=scoring)),
    )


def overlap_tables(part: Mapping[str, Any] | None) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows) of the scores in an `overlap_part`; empty where there are none."""
    if part is None or not part["scores"]:
        return []
    return [(clean_title(part["data"], part["split"]), HEADER, table_rows(part["scores"], {}))]


def rl_rounds(store: Store) -> list[dict[str, Any]]:
    """The metrics of a run's rounds of RL, in order."""
    return [m for m in store.metrics() if m["stage"].endswith("-rl")]


def finish(run: RunFolder, draw: Draw | None = None) -> dict[str, Any]:
    """Write summary.json, summary.md, dialogues.txt and the figures of `draw`; return the summary."""
    config, names = run.config, checkpoints(run.config)
    conversations = load_conversations(config.data)
    labels = label_sets(conversations)
    scores = checkpoint_scores(run.store, names, labels, resamples=config.evaluation.resamples)
    last = names[-1]
    drawn = draw(run.path / "figures", rl_rounds(run.store), scores) if draw else ()
    summary: dict[str, Any] = {
        "scores": plain(scores),
        **constants_part(run.store, list(scores), labels, conversations, config.evaluation.resamples),
        "changes": stage_changes(config, run.store, labels),
        "free_changes": free_by_checkpoint(run.store, scores, labels, config.evaluation.resamples),
        "change": whole_change(run.store, labels, last) if is_evaluated(run.store, last) else None,
        "stages": [
            {"name": r["name"], "seconds": r["seconds"], **json.loads(r["info"])}
            for r in run.store.stages()
            if not r["name"].startswith(("evaluate-", KEEP))
        ],
        "choices": choices(run.store),
        "choices_said": choice_lines(config, run.store),
        "figures": list(drawn),
        "overlap": overlap_part(run.path, run.store, names, labels, config.evaluation.resamples),
    }
    write_text(run.path / "summary.md", _markdown(summary))
    write_text(run.path / "dialogues.txt", "\n\n".join(dialogues(run.store)) + "\n")
    write_json(run.path / SUMMARY_FILE, summary)
    return summary


def constants_part(
    store: Store, names: Sequence[str], labels: Labels, training: Sequence[Conversation], resamples: int
) -> dict[str, Any]:
    """Constant answers beside the scores of a run's evaluated checkpoints `names`.

    Args:
        training: conversations whose training split gives the constants.

    Returns: by data set "constants" (`constant_scores`) and "against_constants" of the last checkpoint, and
        "constants_said", sentences on it. Empty without a scored checkpoint.
    """
    if not names:
        return {"constants": {}, "against_constants": {}, "constants_said": []}
    rows = [r for r in store.predictions(evaluation_name(names[-1])) if r["dataset"] in labels]
    shares = label_shares(training, rows, labels)
    constants = constant_scores(rows, labels, shares, resamples=resamples)
    against = against_constants(rows, labels, shares)
    said = constants_lines(constants, against, f"{names[-1]} on ")
    return {"constants": constants, "against_constants": against, "constants_said": said}


def free_by_checkpoint(
    store: Store, names: Collection[str], labels: Labels, resamples: int
) -> dict[str, dict[str, Any]]:
    """`free_changes.free_changes` of a run's evaluated checkpoints; a copy of another one is left out."""
    copied = copied_checkpoints(store)
    return {
        c: free_changes(store.predictions(evaluation_name(c)), labels, resamples=resamples)
        for c in names
        if copied.get(c) not in names
    }


def _markdown(summary: Mapping[str, Any]) -> str:
    free = render(FREE_HEADER, free_rows(summary["free_changes"]), "markdown")
    said = "".join(f"{line}\n\n" for line in summary["choices_said"])
    part = summary["overlap"]
    clean = f"\n{part['line']}\n" if part else ""
    clean += "".join(f"\n{t}\n\n{render(h, r, 'markdown')}" for t, h, r in overlap_tables(part))
    return (
        f"{render(HEADER, table_rows(summary['scores'], summary['constants']), 'markdown')}\n"
        f"{' '.join(summary['constants_said'])}\n\n"
        f"## What each stage added\n\n"
        f"{render(CHANGE_HEADER, change_rows(summary['changes']), 'markdown')}\n"
        f"{CHANGE_NOTE}\n\n{said}{change_line(summary['change'])}\n\n"
        f"## What a free change of the same checkpoint would give\n\n{free}\n{FREE_NOTE}\n{clean}"
    )


def read_summary(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The summary of a finished run; None where it is missing, or (after a message) cannot be read."""
    path = folder / SUMMARY_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and "scores" in found:
            return found
        fault = "it holds no scores"
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        fault = str(e)
    say(f"{path}: cannot be read ({fault}); it is made again")
    return None


def next_commands(
    folder: Path,
    data_config: DataConfig,
    iterations: int,
    program: str,
    splits: Collection[str],
    reader: str = "",
) -> list[str]:
    """Commands to try on a finished run of so many iterations, as a shell takes them.

    Args:
        splits: those of its data; a test split that was not evaluated yet is for the end.
        reader: reward.reader, which can judge the replies.
    """
    run, data = shlex.quote(str(folder)), shlex.quote(data_config.sources[0])
    labelled = shlex.quote(str(folder / "predictions.jsonl"))  # of its own: predict replaces no other run's
    last = data_config.eval_split != "test" and "test" in splits
    commands = [
        *([f"analyse {run} --reader {shlex.quote(reader)}"] if reader else []),
        f"report {run}",
        f"predict {data} --conversations 5 --model {run} --out {labelled}",
        f"chat {run}",
        f"selfplay {run} --data {data} --prompts 4",
        f"evaluate {run}@start --data {data} --split {data_config.eval_split} --compare {run}",
        *([f"evaluate {run} --data {data} --split test"] if last else []),
        f"evolve --resume {run} --set flywheel.iterations={iterations + 1}",
    ]
    return [f"{program} {command}" for command in commands]
