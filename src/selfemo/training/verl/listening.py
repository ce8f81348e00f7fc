"""R3 in verl: what verl's process is told, what it notes of the replies it hears, and who tells that here.

The listener is opened in verl's trainer process, which hears the replies of a step (plugin.py) and writes
down what was heard. This process has nothing read a second time: it scores what was written by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from selfemo.config import Config
from selfemo.errors import EngineError, UnsupportedError
from selfemo.method.types import Completion, EmotionDistribution, Prompt, RawCompletion
from selfemo.models.generation import backend_of
from selfemo.models.references import READER_FILE, ModelReference
from selfemo.models.reply_readers import Read, ReplyReader, Said
from selfemo.training.expression import Ears, open_ears
from selfemo.training.whole_replies import Decode, OwnReplies, WholeEars

LISTENER, READER = "listener", "reader"
"""Whose notes they are: that of reward.listener, and that of reward.reader."""


def expression_settings(config: Config) -> dict[str, Any] | None:
    """The sections of the configuration that verl's process needs, without the rest; None without R3.

    verl lends its trainer process no GPU, so that model.device = "auto" is the CPU there, and model.dtype,
    which is meant for the GPUs, is "auto".
    """
    if not config.expresses:
        return None
    reward, model = config.reward, config.model
    return {
        "reward": {
            "expression": reward.expression,
            "listener": from_anywhere(reward.listener),
            "reader": from_anywhere(reward.reader) if reward.reader else "",
            "contrast": reward.contrast,
            "expression_weight": reward.expression_weight,
        },
        "gate": {
            "min_reply_chars": config.gate.min_reply_chars,
            "max_reply_chars": config.gate.max_reply_chars,
        },
        "prompt": {"max_tokens": config.prompt.max_tokens},
        "model": {"threads": model.threads}
        | (
            {"device": "cpu", "dtype": "auto"}
            if model.device == "auto"
            else {"device": model.device, "dtype": model.dtype}
        ),
    }


def from_anywhere(reference: str) -> str:
    """A reference to a reader that names the same one from any folder.

    Raises: EngineError: there is no such model.
    """
    if (Path(reference) / READER_FILE).exists():
        return str(Path(reference).resolve())
    backend, rest = backend_of(reference)
    if backend == "local":
        path = ModelReference.parse(rest).path
        return str(Path(path).resolve()) if path and Path(path).exists() else path or reference
    return f"{backend}:{Path(rest).resolve()}" if Path(rest).exists() else reference


@dataclass
class Noting:
    """A reader of replies that keeps what it tells, by prompt id and reply."""

    asked: ReplyReader
    heard: dict[tuple[str, str], Read] = field(default_factory=dict)
    expected: dict[str, Read] = field(default_factory=dict)

    def read(self, said: Sequence[Said]) -> list[Read]:
        found = self.asked.read(said)
        self.heard.update(((p.id, reply), q) for (p, reply), q in zip(said, found, strict=True))
        return found

    def expect(self, prompts: Sequence[Prompt]) -> list[Read]:
        found = self.asked.expect(prompts)
        self.expected.update((p.id, q) for p, q in zip(prompts, found, strict=True))
        return found

    def told(self, prompt_id: str, reply: str) -> dict[str, Any] | None:
        """Its answers as JSON has them; None where it was not asked, since the reply breaks a rule."""
        if (prompt_id, reply) not in self.heard:
            return None
        answers = {"heard": self.heard[prompt_id, reply], "expected": self.expected[prompt_id]}
        return {name: None if q is None else dict(q) for name, q in answers.items()}


@dataclass
class Noted:
    """What a reader told in verl's process, as a `ReplyReader`.

    Args:
        rows: the completions of the round, as `exchange.read_dump` gives them.
        who: LISTENER or READER.
    """

    rows: Callable[[], Iterable[Mapping[str, Any]]]
    who: str

    def read(self, said: Sequence[Said]) -> list[Read]:
        told = {(prompt, note["text"]): note[self.who]["heard"] for prompt, note in self._notes()}
        return [self._answer(told, (p.id, reply)) for p, reply in said]

    def expect(self, prompts: Sequence[Prompt]) -> list[Read]:
        told = {prompt: note[self.who]["expected"] for prompt, note in self._notes()}
        return [self._answer(told, p.id) for p in prompts]

    def _notes(self) -> Iterable[tuple[str, Mapping[str, Any]]]:
        notes = ((row["prompt"], row.get("reply")) for row in self.rows())
        return ((prompt, note) for prompt, note in notes if note and note[self.who])

    def _answer(self, told: Mapping[Any, Any], key: Any) -> Read:
        if key not in told:
            raise EngineError(
                f"verl's process did not ask the {self.who} about {key!r}, as this one would have; is "
                "selfemo of this version on all nodes?"
            )
        return None if told[key] is None else EmotionDistribution(told[key])


class Listening:
    """The ears of verl's process.

    Args:
        settings: `expression_settings`.
        decode: from token ids of a completion to its text.
        ears: the listener and the judge; those that the settings name where it is None.

    Raises: as `reply_readers.open_reply_reader`.
    """

    def __init__(self, settings: Mapping[str, Any], decode: Decode, ears: Ears | None = None):
        self.config, self._decode = Config.model_validate({"engine": "verl", **settings}), decode
        found = ears or open_ears(self.config, no_teacher)
        assert found is not None, "these settings have no R3"
        self._ears = found
        self._noting: dict[str, Noting] = {}

    def hear(
        self, groups: Sequence[tuple[Prompt, Sequence[tuple[RawCompletion, Completion | None]]]]
    ) -> list[OwnReplies]:
        """The replies of a step by group (`WholeEars.hear_whole`); the notes are those of this step then."""
        self._noting = {LISTENER: Noting(self._ears.listener)}
        if self._ears.judge:
            self._noting[READER] = Noting(self._ears.judge)
        ears = WholeEars(self._noting[LISTENER], self._noting.get(READER), decode=self._decode)
        return ears.hear_whole(groups, self.config)

    def notes(self, prompt_id: str, own: OwnReplies) -> dict[int, dict[str, Any]]:
        """By completion what is written of its reply: its text, the tokens before its R line, and what the
        listener and the reader told of it, None where one was not asked."""
        found = {}
        for member, reply in own.numbered.items():
            assert reply.said is not None
            told = {
                who: n.told(prompt_id, reply.said.reply) if (n := self._noting.get(who)) else None
                for who in (LISTENER, READER)
            }
            found[member] = {"text": reply.said.reply, "lead": own.leads[member], **told}
        return found


def no_teacher() -> NoReturn:
    """Raises: UnsupportedError: verl cannot keep one."""
    raise UnsupportedError(
        'verl keeps no teacher beside the policy; set gate.channel = 0, selfplay.targets = "declared" and a '
        'reward.listener other than "reference"'
    )
