"""The RL stage: SELF-GRPO with self-play over one iteration's prompts (algorithm 1, step (a)).

`rl_stage` shows one round from top to bottom:

    draw      original prompts, and those that earlier turns of self-play left (flywheel.PromptQueue)
    sample    G completions of each by the policy (eqs. 5, 6); their E lines alone where credit is causal
    score     R1 against the target, R2 against the group, their advantage (eqs. 8-13)
    best      the best rollout of each group, completed where something comes of it; the gate decides whether
              it may join the data, and where it asks for that, the teacher, the policy of the stage's start,
              reads the replies. With reward.expression several replies to one S are drawn, and a frozen
              listener scores them (R3, training/expression.py); of whole completions, the reply of each
    update    the optimiser steps on all groups (eq. 14), and on what keeps S where it was (anchor.py)
    next      a rollout that passed gives an SFT sample and the episode's next prompt (eq. 7)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from selfemo.config import Config, GrpoConfig, PromptConfig, SelfPlayConfig
from selfemo.method.lengths import lengths_of
from selfemo.method.prompts import Fitted, format_recognition
from selfemo.method.types import EmotionDistribution, Place, Prompt, Rollout, RolloutGroup
from selfemo.seeds import derive, rng, shuffled_runs
from selfemo.stages.anchor import self_anchors
from selfemo.stages.completions import fit_all, sample_groups
from selfemo.stages.flywheel import PromptQueue, add_sample, too_old
from selfemo.stages.gate import NO_REPLY, PASS
from selfemo.stages.interfaces import Buffer, Watch
from selfemo.stages.selfplay import (
    PersonaOf,
    Replies,
    Turn,
    next_prompt,
    next_targets,
    read_replies,
    score_group,
    take_turns,
)
from selfemo.training.expression import reply_items, reply_measures
from selfemo.training.protocol import Measures, RlItem, RlSpan, Trainer, learning_rate
from selfemo.training.whole_replies import Gain, OwnReplies


@dataclass(frozen=True)
class RlPlan:
    """The numbers of prompts, rounds and optimiser steps of an RL stage."""

    prompts: int
    rounds: int
    prompts_per_round: int
    steps_per_round: int

    @property
    def total_steps(self) -> int:
        return self.rounds * self.steps_per_round

    @staticmethod
    def of(prompts: int, per_step: int, mini_batch: int, *, whole_rounds: bool) -> RlPlan:
        """The plan of a stage with `prompts` prompts.

        Args:
            per_step: prompts of one round (grpo.prompts_per_step).
            whole_rounds: leave out the prompts of a last, partial round.
        """
        per_round = min(per_step, prompts)
        rounds = prompts // per_round if whole_rounds else -(-prompts // per_round)
        return RlPlan(prompts, rounds, per_round, -(-per_round // min(mini_batch, per_round)))

    def of_run(self, iteration: int) -> range:
        """The rounds of an iteration's stage (from 1), counted over the run."""
        return range((iteration - 1) * self.rounds, iteration * self.rounds)

    def size(self, round_: int) -> int:
        """Prompts of a round; the last one may be smaller."""
        return min(self.prompts_per_round, self.prompts - round_ * self.prompts_per_round)


@dataclass
class Round:
    """The prompts of one round: as drawn, and within the length limit, with the counts of `fit_all`."""

    drawn: list[Prompt] = field(default_factory=list)
    fitted: list[Fitted] = field(default_factory=list)
    lengths: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(drawn: list[Prompt], trainer: Trainer, config: PromptConfig) -> Round:
        return Round(drawn, *fit_all(drawn, trainer.encode, config.max_tokens, config.reasoning))


