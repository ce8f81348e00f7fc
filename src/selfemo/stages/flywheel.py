"""Algorithm 1: the RL stage over a buffer of original and synthetic prompts, and the data flywheel.

(a) `rl_stage`: each round samples a batch of prompts, part original and part left by earlier turns of
self-play, updates the policy on all groups, and lets each best rollout that passes the gate leave two
things: an SFT sample and the episode's next prompt. (b) `select_samples`: duplicates out, no emotion over
its share; what remains joins the SFT set that the next model is trained on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfemo.config import Config
from selfemo.method.prompts import Fitted, conversation_prompts, format_completion
from selfemo.method.self_grpo import lambda_at
from selfemo.method.types import Completion, Conversation, Place, Prompt, Rollout
from selfemo.runs.store import Store
from selfemo.seeds import rng
from selfemo.stages.gate import PASS
from selfemo.stages.selfplay import PersonaOf, Turn, fit_all, next_prompt, play_turn
from selfemo.training.protocol import Engine, RlItem, finite_means, learning_rate


@dataclass(frozen=True)
class RlPlan:
    """How many rounds of sampling and optimiser steps an RL stage has."""

    rounds: int
    prompts_per_round: int
    steps_per_round: int

    @property
    def total_steps(self) -> int:
        return self.rounds * self.steps_per_round

    @staticmethod
    def of(config: Config) -> RlPlan:
        per_round = min(config.grpo.prompts_per_step, config.flywheel.prompts)
        rounds = -(-config.flywheel.prompts // per_round)
        steps = -(-per_round // min(config.grpo.mini_batch, per_round))
        return RlPlan(rounds, per_round, steps)


def fingerprint(prompt: Prompt, completion: Completion) -> str:
    """Equal for samples that teach the same: same label set, history, answerer, E, S and reply."""
    said = [f"{u.speaker}: {u.text}".lower() for u in prompt.history]
    text = "\x1f".join(
        [prompt.label_set.name, *said, prompt.answerer, format_completion(completion)]
    )
    return hashlib.sha256(text.lower().encode()).hexdigest()


def add_sample(
    store: Store,
    prompt: Prompt,
    completion: Completion,
    reward: float,
    place: Place,
    source: str,
) -> bool:
    """Put one (x, completion) into the SFT set; false for a duplicate."""
    return store.add_sample(
        prompt,
        format_completion(completion),
        completion.emotion.top(prompt.label_set),
        reward,
        fingerprint(prompt, completion),
        place,
        source,
    )


def original_prompts(conversations: Sequence[Conversation], config: Config) -> list[Prompt]:
    """What RL draws its original prompts from: one per gold utterance, in the order of the conversations.

    Of each data set no emotion holds more than flywheel.max_prompt_share; which prompts of a frequent one
    stay is drawn by the seed.
    """
    prompts = [p for c in conversations for p in conversation_prompts(c, future=True)]
    if config.flywheel.max_prompt_share >= 1:
        return prompts
    gold = [p.target.top(p.label_set) for p in prompts if p.target is not None]
    assert len(gold) == len(prompts)
    kept: list[int] = []
    for name in dict.fromkeys(p.dataset for p in prompts):
        members = np.array([i for i, p in enumerate(prompts) if p.dataset == name])
        members = rng(config.seed, "prompt share", name).permutation(members)
        tops, equal = [gold[i] for i in members], [0.0] * len(members)
        chosen = select_samples(tops, equal, config.flywheel.max_prompt_share)
        kept.extend(members[chosen].tolist())
    return [prompts[i] for i in sorted(kept)]


class PromptQueue:
    """What the rounds of a stage draw: pending synthetic prompts up to their share, then originals.

    Originals follow one shuffled order that goes on over rounds and iterations and starts anew (freshly
    shuffled) when all have been seen. Where the store stands is read once; a round then costs what it
    draws, however large the store is.
    """

    def __init__(self, originals: Sequence[Prompt], store: Store, config: Config):
        self.originals, self.store, self.config = originals, store, config
        self._used = store.drawn_originals()
        self._after = 0
        self._order: tuple[int, np.ndarray] | None = None

    def draw(self, n: int, synthetic: int | None = None) -> list[Prompt]:
        """The next n prompts; fewer where there are no originals. Each is drawn once.

        Args:
            synthetic: at most so many of them of self-play; None takes their share of n.
        """
        share = self.config.selfplay.synthetic_share
        limit = round(share * n) if synthetic is None else min(n, synthetic)
        pending, self._after = self.store.pending(limit, self._after)
        chosen: list[Prompt] = []
        while self.originals and len(chosen) < n - len(pending):
            epoch, position = divmod(self._used, len(self.originals))
            if self._order is None or self._order[0] != epoch:
                generator = rng(self.config.seed, "original prompts", epoch)
                self._order = epoch, generator.permutation(len(self.originals))
            take = self._order[1][position : position + n - len(pending) - len(chosen)]
            chosen.extend(self.originals[k] for k in take)
            self._used += len(take)
        return [*pending, *chosen]


def rl_stage(
    engine: Engine,
    originals: Sequence[Prompt],
    persona_of: PersonaOf,
    config: Config,
    store: Store,
    *,
    stage: str,
    iteration: int,
    first_round: int = 0,
    on_round: Callable[[int, RlPlan, dict[str, Any]], None] | None = None,
    watch: Callable[[int, dict[str, Any]], None] | None = None,
    scale: Callable[[int], float] = lambda round_: 1.0,
) -> dict[str, int]:
    """SELF-GRPO with self-play over one iteration's prompts.

    Each round is one transaction of the store. Start at `first_round` with an engine that holds the
    weights and optimiser state of that point, and the rest of the stage is what it would have been.

    Args:
        watch: called with each round's metrics before they are stored; it may add to them.
        scale: what the learning rates of a round are multiplied with.

    Returns:
        Counts over the whole stage: verdicts of the gate, prompts shortened or too long.
    """
    plan = RlPlan.of(config)
    queue = PromptQueue(originals, store, config)
    for round_ in range(first_round, plan.rounds):
        lam = lambda_at(round_ * plan.steps_per_round, plan.total_steps, config.grpo.lam_max)
        n = min(plan.prompts_per_round, config.flywheel.prompts - round_ * plan.prompts_per_round)
        drawn = queue.draw(n)
        lengths: dict[str, int] = {}
        fitted = fit_all(drawn, engine, config, lengths)
        whole = {p.id: p for p in drawn}
        turns = play_turn(
            engine,
            fitted,
            [whole[f.prompt.id] for f in fitted],
            config,
            lam=lam,
            key=(stage, round_),
        )
        measures = _update(engine, fitted, turns, config, plan, round_, scale(round_))
        record = record_round(
            store,
            drawn,
            turns,
            persona_of,
            config,
            stage=stage,
            round_=round_,
            iteration=iteration,
            lam=lam,
            measures=measures,
            lengths=lengths,
            watch=watch,
        )
        if on_round:
            on_round(round_, plan, record)
    return stage_counts(store, stage)


def record_round(
    store: Store,
    drawn: Sequence[Prompt],
    turns: Sequence[Turn],
    persona_of: PersonaOf,
    config: Config,
    *,
    stage: str,
    round_: int,
    iteration: int,
    lam: float,
    measures: dict[str, Any],
    lengths: dict[str, int],
    watch: Callable[[int, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Put a round into the store as one transaction; returns its metrics.

    Args:
        drawn: the prompts of the round; those without a turn are marked as skipped.
        turns: the scored groups; each that passed leaves an SFT sample and its next prompt.
        measures: what the engine says of the update.
        lengths: what the length limit did to the prompts.
        watch: called with the metrics before they are stored; it may add to them.
    """
    played = {t.group.prompt.id for t in turns}
    place = Place(stage, round_, iteration)
    with store.transaction():
        store.add_prompts(drawn, place)
        store.skip(p.id for p in drawn if p.id not in played)
        kept = 0
        for turn in turns:
            store.add_group(turn.group, place, turn.best, turn.verdict)
            if turn.verdict == PASS:
                kept += _keep(turn, persona_of, config, store, place)
        record = {
            "iteration": iteration,
            "lambda": lam,
            **_group_measures(turns),
            **measures,
            "kept": kept,
            "lengths": lengths,
        }
        if watch:
            watch(round_, record)
        store.add_metrics(place, record)
    return record


