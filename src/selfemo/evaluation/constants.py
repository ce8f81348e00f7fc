"""Two constant answers that any score stands beside: the majority label, and the label shares.

- majority: the most frequent label, for each utterance.
- prior: the share of each label as a distribution, for each utterance. Its top label is the majority's.

Labels are counted in the training split of the data set that is evaluated. Where there is none, they are
those of the held-out utterances themselves (`HELD_OUT`): no constant answer can score more, so that the
comparison is hard on the model. NLL is compared with each side at its own best temperature, so that a model
that tells no utterances apart gains nothing by the fit. In the union of data sets each utterance gets those
of its own data set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfemo.evaluation.free_changes import gold_share
from selfemo.evaluation.metrics import PairedDifference, mean_interval, paired_difference
from selfemo.evaluation.predictions import Labels, Rows, compare, distributions, has_beliefs, outcomes
from selfemo.evaluation.tempered import best_temperature, likelihoods, log_table, nll_at
from selfemo.method.rewards import weighted_iou
from selfemo.method.types import UNION, Conversation, EmotionDistribution, LabelSet

MAJORITY, PRIOR = "majority", "prior"
TRAINING, HELD_OUT = "training split", "held-out data"
AGAINST = {"accuracy": "accuracy", "weighted_f1": "weighted F1", "macro_f1": "macro F1", "mean_r1": "mean R1"}
_FROM = {
    TRAINING: "are those of the training split.",
    HELD_OUT: "are those of the held-out labels themselves, as no training split is known: no constant "
    "answer can do better.",
}


@dataclass(frozen=True)
class Shares:
    """How frequent each label is, over one data set.

    Attributes:
        share: one added to each count (HELD_OUT: a millionth), so that none is 0; in the label set's order.
        source: TRAINING or HELD_OUT.
    """

    share: Mapping[str, float]
    source: str

    @property
    def majority(self) -> str:
        return max(self.share, key=lambda e: self.share[e])


def label_shares(training: Sequence[Conversation], rows: Rows, labels: Labels) -> dict[str, Shares]:
    """The shares of each data set that `rows` predict.

    Args:
        training: conversations; those of split train, of the same data set and label set count.
    """
    found = {}
    for d, label_set in labels.items():
        held = [json.loads(r["gold"]) for r in rows if r["dataset"] == d]
        known = [
            dict(u.emotion)
            for c in training
            if c.split == "train" and c.dataset == d and c.label_set == label_set
            for u in c.turns
            if u.emotion is not None
        ]
        if held:
            found[d] = _shares(known or held, label_set, TRAINING if known else HELD_OUT)
    return found


def _shares(gold: Sequence[Mapping[str, float]], labels: LabelSet, source: str) -> Shares:
    counts = np.array([[y.get(e, 0.0) for e in labels] for y in gold])
    share = gold_share(counts, 1.0 if source == TRAINING else 1e-6)
    return Shares(dict(zip(labels, share.tolist(), strict=True)), source)


def answered(rows: Rows, shares: Mapping[str, Shares], which: str) -> Rows:
    """Stored predictions as they would be with MAJORITY or PRIOR in place of what the model said."""
    made = []
    for r in rows:
        of = shares[r["dataset"]]
        said = EmotionDistribution({of.majority: 1.0} if which == MAJORITY else of.share)
        r1 = weighted_iou(said, EmotionDistribution(json.loads(r["gold"])))
        told = json.dumps(dict(said))
        made.append({**r, "predicted": told, "believed": told, "failure": None, "r1": r1})
    return made  # type: ignore[return-value]


def constant_scores(
    rows: Rows, labels: Labels, shares: Mapping[str, Shares], *, resamples: int
) -> dict[str, dict[str, Any]]:
    """What the constants score on the utterances of some stored predictions, by data set and UNION.

    Returns: "label" (of the majority; "" in the UNION), "source", MAJORITY with MEASURES, and PRIOR with
        mean_r1 and nll (nats); each measure as [value, low, high].
    """
    if not rows:
        return {}
    counted = {which: outcomes(answered(rows, shares, which), labels) for which in (MAJORITY, PRIOR)}
    result = {}
    for d, o in counted[MAJORITY].items():
        mine = [r for r in rows if d in (UNION, r["dataset"])]
        nll = mean_interval(
            likelihoods(*_prior(mine, labels, shares)).tolist(),
            [r["conversation"] for r in mine],
            resamples=resamples,
        )
        r1 = counted[PRIOR][d].intervals(resamples)["mean_r1"]
        sources = {s.source for name, s in shares.items() if d in (UNION, name)}
        result[d] = {
            "label": "" if d == UNION else shares[d].majority,
            "source": HELD_OUT if HELD_OUT in sources else TRAINING,
            MAJORITY: {m: v.as_list() for m, v in o.intervals(resamples).items()},
            PRIOR: {"mean_r1": r1.as_list(), "nll": nll.as_list()},
        }
    return result


def _prior(rows: Rows, labels: Labels, shares: Mapping[str, Shares]) -> tuple[np.ndarray, np.ndarray]:
    """log share and gold of each row, as of `log_table`."""
    gold = [json.loads(r["gold"]) for r in rows]
    names = [labels[r["dataset"]].labels for r in rows]
    return log_table([shares[r["dataset"]].share for r in rows], gold, names, 0.0)


def against_constants(rows: Rows, labels: Labels, shares: Mapping[str, Shares]) -> dict[str, dict[str, Any]]:
    """A model minus the constants on the same utterances, by data set and UNION.

    Returns: of AGAINST the paired difference from the majority; "nll_at_t" that of NLL at T from the prior's
        NLL at T (nats; below 0 the model knows more; None without a distribution). "verdict" and
        "nll_verdict": "above", "not told apart" or "below" the constant, where the 95% interval says so
        (`PairedDifference.sign`); above is better in both.
    """
    if not rows:
        return {}
    result = {}
    for d, found in compare(answered(rows, shares, MAJORITY), rows, labels).items():
        mine = [r for r in rows if d in (UNION, r["dataset"])]
        nll = _nll_against(mine, labels, shares)
        result[d] = {
            **{m: _plain(found.measures[m]) for m in AGAINST},
            "nll_at_t": nll and _plain(nll),
            "verdict": _VERDICTS[found.measures["accuracy"].sign],
            "nll_verdict": nll and _VERDICTS[-nll.sign],
        }
    return result


def _nll_against(rows: Rows, labels: Labels, shares: Mapping[str, Shares]) -> PairedDifference | None:
    believed = has_beliefs(rows)
    there = [r for r in rows if r["believed" if believed else "predicted"] is not None]
    if not there:
        return None
    sides = (_prior(there, labels, shares), distributions(there, labels, believed=believed))
    prior, model = (nll_at(logs, gold, best_temperature(logs, gold)[0]).tolist() for logs, gold in sides)
    return paired_difference(prior, model, [r["conversation"] for r in there])


def _plain(found: PairedDifference) -> dict[str, Any]:
    return {"difference": found.difference.as_list(), "p_value": found.p_value}


_VERDICTS = {1: "above", 0: "not told apart", -1: "below"}


def constants_lines(
    constants: Mapping[str, Mapping[str, Any]], against: Mapping[str, Mapping[str, Any]], prefix: str = ""
) -> list[str]:
    """A sentence for each data set, whether a model beats the constants, and one on where these are from.

    Args:
        constants, against: of `constant_scores` and `against_constants`.
        prefix: before the name of each data set: of a checkpoint, say.
    """
    lines = []
    for d, change in against.items():
        label = constants[d]["label"]
        said = f"always saying {label}" if label else "the majority of each data set"
        line = f"{prefix}{d}: accuracy is {_words(change['verdict'])} {said} ({signed(change['accuracy'])})"
        if change["nll_at_t"]:
            how = _words(change["nll_verdict"], "better than", "worse than")
            line += f", NLL at T is {how} that of the label shares ({signed(change['nll_at_t'])})"
        lines.append(line + ".")
    of: dict[str, list[str]] = {}
    for d in against:
        if d != UNION:
            of.setdefault(constants[d]["source"], []).append(d)
    for source, names in of.items():
        which = f" of {', '.join(names)}" if len(of) > 1 else ""
        lines.append(f"Majority and label shares (prior){which} {_FROM[source]}")
    return lines


def _words(verdict: str, above: str = "above", below: str = "below") -> str:
    return {"above": above, "below": below, "not told apart": "not told apart from"}[verdict]


def signed(change: Mapping[str, Any]) -> str:
    """A paired difference with its interval."""
    value, low, high = (round(v, 3) + 0.0 for v in change["difference"])  # no "-0.000"
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