def rl_stage(
    trainer: Trainer,
    originals: Sequence[Prompt],
    persona_of: PersonaOf,
    config: Config,
    buffer: Buffer,
    place: Place,
    span: RlSpan,
    watch: Watch,
    on_round: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, int]:
    """Train the policy of `trainer` on one iteration's prompts.

    Each round is one transaction of the buffer. A stage that continues at `place.step`, with a trainer that
    has the weights and optimiser state of that point, gives the same result as an uninterrupted one.

    Args:
        originals: prompts within the length limit.
        place: stage, first round, iteration.
        span: the RL stages that lambda(t) is counted over.
        on_round: called with the metrics of each round.

    Returns:
        Counts over the whole stage: verdicts of the gate, prompts shortened or too long, changed targets
        (`selfplay.next_targets`), prompts of self-play that passed selfplay.max_age unanswered ("too_old").
    """
    grpo, play, stage = config.grpo, config.selfplay, place.stage
    plan = rl_plan(config, trainer)
    replies: Replies = "every" if config.expresses else "due" if config.replies else "none"
    ears = trainer.ears(config)
    if ears:
        ears = replace(ears, people=lengths_of(p.history[-1].text for p in originals))
    take = partial(take_turns, encode=trainer.encode_text, replies=replies, ears=ears)
    for wave, rounds in _drawn(trainer, originals, config, buffer, plan, place):
        with trainer.wave(wave, [r.fitted for r in rounds]):
            for round_ in range(max(place.step, wave.start), wave.stop):
                now, at = rounds[round_ - wave.start], Place(stage, round_, place.iteration)
                lam = span.lam(round_, plan.rounds, grpo.lam_max)

                # sample
                sample = partial(trainer.sample, round_)
                sampled = sample_groups(sample, now.fitted, config, at, replies=config.replies)

                # score, over the whole history: the length limit is for the model alone
                whole = {p.id: p for p in now.drawn}
                prompts = [whole[f.prompt.id] for f in now.fitted]
                groups = [
                    score_group(p, s, config.reward, grpo, lam) for p, s in zip(prompts, sampled, strict=True)
                ]

                # best, gate
                turns = take(sample, now.fitted, groups, config, at, lam)
                turns = read_replies(trainer.teacher, turns, persona_of, config)

                # update
                seed = derive(config.seed, stage, round_)
                anchors = self_anchors(trainer.teacher, now.fitted, turns, config, at)
                items = [
                    turn_items(f, t, config, trainer.encode_text, seed) + anchor
                    for f, t, anchor in zip(now.fitted, turns, anchors, strict=True)
                ]
                together = [p.conversation_id for p in prompts]
                minibatches = mini_batches(items, grpo.mini_batch, seed, together, config.flywheel.window)
                first = round_ * plan.steps_per_round
                rates = [
                    learning_rate(grpo, first + k, plan.total_steps) * watch.scale(round_)
                    for k in range(len(minibatches))
                ]
                measures = trainer.update(round_, minibatches, grpo, rates) if items else {}

                # what passed is kept, with its next prompt
                record = _keep_round(buffer, at, now, turns, persona_of, play, seed, lam, measures, watch)
                on_round(record)
                watch.after(trainer, round_ + 1, plan.rounds)
    counts = stage_counts(buffer, stage)
    if old := too_old(buffer, plan.of_run(place.iteration), plan.rounds, play.max_age):
        counts["too_old"] = old
    return counts


def mini_batches(
    groups: Sequence[Sequence[RlItem]],
    size: int,
    seed: int,
    conversations: Sequence[str] = (),
    window: int = 1,
) -> list[list[RlItem]]:
    """The groups of a round in mini-batches of `size` whole groups, in an order drawn by `seed`; the last
    mini-batch may have fewer.

    A round is drawn with the prompts of self-play first, so that cut as drawn the first optimiser step would
    see those and the last one originals alone.

    Args:
        conversations: that of each group; up to `window` adjacent groups of one stay together, since they
            are one prefix tree.
    """
    keys = conversations or range(len(groups))
    order = shuffled_runs(keys, window, rng(seed, "mini-batches"))
    return [[item for k in order[i : i + size] for item in groups[k]] for i in range(0, len(groups), size)]


def rl_plan(config: Config, trainer: Trainer) -> RlPlan:
    """The plan of an RL stage with a trainer."""
    grpo, whole = config.grpo, trainer.whole_rounds
    return RlPlan.of(config.flywheel.prompts, grpo.prompts_per_step, grpo.mini_batch, whole_rounds=whole)


def turn_items(
    fitted: Fitted, turn: Turn, config: Config, encode: Callable[[str], Sequence[int]], seed: int
) -> list[RlItem]:
    """What a turn trains on: its group, and its replies where they are rewarded.

    Args:
        encode, seed: as in `rl_items` and `expression.reply_items`.
    """
    if isinstance(turn.spoken, OwnReplies):
        gains = turn.spoken.gains(config.reward.expression_weight)
        return rl_items(fitted, turn.group, config.grpo, encode, gains)
    return rl_items(fitted, turn.group, config.grpo, encode) + reply_items(
        fitted, turn.spoken, config.reward, encode, seed
    )


