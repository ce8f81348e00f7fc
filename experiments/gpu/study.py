"""What the steps of the queue share: one cold start, arms from it, and their scores on dev.

The dev split is halved by conversation: choices are made by the tuning half, the claim half is for the
claim. Everything is predicted by probability, without a completion. `results.json` is written after each
run, so that what was done before the time is up stays; a run that would not end in time is given up.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from experiments.gpu.provenance import KEYS, provenance
from experiments.gpu.scoring import beliefs, gold_places, said, scores
from experiments.gpu.settings import differing, told

from selfemo.config import Config, load
from selfemo.data.splits import held_out
from selfemo.errors import DataError
from selfemo.evaluation.channel import compare_readers, held_out_turns
from selfemo.evaluation.free_changes import nll_after_shift
from selfemo.evaluation.predictions import Prediction, gold_prompts, predict
from selfemo.files import write_json
from selfemo.method.prompts import format_answer
from selfemo.method.types import Conversation, Place, Prompt
from selfemo.runs.inputs import cold_start_samples, more_labels, run_inputs, turn_of
from selfemo.runs.store import Store
from selfemo.seeds import rng
from selfemo.stages.channel import read_turns
from selfemo.stages.completions import fit_all
from selfemo.stages.flywheel import labels_record, original_prompts
from selfemo.stages.rl import rl_plan, rl_stage
from selfemo.stages.selfplay import persona_book
from selfemo.training import open_rollouts
from selfemo.training.local import LocalTrainer
from selfemo.training.protocol import RlSpan
from selfemo.training.rollouts import VllmRollouts

HERE = Path(__file__).parent
TINY = (
    "data.train_conversations=12", "data.eval_conversations=8", "sft.max_samples=8", "sft.label_samples=8",
    "sft.batch_size=4", "flywheel.prompts=16", "grpo.prompts_per_step=8", "grpo.mini_batch=8",
    "sampling.group_size=4", "sampling.token_budget=8192", "grpo.micro_tokens=2048", "sft.micro_tokens=2048",
)  # fmt: skip
STAGE = "iteration-1-rl"
HALVES = ("tuning", "claim")
_ROUND = (
    "r1", "r1_original", "r2", "r1_flat", "silent", "parse_rate", "sampling_entropy", "loss", "grad_norm",
    "packed_tokens", "synthetic", "pass_rate", "self_emotions", "targets", "mismatch", "mismatch_p99",
    "mismatch_clipped", "expression", "expression_reader", "expression_spread", "expression_contrast",
    "expressed", "replies", "replies_refused", "replies_flat", "reply_tokens", "reply_entropy",
    "reply_distinct_2", "reply_length_gain", "vllm_gap",
)  # fmt: skip
_SPARE_S, _SLOWER = 12.0, 1.3
"""Least seconds for the scores behind a run; how much longer the next may take than the longest so far: an
arm loads its reader besides."""
ANOTHER = "leave --after out, and name an --out without results"
_SETTLED = 8
"""Rounds of a run whose median, the last of them, foretells its end: the first ones may compile."""
START_HITS, START_NLL = 0.01, 0.005
"""A start that was trained again may differ so much from the earlier one: in the share of dev utterances that
one of them alone has right, and in mean NLL at T, nats. Weights do not outlive a machine, and sums in bf16
need not come out equal on another card or by other kernels."""
WHOLE = {"span": "all", "max_new_tokens": 48}
"""Evaluation settings of greedy completions. A limit against repeats (no_repeat_ngram) would be kept on the
host, token by token."""


class OutOfTime(Exception):
    """A run would not end in time."""


class Unwatched:
    """A stage without guards or saved states."""

    step = 0

    def scale(self, step: int) -> float:
        return 1.0

    def look(self, step: int, record: dict[str, Any]) -> None:
        pass

    def after(self, trainer: Any, done: int, total: int) -> None:
        pass


class Study:
    """The cold start, the arms from it, and their results.

    Args:
        settings: the step's TOML file, beside this one.
        sources: of data.
        overrides: settings on top of the file.
        out: where results.json goes.
        work: a folder for weights; a start that is there already is not trained again.
        seconds: no run begins that would not end by then.
        before: results of the step whose runs are kept and not made again.
        arms, seeds: no other runs are made, all where empty; with `arms` the channel is not read.
    """

    def __init__(
        self,
        settings: str,
        sources: Sequence[str],
        overrides: Sequence[str],
        out: Path,
        work: Path,
        seconds: float,
        before: Path | None = None,
        arms: Sequence[str] = (),
        seeds: Sequence[int] = (),
    ):
        self.file, self.overrides = HERE / settings, [f"data.sources={json.dumps(list(sources))}", *overrides]
        self.out, self.work, self.end = out, work, time.monotonic() + seconds
        self.config = config = self.settings()
        conversations, self.train, self.others, overlapping = self.inputs()
        dev = held_out(conversations, "dev", config.data.eval_conversations, 0)
        order = rng(0, "halves").permutation(len(dev))
        self.tuning = {dev[i].id for i in order[: len(dev) // 2]}
        self.dev_conversations, self.dev = dev, gold_prompts(dev)
        self.taught, self.fresh = set[str](), list[Prompt]()
        self.trainer = LocalTrainer(config.model, config.sampling.temperature, lambda stage: work / "states")
        self.results: dict[str, Any] = {
            **provenance(),
            "settings": told(config),
            "labels": {p.dataset: list(p.label_set) for p in self.dev},
            "utterances": {
                "dataset": [p.dataset for p in self.dev],
                "conversation": [p.conversation_id for p in self.dev],
                "half": [self.half(p.conversation_id) for p in self.dev],
                "overlaps": [p.conversation_id in overlapping for p in self.dev],
                "gold": gold_places(self.dev),
            },
            "runs": [],
        }
        self._vllm: VllmRollouts | None = None
        self._spare = _SPARE_S
        self._before = self._earlier(before) if before else {}
        self._waiting = dict(self._before)
        self._arms, self._seeds = arms, seeds

    def _earlier(self, file: Path) -> dict[str, dict[str, Any]]:
        """The runs of an earlier result by name (ValueError: it has other settings or utterances)."""
        earlier = json.loads(file.read_text(encoding="utf-8"))
        mine = json.loads(json.dumps(self.results))
        # What an earlier version did not have yet is at its default, or as it is here.
        earlier["settings"] = told(Config.model_validate(earlier["settings"]))
        earlier["utterances"] = {**mine["utterances"], **earlier["utterances"]}
        if earlier["utterances"] != mine["utterances"]:
            raise ValueError(f"{file} has other utterances than this step; {ANOTHER}")
        if other := differing(json.loads(json.dumps(earlier["settings"])), mine["settings"]):
            raise ValueError(
                f"{file} has other settings than this step ({'; '.join(other)}); repeat them, or {ANOTHER}"
            )
        for key in ("channel", "start_differs", "failed"):
            if key in earlier:
                self.results[key] = earlier[key]
        before = earlier.get("earlier", [])
        named = {name for made in before for name in made["runs"]}
        own = [r["run"] for r in earlier["runs"] if r["run"] not in named]
        made = {k: earlier[k] for k in KEYS if k in earlier}
        self.results["earlier"] = [*before, {**made, "runs": own}]
        self._spare = max([_SPARE_S, *(_SLOWER * r.get("scores_s", 0.0) for r in earlier["runs"])])
        return {r["run"]: r for r in earlier["runs"]}

    def settings(self, *more: str) -> Config:
        return load([self.file], [*self.overrides, *more])

    def inputs(self) -> tuple[list[Conversation], list[Conversation], list[Conversation], set[str]]:
        """All conversations, those that arms train on, training conversations beside them, and the ids of
        the held-out ones that overlap with training data."""
        conversations, train, overlap = run_inputs(self.config)
        return conversations, train, [], set(overlap.overlapping)

    def half(self, conversation: str) -> str:
        return "tuning" if conversation in self.tuning else "claim"

    def say(self, text: str) -> None:
        print(f"[{self.end - time.monotonic():6.1f} s left] {text}", flush=True)

    def keep(self, key: str, value: Any) -> None:
        self.results[key] = value
        # The file may be that of the runs of before, which are not taken over yet.
        runs = [r for r in self.results["runs"] if r["run"] not in self._waiting]
        write_json(self.out / "results.json", {**self.results, "runs": [*self._waiting.values(), *runs]})

    def score(self, name: str, **about: Any) -> dict[str, Any]:
        """Predict dev with the present weights; keeps scores, and by utterance what was said, whether that is
        right, and NLL at T."""
        begun, sampler = time.monotonic(), self.trainer.engine.sampler
        found = predict(sampler, self.dev, self.config.evaluation, self.config.prompt)
        record: dict[str, Any] = {"run": name, **about, "evaluation_s": time.monotonic() - begun}
        hits, nll, shifted = np.zeros(len(found), dtype=int), np.zeros(len(found)), np.zeros(len(found))
        for dataset in self.results["labels"]:
            mine = self.indices(dataset=dataset)
            fold = np.array([self.half(self.dev[i].conversation_id) == "tuning" for i in mine])
            shifted[mine] = nll_after_shift(*beliefs([found[i] for i in mine]), fold)
        for half in HALVES:
            record[half] = {}
            for dataset in self.results["labels"]:
                mine = self.indices(half=half, dataset=dataset)
                scored, hits[mine], nll[mine] = scores([found[i] for i in mine])
                record[half][dataset] = {**scored, "nll_shifted": float(shifted[mine].mean())}
        record |= {"hits": hits.tolist(), "nll_at_t": nll.round(4).tolist()}
        record |= {"nll_shifted": shifted.round(4).tolist(), "predicted": said(found)}
        runs = [*self.results["runs"], record]
        self.keep("runs", runs)
        try:
            # What a start wrote is kept from its first time.
            if not self._before.get(name, {}).get("detailed"):
                record |= {**self.details(name), "detailed": True}
        except Exception:
            self._failed(f"{name}, details")
        record["scores_s"] = time.monotonic() - begun
        self._spare = max(self._spare, _SLOWER * record["scores_s"])
        self.keep("runs", runs)
        parts = (
            f"{half} {d} accuracy {s['accuracy']:.3f} F1 {s['weighted_f1']:.3f} "
            f"NLL at T {s['nll_at_t']:.3f}, after a prior shift {s['nll_shifted']:.3f}"
            for half in HALVES
            for d, s in record[half].items()
        )
        self.say(f"{name}: " + " | ".join(parts))
        return record

    def _failed(self, what: str) -> None:
        """Keep and tell the exception that is being handled; the step goes on."""
        self.keep("failed", [*self.results.get("failed", []), f"{what}: {traceback.format_exc()}"])
        self.say(self.results["failed"][-1])

    def indices(self, **of: str) -> list[int]:
        """Where the dev utterances are of a `half`, a `dataset`, or both."""
        u = self.results["utterances"]
        return [i for i in range(len(self.dev)) if all(u[k][i] == v for k, v in of.items())]

    def details(self, name: str) -> dict[str, Any]:
        """What a step keeps of a run besides: here what some completions look like."""
        return {"written": self.written()}

    def written(self, n: int = 6) -> list[dict[str, str]]:
        """Greedy completions of some claim prompts, as they are; the prompts' own words are left out."""
        asked = [p for p in self.dev if self.half(p.conversation_id) == "claim" and len(p.history) > 3]
        chosen = [asked[i] for i in rng(0, "completions").permutation(len(asked))[:n]]
        return [
            {"prompt": p.prompt.id, "gold": ", ".join(p.prompt.target or ()), "wrote": p.text}
            for p in self.completed(chosen)
        ]

    def completed(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """Greedy whole completions of some prompts by the present weights."""
        evaluation = self.config.evaluation.model_copy(update=WHOLE)
        return predict(self.trainer.engine.sampler, prompts, evaluation, self.config.prompt)

    def read_channel(self, name: str) -> None:
        """Ask whether the generator reads the claim half better than E does (evaluation/channel.py)."""
        if self._arms or name in self.results.get("channel", {}):
            return
        begun, found = time.monotonic(), {}
        claim = [c for c in self.dev_conversations if self.half(c.id) == "claim"]
        try:
            turns_of = held_out_turns(claim)
        except DataError as e:
            self.say(f"channel, {name}: {e}")
            return
        for dataset, (turns, _) in turns_of.items():
            readings, _ = read_turns(self.trainer.engine.sampler, turns, self.config.prompt)
            found[dataset] = compare_readers(readings, 1000, 0)
            self.say(f"channel, {name}, {dataset}: {found[dataset]['verdict']}")
        self.say(f"channel, {name}: {time.monotonic() - begun:.1f} s")
        self.keep("channel", {**self.results.get("channel", {}), name: found})

    def cold_start(self) -> Path:
        """Train the start, score it, and gather the prompts whose labels it did not see."""
        config, sft, trainer, begun = self.config, self.config.sft, self.trainer, time.monotonic()
        whole = cold_start_samples(self.train, sft, "none", config.seed).samples
        labels = more_labels(self.train, sft, whole, config.seed)
        answers = {p.id: format_answer(a) for p, a in (*whole, *labels)}
        start, about = self.work / "start", self.work / "start.json"
        of = {"settings": told(config), "answers": answers}
        known = json.loads(about.read_text(encoding="utf-8")) if about.exists() else None
        if known and (known["of"]["answers"] != answers or differing(known["of"]["settings"], told(config))):
            raise ValueError(f"{start} is a start of other settings or data; name another --work")
        if not known:
            trainer.begin_sft("cold-start", config.model.id, sft)
            fitted, _ = fit_all(
                [p for p, _ in (*whole, *labels)], trainer.encode, config.prompt.max_tokens, "none"
            )
            samples = [(f, answers[f.prompt.id]) for f in fitted]
            for step in trainer.sft(
                samples, sft, epochs=sft.epochs, seed=config.seed, first=0, scale=lambda k: 1.0
            ):
                if step.index % 10 == 0:
                    self.say(f"cold start, step {step.index}: loss {step.measures['loss']:.3f}")
            trainer.save(start)
            known = {"of": of, "seconds": time.monotonic() - begun}
            write_json(about, known)
        trainer.sampler(str(start))
        mine = self.score("start", samples=len(whole), labels=len(labels), seconds=known["seconds"])
        earlier = self._before.pop("start", mine)
        # An earlier version kept less of each utterance.
        first = {**mine, **earlier} if self.same_start(earlier, mine) else earlier
        self._waiting = {}
        self.keep("runs", [first, *self._before.values()])
        self.taught = {turn_of(i) for i in answers}
        self.fresh = self.usable(self.train)
        self.say(f"{len(self.fresh)} new labels")
        return start

    def same_start(self, earlier: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
        """Whether the start came out as the earlier one, utterance by utterance.

        A small difference is kept in the result and said; more than START_HITS or START_NLL is refused.
        """
        hits, nll = start_difference(earlier, mine)
        if hits > START_HITS or nll > START_NLL:
            raise ValueError(
                f"the start is not that of the earlier runs: {hits:.1%} of the utterances are right in one "
                f"alone (at most {START_HITS:.0%}), and NLL at T differs by {nll:.4f} (at most {START_NLL}); "
                f"make both sides of a comparison anew: {ANOTHER}"
            )
        if earlier["hits"] == mine["hits"]:
            return True
        self.say(f"the start differs from the earlier one: hits {hits:.4f}, NLL at T {nll:.4f}")
        known = self.results.get("start_differs", [])
        self.keep("start_differs", [*known, {"hits": hits, "nll_at_t": nll}])
        return False

    def usable(self, conversations: Sequence[Conversation]) -> list[Prompt]:
        """The gold prompts of some conversations that fit and whose labels the start has not seen."""
        fresh = [p for p in original_prompts(conversations, 0, 1.0) if p.id not in self.taught]
        fitted, _ = fit_all(fresh, self.trainer.encode, self.config.prompt.max_tokens, "none")
        inside = {f.prompt.id for f in fitted}
        return [p for p in fresh if p.id in inside]

    def arm(
        self,
        start: Path,
        arm: str,
        lr: float,
        seed: int,
        settings: Sequence[str],
        prompts: Callable[[], Sequence[Prompt]] | None = None,
    ) -> dict[str, Any] | None:
        """Train one arm from the start and score it.

        Args:
            settings: of the arm, on top of the step's.
            prompts: its original prompts, asked for when the start is loaded; without them, all new labels.

        Returns:
            The run's record; None where it was not asked for, time is up or it failed, which is told.
        """
        name = f"{arm}, rate {lr:g}, seed {seed}"
        if name in self._before:
            return self._before[name]
        if (self._arms and arm not in self._arms) or (self._seeds and seed not in self._seeds):
            return None
        known = [r["seconds"] for r in self.results["runs"] if r.get("arm") == arm]
        if time.monotonic() + 1.15 * max(known, default=45.0) + self._spare > self.end:
            self.say(f"{name}: left out, no time")
            return None
        begun = time.monotonic()
        try:
            config = self.settings(*settings, f"grpo.lr={lr}", f"seed={seed}")
            self.trainer.sampler(str(start))
            originals = prompts() if prompts else self.fresh
            trained = self._train(name, start, config, originals)
            about = {"arm": arm, "lr": lr, "seed": seed, "seconds": time.monotonic() - begun}
            return self.score(name, **about, **trained)
        except OutOfTime as e:
            self.say(f"{name}: given up, no time: {e}")
            return None
        except Exception:
            self._failed(name)
            return None

    def rollouts(self, config: Config) -> VllmRollouts | None:
        """Who samples beside the policy; one vLLM for all arms."""
        if config.sampling.backend == "local":
            return None
        self._vllm = self._vllm or open_rollouts(config)
        return self._vllm

    def _train(self, name: str, start: Path, config: Config, originals: Sequence[Prompt]) -> dict[str, Any]:
        rounds: list[dict[str, Any]] = []
        planned, times = rl_plan(config, self.trainer).rounds, [time.monotonic()]
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

        def on_round(record: dict[str, Any]) -> None:
            rounds.append({k: record[k] for k in _ROUND if record.get(k) is not None})
            times.append(time.monotonic())
            each = float(np.median(np.diff(times[-_SETTLED - 1 :])))
            if len(rounds) % 16 == 1:
                self.say(f"  {name}, round {len(rounds)}: R1 {record['r1']:.3f}, {each:.2f} s a round")
            left = (planned - len(rounds)) * each if len(rounds) >= _SETTLED else 0.0
            if times[-1] + left + self._spare > self.end:
                raise OutOfTime(f"round {len(rounds)} of {planned}, {each:.2f} s a round")

        with TemporaryDirectory(dir=self.work) as own, Store(Path(own) / "store.sqlite") as store:
            self.trainer.rollouts = self.rollouts(config)
            self.trainer.begin_rl(STAGE, str(start), config.grpo, [], RlSpan())
            place, personas = Place(STAGE, 0, 1), persona_book([*self.train, *self.others])
            counts = rl_stage(
                self.trainer, originals, personas, config, store, place, RlSpan(), Unwatched(), on_round
            )
            about: dict[str, Any] = {"counts": counts, **labels_record(store.labels_drawn(STAGE))}
            about["played"] = _played(store)
        if torch.cuda.is_available():
            about["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return {**about, "rounds": rounds}


def start_difference(earlier: Mapping[str, Any], mine: Mapping[str, Any]) -> tuple[float, float]:
    """How far two starts are apart: the share of utterances that one alone has right, and that of their mean
    NLL at T, nats."""
    hits = np.mean(np.not_equal(earlier["hits"], mine["hits"]))
    return float(hits), float(abs(np.mean(earlier["nll_at_t"]) - np.mean(mine["nll_at_t"])))


def _played(store: Store, n: int = 10) -> list[str]:
    """Completions of self-play that passed the gate, as the policy wrote them."""
    texts = [row["completion"] for row, _ in store.samples() if row["source"] == "selfplay"]
    return [texts[i] for i in sorted(rng(0, "played").permutation(len(texts))[:n])]


def best_rate(runs: Sequence[Mapping[str, Any]]) -> float:
    """The learning rate with the least NLL at T on the tuning half, all data sets alike."""

    def loss(run: Mapping[str, Any]) -> float:
        return float(np.mean([s["nll_at_t"] for s in run["tuning"].values()]))

    return float(min(runs, key=loss)["lr"])


def command_line(doc: str | None, arms: Iterable[str]) -> argparse.ArgumentParser:
    """The arguments that all steps have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="a data source; repeat it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540, help="begin no run that would not end by then")
    parser.add_argument(
        "--tiny", action="store_true", help="shows on a CPU that the step runs, and nothing else"
    )
    parser.add_argument("--after", type=Path, help="a result of this step whose runs are not made again")
    parser.add_argument(
        "--arm", action="append", default=[], choices=list(arms), help="make this arm's runs alone; repeat it"
    )
    parser.add_argument("--work", type=Path, help="keep the start's weights there, or go on from those")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value")
    return parser


def run_step(
    args: argparse.Namespace, settings: str, run: Callable[[Study], None],
    study: Callable[..., Study] = Study, seeds: Sequence[int] = (), overrides: Sequence[str] = (),
) -> None:  # fmt: skip
    """Run a step as its `command_line` asks.

    Args:
        overrides: the step's own settings on top of its file's; those of the command line come after them.
    """
    for folder in (args.out, args.work or args.out):
        folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as own:
        every = [*(TINY if args.tiny else ()), *overrides, *args.overrides]
        there = args.out / "results.json"
        after = args.after or (there if there.exists() else None)  # nothing that was made is lost
        where = (args.out, args.work or Path(own), args.seconds, after)
        run(study(settings, args.data, every, *where, arms=args.arm, seeds=seeds))


def step(
    doc: str | None, settings: str, run: Callable[[Study], None], arguments: Sequence[str] | None,
    arms: Iterable[str], seeds: Iterable[int], study: type[Study] = Study,
) -> None:  # fmt: skip
    """The command line of a step of several seeds: its settings' file, and what it runs."""
    parser = command_line(doc, arms)
    add_seeds(parser, seeds)
    args = parser.parse_args(arguments)
    run_step(args, settings, run, study, args.seed)


def add_seeds(parser: argparse.ArgumentParser, seeds: Iterable[int]) -> None:
    """The seeds of a step whose runs of several seeds have one start."""
    about = {"type": int, "choices": list(seeds), "help": "and of this seed; repeat it"}
    parser.add_argument("--seed", action="append", default=[], **about)
