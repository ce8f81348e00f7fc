"""One number for each random decision of a run, from the run's seed and the decision's name.

Counter-based: nothing depends on how many random numbers were drawn before, so a resumed run and an
uninterrupted one make the same decisions, in any order and with any number of workers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for (seed, names)."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *names: object) -> np.random.Generator:
    return np.random.default_rng(derive(seed, *names))
