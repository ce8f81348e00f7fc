"""The independent reader of an analysis: who may judge a run, what it reads, what is counted of it.

It reads the replies that the checkpoints wrote for the analysis, and the turns that people really gave next
in the same conversations, with their gold emotion as S, for comparison. What it reads is kept in
RUN/analysis.json, by reader, so that nothing is read twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfemo.config import Config
from selfemo.errors import ConfigError, EngineError
from selfemo.evaluation.expression import ReadReply, expression_record
from selfemo.evaluation.rendering import rounded
from selfemo.files import sha256
from selfemo.method.prompts import gold_completion, prompt_at
from selfemo.method.replies import names_label
from selfemo.method.types import Completion, Conversation, EmotionDistribution, Prompt
from selfemo.models.generation import backend_of
from selfemo.models.generation.chat import names_endpoint, parse_expert
from selfemo.models.references import CHECKPOINTS, CHECKSUMS, READER_FILE, ModelReference, run_of
from selfemo.models.reply_readers import ReplyReader, check_not_above, open_reply_reader
from selfemo.models.sampler import CHUNK

GIVEN = ", S given"
"""Behind the name of a checkpoint: its replies to an S that is given (given.py)."""
REAL = "real next turns"
"""In what a reader found: the turns that people gave next, beside the replies of the checkpoints."""
Weights = Mapping[str, float]
"""A distribution in a JSON file."""
Found = Mapping[str, Weights | None]
"""What a reader finds, by the id of the prompt; None where it could not read the reply."""


@dataclass(frozen=True)
class Reply:
    """A reply to a prompt, and the S that it declares."""

    prompt: Prompt
    declared: EmotionDistribution
    text: str

    @staticmethod
    def of(prompt: Prompt, completion: Completion) -> Reply:
        return Reply(prompt, completion.self_emotion, completion.reply)

    @staticmethod
    def kept(prompt: Prompt, record: Mapping[str, Any]) -> Reply:
        """A reply from its `record`."""
        return Reply(prompt, EmotionDistribution(record["self_emotion"]), record["reply"])

    @property
    def record(self) -> dict[str, Any]:
        return {"self_emotion": rounded(self.declared), "reply": self.text}


def real_replies(conversations: Sequence[Conversation]) -> list[Reply]:
    """The turns that people gave next to another speaker's, their gold emotion as S."""
    return [
        Reply.of(prompt_at(c, last, gold=True), completion)
        for c in conversations
        for last in range(len(c.turns))
        if (completion := gold_completion(c, last)) is not None
    ]


def independent_reader(reference: str, run: Path, config: Config, prompts: Sequence[Prompt]) -> ReplyReader:
    """Open the reader that is to judge a run, and have it read a reply of each label set.

    Args:
        prompts: those that the run's checkpoints answer.

    Raises:
        ConfigError: the reader is a checkpoint of the run, or what its replies are rewarded by.
        EngineError: no such model, or an encoder that was not trained on a label set; and others, as
            `open_reply_reader`.
    """
    # A reader sees what others wrote; whether the run's own model reasons first says nothing of it.
    prompt = config.prompt.model_copy(update={"reasoning": "none"})
    first = {p.label_set: p for p in reversed(prompts)}
    try:
        check_not_above(reference)
        why = _dependence(reference, run, config)
        if not why:
            reader = open_reply_reader(reference, config.model, prompt)
            reader.read([(p, p.history[-1].text) for p in first.values()])
    except EngineError as e:
        raise EngineError(f"--reader {reference}: {e}") from None
    if why:
        raise ConfigError(
            f"--reader {reference}: {why}; a reader that judges must be another model, as one that "
            "`selfemo baseline encoder --keep` trains"
        )
    return reader


