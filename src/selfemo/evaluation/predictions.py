"""Scores of a model on held-out conversations (SPEC section 7).

One prompt per gold utterance, with nothing later than that utterance in it; greedy decoding; the top
emotion by weight is the prediction; a completion that does not parse is an error and is counted by kind.
Predictions go to the store as they are made, so an evaluation that was stopped goes on.

An endpoint is asked with the very chat messages that a local model reads and its answer is read in the
same way, without any repair question [ours]: a row of table 1 stands for one answer to one prompt.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfemo.config import Config
from selfemo.errors import DataError, EndpointError
from selfemo.evaluation.metrics import (
    FAILED,
    Interval,
    Outcomes,
    PairedDifference,
    average_intervals,
    calibration,
    class_report,
    paired_measures,
)
from selfemo.method.parsing import parse, parse_recognition
from selfemo.method.prompts import conversation_prompts, fit, messages
from selfemo.method.rewards import weighted_iou
from selfemo.method.types import (
    Completion,
    Conversation,
    EmotionDistribution,
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
from selfemo.seeds import rng
from selfemo.stages.experts import Question, Reply, ask_experts, without_thoughts
from selfemo.stages.selfplay import fit_all

_CHUNK = 64
TOO_LONG = "too_long"
"""Failure kind of a prompt whose last utterance and persona alone pass the length limit."""
REFUSED = "refused"
"""Failure kind of a prompt that an endpoint refuses to answer."""
_PURPOSE = "evaluate"
UNION = "all"
"""Name of the union of all data sets in scores."""


@dataclass(frozen=True)
class Prediction:
    """What a model said of one utterance. `predicted` is None where it failed, with `failure`."""

    prompt: Prompt
    predicted: EmotionDistribution | None
    failure: str | None
    completion: Completion | None
    text: str


@dataclass(frozen=True)
class Scores:
    """Scores over one data set (or the union): 95% intervals are clustered by conversation.

    Attributes:
        failures: predictions without an emotion, by kind.
        classes: precision, recall, f1, support and predicted of each class (`metrics.class_report`).
        confusion: "labels" (k) and "rows" (k, k + 1): gold by predicted, the last column failed.
        calibration: `metrics.calibration` of the predictions that parsed.
    """

    utterances: int
    conversations: int
    accuracy: Interval
    weighted_f1: Interval
    macro_f1: Interval
    mean_r1: Interval
    parse_rate: Interval
    failures: dict[str, int]
    predicted_share: dict[str, float]
    gold_share: dict[str, float]
    classes: dict[str, dict[str, float]]
    confusion: dict[str, Any]
    calibration: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            result[name] = (
                [value.value, value.low, value.high] if isinstance(value, Interval) else value
            )
        return result


def held_out(
    conversations: Sequence[Conversation], split: str, limit: int, seed: int
) -> list[Conversation]:
    """Conversations of a split, `limit` of each data set drawn by `seed` (0: all), in file order."""
    chosen: list[Conversation] = []
    for name in dict.fromkeys(c.dataset for c in conversations):
        members = [c for c in conversations if c.dataset == name and c.split == split]
        if limit and limit < len(members):
            drawn = rng(seed, "held out", name, split).permutation(len(members))[:limit]
            members = [members[i] for i in sorted(drawn)]
        chosen.extend(members)
    if not chosen:
        raise DataError(
            f"no conversation in split {split!r} to evaluate on; set data.eval_split to a split that "
            "the data has (selfemo data check shows them)"
        )
    return chosen


def predict(
    engine: Sampler,
    prompts: Sequence[Prompt],
    config: Config,
    on_done: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Greedy completions of prompts, read by `evaluation.span`; order is kept."""
    if config.evaluation.span == "probabilities":
        return _most_probable(engine, prompts, config, on_done)
    whole = config.evaluation.span == "all"
    settings = SamplingSettings(
        max_new_tokens=config.evaluation.max_new_tokens,
        temperature=0.0,
        max_lines=0 if whole else (1 if config.prompt.reasoning == "none" else 2),
        token_budget=config.evaluation.token_budget,
        no_repeat_ngram=config.evaluation.no_repeat_ngram,
    )
    fits, _ = fit_all(prompts, engine.encode, config.prompt.max_tokens, config.prompt.reasoning)
    fitted = {f.prompt.id: f for f in fits}
    asked = [p for p in prompts if p.id in fitted]
    requests = [Request(fitted[p.id].ids, share=p.conversation_id) for p in asked]
    sampled = engine.generate(requests, settings, on_done)
    texts = {p.id: s[0] for p, s in zip(asked, sampled, strict=True)}
    return [
        read_prediction(p, texts[p.id].text, texts[p.id].finished, whole=whole)
        if p.id in texts
        else Prediction(p, None, TOO_LONG, None, "")
        for p in prompts
    ]


