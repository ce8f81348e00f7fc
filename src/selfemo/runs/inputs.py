"""The inputs of a run: conversations with personas, and the cold start's samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from selfemo.config import Config, DataConfig, SftConfig
from selfemo.data import ADAPTERS, load, speakers_named
from selfemo.data.checks import check_names
from selfemo.data.personas_plain import describe_speakers, with_personas
from selfemo.data.splits import hold_out
from selfemo.errors import ConfigError, DataError, StoreError
from selfemo.method.prompts import Reasoning
from selfemo.method.types import Completion, Conversation, EmotionDistribution, Prompt
from selfemo.models.references import run_of
from selfemo.runs.overlap import DataOverlap, check_overlap
from selfemo.runs.store import STORE_FILE, Store
from selfemo.seeds import rng
from selfemo.stages.coldstart import gold_samples, label_samples, read_parquet
from selfemo.stages.personas import Who, attach_profiles

HOLD_OUT = 0.2
"""data.hold_out of a training run on data that name no split."""


def profiles_of(folder: Path) -> dict[Who, str]:
    """The profiles that `selfemo personas extract` left in a folder, by speaker (StoreError: none)."""
    if not (folder / STORE_FILE).exists():
        raise StoreError(f"{folder} is not a folder of `selfemo personas extract`: it has no {STORE_FILE}")
    with Store(folder / STORE_FILE, read_only=True) as store:
        known = {(p.dataset, p.scope, p.speaker): p.description for p in store.profiles()}
    if not known:
        raise StoreError(f"{folder} holds no profile yet; run `selfemo personas extract` to its end")
    return known


def with_known_personas(
    conversations: Sequence[Conversation], folders: Sequence[Path] = ()
) -> list[Conversation]:
    """Give each speaker a persona: the last folder's profile of it, else the conversation's own, else the
    plain description drawn from the training split, where speakers have names (StoreError: a folder holds no
    profile)."""
    result: list[Conversation] = []
    for labels in {c.label_set.name: c.label_set for c in conversations}.values():
        mine = [c for c in conversations if c.label_set.name == labels.name]
        described = describe_speakers([c for c in mine if speakers_named(c)], labels)
        result.extend(with_personas([c], described)[0] if speakers_named(c) else c for c in mine)
    for folder in folders:
        result = attach_profiles(result, profiles_of(folder))
    return result


def load_conversations(config: DataConfig, say: Callable[[str], None] | None = None) -> list[Conversation]:
    """All conversations of data.sources but those that data.exclude_overlap leaves out, with personas.

    Args:
        say: told in one line what was left out.

    Raises:
        DataError: a bad source, an id occurs twice, or nothing is left to train or to evaluate on.
    """
    conversations, overlap = _with_overlap(config)
    if say and overlap.left_out:
        say(overlap.line())
    return conversations


def load_sources(config: DataConfig) -> tuple[list[Sequence[Conversation]], DataOverlap]:
    """The conversations of each of data.sources, as they are there, and their overlap; see
    `load_conversations`."""
    if not config.sources:
        raise ConfigError(
            "no data: name your conversations by --data PATH, for example --data meld:PATH, which may be "
            "repeated (data.sources)"
        )
    if again := [s for s, n in Counter(config.sources).items() if n > 1]:
        raise DataError(f"{again[0]} is named twice in data.sources")
    loaded: list[Sequence[Conversation]] = []
    for result in (load(source, lenient=config.lenient) for source in config.sources):
        part, unsplit = result.conversations, result.report.without_split
        loaded.append(hold_out(part, unsplit, config.hold_out) if config.hold_out and unsplit else part)
    every = [c for part in loaded for c in part]
    names = {c.dataset for c in every}
    for adapter in ADAPTERS.values():
        if {adapter.name, adapter.same_utterances} <= names:
            raise DataError(
                f"{adapter.name} holds the utterances of {adapter.same_utterances} again; name one of both "
                "in data.sources"
            )
    check_names(every)
    twice = [i for i, n in Counter(c.id for c in every).items() if n > 1]
    if twice:
        raise DataError(f"conversation id {twice[0]!r} occurs twice in data.sources")
    return loaded, check_overlap(every, config)


def _with_overlap(config: DataConfig) -> tuple[list[Conversation], DataOverlap]:
    loaded, overlap = load_sources(config)
    gone, folders = set(overlap.left_out), [Path(f) for f in config.personas]
    conversations: list[Conversation] = []
    for part in loaded:
        # A plain persona is drawn from the training split, so what is left out goes first.
        conversations.extend(with_known_personas([c for c in part if c.id not in gone], folders))
    return conversations, overlap


def with_hold_out(config: Config, say: Callable[[str], None] | None = None) -> Config:
    """The configuration for training on it; see `held_out_of`."""
    data = held_out_of(config.data, say)
    return config if data is config.data else config.model_copy(update={"data": data})


def held_out_of(data: DataConfig, say: Callable[[str], None] | None = None) -> DataConfig:
    """The settings for training on data: where no conversation names a split, data.hold_out = HOLD_OUT.

    What is held out is split dev, which is evaluated; where data.hold_out is set, nothing changes.

    Args:
        say: told of conversations that name no split while others do.
    """
    if data.hold_out:
        return data
    results = [load(source, lenient=data.lenient) for source in data.sources]
    unsplit = sum(len(r.report.without_split) for r in results)
    count = sum(len(r.conversations) for r in results)
    if unsplit < count:
        if unsplit and say:
            say(
                f"{unsplit} of {count} conversations name no split, as others do: they are split test, and "
                "nothing is trained on them"
            )
        return data
    return data.model_copy(update={"hold_out": HOLD_OUT, "eval_split": "dev"})


class RunInputs(NamedTuple):
    """All conversations of a run, those that it trains on, and the overlap that was found between the two.

    What data.exclude_overlap leaves out is in neither list.
    """

    conversations: list[Conversation]
    training: list[Conversation]
    overlap: DataOverlap


def run_inputs(config: Config) -> RunInputs:
    """The inputs of a run; it trains on data.train_conversations (0: all) of the training split.

    Raises: ConfigError: no data is named. DataError: see `load_conversations`.
    """
    (conversations, overlap), limit = _with_overlap(config.data), config.data.train_conversations
    train = [c for c in conversations if c.split == "train"]
    if not train:
        there = ", ".join(f"{n} {s}" for s, n in Counter(c.split for c in conversations).items())
        raise DataError(
            f"no conversation of split 'train' in {', '.join(config.data.sources)} (there are: {there})"
        )
    if limit and limit < len(train):
        order = rng(config.seed, "train conversations").permutation(len(train))[:limit]
        train = [train[i] for i in sorted(order)]
    return RunInputs(conversations, train, overlap)


class ColdStart(NamedTuple):
    """Samples of a cold start; their source: "file" (sft.samples) or "gold" data; and how many of the file
    were left out, as they are of conversations that the run does not train on."""

    samples: list[tuple[Prompt, Completion]]
    source: str
    left_out: int = 0


_COLD = "cold/"
"""Begins the ids of the cold start's prompts: an original of RL may have another answerer or persona."""


