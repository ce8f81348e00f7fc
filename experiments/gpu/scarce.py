"""Step "scarce labels": does self-play, or a user's own unlabelled conversations, teach more than the labels?

Of all training conversations 200 have labels, or with --labels a quarter, or all. The cold start learns some
of these; every arm then draws the others once, in the same order, with causal credit and advantages over the
group's mean:

    original   these gold prompts and nothing else
    twice      the same a second time: as many optimiser steps as the arms below
    full       self-play beside them: half of the prompts are the policy's own turns, their target S
    balanced   full, with S given, each label as often as the others, instead of sampled
    unlabelled as many turns of the other conversations, labels hidden, their target E x channel of the start
    more       as many turns of the other conversations with their labels: what the best teacher could bring
    placebo    balanced, the S of another episode as target: what the steps bring without the reply

Personas are drawn from the conversations with labels. The rate is that which `rl_alone` chose.

With a quarter and with all, `original` and `balanced` alone are made where --arm names no others. The start
has as many labels as with 200, and an arm draws at most flywheel.prompts gold prompts: 5,120 where --set does
not say otherwise.

    python -m experiments.gpu.scarce --data meld:PATH --data emorynlp:PATH --out OUT
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.gpu.study import ANOTHER, STAGE, Study, add_seeds, command_line, run_step

from selfemo.data import load
from selfemo.errors import ConfigError
from selfemo.method.types import Conversation, Prompt
from selfemo.runs.inputs import run_inputs, with_known_personas
from selfemo.seeds import rng
from selfemo.stages.unlabelled import unlabelled_prompts

SEEDS = (0, 1, 2)
RATE = 3e-5
PLAY = ("selfplay.max_turns=4", "selfplay.synthetic_share=0.5")
ARMS: Mapping[str, Sequence[str]] = {
    "original": (),
    "full": PLAY,
    "balanced": (*PLAY, "selfplay.self_emotion=balanced"),
    "unlabelled": (),
    "twice": (),
    "more": (),
    "placebo": (*PLAY, "selfplay.self_emotion=balanced", "selfplay.targets=shuffled"),
}
COMPARED = ("original", "balanced")
"""The arms of the other budgets."""
OF_OTHERS = ("unlabelled", "more")
"""The arms that learn from conversations beside the labelled ones."""
FEW, QUARTER, ALL = BUDGETS = ("200", "quarter", "all")
MOST = 5120
"""Gold prompts of an arm with a quarter or all: with all labels, as many of self-play beside them would take
more than one lease."""


class Scarce(Study):
    """A study whose other conversations have no labels, but for the arm that asks what they would bring.

    Args:
        budget: one of BUDGETS.
        rest: of `Study`.
    """

    def __init__(self, *rest: Any, budget: str = FEW, **more: Any):
        self.budget = budget
        super().__init__(*rest, **more)
        self.results["budget"] = budget

    def _earlier(self, file: Path) -> dict[str, dict[str, Any]]:
        budget = json.loads(file.read_text(encoding="utf-8")).get("budget", FEW)
        if budget != self.budget:
            raise ValueError(f"{file} is of --labels {budget}, here {self.budget}; {ANOTHER}")
        return super()._earlier(file)

    @property
    def arms(self) -> list[str]:
        """Those to make, in order."""
        return [a for a in ARMS if self.budget == FEW or a in (self._arms or COMPARED)]

    def drawn(self) -> int:
        """How many gold prompts each arm draws: whole rounds of the new labels."""
        per_round, most = self.config.grpo.prompts_per_step, len(self.fresh)
        if self.budget != FEW:
            most = min(most, self.config.flywheel.prompts)
        return most // per_round * per_round

    def inputs(self) -> tuple[list[Conversation], list[Conversation], list[Conversation], set[str]]:
        _, chosen, overlap = run_inputs(self.config)
        labelled = {c.id for c in chosen}
        every = [c for source in self.config.data.sources for c in load(source).conversations]
        self.gold = {c.id: c for c in every if c.split == "train" and c.id not in labelled}
        seen = [without_labels(c) if c.id in self.gold else c for c in every]
        # Each source by itself, as a run does it.
        names = dict.fromkeys(c.dataset for c in seen)
        given = [c for d in names for c in with_known_personas([c for c in seen if c.dataset == d])]
        train = [c for c in given if c.id in labelled]
        others = [c for c in given if c.id in self.gold]
        return given, train, others, set(overlap.overlapping)

    def others_of(self, seed: int, n: int) -> list[Conversation]:
        """Some of the conversations without labels, with n readable turns or a few more."""
        found, turns = list[Conversation](), 0
        for k in rng(seed, "others").permutation(len(self.others)):
            if turns >= n:
                break
            found.append(self.others[k])
            turns += sum(
                a.speaker != b.speaker for a, b in zip(found[-1].turns, found[-1].turns[1:], strict=False)
            )
        return found

    def unlabelled(self, seed: int, n: int) -> list[Prompt]:
        """n prompts with what the start reads, E x channel, as the target; the start must be loaded."""
        chosen = self.others_of(seed, n)
        prompts, _ = unlabelled_prompts(self.trainer.engine.sampler, chosen, self.config.prompt, STAGE)
        return prompts[:n]

    def more(self, seed: int, n: int) -> list[Prompt]:
        """n gold prompts of the same conversations, with their labels."""
        labelled = [replace(c, turns=self.gold[c.id].turns) for c in self.others_of(seed, n)]
        return self.usable(labelled)[:n]


def without_labels(conversation: Conversation) -> Conversation:
    return replace(conversation, turns=tuple(replace(t, emotion=None) for t in conversation.turns))


def run(study: Study) -> None:
    """The start, what its channel knows, and the arms, seed by seed."""
    assert isinstance(study, Scarce)
    start = study.cold_start()
    study.read_channel("start")
    gold, n = list(study.fresh), study.drawn()
    for seed in SEEDS:
        for arm in study.arms:
            if arm in ("more", "placebo") and seed:
                continue
            train(study, start, arm, seed, gold, n)
    for arm in ("more", "placebo"):
        for seed in SEEDS[1:]:
            if arm in study.arms:
                train(study, start, arm, seed, gold, n)


def train(study: Scarce, start: Path, arm: str, seed: int, gold: list[Prompt], n: int) -> None:
    """One arm; all draw n gold prompts, and all but "original" as many others."""
    per_round = study.config.grpo.prompts_per_step
    # The first round of self-play has no turns of its own yet, so its prompts are all gold.
    total = n if arm == "original" else 2 * n - per_round * ("selfplay.max_turns=4" in ARMS[arm])

    def prompts() -> Sequence[Prompt]:
        drawn = [gold[i] for i in sorted(rng(seed, "gold").permutation(len(gold))[:n])]
        if arm == "unlabelled":
            return [*drawn, *study.unlabelled(seed, n)]
        return [*drawn, *study.more(seed, n)] if arm == "more" else drawn

    study.arm(start, arm, RATE, seed, [*ARMS[arm], f"flywheel.prompts={total}"], prompts)


def budget_settings(budget: str, sources: Sequence[str]) -> list[str]:
    """The settings of a budget on top of the step's file (ConfigError where a quarter is no conversation)."""
    if budget == FEW:
        return []
    train = [c for source in sources for c in load(source).conversations if c.split == "train"]
    if budget == QUARTER and len(train) < 4:
        raise ConfigError(f"--labels quarter: {len(train)} training conversations have no quarter")
    return [f"data.train_conversations={len(train) // 4 if budget == QUARTER else 0}"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__, ARMS)
    add_seeds(parser, SEEDS)
    parser.add_argument(
        "--labels", choices=BUDGETS, default=FEW, help="how many of the training conversations have labels"
    )
    args = parser.parse_args(arguments)
    if args.labels == ALL and (none := [a for a in args.arm if a in OF_OTHERS]):
        parser.error(f"--arm {none[0]} with --labels all: no conversation is left without labels")
    settings = budget_settings(args.labels, args.data)
    if args.labels != FEW and not args.tiny:
        settings.append(f"flywheel.prompts={MOST}")
    run_step(args, "scarce.toml", run, partial(Scarce, budget=args.labels), args.seed, settings)


if __name__ == "__main__":
    main()
