"""Fuzz parser, rewards, advantages and gate with hostile completions.

    python -m tests.reliability.fuzz_parser --n 1000000 --out docs/data/fuzz_parser.json

The short form of it is a test; a failure prints the seed and the group that raised.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from itertools import islice
from pathlib import Path

from tests.support.completions import check_group, hostile

GROUP = 4


def fuzz(n: int, seed: int) -> tuple[Counter[str], float]:
    """Check n completions in groups; what they came to, and the slowest completion in seconds."""
    draw, source = random.Random(seed), hostile(n, seed)
    tally: Counter[str] = Counter()
    slowest = 0.0
    while group := list(islice(source, GROUP)):
        started = time.perf_counter()
        try:
            tally.update(check_group(group, draw))
        except BaseException:
            print(f"seed {seed}, completions {sum(tally.values())} on: {group!r}"[:4000])
            raise
        slowest = max(slowest, (time.perf_counter() - started) / len(group))
    return tally, slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    started = time.monotonic()
    tally, slowest = fuzz(args.n, args.seed)
    result = {
        "command": f"python -m tests.reliability.fuzz_parser --n {args.n} --seed {args.seed}",
        "completions": sum(tally.values()), "exceptions": 0, "results": dict(tally.most_common()),
        "slowest_completion_ms": round(1000 * slowest, 1), "seconds": round(time.monotonic() - started),
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