def stage_counts(store: Store, stage: str) -> dict[str, int]:
    """Verdicts on the best rollouts of a stage, and what the length limit did to its prompts."""
    counts = Counter(store.verdicts(stage))
    for record in store.metrics():
        if record["stage"] == stage:
            counts.update(record.get("lengths", {}))
    return dict(counts)


def _update(
    engine: Engine,
    fitted: Sequence[Fitted],
    turns: Sequence[Turn],
    config: Config,
    plan: RlPlan,
    round_: int,
    scale: float,
) -> dict[str, float | None]:
    """The optimiser steps of one round; the mean of their measures."""
    if not turns:
        return {}
    size = config.grpo.mini_batch
    minibatches = []
    for start in range(0, len(turns), size):
        minibatches.append(
            [
                RlItem(f.ids, r.sample.token_ids, r.advantage, f.prompt.id)
                for f, t in zip(
                    fitted[start : start + size], turns[start : start + size], strict=True
                )
                for r in t.group.rollouts
            ]
        )
    first = round_ * plan.steps_per_round
    rates = [
        learning_rate(config.grpo, first + k, plan.total_steps) * scale
        for k in range(len(minibatches))
    ]
    return finite_means(engine.rl_round(minibatches, config.grpo, rates))


def _group_measures(turns: Sequence[Turn]) -> dict[str, Any]:
    """What the curves are drawn from: rewards, parse rate, entropy, lengths, emotion shares."""
    rollouts = [r for t in turns for r in t.group.rollouts]
    if not rollouts:
        return {}
    parsed = [r.completion for r in rollouts if r.completion is not None]
    n = len(rollouts)

    def shares(tops: Sequence[str]) -> dict[str, float]:
        return {e: c / max(1, len(tops)) for e, c in sorted(Counter(tops).items())}

    labels = {t.group.prompt.label_set.name: t.group.prompt.label_set for t in turns}
    by_prompt = [(r.completion, t.group.prompt) for t in turns for r in t.group.rollouts]
    return {
        "prompts": len(turns),
        "synthetic": sum(t.group.prompt.lineage.synthetic for t in turns),
        "r1": sum(r.r1 for r in rollouts) / n,
        "r1_original": _mean(
            [r.r1 for t in turns if not t.group.prompt.lineage.synthetic for r in t.group.rollouts]
        ),
        "r2": sum(r.r2 for r in rollouts) / n,
        "parse_rate": len(parsed) / n,
        "truncated": sum(not r.sample.finished for r in rollouts) / n,
        "sampling_entropy": sum(r.sample.mean_entropy for r in rollouts) / n,
        "tokens_per_completion": sum(len(r.sample.token_ids) for r in rollouts) / n,
        "pass_rate": sum(t.verdict == PASS for t in turns) / len(turns),
        **_silence(turns),
        "label_sets": sorted(labels),
        "emotions": shares([c.emotion.top(p.label_set) for c, p in by_prompt if c]),
        "self_emotions": shares([c.self_emotion.top(p.label_set) for c, p in by_prompt if c]),
    }


