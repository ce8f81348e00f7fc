"""The cold start without an expert (SPEC section 4): gold data teaches the format.

E is the gold emotion of the last utterance, S that of the utterance that really follows, r its text.
Samples written by an expert model have the same form: (prompt, completion).
"""

from __future__ import annotations

from collections.abc import Sequence

from selfemo.prompts import gold_completion, prompt_at
from selfemo.seeds import rng
from selfemo.types import Completion, Conversation, Prompt


def gold_samples(
    conversations: Sequence[Conversation], max_samples: int = 0, seed: int = 0
) -> list[tuple[Prompt, Completion]]:
    """Cold-start samples, whole conversations at a time in an order drawn by `seed`.

    Args:
        max_samples: stop at this many; 0 takes all.
    """
    samples: list[tuple[Prompt, Completion]] = []
    for k in rng(seed, "cold start").permutation(len(conversations)):
        conversation = conversations[k]
        for i in range(len(conversation.turns)):
            completion = gold_completion(conversation, i)
            if completion is not None:
                samples.append((prompt_at(conversation, i, future=True), completion))
        if max_samples and len(samples) >= max_samples:
            return samples[:max_samples]
    return samples
