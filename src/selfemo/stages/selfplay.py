"""Self-play (SPEC section 5, eqs. 6-7): score a group, choose its best, gate it, make the next prompt.

One policy plays every role. These are the parts of one turn, with what completions.py samples; rl.py runs
them with policy updates, `play_episodes` without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from selfemo.config import Config, GrpoConfig, RewardConfig, SelfPlayConfig
from selfemo.method.prompts import Fitted
from selfemo.method.scoring import score_completions
from selfemo.method.types import (
    Completion,
    Conversation,
    EmotionDistribution,
    LabelSet,
    Lineage,
    Persona,
    Place,
    Prompt,
    RawCompletion,
    RolloutGroup,
    Utterance,
)
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.sampler import Sampler
from selfemo.seeds import derive, rng
from selfemo.stages.channel import e_x_channel, read_pairs
from selfemo.stages.completions import Encode, Sample, complete_best, fit_all, sample_groups, scale_settings
from selfemo.stages.gate import NO_REPLY, PASS, channel_fault, gate
from selfemo.stages.interfaces import Buffer
from selfemo.training.expression import LABEL_WORD, Ears, Spoken
from selfemo.training.whole_replies import OwnReplies, WholeEars

PersonaOf = Callable[[str, str], Persona]
"""From (conversation id, speaker) to the persona that the speaker keeps over an episode."""
Replies = Literal["every", "due", "none"]
"""Which best E lines get S and a reply, where E lines are sampled alone: each one that parsed; those where
something comes of it (`complete_best`); none."""


def persona_book(conversations: Sequence[Conversation]) -> PersonaOf:
    """Look personas up by conversation and speaker; unknown speakers get an empty one."""
    book: Mapping[str, Mapping[str, Persona]] = {c.id: c.personas for c in conversations}
    return lambda conversation, speaker: book.get(conversation, {}).get(speaker, Persona(speaker, ""))


def score_group(
    prompt: Prompt, samples: Sequence[RawCompletion], reward: RewardConfig, grpo: GrpoConfig, lam: float
) -> RolloutGroup:
    """Score completions against the prompt's own target (ValueError: it has none)."""
    if prompt.target is None:
        raise ValueError(f"prompt {prompt.id} has no target emotion to score against")
    found = score_completions(
        prompt.label_set,
        prompt.target,
        samples,
        lam=lam,
        primary=reward.primary,
        secondary=reward.secondary,
        emotion_only=grpo.credit == "causal",
        **scale_settings(grpo),
    )
    return RolloutGroup(prompt, found)


def tie_seed(seed: int, stage: str, step: int, prompt_id: str) -> int:
    """The seed of `select_best` for the group of a prompt in a round, from the run's seed."""
    return derive(seed, stage, step, prompt_id, "best")


def select_best(group: RolloutGroup, lam: float, seed: int) -> int:
    """Index of the rollout with the highest combined reward, then R1; a random one of those that tie [ours].

    Completions that parsed come before those that did not. A tie by mean log-probability would keep the
    likeliest reply, which is the dullest, in group after group.

    Args:
        seed: `tie_seed`; it ranks the members, so that the choice does not depend on when it is made.
    """

    def rank(i: int) -> tuple[bool, float, float, int]:
        r = group.rollouts[i]
        combined = (1 - lam) * r.r1 + lam * r.r2
        return (r.emotion is not None, combined, r.r1, -derive(seed, i))

    return max(range(len(group.rollouts)), key=rank)


def next_prompt(
    prompt: Prompt, completion: Completion, persona_of: PersonaOf, iteration: int, tag: str
) -> Prompt:
    """x' = (H + r, persona of the other speaker, y' = S) of eq. 7.

    Args:
        tag: names a new episode, together with the prompt's id; a later turn keeps its episode.
    """
    other, lineage = prompt.interlocutor, prompt.lineage
    episode = lineage.episode or f"{tag}:{prompt.id}"
    turn = lineage.turn + 1
    said = Utterance(prompt.answerer, completion.reply, completion.self_emotion)
    return replace(
        prompt,
        id=f"{episode}>{turn}",
        history=(*prompt.history, said),
        answerer=other,
        persona=persona_of(prompt.conversation_id, other),
        target=completion.self_emotion,
        lineage=Lineage(iteration, episode, turn, prompt.id),
    )