def _most_probable(
    engine: Sampler,
    prompts: Sequence[Prompt],
    config: Config,
    on_done: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """The probability of each label as the prediction; the line of the first one stands for a text."""
    fitted, _ = fit_all(prompts, engine.encode, config.prompt.max_tokens, config.prompt.reasoning)
    found: dict[str, EmotionDistribution] = {}
    for labels in dict.fromkeys(f.prompt.label_set for f in fitted):
        asked = [f for f in fitted if f.prompt.label_set == labels]
        places = [(f.prompt.conversation_id, f.ids, "E:") for f in asked]
        read = engine.label_probabilities(places, labels)
        found.update((f.prompt.id, d) for f, d in zip(asked, read, strict=True))
        if on_done:
            on_done(len(asked))
    return [
        Prediction(p, None, TOO_LONG, None, "")
        if (d := found.get(p.id)) is None
        else Prediction(p, d, None, None, f"E: {d.top(p.label_set)}")
        for p in prompts
    ]


def read_prediction(prompt: Prompt, text: str, finished: bool = True, *, whole: bool) -> Prediction:
    """What a completion says of its prompt: of the `whole` of it, or of its emotion span alone."""
    completion = None
    read: EmotionDistribution | ParseFailure
    if whole:
        parsed = parse(text, prompt.label_set, finished=finished)
        completion = parsed if isinstance(parsed, Completion) else None
        read = parsed.emotion if isinstance(parsed, Completion) else parsed
    else:
        read = parse_recognition(text, prompt.label_set)
    if isinstance(read, ParseFailure):
        return Prediction(prompt, None, read.kind.value, None, text)
    return Prediction(prompt, read, None, completion, text)


def gold_prompts(conversations: Sequence[Conversation]) -> list[Prompt]:
    """What an evaluation asks: one prompt per gold utterance, without the future.

    Raises:
        DataError: no utterance has a gold emotion.
    """
    prompts = [p for c in conversations for p in conversation_prompts(c, future=False)]
    if not prompts:
        raise DataError("no utterance of the held-out conversations has a gold emotion")
    return prompts


def _missing(
    prompts: Sequence[Prompt], store: Store, name: str, on_done: Callable[[int], None] | None
) -> list[Prompt]:
    """The prompts without a prediction in the store."""
    done = store.predicted_prompts(name)
    if on_done and done:
        on_done(len(done))
    return [p for p in prompts if p.id not in done]


def _keep(store: Store, name: str, predictions: Iterable[Prediction]) -> None:
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
            )
            for p in predictions
        )


def evaluate(
    engine: Sampler,
    conversations: Sequence[Conversation],
    config: Config,
    store: Store,
    name: str,
    on_done: Callable[[int], None] | None = None,
) -> dict[str, Scores]:
    """Predict what is not in the store yet under `name`, then score; by data set, and "all".

    Args:
        on_done: called after each chunk is in the store; it may raise to stop there.
    """
    missing = _missing(gold_prompts(conversations), store, name, on_done)
    for start in range(0, len(missing), _CHUNK):
        chunk = predict(engine, missing[start : start + _CHUNK], config)
        _keep(store, name, chunk)
        if on_done:
            on_done(len(chunk))
    return score(store, name, label_sets(conversations), config)


