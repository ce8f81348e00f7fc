"""Requests to a generation backend, and its settings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


class Constraint(Protocol):
    """The tokens that one completion under way may go on with (grammar.py)."""

    def allowed(self) -> Any:
        """(v,) bool tensor: the tokens that may come next; the end token where it may end."""

    def take(self, token: int) -> None:
        """Tell that this token was drawn."""


@runtime_checkable
class Observer(Protocol):
    """A constraint that also sees the logits of the model."""

    def observe(self, logits: Any) -> None:
        """(v,) float tensor: the logits of the next token, before anything is cut."""


class Constraints(Protocol):
    """Makes the constraint of a new completion."""

    def start(self) -> Constraint: ...


@dataclass(frozen=True)
class Request:
    """One prompt to complete `n` times.

    Attributes:
        prompt_ids: token ids of the prompt.
        n: completions to sample (G).
        seed: key of the random numbers; equal seeds give equal completions.
        share: requests with equal keys are prefilled as one tree (None: on its own).
        constraints: hold completions to a grammar, for inference alone: log-probabilities stay those of the
            unconstrained policy.
        messages: the chat itself, for backends that take no token ids (endpoint.py).
    """

    prompt_ids: Sequence[int]
    n: int = 1
    seed: int = 0
    share: Hashable = None
    constraints: Constraints | None = None
    messages: Sequence[dict[str, str]] = ()


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of sampling, the same for all requests of a call.

    Attributes:
        max_new_tokens: most tokens of a completion, the end token included.
        temperature: 0 is greedy.
        top_p: nucleus mass; 1 keeps all of the distribution.
        max_lines: stop after so many line ends (0: never); evaluation stops after the emotion line.
        no_repeat_ngram: no n-gram of so many tokens occurs twice in a line (0: no such limit); for inference.
        token_budget: tokens that a batch may hold in memory.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    max_lines: int = 0
    no_repeat_ngram: int = 0
    token_budget: int = 8192


def first_lines(text: str, lines: int) -> str:
    """A text up to and with its `lines`-th line end; the whole text for 0 or where it has fewer."""
    parts = text.split("\n", lines) if lines else []
    return text if len(parts) <= lines else "\n".join(parts[:lines]) + "\n"
