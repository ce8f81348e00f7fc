"""Chat questions to an OpenAI-compatible endpoint: retries, rate limits, and faults that no retry mends.

The `openai` client speaks the protocol, `tenacity` repeats, `aiolimiter` keeps the rate. The client's own
retries are off: a 429 must hold back every question to that endpoint, not the one it hit alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from selfemo.config import ModelConfig
from selfemo.errors import EndpointError, UnsupportedError
from selfemo.method.channel import ChannelScores
from selfemo.method.types import EmotionDistribution, LabelSet, RawCompletion
from selfemo.models.generation.chat import Answer, ChatRequest, ExpertSpec, UnansweredError, parse_expert
from selfemo.models.generation.requests import Request, SamplingSettings, first_lines
from selfemo.models.sampler import CHUNK, ChannelPlace, LabelPlace, Message, Sampler

T = TypeVar("T")
FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
LONGEST_RETRY_AFTER = 600.0
_APART, _SPREAD = 0.008, 0.25
"""Seconds between the first requests of an endpoint, and at most between the first and the last of them:
requests that start together are answered together, again and again, and the processor idles in between."""
_DEAD_AFTER = 5
"""Refused connections after which an endpoint that never answered counts as dead."""
_LONGEST_ANSWER = 4_000_000
"""Characters; more than any model writes."""
_FATAL = {
    401: "the key is missing or wrong; put it into the environment variable {key}",
    402: "the account has no credit left",
    403: "the key is not allowed to use it",
    404: "there is no such model or path; check model= and the URL (it ends in /v1 for most servers)",
    405: "the URL is not that of a chat endpoint (it ends in /v1 for most servers)",
}
_CHARS_PER_TOKEN = 4


def estimate_tokens(request: ChatRequest) -> int:
    """About how many tokens a question costs, its answer included (for limits and dry runs)."""
    return sum(len(m["content"]) for m in request.messages) // _CHARS_PER_TOKEN + request.max_tokens


def retry_after(headers: Any) -> float | None:
    """Seconds that a response asks to wait: Retry-After as a number or a date, or retry-after-ms."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        seconds = -1.0
        with contextlib.suppress(ValueError, TypeError):
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        with contextlib.suppress(ValueError):
            seconds = float(value) * unit
        if 0 <= seconds < float("inf"):
            return min(seconds, LONGEST_RETRY_AFTER)
    return None


