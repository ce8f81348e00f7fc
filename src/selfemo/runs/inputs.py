"""The inputs of a run, by its configuration: conversations with personas, and the cold start's samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from selfemo.config import Config, DataConfig, SftConfig
from selfemo.data import load
from selfemo.errors import ConfigError, DataError
from selfemo.method.prompts import Reasoning
from selfemo.method.types import Completion, Conversation, Prompt
from selfemo.runs.profiles import with_known_personas
from selfemo.seeds import rng
from selfemo.stages.coldstart import gold_samples, read_parquet


def load_conversations(config: DataConfig) -> list[Conversation]:
    """All conversations of the configured sources, each speaker with a persona.

    The profiles of data.personas come first, then a conversation's own personas, then the plain
    description drawn from the training split.

    Raises:
        DataError: a source cannot be used, or a conversation id occurs twice.
    """
    conversations: list[Conversation] = []
    for source in config.sources:
        loaded = load(source, lenient=config.lenient).conversations
        conversations.extend(with_known_personas(loaded, [Path(f) for f in config.personas]))
    twice = [i for i, n in Counter(c.id for c in conversations).items() if n > 1]
    if twice:
        raise DataError(f"conversation id {twice[0]!r} occurs twice in data.sources")
    return conversations


def training_conversations(
    conversations: Sequence[Conversation], limit: int, seed: int
) -> list[Conversation]:
    """The train split, cut to `limit` conversations drawn by the seed (0: all)."""
    train = [c for c in conversations if c.split == "train"]
    if not train:
        raise DataError("data.sources hold no conversation of split 'train'")
    if limit and limit < len(train):
        order = rng(seed, "train conversations").permutation(len(train))[:limit]
        train = [train[i] for i in sorted(order)]
    return train


def run_inputs(config: Config) -> tuple[list[Conversation], list[Conversation]]:
    """All conversations of a run, and those it trains on."""
    conversations = load_conversations(config.data)
    limit = config.data.train_conversations
    return conversations, training_conversations(conversations, limit, config.seed)


def cold_start_samples(
    train: Sequence[Conversation], sft: SftConfig, reasoning: Reasoning, seed: int
) -> tuple[list[tuple[Prompt, Completion]], str]:
    """The cold start's samples and their source: the file sft.samples, or the gold data.

    Raises:
        ConfigError: the samples do not reason as prompt.reasoning asks.
        DataError: there is no sample, or the file cannot be read.
    """
    if not sft.samples:
        if reasoning != "none":
            raise ConfigError(
                f"prompt.reasoning = {reasoning!r}: gold data hold no reasoning that a cold start could "
                'teach; use "none", or samples of experts (sft.samples)'
            )
        samples = gold_samples(train, sft.max_samples, seed, sft.max_emotion_share)
        if not samples:
            raise DataError(
                "no cold-start sample: no training turn with an emotion is answered by another "
                "speaker's turn with an emotion"
            )
        return samples, "gold"
    # Ids of their own: an original prompt of the same turn may carry another persona.
    samples = [(replace(p, id=f"cold/{p.id}"), c) for p, c in read_parquet(Path(sft.samples))]
    check_reasoning(reasoning, [c for _, c in samples], sft.samples)
    return (samples[: sft.max_samples] if sft.max_samples else samples), "file"


def check_reasoning(wanted: Reasoning, completions: Sequence[Completion], where: str) -> None:
    """Raises: ConfigError, where samples do not reason as prompt.reasoning asks."""
    reasons = sum(bool(c.reasoning) for c in completions)
    if (wanted != "none") != bool(reasons):
        raise ConfigError(
            f"{reasons} of {len(completions)} samples in {where} reason, and prompt.reasoning = "
            f"{wanted!r}; generate them with the same --reasoning"
        )
