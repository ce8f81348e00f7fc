"""Answers of a model on this machine: held to the format, with the probability of each label."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from selfemo.config import Config
from selfemo.method.parsing import parse_recognition
from selfemo.method.prompts import fit, messages
from selfemo.method.types import EmotionDistribution, LabelSet, Prompt
from selfemo.models.generation.local import LocalSampler
from selfemo.models.generation.own_format import LimitedFormat, OwnFormat
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.generation.vllm import VllmSampler
from selfemo.models.generation.vllm import open_backend as open_vllm
from selfemo.models.loading import load_configured
from selfemo.models.policy import Policy
from selfemo.models.sampler import LabelPlace
from selfemo.seeds import derive
from selfemo.serve.answers import (
    EventWriter,
    OnEvent,
    ReadEmotion,
    Response,
    probable,
    response_of,
    up_to,
    written,
)
from selfemo.serve.asking import DRAWN, Ask, Sampling

_FORMATS_KEPT = 64


class LocalAnswers:
    """`selfemo.Answers` of the weights in a checkpoint, by `model.backend`; one call is answered at a time.

    Raises: EngineError, MissingExtraError: the model cannot be loaded.
    """

    def __init__(self, config: Config, checkpoint: str, sampling: Sampling, constrained: bool):
        self.policy: Policy | None = None
        self._sampler: LocalSampler | VllmSampler
        self._context: int | None
        if config.model.backend == "vllm":
            self._sampler = open_vllm(checkpoint, config.model)
            self._context = self._sampler.engine.context
        else:
            self.policy = load_configured(config.model, checkpoint)
            self._sampler = LocalSampler(self.policy)
            self._context = self.policy.context
        self._reader = self._sampler.reader
        self._prompt, self._evaluation = config.prompt, config.evaluation
        self._sampling, self._constrained = sampling, constrained
        self._formats: dict[LabelSet, OwnFormat] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nothing to end."""

    def least_tokens(self, labels: LabelSet) -> int:
        return self._format(labels).least_tokens() if self._constrained else 0

    def check(self, labels: LabelSet, max_tokens: int) -> None:
        if self._constrained:
            self._format(labels).limited(max_tokens)

    def _format(self, labels: LabelSet) -> OwnFormat:
        if labels not in self._formats:
            if len(self._formats) >= _FORMATS_KEPT:
                self._formats.clear()
            repeat = self._evaluation.no_repeat_ngram
            self._formats[labels] = OwnFormat(self._reader, labels, self._prompt.reasoning, repeat)
        return self._formats[labels]

    def _limited(self, labels: LabelSet, max_tokens: int) -> LimitedFormat | None:
        return self._format(labels).limited(max_tokens) if self._constrained else None

    def _begun(self, labels: LabelSet, text: str) -> list[int]:
        """The tokens of a text that an answer begins with."""
        return self._format(labels).encode(text) if self._constrained else self._reader.plain_ids(text)

    def fit(self, prompt: Prompt, max_tokens: int) -> Prompt | None:
        limit = self._prompt.max_tokens
        if self._context is not None:
            limit = min(limit, self._context - max_tokens)
        fitted = fit(prompt, self._reader.encode, limit, self._prompt.reasoning)
        return None if fitted is None else fitted.prompt

    def _ids(self, prompt: Prompt) -> list[int]:
        return self._reader.encode(messages(prompt, self._prompt.reasoning))

    def read(self, prompts: Sequence[Prompt], labels: LabelSet) -> list[ReadEmotion]:
        if not self._constrained or self._prompt.reasoning != "none":
            return self._read_written(prompts, labels)
        places = [(p.conversation_id, self._ids(p), "E:") for p in prompts]
        found = self._probabilities(places, labels)
        return [probable(distribution, labels) for distribution in found]

    def _probabilities(self, places: Sequence[LabelPlace], labels: LabelSet) -> list[EmotionDistribution]:
        with self._lock:
            return self._sampler.label_probabilities(places, labels)

    def _read_written(self, prompts: Sequence[Prompt], labels: LabelSet) -> list[ReadEmotion]:
        """The emotions that the model writes, in one line, as in `selfemo evaluate`."""
        sampling, evaluation = self._sampling, self._evaluation
        settings = SamplingSettings(
            max_new_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_lines=1 if self._prompt.reasoning == "none" else 2,
            token_budget=evaluation.token_budget,
            no_repeat_ngram=evaluation.no_repeat_ngram,
        )
        limited = self._limited(labels, sampling.max_tokens)
        requests = [
            Request(self._ids(p), 1, derive(sampling.seed, str(messages(p))), p.conversation_id, limited)
            for p in prompts
        ]
        with self._lock:
            texts = [s.text for (s,) in self._sampler.generate(requests, settings)]
        read = [written(parse_recognition(text, labels), labels) for text in texts]
        if not self._constrained:
            return read
        places = [
            (p.conversation_id, r.prompt_ids, up_to(text, "E"))
            for p, r, text in zip(prompts, requests, texts, strict=True)
        ]
        found = self._probabilities(places, labels)
        return [r.with_probabilities(d) for r, d in zip(read, found, strict=True)]

    def respond(
        self, asks: Sequence[Ask], prompts: Sequence[Prompt], on_event: OnEvent | None
    ) -> list[Response]:
        return self._in_batches(asks, prompts, [""] * len(asks), on_event)

    def draw(
        self,
        asks: Sequence[Ask],
        prompts: Sequence[Prompt],
        firsts: Sequence[Response],
        counts: Sequence[int],
        goes_on: Callable[[int], bool] | None,
    ) -> list[list[Response]]:
        """Further replies behind the E and S of each first answer, all in one batch."""
        owners = [n for n, count in enumerate(counts) for _ in range(count)]
        again = [
            replace(
                ask, temperature=self._temperature(ask) or DRAWN, seed=derive(self._seed(ask), "reply", k)
            )
            for ask, count in zip(asks, counts, strict=True)
            for k in range(count)
        ]
        begun = [up_to(firsts[n].text, "R") for n in owners]
        ask_on = None if goes_on is None else lambda k, _: goes_on(owners[k])
        drawn = iter(self._in_batches(again, [prompts[n] for n in owners], begun, ask_on))
        return [[next(drawn) for _ in range(count)] for count in counts]

    def _temperature(self, ask: Ask) -> float:
        return self._sampling.temperature if ask.temperature is None else ask.temperature

    def _seed(self, ask: Ask) -> int:
        return self._sampling.seed if ask.seed is None else ask.seed

    def _in_batches(
        self, asks: Sequence[Ask], prompts: Sequence[Prompt], begun: Sequence[str], on_event: OnEvent | None
    ) -> list[Response]:
        """One batch for all answers of one temperature and top_p; each goes on with the text `begun`."""
        groups: dict[tuple[float, float], list[int]] = {}
        for n, ask in enumerate(asks):
            top_p = self._sampling.top_p if ask.top_p is None else ask.top_p
            groups.setdefault((self._temperature(ask), top_p), []).append(n)
        found: dict[int, Response] = {}
        for key, members in groups.items():
            mine, theirs = [asks[n] for n in members], [prompts[n] for n in members]
            texts = [begun[n] for n in members]
            answers = self._respond(members, mine, theirs, texts, *key, on_event)
            found.update(zip(members, answers, strict=True))
        return [found[n] for n in range(len(asks))]

    def _respond(
        self,
        numbers: Sequence[int],
        asks: Sequence[Ask],
        prompts: Sequence[Prompt],
        begun: Sequence[str],
        temperature: float,
        top_p: float,
        on_event: OnEvent | None,
    ) -> list[Response]:
        heads = [self._begun(p.label_set, text) for p, text in zip(prompts, begun, strict=True)]
        whole = [ask.max_tokens or self._sampling.max_tokens for ask in asks]
        limits = [limit - len(head) for limit, head in zip(whole, heads, strict=True)]
        settings = SamplingSettings(
            max_new_tokens=max(limits),
            temperature=temperature,
            top_p=top_p,
            token_budget=self._evaluation.token_budget,
            no_repeat_ngram=0 if self._constrained else self._evaluation.no_repeat_ngram,
        )
        requests, formats, writers = [], [], []
        for n, ask, prompt, limit, head in zip(numbers, asks, prompts, whole, heads, strict=True):
            said = messages(prompt, self._prompt.reasoning)
            limited = None
            if self._constrained:
                limited = self._format(prompt.label_set).limited(limit, ask.reply_tokens, head)
            # Prompts that begin with the same turn share their cache. Sharing the instructions among all
            # prompts makes trees too wide: measured, a quarter slower.
            share, ids = prompt.history[0], [*self._reader.encode(said), *head]
            requests.append(Request(ids, 1, derive(self._seed(ask), str(said)), share, limited))
            formats.append(limited)
            writers.append(EventWriter(n, prompt.label_set, on_event, limited, ask.stop))

        def on_token(request: int, copy: int, ids: Sequence[int]) -> bool:
            writer = writers[request]
            if (on_event is not None or writer.stops) and not writer.go_on(
                begun[request] + self._reader.decode(ids)
            ):
                return False
            return len(ids) < limits[request]

        with self._lock:
            sampled = self._sampler.generate(requests, settings, on_token=on_token)
        responses = []
        for prompt, text, request, limited, writer, (sample,) in zip(
            prompts, begun, requests, formats, writers, sampled, strict=True
        ):
            response = response_of(prompt, text + sample.text, sample.finished, writer)
            # What an answer goes on with counts where it was written, and its prompt with it.
            tokens = (0 if text else len(request.prompt_ids), len(sample.token_ids))
            cut = limited is not None and limited.cut and not response.stop
            responses.append(replace(response, tokens=tokens, cut=cut))
        return responses if any(begun) else self._with_probabilities(prompts, requests, formats, responses)

    def _with_probabilities(
        self,
        prompts: Sequence[Prompt],
        requests: Sequence[Request],
        formats: Sequence[LimitedFormat | None],
        responses: Sequence[Response],
    ) -> list[Response]:
        """Responses with probabilities in place of the written weights.

        If those seen while an answer was written do not tell the labels apart, there is one more forward pass
        for each label set.
        """
        found = list(responses)
        unseen: dict[LabelSet, list[int]] = {}
        for n, (prompt, limited, r) in enumerate(zip(prompts, formats, responses, strict=True)):
            if limited is None or r.failure is not None:
                continue
            heard, felt = (limited.probabilities(field) for field in "ES")
            if heard is None or felt is None:
                unseen.setdefault(prompt.label_set, []).append(n)
            else:
                found[n] = _sure(r, heard, felt)
        for labels, members in unseen.items():
            places = [
                (str(n), requests[n].prompt_ids, up_to(responses[n].text, field))
                for n in members
                for field in "ES"
            ]
            read = iter(self._probabilities(places, labels))
            for n in members:
                found[n] = _sure(responses[n], next(read), next(read))
        return found


def _sure(r: Response, heard: EmotionDistribution, felt: EmotionDistribution) -> Response:
    return replace(r, heard=r.heard.with_probabilities(heard), felt=r.felt.with_probabilities(felt))
