"""Cold-start samples (SPEC section 4): from gold data, or written by experts (eq. 5).

Gold data teach the format: E is the gold emotion of the last utterance, S that of the utterance that really
follows, r its text. An expert writes all three for (H, P) in one pass; its sample is dropped where its E
disagrees with the gold emotion (R1 below a threshold) [ours].
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from selfemo.config import GateConfig
from selfemo.data.table_files import check_parquet
from selfemo.errors import DataError
from selfemo.files import fits_checksum, need_polars, replacing
from selfemo.method.parsing import parse, parse_emotions
from selfemo.method.prompts import (
    Reasoning,
    clean,
    conversation_prompts,
    format_completion,
    format_emotions,
    gold_completion,
    messages,
    prompt_at,
)
from selfemo.method.replies import reply_fault
from selfemo.method.rewards import weighted_iou
from selfemo.method.types import (
    MAX_EMOTIONS,
    Completion,
    Conversation,
    EmotionDistribution,
    LabelSet,
    Lineage,
    ParseFailure,
    Persona,
    Prompt,
    Utterance,
    label_set_of,
)
from selfemo.models.generation.chat import ExpertSpec
from selfemo.seeds import rng, shuffled_runs
from selfemo.stages.experts import (
    AnswerBook,
    MalformedError,
    Question,
    Reply,
    Tally,
    ask_experts,
    json_question,
    json_text,
    one_line,
    read_json,
)

PURPOSE = "coldstart"
AGREEMENT = 0.5
"""Least R1 of an expert's E against the gold emotion: half the weight on the right one scores 1/3."""
MAX_REPLY, MAX_REASONING = 400, 600
_ANSWER_TOKENS = 260


def gold_samples(
    conversations: Sequence[Conversation],
    max_samples: int = 0,
    seed: int = 0,
    max_share: float = 1.0,
    seen: Collection[str] = (),
) -> list[tuple[Prompt, Completion]]:
    """Samples without an expert, whole conversations at a time in an order drawn by `seed`.

    Args:
        max_samples: stop at this many; 0 takes all.
        max_share: most of max_samples that one emotion (the top of E) may hold; further ones are left out.
            There are fewer samples where the other emotions do not fill the rest.
        seen: ids of prompts whose samples come last, after all others.
    """
    samples: list[tuple[Prompt, Completion]] = []
    room = int(max_share * max_samples) if max_samples and max_share < 1 else None
    held: Counter[str] = Counter()
    order = rng(seed, "cold start").permutation(len(conversations))
    for again, k in product((False, True) if seen else (False,), order):
        conversation = conversations[k]
        for i in range(len(conversation.turns)):
            if (f"{conversation.id}/{i}" in seen) != again:
                continue
            if (completion := gold_completion(conversation, i)) is None:
                continue
            top = completion.emotion.top(conversation.label_set)
            if room is None or held[top] < room:
                held[top] += 1
                samples.append((prompt_at(conversation, i, gold=True), completion))
        if max_samples and len(samples) >= max_samples:
            return samples[:max_samples]
    return samples


def label_samples(
    conversations: Sequence[Conversation], taught: Collection[str], most: int, seed: int, run_length: int
) -> list[tuple[Prompt, EmotionDistribution]]:
    """Labelled turns as samples of E alone, in runs of adjacent turns of conversations drawn by `seed`.

    Args:
        taught: ids of prompts that are samples already.
        most: how many; below 0 all.
    """
    prompts = [p for c in conversations for p in conversation_prompts(c) if p.id not in taught]
    order = shuffled_runs([p.conversation_id for p in prompts], run_length, rng(seed, "label samples"))
    chosen = order if most < 0 else order[:most]
    return [(prompts[i], gold) for i in sorted(chosen) if (gold := prompts[i].target)]


LEAST_OWN_WEIGHT = 0.6
"""With less, an emotion that the model believes in could outweigh the sample's own, in whole tenths."""
Believed = Callable[[Sequence[tuple[Prompt, str]]], list[EmotionDistribution]]
"""From (prompt, completion up to "E:" or "S:") to a model's probability of each label."""


