"""A running vLLM server as a `TokenEngine`: its /v1/completions by token ids.

So a model that is served gets the very prompts that a model in this process gets, and tells the probabilities
of labels. The server must have been started from weights with the tokenizer that is named; the first call
checks that. Constraints and streams stay with the other backends.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar

from selfemo.errors import EndpointError, UnsupportedError
from selfemo.models.generation.chat import ExpertSpec, UnansweredError
from selfemo.models.generation.endpoint import Endpoint, Loop, ask_all
from selfemo.models.generation.local import OnToken
from selfemo.models.generation.vllm import Draw, TokenRequest, Tokens, VllmSampler
from selfemo.models.policy import Encoder
from selfemo.models.sampler import CHUNK
from selfemo.models.tokenizers import load_tokenizer

T = TypeVar("T")
LEAST_VERSION = "0.24"
"""The oldest server that gives token ids, as far as it was tried."""
LABELS_VERSION = "0.32"
"""The oldest server that tells the log-probability of given tokens, as far as it was tried."""
_PROBE = "E: surprise\nS: joy\nR: It's you! Çok güzel, 8 o'clock?"
_READ = {"max_tokens": 1, "temperature": 0}
_PLAIN = {
    "top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0,
}  # fmt: skip
"""What a server would take from the model's generation_config.json if it were not told."""