def rl_items(
    fitted: Fitted,
    group: RolloutGroup,
    grpo: GrpoConfig,
    encode: Callable[[str], Sequence[int]],
    gains: Mapping[int, Gain] | None = None,
) -> list[RlItem]:
    """What a group trains on: its completions, without tokens that carry no credit, and its gold E line.

    A target that nobody labelled (self-play, flywheel.unlabelled) is no gold.

    Args:
        encode: from a text to token ids, without an end token.
        gains: of whole completions what the tokens of their reply carry besides, by their number.
    """
    prompt, items = group.prompt, []
    share = prompt.conversation_id
    for k, r in enumerate(group.rollouts if grpo.reward_weight else ()):
        n = len(r.raw.token_ids) if r.head is None or r.rest else r.head
        advantage, rest, head = grpo.reward_weight * r.advantage, grpo.reward_weight * r.rest, r.head
        if gains and (gain := gains.get(k)):
            head, rest = gain.lead, advantage + gain.advantage
        ids, sampled = r.raw.token_ids[:n], r.raw.logprobs[:n] or None  # not every sampler tells them
        items.append(RlItem(fitted.ids, ids, advantage, prompt.id, share, head, rest, sampled))
    labelled = prompt.history[-1].emotion is not None and not prompt.lineage.synthetic
    if grpo.gold_weight and labelled and prompt.target:
        gold = encode(format_recognition(prompt.target))
        items.append(RlItem(fitted.ids, gold, grpo.gold_weight, prompt.id, share))
    return items


def _drawn(
    trainer: Trainer, originals: Sequence[Prompt], config: Config, buffer: Buffer, plan: RlPlan, place: Place
) -> Iterator[tuple[range, list[Round]]]:
    """Draw the prompts of each unfinished wave; a wave is drawn when those before it are done."""
    share, max_age = config.selfplay.synthetic_share, config.selfplay.max_age
    before = plan.of_run(place.iteration).start
    known = {p.id: p for p in originals}
    queue: PromptQueue | None = None
    for wave in trainer.waves(plan.rounds):
        if wave.stop <= place.step:
            continue
        if ids := trainer.drawn(wave):
            prompts = [known.get(i) or buffer.prompt(i) for i in ids]
            size = plan.prompts_per_round
            parts = [prompts[k * size : (k + 1) * size] for k in range(len(wave))]
            yield wave, [Round.of(p, trainer, config.prompt) for p in parts]
            continue
        queue = queue or PromptQueue(
            originals,
            buffer,
            config.seed,
            share,
            window=config.flywheel.window,
            max_age=max_age,
            rounds=plan.rounds,
        )
        if not trainer.whole_rounds:
            drawn = [queue.draw(plan.size(r), now=before + r) for r in wave]
            yield wave, [Round.of(d, trainer, config.prompt) for d in drawn]
            continue
        # The first of several waves has no synthetic prompts, so later ones take its share too.
        left = round(share * plan.prompts_per_round * wave.stop)
        left -= buffer.drawn_synthetic(place.stage)
        rounds = [Round() for _ in wave]
        for r, round_ in zip(wave, rounds, strict=True):
            while missing := plan.prompts_per_round - len(round_.fitted):
                chosen = queue.draw(missing, max(0, left), before + r)
                more = Round.of(chosen, trainer, config.prompt)
                inside = {f.prompt.id for f in more.fitted}
                with buffer.transaction():
                    buffer.skip(p.id for p in more.drawn if p.id not in inside)
                kept = [p for p in more.drawn if p.id in inside]
                left -= sum(p.lineage.synthetic for p in kept)
                round_.drawn += kept
                round_.fitted += more.fitted
                round_.lengths += more.lengths
        yield wave, rounds


