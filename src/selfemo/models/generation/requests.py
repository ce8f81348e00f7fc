"""What a generation backend is asked for."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


class Constraint(Protocol):
    """What one completion under way may go on with (grammar.py)."""

    def allowed(self) -> Any:
        """(v,) bool tensor: the tokens that may come next; the end token where it may end."""

    def take(self, token: int) -> None:
        """Tell that this token was drawn."""


@runtime_checkable
class Observer(Protocol):
    """A constraint that also looks at what the model would say."""

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
        constraints: what completions may be, for inference alone: log-probabilities stay those of the
            unconstrained policy.
    """

    prompt_ids: Sequence[int]
    n: int = 1
    seed: int = 0
    share: Hashable = None
    constraints: Constraints | None = None


@dataclass(frozen=True)
class SamplingSettings:
    """temperature 0 is greedy; top_p 1 leaves the distribution whole; max_lines stops after that many
    line ends (0: no such stop), which evaluation uses to stop behind the emotion span; no_repeat_ngram
    lets no n-gram of so many tokens occur twice in a line (0: no such limit; for inference alone)."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    max_lines: int = 0
    no_repeat_ngram: int = 0
    token_budget: int = 8192
