"""Self-play (SPEC section 5, eqs. 6-7): score a group, pick its best, gate it, make the next prompt.

The one policy plays every role. These are the parts of one turn; flywheel.py runs them over a buffer of
prompts with policy updates, `play_episodes` without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from selfemo.config import Config, GrpoConfig, RewardConfig
from selfemo.method.parsing import parse
from selfemo.method.prompts import Fitted, fit
from selfemo.method.rewards import consensus, primary_reward
from selfemo.method.self_grpo import advantages
from selfemo.method.types import (
    Completion,
    Conversation,
    EmotionDistribution,
    LabelSet,
    Lineage,
    Persona,
    Place,
    Prompt,
    Rollout,
    RolloutGroup,
    Sample,
    Utterance,
)
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.runs.store import Store
from selfemo.seeds import derive
from selfemo.stages.gate import PASS, gate
from selfemo.training.protocol import Engine

PersonaOf = Callable[[str, str], Persona]
"""(conversation id, speaker) to the persona that the speaker keeps over an episode."""


def persona_book(conversations: Sequence[Conversation]) -> PersonaOf:
    """Look personas up by conversation and speaker; unknown speakers get an empty one."""
    book: Mapping[str, Mapping[str, Persona]] = {c.id: c.personas for c in conversations}

    def persona_of(conversation_id: str, speaker: str) -> Persona:
        return book.get(conversation_id, {}).get(speaker, Persona(speaker, ""))

    return persona_of


def score_samples(
    labels: LabelSet,
    target: EmotionDistribution,
    samples: Sequence[Sample],
    reward: RewardConfig,
    grpo: GrpoConfig,
    lam: float,
) -> tuple[Rollout, ...]:
    """Parse and score the G completions of one prompt: R1, R2, advantage (SPEC sections 2-3)."""
    parsed = [parse(s.text, labels, finished=s.finished) for s in samples]
    predicted = [p.emotion if isinstance(p, Completion) else None for p in parsed]
    r1 = [primary_reward(p, target, labels, reward.primary) for p in predicted]
    r2 = consensus(predicted, labels, weighted=reward.secondary == "weighted")
    adv = advantages(r1, r2, lam, eps=grpo.eps, ddof=grpo.ddof)
    rollouts = zip(samples, parsed, r1, r2, adv.tolist(), strict=True)
    return tuple(Rollout(*r) for r in rollouts)


def score_group(
    prompt: Prompt,
    samples: Sequence[Sample],
    reward: RewardConfig,
    grpo: GrpoConfig,
    lam: float,
) -> RolloutGroup:
    """`score_samples` against the prompt's own target.

    Raises:
        ValueError: the prompt has no target.
    """
    if prompt.target is None:
        raise ValueError(f"prompt {prompt.id} has no target emotion to score against")
    rollouts = score_samples(prompt.label_set, prompt.target, samples, reward, grpo, lam)
    return RolloutGroup(prompt, rollouts)


def select_best(group: RolloutGroup, lam: float) -> int:
    """Index of the rollout with the highest combined reward, then R1, then mean log-probability, then
    the lowest index [ours]. Completions that parsed come before those that did not."""

    def rank(i: int) -> tuple[bool, float, float, float, int]:
        r = group.rollouts[i]
        combined = (1 - lam) * r.r1 + lam * r.r2
        return (r.completion is not None, combined, r.r1, r.sample.mean_logprob, -i)

    return max(range(len(group.rollouts)), key=rank)


def next_prompt(
    prompt: Prompt, completion: Completion, persona_of: PersonaOf, iteration: int, tag: str
) -> Prompt:
    """x' = (H + r, persona of the other speaker, y' = S) of eq. 7.

    Args:
        tag: names the episode that starts here, together with the prompt's id; a later turn keeps the
            episode it belongs to.
    """
    other = prompt.interlocutor
    lineage = prompt.lineage
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


class ChatEncoder(Protocol):
    """The part of an engine that counts a prompt's tokens."""

    def encode(self, messages: list[dict[str, str]]) -> list[int]: ...


