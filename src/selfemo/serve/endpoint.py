"""Answers of a model at an OpenAI-compatible endpoint: as it writes them, without probabilities.

A vLLM server whose tokenizer is named reads emotions as a model on this machine does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from selfemo.errors import UnsupportedError
from selfemo.method.parsing import parse_recognition
from selfemo.method.prompts import Reasoning, fit, messages
from selfemo.method.types import FailureKind, LabelSet, Prompt
from selfemo.models.generation.chat import ChatRequest, ExpertSpec, UnansweredError
from selfemo.models.generation.endpoint import EndpointSampler
from selfemo.models.generation.vllm_server import open_server
from selfemo.serve.answers import EventWriter, OnEvent, ReadEmotion, Response, probable, response_of, written
from selfemo.serve.asking import DRAWN, Ask
from selfemo.stages.experts import without_thoughts


class EndpointAnswers:
    """See `selfemo.Answers`; `max_prompt` is in tokens by an estimate."""

    policy = None

    def __init__(self, spec: ExpertSpec, reasoning: Reasoning, max_prompt: int, max_tokens: int):
        self._sampler = EndpointSampler(spec)
        self._tokens = open_server(spec) if spec.tokenizer else None
        self._reasoning, self._max_prompt = reasoning, max_prompt
        self._max_tokens = max_tokens

    def close(self) -> None:
        self._sampler.close()
        if self._tokens is not None:
            self._tokens.close()

    def least_tokens(self, labels: LabelSet) -> int:
        return 0

    def check(self, labels: LabelSet, max_tokens: int) -> None:
        """Nothing to check: an endpoint's answers are not constrained."""

    def fit(self, prompt: Prompt, max_tokens: int) -> Prompt | None:
        limit, encode = self._max_prompt, self._sampler.encode
        if self._tokens is not None:
            limit, encode = min(limit, self._tokens.engine.context - max_tokens), self._tokens.encode
        fitted = fit(prompt, encode, limit, self._reasoning)
        return None if fitted is None else fitted.prompt

    def read(self, prompts: Sequence[Prompt], labels: LabelSet) -> list[ReadEmotion]:
        if self._tokens is not None and self._reasoning == "none":
            sampler = self._tokens
            places = [
                (p.conversation_id, sampler.encode(messages(p, self._reasoning)), "E:") for p in prompts
            ]
            # A server that is too old for it is asked to write, as any other endpoint.
            with suppress(UnsupportedError):
                return [probable(d, labels) for d in sampler.label_probabilities(places, labels)]
        questions = [ChatRequest(messages(p, self._reasoning), {}, self._max_tokens) for p in prompts]
        return [
            ReadEmotion(None, failure=FailureKind.UNANSWERED)
            if isinstance(answer, UnansweredError)
            else written(parse_recognition(without_thoughts(answer.text), labels), labels)
            for answer in self._sampler.answers(questions)
        ]

    def respond(
        self, asks: Sequence[Ask], prompts: Sequence[Prompt], on_event: OnEvent | None
    ) -> list[Response]:
        questions = []
        for ask, prompt in zip(asks, prompts, strict=True):
            said, most = messages(prompt, self._reasoning), ask.max_tokens or self._max_tokens
            questions.append(ChatRequest(said, {}, most, temperature=ask.temperature))
        writers = [
            EventWriter(n, p.label_set, on_event, stops=ask.stop)
            for n, (ask, p) in enumerate(zip(asks, prompts, strict=True))
        ]

        def on_text(n: int, text: str) -> bool:
            return writers[n].go_on(without_thoughts(text))

        streamed = on_event is not None or any(ask.stop for ask in asks)
        answers = self._sampler.answers(questions, on_text if streamed else None)
        responses = []
        for prompt, question, writer, answer in zip(prompts, questions, writers, answers, strict=True):
            if isinstance(answer, UnansweredError):
                responses.append(Response.failed(prompt, FailureKind.UNANSWERED, answer.detail))
                continue
            response = response_of(prompt, without_thoughts(answer.text), True, writer)
            tokens = (answer.prompt_tokens, answer.completion_tokens)
            cut = tokens[1] >= question.max_tokens and not response.stop
            responses.append(replace(response, tokens=tokens, cut=cut))
        return responses

    def draw(
        self,
        asks: Sequence[Ask],
        prompts: Sequence[Prompt],
        firsts: Sequence[Response],
        counts: Sequence[int],
        goes_on: Callable[[int], bool] | None,
    ) -> list[list[Response]]:
        """Further whole answers: an endpoint cannot go on behind a given E and S, so theirs may be others."""
        owners = [n for n, count in enumerate(counts) for _ in range(count)]
        again = [replace(asks[n], temperature=self._temperature(asks[n]) or DRAWN) for n in owners]
        ask_on = None if goes_on is None else lambda k, _: goes_on(owners[k])
        drawn = iter(self.respond(again, [prompts[n] for n in owners], ask_on))
        return [[next(drawn) for _ in range(count)] for count in counts]

    def _temperature(self, ask: Ask) -> float:
        return self._sampler.spec.temperature if ask.temperature is None else ask.temperature
