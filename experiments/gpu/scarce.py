"""Step "scarce labels": does self-play, or a user's own unlabelled conversations, teach more than the labels?

Of all training conversations 200 have labels. The cold start learns some of these; every arm then draws the
others once, in the same order, with causal credit and advantages over the group's mean:

    original   these gold prompts and nothing else
    twice      the same a second time: as many optimiser steps as the arms below
    full       self-play beside them: half of the prompts are the policy's own turns, their target S
    balanced   full, with S given, each label as often as the others, instead of sampled
    unlabelled as many turns of the other conversations, labels hidden, their target E x channel of the start
    more       as many turns of the other conversations with their labels: what the best teacher could bring
    placebo    balanced, the S of another episode as target: what the steps bring without the reply

Personas are drawn from the 200 conversations. The rate is that which `rl_alone` chose.

    python -m experiments.gpu.scarce --data meld:PATH --data emorynlp:PATH --out OUT
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.gpu.study import STAGE, Study, step

from selfemo.data import load
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


class Scarce(Study):
    """A study whose other conversations have no labels, but for the arm that asks what they would bring."""

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
    per_round = study.config.grpo.prompts_per_step
    gold = list(study.fresh)
    n = len(gold) // per_round * per_round
    for seed in SEEDS:
        for arm in ARMS:
            if arm in ("more", "placebo") and seed:
                continue
            train(study, start, arm, seed, gold, n)
    for arm in ("more", "placebo"):
        for seed in SEEDS[1:]:
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


def main(arguments: Sequence[str] | None = None) -> None:
    step(__doc__, "scarce.toml", run, arguments, ARMS, SEEDS, Scarce)


if __name__ == "__main__":
    main()