def turn_of(prompt_id: str) -> str:
    """The id that the original prompt of the same turn has."""
    return prompt_id.removeprefix(_COLD)


def learned_from(model: str) -> set[str] | None:
    """Ids of the prompts whose samples the run behind a model gave its cold start; None without such a run.

    The run is that of RUN or RUN@CHECKPOINT, or MODEL.run, which `selfemo sft` leaves beside its model.
    """
    run = run_of(model) or Path(f"{model}.run")
    if not (run / STORE_FILE).exists():
        return None
    with Store(run / STORE_FILE, read_only=True) as store:
        return {turn_of(i) for i in store.given_samples()} or None


def seen_samples(train: Sequence[Conversation], config: Config) -> set[str]:
    """Ids of the prompts whose samples come last, since the model has learned from them (`sft.seen`)."""
    sft = config.sft
    if not sft.seen:
        return set()
    if (known := learned_from(config.model.id)) is not None:
        return known
    before = sft.model_copy(update={"max_samples": sft.seen, "seen": 0})
    samples = cold_start_samples(train, before, config.prompt.reasoning, config.seed).samples
    return {turn_of(p.id) for p, _ in samples}


def count_seen(samples: Sequence[tuple[Prompt, Completion]], seen: Collection[str]) -> int:
    """How many samples of a cold start are among `seen_samples`."""
    return sum(turn_of(p.id) in seen for p, _ in samples)


