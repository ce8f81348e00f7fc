"""Step "evidence": what the whole method gives from a cold start, against its parts and supervised learning.

One process, one seed. The cold start learns 512 whole samples and 1,500 labels of E; where it knows no more
than how often each label is, the step ends. Each arm then has equally many prompts (flywheel.prompts):

    full       causal credit, by the mean, and self-play with S balanced
    original   the same on gold prompts alone
    sft        cross-entropy on the gold labels that `original` draws, in the same optimiser steps
    plain      SELF-GRPO as eq. 14 has it, without KL: whole completions, one advantage for all tokens, by
               the deviation, lambda to 1, G 8, and self-play with S as the policy declares it
    placebo    full, the S of another episode as target
    vanilla    plain with lambda 0

Gold prompts come in one order, so that arms with self-play draw the first of those of `original`. A third of
their prompts is self-play, as in the paper (8 of 23). Rates are those that `rl_alone` chose, for eq. 14 that
of its one run; no arm has a KL term. `full` has no gold line (grpo.gold_weight): on thousands of prompts what
docs/results.md found best has none.

Of each arm: dev by probability, and by greedy completions, which are kept; completions of the claim half by
sampling, with the entropy of their E, S and reply, and whether the start, a reader that no arm has trained,
hears S in the reply (`selfemo.evaluation.analysis`).

The primary endpoint was fixed before the first run: `PRIMARY` in experiments/tables.py.

    python -m experiments.gpu.evidence --seed 0 --data meld:PATH --data emorynlp:PATH --out OUT
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from experiments.gpu.scoring import gold_places, outcomes_of, said, scores_of
from experiments.gpu.study import HALVES, Study, command_line, run_step

from selfemo.evaluation.analysis import analyse_checkpoint
from selfemo.evaluation.free_changes import gold_share
from selfemo.evaluation.metrics import paired_difference
from selfemo.evaluation.predictions import read_prediction
from selfemo.method.types import Completion, ParseFailure, Prompt
from selfemo.stages.flywheel import original_prompts
from selfemo.stages.selfplay import persona_book

SEEDS = (0, 1, 2)


class Arm(NamedTuple):
    """The learning rate of an arm, and its settings on top of the step's."""

    lr: float
    settings: Sequence[str]


PLAY = ("selfplay.max_turns=4", f"selfplay.synthetic_share={8 / 23}")
BALANCED = (*PLAY, "selfplay.self_emotion=balanced")
EQ_14 = (*PLAY, "grpo.credit=completion", "grpo.normalise=std", "sampling.group_size=8")
ARMS: Mapping[str, Arm] = {
    "full": Arm(3e-5, BALANCED),
    "original": Arm(3e-5, ()),
    "sft": Arm(3e-5, ("grpo.reward_weight=0", "grpo.gold_weight=1", "sampling.group_size=2")),
    "placebo": Arm(3e-5, (*BALANCED, "selfplay.targets=shuffled")),
    "plain": Arm(1e-5, (*EQ_14, "grpo.lam_max=1")),
    "vanilla": Arm(1e-5, EQ_14),
}
"""In the order of what a lease is spent on first."""
FIRST = ("full", "original", "sft")
"""Those that each seed has before any has the others."""


class Evidence(Study):
    """A study that also keeps what the model writes."""

    def details(self, name: str) -> dict[str, Any]:
        """Greedy completions of dev with the scores of their E lines, and the analysis of the claim half."""
        sampler = self.trainer.engine.sampler
        # The start is its own reader; behind an arm its weights are loaded as the teacher of the stage.
        reader = sampler if name == "start" else self.trainer.teacher()
        claim = [self.dev[i] for i in self.indices(half="claim")]
        personas = persona_book(self.dev_conversations)
        sampled: dict[str, str] = {}

        def keep(prompt: Prompt, text: str, parsed: Completion | ParseFailure) -> None:
            sampled[prompt.id] = text

        # Equal seeds of sampling for all arms.
        config = self.config
        analysis = analyse_checkpoint(sampler, claim, personas, config, reader=reader, on_written=keep)
        return {"greedy": self.greedy(), "analysis": analysis, "sampled": sampled}

    def greedy(self) -> dict[str, Any]:
        """Greedy completions of dev: texts and E by utterance, kinds of failure, and scores by half.

        E counts where its line parsed, whatever comes behind it; a completion that does not parse as a whole
        is counted by kind beside that.
        """
        whole = self.completed(self.dev)
        lines = [
            replace(p, predicted=read_prediction(p.prompt, p.text, whole=False).predicted) for p in whole
        ]
        told, gold = said(lines), gold_places(self.dev)
        found: dict[str, Any] = {
            "texts": [p.text for p in whole],
            "predicted": told,
            "failures": dict(Counter(p.failure.value for p in whole if p.failure)),
            "unread": told.count(-1),
        }
        for half in HALVES:
            found[half] = {}
            for dataset, labels in self.results["labels"].items():
                mine = self.indices(half=half, dataset=dataset)
                places = ([g[i] for i in mine] for g in (gold, told))
                conversations = [self.dev[i].conversation_id for i in mine]
                found[half][dataset] = scores_of(outcomes_of(*places, conversations, labels))
        return found

    def prior(self) -> np.ndarray:
        """(n,) nats: NLL of each dev utterance under the shares of its data set's training labels."""
        found = np.zeros(len(self.dev))
        for dataset in self.results["labels"]:
            mine = self.indices(dataset=dataset)
            labels = self.dev[mine[0]].label_set
            known = [
                p.target for p in original_prompts(self.train, 0, 1.0) if p.dataset == dataset and p.target
            ]
            share = np.log(gold_share(np.array([y.vector(labels) for y in known])))
            targets = [p.target for i in mine if (p := self.dev[i]).target]
            found[mine] = [-(np.array(y.vector(labels)) @ share) for y in targets]
        return found

    def knows(self) -> bool:
        """Whether the start's NLL at T is under that of the label shares on the tuning half: the 95% interval
        of the difference, by conversation, is below 0."""
        mine = self.indices(half="tuning")
        start = np.array(self.results["runs"][0]["nll_at_t"])
        conversations = [self.dev[i].conversation_id for i in mine]
        prior = self.prior()[mine]
        change = paired_difference(prior.tolist(), start[mine].tolist(), conversations).difference
        self.keep("prior", {"nll": float(prior.mean()), "start_minus_prior": change.as_list()})
        self.say(f"start: NLL at T minus that of the label shares {change}, tuning half")
        return change.high < 0


def run(study: Study) -> None:
    """The start, and each arm once, unless the start knows nothing (SystemExit)."""
    assert isinstance(study, Evidence)
    start, seed = study.cold_start(), study.config.seed
    if not study.knows():
        study.keep("stopped", "the start knows no more than the label shares")
        raise SystemExit(f"stopped: {study.results['stopped']}; give it more labels (sft.label_samples)")
    for arm, (lr, settings) in ARMS.items():
        study.arm(start, arm, lr, seed, settings)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__, ARMS)
    parser.add_argument(
        "--seed", type=int, choices=SEEDS, required=True, help="of the cold start and the arms"
    )
    args = parser.parse_args(arguments)
    run_step(args, "evidence.toml", run, Evidence, overrides=[f"seed={args.seed}"])


if __name__ == "__main__":
    main()
