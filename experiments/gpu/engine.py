"""Step 1: each change of the engine alone, on and off; the engine against TRL; its sampler and its trainer.

    python -m experiments.gpu.engine --data meld:PATH --out OUT

A change is set against one baseline on the same tokens in one process, in turn (A B A B): seconds, peak
memory, and whether both computed the same. The engine with all of them is set against TRL's trainers, by
the rows of benchmarks/. `results.json` is written after each row; what fails is kept as failed, and the rows
after it run.

Two models: the cold start of a few steps from `--model`, which ends its replies, and random weights of
0.6B parameters, which say something of speed alone.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch._dynamo
from benchmarks import generation, rl_rate, shapes, training
from benchmarks import ours as our
from benchmarks.harness import Row, in_turn, timed
from benchmarks.ours import SETTINGS, Done, Side
from experiments.gpu.provenance import ROOT, VERSIONS, provenance

from selfemo.files import write_json
from selfemo.method.types import BUILTIN_MODEL
from selfemo.models.loading import pick_device, pick_dtype
from selfemo.models.packing import shared_prefix

BASELINE: Sequence[str] = (
    "model.attention=dense", "model.decoder=branches", "model.compile=false", "model.fp32_head=false",
    "sampling.token_budget=65536", "evaluation.token_budget=65536",
    "grpo.micro_tokens=16384", "sft.micro_tokens=16384",
)  # fmt: skip
WIDE = ("sampling.token_budget=1000000", "evaluation.token_budget=1000000")
MICRO = ("grpo.micro_tokens={most}", "sft.micro_tokens={most}")
"""The model's `Size.micro_tokens`."""
ALL = ("model.attention=flex", "model.decoder=slots", "model.compile=true", *WIDE, *MICRO)
VARIANTS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "flex": (["model.attention=flex"], ["update-400", "update-1000", "round", "sft", "labels"]),
    "slots": (["model.decoder=slots"], ["rollouts-400", "round", "greedy"]),
    "compile": (["model.compile=true"], ["update-400", "update-1000", "sft"]),
    "micro 32768": (["grpo.micro_tokens=32768"], ["update-400", "update-1000"]),
    "micro 65536": (["grpo.micro_tokens=65536"], ["update-400", "update-1000"]),
    "wide": (WIDE, ["rollouts-400"]),
    "fp32 head": (["model.fp32_head=true"], ["update-400", "rollouts-400"]),
    "all": (ALL, ["update-400", "update-1000", "rollouts-400", "rl-step", "round", "sft", "labels"]),
    "tree": (["model.attention=tree"], ["update-400", "round"]),
}
"""The changes, each with its settings over the baseline and the work that it can change."""
LARGE_VARIANTS = {"flex": ["update-400"], "compile": ["update-400"], "all": ["update-400", "rollouts-400"]}
"""Those that the larger model shows too."""
MISMATCHES = ("baseline", "fp32 head", "slots", "flex", "compile", "all")
_ROWS = ("update-400", "update-1000", "rollouts-400", "rollouts-1000", "rl-step", "round", "sft",
         "evaluation", "labels")  # fmt: skip
AGAINST_TRL: Mapping[str, Sequence[str]] = {"135m": _ROWS, "0.6b": _ROWS}
GOALS: dict[str, Any] = {
    "ratio": {
        "update-400": 4.5, "update-1000": 4.5, "rollouts-400": 5.0, "rollouts-1000": 5.0, "rl-step": 6.0,
    },
    "memory": 0.6,
    "share": {"135m": 0.25, "0.6b": 0.45},
}  # fmt: skip
"""Ratios to TRL; its share of peak memory at most; the share of the card's peak."""
_GUESS_S, _COMPILE_S = 25.0, 75.0
"""Guesses: seconds of a row where none of its work is known; of compilation in the first one of its kind."""
_COMPILING = ("trl", "compile", "flex", "all", "mismatch")


