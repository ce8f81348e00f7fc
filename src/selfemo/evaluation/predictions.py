"""Predictions and scores of a model on held-out conversations (SPEC section 7).

There is one prompt per gold utterance, without the turns after it. Decoding is greedy. The emotion with the
largest weight is the prediction. A completion that does not parse is an error, counted by kind. The store
keeps each prediction as it is made, so an evaluation that was stopped goes on.

An endpoint gets the same chat messages as a local model, and its answer is parsed in the same way, without a
repair question [ours]: each score of table 1 rests on one answer to one prompt.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from selfemo.config import Config, EvalConfig, PromptConfig
from selfemo.errors import DataError, EndpointError, UnsupportedError
from selfemo.evaluation import metrics
from selfemo.evaluation.tempered import BELIEF_FLOOR, best_temperature, log_table
from selfemo.method.parsing import parse, parse_recognition
from selfemo.method.prompts import Fitted, conversation_prompts, fit, messages
from selfemo.method.rewards import weighted_iou
from selfemo.method.types import (
    UNION,
    Completion,
    Conversation,
    EmotionDistribution,
    FailureKind,
    LabelSet,
    ParseFailure,
    Prompt,
)
from selfemo.models.generation.chat import ChatRequest, ExpertSpec
from selfemo.models.generation.endpoint import estimate_tokens
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.sampler import Sampler
from selfemo.progress import StopRequest
from selfemo.runs.store import PredictionRow, Store, read_distribution
from selfemo.stages.experts import Question, Reply, ask_experts, without_thoughts

OnDone = Callable[[int], None]
Rows = Sequence[PredictionRow]
Labels = Mapping[str, LabelSet]
"""The label set of each data set, by its name."""


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one gold utterance: a distribution, or a failure; and the text it wrote.

    `believed` is the probability of each label after "E:", whatever was written; None where not taken.
    """

    prompt: Prompt
    predicted: EmotionDistribution | None
    failure: FailureKind | None
    text: str = ""
    believed: EmotionDistribution | None = None


@dataclass(frozen=True)
class Scores:
    """Scores over one data set (or the union): 95% intervals are clustered by conversation.

    Attributes:
        failures: predictions without an emotion, by kind.
        classes: precision, recall, f1, support and predicted of each class (`metrics.class_report`).
        confusion: "labels" (k) and "rows" (k, k + 1): gold by predicted, the last column failed.
        calibration: `calibration_of` the predictions.
        micro_f1: over all labels but `unscored`, for a data set whose papers report that; else None.
    """

    utterances: int
    conversations: int
    accuracy: metrics.Interval
    weighted_f1: metrics.Interval
    macro_f1: metrics.Interval
    mean_r1: metrics.Interval
    parse_rate: metrics.Interval
    failures: dict[str, int]
    predicted_share: dict[str, float]
    gold_share: dict[str, float]
    classes: dict[str, dict[str, float]]
    confusion: dict[str, Any]
    calibration: dict[str, Any]
    unscored: str = ""
    micro_f1: metrics.Interval | None = None

    def as_dict(self) -> dict[str, Any]:
        held = dict(vars(self))
        if self.micro_f1 is None:
            del held["unscored"], held["micro_f1"]
        return {k: v.as_list() if isinstance(v, metrics.Interval) else v for k, v in held.items()}


def predict(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    evaluation: EvalConfig,
    prompt: PromptConfig,
    on_done: OnDone | None = None,
    *,
    beliefs: bool = False,
) -> list[Prediction]:
    """Greedy predictions for prompts, in their order, made as `evaluation.span` says.

    Args:
        beliefs: also the probability of each label; for a format without reasoning.

    Raises:
        UnsupportedError: the sampler cannot tell the probabilities that span "probabilities" or `beliefs`
            needs.
    """
    fits = {p.id: fit(p, sampler.encode, prompt.max_tokens, prompt.reasoning) for p in prompts}
    fitted = {i: f for i, f in fits.items() if f is not None}
    probable = evaluation.span == "probabilities"
    believed = _believed(sampler, list(fitted.values())) if beliefs or probable else {}
    if probable:
        found = {
            i: Prediction(fitted[i].prompt, d, None, f"E: {d.top(fitted[i].prompt.label_set)}")
            for i, d in believed.items()
        }
        if on_done:
            on_done(len(found))
    else:
        whole = evaluation.span == "all"
        settings = SamplingSettings(
            max_new_tokens=evaluation.max_new_tokens,
            temperature=0.0,
            max_lines=0 if whole else (1 if prompt.reasoning == "none" else 2),
            token_budget=evaluation.token_budget,
            no_repeat_ngram=evaluation.no_repeat_ngram,
        )
        asked = [p for p in prompts if p.id in fitted]
        requests = [Request(fitted[p.id].ids, share=p.conversation_id) for p in asked]
        completions = sampler.generate(requests, settings, on_done)
        found = {
            p.id: read_prediction(p, c[0].text, c[0].finished, whole=whole)
            for p, c in zip(asked, completions, strict=True)
        }
    made = (found.get(p.id) or Prediction(p, None, FailureKind.TOO_LONG) for p in prompts)
    return [replace(p, believed=believed.get(p.prompt.id)) for p in made]


