"""Constraints of completions inside vLLM: a processor of logits that asks each completion's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from selfemo.models.generation.requests import Constraint, Observer


@dataclass
class _Open:
    """A completion under way: its constraint, its tokens so far, and how many of them it was told."""

    constraint: Constraint
    ids: list[int]
    told: int = 0

    def allowed(self, logits: torch.Tensor) -> Any:
        for token in self.ids[self.told :]:
            self.constraint.take(token)
        self.told = len(self.ids)
        if isinstance(self.constraint, Observer):
            self.constraint.observe(logits)
        return self.constraint.allowed()


_KEY = "selfemo_constraint"
_held: dict[int, _Open] = {}
_numbers = itertools.count()


@contextmanager
def holding(constraints: Iterable[Constraint | None]) -> Iterator[list[dict[str, int] | None]]:
    """Hold constraints ready for requests; gives the `extra_args` of each (vLLM copies what is in them)."""
    keys: list[dict[str, int] | None] = []
    for constraint in constraints:
        key = None if constraint is None else {_KEY: next(_numbers)}
        if constraint is not None and key is not None:
            _held[key[_KEY]] = _Open(constraint, [])
        keys.append(key)
    try:
        yield keys
    finally:
        for key in keys:
            if key is not None:
                del _held[key[_KEY]]


def processor(spare: Sequence[int]) -> type[Any]:
    """The class that vLLM makes its processor from.

    Args:
        spare: rows of the vocabulary that are never drawn.
    """
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates

    class Constrained(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
            self._open: dict[int, _Open] = {}
            self._spare = torch.tensor(spare, dtype=torch.long, device=device)

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            def opened(params: Any, prompt: Any, ids: list[int]) -> _Open | None:
                key = (params.extra_args or {}).get(_KEY)
                if key is None:
                    return None
                open_ = _held[key]
                open_.ids = ids  # a request that had to make room comes again, with the tokens that it has
                return open_

            process_dict_updates(self._open, batch_update, opened)

        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            if len(self._spare):
                logits[:, self._spare] = -torch.inf
            for row, open_ in self._open.items():
                allowed = open_.allowed(logits[row]).to(logits.device)
                logits[row, : len(allowed)].masked_fill_(~allowed, -torch.inf)
            return logits

    return Constrained