def blend(own: EmotionDistribution, believed: EmotionDistribution, own_weight: float) -> EmotionDistribution:
    """own_weight * own + (1 - own_weight) * believed, cut to MAX_EMOTIONS; a mixed `own` stays as it is."""
    if len(own) > 1:
        return own
    mixed = {
        e: own_weight * own.weight(e) + (1 - own_weight) * believed.weight(e)
        for e in sorted(own.keys() | believed.keys())
    }
    kept = sorted(mixed, key=lambda e: (-mixed[e], -own.weight(e), e))[:MAX_EMOTIONS]
    return EmotionDistribution({e: mixed[e] for e in kept})


def soften(
    samples: Sequence[tuple[Prompt, Completion]], believed: Believed, own_weight: float
) -> list[tuple[Prompt, Completion]]:
    """Add to each E and S that names one emotion the others that a model believes in.

    A model that learned from gold labels names one emotion, so the consensus reward (eq. 12) is nearly the
    same for all completions of a group. Samples of experts name several.

    Raises: ValueError: own_weight is not in [LEAST_OWN_WEIGHT, 1].
    """
    if not LEAST_OWN_WEIGHT <= own_weight <= 1:
        raise ValueError(f"own_weight {own_weight} is not in [{LEAST_OWN_WEIGHT}, 1]")
    thoughts = [f"T: {clean(c.reasoning)}\n" if c.reasoning else "" for _, c in samples]
    heard = believed([(p, f"{t}E:") for (p, _), t in zip(samples, thoughts, strict=True)])
    emotions = [blend(c.emotion, b, own_weight) for (_, c), b in zip(samples, heard, strict=True)]
    written = [f"{t}E: {format_emotions(e)}\nS:" for t, e in zip(thoughts, emotions, strict=True)]
    felt = believed([(p, text) for (p, _), text in zip(samples, written, strict=True)])
    return [
        (p, replace(c, emotion=e, self_emotion=blend(c.self_emotion, b, own_weight)))
        for (p, c), e, b in zip(samples, emotions, felt, strict=True)
    ]


def _emotions(value: Any, what: str, labels: LabelSet) -> EmotionDistribution:
    if isinstance(value, str):
        written = value
    elif isinstance(value, dict) and value:
        written = ", ".join(f"{e} {json.dumps(w)}" for e, w in value.items())
    else:
        raise MalformedError("schema", f"{what} must name emotions with weights")
    read = parse_emotions(written, labels)
    if isinstance(read, ParseFailure):
        raise MalformedError(
            read.kind.value,
            f"{what}: {read.kind.value.replace('_', ' ')} ({read.detail}); valid are "
            f"{', '.join(labels)}, at most {MAX_EMOTIONS} of them, with weights above 0",
        )
    return read


def read_sample(text: str, labels: LabelSet, reasoning: Reasoning) -> Completion:
    """An expert's answer as a completion (MalformedError: no JSON, a wrong key, an unknown emotion)."""
    thought = ["reasoning"] if reasoning != "none" else []
    found = read_json(text, "emotion", "self_emotion", "reply", *thought)
    reply = one_line(found["reply"], "reply", MAX_REPLY)
    why = one_line(found["reasoning"], "reasoning", MAX_REASONING) if thought else ""
    emotion, felt = (_emotions(found[k], k, labels) for k in ("emotion", "self_emotion"))
    completion = Completion(emotion, felt, reply, why)
    # The reply may hold marks of the format itself; the model would learn a broken sample.
    if isinstance(read := parse(format_completion(completion), labels), ParseFailure):
        raise MalformedError(read.kind.value, f"the reply or reasoning breaks the format: {read.detail}")
    return completion


