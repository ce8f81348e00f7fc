"""The tables that `evaluate`, `evolve` and `analyse` print, as (title, header, rows): few columns each.

Files and the report have the same numbers in wider tables (summary.py, changes.py, analysis.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfemo.counting import counted
from selfemo.evaluation import overlap
from selfemo.evaluation.analysis import analysis_table
from selfemo.evaluation.changes import NLLS
from selfemo.evaluation.changes import SHOWN as CHANGED
from selfemo.evaluation.constants import MAJORITY, PRIOR
from selfemo.evaluation.jobs import Evaluation
from selfemo.evaluation.metrics import MEASURES, sign_of
from selfemo.evaluation.predictions import Comparison, Scores
from selfemo.evaluation.reading_tables import (
    BLIND_HEADER,
    CLUSTER_HEADER,
    EMOTION_HEADER,
    READING_HEADER,
    blind_tables,
    cluster_rows,
    emotion_rows,
    read_data,
    read_of_last,
    reading_rows,
)
from selfemo.evaluation.rendering import cell
from selfemo.evaluation.summary import HEADER, table_rows
from selfemo.method.types import UNION

Table = tuple[str, list[str], list[list[str]]]
_NAMES = {
    "accuracy": "accuracy", "weighted_f1": "weighted F1", "macro_f1": "macro F1", "mean_r1": "mean R1",
    "parse_rate": "parsed",
}  # fmt: skip
_CALIBRATION = {"ece": "ECE", "brier": "Brier", "nll": "NLL", "temperature": "T", "nll_tempered": "NLL at T"}
CHANGES_NOTE = (
    "Each stage against the checkpoint before it, on the same turns. * its 95% interval, over six "
    "conversations or more, leaves out 0. NLL at T, in nats, is what a model knows whatever its sureness: it "
    "falls where a stage taught something. The verdict goes by the stars of mean R1 (else accuracy) and NLL "
    "at T. summary.md has the intervals and p."
)


def evaluation_tables(evaluation: Evaluation) -> list[Table]:
    """The comparison, then the scores beside constant answers, then the classes of each data set."""
    about = evaluation.about
    tables = [_comparison(d, c, evaluation) for d, c in (evaluation.comparison or {}).items()]
    tables += [_scores(d, s, evaluation) for d, s in evaluation.scores.items()]
    if evaluation.average:
        tables.append(_average(evaluation))
    if evaluation.overlap and evaluation.overlap["conversations"]:
        tables.append(overlap.evaluation_table(evaluation.overlap, about["split"]))
    for d, s in evaluation.scores.items():
        if d != UNION:  # its classes may be of several label sets; scores.json has them
            tables += _classes(d, s)
    return tables


def _comparison(dataset: str, found: Comparison, evaluation: Evaluation) -> Table:
    majority = evaluation.compared_constants[dataset][MAJORITY]
    rows = []
    for m, d in found.measures.items():
        v, (other, mine) = d.difference, found.values[m]
        rows.append(
            [
                _NAMES[m],
                f"{v.value:+.3f}",
                f"{v.low:+.3f} to {v.high:+.3f}",
                f"{d.p_value:.4f}",
                f"{mine:.3f}",
                f"{other:.3f}",
                cell(majority[m][0]),
            ]
        )
    other_name, n = evaluation.about["compared_with"], counted(found.prompts, "prompts")
    title = f"{dataset}: difference from {other_name} on {n}"
    if found.prompts < found.of:
        title += f" of {found.of} (the others were answered by one of the two alone)"
    header = ["measure", "difference", "95% interval", "p", "this", "other", "majority"]
    return title, header, rows


def _scores(dataset: str, s: Scores, evaluation: Evaluation) -> Table:
    constant = evaluation.constants[dataset]
    rows = [
        [_NAMES[m], str(vars(s)[m]), cell(constant[MAJORITY][m]), cell(constant[PRIOR].get(m))]
        for m in MEASURES
    ]
    if s.micro_f1 is not None:
        rows.append([f"micro F1 without {s.unscored!r}", str(s.micro_f1), "-", "-"])
    for k, name in _CALIBRATION.items():
        prior = constant[PRIOR]["nll"] if k == "nll_tempered" else None
        rows.append([name, cell(s.calibration[k]), "-", cell(prior)])
    count = f"{counted(s.utterances, 'utterances')} of {counted(s.conversations, 'conversations')}"
    title = f"{dataset}, {evaluation.about['split']}: {count}, 95% intervals by conversation"
    return title, ["measure", "model", MAJORITY, PRIOR], rows


def _average(evaluation: Evaluation) -> Table:
    single = [c[MAJORITY] for d, c in evaluation.constants.items() if d != UNION]
    rows = [
        [_NAMES[m], str(v), cell(sum(c[m][0] for c in single) / len(single))]
        for m, v in (evaluation.average or {}).items()
    ]
    return "Plain average over the data sets", ["measure", "model", MAJORITY], rows


def _classes(dataset: str, s: Scores) -> list[Table]:
    kinds = {"precision": "precision", "recall": "recall", "f1": "F1", "support": "gold", "predicted": "said"}
    labels = s.confusion["labels"]
    lines = [
        [e, *(cell(v) if isinstance(v := s.classes[e][k], float) else str(v) for k in kinds)] for e in labels
    ]
    counts = [[e, *map(str, row)] for e, row in zip(labels, s.confusion["rows"], strict=True)]
    return [
        (f"{dataset}: each class", ["emotion", *kinds.values()], lines),
        (f"{dataset}: gold (rows) as what it was read (columns)", ["gold", *labels, "failed"], counts),
    ]


def run_tables(summary: Mapping[str, Any], split: str) -> list[Table]:
    """Of a run's summary: held-out scores by data set, beside constant answers; what each stage added."""
    constants = summary["constants"]
    tables = []
    for d in dict.fromkeys(d for by in summary["scores"].values() for d in by):
        found = [r for r in table_rows(summary["scores"], constants) if r[1] == d]
        # Without data and n, which the title has, and without the intervals of the last three.
        rows = [[r[0], *r[3:-3], *(c.partition(" ")[0] for c in r[-3:])] for r in found]
        n = next(by[d]["utterances"] for by in summary["scores"].values() if d in by)
        title = f"Held-out scores: {d}, {split}, {counted(n, 'utterances')}, 95% intervals by conversation"
        tables.append((title, [HEADER[0], *HEADER[3:]], rows))
    return tables + _changes(summary["changes"])


