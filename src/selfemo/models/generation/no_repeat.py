"""A limit against loops: no n-gram of tokens occurs twice in one line."""

from __future__ import annotations

import numpy as np
import torch

from selfemo.models.generation.requests import Constraint, Request, SamplingSettings
from selfemo.models.policy import Encoder


def constraint_of(request: Request, settings: SamplingSettings, reader: Encoder) -> Constraint | None:
    """What a new completion of a request is held to; None for nothing."""
    if request.constraints:
        return request.constraints.start()
    if settings.no_repeat_ngram:
        return NoRepeat(settings.no_repeat_ngram, reader.line_ends)
    return None


class NoRepeat:
    """A `Constraint` (requests.py); `line_ends` is (v,), the number of line ends in each token.

    A line end clears the memory, so that the short lines of the format may be alike.
    """

    def __init__(self, n: int, line_ends: np.ndarray):
        self._n, self._line_ends = n, line_ends
        self._all = torch.ones(len(line_ends), dtype=torch.bool)
        self._line: list[int] = []
        self._followed: dict[tuple[int, ...], list[int]] = {}

    def allowed(self) -> torch.Tensor:
        """(v,) bool."""
        banned = self._followed.get(tuple(self._line[len(self._line) - self._n + 1 :]))
        if not banned or len(self._line) < self._n - 1:
            return self._all
        mask = self._all.clone()
        mask[banned] = False
        return mask

    def take(self, token: int) -> None:
        if self._line_ends[token]:
            self._line, self._followed = [], {}
            return
        self._line.append(token)
        if len(self._line) >= self._n:
            self._followed.setdefault(tuple(self._line[-self._n : -1]), []).append(token)
