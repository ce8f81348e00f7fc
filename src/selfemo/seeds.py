"""One number for each random decision of a run, from the run's seed and the decision's name.

Counter-based: nothing depends on how many random numbers were drawn before, so a resumed run and an
uninterrupted one make the same decisions, in any order and with any number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for (seed, names)."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *names: object) -> np.random.Generator:
    return np.random.default_rng(derive(seed, *names))


def shuffled_runs(keys: Sequence[Hashable], length: int, generator: np.random.Generator) -> np.ndarray:
    """(n,) a shuffled order of items; adjacent ones of one key stay together, up to `length` of them."""
    starts: list[int] = []
    for i, key in enumerate(keys):
        if not starts or keys[i - 1] != key or i - starts[-1] >= length:
            starts.append(i)
    ends = [*starts[1:], len(keys)]
    order = generator.permutation(len(starts))
    return np.array([i for r in order for i in range(starts[r], ends[r])], dtype=np.int64)
