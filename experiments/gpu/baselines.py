"""Step "baselines": the reference systems of `selfemo baseline`, under one protocol, by seeds.

Arms are those of baselines.toml, each on every data set by itself and on all together ("unified"). They train
on the training split, choose on the tuning half of dev and are scored on its claim half, by conversation, as
`data.eval_half` parts it (the other steps part dev in another way). Each run is a job of `selfemo baseline`
with one seed. `results.json` is written after each run; of each utterance it has the label that was said and
NLL at T.

    python -m experiments.gpu.baselines --group encoder --data meld:PATH --data emorynlp:PATH --out OUT

Weights of another machine: --weights mpnet=FOLDER. An arm whose baseline or weights are not there is told as
left out, and so is one for which no time is left.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from experiments.gpu.provenance import KEYS, provenance
from experiments.gpu.settings import differing
from experiments.gpu.study import ANOTHER, HERE

from selfemo.config import load
from selfemo.data import load as load_data
from selfemo.evaluation.baseline_jobs import run_baseline, seed_folders, settings_class
from selfemo.evaluation.baselines import BASELINES
from selfemo.evaluation.jobs import SCORES_FILE, predictions_of
from selfemo.evaluation.tempered import BELIEF_FLOOR, best_temperature, log_table, nll_at
from selfemo.files import write_json
from selfemo.progress import Advance, Pace, Stopped, StopRequest
from selfemo.runs.store import PredictionRow
from selfemo.runs.store.prompts import read_distribution

SPEED = ("baseline.micro_tokens", "baseline.fine_tune.micro_tokens", "device")
"""Settings that change speed and memory alone, but for rounding."""
UNIFIED = "unified"
PAPER_DATA = ("meld", "emorynlp", UNIFIED)
"""The data of the queue's runs."""
_SCORES = ("accuracy", "weighted_f1", "macro_f1")
_GUESS_S, _LONGER, _SPARE_S, _SETTLED = 45.0, 1.15, 5.0, 64
"""Seconds of a run where none of its arm is known; how much longer the next may take; least seconds for what
comes after a run; steps of a bar whose rate foretells its end."""


@dataclass(frozen=True)
class Arm:
    """A baseline with settings, of baselines.toml.

    Attributes:
        settings: `section.key` and value, with {NAME} for weights.
        tiny: those on top of them with --tiny.
    """

    name: str
    group: str
    baseline: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    tiny: Mapping[str, Any]

    def overrides(self, weights: Mapping[str, str], *more: Mapping[str, Any]) -> list[str]:
        """Its settings as `--set` takes them."""
        merged = {**self.settings, **{k: v for m in more for k, v in m.items()}}
        filled = {k: v.format(**weights) if isinstance(v, str) else v for k, v in merged.items()}
        return [f"{k}={json.dumps(v)}" for k, v in filled.items()]

    def without(self, weights: Mapping[str, str]) -> str:
        """Why it cannot be made; empty where it can."""
        if self.baseline not in BASELINES:
            return f"no baseline {self.baseline!r} in this version"
        if lacking := self.lacking(weights):
            return f"no weights: give --weights {lacking[0]}=FOLDER"
        return ""

    def lacking(self, weights: Mapping[str, str]) -> list[str]:
        """The names of weights that it needs and that have no folder."""
        return [n for n, at in weights.items() if not at and f"{{{n}}}" in self.settings.values()]


FILE: Mapping[str, Any] = tomllib.loads((HERE / "baselines.toml").read_text(encoding="utf-8"))
ARMS: Mapping[str, Arm] = {
    a["name"]: Arm(
        a["name"], a["group"], a["baseline"], tuple(a.get("seeds", FILE["seeds"])),
        {**FILE["set"], **a.get("set", {})}, {**FILE["tiny"]["set"], **a.get("tiny", {})},
    )
    for a in FILE["arms"]
}  # fmt: skip
GROUPS = tuple(dict.fromkeys(a.group for a in ARMS.values()))


def planned(group: str) -> list[tuple[str, int]]:
    """(arm with its data, seed) of all runs of a group on MELD and EmoryNLP, without --weights."""
    mine = [a for a in ARMS.values() if a.group == group and not a.lacking(FILE["weights"])]
    return [(f"{a.name}, {d}", seed) for a in mine for d in PAPER_DATA for seed in a.seeds]