def cold_start_samples(
    train: Sequence[Conversation],
    sft: SftConfig,
    reasoning: Reasoning,
    seed: int,
    not_trained_on: Collection[str] = (),
    seen: Collection[str] = (),
) -> ColdStart:
    """The cold start's samples, of a file without those of the conversations `not_trained_on` (ids).

    Args:
        seen: `seen_samples`, which come last.

    Raises: ConfigError: they do not reason as prompt.reasoning asks. DataError: there is none, or a bad file.
    """
    if not sft.samples:
        if reasoning != "none":
            raise ConfigError(
                f"prompt.reasoning = {reasoning!r}: gold data hold no reasoning that a cold start could "
                'teach; use "none", or samples of experts (sft.samples)'
            )
        samples = gold_samples(train, sft.max_samples, seed, sft.max_emotion_share, seen)
        if not samples:
            raise DataError(
                "no cold-start sample: no training turn with an emotion is answered by another "
                "speaker's turn with an emotion"
            )
        return ColdStart(_under_new_ids(samples), "gold")
    found = read_parquet(Path(sft.samples))
    samples = [(p, c) for p, c in found if p.conversation_id not in not_trained_on]
    if not samples:
        raise DataError(
            f"all {len(found)} samples are of conversations that data.exclude_overlap leaves out", sft.samples
        )
    samples = _under_new_ids(sorted(samples, key=lambda s: s[0].id in seen))
    check_reasoning(reasoning, [c for _, c in samples], sft.samples)
    taken = samples[: sft.max_samples] if sft.max_samples else samples
    return ColdStart(taken, "file", len(found) - len(samples))


def more_labels(
    train: Sequence[Conversation], sft: SftConfig, samples: Sequence[tuple[Prompt, Completion]], seed: int
) -> list[tuple[Prompt, EmotionDistribution]]:
    """The sft.label_samples turns that teach E alone, besides the whole samples of the cold start."""
    if not sft.label_samples:
        return []
    taught = {turn_of(p.id) for p, _ in samples}
    return label_samples(train, taught, sft.label_samples, seed, sft.run_length)


def labels_taught(store: Store, train: Sequence[Conversation], config: Config) -> set[str]:
    """Ids of the original prompts whose label a sample has taught: one of the run's own that is not of
    self-play, or one of the model's earlier cold start (`sft.seen`)."""
    return {turn_of(i) for i in store.given_samples()} | seen_samples(train, config)


def _under_new_ids(samples: Sequence[tuple[Prompt, Completion]]) -> list[tuple[Prompt, Completion]]:
    return [(replace(p, id=f"{_COLD}{p.id}"), c) for p, c in samples]


def check_reasoning(wanted: Reasoning, completions: Sequence[Completion], where: str) -> None:
    """Refuse samples that do not reason as prompt.reasoning asks (ConfigError)."""
    reasons = sum(bool(c.reasoning) for c in completions)
    if (wanted != "none") != bool(reasons):
        raise ConfigError(
            f"{reasons} of {len(completions)} samples in {where} reason, and prompt.reasoning = "
            f"{wanted!r}; generate them with the same --reasoning"
        )
