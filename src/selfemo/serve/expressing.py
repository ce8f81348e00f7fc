"""How surely a reply expresses the emotion that its answer declares, and the most expressive of several.

A reader that is no part of the answer tells which emotion it finds in the reply (models/reply_readers.py).
`expressed` is the probability that it gives to what S declares: sum_e S(e) q(e | H, r). Of several replies
behind one S, the best is the one that tells the reader most of it (method/expression.py); log q(e | H) is the
same for all of them, so that it is not asked for.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from selfemo.config import GateConfig, load
from selfemo.errors import ConfigError
from selfemo.method.expression import information_gain
from selfemo.method.replies import names_label, reply_fault
from selfemo.method.types import Conversation, EmotionDistribution, LabelSet, Prompt, Utterance
from selfemo.models.generation.chat import names_endpoint
from selfemo.models.references import READER_FILE
from selfemo.models.reply_readers import EncoderReader, Read, Said, open_reply_reader
from selfemo.runs.settings import settings_for
from selfemo.serve.answers import Response, written
from selfemo.serve.asking import recent_prompt

if TYPE_CHECKING:
    from selfemo.serve.selfemo import SelfEmo


class Reader(Protocol):
    """Reads the emotion of replies (`ReplyReader`, of which no more is used here)."""

    def read(self, said: Sequence[Said]) -> list[Read]:
        """q(. | H, r) of each reply."""


class SharedReader:
    """A reader for several threads and several models; a local one reads for one of them at a time.

    Attributes:
        label_sets: the only ones that it reads; None where it reads any.
    """

    def __init__(self, reader: Reader, *, one_at_a_time: bool = True):
        self._reader = reader
        self._guard = threading.Lock() if one_at_a_time else contextlib.nullcontext()
        self.label_sets = reader.encoder.label_sets if isinstance(reader, EncoderReader) else None

    def read(self, said: Sequence[Said]) -> list[Read]:
        with self._guard:
            return self._reader.read(said)

    def check(self, labels: LabelSet) -> None:
        """Refuse a label set that it was not trained on (ConfigError)."""
        if self.label_sets is not None and labels not in self.label_sets:
            known = ", ".join(s.name for s in self.label_sets)
            raise ConfigError(
                f"the reader of replies reads the labels of {known} alone, not those of {labels.name}; take "
                "another reader, or none"
            )


def open_reader(reference: str, files: Sequence[Path], overrides: Sequence[str]) -> SharedReader:
    """The reader that a reference names, under the settings of its run, if any, then files, then overrides.

    Raises: see `open_reply_reader`; ConfigError: a setting is wrong.
    """
    checkpoint = reference
    if (Path(reference) / READER_FILE).exists() or names_endpoint(reference):
        config = load(files, overrides)
    else:
        config, checkpoint = settings_for(reference, ["sample"], files, overrides)
    reader = open_reply_reader(checkpoint, config.model, config.prompt)
    return SharedReader(reader, one_at_a_time=not names_endpoint(reference))


class OwnReader:
    """A model that reads its own replies, as it reads any last utterance (`SelfEmo.recognise`)."""

    def __init__(self, model: SelfEmo):
        self._model = model

    def read(self, said: Sequence[Said]) -> list[Read]:
        numbers: dict[Prompt, int] = {}  # replies to one prompt share their history in the model's cache
        prompts = []
        for prompt, reply in said:
            turns = (*prompt.history, Utterance(prompt.answerer, reply))
            which = f"{numbers.setdefault(prompt, len(numbers))}"
            c = Conversation(which, prompt.dataset, "test", turns, prompt.label_set, prompt.scenario)
            prompts.append(recent_prompt(c, len(turns) - 1, self._model.config.prompt.max_tokens))
        return [r.distribution for r in self._model.read_prompts(prompts)]


def sound(prompt: Prompt, answers: Sequence[Response], gate: GateConfig) -> list[Response]:
    """The answers whose reply passes the gate (method/replies.py) and names no emotion; all, if none does.

    Each with their number, `sound_replies`.
    """
    found = [
        a for a in answers
        if not names_label(a.reply, prompt.label_set) and not reply_fault(prompt, a.reply, gate)
    ]  # fmt: skip
    return [replace(a, sound_replies=len(found)) for a in found or answers]


def alternatives(first: Response, drawn: Sequence[Response]) -> list[Response]:
    """The first answer, and with the further replies that stand behind the same E and S.

    `tokens` count all that was written.
    """
    prompt, written_ = (sum(r.tokens[k] for r in (first, *drawn)) for k in (0, 1))
    return [
        replace(first, reply=r.reply, text=r.text, stop=r.stop, cut=r.cut, tokens=(prompt, written_))
        for r in (first, *drawn)
        if r.failure is None
        and (r.heard.written, r.felt.written) == (first.heard.written, first.felt.written)
    ]


def most_expressive(prompt: Prompt, answers: Sequence[Response], read: Mapping[Said, Read]) -> Response:
    """The answer whose reply tells most of S, among answers with one S; the first of equal ones.

    Args:
        read: q(. | H, r) of each reply; an answer whose reply could not be read (None) comes last.
    """
    labels = prompt.label_set
    even = EmotionDistribution(dict.fromkeys(labels, 1.0))

    def gained(a: Response) -> float:
        shown, declared = read[prompt, a.reply], a.felt.written
        if shown is None or declared is None:
            return -math.inf
        return information_gain(declared, shown, even, labels)

    best = max(answers, key=gained)
    shown, declared = read[prompt, best.reply], best.felt.written
    if shown is None or declared is None:
        return best
    sure = math.fsum(w * shown.weight(e) for e, w in declared.items())
    return replace(best, shown=replace(written(shown, labels), written=None), expressed=sure)
