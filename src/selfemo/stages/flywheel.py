"""The data flywheel (algorithm 1): which prompts RL draws, and which samples the next refit uses."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from selfemo.method.prompts import conversation_prompts, format_answer
from selfemo.method.types import Completion, Conversation, EmotionDistribution, Place, Prompt
from selfemo.seeds import rng, shuffled_runs
from selfemo.stages.interfaces import Buffer


def fingerprint(prompt: Prompt, completion: Completion | EmotionDistribution) -> str:
    """A hash that is equal for samples of the same label set, history, answerer and completion."""
    said = [f"{u.speaker}: {u.text}".lower() for u in prompt.history]
    text = "\x1f".join([prompt.label_set.name, *said, prompt.answerer, format_answer(completion)])
    return hashlib.sha256(text.lower().encode()).hexdigest()


def add_sample(
    buffer: Buffer,
    prompt: Prompt,
    completion: Completion | EmotionDistribution,
    reward: float,
    place: Place,
    source: str,
) -> bool:
    """Add one (x, completion or E alone) to the SFT set; returns false for a duplicate."""
    emotion = completion.emotion if isinstance(completion, Completion) else completion
    return buffer.add_sample(
        prompt,
        format_answer(completion),
        emotion.top(prompt.label_set),
        reward,
        fingerprint(prompt, completion),
        place=place,
        source=source,
    )


def original_prompts(conversations: Sequence[Conversation], seed: int, max_share: float) -> list[Prompt]:
    """The prompts that RL may draw from real data: one per gold utterance, in the order of the conversations.

    Args:
        seed: draws which prompts of a frequent emotion stay.
        max_share: largest share of one emotion in the prompts of a data set.
    """
    prompts = [p for c in conversations for p in conversation_prompts(c)]
    if max_share >= 1:
        return prompts
    gold = [p.target.top(p.label_set) for p in prompts if p.target is not None]
    assert len(gold) == len(prompts)
    kept: list[int] = []
    for name in dict.fromkeys(p.dataset for p in prompts):
        members = np.array([i for i, p in enumerate(prompts) if p.dataset == name])
        members = rng(seed, "prompt share", name).permutation(members)
        chosen = select_samples([gold[i] for i in members], [0.0] * len(members), max_share)
        kept.extend(members[chosen].tolist())
    return [prompts[i] for i in sorted(kept)]


class PromptQueue:
    """The prompts that a stage's rounds draw: pending synthetic ones up to their share, then originals.

    Of the synthetic ones those of the newest round go first [ours]: they are nearest to what the policy
    writes now. Those of one round keep their order, in which running episodes stand before new ones; newest
    first among them, too, would let new episodes starve the later turns.

    Originals follow one shuffled order that goes on over rounds and iterations; when all have been seen, a
    new one is shuffled. The position is read from the buffer once. Runs of at most `window` prompts of one
    conversation, which are adjacent in `originals`, stay together. A draw reads what was added since the one
    before; what waits is held as ids, by round.

    Args:
        window: see flywheel.window.
        max_age: rounds after which a synthetic prompt is not drawn any more; 0 for no limit.
        rounds: RL rounds of one iteration, to count rounds over the run.
    """

    def __init__(
        self,
        originals: Sequence[Prompt],
        buffer: Buffer,
        seed: int,
        synthetic_share: float,
        *,
        window: int = 1,
        max_age: int = 0,
        rounds: int = 0,
    ):
        self.originals, self.buffer = originals, buffer
        self.seed, self.synthetic_share, self.window = seed, synthetic_share, window
        self.max_age, self.rounds = max_age, rounds
        self._used = buffer.drawn_originals()
        self._after = 0
        self._waiting: deque[tuple[int, deque[str]]] = deque()  # round over the run, ids of its prompts
        self._order: tuple[int, np.ndarray] | None = None

    def draw(self, n: int, synthetic: int | None = None, now: int = 0) -> list[Prompt]:
        """The next n prompts, each drawn once; fewer only where there are no originals.

        Args:
            synthetic: most prompts of self-play among them; None takes their share of n.
            now: the round that they are for, counted over the run.
        """
        limit = round(self.synthetic_share * n) if synthetic is None else min(n, synthetic)
        pending = [self.buffer.prompt(i) for i in self._newest(limit, now)] if limit else []
        chosen: list[Prompt] = []
        while self.originals and len(chosen) < n - len(pending):
            epoch, position = divmod(self._used, len(self.originals))
            if self._order is None or self._order[0] != epoch:
                generator = rng(self.seed, "original prompts", epoch)
                conversations = [p.conversation_id for p in self.originals]
                self._order = epoch, shuffled_runs(conversations, self.window, generator)
            take = self._order[1][position : position + n - len(pending) - len(chosen)]
            chosen.extend(self.originals[k] for k in take)
            self._used += len(take)
        return [*pending, *chosen]

    def _newest(self, limit: int, now: int) -> list[str]:
        """Take the ids of at most `limit` waiting prompts; those past max_age are let go."""
        added, self._after = self.buffer.pending(self._after)
        for (iteration, step), prompts in groupby(added, key=lambda p: (p.iteration, p.step)):
            self._waiting.append(((iteration - 1) * self.rounds + step, deque(p.id for p in prompts)))
        while self.max_age and self._waiting and now - self._waiting[0][0] > self.max_age:
            self._waiting.popleft()
        taken: list[str] = []
        while self._waiting and len(taken) < limit:
            _, ids = self._waiting[-1]
            taken.append(ids.popleft())
            if not ids:
                self._waiting.pop()
        return taken


def too_old(buffer: Buffer, stage: range, rounds: int, max_age: int) -> int:
    """How many synthetic prompts passed `max_age` unanswered in a stage (0 for no limit).

    Args:
        stage: its rounds, counted over the run.
        rounds: of an iteration.
    """
    if not max_age:
        return 0
    # A prompt made in round m is first too old for round m + max_age + 1.
    return buffer.unanswered(range(stage.start - max_age - 1, stage.stop - max_age - 1), rounds)


def labels_record(drawn: Mapping[tuple[str, str], int]) -> dict[str, int | str]:
    """The labels that RL drew, in short: draws, different prompts, and a digest that equal multisets share.

    Args:
        drawn: how often each prompt was drawn, by (id, label) (`Store.labels_drawn`).
    """
    text = "\n".join(f"{i}\x1f{label}\x1f{n}" for (i, label), n in sorted(drawn.items()))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {"labels": sum(drawn.values()), "labelled_prompts": len(drawn), "labels_digest": digest}


_LEVELS = 1 << 12


def share_level(counts: Sequence[int], max_share: float) -> int:
    """The most samples that any one emotion may keep, so that none holds more than `max_share`.

    The rule: take samples of the most frequent emotion out one by one until its share fits. Equally frequent
    emotions lose one each, so all that are over end at one level L, the largest with L <= max(1, max_share *
    sum_e min(count_e, L)). Counts are enough, however many files hold the samples.
    """
    top = max(counts, default=0)
    if max_share >= 1:
        return top
    # min(count, L) is concave in L, so the levels that fit are an interval from 1 on. Bisection with a
    # slightly larger share ends at or above its end; from there down the rule is compared exactly.
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


def select_samples(emotions: Sequence[str], rewards: Sequence[float], max_share: float) -> list[bool]:
    """Which samples stay when no emotion may hold more than `max_share` of them.

    Of an emotion over its share the samples with the lowest reward go first (the later of equals). One sample
    always stays, even where one emotion alone cannot satisfy the share. runs/selection.py does the same out
    of core.
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


