"""Replies to an S that is given (SPEC section 10 [ours]).

A reader who sees the history may find a part of S without the reply, and a checkpoint that declares one
emotion throughout shows nothing by it. So each completion is taken back to the end of its E line, an S is
given there, each label equally often and whatever was said before, and the reply alone is sampled. What is
found of that S is in the reply and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from selfemo.config import Config
from selfemo.method.parsing import emotion_line, parse
from selfemo.method.prompts import Fitted, format_self_emotion
from selfemo.method.types import Completion, EmotionDistribution, ParseFailure, Prompt
from selfemo.models.generation.requests import Request
from selfemo.models.sampler import Sampler
from selfemo.seeds import derive
from selfemo.stages.completions import balanced_emotions, sampling_settings


def given_emotions(prompts: Sequence[Prompt], seed: int) -> dict[str, str]:
    """The S that each prompt is given, by its id: the same for all checkpoints of a run."""
    drawn = balanced_emotions([p.label_set for p in prompts], derive(seed, "analysis", "given"))
    return {p.id: emotion for p, emotion in zip(prompts, drawn, strict=True)}


def answer_given(
    sampler: Sampler,
    written: Sequence[tuple[Fitted, str]],
    emotions: Mapping[str, str],
    config: Config,
    on_done: Callable[[int], None] = lambda n: None,
) -> list[tuple[str, Completion | ParseFailure]]:
    """The completion of each prompt with its given S, behind the E line of what was written; as it is written
    and as it is parsed.

    Args:
        written: prompts, and completions whose E line stands.
        emotions: S by prompt id.
    """
    leads = [
        f"{text[: emotion_line(text)[1]]}\n"
        + format_self_emotion(EmotionDistribution({emotions[f.prompt.id]: 1}))
        for f, text in written
    ]
    requests = [
        Request(
            (*f.ids, *sampler.encode_text(lead)),
            seed=derive(config.seed, "analysis", "given", f.prompt.id),
            share=f.prompt.conversation_id,
        )
        for (f, _), lead in zip(written, leads, strict=True)
    ]
    settings = sampling_settings(config.sampling)
    samples = [s[0] for s in sampler.generate(requests, settings, on_done)] if requests else []
    texts = [lead + sample.text for lead, sample in zip(leads, samples, strict=True)]
    return [
        (text, parse(text, f.prompt.label_set, finished=sample.finished))
        for (f, _), text, sample in zip(written, texts, samples, strict=True)
    ]
