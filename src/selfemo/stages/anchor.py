"""An anchor on S: the policy keeps the self-emotions of its stage's start (grpo.self_anchor) [ours].

R1 and R2 act on E alone, yet RL on them moves S: both are labels of one set, written by one head. A policy
that learns to read neutral more often comes to feel neutral throughout, and has nothing left to express. So
behind the best E line the policy of the stage's start draws an S line, by persona and context as it knew
them, and the policy learns it by cross-entropy: in the mean, KL(start || policy) of S.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from selfemo.config import Config
from selfemo.method.prompts import Fitted
from selfemo.method.types import Place
from selfemo.models.generation.requests import Request
from selfemo.models.sampler import Sampler
from selfemo.seeds import derive
from selfemo.stages.completions import EMOTION_TOKENS, sampling_settings, says_s
from selfemo.stages.selfplay import Turn
from selfemo.training.protocol import RlItem


def self_anchors(
    teacher: Callable[[], Sampler],
    fitted: Sequence[Fitted],
    turns: Sequence[Turn],
    config: Config,
    place: Place,
) -> list[list[RlItem]]:
    """By turn, the S line to keep; nothing where the best E line does not parse, or the start's S line does
    not.

    Args:
        teacher: gives the policy of the stage's start.
        fitted: the prompts of the turns.
    """
    found: list[list[RlItem]] = [[] for _ in turns]
    if not config.grpo.self_anchor:
        return found
    settings = sampling_settings(config.sampling)
    line = replace(settings, max_lines=1, max_new_tokens=min(EMOTION_TOKENS, settings.max_new_tokens))
    places, requests = list[int](), list[Request]()
    for k, (f, turn) in enumerate(zip(fitted, turns, strict=True)):
        best = turn.group.rollouts[turn.best]
        if best.emotion is not None:
            places.append(k)
            ids = (*f.ids, *best.raw.token_ids[: best.head])
            seed = derive(config.seed, place.stage, place.step, f.prompt.id, "anchor")
            requests.append(Request(ids, seed=seed, share=f.prompt.conversation_id))
    drawn = teacher().generate(requests, line) if requests else []
    for k, request, (said,) in zip(places, requests, drawn, strict=True):
        prompt = fitted[k].prompt
        if says_s(said.text, prompt.label_set):
            weight, share = config.grpo.self_anchor, prompt.conversation_id
            found[k].append(RlItem(request.prompt_ids, said.token_ids, weight, prompt.id, share))
    return found