def _believed(sampler: Sampler, fitted: Sequence[Fitted]) -> dict[str, EmotionDistribution]:
    """The probability of each label after "E:", by prompt id, without a completion."""
    found: dict[str, EmotionDistribution] = {}
    for labels in dict.fromkeys(f.prompt.label_set for f in fitted):
        asked = [f for f in fitted if f.prompt.label_set == labels]
        places = [(f.prompt.conversation_id, f.ids, "E:") for f in asked]
        read = sampler.label_probabilities(places, labels)
        found.update((f.prompt.id, d) for f, d in zip(asked, read, strict=True))
    return found


def read_prediction(prompt: Prompt, text: str, finished: bool = True, *, whole: bool) -> Prediction:
    """Parse a completion of a prompt: the `whole` of it, or its E line alone."""
    labels = prompt.label_set
    read = parse(text, labels, finished=finished) if whole else parse_recognition(text, labels)
    if isinstance(read, ParseFailure):
        return Prediction(prompt, None, read.kind, text)
    return Prediction(prompt, read.emotion if isinstance(read, Completion) else read, None, text)


def gold_prompts(conversations: Sequence[Conversation]) -> list[Prompt]:
    """One prompt per gold utterance, without the turns after it; raises DataError where there is none."""
    prompts = [p for c in conversations for p in conversation_prompts(c)]
    if not prompts:
        raise DataError("no utterance of the held-out conversations has a gold emotion")
    return prompts


def _missing(prompts: Sequence[Prompt], store: Store, name: str, on_done: OnDone | None) -> list[Prompt]:
    """The prompts without a prediction in the store; `on_done` is told how many have one."""
    if (done := store.predicted_prompts(name)) and on_done:
        on_done(len(done))
    return [p for p in prompts if p.id not in done]


def keep(store: Store, name: str, predictions: Iterable[Prediction]) -> None:
    """Add predictions to the store of an evaluation, all or none of them."""
    with store.transaction():
        store.add_predictions(
            (
                name,
                p.prompt.id,
                p.prompt.dataset,
                p.prompt.conversation_id,
                json.dumps(dict(p.prompt.target or {})),
                None if p.predicted is None else json.dumps(dict(p.predicted)),
                p.failure,
                weighted_iou(p.predicted, p.prompt.target) if p.prompt.target else 0.0,
                p.text,
                None if p.believed is None else json.dumps(dict(p.believed)),
            )
            for p in predictions
        )


def evaluate(
    sampler: Sampler,
    conversations: Sequence[Conversation],
    store: Store,
    name: str,
    evaluation: EvalConfig,
    prompt: PromptConfig,
    on_done: OnDone | None = None,
) -> str:
    """Predict what the store does not hold yet under `name`; `on_done` may raise to stop after a chunk.

    Returns:
        Why label probabilities were left out though `evaluation.beliefs` asks for them; else "".
    """
    missing, refused = _missing(gold_prompts(conversations), store, name, on_done), ""
    beliefs = evaluation.beliefs and prompt.reasoning == "none"
    for start in range(0, len(missing), sampler.chunk):
        part = missing[start : start + sampler.chunk]
        try:
            chunk = predict(sampler, part, evaluation, prompt, beliefs=beliefs and not refused)
        except UnsupportedError as e:
            if not beliefs or refused or evaluation.span == "probabilities":
                raise
            refused = f"label probabilities are left out: {e}"
            chunk = predict(sampler, part, evaluation, prompt)
        keep(store, name, chunk)
        if on_done:
            on_done(len(chunk))
    return refused


def evaluate_checkpoint(
    sampler: Sampler,
    conversations: Sequence[Conversation],
    store: Store,
    name: str,
    config: Config,
    on_done: OnDone | None = None,
) -> dict[str, Any]:
    """`evaluate` for a stage of a run; returns `score` as plain values; "note": what `evaluate` says."""
    note = evaluate(sampler, conversations, store, name, config.evaluation, config.prompt, on_done)
    rows, resamples = store.predictions(name), config.evaluation.resamples
    scores = score(rows, label_sets(conversations), resamples=resamples)
    return {d: s.as_dict() for d, s in scores.items()} | ({"note": note} if note else {})