class Clock:
    """A reporter that asks for a stop once a bar foretells that it would not end in time.

    Args:
        foretell: else a stop is asked for when time is up: what is done is kept for another call.
    """

    def __init__(self, stop: StopRequest, end: float, foretell: bool):
        self.stop, self.end, self.foretell = stop, end, foretell

    def say(self, text: str) -> None:
        print(f"[{self.end - time.monotonic():6.1f} s left] {text}", flush=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        pace = Pace(total)

        def advance(n: int = 1, note: str = "") -> None:
            pace.advance(n)
            left = pace.left() if self.foretell and pace.done >= _SETTLED else 0.0
            if time.monotonic() + (left or 0.0) > self.end and not self.stop.asked:
                self.stop.asked = True
                self.say(f"{label}: {pace}, more than there is time for")

        yield advance


class Baselines:
    """The runs and their results.

    Args:
        sources: of data.
        overrides: settings on top of each arm's.
        weights: folders by name, on top of the file's.
        out: where results.json goes.
        work: a folder for jobs; one that was stopped there is gone on with, where `kept`.
        seconds: no run begins that would not end by then.
        before: results of the step whose runs are kept and not made again.
    """

    def __init__(
        self, sources: Sequence[str], overrides: Sequence[str], weights: Mapping[str, str], out: Path,
        work: Path, seconds: float, before: Path | None = None, *, kept: bool = False, tiny: bool = False,
    ):  # fmt: skip
        self.overrides, self.out, self.work, self.kept, self.tiny = list(overrides), out, work, kept, tiny
        self.end = time.monotonic() + seconds - _SPARE_S
        self.weights = {**FILE["weights"], **(FILE["tiny"]["weights"] if tiny else {}), **weights}
        self.data = data_of(sources)
        self.results: dict[str, Any] = {
            **provenance(),
            "settings": {},
            "labels": {},
            "utterances": {},
            "runs": [],
        }
        if before:
            self._go_on_from(before)
        self.results |= {"weights": {n: Path(at).name for n, at in self.weights.items()}, "left_out": {}}

    def _go_on_from(self, file: Path) -> None:
        """Take the runs of an earlier result; settings are compared when an arm is made."""
        earlier = json.loads(file.read_text(encoding="utf-8"))
        for key in ("settings", "labels", "utterances", "runs", "failed"):
            if key in earlier:
                self.results[key] = earlier[key]
        known = earlier.get("earlier", [])
        named = {name for made in known for name in made["runs"]}
        own = [r["run"] for r in earlier["runs"] if r["run"] not in named]
        self.results["earlier"] = [*known, {**{k: earlier[k] for k in KEYS if k in earlier}, "runs": own}]

    def say(self, text: str) -> None:
        Clock(StopRequest(), self.end, False).say(text)

    def write(self) -> None:
        write_json(self.out / "results.json", self.results)

    def leave_out(self, name: str, why: str) -> None:
        self.results["left_out"][name] = why
        self.say(f"{name}: left out, {why}")
        self.write()

    def arm(self, arm: Arm, seeds: Sequence[int]) -> None:
        """Make the runs of an arm on each data set and on all."""
        if why := arm.without(self.weights):
            self.leave_out(arm.name, why)
            return
        tiny = arm.tiny if self.tiny else {}
        sets = [*arm.overrides(self.weights, tiny), *self.overrides]
        config = load([], sets, settings_class(arm.baseline))
        plain = config.model_dump(mode="json", exclude={"data": {"sources"}})
        told = json.loads(json.dumps(_names(plain, self.weights)))
        earlier = self.results["settings"].setdefault(arm.name, told)
        if other := differing(earlier, told, SPEED):
            raise ValueError(
                f"{arm.name}: runs with other settings ({'; '.join(other)}); repeat them, or {ANOTHER}"
            )
        for name, sources in self.data.items():
            for seed in seeds:
                self.run(arm, f"{arm.name}, {name}", seed, sources, sets)

    def run(self, arm: Arm, name: str, seed: int, sources: Sequence[str], sets: Sequence[str]) -> None:
        """One training, and its scores."""
        run = f"{name}, seed {seed}"
        if run in {r["run"] for r in self.results["runs"]}:
            return
        seconds = [r["seconds"] for r in self.results["runs"] if r["arm"] == name]
        if time.monotonic() + _LONGER * max(seconds, default=0.0 if self.tiny else _GUESS_S) > self.end:
            self.leave_out(run, "no time")
            return
        begun, stop = time.monotonic(), StopRequest()
        clock = Clock(stop, self.end, foretell=not self.kept)
        job = self._job(name, seed)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            run_baseline(
                arm.baseline, sources, job, 1, [], [*sets, f"first_seed={seed}"], clock, stop=stop
            )  # fmt: skip
            record = {"run": run, "arm": name, "seed": seed, "baseline": arm.baseline, **self._scored(job)}
        except Stopped:
            self.leave_out(run, "no time")
            return
        except Exception:
            self.results["failed"] = [*self.results.get("failed", []), f"{run}: {traceback.format_exc()}"]
            self.say(self.results["failed"][-1])
            self.write()
            return
        record["seconds"] = time.monotonic() - begun
        if torch.cuda.is_available():
            record["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.results["runs"].append(record)
        self.write()
        parts = (
            f"{d} F1 {s['weighted_f1'][0]:.3f}, NLL at T {s['nll_at_t']:.3f}"
            for d, s in record["scores"].items()
        )
        self.say(f"{run}: {' | '.join(parts)}, {record['seconds']:.0f} s")

    def _job(self, name: str, seed: int) -> Path:
        """The folder of a job; what seeds share, such as features, lies beside it and is linked to."""
        arm = self.work / name.replace(" ", "-").replace(",", "")
        shared, job = arm / "shared", arm / f"job-{seed}"
        for folder in (shared, job):
            folder.mkdir(parents=True, exist_ok=True)
        if not (job / "shared").exists():
            (job / "shared").symlink_to(shared.resolve(), target_is_directory=True)
        return job

    def _scored(self, job: Path) -> dict[str, Any]:
        """Scores of a finished job by data set; of each utterance the label that was said and its NLL at T.

        Raises: ValueError: it read other utterances than earlier runs.
        """
        ((_, folder),) = seed_folders(job)
        rows = predictions_of(folder)
        found = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
        record: dict[str, Any] = {k: found[k] for k in ("sees_later", "trained_on", "split")}
        scores, predicted, nll = {}, {}, {}
        for d in dict.fromkeys(r["dataset"] for r in rows):
            mine = sorted((r for r in rows if r["dataset"] == d), key=lambda r: r["prompt"])
            held = found["scores"][d]
            labels = held["confusion"]["labels"]
            utterances, said, each, temperature = read(mine, labels)
            if self.results["utterances"].setdefault(d, utterances) != utterances:
                raise ValueError(f"{d}: the utterances of earlier runs are other ones; {ANOTHER}")
            scores[d] = {
                "n": len(mine), **{m: held[m] for m in _SCORES}, "temperature": temperature,
                "nll_at_t": sum(each) / len(each),
            }  # fmt: skip
            predicted[d], nll[d] = said, [round(x, 4) for x in each]
            self.results["labels"][d] = labels
        return {**record, "scores": scores, "predicted": predicted, "nll": nll}


def read(
    rows: Sequence[PredictionRow], labels: Sequence[str]
) -> tuple[dict[str, list[Any]], list[int], list[float], float]:
    """Utterances, the place of each label that was said, NLL at T of each, and T, of one data set."""
    believed = [read_distribution(r["believed"]) or {} for r in rows]
    gold = [read_distribution(r["gold"]) or {} for r in rows]
    logs, targets = log_table(believed, gold, [labels] * len(rows), BELIEF_FLOOR)
    temperature, _ = best_temperature(logs, targets)
    utterances = {
        "prompt": [r["prompt"] for r in rows],
        "conversation": [r["conversation"] for r in rows],
        "gold": targets.argmax(1).tolist(),
    }
    return utterances, logs.argmax(1).tolist(), nll_at(logs, targets, temperature).tolist(), temperature


def _names(settings: Any, weights: Mapping[str, str]) -> Any:
    """Settings with the name of a folder of weights in place of where it lay."""
    if isinstance(settings, Mapping):
        return {k: _names(v, weights) for k, v in settings.items()}
    return Path(settings).name if settings in [w for w in weights.values() if w] else settings


def data_of(sources: Sequence[str]) -> dict[str, list[str]]:
    """Sources by the name of their data set; all of them as "unified", where there are several."""
    found = {load_data(source).conversations[0].dataset: [source] for source in sources}
    return {**found, UNIFIED: list(sources)} if len(found) > 1 else found


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", action="append", required=True, help="a data source; repeat it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--group", choices=GROUPS, help="make the arms of this group alone")
    parser.add_argument(
        "--arm", action="append", default=[], choices=list(ARMS), help="make this arm's runs alone; repeat it"
    )
    parser.add_argument("--seed", action="append", default=[], type=int, help="and of this seed; repeat it")
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FOLDER", help="repeat it")
    parser.add_argument("--seconds", type=float, default=540, help="begin no run that would not end by then")
    parser.add_argument(
        "--tiny", action="store_true", help="shows on a CPU that the step runs, and nothing else"
    )
    parser.add_argument("--after", type=Path, help="a result of this step whose runs are not made again")
    parser.add_argument("--work", type=Path, help="keep jobs there, and go on with those that were stopped")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value")
    return parser


def run_step(args: argparse.Namespace, make: Callable[..., Baselines] = Baselines) -> None:
    """Make the runs that the command line asks for."""
    for folder in (args.out, args.work or args.out):
        folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as own:
        there = args.out / "results.json"
        after = args.after or (there if there.exists() else None)  # nothing that was made is lost
        weights = dict(w.split("=", 1) for w in args.weights)
        step = make(
            args.data, args.overrides, weights, args.out, args.work or Path(own), args.seconds, after,
            kept=args.work is not None, tiny=args.tiny,
        )  # fmt: skip
        for arm in ARMS.values():
            if (args.arm and arm.name not in args.arm) or (args.group and arm.group != args.group):
                continue
            seeds = [s for s in arm.seeds if s in (args.seed or arm.seeds)]
            step.arm(arm, seeds[:1] if args.tiny else seeds)
        step.write()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line()
    args = parser.parse_args(arguments)
    for given in args.weights:
        name, _, folder = given.partition("=")
        if name not in FILE["weights"] or not folder:
            parser.error(f"--weights {given}: write NAME=FOLDER; names are {', '.join(FILE['weights'])}")
    run_step(args)


if __name__ == "__main__":
    main()