def replay_alone(
    size: int, drawn: Sequence[int], others: Sequence[int], generator: np.random.Generator
) -> list[int]:
    """The samples of a refit without self-play: `size` ids of samples of the cold start [ours].

    First those that the refit replays anyway, then others in a random order, then all again, so that no
    sample occurs twice more often than another. Ids are in order within each pass: samples of one
    conversation stay together.

    Args:
        drawn: ids of the samples that the refit replays.
        others: ids of the other samples of the cold start.

    Raises:
        ValueError: there is no sample at all.
    """
    whole = np.array([*drawn, *others], dtype=np.int64)
    if not len(whole):
        raise ValueError("no sample to replay")
    queue = [*drawn, *generator.permutation(np.array(others, dtype=np.int64)).tolist()]
    found: list[int] = []
    while len(found) < size:
        found += sorted(queue[: size - len(found)])
        queue = generator.permutation(whole).tolist()
    return found


def cap_emotions(buffer: Buffer, iteration: int, max_share: float) -> dict[str, int]:
    """Mark which self-play samples of an iteration stay under the emotion cap; returns counts."""
    samples = buffer.selfplay_samples(iteration)
    kept = select_samples([e for _, e, _ in samples], [r for _, _, r in samples], max_share)
    buffer.mark_used({id_: k for (id_, _, _), k in zip(samples, kept, strict=True)})
    return {"selfplay_samples": len(samples), "used": sum(kept), "over_share": len(kept) - sum(kept)}