def _keep_round(
    buffer: Buffer,
    at: Place,
    prompts: Round,
    turns: Sequence[Turn],
    persona_of: PersonaOf,
    play: SelfPlayConfig,
    seed: int,
    lam: float,
    measures: Measures,
    watch: Watch,
) -> dict[str, Any]:
    """Put a round into the buffer as one transaction; returns its metrics.

    Prompts without a turn are marked as skipped; a turn that passed gives an SFT sample and, up to
    selfplay.max_turns, its next prompt.

    Args:
        seed: of this round, for `next_targets`.
    """
    heard: dict[str, EmotionDistribution | None] = {}
    played = {t.group.prompt.id for t in turns}
    with buffer.transaction():
        buffer.add_prompts(prompts.drawn, at)
        buffer.skip(p.id for p in prompts.drawn if p.id not in played)
        kept, following = 0, []
        for turn in turns:
            buffer.add_group(turn.group, at, turn.best, turn.verdict)
            if turn.spoken:
                buffer.add_replies(turn.group.prompt.id, turn.spoken.numbered, at)
            if turn.verdict == PASS:
                prompt, completion = turn.group.prompt, turn.completion
                assert completion is not None
                if prompt.lineage.turn + 1 < play.max_turns:
                    tag = f"{at.stage}.{at.step}"
                    following.append(next_prompt(prompt, completion, persona_of, at.iteration, tag))
                    heard.setdefault(following[-1].id, turn.heard)
                r1 = turn.group.rollouts[turn.best].r1
                kept += add_sample(buffer, prompt, completion, r1, at, "selfplay")
        following, changed = next_targets(following, play, seed, heard)
        buffer.add_prompts(following, at)
        record = {
            "iteration": at.iteration,
            "lambda": lam,
            **_group_measures(turns),
            **measures,
            "kept": kept,
            **changed,
            "lengths": dict(prompts.lengths),
        }
        watch.look(at.step, record)
        buffer.add_metrics(at, record)
    return record


def stage_counts(buffer: Buffer, stage: str) -> dict[str, int]:
    """Counts of a stage: verdicts on its best rollouts, prompts shortened or too long, changed targets, and
    replies that R3 compared, with those of them that earned nothing, by their fault."""
    counts = Counter(buffer.verdicts(stage))
    for record in buffer.stage_metrics(stage):
        counts.update(record.get("lengths", {}))
        counts.update(record.get("targets", {}))
        if drawn := record.get("replies"):
            counts["replies_compared"] += drawn
            counts.update({f"unrewarded_{k}": n for k, n in record["replies_refused"].items()})
    return dict(counts)


def _group_measures(turns: Sequence[Turn]) -> dict[str, Any]:
    """The measures of a round's groups: rewards, parse rate, entropy, lengths, emotion shares."""
    rollouts = [r for t in turns for r in t.group.rollouts]
    if not rollouts:
        return {}
    n = len(rollouts)

    def shares(tops: Sequence[str]) -> dict[str, float]:
        return {e: c / max(1, len(tops)) for e, c in sorted(Counter(tops).items())}

    by_labels = [(r, t.group.prompt.label_set) for t in turns for r in t.group.rollouts]
    original = [r.r1 for t in turns if not t.group.prompt.lineage.synthetic for r in t.group.rollouts]
    return {
        "prompts": len(turns),
        "synthetic": sum(t.group.prompt.lineage.synthetic for t in turns),
        "r1": sum(r.r1 for r in rollouts) / n,
        "r1_original": sum(original) / len(original) if original else None,
        "r2": sum(r.r2 for r in rollouts) / n,
        "parse_rate": sum(r.emotion is not None for r in rollouts) / n,
        "truncated": sum(not r.raw.finished for r in rollouts) / n,
        "sampling_entropy": sum(r.raw.mean_entropy for r in rollouts) / n,
        "tokens_per_completion": sum(len(r.raw.token_ids) for r in rollouts) / n,
        "pass_rate": None
        if all(t.verdict == NO_REPLY for t in turns)
        else sum(t.verdict == PASS for t in turns) / len(turns),
        **_silence(turns),
        **reply_measures([(t.group.prompt.label_set, t.spoken.replies) for t in turns if t.spoken]),
        "label_sets": sorted({labels.name for _, labels in by_labels}),
        "emotions": shares([r.emotion.top(labels) for r, labels in by_labels if r.emotion]),
        "self_emotions": shares(
            [r.completion.self_emotion.top(labels) for r, labels in by_labels if r.completion]
        ),
    }


def _silence(turns: Sequence[Turn]) -> dict[str, float]:
    """Shares of the groups in which all completions have equal R1, equal R2, or no advantage.

    A reward that is equal within a group teaches nothing.
    """

    def share(of: Callable[[Rollout], float]) -> float:
        values = [[of(r) for r in t.group.rollouts] for t in turns]
        return sum(max(v) - min(v) < 1e-9 for v in values) / len(turns)

    return {
        "r1_flat": share(lambda r: r.r1),
        "r2_flat": share(lambda r: r.r2),
        "silent": share(lambda r: r.advantage),
    }
