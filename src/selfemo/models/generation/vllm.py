"""Sampling by vLLM: a `Sampler` over token ids, whether vLLM runs in this process or is a server.

What differs between the two is a `TokenEngine` (vllm_here.py, vllm_server.py): it completes token ids and
tells log-probabilities. All else is here: when a completion ends, lines, and how labels are read.

Departures from local.py: equal seeds give equal completions only where the rest of the batch is the same,
since the same numbers are added in another order in another batch; the entropy of a token is that of the one
draw, -log p, whose mean is the entropy; labels are read in the precision that vLLM computes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from selfemo.config import ModelConfig
from selfemo.errors import EngineError, UnsupportedError
from selfemo.method.channel import ChannelScores
from selfemo.method.types import EmotionDistribution, LabelSet, RawCompletion
from selfemo.models.generation.branches import Branches
from selfemo.models.generation.channel_scores import channel_scores
from selfemo.models.generation.label_scores import read_labels
from selfemo.models.generation.local import OnToken
from selfemo.models.generation.no_repeat import constraint_of
from selfemo.models.generation.requests import Constraint, Request, SamplingSettings
from selfemo.models.generation.texts import Texts
from selfemo.models.policy import Encoder
from selfemo.models.sampler import ChannelPlace, LabelPlace
from selfemo.models.tokenizers import load_tokenizer
from selfemo.seeds import derive

MOST_TOKENS = 128
"""Tokens whose log-probability one question may ask for, by vLLM's own limit."""


@dataclass(frozen=True)
class TokenRequest:
    """Token ids to complete `n` times, each time by at most `limit` tokens.

    Attributes:
        seed: of the first completion; the k-th has seed + k.
        constraint: of the one completion; it is told each token but the last.
        request, copy: what it belongs to, for the caller.
    """

    ids: Sequence[int]
    n: int
    seed: int
    limit: int
    constraint: Constraint | None = None
    request: int = 0
    copy: int = 0


@dataclass(frozen=True)
class Tokens:
    """A completion: token ids with what ended it, their log-probabilities, and whether such a token did."""

    ids: list[int]
    logprobs: list[float]
    stopped: bool


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn. Greedy decoding (temperature 0) tells the log-probabilities of temperature 1.

    Attributes:
        stop: the tokens that end a completion.
    """

    temperature: float
    top_p: float
    stop: Sequence[int]


class TokenEngine(Protocol):
    """Something that completes token ids.

    Attributes:
        context: most tokens of a prompt and its completion.
        chunk: as of `Sampler`.
    """

    @property
    def context(self) -> int: ...

    @property
    def chunk(self) -> int: ...

    def complete(
        self,
        requests: Sequence[TokenRequest],
        draw: Draw,
        on_done: Callable[[int], None] | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[Tokens]]:
        """The completions of each request; `on_token` as of local.py, for requests of one completion."""

    def next_logp(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """The log-probability (nats) of each of some tokens (at most MOST_TOKENS) as each prompt's next."""

    def token_logp(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[float]]:
        """The log-probability (nats) of each token of each sequence, from its start on."""

    def load(self, weights: str) -> None:
        """As of `Sampler`."""

    def close(self) -> None:
        """End what it holds open."""


