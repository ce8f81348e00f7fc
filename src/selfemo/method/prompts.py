"""x = (H, P, label set) to chat messages, and completions to the text that teaches the format.

The earlier turns stand first, so the prompts of one conversation, and those of one self-play episode,
share them and are prefilled once (packing.py). The persona and then the last utterance follow: a small
model reads an emotion best from the text right before its answer.

Version 1 of the format, one line each: `T:` reasoning (brief or full only), `E:` emotions of the last
speaker, `S:` emotions of the answering one, `R:` the reply. A lone emotion is its name; several carry
whole weights: `joy 7, surprise 3`. Beyond the content this is at most 25 tokens (tested on the built-in
tokenizer). `parsing.py` is the inverse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from selfemo.method.types import (
    MAX_EMOTIONS,
    Completion,
    Conversation,
    EmotionDistribution,
    LabelSet,
    Persona,
    Prompt,
)

FORMAT_VERSION = 1
Reasoning = Literal["none", "brief", "full"]
FIRST_FIELDS = ("T:", "E:")
"""A completion begins with one of these."""
LISTENER = "Listener"
_WEIGHT_STEPS = 10

_REASONING_LINES: dict[Reasoning, str] = {
    "none": "",
    "brief": "T: in one sentence, why\n",
    "full": (
        "T: how the last speaker feels and why; then how you feel, from your persona and the scene; "
        "then how you answer\n"
    ),
}


_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line ends of every kind, and halves of surrogate pairs."""


def clean(text: str) -> str:
    """One line without the openings of chat-template tokens, so that content cannot speak as a role."""
    plain = _UNSAFE.sub(" ", text)
    return " ".join(plain.replace("<|", "< |").replace("|>", "| >").split())


def system_message(labels: LabelSet, reasoning: Reasoning = "none") -> str:
    return (
        f"Emotions: {', '.join(labels.labels)}.\n{_REASONING_LINES[reasoning]}"
        f"E: the last speaker's emotion, or up to {MAX_EMOTIONS} with weights\n"
        "S: your own\nR: your reply in character"
    )


def messages(prompt: Prompt, reasoning: Reasoning = "none") -> list[dict[str, str]]:
    """The chat messages of a prompt; nothing of the target or of a later turn is in them."""
    scene = f"Scene: {clean(prompt.scenario)}\n" if prompt.scenario else ""
    turns = "".join(f"{clean(u.speaker)}: {clean(u.text)}\n" for u in prompt.history[:-1])
    persona = f" {clean(prompt.persona.description)}" if prompt.persona.description else ""
    last = prompt.history[-1]
    user = (
        f"{scene}{turns}---\nYou are {clean(prompt.answerer)}.{persona}\n"
        f"{clean(last.speaker)}: {clean(last.text)}"
    )
    return [
        {"role": "system", "content": system_message(prompt.label_set, reasoning)},
        {"role": "user", "content": user},
    ]


def format_emotions(distribution: EmotionDistribution) -> str:
    """At most three emotions by falling weight, with whole weights where there are several.

    Weights are rounded to tenths by largest remainder, so they stay positive and their ratio is kept to
    within a tenth. A top emotion stays the top: rounding makes no tie with the second.
    """
    kept = sorted(distribution.items(), key=lambda ew: -ew[1])[:MAX_EMOTIONS]
    total = sum(w for _, w in kept)
    exact = [(e, _WEIGHT_STEPS * w / total) for e, w in kept]
    whole = {e: int(x) for e, x in exact}
    for e, _ in sorted(exact, key=lambda ex: -(ex[1] - int(ex[1]))):
        if sum(whole.values()) < _WEIGHT_STEPS:
            whole[e] += 1
    if len(kept) > 1 and kept[0][1] > kept[1][1] and whole[kept[0][0]] == whole[kept[1][0]]:
        whole = _parted(whole, dict(exact))
    named = [(e, w) for e, w in whole.items() if w > 0]
    return named[0][0] if len(named) == 1 else ", ".join(f"{e} {w}" for e, w in named)


def _parted(whole: dict[str, int], exact: dict[str, float]) -> dict[str, int]:
    """Whole weights whose first two are equal, with one step moved such that the first is ahead: of all such
    moves the one that stays nearest to the exact weights."""
    first, second, *rest = whole
    moves = [(second, first), *((e, first) for e in rest if whole[e]), *((second, e) for e in rest)]
    moved = [{**whole, giver: whole[giver] - 1, taker: whole[taker] + 1} for giver, taker in moves]
    return min(moved, key=lambda m: sum((w - exact[e]) ** 2 for e, w in m.items()))


def format_completion(completion: Completion) -> str:
    """The text that `parsing.parse` reads back."""
    thought = f"T: {clean(completion.reasoning)}\n" if completion.reasoning else ""
    return (
        f"{thought}E: {format_emotions(completion.emotion)}\n"
        f"S: {format_emotions(completion.self_emotion)}\n"
        f"R: {clean(completion.reply)}"
    )