def shuffle_targets(prompts: Sequence[Prompt], seed: int) -> tuple[list[Prompt], dict[str, str]]:
    """Next prompts of one round, each with the target of another one of its label set [ours].

    The control of eq. 7 (`selfplay.targets = "shuffled"`): each target is given once, so that labels are as
    frequent as before. Within a label set a random cycle goes through all prompts, so that none keeps its
    own; one that is alone in its label set does. The history keeps the S that was declared.

    Args:
        prompts: with distinct ids, each of an episode of its own.
        seed: of this round.

    Returns:
        the prompts in their order, and for the id of each the id of the prompt whose target it has now.
    """
    by_labels: dict[LabelSet, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_labels.setdefault(prompt.label_set, []).append(i)
    giver = list(range(len(prompts)))
    for labels, members in by_labels.items():
        order = rng(seed, "targets", labels.name).permutation(members).tolist()
        for taker, other in zip(order, [*order[1:], order[0]], strict=True):
            giver[taker] = other
    shuffled = [replace(p, target=prompts[g].target) for p, g in zip(prompts, giver, strict=True)]
    return shuffled, {p.id: prompts[g].id for p, g in zip(prompts, giver, strict=True)}


def next_targets(
    following: Sequence[Prompt],
    play: SelfPlayConfig,
    seed: int,
    heard: Mapping[str, EmotionDistribution | None],
) -> tuple[list[Prompt], dict[str, Any]]:
    """The next prompts of a round with the targets that `selfplay.targets` gives them.

    Args:
        following: `next_prompt` of the turns that passed; of equal ids (one original, drawn twice into the
            round) the first stays, as in the store.
        seed: of this round.
        heard: by id, `Turn.heard` of the turn before, for targets = "channel".

    Returns:
        the prompts, and the record of what was changed, empty with targets = "declared". Of the shuffling: by
        id whose target each has ("targets_from"), and in "targets" the counts `targets_shuffled`,
        `targets_own` (alone in their label set) and `targets_same_top` (another's S with the top emotion of
        their own). Of the channel, in "targets": `targets_heard`, how many of these have another top emotion
        than the declared S (`targets_other_top`), and those too long to be read, which keep it
        (`targets_unheard`).
    """
    first: dict[str, Prompt] = {}
    for prompt in following:
        first.setdefault(prompt.id, prompt)
    prompts = list(first.values())
    if play.targets == "declared":
        return prompts, {}
    if play.targets == "channel":
        return _heard_targets(prompts, heard)
    shuffled, sources = shuffle_targets(prompts, seed)
    counts = Counter(targets_shuffled=0, targets_own=0, targets_same_top=0)
    for before, after in zip(prompts, shuffled, strict=True):
        if sources[before.id] == before.id:
            counts["targets_own"] += 1
            continue
        assert before.target is not None and after.target is not None
        counts["targets_shuffled"] += 1
        labels = before.label_set
        counts["targets_same_top"] += before.target.top(labels) == after.target.top(labels)
    return shuffled, {"targets_from": sources, "targets": dict(counts)}


def _heard_targets(
    prompts: Sequence[Prompt], heard: Mapping[str, EmotionDistribution | None]
) -> tuple[list[Prompt], dict[str, Any]]:
    counts = Counter(targets_heard=0, targets_other_top=0, targets_unheard=0)
    result = []
    for prompt in prompts:
        declared, target, labels = prompt.target, heard.get(prompt.id), prompt.label_set
        assert declared is not None
        if target is None:
            counts["targets_unheard"] += 1
        else:
            counts["targets_heard"] += 1
            counts["targets_other_top"] += target.top(labels) != declared.top(labels)
        result.append(replace(prompt, target=target or declared))
    return result, {"targets": dict(counts)}


@dataclass(frozen=True)
class Turn:
    """One played turn: the scored group, its best member and the gate's verdict on it.

    Attributes:
        heard: the emotion of the reply by the teacher's E x channel, where it was read.
        spoken: the replies that R3 compares, where reward.expression is on.
    """

    group: RolloutGroup
    best: int
    verdict: str
    heard: EmotionDistribution | None = None
    spoken: Spoken | OwnReplies | None = None

    @property
    def completion(self) -> Completion | None:
        return self.group.rollouts[self.best].completion


def take_turns(
    sample: Sample,
    prompts: Sequence[Fitted],
    groups: Sequence[RolloutGroup],
    config: Config,
    place: Place,
    lam: float,
    *,
    encode: Encode,
    replies: Replies = "every",
    ears: Ears | None = None,
) -> list[Turn]:
    """Choose the best rollout of each scored group, complete it where it is an E line, and apply the gate.

    Args:
        ears: of an engine that samples whole completions they hear the replies of all of them.
    """
    best = [select_best(g, lam, tie_seed(config.seed, place.stage, place.step, g.prompt.id)) for g in groups]
    spoken: Mapping[int, Spoken | OwnReplies] = {}
    if isinstance(ears, WholeEars):
        said = [
            (f.prompt, [(r.raw, r.completion) for r in g.rollouts])
            for f, g in zip(prompts, groups, strict=True)
        ]
        spoken = dict(enumerate(ears.hear_whole(said, config)))
    elif config.grpo.credit == "causal":
        if replies == "none":
            return [Turn(g, b, NO_REPLY) for g, b in zip(groups, best, strict=True)]
        groups, spoken = complete_best(
            sample,
            prompts,
            groups,
            best,
            config,
            place,
            lam,
            encode=encode,
            every=replies == "every",
            ears=ears,
        )
    turns = []
    for k, (g, b) in enumerate(zip(groups, best, strict=True)):
        verdict, mine = gate(g.prompt, g.rollouts[b], config.gate), spoken.get(k)
        going = mine.goes_on(b) if mine else None
        if going and verdict == PASS and going.fault == LABEL_WORD:
            verdict = LABEL_WORD  # what earns nothing joins no data either
        turns.append(Turn(g, b, verdict, spoken=mine))
    return turns


def read_replies(
    teacher: Callable[[], Sampler], turns: Sequence[Turn], persona_of: PersonaOf, config: Config
) -> list[Turn]:
    """The turns of a round with what the teacher hears in the replies that passed, all read together [ours].

    `gate.channel` judges by it, and `selfplay.targets = "channel"` takes it as the next target. A reply is
    read as the next prompt has it, and without the S that was declared (SPEC section 9).

    Args:
        teacher: called where there is something to read.
    """
    result = list(turns)
    passed = [k for k, t in enumerate(turns) if t.verdict == PASS and t.completion is not None]
    if not (config.reads_replies and passed):
        return result
    pairs = []
    for k in passed:
        prompt, said = turns[k].group.prompt, turns[k].completion
        assert said is not None
        pairs.append((prompt, next_prompt(prompt, said, persona_of, 0, "")))
    for k, (prompt, following), scored in zip(
        passed, pairs, read_pairs(teacher(), pairs, config.prompt), strict=True
    ):
        labels = prompt.label_set
        heard = e_x_channel(labels, scored) if scored else None
        assert following.target is not None
        fault = channel_fault(following.target, heard, labels, config.gate)
        result[k] = replace(turns[k], heard=heard, verdict=fault or PASS)
    return result


def play_episodes(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    persona_of: PersonaOf,
    config: Config,
    buffer: Buffer,
    *,
    stage: str = "selfplay",
    on_turn: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Play episodes from real histories to max_turns or the first turn that does not pass; no training.

    Where replies are read (`read_replies`), the sampler itself is the teacher: nothing changes it.

    Args:
        on_turn: called after each turn with (turn, number of episodes that go on).

    Returns: counts of verdicts, and those of `fit_all`.
    """
    counts: Counter[str] = Counter()
    live = list(prompts)

    def sample(
        prompts: Sequence[Fitted], n: int, seeds: Sequence[int], settings: SamplingSettings
    ) -> list[list[RawCompletion]]:
        requests = [Request(f.ids, n, seed) for f, seed in zip(prompts, seeds, strict=True)]
        return sampler.generate(requests, settings)

    for turn in range(config.selfplay.max_turns):
        place = Place(stage, turn)
        fitted, lengths = fit_all(live, sampler.encode, config.prompt.max_tokens, config.prompt.reasoning)
        counts.update(lengths)
        whole = {p.id: p for p in live}
        played = [whole[f.prompt.id] for f in fitted]
        sampled = sample_groups(sample, fitted, config, place)
        groups = [
            score_group(p, s, config.reward, config.grpo, 0.0) for p, s in zip(played, sampled, strict=True)
        ]
        turns = take_turns(sample, fitted, groups, config, place, 0.0, encode=sampler.encode_text)
        turns = read_replies(lambda: sampler, turns, persona_of, config)
        following, heard = list[Prompt](), dict[str, EmotionDistribution | None]()
        with buffer.transaction():
            buffer.add_prompts(played, place)
            for t in turns:
                buffer.add_group(t.group, place, t.best, t.verdict)
                counts[t.verdict] += 1
                if t.verdict == PASS and t.completion is not None:
                    prompt = t.group.prompt
                    following.append(next_prompt(prompt, t.completion, persona_of, 0, stage))
                    heard.setdefault(following[-1].id, t.heard)
        seed = derive(config.seed, stage, turn)
        live, changed = next_targets(following, config.selfplay, seed, heard)
        counts.update(changed.get("targets", {}))
        if on_turn:
            on_turn(turn + 1, len(live))
        if not live:
            break
    return dict(counts)
