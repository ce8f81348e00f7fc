"""Scores of a model on held-out conversations (SPEC section 7).

One prompt per gold utterance, with nothing later than that utterance in it; greedy decoding; the top
emotion by weight is the prediction; a completion that does not parse is an error and is counted by kind.
Predictions go to the store as they are made, so an evaluation that was stopped goes on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfemo.config import Config
from selfemo.errors import DataError
from selfemo.generation.requests import Request, SamplingSettings
from selfemo.metrics import FAILED, Interval, cluster_bootstrap, f1, mean_interval
from selfemo.parsing import parse, parse_recognition
from selfemo.prompts import conversation_prompts, prompt_at
from selfemo.rewards import weighted_iou
from selfemo.seeds import rng
from selfemo.selfplay import fit_all
from selfemo.store import Store, read_distribution
from selfemo.training import Engine
from selfemo.types import (
    Completion,
    Conversation,
    EmotionDistribution,
    LabelSet,
    ParseFailure,
    Prompt,
)

_CHUNK = 64
TOO_LONG = "too_long"
"""Failure kind of a prompt whose last utterance and persona alone pass the length limit."""


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
    """Scores over one data set (or the union): 95% intervals are clustered by conversation."""

    utterances: int
    conversations: int
    accuracy: Interval
    weighted_f1: Interval
    macro_f1: float
    mean_r1: Interval
    parse_rate: Interval
    failures: dict[str, int]
    predicted_share: dict[str, float]
    gold_share: dict[str, float]

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
    engine: Engine,
    prompts: Sequence[Prompt],
    config: Config,
    on_done: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Greedy completions of prompts, read by `evaluation.span`; order is kept."""
    whole = config.evaluation.span == "all"
    settings = SamplingSettings(
        max_new_tokens=config.evaluation.max_new_tokens,
        temperature=0.0,
        max_lines=0 if whole else (1 if config.prompt.reasoning == "none" else 2),
        token_budget=config.evaluation.token_budget,
        no_repeat_ngram=config.evaluation.no_repeat_ngram,
    )
    fitted = {f.prompt.id: f for f in fit_all(prompts, engine, config, {})}
    asked = [p for p in prompts if p.id in fitted]
    requests = [Request(fitted[p.id].ids, share=p.conversation_id) for p in asked]
    sampled = engine.generate(requests, settings, on_done)
    texts = {p.id: s[0] for p, s in zip(asked, sampled, strict=True)}
    result = []
    for p in prompts:
        if p.id not in texts:
            result.append(Prediction(p, None, TOO_LONG, None, ""))
            continue
        sample = texts[p.id]
        completion = None
        read: EmotionDistribution | ParseFailure
        if whole:
            parsed = parse(sample.text, p.label_set, finished=sample.finished)
            completion = parsed if isinstance(parsed, Completion) else None
            read = parsed.emotion if isinstance(parsed, Completion) else parsed
        else:
            read = parse_recognition(sample.text, p.label_set)
        if isinstance(read, ParseFailure):
            result.append(Prediction(p, None, read.kind.value, None, sample.text))
        else:
            result.append(Prediction(p, read, None, completion, sample.text))
    return result


def evaluate(
    engine: Engine,
    conversations: Sequence[Conversation],
    config: Config,
    store: Store,
    name: str,
    on_done: Callable[[int], None] | None = None,
) -> dict[str, Scores]:
    """Predict what is not in the store yet under `name`, then score; by data set, and "all"."""
    prompts = [p for c in conversations for p in conversation_prompts(c, future=False)]
    if not prompts:
        raise DataError("no utterance of the held-out conversations has a gold emotion")
    done = {
        r["prompt"] for r in store.rows("SELECT prompt FROM predictions WHERE evaluation = ?", name)
    }
    if on_done and done:
        on_done(len(done))
    missing = [p for p in prompts if p.id not in done]
    for start in range(0, len(missing), _CHUNK):
        chunk = predict(engine, missing[start : start + _CHUNK], config)
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
                for p in chunk
            )
        if on_done:
            on_done(len(chunk))
    labels = {c.dataset: c.label_set for c in conversations}
    return score(store, name, labels, config)


def score(
    store: Store, name: str, labels: dict[str, LabelSet], config: Config
) -> dict[str, Scores]:
    """Scores of the stored predictions of one evaluation, by data set; "all" when there are several.

    "all" is the utterance-weighted union; its F1 treats equal names of two label sets as one class.
    """
    rows = store.rows("SELECT * FROM predictions WHERE evaluation = ? ORDER BY rowid", name)
    result = {}
    for dataset, label_set in labels.items():
        mine = [r for r in rows if r["dataset"] == dataset]
        if mine:
            result[dataset] = _score(mine, labels, label_set.labels, config)
    if len(result) > 1:
        union = tuple(dict.fromkeys(e for s in labels.values() for e in s.labels))
        result["all"] = _score(rows, labels, union, config)
    return result


def _score(
    rows: Sequence[Any], labels: dict[str, LabelSet], classes: Sequence[str], config: Config
) -> Scores:
    gold, predicted = [], []
    for r in rows:
        label_set = labels[r["dataset"]]
        target, guess = read_distribution(r["gold"]), read_distribution(r["predicted"])
        assert target is not None
        gold.append(target.top(label_set))
        predicted.append(FAILED if guess is None else guess.top(label_set))
    clusters = [r["conversation"] for r in rows]
    g, p = np.asarray(gold, dtype=object), np.asarray(predicted, dtype=object)
    n = config.evaluation.resamples
    counts = Counter(predicted)
    golds = Counter(gold)
    return Scores(
        utterances=len(rows),
        conversations=len(set(clusters)),
        accuracy=mean_interval((g == p).astype(float).tolist(), clusters, resamples=n),
        weighted_f1=cluster_bootstrap(
            lambda i: f1(g[i].tolist(), p[i].tolist(), classes, "weighted"),
            clusters,
            resamples=min(n, 300),
        ),
        macro_f1=f1(gold, predicted, classes, "macro"),
        mean_r1=mean_interval([r["r1"] for r in rows], clusters, resamples=n),
        parse_rate=mean_interval([float(x != FAILED) for x in predicted], clusters, resamples=n),
        failures=dict(Counter(r["failure"] for r in rows if r["failure"]).most_common()),
        predicted_share={e: counts[e] / len(rows) for e in classes},
        gold_share={e: golds[e] / len(rows) for e in classes},
    )


def all_prompts(conversation: Conversation) -> list[Prompt]:
    """One prompt per turn, gold or not, without the future: what `selfemo predict` asks."""
    return [prompt_at(conversation, i, future=False) for i in range(len(conversation.turns))]