def format_self_emotion(emotion: EmotionDistribution) -> str:
    """What stands between the E line of a completion and the text of its reply."""
    return f"S: {format_emotions(emotion)}\nR:"


def s_like(lead: str, emotion: str) -> str:
    """An S line for an emotion in the form of another one, which ends in its line end or in "R:"."""
    line = format_self_emotion(EmotionDistribution({emotion: 1}))
    return line if lead.endswith("R:") else line.removesuffix("R:")


def format_recognition(emotion: EmotionDistribution) -> str:
    """The E line alone, with its line end: the part of a completion that recognises."""
    return f"E: {format_emotions(emotion)}\n"


def recognises_alone(answer: str) -> bool:
    """Whether the text of a sample is an E line alone (`format_recognition`)."""
    return answer.startswith("E:") and answer.find("\n") == len(answer) - 1


def format_answer(answer: Completion | EmotionDistribution) -> str:
    """A completion, or its E line alone."""
    if isinstance(answer, Completion):
        return format_completion(answer)
    return format_recognition(answer)


def answering_speaker(conversation: Conversation, last: int, *, gold: bool = False) -> str:
    """Who answers turn `last`: the latest other speaker before it, or `Listener` where there is none [ours].

    Turns after `last` decide nothing, in training as in evaluation, so both have the same prompts and no
    name tells who speaks later. `gold` is the one exception: the completion of a gold sample is what was
    really said next, so its speaker answers, if that is somebody else (SPEC section 5).
    """
    turns, speaker = conversation.turns, conversation.turns[last].speaker
    if gold and last + 1 < len(turns) and turns[last + 1].speaker != speaker:
        return turns[last + 1].speaker
    return next((t.speaker for t in reversed(turns[:last]) if t.speaker != speaker), LISTENER)


def prompt_at(conversation: Conversation, last: int, *, gold: bool = False) -> Prompt:
    """The prompt whose history ends with turn `last` of a real conversation.

    Args:
        gold: the prompt of `gold_completion`, with the answerer that it has.
    """
    answerer = answering_speaker(conversation, last, gold=gold)
    persona = conversation.personas.get(answerer, Persona(answerer, "", conversation.scenario))
    return Prompt(
        id=f"{conversation.id}/{last}",
        dataset=conversation.dataset,
        conversation_id=conversation.id,
        label_set=conversation.label_set,
        history=conversation.turns[: last + 1],
        answerer=answerer,
        persona=persona,
        target=conversation.turns[last].emotion,
        scenario=conversation.scenario,
    )


def conversation_prompts(conversation: Conversation) -> list[Prompt]:
    """One prompt per turn that has a gold emotion."""
    labelled = [i for i, turn in enumerate(conversation.turns) if turn.emotion is not None]
    return [prompt_at(conversation, i) for i in labelled]


def gold_completion(conversation: Conversation, last: int) -> Completion | None:
    """The expert-free cold-start completion of turn `last` (SPEC section 4), or None.

    E is the gold emotion of the turn, S that of the turn that really follows, r its text. Its prompt is
    `prompt_at` with `gold`. None where the next turn is missing, is by the same speaker, or either emotion
    is.
    """
    if last + 1 >= len(conversation.turns):
        return None
    turn, following = conversation.turns[last], conversation.turns[last + 1]
    if turn.speaker == following.speaker or turn.emotion is None or following.emotion is None:
        return None
    return Completion(turn.emotion, following.emotion, clean(following.text))


@dataclass(frozen=True)
class Fitted:
    """A prompt inside the length limit: its ids, and how many of its oldest turns were dropped."""

    prompt: Prompt
    ids: tuple[int, ...]
    dropped: int


def fit(
    prompt: Prompt,
    encode: Callable[[list[dict[str, str]]], Sequence[int]],
    max_tokens: int,
    reasoning: Reasoning = "none",
) -> Fitted | None:
    """Drop the oldest turns until the prompt has at most `max_tokens` tokens.

    The last utterance and the persona are never dropped; None if they alone are too long.
    """
    ids = encode(messages(prompt, reasoning))
    if len(ids) <= max_tokens:
        return Fitted(prompt, tuple(ids), 0)
    # Lengths fall with each dropped turn, so the fewest turns to drop are found by bisection.
    low, high, best = 1, len(prompt.history) - 1, None
    while low <= high:
        drop = (low + high) // 2
        shorter = replace(prompt, history=prompt.history[drop:])
        ids = encode(messages(shorter, reasoning))
        if len(ids) <= max_tokens:
            best, high = Fitted(shorter, tuple(ids), drop), drop - 1
        else:
            low = drop + 1
    return best
