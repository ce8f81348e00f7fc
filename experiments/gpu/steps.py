"""The queue: its steps in order, which of their results are there, and what the next card runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.gpu import baselines, evidence, expression, one_thing, rl_alone, rollouts, scarce

from selfemo.evaluation.rendering import render

RESULTS = Path(__file__).parent / "results"
DATA = "--data meld:PATH --data emorynlp:PATH"
Run = tuple[str, int]
"""An arm and a seed."""


@dataclass(frozen=True)
class Step:
    """A step of the queue.

    Attributes:
        number: its place; steps of one number belong together.
        name, shows: what it is, and what it shows.
        results: names of its results, without folder and ending; the first is the one to write.
        call: module and options.
        runs: that it needs; None where its result says itself what is planned.
        data: its options of data.
    """

    number: str
    name: str
    shows: str
    results: tuple[str, ...] = ()
    call: str = ""
    runs: frozenset[Run] | None = None
    data: str = DATA

    @cached_property
    def there(self) -> dict[str, dict[str, Any]]:
        """Its results by name."""
        files = {name: RESULTS / f"{name}.json" for name in self.results}
        return {n: json.loads(f.read_text(encoding="utf-8")) for n, f in files.items() if f.exists()}

    @property
    def made(self) -> frozenset[Run]:
        """The runs that its results have."""
        runs = [r for result in self.there.values() for r in result.get("runs", ()) if "arm" in r]
        return frozenset((r["arm"], r["seed"]) for r in runs)

    @property
    def progress(self) -> tuple[int, int]:
        """How many runs, or rows, it has, and needs."""
        if self.runs is not None:
            return len(self.runs & self.made), len(self.runs)
        (result,) = self.there.values()
        return len(set(result["planned"]) & set(result["rows"])), len(result["planned"])

    @property
    def done(self) -> bool:
        return bool(self.there) and (self.stopped or len(set(self.progress)) == 1)

    @property
    def stopped(self) -> bool:
        """Whether its start was not worth going on from."""
        return any("stopped" in r for r in self.there.values())

    @property
    def state(self) -> str:
        """How far it is, and on which devices."""
        if not self.there:
            return "open"
        devices = ", ".join(dict.fromkeys(r["device"] for r in self.there.values()))
        if self.done:
            return f"{'stopped' if self.stopped else 'done'} ({devices})"
        made, needed = self.progress
        return f"{made} of {needed} {'runs' if self.runs else 'rows'} ({devices})"

    @property
    def command(self) -> str:
        """What a card runs for it; its result goes to results/NAME.json, NAME the first of `results`."""
        after = (
            f" --after experiments/gpu/results/{self.results[0]}.json"
            if self.results[0] in self.there
            else ""
        )
        return f"PYTHONPATH=src:. python -m experiments.gpu.{self.call} {self.data} --out OUT{after}"


def runs(arms: Sequence[str], seeds: Sequence[int]) -> frozenset[Run]:
    return frozenset((arm, seed) for arm in arms for seed in seeds)


def _evidence(number: str, seed: int) -> Step:
    shows = (
        "the method from a cold start, against the same without self-play and cross-entropy, at equal "
        "prompts; the primary endpoint is of seeds 0, 1 and 2 together"
    )
    return Step(
        number,
        f"evidence, seed {seed}",
        "the same from another cold start" if seed else shows,
        (f"evidence_{seed}",),
        " ".join([f"evidence --seed {seed}", *(f"--arm {arm}" for arm in evidence.FIRST)]),
        runs(evidence.FIRST, [seed]),
    )


def _expression(seed: int) -> Step:
    shows = (
        "does a reward on the reply (R3) make it show S for a reader that no arm has learned from: off, by "
        "an encoder, as short as they like, with no anchor on S, without its contrast, by the start, with "
        "the policy's own S, without a reward for E"
    )
    return Step(
        "7",
        f"expression, seed {seed}",
        "the same from another cold start" if seed else shows,
        (f"expression_{seed}",),
        f"expression --seed {seed} --listener FOLDER --reader FOLDER",
        runs(list(expression.ARMS), [seed]),
    )


def _other_arms(seed: int) -> Step:
    return Step(
        "4",
        f"evidence, other arms, seed {seed}",
        "the same starts" if seed else "its placebo, eq. 14 as the paper has it, and that with lambda 0",
        (f"evidence_{seed}",),
        f"evidence --seed {seed}",
        runs(list(evidence.ARMS), [seed]),
    )


def _scarce(budget: str, shows: str) -> Step:
    arms = list(scarce.ARMS) if budget == scarce.FEW else scarce.COMPARED
    option = "" if budget == scarce.FEW else f" --labels {budget}"
    results = ("scarce", "scarce_cpu") if budget == scarce.FEW else (f"scarce_{budget}",)
    return Step("5", f"scarce, {budget}", shows, results, f"scarce{option}", runs(arms, scarce.SEEDS))


BASELINES = {
    "simple": "what a small model must beat: majority, label shares, TF-IDF, frozen embeddings",
    "encoder": "supervised encoders by EmoBERTa's and SPCL's recipes, each set and unified, five seeds",
    "heads": "DialogueRNN, DialogueGCN, DAG-ERC, COSMIC without its knowledge: past only, and both ways",
    "language-models": "InstructERC, BiosERC and PRC-Emo as recipes of the built-in model",
}


def _baselines(group: str, shows: str) -> Step:
    return Step(
        "8",
        f"baselines, {group}",
        shows,
        (f"baselines_{group.replace('-', '_')}",),
        f"baselines --group {group}",
        frozenset(baselines.planned(group)),
    )


LARGER = "--set model.id=FOLDER"
"""A model of half a billion parameters or so, carried in pieces."""
STEPS = (
    Step(
        "0",
        "rl_alone",
        "from one start, on new labels: does RL alone teach, by which divisor, and how far is it from "
        "supervised learning on the same labels",
        ("rl_alone",),
        "rl_alone",
        runs(list(rl_alone.RATES), rl_alone.SEEDS) | {("plain", 0)},
    ),
    Step(
        "1",
        "engine",
        "each change of the engine alone, on and off, on the same tokens; the engine with all of them "
        "against TRL, 135M and 0.6B; sampler against trainer",
        ("engine",),
        "engine",
        data="--data meld:PATH",
    ),
    *(_evidence(str(2 + seed), seed) for seed in evidence.SEEDS),
    *(_other_arms(seed) for seed in evidence.SEEDS),
    _scarce(
        scarce.FEW,
        "where 200 conversations have labels: do self-play (as declared, balanced, its placebo) or "
        "unlabelled conversations add to the labels, and what would a second pass or more labels",
    ),
    _scarce(scarce.QUARTER, "balanced self-play against the labels alone, a quarter of them labelled"),
    _scarce(scarce.ALL, "the same, all of them labelled"),
    Step(
        "6",
        "larger model, evidence",
        "step 2 with a larger backbone",
        ("evidence_0_larger",),
        f"evidence --seed 0 {LARGER} --set flywheel.prompts=2048",
        runs(list(evidence.ARMS), [0]),
    ),
    *(
        Step(
            "6",
            f"larger model, scarce, {budget}",
            "step 5 with a larger backbone",
            (f"scarce_larger_{budget}",),
            f"scarce --labels {budget} --seed 0 {LARGER}",
            runs(scarce.COMPARED, [0]),
        )
        for budget in scarce.BUDGETS
    ),
    *map(_expression, expression.SEEDS),
    *(_baselines(group, shows) for group, shows in BASELINES.items()),
    Step(
        "9",
        "one_thing",
        "one setting of SELF-GRPO at a time from the start of rl_alone: credit, divisor, KL, G, lambda, "
        "anchor, balanced prompts",
        ("one_thing",),
        "one_thing",
        runs(list(one_thing.ARMS), [one_thing.SEED]),
    ),
    Step(
        "10",
        "rollouts",
        "RL whose completions vLLM draws in the same process, against the local sampler's: rewards, time, "
        "how far sampler and trainer are apart",
        ("rollouts",),
        "rollouts",
        runs(list(rollouts.ARMS), rollouts.SEEDS),
    ),
)


def table() -> str:
    """The steps and their states as Markdown."""
    return render(
        ["", "step", "what it shows", "state"],
        [[s.number, s.name, s.shows, s.state] for s in STEPS],
        "markdown",
    )


def next_step() -> Step | None:
    """The first one that is not done and has a script."""
    return next((s for s in STEPS if not s.done), None)
