"""Step "RL alone": one start, new labels, several seeds, one process.

From one cold start, which knows a few labels, each arm draws the same new gold prompts in the same order:

    mean    SELF-GRPO with causal credit, advantages over the group's mean (MaxRL)
    std     the same over the group's deviation (GRPO)
    ce      cross-entropy on the same labels in the same optimiser steps (the control)
    plain   eq. 14 as the paper has it: whole completions, one advantage for all tokens, by the deviation

The dev split is halved by conversation: by the tuning half each arm chooses its learning rate (seed 0), the
claim half is for the claim. Everything is predicted by probability, without a completion. `results.json` is
written after each run, so that what was done before the time is up stays.

    python -m experiments.gpu.rl_alone --data meld:PATH --data emorynlp:PATH --out OUT
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from selfemo import __version__
from selfemo.config import Config, load
from selfemo.data.splits import held_out
from selfemo.evaluation.metrics import Outcomes
from selfemo.evaluation.predictions import Prediction, gold_prompts, predict
from selfemo.evaluation.tempered import nll_at_best_temperature
from selfemo.files import write_json
from selfemo.method.prompts import format_answer
from selfemo.method.types import Place, Prompt
from selfemo.runs.inputs import cold_start_samples, more_labels, run_inputs, turn_of
from selfemo.runs.store import Store
from selfemo.seeds import rng
from selfemo.stages.flywheel import original_prompts
from selfemo.stages.rl import rl_stage
from selfemo.stages.selfplay import fit_all, persona_book
from selfemo.training.local import LocalTrainer
from selfemo.training.protocol import RlSpan

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
ARMS: Mapping[str, Sequence[str]] = {
    "mean": ["grpo.normalise=mean"],
    "ce": ["grpo.reward_weight=0", "grpo.gold_weight=1", "sampling.group_size=2"],
    "std": ["grpo.normalise=std"],
    "plain": ["grpo.normalise=std", "grpo.credit=completion", "sampling.group_size=8"],
}
RATES: Mapping[str, Sequence[float]] = {"mean": (1e-5, 3e-5), "ce": (1e-5, 3e-5), "std": (1e-5, 3e-6)}
TINY = (
    "data.train_conversations=12", "data.eval_conversations=4", "sft.max_samples=8", "sft.label_samples=8",
    "sft.batch_size=4", "flywheel.prompts=16", "grpo.prompts_per_step=8", "grpo.mini_batch=8",
    "sampling.group_size=4", "sampling.token_budget=8192", "grpo.micro_tokens=2048", "sft.micro_tokens=2048",
)  # fmt: skip
_ROUND = ("r1", "r1_flat", "silent", "parse_rate", "sampling_entropy", "loss", "grad_norm", "packed_tokens")
_SPARE_S = 12.0
"""Seconds for the scores behind a run."""


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
        sources: of data.
        overrides: settings on top of rl_alone.toml.
        out: where results.json goes.
        work: a folder for weights.
        seconds: no run begins that would not end by then.
    """

    def __init__(
        self, sources: Sequence[str], overrides: Sequence[str], out: Path, work: Path, seconds: float
    ):
        self.overrides = [f"data.sources={json.dumps(list(sources))}", *overrides]
        self.out, self.work, self.end = out, work, time.monotonic() + seconds
        self.config = config = self.settings()
        conversations, self.train, overlap = run_inputs(config)
        dev = held_out(conversations, "dev", config.data.eval_conversations, 0)
        order = rng(0, "halves").permutation(len(dev))
        self.tuning = {dev[i].id for i in order[: len(dev) // 2]}
        self.dev, self.taught, self.fresh = gold_prompts(dev), set[str](), list[Prompt]()
        self.trainer = LocalTrainer(config.model, config.sampling.temperature, lambda stage: work / "states")
        self.results: dict[str, Any] = {
            "selfemo": __version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "settings": config.model_dump(mode="json", exclude={"data": {"sources"}}),
            "utterances": {
                "dataset": [p.dataset for p in self.dev],
                "conversation": [p.conversation_id for p in self.dev],
                "half": [self.half(p) for p in self.dev],
                "overlaps": [p.conversation_id in overlap.overlapping for p in self.dev],
            },
            "runs": [],
        }

    def settings(self, *more: str) -> Config:
        return load([HERE / "rl_alone.toml"], [*self.overrides, *more])

    def half(self, prompt: Prompt) -> str:
        return "tuning" if prompt.conversation_id in self.tuning else "claim"

    def say(self, text: str) -> None:
        print(f"[{self.end - time.monotonic():6.1f} s left] {text}", flush=True)

    def score(self, name: str, **about: Any) -> dict[str, Any]:
        """Predict dev with the present weights; keeps scores, and each utterance's hit and NLL at T."""
        begun, sampler = time.monotonic(), self.trainer.engine.sampler
        found = predict(sampler, self.dev, self.config.evaluation, self.config.prompt)
        record: dict[str, Any] = {"run": name, **about, "evaluation_s": time.monotonic() - begun}
        hits, nll = np.zeros(len(found), dtype=int), np.zeros(len(found))
        for half in ("tuning", "claim"):
            record[half] = {}
            for dataset in dict.fromkeys(p.dataset for p in self.dev):
                mine = [i for i, p in enumerate(self.dev) if (p.dataset, self.half(p)) == (dataset, half)]
                record[half][dataset], hits[mine], nll[mine] = scores([found[i] for i in mine])
        record |= {"hits": hits.tolist(), "nll_at_t": nll.round(4).tolist(), "written": self.written()}
        self.results["runs"].append(record)
        write_json(self.out / "results.json", self.results)
        parts = (
            f"{half} {d} accuracy {s['accuracy']:.3f} F1 {s['weighted_f1']:.3f} NLL at T {s['nll_at_t']:.3f}"
            for half in ("tuning", "claim")
            for d, s in record[half].items()
        )
        self.say(f"{name}: " + " | ".join(parts))
        return record

    def written(self, n: int = 6) -> list[dict[str, str]]:
        """Greedy completions of some claim prompts, as they are; the prompts' own words are left out."""
        asked = [p for p in self.dev if self.half(p) == "claim" and len(p.history) > 3]
        chosen = [asked[i] for i in rng(0, "completions").permutation(len(asked))[:n]]
        whole = {"span": "all", "max_new_tokens": 48, "no_repeat_ngram": 6}
        evaluation = self.config.evaluation.model_copy(update=whole)
        found = predict(self.trainer.engine.sampler, chosen, evaluation, self.config.prompt)
        return [
            {"prompt": p.prompt.id, "gold": ", ".join(p.prompt.target or ()), "wrote": p.text} for p in found
        ]

    def cold_start(self) -> Path:
        """Train the start, score it, and gather the prompts whose labels it did not see."""
        config, sft, trainer, begun = self.config, self.config.sft, self.trainer, time.monotonic()
        whole = cold_start_samples(self.train, sft, "none", config.seed).samples
        labels = more_labels(self.train, sft, whole, config.seed)
        answers = {p.id: format_answer(a) for p, a in (*whole, *labels)}
        trainer.begin_sft("cold-start", config.model.id, sft)
        fitted, _ = fit_all(
            [p for p, _ in (*whole, *labels)], trainer.encode, config.prompt.max_tokens, "none"
        )
        samples = [(f, answers[f.prompt.id]) for f in fitted]
        for step in trainer.sft(samples, sft, epochs=sft.epochs, seed=0, first=0, scale=lambda k: 1.0):
            if step.index % 10 == 0:
                self.say(f"cold start, step {step.index}: loss {step.measures['loss']:.3f}")
        start = self.work / "start"
        trainer.save(start)
        trainer.sampler(str(start))
        self.score("start", samples=len(whole), labels=len(labels), seconds=time.monotonic() - begun)
        self.taught = {turn_of(i) for i in answers}
        fresh = [p for p in original_prompts(self.train, 0, 1.0) if p.id not in self.taught]
        inside = {f.prompt.id for f in fit_all(fresh, trainer.encode, config.prompt.max_tokens, "none")[0]}
        self.fresh = [p for p in fresh if p.id in inside]
        self.say(f"{len(self.fresh)} new labels")
        return start

    def arm(self, start: Path, arm: str, lr: float, seed: int) -> dict[str, Any] | None:
        """Train one arm from the start and score it; None where time is up or it failed, which is told."""
        name = f"{arm}, rate {lr:g}, seed {seed}"
        known = [r["seconds"] for r in self.results["runs"] if r.get("arm") == arm]
        if time.monotonic() + 1.15 * max(known, default=45.0) + _SPARE_S > self.end:
            self.say(f"{name}: left out, no time")
            return None
        try:
            return self.score(name, **self.train_arm(name, start, arm, lr, seed))
        except Exception:
            self.results.setdefault("failed", []).append(traceback.format_exc())
            self.say(f"{name} failed: {traceback.format_exc()}")
            return None

    def train_arm(self, name: str, start: Path, arm: str, lr: float, seed: int) -> dict[str, Any]:
        config, begun = self.settings(*ARMS[arm], f"grpo.lr={lr}", f"seed={seed}"), time.monotonic()
        rounds: list[dict[str, Any]] = []
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

        def on_round(record: dict[str, Any]) -> None:
            rounds.append({k: record.get(k) for k in _ROUND} | {"at_s": time.monotonic() - begun})
            if len(rounds) % 16 == 1:
                self.say(f"  {name}, round {len(rounds)}: R1 {record['r1']:.3f}")

        with Store(self.work / f"{arm}-{lr:g}-{seed}.sqlite") as store:
            self.trainer.begin_rl(name, str(start), config.grpo, [], RlSpan())
            place, personas = Place(name, 0, 1), persona_book(self.train)
            rl_stage(
                self.trainer, self.fresh, personas, config, store, place, RlSpan(), Unwatched(), on_round
            )
        about = {"arm": arm, "lr": lr, "seed": seed, "seconds": time.monotonic() - begun, "rounds": rounds}
        if torch.cuda.is_available():
            about["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return about


def scores(found: Sequence[Prediction]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Scores of predictions over one label set; whether each is right (n,), and its NLL at T (n,), nats."""
    labels = found[0].prompt.label_set
    beliefs = [(p.prompt.target, p.predicted) for p in found if p.prompt.target and p.predicted]
    gold, said = ([d.top(labels) for d in side] for side in zip(*beliefs, strict=True))
    weights, targets = (np.array([pair[k].vector(labels) for pair in beliefs]) for k in (1, 0))
    temperature, nll = nll_at_best_temperature(weights, targets)
    conversations = [p.prompt.conversation_id for p in found]
    counted = Outcomes.of(gold, said, [0.0] * len(found), conversations, labels.labels)
    measures = {m: float(counted.measures()[m]) for m in ("accuracy", "weighted_f1", "macro_f1")}
    hits = np.array([g == s for g, s in zip(gold, said, strict=True)])
    record = {
        "n": len(found),
        **measures,
        "temperature": temperature,
        "nll_at_t": float(nll.mean()),
        "predicted": {e: said.count(e) for e in labels},
    }
    return record, hits, nll


def best_rate(runs: Sequence[Mapping[str, Any]]) -> float:
    """The learning rate with the least NLL at T on the tuning half, all data sets alike."""

    def loss(run: Mapping[str, Any]) -> float:
        return float(np.mean([s["nll_at_t"] for s in run["tuning"].values()]))

    return float(min(runs, key=loss)["lr"])


def run(study: Study) -> None:
    """Cold start, each arm's rate on the tuning half, the other seeds, and one run of eq. 14 as it stands."""
    study.say(f"{study.results['device']}, {len(study.dev)} dev prompts")
    start = study.cold_start()
    tried = {arm: [study.arm(start, arm, lr, SEEDS[0]) for lr in rates] for arm, rates in RATES.items()}
    chosen = {arm: best_rate(done) for arm, runs in tried.items() if (done := [r for r in runs if r])}
    study.say(f"rates chosen on the tuning half: {chosen}")
    for arm, lr in chosen.items():
        for seed in SEEDS[1:]:
            study.arm(start, arm, lr, seed)
    study.arm(start, "plain", 1e-5, SEEDS[0])
    study.results["chosen"] = chosen
    write_json(study.out / "results.json", study.results)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", action="append", required=True, help="a data source; repeat it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540, help="begin no run that would not end by then")
    parser.add_argument(
        "--tiny", action="store_true", help="shows on a CPU that the step runs, and nothing else"
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as work:
        overrides = [*(TINY if args.tiny else ()), *args.overrides]
        run(Study(args.data, overrides, args.out, Path(work), args.seconds))


if __name__ == "__main__":
    main()