def _changes(changes: Sequence[Mapping[str, Any]]) -> list[Table]:
    tables = []
    measures = CHANGED | NLLS
    header = ["stage", "verdict", *measures.values()]
    for d in dict.fromkeys(d for c in changes for d in c["by"]):
        rows = []
        for c in changes:
            stage = c["stage"] + (" (rolled back)" if c["rolled_back"] else "")
            if c["copied"]:
                rows.append([stage, f"no refit: {c['from']} kept", *["-"] * len(measures)])
            elif by := c["by"].get(d):
                rows.append([stage, by["verdict"], *(_starred(by[m], by["conversations"]) for m in measures)])
        tables.append((f"What each stage added: {d}", header, rows))
    return tables


def _starred(change: Mapping[str, Any] | None, conversations: int) -> str:
    if change is None:
        return "-"
    star = "*" if sign_of(change["difference"], conversations) else ""
    return f"{round(change['difference'][0], 3) + 0.0:+.3f}{star}"


_ANALYSED = {
    "Entropy of each span, nats": ("parsed", "H(E)", "H(S)", "H(reply)"),
    "Round trip: does the checkpoint itself hear what it declared?": ("round trip R1", "top match"),
    "Diversity of replies, and entropy of the emotions' shares": (
        "distinct-2", "self-BLEU", "H(shares of E)", "H(shares of S)",
    ),
}  # fmt: skip


def analysis_tables(result: dict[str, Any]) -> list[Table]:
    """`analysis.analysis_table` by subject, then what each reader finds."""
    header, rows = analysis_table(result)
    tables = []
    for title, names in _ANALYSED.items():
        columns = [0, *(header.index(n) for n in names)]
        tables.append((title, [header[i] for i in columns], [[r[i] for i in columns] for r in rows]))
    for reference, reading in result["readers"].items():
        for dataset in read_data(reading):
            of = f"{dataset}, read by {reference}"
            found = reading_rows(result, reading, dataset)
            tables.append((f"Is the declared emotion found in the reply? {of}", READING_HEADER, found))
            tables += [
                (f"{title}: {of}", BLIND_HEADER, rows) for title, rows in blind_tables(reading, dataset)
            ]
            for name in read_of_last(result, reading, dataset):
                record = reading["expression"][name][dataset]
                tables.append((f"{name}, by declared emotion: {of}", EMOTION_HEADER, emotion_rows(record)))
                if by_cluster := cluster_rows(record):
                    tables.append((f"{name}, by persona cluster: {of}", CLUSTER_HEADER, by_cluster))
    return tables
