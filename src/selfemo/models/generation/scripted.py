"""A `Sampler` of fixed answers: no model, no random numbers; for tests and dry runs."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from selfemo.config import ModelConfig
from selfemo.errors import DataError, UnsupportedError
from selfemo.method.channel import ChannelScores
from selfemo.method.types import EmotionDistribution, LabelSet, RawCompletion
from selfemo.models.generation.requests import Request, SamplingSettings, first_lines
from selfemo.models.sampler import CHUNK, ChannelPlace, LabelPlace, Message

Script = Callable[[Sequence[Message], Request, int], str]
"""(messages, request, k) to the text of the request's k-th completion."""
_END = 0
"""Id of the end token."""


class ScriptedSampler:
    """Answers from a list or a function.

    A token is a word with the white space before it; its id is a checksum of it. Log-probabilities and
    entropies are 0. Token ids behind those of a chat are the beginning of an answer: what is generated is the
    rest of one that begins so.

    Args:
        answers: a function, or texts: the k-th completion of a request with seed s is text s + k, modulo
            their number, so that it depends on the request alone.
        labels: weights of emotions for `label_probabilities`; where the label set has none of them, all
            are equal.
    """

    chunk = CHUNK

    def __init__(self, answers: Script | Sequence[str], labels: Mapping[str, float] | None = None) -> None:
        if not callable(answers) and not answers:
            raise DataError("a scripted sampler needs at least one answer")
        self._answers = answers
        self._labels = labels or {}
        self._chats: dict[tuple[int, ...], Sequence[Message]] = {}
        self._said: dict[int, str] = {}
        self.loaded: list[str] = []
        """The weights that it was told to load, in order."""

    def encode(self, messages: list[Message]) -> list[int]:
        ids = _ids("\n\n".join(m["content"] for m in messages))
        self._chats[tuple(ids)] = messages
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Its first token holds the line end before it, as it does inside an answer."""
        return _ids(f"\n{text}")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that were generated; others are nothing."""
        return "".join(self._said.get(i, "") for i in ids)

    def generate(
        self,
        requests: Sequence[Request],
        settings: SamplingSettings,
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[RawCompletion]]:
        """See `Sampler.generate` (UnsupportedError: a request has constraints)."""
        samples = []
        for request in requests:
            if request.constraints is not None:
                raise UnsupportedError(
                    "scripted answers cannot be held to constraints; use a model on this machine"
                )
            messages, begun = self._asked(request)
            texts = [self._answer(messages, request, k, begun) for k in range(request.n)]
            self._said.update(p for t in texts for p in zip(_ids(t), _words(t), strict=True))
            samples.append([_sample(text, settings) for text in texts])
            if on_done:
                on_done(request.n)
        return samples

    def _asked(self, request: Request) -> tuple[Sequence[Message], list[int]]:
        """The chat of a request, and the ids of the answer that it begins."""
        if request.messages:
            return request.messages, []
        ids = tuple(request.prompt_ids)
        n = next((n for n in range(len(ids), 0, -1) if ids[:n] in self._chats), 0)
        return (self._chats[ids[:n]], list(ids[n:])) if n else ((), [])

    def _answer(self, messages: Sequence[Message], request: Request, k: int, begun: Sequence[int]) -> str:
        if callable(self._answers):
            return _behind(self._answers(messages, request, k), begun)
        answers = [a for a in self._answers if _ids(a)[: len(begun)] == list(begun)] or self._answers
        return _behind(answers[(request.seed + k) % len(answers)], begun)

    def label_probabilities(
        self, places: Sequence[LabelPlace], labels: LabelSet
    ) -> list[EmotionDistribution]:
        known = {e: w for e in labels if (w := self._labels.get(e, 0.0)) > 0}
        return [EmotionDistribution(known or dict.fromkeys(labels, 1.0)) for _ in places]

    def channel_scores(self, places: Sequence[ChannelPlace], labels: LabelSet) -> list[ChannelScores]:
        raise UnsupportedError(
            "scripted answers have no probability of a given reply; use a model on this machine"
        )

    def load(self, weights: str) -> None:
        """Note the reference; the answers stay the same."""
        self.loaded.append(weights)


def _behind(answer: str, begun: Sequence[int]) -> str:
    """What follows the tokens `begun` and the line end that they stopped at; all, if it begins otherwise."""
    if not begun or _ids(answer)[: len(begun)] != list(begun):
        return answer
    return "".join(_words(answer)[len(begun) :]).removeprefix("\n")


def read_script(path: Path) -> list[str]:
    """The answers in a file with one JSON string a line (DataError: unreadable, empty, or another form)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"cannot be read: {e}", path) from e
    answers = []
    for number, line in enumerate(lines, 1):
        try:
            answers.append(json.loads(line))
        except ValueError:
            answers.append(None)
        if not isinstance(answers[-1], str):
            raise DataError('write one answer a line, as a JSON string: "E: joy\\n..."', path, number)
    if not answers:
        raise DataError("holds no answer; write one JSON string a line", path)
    return answers


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


def _ids(text: str) -> list[int]:
    return [1 + zlib.crc32(word.encode("utf-8", "replace")) % (2**31 - 1) for word in _words(text)]


def _sample(text: str, settings: SamplingSettings) -> RawCompletion:
    """A completion cut to the limits of tokens and lines."""
    cut = first_lines(text, settings.max_lines)
    words = _words(cut)
    stopped = len(cut) < len(text) or bool(settings.max_lines and cut.endswith("\n"))
    # The end token counts, as it does for a model; a stop after a line needs none.
    finished = len(words) + (not stopped) <= settings.max_new_tokens
    ids = _ids(cut)[: settings.max_new_tokens]
    if finished and not stopped:
        ids.append(_END)
    zeros = (0.0,) * len(ids)
    kept = cut if finished else "".join(words[: settings.max_new_tokens])
    return RawCompletion(kept, tuple(ids), zeros, zeros, finished)


def open_backend(reference: str, config: ModelConfig) -> ScriptedSampler:
    """A JSONL file of answers; the settings of models are not used."""
    return ScriptedSampler(read_script(Path(reference)))
