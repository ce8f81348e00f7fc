"""Analysis of each checkpoint of a run on the same held-out prompts (fig. 6 and beyond, SPEC section 7).

Each checkpoint writes one completion per prompt with the run's sampling settings. Its record has the mean
entropy of the policy over the tokens of the emotion span E, the self-emotion span S and the reply; whether
the checkpoint itself recognises in the reply the emotion that S declared (round trip [ours]); the diversity
of the replies; the shares of the emotions. An independent reader says more (readers.py): a checkpoint that
declares one emotion and reads that one has a perfect round trip. For it each completion is also written anew
behind its E line with an S that is given (given.py). RUN/analysis.json is written after each checkpoint, so
an analysis that was stopped goes on; it holds the replies, so that another reader needs no new ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from selfemo.config import Config
from selfemo.data.splits import drawn, held_out
from selfemo.evaluation.given import answer_given, given_emotions
from selfemo.evaluation.metrics import mean_interval
from selfemo.evaluation.predictions import gold_prompts, predict
from selfemo.evaluation.readers import GIVEN, REAL, Reply, independent_reader, real_replies
from selfemo.evaluation.reading import (
    ANALYSIS_FILE,
    VERSION,
    compare_runs,
    other_run,
    read_analysis,
    read_run,
)
from selfemo.evaluation.rendering import cell
from selfemo.files import write_json
from selfemo.method.diversity import distinct, self_bleu, share_entropy
from selfemo.method.parsing import field_spans, parse
from selfemo.method.prompts import Fitted, fit
from selfemo.method.rewards import exact_match, weighted_iou
from selfemo.method.types import (
    Completion,
    Conversation,
    EmotionDistribution,
    LabelSet,
    ParseFailure,
    Prompt,
    RawCompletion,
)
from selfemo.models.generation import open_sampler
from selfemo.models.generation.requests import Request
from selfemo.models.sampler import Sampler
from selfemo.progress import Reporter, StopRequest
from selfemo.runs.folder import START, RunFolder, checkpoints
from selfemo.runs.inputs import load_conversations
from selfemo.seeds import derive
from selfemo.stages.completions import sampling_settings
from selfemo.stages.selfplay import PersonaOf, next_prompt, persona_book

Decode = Callable[[Sequence[int]], str]
OnWritten = Callable[[Prompt, str, Completion | ParseFailure], None]
SPANS = {"E": "emotion", "S": "self_emotion", "R": "reply"}


def token_starts(ids: Sequence[int], decode: Decode) -> list[int]:
    """The index in decode(ids) of the character at which each sampled token begins.

    The starts come from decoding prefixes, since encoding the text may give other ids than the sampled ones.
    A token that holds only a part of a character's bytes begins at that character. An end token, which
    decodes to nothing, begins at the end of the text.
    """
    text, starts, at = decode(ids), [], 0
    for k in range(len(ids)):
        starts.append(at)
        # Bytes of an unfinished character decode to U+FFFD, which the whole text does not have there.
        same = takewhile(lambda c: c[0] == c[1], zip(decode(ids[: k + 1]), text, strict=False))
        at = max(at, len(list(same)))
    return starts


def span_entropies(sample: RawCompletion, decode: Decode) -> dict[str, list[float]]:
    """Entropies (nats) of the tokens of each span of SPANS, and of all tokens ("all").

    A token belongs to the span of its first character that is not a blank: " joy" after "E:" belongs to E. A
    line end or a marker belongs to no span.
    """
    text, starts = decode(sample.token_ids), token_starts(sample.token_ids, decode)
    spans = [(SPANS[f], a, b) for f, a, b in field_spans(text) if f in SPANS]
    found: dict[str, list[float]] = {"all": list(sample.entropies), **{s: [] for s in SPANS.values()}}
    for k, (start, entropy) in enumerate(zip(starts, sample.entropies, strict=True)):
        end = starts[k + 1] if k + 1 < len(starts) else len(text)
        blanks = end - start - len(text[start:end].lstrip())
        if not blanks or start + blanks < end:
            for name, a, b in spans:
                if a <= start + blanks < b:
                    found[name].append(entropy)
    return found


def _mean(values: Sequence[float], clusters: Sequence[str], resamples: int) -> list[float] | None:
    return mean_interval(values, clusters, resamples=resamples).as_list() if values else None


def _shares(distributions: Sequence[tuple[EmotionDistribution, LabelSet]]) -> dict[str, Any]:
    tops = Counter(d.top(labels) for d, labels in distributions)
    names = dict.fromkeys(e for _, labels in distributions for e in labels)
    share = {e: tops[e] / len(distributions) for e in names}
    return {"share": share, "entropy": share_entropy(share) if share else None}


def chosen_prompts(config: Config, n: int) -> tuple[list[Prompt], PersonaOf, list[Conversation]]:
    """n of the prompts that a run evaluates on, drawn by its seed (0: all), in file order; personas; the
    conversations that the prompts are of.

    Raises:
        DataError: the split is empty or has no gold emotion.
    """
    data, conversations = config.data, load_conversations(config.data)
    held = held_out(conversations, data.eval_split, data.eval_conversations, 0, data.eval_half)
    prompts = drawn(gold_prompts(held), n, config.seed, "analysis prompts")
    ids = {p.conversation_id for p in prompts}
    return prompts, persona_book(conversations), [c for c in held if c.id in ids]


def analyse_checkpoint(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    persona_of: PersonaOf,
    config: Config,
    on_done: Callable[[int], None] = lambda n: None,
    *,
    reader: Sampler | None = None,
    on_written: OnWritten = lambda prompt, text, parsed: None,
    on_given: OnWritten | None = None,
) -> dict[str, Any]:
    """The record of one checkpoint; every [value, low, high] is a 95% interval by conversation.

    Args:
        reader: hears the replies of the round trip; without one, the checkpoint itself. One reader for
            several checkpoints tells replies that show their S from a recogniser that has changed.
        on_written: told each completion, as it was written and as it was parsed.
        on_given: told each completion whose S is given; without it none is sampled.
    """
    resamples, limit = config.evaluation.resamples, config.prompt
    asked, requests = list[Fitted](), []
    for p in prompts:
        if (f := fit(p, sampler.encode, limit.max_tokens, limit.reasoning)) is not None:
            asked.append(f)
            seed = derive(config.seed, "analysis", p.id)
            requests.append(Request(f.ids, seed=seed, share=p.conversation_id))
    samples = [s[0] for s in sampler.generate(requests, sampling_settings(config.sampling), on_done)]
    entropies: dict[str, list[float]] = {s: [] for s in ("all", *SPANS.values())}
    clusters: dict[str, list[str]] = {s: [] for s in entropies}
    answered: list[tuple[Prompt, Completion]] = []
    begun: list[tuple[Fitted, str]] = []
    failures: Counter[str] = Counter()
    for fitted, sample in zip(asked, samples, strict=True):
        prompt = fitted.prompt
        parsed = parse(sample.text, prompt.label_set, finished=sample.finished)
        on_written(prompt, sample.text, parsed)
        by_span = span_entropies(sample, sampler.decode)
        if isinstance(parsed, ParseFailure):
            failures[parsed.kind.value] += 1
            by_span = {"all": by_span["all"]}
        else:
            answered.append((prompt, parsed))
            begun.append((fitted, sample.text))
        for span, values in by_span.items():
            entropies[span] += values
            clusters[span] += [prompt.conversation_id] * len(values)
    if on_given is not None:
        emotions = given_emotions(prompts, config.seed)
        given = answer_given(sampler, begun, emotions, config, on_done)
        for (fitted, _), (text, completion) in zip(begun, given, strict=True):
            on_given(fitted.prompt, text, completion)
    heard = [
        replace(next_prompt(p, c, persona_of, 0, "analysis"), id=f"analysis/{p.id}") for p, c in answered
    ]
    reads = predict(reader or sampler, heard, config.evaluation, config.prompt, on_done) if heard else []
    pairs = [(r, c.self_emotion) for r, (_, c) in zip(reads, answered, strict=True)]
    round_trip = {
        "r1": [weighted_iou(r.predicted, y) for r, y in pairs],
        "top_match": [exact_match(r.predicted, y, r.prompt.label_set) for r, y in pairs],
    }
    by_reply, replies = [p.conversation_id for p in heard], [c.reply for _, c in answered]
    return {
        "prompts": len(asked),
        "too_long": len(prompts) - len(asked),
        "parsed": len(answered),
        "failures": dict(sorted(failures.items())),
        "entropy": {s: _mean(v, clusters[s], resamples) for s, v in entropies.items()},
        "tokens": {s: len(v) for s, v in entropies.items()},
        "round_trip": {
            "unread": sum(r.predicted is None for r in reads),
            **{k: _mean(v, by_reply, resamples) for k, v in round_trip.items()},
        },
        "diversity": {
            "distinct_1": distinct(replies, 1),
            "distinct_2": distinct(replies, 2),
            "self_bleu": self_bleu(replies),
            "different_replies": len(set(replies)) / len(replies) if replies else None,
        },
        "emotion": _shares([(c.emotion, p.label_set) for p, c in answered]),
        "self_emotion": _shares([(c.self_emotion, p.label_set) for p, c in answered]),
    }


def analyse(
    folder: Path,
    n: int,
    reporter: Reporter,
    stop: StopRequest | None = None,
    *,
    reader: str | None = None,
    against: Path | None = None,
) -> dict[str, Any]:
    """Analyse the checkpoints of a run that are not yet in RUN/analysis.json, on n prompts (0: all).

    Another n starts again. A checkpoint whose weights were not kept is named and left out.

    Args:
        reader: an independent reader of the replies (`readers.independent_reader`). Readers of before stay;
            one whose weights have changed reads again.
        against: another run, which the same reader has read on the same prompts: whose last replies show a
            given S better.

    Raises:
        StoreError: the folder is not a run, or in use; or the other run has no such analysis.
        ConfigError: the reader is not independent of the run.
        EngineError: the reader cannot be had, or does not know a label set of the data; before anything is
            sampled.
        Stopped: a stop was asked for; the finished checkpoints are kept.
    """
    old = read_analysis(folder)
    stop = stop or StopRequest()
    with RunFolder(folder, None, reporter, stop) as run:
        prompts, persona_of, conversations = chosen_prompts(run.config, n)
        result: dict[str, Any] = {
            "version": VERSION,
            "split": run.config.data.eval_split,
            "prompts": [p.id for p in prompts],
            "temperature": run.config.sampling.temperature,
        }
        if old is None or any(old.get(k) != v for k, v in result.items()):
            old = {}
        result |= {part: old.get(part, {}) for part in ("checkpoints", "replies", "readers")}
        other = other_run(against, reader, result) if against and reader else None
        judge = None if reader is None else independent_reader(reader, folder, run.config, prompts)
        known, replies = result["checkpoints"], result["replies"]
        copied, names = run.copied(), checkpoints(run.config)
        for name in names:
            # An analysis of an earlier version has no replies, or none whose S is given.
            if name in known and (judge is None or name + GIVEN in replies):
                continue
            source = copied.get(name, "")
            if source in known and (judge is None or source + GIVEN in replies):
                known[name] = known[source]
                replies |= {
                    name + end: replies[source + end] for end in ("", GIVEN) if source + end in replies
                }
                continue
            if name != START and not (folder / "checkpoints" / name / "config.json").exists():
                reporter.say(f"{name}: its weights were not kept; left out")
                continue
            stop.check()
            with reporter.bar(f"analyse {name}", 3 * len(prompts)) as advance:
                known[name], own, given = _answers(run, name, prompts, persona_of, advance, stop)
                replies |= {name: own, name + GIVEN: given}
            write_json(folder / ANALYSIS_FILE, result)
        # An analysis of an earlier version gets the policies after RL last.
        for part in (known, replies):
            ordered = {key: part[key] for n in names for key in (n, n + GIVEN) if key in part}
            part.clear()
            part.update(ordered)
        write_json(folder / ANALYSIS_FILE, result)
        if reader is not None and judge is not None:
            by_id = {p.id: p for p in prompts}
            said = {
                name: [Reply.kept(by_id[i], record) for i, record in written.items()]
                for name, written in replies.items()
            }
            said[REAL] = real_replies(conversations)
            read_run(reader, judge, said, run, result, reporter, stop)
            if other is not None:
                compare_runs(result["readers"][reader], said, other, by_id)
                write_json(folder / ANALYSIS_FILE, result)
    return result


def _answers(
    run: RunFolder,
    checkpoint: str,
    prompts: Sequence[Prompt],
    persona_of: PersonaOf,
    advance: Callable[..., None],
    stop: StopRequest,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The record of a checkpoint, and by prompt the reply to each that parsed (`Reply.record`): with its own
    S, and with a given one."""

    def on_done(k: int) -> None:
        advance(k)
        stop.check()

    def keep(replies: dict[str, Any], prompt: Prompt, text: str, parsed: Completion | ParseFailure) -> None:
        if isinstance(parsed, Completion):
            replies[prompt.id] = Reply.of(prompt, parsed).record

    own, given = dict[str, Any](), dict[str, Any]()
    sampler = open_sampler(run.weights(checkpoint), run.config.model)
    record = analyse_checkpoint(
        sampler, prompts, persona_of, run.config, on_done,
        on_written=partial(keep, own), on_given=partial(keep, given),
    )  # fmt: skip
    return record, own, given


def analysis_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of text, one per checkpoint."""
    header = [
        "checkpoint", "parsed", "H(E)", "H(S)", "H(reply)", "round trip R1", "top match",
        "distinct-2", "self-BLEU", "H(shares of E)", "H(shares of S)",
    ]  # fmt: skip
    rows = [
        [
            name, f"{c['parsed']}/{c['prompts']}", *(cell(c["entropy"][s]) for s in SPANS.values()),
            cell(c["round_trip"]["r1"]), cell(c["round_trip"]["top_match"]),
            cell(c["diversity"]["distinct_2"]), cell(c["diversity"]["self_bleu"]),
            cell(c["emotion"]["entropy"]), cell(c["self_emotion"]["entropy"]),
        ]
        for name, c in result["checkpoints"].items()
    ]  # fmt: skip
    return header, rows
