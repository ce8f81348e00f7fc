"""Coverage-guided fuzzing of parser, rewards, advantages and gate with atheris (libFuzzer).

    pip install atheris          # Linux wheels for CPython 3.11 and later; no dependency of the project
    python -m tests.reliability.fuzz_atheris --minutes 10 --out docs/data/fuzz_atheris.json

The fuzzer bends bytes towards branches of the modules WATCHED that it has not seen. Each input is a group
of completions, parted by a byte that UTF-8 never has, and must hold what `completions.check_group` asks. It
begins with the corpus of real completions and the bombs. What raises is printed and ends the run with exit
code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

_METHOD = ("types", "prompts", "parsing", "rewards", "scoring", "self_grpo")
WATCHED = [*(f"selfemo.method.{m}" for m in _METHOD), "selfemo.stages.gate", "selfemo.stages.selfplay"]
SEPARATOR = b"\xff"
GROUP, LONGEST = 4, 4096


def group_of(data: bytes) -> list[str]:
    """One to GROUP completions; what is no UTF-8 becomes lone surrogates, as a broken decoder would."""
    parts = data.split(SEPARATOR, GROUP - 1)
    return [p.decode("utf-8", "surrogateescape") for p in parts]


def seed_corpus(folder: Path) -> None:
    from tests.support.completions import BOMBS, CORPUS, MARKS, NUMBERS, ODD

    folder.mkdir(parents=True)
    draw = random.Random(0)
    texts = [*CORPUS, *(b[:LONGEST] for b in BOMBS)]
    texts += [f"E: joy{n}, fear {n}\nS: joy\nR: {o} fine." for n in NUMBERS for o in draw.sample(ODD, 3)]
    texts += [f"E: joy\n{m} joy\nR: {m} yes" for m in MARKS]
    for k, text in enumerate(texts):
        joined = SEPARATOR.join(
            t.encode("utf-8", "surrogatepass") for t in (text, *draw.sample(CORPUS, k % GROUP))
        )
        (folder / f"{k:05}").write_bytes(joined[:LONGEST])


def dictionary() -> str:
    """The format's tokens in libFuzzer's form, for the mutator to insert."""
    from tests.support.completions import MARKS, NUMBERS

    words = [
        *MARKS,
        *NUMBERS[:12],
        "neutral",
        "joy",
        "surprise",
        "anger",
        "sadness",
        "disgust",
        "fear",
        ", ",
        " 7",
    ]
    raw = {w.encode("utf-8") for w in words}
    lines = ("".join(f"\\x{b:02x}" for b in w) for w in sorted(raw))
    return "".join(f'"{line}"\n' for line in lines) + f'"\\x{SEPARATOR[0]:02x}"\n'


def child(folder: Path, arguments: list[str]) -> None:
    """Fuzz; libFuzzer ends the process itself, so the tally is written as it goes."""
    import atheris

    # Nothing of the package may be imported before this, or it would not be watched.
    with atheris.instrument_imports(include=WATCHED):
        from tests.support.completions import check_group
    tally: Counter[str] = Counter()
    slowest, runs = 0.0, 0
    report = folder / "tally.json"

    def one(data: bytes) -> None:
        nonlocal slowest, runs
        texts = group_of(data)
        started = time.perf_counter()
        tally.update(check_group(texts, random.Random(len(data))))
        slowest = max(slowest, (time.perf_counter() - started) / len(texts))
        runs += 1
        if runs % 5000 == 0:
            report.write_text(json.dumps({"runs": runs, "results": tally, "slowest": slowest}))

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def fuzz(minutes: float, seed: int) -> dict[str, object]:
    """Run the fuzzer in a process of its own and read what it says."""
    with tempfile.TemporaryDirectory(prefix="selfemo-atheris-") as place:
        folder = Path(place)
        seed_corpus(folder / "corpus")
        seeds = len(list((folder / "corpus").iterdir()))
        (folder / "words.dict").write_text(dictionary())
        command = [
            sys.executable, "-m", "tests.reliability.fuzz_atheris", "--child", place, str(folder / "corpus"),
            f"-dict={folder / 'words.dict'}", f"-max_total_time={round(60 * minutes)}", f"-seed={seed or 1}",
            f"-max_len={LONGEST}", f"-artifact_prefix={folder}/", "-timeout=10", "-print_final_stats=1",
        ]  # fmt: skip
        started = time.monotonic()
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=os.environ, check=False
        )
        if done.returncode:
            print(done.stdout[-3000:], done.stderr[-6000:], sep="\n")
            raise SystemExit(1)
        state = [line for line in done.stderr.splitlines() if " cov: " in line]
        reached = len(list((folder / "corpus").iterdir()))
        tally = json.loads((folder / "tally.json").read_text())
        return {
            "completions": sum(tally["results"].values()), "groups": tally["runs"], "exceptions": 0,
            "results": dict(Counter(tally["results"]).most_common()),
            "slowest_completion_ms": round(1000 * tally["slowest"], 1),
            "inputs_at_start": seeds, "inputs_that_reach_something_new": reached,
            "edges_at_start": _number(next(x for x in state if "INITED" in x), "cov:"),
            "edges_at_end": _number(state[-1], "cov:"), "seconds": round(time.monotonic() - started),
        }  # fmt: skip


def _number(line: str, key: str) -> int:
    words = line.split()
    return int(words[words.index(key) + 1])


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    command = f"python -m tests.reliability.fuzz_atheris --minutes {args.minutes:g} --seed {args.seed}"
    text = json.dumps({"command": command, **fuzz(args.minutes, args.seed)}, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    return None


if __name__ == "__main__":
    main()