def evaluate_endpoint(
    spec: ExpertSpec,
    conversations: Sequence[Conversation],
    store: Store,
    name: str,
    evaluation: EvalConfig,
    prompt: PromptConfig,
    on_done: OnDone | None = None,
    *,
    stop: StopRequest,
) -> None:
    """`evaluate` a model behind an OpenAI-compatible endpoint; answers are kept as they come.

    Lengths are estimated (`estimate_tokens`), since the endpoint's tokenizer is not at hand.

    Raises:
        EndpointError: the endpoint cannot be used, or left prompts without an answer; a second run asks
            for those alone.
        Stopped: `stop` was asked for; the questions under way were answered and kept.
    """
    whole = evaluation.span == "all"
    missing = _missing(gold_prompts(conversations), store, name, on_done)
    by_id, unanswered = {p.id: p for p in missing}, 0

    def answered(prediction: Prediction) -> None:
        keep(store, name, [prediction])
        if on_done:
            on_done(1)

    def encode(chat: list[dict[str, str]]) -> range:
        return range(estimate_tokens(ChatRequest(chat, {}, 0)))

    def questions() -> Iterator[Question[Prediction]]:
        for p in missing:
            if stop.asked:
                return
            if (fitted := fit(p, encode, prompt.max_tokens, prompt.reasoning)) is None:
                answered(Prediction(p, None, FailureKind.TOO_LONG))
                continue
            yield Question(
                p.id,
                messages(fitted.prompt, prompt.reasoning),
                {},
                lambda text, p=p: read_prediction(p, without_thoughts(text), whole=whole),  # type: ignore[misc]
                evaluation.max_new_tokens,
            )

    def on_reply(question: Question[Prediction], reply: Reply[Prediction]) -> None:
        nonlocal unanswered
        if reply.value is not None:
            answered(reply.value)
        elif reply.kind == FailureKind.REFUSED:
            answered(Prediction(by_id[reply.item], None, FailureKind.REFUSED, reply.detail))
        else:
            unanswered += 1

    ask_experts(questions(), [spec], store, "evaluate", on_reply, rounds=1)
    stop.check()
    if unanswered:
        raise EndpointError(
            f"{spec.name} left {unanswered} of {len(missing)} prompts without an answer; run the same "
            "command again to ask for them"
        )


def label_sets(conversations: Sequence[Conversation]) -> dict[str, LabelSet]:
    """The label set of each data set."""
    return {c.dataset: c.label_set for c in conversations}


def outcomes(rows: Rows, labels: Labels) -> dict[str, metrics.Outcomes]:
    """Stored predictions counted by data set; UNION when there are several.

    UNION is weighted by utterance; its F1 treats equal names of two label sets as one class.
    """
    parts = {
        d: (mine, s.labels) for d, s in labels.items() if (mine := [r for r in rows if r["dataset"] == d])
    }
    if len(parts) > 1:
        every = tuple(dict.fromkeys(e for _, classes in parts.values() for e in classes))
        parts[UNION] = ([r for mine, _ in list(parts.values()) for r in mine], every)
    return {d: _count(mine, labels, classes) for d, (mine, classes) in parts.items()}


def tops(row: PredictionRow, labels: Labels) -> tuple[str, str]:
    """Top gold and predicted emotion; FAILED where there is none."""
    label_set = labels[row["dataset"]]
    gold, guess = read_distribution(row["gold"]), read_distribution(row["predicted"])
    assert gold is not None
    return gold.top(label_set), metrics.FAILED if guess is None else guess.top(label_set)


def _count(rows: Rows, labels: Labels, classes: Sequence[str]) -> metrics.Outcomes:
    gold, predicted = zip(*(tops(r, labels) for r in rows), strict=True)
    return metrics.Outcomes.of(
        gold, predicted, [r["r1"] for r in rows], [r["conversation"] for r in rows], classes
    )


def score(rows: Rows, labels: Labels, *, resamples: int) -> dict[str, Scores]:
    """Scores of the stored predictions of one evaluation, by data set, and UNION of several."""
    found = outcomes(rows, labels).items()
    return {
        d: _score(
            o,
            [r for r in rows if d in (UNION, r["dataset"])],
            labels,
            resamples,
            labels[d].unscored if d in labels else "",
        )
        for d, o in found
    }


def _score(
    counted: metrics.Outcomes, rows: Rows, labels: Labels, resamples: int, unscored: str = ""
) -> Scores:
    confusion, classes = counted.confusion.sum(0), counted.classes
    n = len(rows)
    return Scores(
        utterances=n,
        conversations=len(counted.clusters),
        **counted.intervals(resamples),
        failures=dict(Counter(r["failure"] for r in rows if r["failure"]).most_common()),
        predicted_share={e: confusion[:, i].sum() / n for i, e in enumerate(classes)},
        gold_share={e: confusion[i].sum() / n for i, e in enumerate(classes)},
        classes=metrics.class_report(confusion, classes),
        confusion={"labels": list(classes), "rows": confusion.astype(int).tolist()},
        calibration=calibration_of(rows, labels),
        unscored=unscored,
        micro_f1=counted.micro_f1(unscored, resamples) if unscored else None,
    )