def _dependence(reference: str, run: Path, config: Config) -> str:
    """Why a reader may not judge a run; "" where it may."""
    weights = weight_sums(reference)
    home = run_of(str(Path(reference).resolve()) if Path(reference).exists() else reference)
    if home is not None and home.resolve() == run.resolve():
        return "it is of the run that it is to judge"
    if weights and any(weights == _sums(f) for f in (run / CHECKPOINTS).glob("*")):
        return "it has the weights of a checkpoint of the run that it is to judge"
    if _same(reference, config.model.id):
        return f"it is the model that {run} began with"
    listener = getattr(config.reward, "listener", "reference")
    return (
        "it is the listener that rewards in this run (reward.listener)" if _same(reference, listener) else ""
    )


def _same(reference: str, other: str) -> bool:
    """Whether two references name one model."""
    if reference == other:
        return True
    if names_endpoint(reference) and names_endpoint(other):
        mine, theirs = parse_expert(reference), parse_expert(other)
        return (mine.url, mine.model) == (theirs.url, theirs.model)
    try:
        folders = [f and f.resolve() for f in map(_folder, (reference, other))]
    except EngineError:  # of a setting whose model is gone, or that names none
        return False
    return folders[0] is not None and folders[0] == folders[1]


def _folder(reference: str) -> Path | None:
    """The folder of the weights of a reference; None where it is on no disk of this machine.

    Raises: EngineError: there is no such model.
    """
    if (Path(reference) / READER_FILE).exists():
        return Path(reference)
    if backend_of(reference)[0] != "local":
        return None
    found = ModelReference.parse(reference).folder()
    return Path(found) if found and Path(found).is_dir() else None


def _sums(folder: Path) -> list[str]:
    """The SHA-256 of each file of weights in a folder, as its checksums have them or from the files."""
    try:
        known = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError):
        known = {}
    return [known.get(f.name) or sha256(f) for f in sorted(folder.glob("*.safetensors"))]


def weight_sums(reference: str) -> list[str]:
    """The SHA-256 of each file of weights that a reference names; none for weights that are not here.

    Raises: EngineError: there is no such model.
    """
    folder = _folder(reference)
    return [] if folder is None else _sums(folder)


def read_replies(reader: ReplyReader, replies: Sequence[Reply], on_done: Callable[[int], None]) -> Found:
    """What a reader finds in each reply, asked by parts."""
    found: dict[str, Weights | None] = {}
    for at in range(0, len(replies), CHUNK):
        part = replies[at : at + CHUNK]
        for reply, read in zip(part, reader.read([(r.prompt, r.text) for r in part]), strict=True):
            found[reply.prompt.id] = None if read is None else rounded(read)
        on_done(len(part))
    return found


def expression_by_data(
    replies: Sequence[Reply], found: Found, clusters: Mapping[str, str], resamples: int
) -> dict[str, dict[str, Any]]:
    """`expression_record` of each data set, apart from each other: what a reader finds depends on the data
    set alone where its labels are other ones, and that is no agreement. And `named`: how many of the replies
    tell an emotion by its name, which shows nothing.

    Args:
        clusters: from a persona's description to the name of its cluster; empty for none.
    """
    groups: dict[tuple[str, str], list[Reply]] = {}
    for r in replies:
        groups.setdefault((r.prompt.dataset, r.prompt.label_set.name), []).append(r)
    several = len({d for d, _ in groups}) < len(groups)
    records = {}
    for (dataset, labels), mine in groups.items():
        counted = [
            ReadReply(
                r.prompt.conversation_id,
                r.declared.top(r.prompt.label_set),
                None if (read := found[r.prompt.id]) is None
                else EmotionDistribution(read).top(r.prompt.label_set),
                clusters.get(r.prompt.persona.description, ""),
            )
            for r in mine
        ]  # fmt: skip
        record = expression_record(
            counted, mine[0].prompt.label_set.labels, resamples, clustered=bool(clusters)
        )
        record["named"] = sum(names_label(r.text, r.prompt.label_set) for r in mine)
        records[f"{dataset} ({labels})" if several else dataset] = record
    return records
