"""Does self-play carry knowledge? The noisy channel against the recogniser on held-out turns [ours].

Self-play teaches E what the generator knows (SPEC section 9). So the same policy reads each gold turn that
follows another speaker's in several ways (`READERS`), and what each one knows, whatever its sureness, is its
NLL at its best temperature. Each is compared with E alone on the same turns, by conversation. `CONTROL` is
what a channel that cannot have heard the turn adds to E.

All exponents of the products are 1, under one temperature. The cross-fit gives E and the channel an exponent
each, fitted on one half of the conversations and measured on the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfemo import __version__
from selfemo.config import load
from selfemo.counting import counted
from selfemo.data.splits import held_out
from selfemo.errors import ConfigError, DataError
from selfemo.evaluation.jobs import settings_of, trained_on
from selfemo.evaluation.metrics import Outcomes, PairedDifference, paired_difference, paired_measures
from selfemo.evaluation.rendering import cell
from selfemo.evaluation.tempered import BELIEF_FLOOR, nll_at_best_temperature
from selfemo.files import write_json
from selfemo.method.channel import log_weights, product_of_experts
from selfemo.method.rewards import weighted_iou
from selfemo.method.types import Conversation, EmotionDistribution
from selfemo.models.generation import open_sampler
from selfemo.models.references import CONFIG_FILE, run_of
from selfemo.progress import Reporter, StopRequest
from selfemo.runs.inputs import load_conversations
from selfemo.seeds import rng
from selfemo.stages.channel import TurnPlace, TurnReading, read_turns, readable_turns

VERSION = 1
ALONE, GENERATOR, BOTH = "E", "channel x prior", "E x channel"
CONTROL = "E x channel of another turn"
READERS = (ALONE, "prior", "channel", GENERATOR, BOTH, CONTROL)
"""E: p(e | H, r) after "E:". prior: p(S | H), before r is heard. channel: p(r | H, S) alone."""
LEVEL = 0.05
"""A p-value below it is a difference."""
_MOST = 20.0
"""Largest exponent of the cross-fit."""


def read_as(mine: TurnReading, other: TurnReading) -> dict[str, EmotionDistribution]:
    """What each of READERS says of a turn; `other` is the turn whose channel the control takes."""
    labels, prior, reply = mine.conversation.label_set, mine.scores.prior, mine.scores.reply
    e = log_weights(mine.recognised, labels)
    return {
        ALONE: mine.recognised,
        "prior": product_of_experts(labels, prior),
        "channel": product_of_experts(labels, reply),
        GENERATOR: product_of_experts(labels, reply, prior),
        BOTH: mine.combined,
        CONTROL: product_of_experts(labels, e, other.scores.reply),
    }


def other_turns(n: int, generator: np.random.Generator) -> np.ndarray:
    """(n,) for each turn another one, each once (ValueError: there is only one)."""
    if n < 2:
        raise ValueError("one turn has no other")
    order, other = generator.permutation(n), np.empty(n, dtype=int)
    other[order] = np.roll(order, 1)
    return other


def _plain(d: PairedDifference) -> dict[str, Any]:
    return {"difference": d.difference.as_list(), "p_value": d.p_value}


def compare_readers(readings: Sequence[TurnReading], resamples: int, seed: int) -> dict[str, Any]:
    """Scores of READERS on the turns of one data set with one label set, and the verdict.

    Args:
        readings: of gold turns, from two conversations or more.
        seed: draws the other turn of the control, and the folds.

    Returns:
        turns, conversations; by reader: accuracy and weighted F1 with intervals, temperature, NLL at it, and
        each minus E alone with a p-value (difference [value, low, high]); control (BOTH minus CONTROL in NLL
        at T); cross_fit; teaches (the readers that know more than E); verdict.
    """
    labels, clusters = readings[0].conversation.label_set, [r.conversation.id for r in readings]
    golds = [g for r in readings if (g := r.conversation.turns[r.turn].emotion) is not None]
    others = other_turns(len(readings), rng(seed, "other turns"))
    read = [read_as(r, readings[j]) for r, j in zip(readings, others, strict=True)]
    gold = np.array([g.vector(labels) for g in golds])
    tops, counted, nlls = [g.top(labels) for g in golds], {}, {}
    by_reader: dict[str, dict[str, Any]] = {}
    for name in READERS:
        predicted = [d[name] for d in read]
        r1 = [weighted_iou(p, g) for p, g in zip(predicted, golds, strict=True)]
        counted[name] = Outcomes.of(tops, [p.top(labels) for p in predicted], r1, clusters, labels.labels)
        temperature, nlls[name] = nll_at_best_temperature(
            np.array([p.vector(labels) for p in predicted]), gold
        )
        found = counted[name].intervals(resamples)
        by_reader[name] = {
            **{m: found[m].as_list() for m in ("accuracy", "weighted_f1")},
            "temperature": temperature,
            "nll_tempered": float(nlls[name].mean()),
        }
        if name != ALONE:
            scores = paired_measures(counted[ALONE], counted[name])
            against = {m: _plain(scores[m]) for m in ("accuracy", "weighted_f1")}
            nll = paired_difference(nlls[ALONE].tolist(), nlls[name].tolist(), clusters)
            by_reader[name]["against_e"] = {**against, "nll_tempered": _plain(nll)}
    control = _plain(paired_difference(nlls[CONTROL].tolist(), nlls[BOTH].tolist(), clusters))
    better = [n for n in (BOTH, GENERATOR) if _lower(by_reader[n]["against_e"]["nll_tempered"])]
    # A product of two readers is smoother than one, whatever the second heard: its own turn has to help more.
    teaches = [n for n in better if n != BOTH or _lower(control)]
    return {
        "turns": len(readings),
        "conversations": len(set(clusters)),
        "readers": by_reader,
        "control": control,
        "cross_fit": cross_fit(readings, gold, clusters, seed),
        "teaches": teaches,
        "verdict": _verdict(by_reader, control, teaches),
    }


def _lower(d: Mapping[str, Any]) -> bool:
    return bool(d["difference"][0] < 0 and d["p_value"] < LEVEL)


def _verdict(readers: Mapping[str, Mapping[str, Any]], control: Mapping[str, Any], teaches: list[str]) -> str:
    """One line: whether the generator knows something of these turns that E does not."""
    said = [f"E {readers[ALONE]['nll_tempered']:.3f}"]
    for name in (BOTH, GENERATOR, CONTROL):
        found = readers[name]
        said.append(
            f"{name} {found['nll_tempered']:.3f}, p = {found['against_e']['nll_tempered']['p_value']:.3f}"
        )
    said.append(f"{BOTH} against that of another turn, p = {control['p_value']:.3f}")
    words = "self-play can teach E" if teaches else "nothing shown that self-play could teach E"
    return f"{words} (NLL at T: {'; '.join(said)})"


def cross_fit(
    readings: Sequence[TurnReading], gold: np.ndarray, clusters: Sequence[Hashable], seed: int
) -> dict[str, Any]:
    """E^a x channel^b against E^a, both fitted on the other half of the conversations.

    Returns:
        exponents: [a, b] as fitted without each half; nll, nll_of_e: mean over all turns, each by the
        exponents of the half that it is not in; difference and p_value of nll - nll_of_e.
    """
    labels = readings[0].conversation.label_set
    read = np.array([r.recognised.vector(labels) for r in readings])
    e = np.log((1 - BELIEF_FLOOR) * read + BELIEF_FLOOR / len(labels))
    channel = np.array([r.scores.reply for r in readings])
    names = list(dict.fromkeys(clusters))
    half = {names[i]: n % 2 for n, i in enumerate(rng(seed, "channel folds").permutation(len(names)))}
    folds = np.array([half[c] for c in clusters])
    nll, alone, exponents = np.empty(len(readings)), np.empty(len(readings)), []
    for fold in (0, 1):
        mine, rest = folds == fold, folds != fold
        both = fit_exponents([e[rest], channel[rest]], gold[rest])
        exponents.append(both.tolist())
        nll[mine] = product_nll([e[mine], channel[mine]], gold[mine], both)
        alone[mine] = product_nll([e[mine]], gold[mine], fit_exponents([e[rest]], gold[rest]))
    return {
        "exponents": exponents,
        "nll": float(nll.mean()),
        "nll_of_e": float(alone.mean()),
        **_plain(paired_difference(alone.tolist(), nll.tolist(), clusters)),
    }


def product_nll(logs: Sequence[np.ndarray], gold: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """(n,) nats: -sum_e y_e log p(e), with p the product of experts of log weights (n, k)."""
    from scipy.special import log_softmax

    summed = sum(w * x for w, x in zip(exponents, logs, strict=True))
    nll: np.ndarray = -(gold * log_softmax(summed, axis=1)).sum(1)
    return nll


def fit_exponents(logs: Sequence[np.ndarray], gold: np.ndarray) -> np.ndarray:
    """The exponents from 0 to 20, one an expert, with the least mean `product_nll`; it is convex in them."""
    from scipy.optimize import minimize
    from scipy.special import softmax

    def loss(exponents: np.ndarray) -> tuple[float, np.ndarray]:
        p = softmax(sum(w * x for w, x in zip(exponents, logs, strict=True)), axis=1)
        slope = [((p * gold.sum(1, keepdims=True) - gold) * x).sum(1).mean() for x in logs]
        return float(product_nll(logs, gold, exponents).mean()), np.array(slope)

    start = np.array([1.0, *[0.0] * (len(logs) - 1)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, _MOST)] * len(logs))
    exponents: np.ndarray = found.x
    return exponents


def held_out_turns(conversations: Sequence[Conversation]) -> dict[str, tuple[list[TurnPlace], Counter[str]]]:
    """The gold turns that the channel can read, by data set (and label set, where one has several), with
    counts of those left out.

    Raises:
        DataError: a data set has no such turn, or those of one conversation alone.
    """
    groups: dict[tuple[str, str], list[Conversation]] = {}
    for c in conversations:
        groups.setdefault((c.dataset, c.label_set.name), []).append(c)
    sets = Counter(dataset for dataset, _ in groups)
    found = {}
    for (dataset, labels), members in groups.items():
        name = dataset if sets[dataset] == 1 else f"{dataset} ({labels})"
        turns, left_out = readable_turns(members, gold=True)
        if (n := len({c.id for c, _ in turns})) < 2:
            raise DataError(
                f"{name}: {counted(len(turns), 'held-out turns')} with a gold emotion after a turn of "
                f"another speaker, in {n} of {counted(len(members), 'conversations')}; the channel is "
                "compared over two conversations or more (data.eval_conversations, data.eval_split)"
            )
        found[name] = turns, left_out
    return found


def analyse_channel(
    model: str,
    sources: Sequence[str],
    files: Sequence[Path],
    overrides: Sequence[str],
    reporter: Reporter,
    *,
    out: Path | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """`compare_readers` of a checkpoint on the held-out turns of some sources, by data set.

    Args:
        model: a run folder, model folder or id; an endpoint is refused.
        sources: of data; none takes those of the run that the model comes from.
        out: the JSON file to write.

    Raises:
        ConfigError: no data, or a model that reasons first.
        DataError: see `held_out_turns`.
        UnsupportedError: a model whose probabilities are not at hand.
        Stopped: `stop` was asked for; nothing is written.
    """
    stop, run = stop or StopRequest(), run_of(model)
    if not sources:
        if run is None:
            raise ConfigError(f"{model} is of no run whose data could be taken; name some with --data")
        sources = load([run / CONFIG_FILE]).data.sources
    config, checkpoint = settings_of(model, sources, files, overrides)
    data = config.data
    held = held_out(load_conversations(data), data.eval_split, data.eval_conversations, 0)
    turns, results, left = held_out_turns(held), {}, dict[str, dict[str, int]]()
    sampler = open_sampler(checkpoint, config.model)
    with reporter.bar("channel", sum(len(t) for t, _ in turns.values())) as advance:

        def on_done(n: int, advance: Callable[..., None] = advance) -> None:
            advance(n)
            stop.check()

        for name, (mine, left_out) in turns.items():
            readings, too_long = read_turns(sampler, mine, config.prompt, on_done)
            if len({r.conversation.id for r in readings}) < 2:
                raise DataError(
                    f"{name}: {sum(too_long.values())} of {len(mine)} turns do not fit prompt.max_tokens = "
                    f"{config.prompt.max_tokens}; raise it"
                )
            results[name] = compare_readers(readings, config.evaluation.resamples, config.seed)
            left[name] = dict(left_out + too_long)
    result = {
        "version": VERSION,
        "selfemo": __version__,
        "model": model,
        "trained_on": trained_on(checkpoint),
        "sources": list(sources),
        "split": data.eval_split,
        "eval_conversations": data.eval_conversations,
        "max_tokens": config.prompt.max_tokens,
        "left_out": left,
        "datasets": results,
    }
    if out is not None:
        write_json(out, result)
    return result


def channel_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of text, one a data set and reader, the cross-fit below them."""
    header = ["data", "reader", "accuracy", "weighted F1", "T", "NLL at T", "minus E", "p"]
    rows = []
    for name, found in result["datasets"].items():
        for reader, s in found["readers"].items():
            nll = s.get("against_e", {}).get("nll_tempered", {})
            rows.append(
                [
                    name, reader, cell(s["accuracy"]), cell(s["weighted_f1"]), cell(s["temperature"]),
                    cell(s["nll_tempered"]), cell(nll.get("difference")), cell(nll.get("p_value")),
                ]
            )  # fmt: skip
        fit = found["cross_fit"]
        halves = ", ".join(f"E^{a:.2f} x channel^{b:.2f}" for a, b in fit["exponents"])
        rows.append(
            [
                name, f"cross-fit: {halves}", "-", "-", "-", cell(fit["nll"]), cell(fit["difference"]),
                cell(fit["p_value"]),
            ]
        )  # fmt: skip
    return header, rows