def calibration_of(rows: Rows, labels: Labels) -> dict[str, Any]:
    """`metrics.calibration` of what was written and parsed, and of how many predictions it is of what.

    Where label probabilities are stored, temperature and nll_tempered are of them, and `believed` is their
    number; else of what was written, and `believed` is 0.
    """
    parsed = [(json.loads(p), r) for r in rows if (p := r["predicted"]) is not None]
    gold = [json.loads(r["gold"]) for _, r in parsed]
    names = [labels[r["dataset"]].labels for _, r in parsed]
    found = metrics.calibration([p for p, _ in parsed], gold, names)
    if not has_beliefs(rows):
        return found | {"believed": 0}
    logs, golds = distributions(rows, labels, believed=True)
    temperature, nll = best_temperature(logs, golds)
    return found | {"temperature": temperature, "nll_tempered": nll, "believed": len(logs)}


def has_beliefs(rows: Rows) -> bool:
    """Whether label probabilities are stored for all predictions but those of prompts that were too long."""
    without = [r for r in rows if r["believed"] is None]
    return len(without) < len(rows) and all(r["failure"] == FailureKind.TOO_LONG for r in without)


def distributions(rows: Rows, labels: Labels, *, believed: bool) -> tuple[np.ndarray, np.ndarray]:
    """`tempered.log_table` of stored predictions: of what was believed, or else of what was written.

    Rows without such a distribution are left out. What was written names three emotions at the most, so it
    has the floor of `metrics.calibration`.
    """
    key: Literal["believed", "predicted"] = "believed" if believed else "predicted"
    there = [(json.loads(p), r) for r in rows if (p := r[key]) is not None]
    gold = [json.loads(r["gold"]) for _, r in there]
    names = [labels[r["dataset"]].labels for _, r in there]
    floor = BELIEF_FLOOR if believed else metrics.NLL_FLOOR
    return log_table([p for p, _ in there], gold, names, floor)


def average(rows: Rows, labels: Labels, *, resamples: int) -> dict[str, metrics.Interval] | None:
    """Table 1's AVG: the plain average over data sets, each of equal weight; None for one data set."""
    counted = [o for d, o in outcomes(rows, labels).items() if d != UNION]
    return metrics.average_intervals(counted, resamples) if len(counted) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Paired differences (second minus first) over the prompts that both answered, `of` those of either.

    `values` are those of the (first, second) by measure, on the same prompts.
    """

    prompts: int
    of: int
    conversations: int
    measures: dict[str, metrics.PairedDifference]
    values: dict[str, tuple[float, float]]

    def as_dict(self) -> dict[str, Any]:
        measures = {
            m: {
                "difference": d.difference.as_list(),
                "p_value": d.p_value,
                "this": self.values[m][1],
                "other": self.values[m][0],
            }
            for m, d in self.measures.items()
        }
        return {"prompts": self.prompts, "of": self.of, "conversations": self.conversations, **measures}


def same_gold(a: PredictionRow, b: PredictionRow) -> bool:
    """Whether two predictions of one prompt id have one gold emotion, as those of one turn have."""
    return bool(json.loads(a["gold"]) == json.loads(b["gold"]))


def compare(first: Rows, second: Rows, labels: Labels) -> dict[str, Comparison]:
    """Compare the stored predictions of two evaluations, by data set and UNION.

    Raises:
        DataError: they share no prompt, or a prompt has another gold emotion in one than in the other.
    """
    a, b = ({r["prompt"]: r for r in rows if r["dataset"] in labels} for rows in (first, second))
    common = [p for p in b if p in a]
    if not common:
        raise DataError("the two evaluations share no prompt; evaluate both on the same data and split")
    for p in common:
        if not same_gold(a[p], b[p]):
            raise DataError(f"prompt {p} has another gold emotion in the two evaluations")
    of = Counter(r["dataset"] for r in (a | b).values())
    of[UNION] = len(a | b)
    counted_a, counted_b = (outcomes([rows[p] for p in common], labels) for rows in (a, b))
    return {
        d: Comparison(
            int(o.confusion.sum()),
            of[d],
            len(o.clusters),
            metrics.paired_measures(counted_a[d], o),
            {m: (float(v), float(o.measures()[m])) for m, v in counted_a[d].measures().items()},
        )
        for d, o in counted_b.items()
    }