def question(prompt: Prompt, reasoning: Reasoning = "none") -> Question[Completion]:
    """The question of eq. 5 for (H, P); nothing of the target or of a later turn is in it."""
    labels = prompt.label_set
    # A pattern, not an object: structured output cannot say "one to three of these keys".
    one = rf"({'|'.join(map(re.escape, labels))}) ([1-9]|10)"
    weights = {"type": "string", "pattern": rf"^{one}(, {one}){{0,{MAX_EMOTIONS - 1}}}$"}
    scene = f"Scene: {clean(prompt.scenario)}\n" if prompt.scenario else ""
    dialogue = "".join(f"{clean(u.speaker)}: {clean(u.text)}\n" for u in prompt.history)
    persona = f" ({clean(prompt.persona.description)})" if prompt.persona.description else ""
    last, answerer = clean(prompt.interlocutor), clean(prompt.answerer)
    form = {
        "reasoning": "...",
        "emotion": f"{labels.labels[0]} 7, {labels.labels[1]} 3",
        "self_emotion": f"{labels.labels[0]} 10",
        "reply": "...",
    }
    properties = {
        "reasoning": json_text(MAX_REASONING),
        "emotion": weights,
        "self_emotion": weights,
        "reply": json_text(MAX_REPLY),
    }
    if reasoning == "none":
        del form["reasoning"], properties["reasoning"]
    why = {
        "none": "",
        "brief": "reasoning: one sentence, why.\n",
        "full": (
            f"reasoning: how {last} feels and why; then how {answerer} feels about it, from their "
            "personality and the scene; then how they answer.\n"
        ),
    }[reasoning]
    return json_question(
        prompt.id,
        "You are an expert on emotions in conversation and a writer of dialogue.",
        f"{scene}{dialogue}\nNext speaks {answerer}{persona}.\n\n{why}"
        f"emotion: what {last} feels in the last line, at most {MAX_EMOTIONS} of "
        f"{', '.join(labels)}, each with a weight from 1 to 10.\n"
        f"self_emotion: what {answerer} feels on hearing it, in the same form.\n"
        f"reply: what {answerer} says next, one or two sentences, as such a person would, with "
        f"that feeling.\nForm: {json.dumps(form)}",
        properties,
        lambda text: read_sample(text, labels, reasoning),
        _ANSWER_TOKENS + (0 if reasoning == "none" else MAX_REASONING // 4),
    )


def expert_prompts(
    conversations: Sequence[Conversation], max_samples: int = 0, seed: int = 0
) -> list[Prompt]:
    """Prompts for experts, whole conversations at a time in an order drawn by `seed`."""
    prompts: list[Prompt] = []
    for k in rng(seed, "cold start").permutation(len(conversations)):
        prompts.extend(conversation_prompts(conversations[k]))
        if max_samples and len(prompts) >= max_samples:
            return prompts[:max_samples]
    return prompts


def expert_samples(
    prompts: Iterable[Prompt],
    specs: Sequence[ExpertSpec],
    book: AnswerBook,
    *,
    reasoning: Reasoning = "none",
    agreement: float = AGREEMENT,
    rounds: int = 2,
    retry_failed: bool = False,
    on_reply: Callable[[Reply[Completion]], None] = lambda reply: None,
) -> tuple[list[tuple[Prompt, Completion]], Tally, Counter[str]]:
    """Samples written by experts, in the order of the prompts; for `rounds` and `retry_failed` see `ask_all`.

    Returns:
        The samples that agree with gold; the counts of the questions; the number of dropped samples by
        reason: "disagrees_with_gold", a fault of the reply (gate.py), or a failure kind.
    """
    asked: dict[str, tuple[int, Prompt]] = {}
    kept: dict[int, tuple[Prompt, Completion]] = {}
    dropped: Counter[str] = Counter()

    def questions() -> Iterator[Question[Completion]]:
        for k, prompt in enumerate(prompts):
            asked[prompt.id] = (k, prompt)
            yield question(prompt, reasoning)

    def keep(_: Question[Completion], reply: Reply[Completion]) -> None:
        k, prompt = asked.pop(reply.item)
        written = reply.value
        if written is None:
            dropped[reply.kind] += 1
        elif prompt.target and weighted_iou(written.emotion, prompt.target) < agreement:
            dropped["disagrees_with_gold"] += 1
        elif fault := reply_fault(prompt, written.reply, GateConfig()):
            dropped[fault] += 1
        else:
            kept[k] = (prompt, written)
        on_reply(reply)

    tally = ask_experts(questions(), specs, book, PURPOSE, keep, rounds, retry_failed)
    return [kept[k] for k in sorted(kept)], tally, dropped


def parquet_row(prompt: Prompt, completion: Completion, reasoning: Reasoning, source: str) -> dict[str, Any]:
    """One sample as a row of the files that `read_parquet` reads."""
    return {
        "prompt": messages(prompt, reasoning),
        "completion": [{"role": "assistant", "content": format_completion(completion)}],
        "id": prompt.id,
        "dataset": prompt.dataset,
        "conversation": prompt.conversation_id,
        "labels": list(prompt.label_set.labels),
        "answerer": prompt.answerer,
        "persona": prompt.persona.description,
        "scene": prompt.scenario,
        "history": [{"speaker": u.speaker, "text": u.text} for u in prompt.history],
        "gold": [{"emotion": e, "weight": w} for e, w in (prompt.target or {}).items()],
        "source": source,
    }


def parquet_schema(pl: Any) -> dict[str, Any]:
    """The columns of `parquet_row` as polars types."""
    message = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    turn = pl.List(pl.Struct({"speaker": pl.String, "text": pl.String}))
    weights = pl.List(pl.Struct({"emotion": pl.String, "weight": pl.Float64}))
    return {
        "prompt": message,
        "completion": message,
        **dict.fromkeys(("id", "dataset", "conversation"), pl.String),
        "labels": pl.List(pl.String),
        **dict.fromkeys(("answerer", "persona", "scene"), pl.String),
        "history": turn,
        "gold": weights,
        "source": pl.String,
    }


def write_parquet(
    path: Path, samples: Iterable[tuple[Prompt, Completion]], reasoning: Reasoning, source: str
) -> int:
    """Write samples as chats, with the sha256 beside the file; returns the number of rows.

    `prompt` and `completion` are lists of messages, as TRL's SFTTrainer takes them; the other columns hold
    the parts of the prompt.

    Raises:
        MissingExtraError: polars is not installed.
        DataError: there is no sample, or the file cannot be written.
    """
    pl = need_polars()
    rows = [parquet_row(p, c, reasoning, source) for p, c in samples]
    if not rows:
        raise DataError("no sample was left to write; see the counts of what was dropped", path)
    frame = pl.DataFrame(rows, schema=parquet_schema(pl))
    with replacing(path, DataError, checksum=_checksum_file(path)) as staging:
        frame.write_parquet(staging)
    return len(rows)


def _checksum_file(path: Path) -> Path:
    """The checksum beside the samples, as `sha256sum -c` reads it."""
    return path.with_name(path.name + ".sha256")


def _check_whole(path: Path) -> None:
    """Check a Parquet file by its checksum; without one, as `check_parquet` does.

    Raises: DataError: it is damaged, or altered since it was written.
    """
    checksum = _checksum_file(path)
    if checksum.exists():
        if not fits_checksum(path, checksum):
            raise DataError(
                f"differs from its checksum in {checksum.name}: damaged or altered since it was written; "
                f"make it again, or delete {checksum.name} if you altered it yourself",
                path,
            )
        return
    check_parquet(path)


def read_parquet(path: Path) -> list[tuple[Prompt, Completion]]:
    """The samples of a file that `write_parquet` wrote.

    Raises: DataError: it is missing, of another form, damaged or altered, or a row does not parse.
    """
    pl = need_polars()
    try:
        _check_whole(path)
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as e:
        raise DataError(f"cannot be read as Parquet: {str(e).splitlines()[0]}", path) from None
    if missing := [c for c in parquet_schema(pl) if c not in (*frame.columns, "prompt", "source")]:
        raise DataError(
            f"has no column {', '.join(missing)}; files of `selfemo coldstart generate` have", path
        )
    samples = []
    for n, row in enumerate(frame.iter_rows(named=True), 1):
        try:
            samples.append(_sample_of_row(row))
        except (ValueError, TypeError, KeyError, IndexError) as e:
            raise DataError(f"row {n}: {e}", path) from None
    if not samples:
        raise DataError("holds no sample", path)
    return samples


def _sample_of_row(row: dict[str, Any]) -> tuple[Prompt, Completion]:
    labels = label_set_of(row["labels"])
    gold = {g["emotion"]: g["weight"] for g in row["gold"] or ()}
    completion = parse(row["completion"][0]["content"], labels)
    if isinstance(completion, ParseFailure):
        raise ValueError(f"its completion does not parse: {completion.kind.value}")
    if not row["history"]:
        raise ValueError("its history is empty")
    prompt = Prompt(
        id=row["id"],
        dataset=row["dataset"],
        conversation_id=row["conversation"],
        label_set=labels,
        history=tuple(Utterance(u["speaker"], u["text"]) for u in row["history"]),
        answerer=row["answerer"],
        persona=Persona(row["answerer"], row["persona"], row["scene"]),
        target=EmotionDistribution(gold) if gold else None,
        scenario=row["scene"],
        lineage=Lineage(),
    )
    return prompt, completion