class VllmSampler(Texts):
    """vLLM as a `Sampler`.

    Args:
        reader: the tokenizer of the model that the engine has.
    """

    def __init__(self, reader: Encoder, engine: TokenEngine):
        self.reader, self.engine = reader, engine

    @property
    def chunk(self) -> int:
        return self.engine.chunk

    @cached_property
    def _line_tokens(self) -> list[int]:
        """The tokens that hold a line end."""
        return [i for i, n in enumerate(self.reader.line_ends) if n]

    def generate(
        self,
        requests: Sequence[Request],
        settings: SamplingSettings,
        on_done: Callable[[int], None] | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[RawCompletion]]:
        """See `Sampler.generate`; a completion that `on_token` ends is unfinished.

        Raises:
            EngineError: a prompt leaves no room for a token.
            UnsupportedError: something that the engine cannot do.
        """
        if on_token and settings.max_lines > 1:
            raise UnsupportedError("vllm cannot tell tokens of completions that end after several lines")
        for r in requests:
            self._must_hold(len(r.prompt_ids), 1)
        found: list[list[RawCompletion | None]] = [[None] * r.n for r in requests]
        apart = on_token is not None
        parts = [p for i, r in enumerate(requests) for p in self._parts(i, r, settings, apart)]
        stop = sorted(self.reader.end_ids)
        if settings.max_lines:
            stop = sorted({*stop, *self._line_tokens})
        draw = Draw(settings.temperature, settings.top_p, stop)
        begun: dict[tuple[int, int], RawCompletion] = {}
        while parts:
            # A line end stops a completion; where more lines may follow, it goes on as a prompt.
            again = []
            for part, drawn in zip(parts, self.engine.complete(parts, draw, None, on_token), strict=True):
                for copy, tokens in enumerate(drawn, part.copy):
                    key = part.request, copy
                    raw = self._raw(tokens, settings)
                    whole = begun[key].then(raw) if key in begun else raw
                    going = self._goes_on(len(requests[part.request].prompt_ids), whole, settings)
                    if not going:
                        text, ended = self.decode(whole.token_ids), whole.finished and going is None
                        found[part.request][copy] = replace(whole, text=text, finished=ended)
                        continue
                    begun[key] = whole
                    if part.constraint is not None:
                        part.constraint.take(whole.token_ids[-1])
                    request = requests[part.request]
                    later = self._later(part.request, copy, request, whole, going)
                    again.append(replace(later, constraint=part.constraint))
            done = sum(part.n for part in parts) - len(again)
            if on_done and done:
                on_done(done)
            parts = again
        groups = [[raw for raw in group if raw is not None] for group in found]
        return [group * (r.n if len(group) < r.n else 1) for group, r in zip(groups, requests, strict=True)]

    def _parts(self, i: int, request: Request, settings: SamplingSettings, apart: bool) -> list[TokenRequest]:
        limit = self._limit(len(request.prompt_ids), settings)
        seed = request.seed % (1 << 62)  # what vLLM takes, with room for the copies
        # vLLM refuses several greedy completions of a prompt, which are one.
        n = request.n if settings.temperature else min(1, request.n)
        whole = TokenRequest(request.prompt_ids, n, seed, limit, request=i)
        if not request.constraints and not settings.no_repeat_ngram and not apart:
            return [whole]
        # What a constraint allows differs between copies, so each has its own.
        return [
            replace(
                whole, n=1, seed=seed + k, copy=k, constraint=constraint_of(request, settings, self.reader)
            )
            for k in range(n)
        ]

    def _later(self, i: int, copy: int, request: Request, written: RawCompletion, limit: int) -> TokenRequest:
        """The request that goes on behind whole lines."""
        seed = derive(request.seed, copy, len(written.token_ids)) % (1 << 62)
        ids = [*request.prompt_ids, *written.token_ids]
        return TokenRequest(ids, 1, seed, limit, request=i, copy=copy)

    def _goes_on(self, prompt: int, written: RawCompletion, settings: SamplingSettings) -> int | None:
        """How many tokens may follow a completion that stopped; None where it has ended by itself."""
        left = max(0, self._limit(prompt, settings) - len(written.token_ids))
        if not settings.max_lines or not written.finished or written.token_ids[-1] in self.reader.end_ids:
            return None
        lines = int(self.reader.line_ends[list(written.token_ids)].sum())
        return left if lines < settings.max_lines else None

    def _raw(self, tokens: Tokens, settings: SamplingSettings) -> RawCompletion:
        drawn = settings.temperature > 0
        entropies = tuple(-lp if drawn else math.nan for lp in tokens.logprobs)
        return RawCompletion("", tuple(tokens.ids), tuple(tokens.logprobs), entropies, tokens.stopped)

    def _limit(self, prompt: int, settings: SamplingSettings) -> int:
        return min(settings.max_new_tokens, self.engine.context - prompt)

    def _must_hold(self, tokens: int, more: int = 0) -> None:
        if tokens + more > self.engine.context:
            raise EngineError(
                f"a prompt of {tokens} tokens leaves no room in vLLM's context of {self.engine.context}; "
                "lower prompt.max_tokens, or give vLLM a longer context (a server: --max-model-len)"
            )

    def label_probabilities(
        self, places: Sequence[LabelPlace], labels: LabelSet
    ) -> list[EmotionDistribution]:
        return read_labels(self.reader, places, labels, self._by_next)

    def channel_scores(self, places: Sequence[ChannelPlace], labels: LabelSet) -> list[ChannelScores]:
        return channel_scores(self.reader, places, labels, self._by_sequence)

    def load(self, weights: str) -> None:
        reader = load_tokenizer(weights)
        self.engine.load(weights)
        self.reader = reader
        self.__dict__.pop("_line_tokens", None)

    def close(self) -> None:
        """End what the engine holds open."""
        self.engine.close()

    def _by_next(self, places: Sequence[Branches], starts: Sequence[int]) -> list[list[list[float]]]:
        """Short branches: each distinct beginning of them is asked once for the tokens that may follow."""
        nodes: dict[tuple[int, tuple[int, ...]], dict[int, float]] = {}
        for k, ((_, _, branches), start) in enumerate(zip(places, starts, strict=True)):
            for branch in branches:
                for end in range(start, len(branch)):
                    nodes.setdefault((k, tuple(branch[:end])), {})[branch[end]] = math.nan
        parts = [
            (node, list(children)[low : low + MOST_TOKENS])
            for node, children in nodes.items()
            for low in range(0, len(children), MOST_TOKENS)
        ]
        prompts = [[*places[k][1], *begun] for (k, begun), _ in parts]
        for prompt in prompts:
            self._must_hold(len(prompt), 1)
        read = self.engine.next_logp(prompts, [tokens for _, tokens in parts])
        for (node, tokens), logp in zip(parts, read, strict=True):
            nodes[node].update(zip(tokens, logp, strict=True))
        return [
            [[nodes[k, tuple(b[:end])][b[end]] for end in range(start, len(b))] for b in branches]
            for k, ((_, _, branches), start) in enumerate(zip(places, starts, strict=True))
        ]

    def _by_sequence(self, places: Sequence[Branches], starts: Sequence[int]) -> list[list[list[float]]]:
        """Long branches: each is read as a whole."""
        sequences = [[*ids, *b] for _, ids, branches in places for b in branches]
        for sequence in sequences:
            self._must_hold(len(sequence), 1)
        firsts = [
            len(ids) + start
            for (_, ids, branches), start in zip(places, starts, strict=True)
            for _ in branches
        ]
        read = iter(self.engine.token_logp(sequences, firsts))
        return [[next(read) for _ in branches] for _, _, branches in places]


def open_backend(reference: str, config: ModelConfig) -> VllmSampler:
    """A model reference by vLLM in this process (`vllm_here.open_here`, also for errors)."""
    from selfemo.models.generation.vllm_here import open_here

    return open_here(reference, config)
