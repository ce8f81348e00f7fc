"""`selfemo judge A B`: both models answer the same held-out prompts, and judges compare the answers.

answers-a, answers-b   evaluation folders (jobs.py) with whole completions
store.sqlite           the judges' answers, committed as they come; none is asked for twice
judgements.parquet     one row a pair, kind, judge and order: five texts, verdict, winner
judge.json             counts, win rates, agreement
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from selfemo import __version__
from selfemo.config import DataConfig
from selfemo.data.splits import drawn, held_out
from selfemo.errors import ConfigError, DataError
from selfemo.evaluation.jobs import evaluate_model, predictions_of, settings_of
from selfemo.evaluation.judge import (
    KINDS,
    ORDERS,
    PROMPT_VERSION,
    Judgement,
    Kind,
    Pair,
    item_of,
    question,
    summarise,
    winner,
)
from selfemo.evaluation.predictions import gold_prompts
from selfemo.evaluation.rendering import cell
from selfemo.files import write_json, write_rows
from selfemo.method.parsing import parse
from selfemo.method.types import Completion, EmotionDistribution, Prompt
from selfemo.models.generation.chat import ExpertSpec, endpoint_of
from selfemo.progress import Reporter, StopRequest
from selfemo.runs.expert_jobs import open_store, plan, reporting
from selfemo.runs.inputs import load_conversations
from selfemo.runs.store import Store
from selfemo.stages.experts import Question, Reply, Tally, ask_experts

_LONGEST = 512
"""Most tokens of an answer, where the configuration evaluates the E line alone."""


def _prompts(data: DataConfig, limit: int, seed: int) -> list[Prompt]:
    """The held-out prompts, `limit` of them drawn by `seed` (0: all), in order."""
    conversations = load_conversations(data)
    held = held_out(conversations, data.eval_split, data.eval_conversations, 0, data.eval_half)
    return drawn(gold_prompts(held), limit, seed, "judged")


def _answers(
    model: str,
    sources: Sequence[str],
    out: Path,
    files: Sequence[Path],
    overrides: Sequence[str],
    data: Sequence[str],
    reporter: Reporter,
    stop: StopRequest,
) -> dict[str, str]:
    """The model's whole completions by prompt id; those that do not parse are left out."""
    config, _ = settings_of(model, sources, files, [*data, *overrides])
    longest = config.evaluation.max_new_tokens
    if config.evaluation.span != "all":
        longest = max(longest, min(config.sampling.max_new_tokens, _LONGEST))
    whole = ['evaluation.span="all"', f"evaluation.max_new_tokens={longest}"]
    evaluate_model(model, sources, out, files, [*data, *whole, *overrides], reporter, stop=stop)
    return {r["prompt"]: r["text"] for r in predictions_of(out) if not r["failure"]}


def _completion(texts: Mapping[str, str], prompt: Prompt) -> Completion | None:
    read = parse(texts.get(prompt.id, ""), prompt.label_set)
    return read if isinstance(read, Completion) else None


def _questions(pairs: Sequence[Pair], stop: StopRequest | None = None) -> Iterator[Question[Judgement]]:
    for pair, kind, order in product(pairs, KINDS, ORDERS):
        if stop is not None and stop.asked:
            return
        if pair.settled(kind) is None:
            yield question(pair, kind, order)