@dataclass(frozen=True)
class Size:
    """How much a row computes.

    Attributes:
        repeats: timed pairs, after one that warms up.
        short, long: prompt tokens of the updates and rollouts named 400 and 1000.
        groups: prompts of an update and of an RL step, G completions each.
        rollouts: prompts that are sampled together, half of them where they are long.
        round: gold prompts of a two-stage round.
        held_out, labels: dev prompts, of greedy evaluation and of label scores.
        sft: samples of a step.
        micro: rows of TRL's micro-batches.
        micro_tokens: of ours, with all changes: as many as memory holds beside TRL's weights.
        start: batches of the cold start.
    """

    repeats: int = 3
    short: int = 400
    long: int = 1000
    groups: int = 32
    rollouts: int = 64
    round: int = 64
    held_out: int = 200
    labels: int = 500
    sft: int = 64
    micro: int = 32
    micro_tokens: int = 65536
    start: int = 8


FULL = {"135m": Size(), "0.6b": replace(Size(), groups=16, rollouts=32, micro=16, micro_tokens=16384)}
_SMALL = Size(2, 300, 400, 2, 2, 8, 8, 8, 4, 8, 65536, 1)
TINY = {"135m": _SMALL, "0.6b": _SMALL}


def filled(settings: Sequence[str], size: Size) -> list[str]:
    """Settings with the micro-batches of a model."""
    return [s.format(most=size.micro_tokens) for s in settings]


