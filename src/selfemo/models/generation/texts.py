"""What a tokenizer does for every sampler that has one."""

from __future__ import annotations

from collections.abc import Sequence

from selfemo.models.policy import Encoder
from selfemo.models.sampler import Message


class Texts:
    """The part of a `Sampler` between texts and token ids.

    Attributes:
        reader: the tokenizer of the model.
    """

    reader: Encoder

    def encode(self, messages: list[Message]) -> list[int]:
        return self.reader.encode(messages)

    def encode_text(self, text: str) -> list[int]:
        return self.reader.line_ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.reader.decode(ids)