class VllmServer:
    """A `TokenEngine` at an endpoint; nothing is sent before the first call.

    Args:
        reader: the tokenizer of the model that it serves.

    All methods raise EndpointError: nothing answers, there is no such model, the server is no vLLM or too
    old, or it has another tokenizer.
    """

    def __init__(self, spec: ExpertSpec, reader: Encoder):
        self.spec, self.reader = spec, reader
        self._loop = Loop()

    @property
    def chunk(self) -> int:
        return max(CHUNK, self.spec.concurrency)

    @cached_property
    def context(self) -> int:
        """Most tokens of a sequence, as the server says; known after a check that it is the right one."""
        (served,) = self._ask([lambda endpoint: endpoint.attempt(endpoint.client.models.list, 0)])
        models = {m.id: m for m in served.data}
        if self.spec.model not in models:
            raise self._wrong(
                f"it serves no {self.spec.model!r}, but {', '.join(sorted(models))}; mend model="
            )
        probe = {"prompt": _PROBE, "add_special_tokens": False, **_READ}
        (answer,) = self._completions([probe])
        theirs, mine = answer.prompt_token_ids, self.reader.plain_ids(_PROBE)
        if list(theirs) != mine:
            raise self._wrong(
                f"it has another tokenizer than {self.spec.tokenizer}: {_PROBE!r} is {len(theirs)} tokens "
                f"there and {len(mine)} here; name the model that is served by tokenizer="
            )
        limit = getattr(models[self.spec.model], "max_model_len", None)
        if not isinstance(limit, int):
            raise self._wrong(
                "it does not say how many tokens it takes (max_model_len); is it a vLLM server?"
            )
        return limit

    def complete(
        self,
        requests: Sequence[TokenRequest],
        draw: Draw,
        on_done: Callable[[int], None] | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[Tokens]]:
        """See `TokenEngine.complete`.

        The server tells log-probabilities before temperature and top_p, so those of other draws are NaN.
        """
        if on_token or any(r.constraint for r in requests):
            raise UnsupportedError(
                f"vLLM server {self.spec.name} cannot be held to constraints or be followed token by token; "
                "use a model on this machine"
            )
        asked = [
            {
                "prompt": list(r.ids), "n": r.n, "seed": r.seed, "max_tokens": r.limit,
                "temperature": draw.temperature, "top_p": draw.top_p, "stop_token_ids": list(draw.stop),
                "ignore_eos": True, "logprobs": 0, **_PLAIN,
            }
            for r in requests
        ]  # fmt: skip
        as_drawn = draw.temperature in (0, 1) and draw.top_p == 1
        found = []
        for r, choices in zip(requests, self._completions(asked, on_done, whole=True), strict=True):
            group: dict[int, Tokens] = {}
            for c in choices:
                ids, told = list(c.token_ids), c.logprobs.token_logprobs
                logp = list(told) if as_drawn else [math.nan] * len(ids)
                group[c.index] = Tokens(ids, logp, c.finish_reason == "stop")
            found.append([group[k] for k in range(r.n)])
        return found

    def next_logp(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """See `TokenEngine.next_logp` (UnsupportedError: the server is too old for it)."""
        asked = [
            {"prompt": list(ids), **_READ, "logprobs": 0, "logprob_token_ids": sorted(set(wanted))}
            for ids, wanted in zip(prompts, tokens, strict=True)
        ]
        found = []
        for wanted, choice in zip(tokens, self._completions(asked), strict=True):
            told = choice.logprobs.top_logprobs[0]
            if any(f"token_id:{t}" not in told for t in wanted):
                raise UnsupportedError(
                    f"vLLM server {self.spec.name} does not tell the log-probability of given tokens; that "
                    f"takes vLLM {LABELS_VERSION} or later"
                )
            found.append([float(told[f"token_id:{t}"]) for t in wanted])
        return found

    def token_logp(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[float]]:
        """See `TokenEngine.token_logp`."""
        asked = [{"prompt": list(s), **_READ, "prompt_logprobs": 0} for s in sequences]
        return [
            [told[str(t)]["logprob"] for t, told in list(zip(s, c.prompt_logprobs, strict=True))[start:]]
            for s, start, c in zip(sequences, starts, self._completions(asked), strict=True)
        ]

    def load(self, weights: str) -> None:
        raise UnsupportedError(
            f"vLLM server {self.spec.name} cannot load weights; use a model on this machine"
        )

    def close(self) -> None:
        """End the connection; the next call begins another one."""
        self._loop.close()

    def _completions(
        self,
        bodies: Sequence[dict[str, Any]],
        on_done: Callable[[int], None] | None = None,
        *,
        whole: bool = False,
    ) -> list[Any]:
        """The first choice of each completion, or with `whole` all of them."""
        answers = self._ask([partial(self._completion, body=body, on_done=on_done) for body in bodies])
        return answers if whole else [choices[0] for choices in answers]

    async def _completion(
        self, endpoint: Endpoint, body: dict[str, Any], on_done: Callable[[int], None] | None
    ) -> list[Any]:
        more = {k: v for k, v in body.items() if k != "prompt"}
        more |= {"return_token_ids": True, "return_tokens_as_token_ids": True}

        async def once() -> Any:
            return await endpoint.client.completions.create(
                model=self.spec.model, prompt=body["prompt"], extra_body=more
            )

        answer = await endpoint.attempt(once, len(body["prompt"]) + body.get("n", 1) * body["max_tokens"])
        if any(getattr(c, "token_ids", None) is None for c in answer.choices):
            raise self._wrong(f"it gives no token ids; that takes a vLLM server, {LEAST_VERSION} or later")
        if on_done:
            on_done(len(answer.choices))
        return list(answer.choices)

    def _ask(self, questions: Sequence[Callable[[Endpoint], Awaitable[T]]]) -> list[T]:
        if not questions:
            return []
        try:
            return self._loop.run(ask_all(self.spec, questions))
        except UnansweredError as e:
            if e.kind == "refused":
                raise self._wrong(f"it refused a question: {e.detail}") from None
            raise EndpointError(
                f"vLLM server {self.spec.name} at {self.spec.url} gave no answer: {e.detail}; start it, "
                "then run the same command again"
            ) from None

    def _wrong(self, what: str) -> EndpointError:
        return EndpointError(f"vLLM server {self.spec.name} at {self.spec.url}: {what}")


def open_server(spec: ExpertSpec) -> VllmSampler:
    """The model at an endpoint whose `tokenizer` is named (EngineError: see `load_tokenizer`)."""
    reader = load_tokenizer(spec.tokenizer)
    return VllmSampler(reader, VllmServer(spec, reader))
