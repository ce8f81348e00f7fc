"""The sampling protocol of all generation backends; code above this package does not know which it has."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from selfemo.method.channel import ChannelScores
from selfemo.method.types import EmotionDistribution, LabelSet, RawCompletion
from selfemo.models.generation.requests import Request, SamplingSettings

Message = dict[str, str]
"""One chat message: {"role": ..., "content": ...}."""
LabelPlace = tuple[Hashable, Sequence[int], str]
"""(key, prompt ids, text written so far); places of one key share a prefix tree. The text ends in "E:" or
"S:", or is empty where the label alone is the answer."""
ChannelPlace = tuple[Hashable, Sequence[int], str, str]
"""(key, prompt ids, text written so far that ends in "S:", reply)."""

CHUNK = 64
"""Prompts of one call, where nothing speaks for more: so many are asked again where a run is interrupted."""


class Sampler(Protocol):
    """A model that completes prompts.

    Attributes:
        chunk: prompts that a caller who keeps results as they come should give it in one call.

    All methods raise UnsupportedError for what the backend cannot do.
    """

    @property
    def chunk(self) -> int: ...

    def encode(self, messages: list[Message]) -> Sequence[int]:
        """Token ids of a chat up to where the assistant's completion starts."""

    def encode_text(self, text: str) -> Sequence[int]:
        """Token ids of a part of a completion that begins a line, without an end token."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled token ids, without the end token."""

    def generate(
        self,
        requests: Sequence[Request],
        settings: SamplingSettings,
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[RawCompletion]]:
        """`request.n` completions of each request, in order.

        Args:
            on_done: called with the number of completions that are finished since the last call.

        Raises:
            UnsupportedError: constraints or a setting that the backend does not know.
            EndpointError: a server that does not answer.
        """

    def label_probabilities(
        self, places: Sequence[LabelPlace], labels: LabelSet
    ) -> list[EmotionDistribution]:
        """The probability of each label of the set after a prompt and the text written so far."""

    def channel_scores(self, places: Sequence[ChannelPlace], labels: LabelSet) -> list[ChannelScores]:
        """The log-probability of each label as S at a place, and of the reply after it."""

    def load(self, weights: str) -> None:
        """Take the weights of a model reference (`models.references`) from now on.

        Raises:
            EngineError: there is no such model, or it cannot be loaded.
        """
