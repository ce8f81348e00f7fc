"""PRC-Emo (Li and others 2026, arXiv 2511.07061; LiXinran6/PRC-Emo): prompts, retrieval, curriculum.

Of the recipe (src/reformat_data_ft_llm_combine.py, src/similarity_matrix.py, src/ft_llm_cl.py,
scripts/train_llm.sh), which builds on BiosERC's code:
- prompt: the turns around, what is known of the speaker, an expert's interpretation of the turn (what is
  shown openly and what lies behind it), the 3 training turns nearest by all-MiniLM-L6-v2, the labels;
- curriculum: a conversation's difficulty by its emotional shifts (`difficulty`), the turns sorted by it into
  2 buckets; epoch 1 trains on the easy one, the others on both;
- BiosERC's optimiser, adapters and NEFTune; 4 epochs of batches of 4.

The published prompt shows 5 turns before and 5 after: `later=5`, which is marked.

[ours]: past only; interpretations are read from a file, and there are none without it; demonstrations come
from the same label set and never from the turn's own conversation, where the recipe leaves out the turn alone
and adds other data sets and written examples; one schedule of the learning rate over all epochs, where it
begins anew with each bucket; labels that its circle does not know count as neutral; see also instruction.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from selfemo.config.base import Positive
from selfemo.data.jsonl import unique_keys
from selfemo.errors import DataError
from selfemo.evaluation.baselines.base import Task, tops
from selfemo.evaluation.baselines.bios_erc import BiosErcConfig
from selfemo.evaluation.baselines.instruction import (
    LABELS,
    Ask,
    Instruction,
    Turn,
    biography,
    chat,
    choices,
    context,
    label_examples,
    question,
)
from selfemo.evaluation.baselines.retrieval import Demonstration, Demonstrations
from selfemo.method.prompts import clean
from selfemo.method.types import Conversation
from selfemo.models.sampler import Message
from selfemo.training.label_examples import Stage

_NAMED = 3
"""Most missing turns that a message names."""
_BASE = 0.4
"""The weight of a shift between emotions that have nothing in common."""
_ANGLES = {
    **dict.fromkeys(("joy", "joyful", "happy", "happiness"), 3),
    "powerful": 5,
    "excited": 7,
    "surprise": 9,
    **dict.fromkeys(("anger", "angry", "mad"), 11),
    "disgust": 17,
    **dict.fromkeys(("fear", "fearful", "scared"), 19),
    "frustrated": 21,
    **dict.fromkeys(("sadness", "sad"), 29),
    "peaceful": 39,
}  # fmt: skip
"""Where emotions lie on the circle of valence (cosine) and arousal (sine), in steps of pi / 20."""


class PrcEmoConfig(BiosErcConfig):
    batch_size: Positive = 4
    epochs: Positive = 4
    buckets: Positive = 2
    """Parts of the training turns by difficulty, of which each epoch takes one more; 1: no curriculum."""
    demonstrations: Annotated[int, Field(ge=0)] = 3
    """Training turns with their labels in a prompt; 0: none."""
    embedder: str = "builtin:all-minilm-l6-v2"
    interpretations: str = ""
    """A JSON lines file of {"id": "CONVERSATION/TURN", "text": "..."}, turns from 0: what an expert says of
    the emotion of each labelled turn. Empty: prompts have none."""
    interpretations_see_later: bool = False
    """Whether the expert saw later turns than the one it wrote of, which marks the row."""


class PrcEmo(Instruction[PrcEmoConfig]):
    kind = PrcEmoConfig

    @property
    def sees_later(self) -> bool:
        seen = bool(self.settings.interpretations) and self.settings.interpretations_see_later
        return self.settings.later > 0 or seen

    def check(self) -> None:
        super().check()
        if self.settings.demonstrations:
            from selfemo.models.embedding import check_embedder

            check_embedder(self.settings.embedder)
        self._interpretations()

    def check_data(self, conversations: Sequence[Conversation]) -> None:
        if said := self._interpretations():
            must_cover(said, conversations)

    def _interpretations(self) -> dict[str, str]:
        return (
            read_interpretations(Path(self.settings.interpretations)) if self.settings.interpretations else {}
        )

    def asker(self, task: Task) -> Ask:
        config, said = self.settings, self._interpretations()
        bank = Demonstrations.of(task, config.embedder) if config.demonstrations else None

        def ask(c: Conversation, turn: int, window: int) -> list[Message]:
            near = bank.near(c, turn, config.demonstrations) if bank else ()
            if said and c.turns[turn].emotion is not None:
                must_cover(said, [c])
            return prompt(
                c, turn, window, config.later, about=config.biographies, near=near,
                interpretation=said.get(turn_id(c, turn), ""),
            )  # fmt: skip

        return ask

    def stages(self, turns: Sequence[Turn], ask: Ask) -> list[Stage]:
        parts = curriculum(turns, self.settings.buckets)
        members = [[i for part in parts[: k + 1] for i in part] for k in range(len(parts))]
        return [
            Stage(
                LABELS, label_examples(turns, ask), self.settings.epochs,
                lambda epoch: members[min(epoch, len(members) - 1)],
            )
        ]  # fmt: skip


def prompt(
    conversation: Conversation,
    turn: int,
    window: int,
    later: int = 0,
    *,
    about: bool = True,
    near: Sequence[Demonstration] = (),
    interpretation: str = "",
) -> list[Message]:
    """The turns around, the speaker, the interpretation, what was said alike, and the question."""
    parts = [
        "You find the emotion of a line in a conversation: what it shows openly, and what lies behind it.",
        f"Conversation:\n{context(conversation, turn, window, later)}",
    ]
    if about and (known := biography(conversation, turn)):
        parts.append(known.rstrip("\n"))
    if interpretation:
        parts.append(f"What an expert hears in it: {clean(interpretation)}")
    if near:
        parts.append("Lines that say something alike:\n" + "\n".join(d.line() for d in near))
    return chat("\n".join(parts), f"{question(conversation, turn)} {choices(conversation.label_set)}")


def turn_id(conversation: Conversation, turn: int) -> str:
    return f"{conversation.id}/{turn}"


def similarity(first: str, second: str, labels: int) -> float:
    """How alike two emotions are, 0 to 1: the cosine of their angle on the circle where both are pleasant or
    both unpleasant, else 0; 1 / labels where one is neutral or not on the circle."""
    if first not in _ANGLES or second not in _ANGLES:
        return 1 / labels
    a, b = (_ANGLES[e] * math.pi / 20 for e in (first, second))
    return max(0.0, math.cos(a - b)) if math.cos(a) * math.cos(b) > 0 else 0.0


def difficulty(conversation: Conversation) -> float:
    """(shifts + speakers) / (turns + speakers), where each shift weighs 0.4 and its similarity.

    A shift is another emotion than that of the speaker's own turn before, and another than that of the turn
    right before, if another speaker said it. Unlabelled turns make none.
    """
    names = conversation.label_set.labels
    emotions = [names[top] if top >= 0 else "" for top in tops(conversation)]
    speakers = [t.speaker for t in conversation.turns]
    last: dict[str, str] = {}
    pairs = []
    for i, (speaker, emotion) in enumerate(zip(speakers, emotions, strict=True)):
        pairs.append((last.get(speaker, ""), emotion))
        last[speaker] = emotion
        if i and speakers[i - 1] != speaker:
            pairs.append((emotions[i - 1], emotion))
    shifts = [_BASE + similarity(a, b, len(names)) for a, b in pairs if a and b and a != b]
    people = len(conversation.speakers)
    return (math.fsum(shifts) + people) / (len(speakers) + people)


def curriculum(turns: Sequence[Turn], buckets: int) -> list[list[int]]:
    """Indices of turns in `buckets` parts of equal size from easy to hard (the last has the rest).

    Turns of one conversation are equally hard; equal ones stay in the order of the data.
    """
    known = {c.id: difficulty(c) for c, _ in turns}
    order = np.argsort([known[c.id] for c, _ in turns], kind="stable").tolist()
    size = len(order) // buckets
    ends = [*(size * k for k in range(buckets)), len(order)]
    return [order[a:b] for a, b in pairwise(ends)]


def read_interpretations(path: Path) -> dict[str, str]:
    """The text of each turn by its id (DataError: no such file, a broken line, an id that occurs twice)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"cannot be read ({e})", path) from None
    found: dict[str, str] = {}
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as e:
            raise DataError(f"broken JSON: {e}", path, n) from None
        if not isinstance(item, dict) or not all(isinstance(item.get(k), str) for k in ("id", "text")):
            raise DataError('a line is {"id": "CONVERSATION/TURN", "text": "..."}', path, n)
        if item["id"] in found:
            raise DataError(f"{item['id']} occurs twice", path, n)
        found[item["id"]] = item["text"]
    if not found:
        raise DataError("it holds no interpretation", path)
    return found


def must_cover(said: Mapping[str, str], conversations: Sequence[Conversation]) -> None:
    """Check that each labelled turn has an interpretation (DataError: names some that have none)."""
    ids = [turn_id(c, i) for c in conversations for i, t in enumerate(c.turns) if t.emotion is not None]
    if missing := [i for i in ids if not said.get(i)]:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise DataError(
            f"baseline.interpretations has no text for {', '.join(missing[:_NAMED])}{more}, "
            f"of {len(ids)} turns"
        )
