"""Turns without a gold emotion as original prompts, with what the channel reads as the target [ours].

A user's own conversations have no labels. Their targets are E x channel (stages/channel.py) by a teacher
that stays as it was at the start of the stage: with the student as its own teacher the targets collapsed
(SPEC section 9). They are whole distributions, so that an unsure teacher does not teach as a sure one.
`selfemo analyse --channel` says beforehand whether the teacher reads better than E alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from selfemo.config import PromptConfig
from selfemo.method.prompts import prompt_at
from selfemo.method.types import Conversation, Prompt
from selfemo.models.sampler import Sampler
from selfemo.stages.channel import read_turns, readable_turns


def unlabelled_prompts(
    teacher: Sampler,
    conversations: Sequence[Conversation],
    prompt: PromptConfig,
    stage: str,
    on_done: Callable[[int], None] = lambda n: None,
) -> tuple[list[Prompt], Counter[str]]:
    """The prompts of the turns without a gold emotion that follow another speaker's.

    Args:
        teacher: reads the turns; it must not be trained meanwhile.
        stage: begins the ids, since another stage has another teacher and so other targets.
        on_done: see `read_turns`, also for errors.

    Returns:
        the prompts in order, and counts: `prompts`, and turns left out as `first_turn`, `same_speaker` or
        `too_long`.
    """
    turns, counts = readable_turns(conversations, gold=False)
    readings, too_long = read_turns(teacher, turns, prompt, on_done)
    prompts = []
    for r in readings:
        asked = prompt_at(r.conversation, r.turn)
        prompts.append(replace(asked, id=f"{stage}/{asked.id}", target=r.combined))
    counts.update(too_long, prompts=len(prompts))
    return prompts, counts