def fit_all(
    prompts: Sequence[Prompt], engine: ChatEncoder, config: Config, counts: dict[str, int]
) -> list[Fitted]:
    """Prompts inside the length limit; those that cannot be are left out and counted.

    Counts: `too_long` prompts left out; `shortened` prompts and the `turns_dropped` from them.
    """
    return keep_fitted(
        [fit(p, engine.encode, config.prompt.max_tokens, config.prompt.reasoning) for p in prompts],
        counts,
    )


def keep_fitted(results: Sequence[Fitted | None], counts: dict[str, int]) -> list[Fitted]:
    """What fits, with the counts of `fit_all`."""
    fitted = []
    for f in results:
        if f is None:
            counts["too_long"] = counts.get("too_long", 0) + 1
            continue
        if f.dropped:
            counts["shortened"] = counts.get("shortened", 0) + 1
            counts["turns_dropped"] = counts.get("turns_dropped", 0) + f.dropped
        fitted.append(f)
    return fitted


def sampling_settings(config: Config) -> SamplingSettings:
    s = config.sampling
    return SamplingSettings(s.max_new_tokens, s.temperature, s.top_p, token_budget=s.token_budget)


@dataclass(frozen=True)
class Turn:
    """One played turn: the scored group, its best member and the gate's verdict on it."""

    group: RolloutGroup
    best: int
    verdict: str

    @property
    def completion(self) -> Completion | None:
        return self.group.rollouts[self.best].completion


def play_turn(
    engine: Engine,
    fitted: Sequence[Fitted],
    originals: Sequence[Prompt],
    config: Config,
    *,
    lam: float,
    key: Sequence[object],
    on_done: Callable[[int], None] | None = None,
) -> list[Turn]:
    """Sample, score, choose and gate one group per prompt.

    Args:
        fitted: prompts inside the length limit.
        originals: the same prompts with their whole history, which the gate and eq. 7 need.
        key: names that, with the run's seed and the prompt's id, give the random numbers.
    """
    requests = [
        Request(f.ids, config.sampling.group_size, derive(config.seed, *key, f.prompt.id))
        for f in fitted
    ]
    sampled = engine.generate(requests, sampling_settings(config), on_done)
    turns = []
    for prompt, samples in zip(originals, sampled, strict=True):
        group = score_group(prompt, samples, config.reward, config.grpo, lam)
        best = select_best(group, lam)
        turns.append(Turn(group, best, gate(prompt, group.rollouts[best], config.gate)))
    return turns


def play_episodes(
    engine: Engine,
    prompts: Sequence[Prompt],
    persona_of: PersonaOf,
    config: Config,
    store: Store,
    *,
    stage: str = "selfplay",
    on_turn: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Episodes from real histories to max_turns or the first turn that does not pass; no training.

    Args:
        on_turn: called after each turn with (turn, episodes that go on).

    Returns:
        Counts: turns played, verdicts, prompts that were shortened or too long.
    """
    counts: dict[str, int] = {}
    live = list(prompts)
    for turn in range(config.selfplay.max_turns):
        fitted = fit_all(live, engine, config, counts)
        whole = {p.id: p for p in live}
        originals = [whole[f.prompt.id] for f in fitted]
        turns = play_turn(engine, fitted, originals, config, lam=0.0, key=(stage, turn))
        following = []
        place = Place(stage, turn)
        with store.transaction():
            store.add_prompts(originals, place)
            for t in turns:
                store.add_group(t.group, place, t.best, t.verdict)
                counts[t.verdict] = counts.get(t.verdict, 0) + 1
                if t.verdict == PASS and t.completion is not None:
                    following.append(
                        next_prompt(t.group.prompt, t.completion, persona_of, 0, stage)
                    )
        live = following
        if on_turn:
            on_turn(turn + 1, len(live))
        if not live:
            break
    return counts
