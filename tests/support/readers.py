"""A reader of replies of known answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfemo.method.types import LABEL_SETS, EmotionDistribution, Prompt
from selfemo.models.reply_readers import Read, Said

EVEN = EmotionDistribution(dict.fromkeys(LABEL_SETS["meld"], 1.0))


@dataclass
class Known:
    """A reader who knows what each reply shows, and expects one thing of everybody."""

    shows: dict[str, Read]
    before: Read = EVEN
    asked: int = 0

    def read(self, said: Sequence[Said]) -> list[Read]:
        self.asked += len(said)
        return [self.shows.get(reply, EVEN) for _, reply in said]

    def expect(self, prompts: Sequence[Prompt]) -> list[Read]:
        return [self.before] * len(prompts)