def _silence(turns: Sequence[Turn]) -> dict[str, float]:
    """Shares of the groups whose completions have all one R1, all one R2, and no advantage at all: a
    reward that does not differ inside a group teaches nothing of it."""

    def share(of: Callable[[Rollout], float]) -> float:
        values = [[of(r) for r in t.group.rollouts] for t in turns]
        return sum(max(v) - min(v) < 1e-9 for v in values) / len(turns)

    return {
        "r1_flat": share(lambda r: r.r1),
        "r2_flat": share(lambda r: r.r2),
        "silent": share(lambda r: r.advantage),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _keep(
    turn: Turn,
    persona_of: PersonaOf,
    config: Config,
    store: Store,
    place: Place,
) -> bool:
    """Store the SFT sample and, inside max_turns, the next prompt of a turn that passed."""
    prompt, completion = turn.group.prompt, turn.completion
    assert completion is not None
    if prompt.lineage.turn + 1 < config.selfplay.max_turns:
        following = next_prompt(
            prompt, completion, persona_of, place.iteration, f"{place.stage}.{place.step}"
        )
        store.add_prompts([following], place)
    reward = turn.group.rollouts[turn.best].r1
    return add_sample(store, prompt, completion, reward, place, "selfplay")


_LEVELS = 1 << 12


def share_level(counts: Sequence[int], max_share: float) -> int:
    """The most samples that any one emotion may keep, so that none holds more than `max_share`.

    It is what is left when samples of the most frequent emotion are taken out one by one until its
    share fits: while two emotions are equally frequent they lose one each, so all that are over end at
    one level L, the largest with L <= max(1, max_share * sum_e min(count_e, L)). Which sample goes does
    not change it: counts are enough, however many files the samples lie in.
    """
    top = max(counts, default=0)
    if max_share >= 1:
        return top
    # min(count, L) is concave in L, so what fits is an interval from 1 on. Bisection with a share that is a
    # little larger ends at or above its end; from there down the comparison is that of the rule, exactly.
    low, high, wider = 1, top, max_share * (1 + 1e-9)
    while low < high:
        middle = (low + high + 1) // 2
        if middle <= wider * sum(min(c, middle) for c in counts):
            low = middle
        else:
            high = middle - 1
    top = min(top, low)
    sizes = np.asarray(counts)[:, None]
    while top > 1:
        levels = np.arange(top, max(0, top - _LEVELS), -1)
        fits = levels <= np.maximum(1.0, max_share * np.minimum(sizes, levels).sum(0))
        if fits.any():
            return int(levels[fits.argmax()])
        top = int(levels[-1]) - 1
    return top


def select_samples(
    emotions: Sequence[str], rewards: Sequence[float], max_share: float
) -> list[bool]:
    """Which samples stay when no emotion may hold more than `max_share` of them.

    Of an emotion over its share the samples with the lowest reward go first (the later of equals). A
    set of one emotion alone cannot satisfy a share below 1: then one sample of it is kept at the most
    for each sample of the others, and at least one. shards.py does the same out of core.
    """
    counts = Counter(emotions)
    level = share_level(list(counts.values()), max_share)
    kept = [True] * len(emotions)
    left = {e: n - level for e, n in counts.items()}
    for i in sorted(range(len(emotions)), key=lambda i: (rewards[i], -i)):
        if left[emotions[i]] > 0:
            left[emotions[i]] -= 1
            kept[i] = False
    return kept


def cap_emotions(store: Store, iteration: int, max_share: float) -> dict[str, int]:
    """Mark the self-play samples of an iteration that its emotion cap leaves out; counts."""
    samples = store.selfplay_samples(iteration)
    kept = select_samples([s.emotion for s in samples], [s.reward for s in samples], max_share)
    store.mark_used({s.id: k for s, k in zip(samples, kept, strict=True)})
    return {
        "selfplay_samples": len(samples),
        "used": sum(kept),
        "over_share": len(kept) - sum(kept),
    }