class Endpoint:
    """One endpoint as a `Chat`.

    Raises:
        MissingExtraError: the client libraries are not installed.
        ConfigError: the key's environment variable is named and not set.
    """

    def __init__(self, spec: ExpertSpec):
        spec.check()
        import aiolimiter
        import openai
        import tenacity

        self.spec, self.name, self.model = spec, spec.name, spec.model
        self.concurrency = spec.concurrency
        self._openai = openai
        # The client would send the user's OpenAI organisation to whatever endpoint this is.
        private = {h: openai.Omit() for h in ("OpenAI-Organization", "OpenAI-Project")}
        self.client = openai.AsyncOpenAI(
            base_url=spec.url,
            api_key=spec.read_key(),
            max_retries=0,
            timeout=spec.timeout,
            default_headers=private,  # type: ignore[arg-type]
        )
        self._requests = aiolimiter.AsyncLimiter(1, 60 / spec.rpm) if spec.rpm else None
        self._tokens = aiolimiter.AsyncLimiter(spec.tpm, 60) if spec.tpm else None
        self._resume_at = self._spread_until = 0.0
        self._to_spread = spec.concurrency
        self._answered = False
        self._limit_field = "max_tokens"
        backoff = tenacity.wait_exponential_jitter(multiplier=FIRST_WAIT, max=LONGEST_WAIT, jitter=FIRST_WAIT)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            # A 429 with Retry-After is waited for in `_pause`, together with all other questions.
            return 0.0 if getattr(error, "told", False) else backoff(state)

        self._retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(spec.attempts),
            wait=wait,
            retry=tenacity.retry_if_exception_type(_AgainError),
            reraise=True,
        )

    async def close(self) -> None:
        await self.client.close()

    async def ask(self, request: ChatRequest, on_text: Callable[[str], bool] | None = None) -> Answer:
        """See `Chat.ask`; `on_text` gets all text so far as it is written, and ends the answer by False.

        With it, a broken connection is tried again only before the first text.
        """

        async def once() -> Answer:
            return await (self._streamed(request, on_text) if on_text else self._whole(request))

        return await self.attempt(once, estimate_tokens(request))

    async def attempt(self, once: Callable[[], Awaitable[T]], tokens: int) -> T:
        """What `once` gives, which asks the endpoint by `client`; tried again where that may help.

        Args:
            tokens: that it costs, by an estimate.

        Raises: as `Chat.ask`.
        """
        refused = 0

        async def one() -> T:
            nonlocal refused
            try:
                return await self._once(once, tokens)
            except _AgainError as e:
                refused += e.refused
                if refused >= _DEAD_AFTER and not self._answered:
                    raise EndpointError(
                        f"expert {self.name}: nothing answers at {self.spec.url} ({e}); start the "
                        "server or mend the URL, then run the same command again"
                    ) from None
                raise

        try:
            # A copy: one AsyncRetrying object holds the statistics of one call.
            return await self._retrying.copy()(one)
        except _AgainError as e:
            raise UnansweredError("unreachable", f"{e} ({self.spec.attempts} attempts)") from None

    async def _pause(self, tokens: int) -> None:
        if self._to_spread:
            self._to_spread -= 1
            wait = max(0.0, self._spread_until - time.monotonic())
            self._spread_until = time.monotonic() + wait + min(_APART, _SPREAD / self.concurrency)
            await asyncio.sleep(wait)
        while (left := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(left)
        if self._requests:
            await self._requests.acquire()
        if self._tokens:
            await self._tokens.acquire(min(tokens, self.spec.tpm))

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        # The client tries every message against each of its types of messages, for a quarter of the time that
        # a call takes; extra_body is sent as it is.
        body: dict[str, Any] = {
            "model": self.model,
            "messages": (),
            "extra_body": {"messages": list(map(dict, request.messages))},
            "temperature": self.spec.temperature if request.temperature is None else request.temperature,
            self._limit_field: request.max_tokens,
        }
        if self.spec.json_mode == "object":
            body["response_format"] = {"type": "json_object"}
        elif self.spec.json_mode == "schema":
            schema = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    async def _streamed(self, request: ChatRequest, on_text: Callable[[str], bool]) -> Answer:
        text, usage, streams = "", None, False
        chunks = await self.client.chat.completions.create(**self._body(request), stream=True)
        try:
            async for chunk in chunks:
                streams = True
                usage = getattr(chunk, "usage", None) or usage
                new = (chunk.choices[0].delta.content or "") if chunk.choices else ""
                text += new
                if new and not on_text(text):
                    break
        except self._openai.OpenAIError as e:
            if not text:
                raise
            raise UnansweredError("unreachable", f"broke off in its answer: {e}") from None
        finally:
            await chunks.close()
        if not streams:  # some servers know no streams and send the answer as a whole
            whole = await self._whole(request)
            on_text(whole.text)
            return whole
        return Answer(text, *_used(usage))

    async def _whole(self, request: ChatRequest) -> Answer:
        done = await self.client.chat.completions.create(**self._body(request))
        return Answer(_storable(done.choices[0].message.content or ""), *_used(done.usage))

    async def _once(self, once: Callable[[], Awaitable[T]], tokens: int) -> T:
        openai = self._openai
        await self._pause(tokens)
        try:
            answer = await once()
            self._answered = True
            return answer
        except openai.APITimeoutError:
            raise _AgainError(f"no answer within {self.spec.timeout:g} s") from None
        except openai.APIConnectionError as e:
            # Only the innermost error tells a refused connection from one that broke off.
            cause = str(e.__cause__ or e) or type(e.__cause__ or e).__name__
            raise _AgainError(cause, refused=type(e.__cause__).__name__.startswith("Connect")) from None
        except openai.APIStatusError as e:
            raise self._of_status(e) from None
        except (
            ValueError, AttributeError, IndexError, TypeError, RecursionError, openai.OpenAIError,
        ) as e:  # fmt: skip
            # A body cut short, JSON of another form than a chat completion's, or nested without end.
            raise _AgainError(f"the response is no chat completion ({type(e).__name__})") from None

    def _of_status(self, e: Any) -> Exception:
        status, said = e.status_code, str(e.message)[:300]
        if status == 429 and e.code == "insufficient_quota":
            return EndpointError(f"expert {self.name}: {said}; the account has no credit left")
        if status in (408, 409, 425, 429) or status >= 500:
            told = retry_after(e.response.headers)
            if told is not None:
                self._resume_at = max(self._resume_at, time.monotonic() + told)
            return _AgainError(f"HTTP {status}", told=told is not None)
        if status in _FATAL:
            what = _FATAL[status].format(key=self.spec.key_variable)
            return EndpointError(f"expert {self.name} ({self.spec.url}): HTTP {status}: {what}")
        if status == 400 and e.param == "max_tokens" and self._limit_field == "max_tokens":
            # Newer models of some providers know the limit under this name alone.
            self._limit_field = "max_completion_tokens"
            return _AgainError("the limit goes by another name", told=True)
        return UnansweredError("refused", f"HTTP {status}: {said}")


class EndpointSampler:
    """An endpoint as a `Sampler`: completions alone, and without log-probabilities.

    Methods may be called from several threads, inside an event loop or not; `close` ends its own loop. The
    temperature of `spec` is not used: settings have one.
    """

    chunk = CHUNK

    def __init__(self, spec: ExpertSpec):
        self.spec = spec
        self._loop = Loop()

    def _refused(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"endpoint {self.spec.name} cannot {what}; use a model on this machine")

    def encode(self, messages: list[Message]) -> Sequence[int]:
        """As many numbers as the chat has tokens by an estimate; `Request.messages` carries the chat."""
        return range(estimate_tokens(ChatRequest(messages, {}, 0)))

    def encode_text(self, text: str) -> Sequence[int]:
        raise self._refused("go on behind a text that it is given")

    def decode(self, ids: Sequence[int]) -> str:
        raise self._refused("read token ids")

    def generate(
        self,
        requests: Sequence[Request],
        settings: SamplingSettings,
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[RawCompletion]]:
        """See `Sampler.generate`. Each completion is a question of its own; seeds are not sent."""
        if settings.no_repeat_ngram:
            raise self._refused("keep n-grams from repeating (no_repeat_ngram)")
        if settings.top_p != 1:
            raise self._refused("cut the distribution (top_p)")
        questions = []
        for request in requests:
            if request.constraints is not None:
                raise self._refused("hold completions to constraints")
            if not request.messages:
                raise self._refused("complete token ids, only chats (Request.messages)")
            question = ChatRequest(
                request.messages, {}, settings.max_new_tokens, temperature=settings.temperature
            )
            questions += [question] * request.n
        samples = []
        for answer in self.answers(questions, on_done=on_done):
            if isinstance(answer, UnansweredError):
                raise EndpointError(f"endpoint {self.spec.name} gave no answer: {answer.detail}")
            samples.append(RawCompletion(first_lines(answer.text, settings.max_lines)))
        rest = iter(samples)
        return [list(islice(rest, r.n)) for r in requests]

    def label_probabilities(
        self, places: Sequence[LabelPlace], labels: LabelSet
    ) -> list[EmotionDistribution]:
        raise self._refused("tell the probability of a label")

    def channel_scores(self, places: Sequence[ChannelPlace], labels: LabelSet) -> list[ChannelScores]:
        raise self._refused("tell the probability of a given reply")

    def load(self, weights: str) -> None:
        raise self._refused("load weights")

    def answers(
        self,
        questions: Sequence[ChatRequest],
        on_text: Callable[[int, str], bool] | None = None,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Answer | UnansweredError]:
        """The answer to each question, or the reason why it got none, in order; errors as of `Chat.ask`.

        Args:
            on_text: called with (question, its text so far) as answers arrive; False ends that answer.
            on_done: called with 1 after each answer.
        """
        return self._loop.run(self._ask_all(questions, on_text, on_done)) if questions else []

    async def _ask_all(
        self,
        questions: Sequence[ChatRequest],
        on_text: Callable[[int, str], bool] | None,
        on_done: Callable[[int], None] | None,
    ) -> list[Answer | UnansweredError]:
        async def one(endpoint: Endpoint, n: int, question: ChatRequest) -> Answer | UnansweredError:
            try:
                return await endpoint.ask(question, partial(on_text, n) if on_text else None)
            except UnansweredError as e:
                return e
            finally:
                if on_done:
                    on_done(1)

        return await ask_all(self.spec, [partial(one, n=n, question=q) for n, q in enumerate(questions)])

    def close(self) -> None:
        """End the connection; the next call begins another one."""
        self._loop.close()


async def ask_all(spec: ExpertSpec, questions: Sequence[Callable[[Endpoint], Awaitable[T]]]) -> list[T]:
    """The answers of an endpoint to some questions, as many at once as its `concurrency`."""
    endpoint, slots = Endpoint(spec), asyncio.Semaphore(spec.concurrency)

    async def one(question: Callable[[Endpoint], Awaitable[T]]) -> T:
        async with slots:
            return await question(endpoint)

    tasks = [asyncio.create_task(one(question)) for question in questions]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        # After an error the others would go on by a client that is closed.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await endpoint.close()


class Loop:
    """An event loop in a thread of its own, for callers that have none or are inside another one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
            loop = self._loop
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    def close(self) -> None:
        """End the thread; the next work begins another one."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None


def _storable(text: object) -> str:
    """A text as UTF-8 can hold it (TypeError: no text, or too long); SQLite refuses lone surrogates."""
    if not isinstance(text, str) or len(text) > _LONGEST_ANSWER:
        raise TypeError("content")
    return text.encode("utf-8", "replace").decode()


def _used(usage: Any) -> tuple[int, int]:
    """Tokens of the question and of the answer as the server says them; 0 for anything but a count."""
    counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    asked, answered = (c if isinstance(c, int) and 0 <= c < 2**53 else 0 for c in counts)
    return asked, answered


class _AgainError(Exception):
    """Worth another attempt. `told`: the server said when; `refused`: nothing listens there."""

    def __init__(self, why: str, *, told: bool = False, refused: bool = False):
        super().__init__(why)
        self.told, self.refused = told, refused


def open_backend(reference: str, config: ModelConfig) -> Sampler:
    """`NAME=URL,model=MODEL[,...]`; the settings of models are not used. With `tokenizer=`, by token ids."""
    spec = parse_expert(reference)
    if spec.tokenizer:
        from selfemo.models.generation.vllm_server import open_server

        return open_server(spec)
    return EndpointSampler(spec)
