"""What each stage of a run added: its checkpoint against the one before, on the same held-out utterances.

"Surer, not better" (SPEC section 9): the scores of what a model writes rise when it is sharpened, and NLL at
T does not fall. So each stage has a verdict from both. Intervals and p are by conversation; a change counts
where its 95% interval leaves out 0 (`PairedDifference.sign`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from selfemo.config import Config
from selfemo.errors import DataError
from selfemo.evaluation.free_changes import shifted_nll
from selfemo.evaluation.metrics import PairedDifference, paired_difference
from selfemo.evaluation.predictions import Comparison, Labels, Rows, compare, distributions, has_beliefs
from selfemo.evaluation.tempered import best_temperature, nll_at
from selfemo.method.types import UNION
from selfemo.runs.folder import (
    COLD,
    START,
    checkpoints,
    copied_checkpoints,
    evaluation_name,
    is_evaluated,
    policy_name,
    refit_name,
)
from selfemo.runs.rollback import choices
from selfemo.runs.store import Store

SHOWN = {"accuracy": "accuracy", "weighted_f1": "weighted F1", "macro_f1": "macro F1", "mean_r1": "mean R1"}
"""Measures of a change, with their names in tables; NLL at T stands beside them."""
VERDICTS = {
    (1, 1): "better",
    (1, 0): "surer, not better",
    (1, -1): "surer, not better",
    (0, 1): "knows more, scores the same",
    (0, 0): "no change beyond noise",
    (0, -1): "knows less, scores the same",
    (-1, 1): "scores lower, knows more",
    (-1, 0): "scores lower, knows the same",
    (-1, -1): "worse",
}
"""By the sign of the change of the scores, and of what the model knows: +1 where NLL at T falls."""
_SCORES = {1: "scores higher", 0: "no change beyond noise", -1: "scores lower"}
COPIED = "no refit: the policy after RL is kept"


@dataclass(frozen=True)
class Step:
    """A stage, and the checkpoints before and after it.

    Attributes:
        copied: the second is a copy of the first.
        rolled_back: the run went on from the first.
    """

    name: str
    before: str
    after: str
    copied: bool = False
    rolled_back: bool = False


@dataclass(frozen=True)
class NllChange:
    """The change of NLL at T (nats; a fall is a gain), each side at its own best temperature.

    Attributes:
        believed: of label probabilities; else of what was written, on utterances that both sides parsed.
        utterances: how many have a distribution on both sides.
    """

    change: PairedDifference
    before: float
    after: float
    temperatures: tuple[float, float]
    believed: bool
    utterances: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "difference": self.change.difference.as_list(),
            "p_value": self.change.p_value,
            "before": self.before,
            "after": self.after,
            "temperatures": list(self.temperatures),
            "believed": self.believed,
            "utterances": self.utterances,
        }


def nll_change(before: Rows, after: Rows, labels: Labels) -> NllChange | None:
    """The paired change of NLL at T on the utterances that two evaluations have in common.

    T of each side is fitted once, on all these utterances. The interval is a bootstrap over conversations of
    the utterances' NLL at that fixed T, and p flips signs by conversation (`metrics.paired_difference`): the
    uncertainty of T itself, one number from all utterances, is left out.

    Returns: None where no utterance has a distribution on both sides.
    """
    first_rows, second_rows, believed = _both(before, after, labels)
    if not first_rows:
        return None

    def tempered(rows: Rows) -> tuple[float, np.ndarray]:
        logs, gold = distributions(rows, labels, believed=believed)
        temperature, _ = best_temperature(logs, gold)
        return temperature, nll_at(logs, gold, temperature)

    (t, first), (u, second) = tempered(first_rows), tempered(second_rows)
    change = paired_difference(first.tolist(), second.tolist(), [r["conversation"] for r in first_rows])
    return NllChange(change, float(first.mean()), float(second.mean()), (t, u), believed, len(first))


Sides = tuple[np.ndarray, np.ndarray, list[str]]
"""A value of each of n utterances before (n,) and after (n,), and their conversations."""


def shifted_sides(before: Rows, after: Rows, dataset: str, labels: Labels) -> Sides | None:
    """NLL at T after a prior shift (`free_changes.shifted_nll`) of a data set's utterances, each side alone.

    Returns: None where a side holds no label probabilities, or all is of one conversation.
    """
    a, b, believed = _both(before, after, {dataset: labels[dataset]})
    if not believed:
        return None
    first, second = (shifted_nll(rows, labels[dataset]) for rows in (a, b))
    if first is None or second is None:
        return None
    return first, second, [r["conversation"] for r in a]


def shifted_change(parts: Sequence[Sides | None]) -> dict[str, Any] | None:
    """The paired change of NLL at T after a prior shift: a stage that only moves what a model says most, or
    how sure it is, changes nothing; one that tells utterances apart lowers it.

    Args:
        parts: `shifted_sides` of each data set.

    Returns: "difference", "p_value", "before", "after", nats; None where a part is.
    """
    known = [p for p in parts if p is not None]
    if not known or len(known) < len(parts):
        return None
    first, second = (np.concatenate([p[k] for p in known]) for k in (0, 1))
    change = paired_difference(first.tolist(), second.tolist(), [c for p in known for c in p[2]])
    means = {"before": float(first.mean()), "after": float(second.mean())}
    return {"difference": change.difference.as_list(), "p_value": change.p_value, **means}


def _both(before: Rows, after: Rows, labels: Labels) -> tuple[Rows, Rows, bool]:
    """The rows of two evaluations, utterance by utterance, where both have a distribution; whether that is
    of label probabilities, or of what was written."""
    a = {r["prompt"]: r for r in before if r["dataset"] in labels}
    pairs = [(a[r["prompt"]], r) for r in after if r["prompt"] in a]
    believed = has_beliefs([x for x, _ in pairs]) and has_beliefs([y for _, y in pairs])
    key: Literal["believed", "predicted"] = "believed" if believed else "predicted"
    pairs = [(x, y) for x, y in pairs if x[key] is not None and y[key] is not None]
    return [x for x, _ in pairs], [y for _, y in pairs], believed and bool(pairs)


def belief_changes(before: Rows, after: Rows, labels: Labels) -> dict[str, dict[str, Any]]:
    """`NllChange.as_dict` of beliefs by data set, each data set at its own best temperatures; no UNION.

    Raises:
        DataError: a data set has no utterance with label probabilities on both sides.
    """
    found = {}
    for d, labels_of in labels.items():
        change = nll_change(before, after, {d: labels_of})
        if change is None or not change.believed:
            raise DataError(
                f"{d}: the evaluations hold no label probabilities to compare; keep them with "
                "evaluation.beliefs = true, by an engine that can tell them, and let prompts fit "
                "prompt.max_tokens"
            )
        found[d] = change.as_dict()
    return found


def verdict(r1: PairedDifference, accuracy: PairedDifference, nll: PairedDifference | None) -> str:
    """The words of VERDICTS for a change: scores by R1, or by accuracy where R1 did not change."""
    scores = r1.sign or accuracy.sign
    if nll is None:
        return f"{_SCORES[scores]}; NLL at T is not known"
    return VERDICTS[scores, -nll.sign]


def steps(config: Config, store: Store) -> list[Step]:
    """The stages of a run whose checkpoint was scored, each with the scored checkpoint before it."""
    scored = [c for c in checkpoints(config) if is_evaluated(store, c)]
    copied, found = copied_checkpoints(store), []
    undone = {c["trained"] for c in choices(store) if c["rolled_back"]}
    if START in scored and COLD in scored:
        found.append(Step("cold start (labels)", START, COLD))
    before = COLD
    for i in range(1, config.flywheel.iterations + 1):
        name = f"iteration-{i}"
        policy, refitted = policy_name(name), refit_name(name)
        kept = before if policy in undone else policy
        if policy in scored and before in scored:
            found.append(Step(f"RL {i}", before, policy, rolled_back=policy in undone))
        if refitted in scored:
            found.append(Step(f"refit {i}", kept, refitted, rolled_back=refitted in undone))
        elif name in scored and policy in scored:
            found.append(Step(f"refit {i}", kept, name, copied.get(name) == kept))
        elif name in scored and before in scored:  # of a run of an earlier version
            found.append(Step(f"RL and refit {i}", before, name))
        before = name
    return found


def change_record(before: Rows, after: Rows, labels: Labels) -> dict[str, Any]:
    """The changes between two evaluations by data set and UNION: SHOWN, "nll_at_t", "nll_shifted", "verdict",
    counts."""
    found, result = compare(before, after, labels), {}
    sides = {d: shifted_sides(before, after, d, labels) for d in found if d != UNION}
    for d, comparison in found.items():
        mine = labels if d == UNION else {d: labels[d]}
        shifted = shifted_change(list(sides.values()) if d == UNION else [sides[d]])
        result[d] = _record(comparison, nll_change(before, after, mine), shifted)
    return result


def _record(found: Comparison, nll: NllChange | None, shifted: dict[str, Any] | None) -> dict[str, Any]:
    m = found.measures
    shown = {k: {"difference": m[k].difference.as_list(), "p_value": m[k].p_value} for k in SHOWN}
    return {
        "utterances": found.prompts,
        "conversations": found.conversations,
        **shown,
        "nll_at_t": None if nll is None else nll.as_dict(),
        "nll_shifted": shifted,
        "verdict": verdict(m["mean_r1"], m["accuracy"], None if nll is None else nll.change),
    }


def stage_changes(config: Config, store: Store, labels: Labels) -> list[dict[str, Any]]:
    """What each stage of a run added, as summary.json holds it.

    Returns: of each stage its name, "from", "to", "copied", "rolled_back", and "by" data set its
        `change_record`, which is empty for a copy.
    """
    result = []
    for step in steps(config, store):
        before, after = (store.predictions(evaluation_name(c)) for c in (step.before, step.after))
        by = {} if step.copied or not labels else change_record(before, after, labels)
        place = {"from": step.before, "to": step.after, "copied": step.copied}
        place["rolled_back"] = step.rolled_back
        result.append({"stage": step.name, **place, "by": by})
    return result


def whole_change(store: Store, labels: Labels, after: str) -> dict[str, Any] | None:
    """What a run added to its cold start: "from", "to" and the `change_record` of all data sets together.

    Args:
        after: a scored checkpoint.

    Returns: None where the cold start has no scores, is `after` or comes behind it, or
        shares no turn with it.
    """
    if after in (START, COLD) or not labels or not is_evaluated(store, COLD):
        return None
    cold, trained = (store.predictions(evaluation_name(c)) for c in (COLD, after))
    if not {r["prompt"] for r in cold} & {r["prompt"] for r in trained}:
        return None
    by = change_record(cold, trained, labels)
    return {"from": COLD, "to": after, **by[UNION if UNION in by else next(iter(by))]}


def change_line(change: Mapping[str, Any] | None) -> str:
    """One line of text on a `whole_change`: its verdict, and what stands behind that."""
    if change is None:
        return "Only one trained checkpoint was evaluated: there is no change to report."
    ends = "{} {} ({before:.3f} to {after:.3f})"
    nlls = [ends.format(name, _cell(c), **c) for m, name in NLLS.items() if (c := change[m])]
    scores = [f"{SHOWN[m]} {_cell(change[m])}" for m in ("accuracy", "mean_r1")]
    parts = [scores[0], *nlls, scores[1]]
    return f"From {change['from']} to {change['to']}: {change['verdict']}; {', '.join(parts)}"


NLLS = {"nll_at_t": "NLL at T", "nll_shifted": "NLL at T, prior shift"}
CHANGE_HEADER = ["stage", "data", "verdict", *SHOWN.values(), *NLLS.values()]
CHANGE_NOTE = (
    "Each stage against the checkpoint before it, on the same utterances: change, 95% interval "
    "(bootstrap) and p (sign flips) by conversation; verdicts go by the interval, and near its edge p may "
    "differ. NLL at T, in nats, is what a model knows whatever its sureness, each side at its own best "
    "temperature: it falls where a stage taught something. After a prior shift (one bias a label, fitted "
    "on the other half of the conversations) it is what a model knows whatever it says most, too: it "
    "falls where a stage taught to tell utterances apart."
)


def change_rows(changes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of text of CHANGE_HEADER, from `stage_changes`."""
    rows = []
    for c in changes:
        if c["copied"]:
            why = COPIED if c.get("from", "-rl").endswith("-rl") else f"no refit: {c['from']} is kept"
            rows.append([c["stage"], "", why, *["-"] * (len(SHOWN) + len(NLLS))])
        for d, by in c["by"].items():
            cells = [_cell(by[m]) for m in (*SHOWN, *NLLS)]
            undone = "; rolled back" if c.get("rolled_back") else ""
            rows.append([c["stage"], d, by["verdict"] + undone, *cells])
    return rows


def _cell(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return "-"
    value, low, high = (round(v, 3) + 0.0 for v in change["difference"])  # no "-0.000"
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}] p={change['p_value']:.3f}"
