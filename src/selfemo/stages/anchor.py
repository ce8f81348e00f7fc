"""An anchor on S and the reply: the policy keeps those of its stage's start (grpo.self_anchor) [ours].

R1 and R2 act on E alone, yet RL on them moves S: both are labels of one set, written by one head. A policy
that learns to read neutral more often comes to feel neutral throughout, and has nothing left to express. So
behind the best E line the policy of the stage's start draws an S line, by persona and context as it knew
them, and the policy learns it by cross-entropy: in the mean, KL(start || policy) of S, up
to a constant.

A policy that learns lines of labels alone comes to write labels as replies ("R: joy"). So the start's reply
is learned behind its S line, too, where R3 rewards no replies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from selfemo.config import Config
from selfemo.method.parsing import parse
from selfemo.method.prompts import Fitted
from selfemo.method.scoring import line_end
from selfemo.method.types import Completion, Place, RawCompletion
from selfemo.models.generation.requests import Request, SamplingSettings
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
    """By turn, the start's S line and, where R3 rewards no replies, its reply behind that. Nothing where the
    best E line or that S line does not parse; no reply where the whole completion would not.

    Args:
        teacher: gives the policy of the stage's start.
        fitted: the prompts of the turns.
    """
    found: list[list[RlItem]] = [[] for _ in turns]
    if not config.grpo.self_anchor:
        return found
    best = [turn.group.rollouts[turn.best] for turn in turns]
    heads = {k: b.raw.token_ids[: b.head] for k, b in enumerate(best) if b.emotion is not None}

    def draw(
        leads: Mapping[int, Sequence[int]], name: str, settings: SamplingSettings
    ) -> dict[int, RawCompletion]:
        """What the start says behind the prompt and a lead of some turns."""
        asked = []
        for k, lead in leads.items():
            prompt = fitted[k].prompt
            seed = derive(config.seed, place.stage, place.step, prompt.id, name)
            asked.append(Request((*fitted[k].ids, *lead), seed=seed, share=prompt.conversation_id))
        said = teacher().generate(asked, settings) if asked else []
        return {k: raw for k, (raw,) in zip(leads, said, strict=True)}

    def learn(k: int, lead: Sequence[int], said: RawCompletion, *, reply: bool) -> None:
        prompt, weight = fitted[k].prompt, config.grpo.self_anchor
        before = (*fitted[k].ids, *lead)
        found[k].append(
            RlItem(before, said.token_ids, weight, prompt.id, prompt.conversation_id, reply=reply)
        )

    whole = sampling_settings(config.sampling)
    line = replace(whole, max_lines=1, max_new_tokens=min(EMOTION_TOKENS, whole.max_new_tokens))
    lines = {
        k: said
        for k, said in draw(heads, "anchor", line).items()
        if says_s(said.text, fitted[k].prompt.label_set)
    }
    for k, said in lines.items():
        learn(k, heads[k], said, reply=False)
    if config.expresses and config.reward.expression_weight:
        return found
    leads = {k: (*heads[k], *said.token_ids) for k, said in lines.items()}
    for k, said in draw(leads, "anchor-reply", whole).items():
        text = best[k].raw.text
        text = text[: line_end(text)] + lines[k].text + said.text
        if isinstance(parse(text, fitted[k].prompt.label_set, finished=said.finished), Completion):
            learn(k, leads[k], said, reply=True)
    return found