class Step:
    """The rows, and what they share: weights, engines, inputs.

    Args:
        args: of the command line.
        work: a folder for weights.
    """

    def __init__(self, args: argparse.Namespace, work: Path):
        self.out, self.work, self.end = args.out, work, time.monotonic() + args.seconds
        self.data, self.model, self.tiny = args.data, args.model, args.tiny
        self.sizes = TINY if args.tiny else FULL
        # Beside the weights: a later call on the machine finds what was compiled.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(work / "compiled"))
        device = pick_device(args.device)
        dtype = pick_dtype(args.dtype, device)
        SETTINGS.update(device=device.type, dtype=dtype, peak_tflops=0.0 if args.tiny else args.peak_tflops)
        changes = [*(MICRO if args.tiny else ALL), *args.overrides]
        self.ours = {name: filled(changes, size) for name, size in self.sizes.items()}
        self.results: dict[str, Any] = {
            "step": "engine",
            **provenance(ROOT / "benchmarks"),
            "settings": {
                "sizes": {name: asdict(size) for name, size in self.sizes.items()},
                "device": device.type, "dtype": dtype, "peak_tflops": SETTINGS["peak_tflops"],
                "data": self.data.rsplit("/", 1)[-1].split(":")[0],
                "model": self.model.rsplit("/", 1)[-1],
                "baseline": list(BASELINE), "ours": self.ours,
            },
            "goals": GOALS,
            "rows": {},
        }  # fmt: skip
        self.rows: dict[str, Callable[[], dict[str, Any]]] = {"cuda tests": cuda_tests}
        for model in self.sizes:
            self.rows |= {f"{model}/trl/{w}": partial(self.against_trl, model, w) for w in AGAINST_TRL[model]}
            if model == "135m":
                self.rows |= {f"{model}/mismatch/{n}": partial(self.mismatch, n) for n in MISMATCHES}
            for variant, (_, works) in VARIANTS.items():
                chosen = works if model == "135m" else LARGE_VARIANTS.get(variant, [])
                self.rows |= {
                    f"{model}/{variant}/{w}": partial(self.change, model, variant, w) for w in chosen
                }
        self.results["planned"] = list(self.rows)
        self._sides: dict[tuple[str, ...], Side] = {}
        self._made_here = list[str]()
        self._inputs: dict[tuple[str, str], Any] = {}

    def say(self, text: str) -> None:
        print(f"[{self.end - time.monotonic():6.1f} s left] {text}", flush=True)

    def go_on_from(self, file: Path) -> None:
        """Keep the rows of an earlier result.

        Raises:
            ValueError: it is of another card, of other versions, sources or settings.
        """
        earlier = json.loads(file.read_text(encoding="utf-8"))
        mine = json.loads(json.dumps(self.results))
        for key in ("step", "device", *VERSIONS, "sources", "settings"):
            if earlier.get(key) != mine[key]:
                raise ValueError(
                    f"{file} has other {key} than this run: {earlier.get(key)} and {mine[key]}; rows of the "
                    "two cannot stand side by side: leave --after out, and name an --out without results"
                )
        self.results["rows"] = earlier["rows"]

    def run(self, only: Sequence[str] = ()) -> None:
        """Make the rows that are missing, those of `only` (patterns) alone and, if they failed, again."""
        self.say(f"{self.results['device']}, {len(self.rows)} rows")
        for name, make in self.rows.items():
            known = self.results["rows"].get(name)
            if only and not any(fnmatch.fnmatch(name, pattern) for pattern in only):
                continue
            if known and not (only and known.keys() & {"failed", "not_run"}):
                continue
            if self._expected(name) > self.end - time.monotonic():
                self.say(f"{name}: left out, no time")
                continue
            begun = time.monotonic()
            record = self._made(make)
            self._made_here.append(name)
            record["row_s"] = time.monotonic() - begun
            self.results["rows"][name] = record
            write_json(self.out / "results.json", self.results)
            self.say(f"{name}: {told(record)}")
        write_json(self.out / "results.json", self.results)

    def _expected(self, name: str) -> float:
        """Seconds of a row, by the longest of the same work so far; more where it is the first to compile."""
        rows, (model, _, kind_of) = self.results["rows"], name.partition("/")
        kind, _, work = kind_of.partition("/")
        known = [r["row_s"] - _first_s(r) for n, r in rows.items() if n.endswith(f"/{work}")]
        compiles = any(f"{model}/{k}/" in name for k in _COMPILING) and not any(
            n.startswith(f"{model}/{kind}/") for n in self._made_here
        )
        return 1.1 * max(known, default=_GUESS_S) + _COMPILE_S * compiles

    def _made(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return make()
        except Exception as e:
            traceback.print_exc()
            self._sides.clear()  # one of them may be what failed
            return {"failed": "".join(traceback.format_exception_only(e)).strip().splitlines()[-1]}
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def weights(self, model: str) -> str:
        """The folder of a model: trained for a few steps on gold samples, or random."""
        folder = self.work / model
        if folder.exists():
            return str(folder)
        begun, whole = time.monotonic(), self.work / f"{model}.part"
        if model == "135m":
            side = Side(self.model, *BASELINE)
            size, e = self.sizes[model], side.engine
            step = our.sft(side, our.sft_batches(self.data, size.start, 32, e), 2e-4)
            losses = [step(k).measures["loss"] for k in range(size.start)]
            e.save(whole)
            about = f"loss {losses[0]:.2f} to {losses[-1]:.2f}"
        else:
            shapes.write("tiny" if self.tiny else "qwen3-0.6b", self.weights("135m"), whole)
            about = "random weights"
        whole.rename(folder)
        self.say(f"{model}: {about}, {time.monotonic() - begun:.1f} s")
        return str(folder)

    def side(self, model: str, *settings: str) -> Side:
        """An engine under the baseline and some settings; the baseline's and the last other one are kept."""
        SETTINGS["overrides"] = ()
        key = (model, *settings)
        if key not in self._sides:
            for old in [k for k in self._sides if k[0] != model or (settings and len(k) > 1)]:
                del self._sides[old]
            gc.collect()
            self._sides[key] = Side(self.weights(model), *BASELINE, *settings)
        return self._sides[key]

    def call(self, model: str, work: str, side: Side) -> Callable[[int], Done]:
        """A kind of work on inputs that are the same for each side; no weights change."""
        size, base = self.sizes[model], self.side(model).engine
        kind, _, length = work.partition("-")
        tokens = {"400": size.short, "1000": size.long}.get(length, size.short)

        def inputs() -> Any:
            if kind == "update":
                return our.random_groups(tokens, size.groups, our.vocabulary(base))
            if kind in ("rollouts", "rl"):
                n = size.rollouts if kind == "rollouts" else size.groups
                return [our.sample_prompts(self.data, tokens, n, base)]
            if kind == "round":
                return our.gold_rounds(self.data, 1, size.round, base)
            if kind == "sft":
                return our.sft_batches(self.data, 1, size.sft, base)
            return our.held_out_prompts(self.data, size.held_out if kind == "greedy" else size.labels)

        if (model, work) not in self._inputs:
            self._inputs[model, work] = inputs()
        given = self._inputs[model, work]
        if kind == "update":
            return our.update(side, given, 0.0)
        if kind == "rollouts":
            return our.replies(side, given)
        if kind == "rl":
            return our.rl_step(side, given, tokens, 0.0)
        if kind == "round":
            return our.gold_round(side, given, 0.0, made_up=self._made_up(model))
        if kind == "sft":
            return our.sft(side, given, 0.0)
        return our.greedy(side, [given]) if kind == "greedy" else our.labels(side, given)

    def _made_up(self, model: str) -> bool:
        """Whether what a model writes has no rewards, so that a round's advantages are made up."""
        return self.tiny or model != "135m"

    def change(self, model: str, variant: str, work: str) -> dict[str, Any]:
        """A change against the baseline on the same inputs, in turn."""
        size = self.sizes[model]
        settings = filled(VARIANTS[variant][0], size)
        base = self.side(model)
        changed = self.side(model, *settings)
        row = Row(f"{variant}, {work}, {model}", "the baseline", None)
        done: tuple[list[Done], list[Done]] = ([], [])

        def kept(side: Side, into: list[Done]) -> Callable[[], None]:
            side.memory.run(side.engine.end_stage)  # an optimiser of the work before
            side.memory.anew()
            call = self.call(model, work, side)

            # The same number each time: the same seeds, so the same tokens.
            return lambda: into.append(call(0))

        ours, theirs = kept(changed, done[0]), kept(base, done[1])
        in_turn(row, ours, theirs, size.repeats, memory=(changed.memory, base.memory))
        if work == "round":
            _must_update([d.tokens for side in done for d in side])
        pairs = [agreement(a, b, SETTINGS["dtype"]) for a, b in zip(*done, strict=True)]
        if work.startswith(("update", "sft")):
            given = self._inputs[model, work]
            pairs.append(same(our.apart(changed, base, given if work.startswith("update") else given[0])))
        row.details = {
            "tokens": [[d.tokens for d in side[1:]] for side in done],
            "parts": [_medians([d.parts for d in side[1:]]) for side in done],
        }
        if work.startswith("update"):
            tokens = size.long if work.endswith("1000") else size.short
            tflop = our.update_tflop(base.engine, tokens, size.groups)
            row.details["share"] = [
                training.utilisation(tflop, s).get("utilisation") for s in (row.ours, row.theirs)
            ]
        row.checked = _checked(work)
        return {
            **row.as_dict(),
            "settings": settings,
            # Compilation is in the first call, as is all else that a first call does: of both sides.
            "first_less_later_s": [
                f - statistics.median(later)
                for f, later in zip(row.first, (row.ours, row.theirs), strict=True)
            ],
            "agreement": pairs,
            "agree": all(p["agree"] for p in pairs),
        }

    def against_trl(self, model: str, work: str) -> dict[str, Any]:
        """A row of benchmarks/, ours with its changes."""
        if work not in ("evaluation", "labels") and find_spec("trl") is None:
            return {"not_run": "TRL is not installed"}
        self._sides.clear()  # their memory is the peer's
        weights, size = self.weights(model), self.sizes[model]
        SETTINGS["overrides"] = tuple(self.ours[model])
        n = size.repeats
        tokens = size.long if work.endswith("1000") else size.short
        if work.startswith("update"):
            row = training.policy_update(weights, tokens, n, 0.0, size.micro, size.groups)
        elif work.startswith("rollouts"):
            prompts = size.rollouts // (2 if work.endswith("1000") else 1)
            row = generation.rollouts(weights, self.data, tokens, n, prompts)
        elif work == "rl-step":
            row = training.rl_step(weights, self.data, n, size.micro, size.groups, tokens)
        elif work == "round":
            row = rl_rate.rl_prompts(
                weights, self.data, n, size.micro, size.round, made_up=self._made_up(model)
            )
            _must_update(row.details["completion tokens"]["ours, packed"])
        elif work == "sft":
            row = training.sft_step(weights, self.data, n, size.sft)
        elif work == "evaluation":
            least = 0.0 if model != "135m" else 0.97 if SETTINGS["dtype"] == "fp32" else 0.9
            row = generation.evaluation(weights, self.data, size.held_out, size.sft, n + 1, least)
        else:
            row = self._labels(weights, size)
        row.goal = GOALS["ratio"].get(work)
        return row.as_dict()

    def _labels(self, weights: str, size: Size) -> Row:
        side = Side(weights)
        asked = our.held_out_prompts(self.data, size.labels)
        call, row = our.labels(side, asked), Row(f"label scores of {len(asked)} dev prompts", "", None)
        seconds = []
        for _ in range(size.repeats + 1):
            spent, done = side.memory.run(lambda: timed(lambda: call(0)))
            seconds.append(spent)
        row.first, row.ours = seconds[:1], seconds[1:]
        row.peak_gib, row.details = [side.memory.peak_gib], dict(done.measures)
        return row

    def mismatch(self, name: str) -> dict[str, Any]:
        """The sampler's log-probabilities against the trainer's."""
        size, base = self.sizes["135m"], self.side("135m")
        settings = [] if name == "baseline" else filled(VARIANTS[name][0], size)
        side = self.side("135m", *settings) if settings else base
        prompts = our.sample_prompts(self.data, size.short, max(1, size.rollouts // 4), base.engine)
        return {"settings": settings, "mismatch": our.mismatch(side, prompts)}


def _first_s(record: Mapping[str, Any]) -> float:
    """Seconds that first calls took longer than later ones, compilation above all; 0 for other rows."""
    sides = zip(record.get("first", ()), (record.get("ours"), record.get("theirs")), strict=False)
    return sum(max(0.0, first - statistics.median(later)) for first, later in sides if later)


def _must_update(packed: Sequence[int]) -> None:
    """RuntimeError: no group of a round had an advantage, so that it made no update."""
    if not all(packed):
        raise RuntimeError(
            "a round without an update: no completion has a reward, the model writes no format"
        )


def _medians(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(p[name] for p in parts) for name in parts[0]}


_LIMITS = {"fp32": (1e-3, 0.97, 1e-3), "bf16": (5e-2, 0.9, 5e-2)}
"""By precision: relative difference of measures and gradients at most, share of equal lines at least, mean
|difference| of log-probabilities at most. Samples of the same seeds are compared up to where they first
differ, which by rounding they do soon in bf16: how far they go together is told and has no limit."""


def agreement(a: Done, b: Done, dtype: str) -> dict[str, Any]:
    """How far two calls on the same inputs are apart, and whether that is rounding."""
    measure, line, logp = _LIMITS[dtype]
    found: dict[str, Any] = {}
    ok = []
    for name, x in a.measures.items():
        y = b.measures[name]
        found[name] = abs(x - y) / max(abs(x), abs(y), 1e-9)
        ok.append(found[name] <= measure)
    if a.lines or b.lines:
        found["equal lines"] = sum(x == y for x, y in zip(a.lines, b.lines, strict=True)) / len(a.lines)
        ok.append(found["equal lines"] >= line)
    if a.completions or b.completions:
        apart, tokens = [], 0
        for x, y in zip(a.completions, b.completions, strict=True):
            n = shared_prefix(x.token_ids, y.token_ids)
            tokens += max(len(x.token_ids), len(y.token_ids))
            apart += [abs(p - q) for p, q in zip(x.logprobs[:n], y.logprobs[:n], strict=True)]
        found["tokens in common"] = len(apart) / tokens
        found["log-probability"] = statistics.fmean(apart) if apart else None
        ok.append(bool(apart) and found["log-probability"] <= logp)
    return {**found, "agree": bool(ok) and all(ok)}


def same(found: dict[str, float]) -> dict[str, Any]:
    """What `ours.apart` found, and whether that is rounding."""
    measure, _, logp = _LIMITS[SETTINGS["dtype"]]
    return {**found, "agree": found["gradient"] <= measure and found["log-probability"] <= logp}


def _checked(work: str) -> str:
    return {
        "update": "log-probabilities, gradients", "sft": "log-probabilities, gradients",
        "greedy": "predicted lines", "labels": "NLL of gold and top labels",
    }.get(work.partition("-")[0], "sampled tokens and log-probabilities")  # fmt: skip


def cuda_tests() -> dict[str, Any]:
    """tests/model/test_cuda.py in a process of its own: how many passed."""
    if not torch.cuda.is_available():
        return {"not_run": "no CUDA device"}
    command = [sys.executable, "-m", "pytest", "-m", "slow or not slow", "-p", "no:cacheprovider",
               "tests/model/test_cuda.py"]  # fmt: skip
    try:
        asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired as e:
        said = e.stdout or b""
        raise RuntimeError(f"the tests had not ended after 300 s: {said[-200:]!r}") from e
    print(asked.stdout[-4000:], flush=True)
    counts = outcomes(asked.stdout)
    if not counts:
        raise RuntimeError(f"pytest said nothing of its tests: {(asked.stderr or asked.stdout)[-300:]}")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", asked.stdout, re.M)
    return {"tests": counts, "failures": failed}


def outcomes(text: str) -> dict[str, int]:
    """The counts of pytest's last line: passed, failed, skipped and so on; empty where it has none."""
    last = next((x for x in reversed(text.splitlines()) if re.search(r"\d+ \w+.* in [\d.]+s", x)), "")
    found = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed|deselected)", last)
    return {name: int(n) for n, name in found}


def told(record: Mapping[str, Any]) -> str:
    """A row in a line."""
    for key in ("failed", "not_run"):
        if key in record:
            return f"{key.replace('_', ' ')}: {record[key]}"
    if "tests" in record or "mismatch" in record:
        return str(record.get("tests", record.get("mismatch")))
    line = f"{statistics.median(record['ours']):.3f} {record['unit']}"
    if record["ratio"]:
        ratios = record["ratios"]
        line += f", {record['ratio']:.2f} times {record['peer']} ({min(ratios):.2f}-{max(ratios):.2f})"
    if record.get("agree") is False:
        line += ", THEY DIFFER: " + json.dumps(record["agreement"])
    return line


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="sample", help="a data source with a dev split")
    parser.add_argument("--model", default=BUILTIN_MODEL, help="where the smaller model's cold start begins")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=520, help="begin no row that would not end by then")
    parser.add_argument("--tiny", action="store_true", help="shows on a CPU that the rows run, nothing else")
    parser.add_argument("--after", type=Path, help="a result of this step whose rows are not made again")
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="make these rows alone "
                        "(a pattern: '135m/flex/*'), also those that failed; repeat it")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], dest="overrides",
                        help="section.key=value of our side against TRL")  # fmt: skip
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the card, dense, in bf16")
    parser.add_argument("--work", type=Path, help="keep the weights there, or take those")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options()
    args = parser.parse_args(arguments)
    for folder in (args.out, args.work or args.out):
        folder.mkdir(parents=True, exist_ok=True)
    before, limit = dict(SETTINGS), torch._dynamo.config.fail_on_recompile_limit_hit
    try:
        with TemporaryDirectory() as own:
            step = Step(args, args.work or Path(own))
            for pattern in args.only:
                if not fnmatch.filter(step.rows, pattern):
                    parser.error(f"no row {pattern}; there are: {', '.join(step.rows)}")
            there = args.out / "results.json"
            if after := args.after or (there if there.exists() else None):  # nothing that was made is lost
                step.go_on_from(after)
            with contextlib.suppress(Exception):  # its rows tell what is missing
                from trl import GRPOTrainer, SFTTrainer  # noqa: F401
            # Beyond its limit of versions dynamo would run a layer uncompiled, and say nothing.
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            # A collection before each timed call would go over all that these imports hold: 0.4 s a call.
            gc.collect()
            gc.freeze()
            step.run(args.only)
    finally:
        gc.unfreeze()
        torch._dynamo.config.fail_on_recompile_limit_hit = limit
        SETTINGS.update(before)


if __name__ == "__main__":
    main()