def judge_models(
    a: str,
    b: str,
    sources: Sequence[str],
    judges: Sequence[ExpertSpec],
    out: Path,
    files: Sequence[Path],
    overrides: Sequence[str],
    reporter: Reporter,
    *,
    limit: int = 0,
    seed: int = 0,
    rounds: int = 2,
    retry_failed: bool = False,
    dry_run: bool = False,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Compare two systems blind; writes judge.json and judgements.parquet and returns the former.

    Args:
        a, b: each a run folder, RUN@CHECKPOINT, model folder or id, or an endpoint as NAME=URL,model=...
        judges: of different names; asked about every pair, one after another.
        limit: how many held-out prompts are judged, drawn by `seed`; 0 takes all.
        dry_run: write nothing; return how much would be asked.

    Raises:
        ConfigError: no judge.
        DataError: the two systems were given different prompts.
        EndpointError: a judge or a system cannot be used; what was answered is kept.
        Stopped: `stop` was asked for.
    """
    if not judges:
        raise ConfigError("no judge: give --judge NAME=URL,model=MODEL, or --judge local")
    stop = stop or StopRequest()
    config = settings_of(a, sources, files, overrides)[0]
    own = config.data
    # Of A's run, so that both answer the same prompts.
    keys = ("eval_split", "eval_conversations", "eval_half", "personas", "exclude_overlap")
    data = [f"data.{k}={json.dumps(getattr(own, k))}" for k in keys]
    prompts, others = (
        _prompts(settings_of(m, sources, files, [*data, *overrides])[0].data, limit, seed) for m in (a, b)
    )
    if prompts != others:
        raise DataError(f"{a} and {b} would answer different prompts; check --data and --set")
    if dry_run:
        return _planned(prompts, judges, out)
    answers_a, answers_b = (
        _answers(model, sources, out / f"answers-{side}", files, overrides, data, reporter, stop)
        for side, model in (("a", a), ("b", b))
    )
    pairs = [Pair(p, _completion(answers_a, p), _completion(answers_b, p)) for p in prompts]
    if not any(p.a and p.b for p in pairs):
        raise DataError(
            f"no prompt was answered by both: {sum(p.a is None for p in pairs)} of {len(pairs)} answers of A "
            f"({a}) and {sum(p.b is None for p in pairs)} of B ({b}) do not parse; look at {out}/answers-*"
        )
    asked = {}
    with open_store(out, config.store.journal_mode) as store:
        for spec in judges:
            asked[spec.name] = _ask(spec, pairs, store, reporter, stop, rounds, retry_failed)
            stop.check()
    rows = [row for _, of_one in asked.values() for row in of_one]
    verdicts: dict[Kind, dict[tuple[str, str, str], str]] = {k: {} for k in KINDS}
    for r in rows:
        verdicts[r["kind"]][r["judge"], r["prompt"], r["order"]] = r["verdict"]
    result = {
        "selfemo": __version__,
        "a": _called(a),
        "b": _called(b),
        "sources": list(sources),
        "split": own.evaluated_on,
        "prompts": len(prompts),
        "prompt_version": PROMPT_VERSION,
        "judges": {j.name: {"model": j.model, **asked[j.name][0].as_dict()} for j in judges},
        "kinds": {k: summarise(pairs, k, list(asked), verdicts[k]) for k in KINDS},
    }
    write_json(out / "judge.json", result)
    write_rows(out / "judgements.parquet", rows, ("prompt", "kind", "judge", "order"), reporter.say)
    return result


def _planned(prompts: Sequence[Prompt], judges: Sequence[ExpertSpec], out: Path) -> dict[str, Any]:
    """The calls and tokens that judging would take, where both answers to every prompt parse and differ."""

    def stand_in(prompt: Prompt, which: int) -> Completion:  # of usual length
        one = EmotionDistribution({prompt.label_set.labels[which]: 1.0})
        return Completion(one, one, f"{which} " * 12)

    pairs = [Pair(p, stand_in(p, 0), stand_in(p, 1)) for p in prompts]
    found = [plan(_questions(pairs), [j], out) for j in judges]
    return {"pairs": len(pairs), **{k: sum(f[k] for f in found) for k in ("calls", "tokens_at_most_about")}}


def _ask(
    judge: ExpertSpec,
    pairs: Sequence[Pair],
    store: Store,
    reporter: Reporter,
    stop: StopRequest,
    rounds: int,
    retry_failed: bool,
) -> tuple[Tally, list[dict[str, Any]]]:
    """Ask one judge all questions; returns the counts, and a row for each answer."""
    where = {item_of(p.prompt.id, k, o): (p, k, o) for p in pairs for k in KINDS for o in ORDERS}
    rows: list[dict[str, Any]] = []
    purpose = f"judge {judge.name}"
    with reporter.bar(purpose, sum(1 for _ in _questions(pairs))) as advance:
        progress = reporting(advance)

        def on_reply(_: Question[Judgement], reply: Reply[Judgement]) -> None:
            if reply.value is not None:
                rows.append(_row(*where[reply.item], judge.name, reply.value))
            progress(reply)

        tally = ask_experts(_questions(pairs, stop), [judge], store, purpose, on_reply, rounds, retry_failed)
    return tally, rows


def _called(model: str) -> str:
    """A short name for tables: of an endpoint and its model, or the last part of a path."""
    spec = endpoint_of(model)
    return f"{spec.name} ({spec.model})" if spec else Path(model).name


def judge_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of judge.json: each kind over all judges, then by judge."""
    counts = ("pairs", "wins", "ties", "losses")
    measures = {"win_rate": "win rate", "p_value": "p", "alpha": "alpha", "position_bias": "answer 1"}
    rows = [
        [kind.replace("_", "-"), name, *(str(c[k]) for k in counts), *(cell(c.get(k)) for k in measures),
         str(c["flips"])]
        for kind, found in result["kinds"].items()
        for name, c in (("all", found), *found["by_judge"].items())
    ]  # fmt: skip
    return ["kind", "judge", *counts, *measures.values(), "flips"], rows


def _row(pair: Pair, kind: Kind, order: str, judge: str, given: Judgement) -> dict[str, Any]:
    shown = pair.shown(kind)
    assert shown is not None
    return {
        "prompt": pair.prompt.id,
        "dataset": pair.prompt.dataset,
        "conversation": pair.prompt.conversation_id,
        "kind": kind,
        "judge": judge,
        "order": order,
        "shown_a": shown[0],
        "shown_b": shown[1],
        **given.aspects,
        "verdict": given.verdict,
        "winner": winner(given.verdict, order),
    }