def evaluate_checkpoint(
    sampler: Sampler,
    conversations: Sequence[Conversation],
    store: Store,
    name: str,
    config: Config,
    on_done: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """`evaluate` for a stage of a run: the scores by data set as plain values."""
    scores = evaluate(sampler, conversations, config, store, name, on_done)
    return {dataset: s.as_dict() for dataset, s in scores.items()}


def evaluate_endpoint(
    spec: ExpertSpec,
    conversations: Sequence[Conversation],
    config: Config,
    store: Store,
    name: str,
    on_done: Callable[[int], None] | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Scores]:
    """`evaluate` of a model behind an OpenAI-compatible endpoint; answers are kept as they come.

    Lengths are estimated (`estimate_tokens`), since the endpoint's tokenizer is not at hand.

    Raises:
        EndpointError: the endpoint cannot be used, or left prompts without an answer; a second run asks
            for those alone.
        Stopped: `stop` was asked for; the questions under way were answered and kept.
    """
    stop = stop or StopRequest()
    whole = config.evaluation.span == "all"
    missing = _missing(gold_prompts(conversations), store, name, on_done)

    def encode(chat: list[dict[str, str]]) -> range:
        return range(estimate_tokens(ChatRequest(chat, {}, 0)))

    def questions() -> Iterator[Question[Prediction]]:
        for prompt in missing:
            if stop.asked:
                return
            fitted = fit(prompt, encode, config.prompt.max_tokens, config.prompt.reasoning)
            if fitted is None:
                keep(Prediction(prompt, None, TOO_LONG, None, ""))
                continue
            yield Question(
                prompt.id,
                messages(fitted.prompt, config.prompt.reasoning),
                {},
                lambda text, p=prompt: read_prediction(p, without_thoughts(text), whole=whole),  # type: ignore[misc]
                config.evaluation.max_new_tokens,
            )

    unanswered = 0

    def keep(prediction: Prediction) -> None:
        _keep(store, name, [prediction])
        if on_done:
            on_done(1)

    by_id = {p.id: p for p in missing}

    def on_reply(question: Question[Prediction], reply: Reply[Prediction]) -> None:
        nonlocal unanswered
        if reply.value is not None:
            keep(reply.value)
        elif reply.kind == REFUSED:
            keep(Prediction(by_id[reply.item], None, REFUSED, None, reply.detail))
        else:
            unanswered += 1

    ask_experts(questions(), [spec], store, _PURPOSE, on_reply, rounds=1)
    stop.check()
    if unanswered:
        raise EndpointError(
            f"{spec.name} left {unanswered} of {len(missing)} prompts without an answer; run the same "
            "command again to ask for them"
        )
    return score(store, name, label_sets(conversations), config)


def label_sets(conversations: Sequence[Conversation]) -> dict[str, LabelSet]:
    """The label set of each data set."""
    return {c.dataset: c.label_set for c in conversations}


def prediction_rows(store: Store, name: str) -> list[PredictionRow]:
    """The stored predictions of one evaluation, by prompt."""
    return store.predictions(name)


def outcomes(rows: Sequence[Any], labels: Mapping[str, LabelSet]) -> dict[str, Outcomes]:
    """Stored predictions counted by data set; UNION when there are several.

    UNION is weighted by utterance; its F1 treats equal names of two label sets as one class.
    """
    parts = {
        d: (mine, s.labels)
        for d, s in labels.items()
        if (mine := [r for r in rows if r["dataset"] == d])
    }
    if len(parts) > 1:
        every = tuple(dict.fromkeys(e for _, classes in parts.values() for e in classes))
        parts[UNION] = ([r for mine, _ in list(parts.values()) for r in mine], every)
    return {d: _count(mine, labels, classes) for d, (mine, classes) in parts.items()}


def _tops(row: Any, labels: Mapping[str, LabelSet]) -> tuple[str, str]:
    """Top gold and predicted emotion; FAILED where there is none."""
    label_set = labels[row["dataset"]]
    gold, guess = read_distribution(row["gold"]), read_distribution(row["predicted"])
    assert gold is not None
    return gold.top(label_set), FAILED if guess is None else guess.top(label_set)


def _count(rows: Sequence[Any], labels: Mapping[str, LabelSet], classes: Sequence[str]) -> Outcomes:
    tops = [_tops(r, labels) for r in rows]
    return Outcomes.of(
        [g for g, _ in tops],
        [p for _, p in tops],
        [r["r1"] for r in rows],
        [r["conversation"] for r in rows],
        classes,
    )


def score(
    store: Store, name: str, labels: Mapping[str, LabelSet], config: Config
) -> dict[str, Scores]:
    """Scores of the stored predictions of one evaluation, by data set, and UNION of several."""
    rows = prediction_rows(store, name)
    return {
        d: _score(
            o, [r for r in rows if d in (UNION, r["dataset"])], labels, config.evaluation.resamples
        )
        for d, o in outcomes(rows, labels).items()
    }


def _score(
    counted: Outcomes, rows: Sequence[Any], labels: Mapping[str, LabelSet], resamples: int
) -> Scores:
    confusion, classes = counted.confusion.sum(0), counted.classes
    n = len(rows)
    intervals = counted.intervals(resamples)
    return Scores(
        utterances=n,
        conversations=len(counted.clusters),
        accuracy=intervals["accuracy"],
        weighted_f1=intervals["weighted_f1"],
        macro_f1=intervals["macro_f1"],
        mean_r1=intervals["mean_r1"],
        parse_rate=intervals["parse_rate"],
        failures=dict(Counter(r["failure"] for r in rows if r["failure"]).most_common()),
        predicted_share={e: confusion[:, i].sum() / n for i, e in enumerate(classes)},
        gold_share={e: confusion[i].sum() / n for i, e in enumerate(classes)},
        classes=class_report(confusion, classes),
        confusion={"labels": list(classes), "rows": confusion.astype(int).tolist()},
        calibration=calibration_of(rows, labels),
    )


def calibration_of(rows: Sequence[Any], labels: Mapping[str, LabelSet]) -> dict[str, Any]:
    """`metrics.calibration` of stored predictions."""
    parsed = [r for r in rows if r["predicted"] is not None]
    return calibration(
        [json.loads(r["predicted"]) for r in parsed],
        [json.loads(r["gold"]) for r in parsed],
        [labels[r["dataset"]].labels for r in parsed],
    )


def average(
    store: Store, name: str, labels: Mapping[str, LabelSet], config: Config
) -> dict[str, Interval] | None:
    """Table 1's AVG: the plain average over data sets, each of equal weight; None for one data set."""
    counted = outcomes(prediction_rows(store, name), labels)
    counted.pop(UNION, None)
    if len(counted) < 2:
        return None
    return average_intervals(list(counted.values()), config.evaluation.resamples)


@dataclass(frozen=True)
class Comparison:
    """Paired differences (second minus first) over the prompts that both answered.

    Attributes:
        of: prompts that either answered.
    """

    prompts: int
    of: int
    conversations: int
    measures: dict[str, PairedDifference]

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts,
            "of": self.of,
            "conversations": self.conversations,
            **{
                m: {
                    "difference": [d.difference.value, d.difference.low, d.difference.high],
                    "p_value": d.p_value,
                }
                for m, d in self.measures.items()
            },
        }


def compare(
    first: Sequence[Any],
    second: Sequence[Any],
    labels: Mapping[str, LabelSet],
    resamples: int = 2000,
) -> dict[str, Comparison]:
    """Compare two evaluations (rows of the table `predictions`), by data set and UNION.

    Raises:
        DataError: they share no prompt, or a prompt has another gold emotion in one than in the other.
    """
    a, b = ({r["prompt"]: r for r in rows if r["dataset"] in labels} for rows in (first, second))
    common = [p for p in b if p in a]
    if not common:
        raise DataError(
            "the two evaluations share no prompt; evaluate both on the same data and split"
        )
    for p in common:
        if json.loads(a[p]["gold"]) != json.loads(b[p]["gold"]):
            raise DataError(f"prompt {p} has another gold emotion in the two evaluations")
    of = Counter(r["dataset"] for r in (a | b).values())
    of[UNION] = len(a | b)
    counted_a, counted_b = (outcomes([rows[p] for p in common], labels) for rows in (a, b))
    return {
        d: Comparison(
            int(o.confusion.sum()), of[d], len(o.clusters),
            paired_measures(counted_a[d], o, resamples=resamples),
        )
        for d, o in counted_b.items()
    }  # fmt: skip
