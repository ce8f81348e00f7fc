"""Emotions of a conversation, and a character's answer to it, in a few lines of Python.

    from selfemo import SelfEmo

    model = SelfEmo("runs/my-run")
    model.recognise([("Ann", "We won!"), ("Bo", "I can't believe it!")])
    model.respond([("Ann", "We won!")], persona="Dry, loyal, hides it when he is moved.")

What `confidence` is [ours]. The paper's model writes weights, and mostly writes one lone emotion: a weight
of 1 says nothing of how sure it is. So for a model on this machine the distribution is the probability
that the model gives to each label of the set in the place where it names the emotion, from one forward
pass over all labels as a prefix tree, normalised over the set; the confidence is that of the emotion
named. While an answer is written it is read off at the token where a label begins. Behind an endpoint, and
without constrained decoding, there are the written weights alone.

With `constrained` (the default for a model on this machine) the answer is held to the format
(generation/own_format.py), so it always parses, also under a token limit. Training never does that.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfemo.config import load
from selfemo.errors import ConfigError, DataError
from selfemo.method.parsing import field_spans, parse, parse_emotions, parse_recognition
from selfemo.method.prompts import clean, fit, messages, prompt_at
from selfemo.method.types import (
    LABEL_SETS,
    Completion,
    Conversation,
    EmotionDistribution,
    LabelSet,
    ParseFailure,
    Persona,
    Prompt,
    Utterance,
)
from selfemo.models.generation.chat import (
    Answer,
    ChatRequest,
    ExpertSpec,
    UnansweredError,
    endpoint_of,
)
from selfemo.models.references import run_of
from selfemo.runs.settings import settings_for
from selfemo.runs.store import STORE_FILE, Store
from selfemo.seeds import derive

if TYPE_CHECKING:
    from selfemo.models.generation.own_format import LimitedFormat, OwnFormat
    from selfemo.models.policy import Policy

Turns = Conversation | Sequence[tuple[str, str]] | Sequence[Mapping[str, str]] | Sequence[Utterance]
"""A conversation as it may be given: (speaker, text) pairs, {"speaker": ..., "text": ...}, or typed."""

TOO_LONG = "too_long"
"""Failure of a prompt whose last utterance and persona alone pass the model's length limit."""
UNANSWERED = "unanswered"
"""Failure of a question that an endpoint did not answer."""
STOPPED = "stopped"
"""Failure of an answer that its reader did not wait for."""
_FORMATS_KEPT = 64
_ANSWER_TOKENS = 128
_CHARS_PER_TOKEN = 12
"""Turns further back than so many characters for each token of the limit cannot be in a prompt."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One emotion that the model read or declared.

    Attributes:
        emotion: its name; None where the model's answer could not be read (`failure`).
        confidence: weight of `emotion` in `distribution`; 0 where there is none.
        distribution: probability of each label (see the module's docstring), or the written weights.
        written: the weights as the model wrote them; None where it was not asked to write.
        failure: why there is no emotion: a `FailureKind`, "too_long", "unanswered" or "stopped".
    """

    emotion: str | None
    confidence: float = 0.0
    distribution: EmotionDistribution | None = None
    written: EmotionDistribution | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Recognition(Reading):
    """The emotion of one utterance: `turn` is its place in the conversation, from 0."""

    turn: int = 0
    speaker: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """What a character reads, feels and says.

    Attributes:
        speaker: the character.
        heard: the emotion of the last utterance.
        felt: the character's own.
        reply: what it says; "" where the answer could not be read (`failure`).
        reasoning: what it thought first, where the model was trained to.
        text: the answer as the model wrote it.
        tokens: (prompt, written), where known.
    """

    speaker: str
    heard: Reading
    felt: Reading
    reply: str
    reasoning: str = ""
    text: str = ""
    failure: str | None = None
    tokens: tuple[int, int] = (0, 0)

    @property
    def emotion(self) -> str | None:
        return self.heard.emotion

    @property
    def self_emotion(self) -> str | None:
        return self.felt.emotion


@dataclass(frozen=True, slots=True)
class Emotion:
    """Stream event: the emotion of the last utterance is written.

    Its distribution is that of the whole response, but where two labels begin with the same
    token: those are told apart at the end, and here are the weights as written.
    """

    reading: Reading
    kind: Literal["emotion"] = "emotion"


@dataclass(frozen=True, slots=True)
class SelfEmotion:
    """Stream event: the character's own emotion is written."""

    reading: Reading
    kind: Literal["self_emotion"] = "self_emotion"


@dataclass(frozen=True, slots=True)
class ReplyDelta:
    """Stream event: the reply goes on with `text`."""

    text: str
    kind: Literal["reply"] = "reply"


@dataclass(frozen=True, slots=True)
class Done:
    """Last stream event: the whole response."""

    response: Response
    kind: Literal["done"] = "done"


Event = Emotion | SelfEmotion | ReplyDelta | Done


@dataclass(frozen=True, slots=True)
class Ask:
    """One question of a batch: who answers what, and with which sampling.

    Attributes:
        conversation: `Turns`.
        persona: description of the character, or a `Persona` (whose speaker is the character's name).
        speaker: the character's name; "" takes the persona's, or the latest other speaker.
        scene, labels: see `SelfEmo.respond`.
        max_tokens: of the whole answer; 0 takes the model's setting.
        temperature, top_p, seed: None takes the model's.
    """

    conversation: Turns
    persona: Persona | str = ""
    speaker: str = ""
    scene: str = ""
    labels: LabelSet | Sequence[str] | None = None
    max_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


def label_set_of(given: LabelSet | Sequence[str]) -> LabelSet:
    """A label set from names.

    Raises:
        ConfigError: fewer than two names, two alike, or one that is no text.
    """
    if isinstance(given, LabelSet):
        return given
    if isinstance(given, str):
        if given not in LABEL_SETS:
            raise ConfigError(
                f"no label set {given!r}; there are {', '.join(LABEL_SETS)}, or give a list of names"
            )
        return LABEL_SETS[given]
    names = tuple(given)
    if not all(isinstance(n, str) for n in names):
        raise ConfigError("labels must be a list of emotion names")
    names = tuple(n.strip().lower() for n in names)
    known = next((s for s in LABEL_SETS.values() if s.labels == names), None)
    try:
        return known or LabelSet("own:" + ",".join(names), names)
    except ValueError as e:
        raise ConfigError(str(e)) from None


def conversation_of(given: Turns, labels: LabelSet, scene: str = "") -> Conversation:
    """A typed conversation of what was given.

    Raises:
        DataError: it has no turn, or a turn without a speaker or text; the message names the turn.
    """
    if isinstance(given, Conversation):
        return replace(
            given, label_set=labels, scenario=scene or given.scenario
        )  # the labels asked for, whatever it was labelled with
    if isinstance(given, str):
        raise DataError(
            "a conversation is a list of (speaker, text), not one text; for a single utterance give "
            '[("Ann", "...")]'
        )
    turns = []
    for n, turn in enumerate(given):
        if isinstance(turn, Utterance):
            speaker, text = turn.speaker, turn.text
        elif isinstance(turn, Mapping):
            if not {"speaker", "text"} <= turn.keys():
                raise DataError(f"turn {n}: it needs the keys speaker and text")
            speaker, text = turn["speaker"], turn["text"]
        elif isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2:
            speaker, text = turn
        else:
            raise DataError(f"turn {n}: write it as (speaker, text)")
        if not isinstance(speaker, str) or not isinstance(text, str):
            raise DataError(f"turn {n}: speaker and text must be text")
        speaker, text = clean(speaker), clean(text)
        if not speaker or not text:
            raise DataError(f"turn {n}: its {'text' if speaker else 'speaker'} is empty")
        turns.append(Utterance(speaker, text))
    if not turns:
        raise DataError("the conversation is empty: give at least one (speaker, text)")
    return Conversation("given", "given", "test", tuple(turns), labels, clean(scene))


def _run_labels(run: Path) -> LabelSet | None:
    """The label set that most prompts of a run have."""
    if not (run / STORE_FILE).exists():
        return None
    with Store(run / STORE_FILE, read_only=True) as store:
        return store.main_label_set()


class SelfEmo:
    """A model that reads emotions and answers with them.

    Args:
        model: a run folder (its last checkpoint), a model folder, an id (`builtin:smollm2-135m`, a hub
            id), or an endpoint as `NAME=URL,model=MODEL[,key=ENV_VARIABLE,...]`.
        constrained: hold answers to the format, so that each one parses (local models only).
        labels: label set by default; else the run's, else MELD's seven.
        temperature: 0 is greedy.
        max_tokens: most tokens of an answer; 0 takes `evaluation.max_new_tokens` of the run or the
            settings, and 128 for a model without either.
        files, overrides: settings as of `selfemo --config` and `--set`.

    Methods may be called from several threads; a local model answers one call at a time.

    Raises:
        EngineError, MissingExtraError: the model cannot be loaded.
        ConfigError: a setting or label that is not one.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        constrained: bool = True,
        labels: LabelSet | Sequence[str] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int = 0,
        seed: int = 0,
        files: Sequence[Path | str] = (),
        overrides: Sequence[str] = (),
    ):
        if temperature < 0 or not 0 < top_p <= 1 or max_tokens < 0:
            raise ConfigError(
                "temperature and max_tokens are 0 or more, top_p is above 0, at most 1"
            )
        self.name = str(model)
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        self.spec: ExpertSpec | None = endpoint_of(self.name)
        self.policy: Policy | None = None
        known: LabelSet | None = None
        run: Path | None = None
        if self.spec is None:
            self.config, checkpoint = settings_for(
                self.name, ["sample"], [Path(f) for f in files], overrides
            )
            run = run_of(checkpoint)
            known = _run_labels(run) if run is not None else None

            from selfemo.models.loading import load_policy

            self.policy = load_policy(checkpoint, self.config.model.device, self.config.model.dtype)
        else:
            self.config = load(files, overrides)
            if ",temperature=" not in self.name.replace(" ", ""):
                self.spec = self.spec.model_copy(update={"temperature": temperature})
        self.constrained = constrained and self.spec is None
        self.labels = label_set_of(labels) if labels is not None else known or LABEL_SETS["meld"]
        plain = self.spec is None and run is None and not files
        own = _ANSWER_TOKENS if plain else self.config.evaluation.max_new_tokens
        self.max_tokens = max_tokens or own
        self._formats: dict[LabelSet, OwnFormat] = {}
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        if self.constrained:
            self._limited(self.labels, self.max_tokens)

    def close(self) -> None:
        """End the connection to an endpoint; a local model needs no end."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def recognise(
        self,
        conversation: Turns,
        *,
        turns: Literal["all", "last"] = "all",
        scene: str = "",
        labels: LabelSet | Sequence[str] | None = None,
    ) -> list[Recognition]:
        """The emotion of each utterance, or of the last one; nothing later than it is looked at.

        Raises:
            DataError: the conversation is none.
            ConfigError: the labels are none.
            EndpointError: the endpoint cannot be used.
        """
        return self.recognise_many([conversation], turns=turns, scene=scene, labels=labels)[0]

    def recognise_many(
        self,
        conversations: Sequence[Turns],
        *,
        turns: Literal["all", "last"] = "all",
        scene: str = "",
        labels: LabelSet | Sequence[str] | None = None,
    ) -> list[list[Recognition]]:
        """`recognise` of several conversations in one batch."""
        known = self.check_labels(labels)
        typed = [conversation_of(c, known, scene) for c in conversations]
        return self.recognise_turns(
            [(c, range(0 if turns == "all" else len(c.turns) - 1, len(c.turns))) for c in typed]
        )

    def recognise_turns(
        self, asked: Sequence[tuple[Conversation, Sequence[int]]]
    ) -> list[list[Recognition]]:
        """The emotions of chosen turns, each over its conversation's own label set, in one batch."""
        prompts = [
            self._prompt(replace(c, id=f"{n}"), turn)
            for n, (c, turns) in enumerate(asked)
            for turn in turns
        ]
        places: dict[LabelSet, list[int]] = {}
        for n, prompt in enumerate(prompts):
            places.setdefault(prompt.label_set, []).append(n)
        found: dict[int, Reading] = {}
        for labels, members in places.items():
            self.check_labels(labels)
            readings = self._read([prompts[n] for n in members], labels)
            found.update(zip(members, readings, strict=True))
        readings_in_order = (found[n] for n in range(len(prompts)))
        return [
            [_recognition(next(readings_in_order), c, turn) for turn in turns] for c, turns in asked
        ]

    def respond(
        self,
        conversation: Turns,
        persona: Persona | str = "",
        *,
        speaker: str = "",
        scene: str = "",
        labels: LabelSet | Sequence[str] | None = None,
        max_tokens: int = 0,
        seed: int | None = None,
    ) -> Response:
        """What a character with this persona hears in the last utterance, feels, and answers.

        Args:
            persona: its description, or a `Persona`.
            speaker: its name; "" takes the persona's, else the latest speaker who is not the last one.
            scene: where the conversation takes place.
            max_tokens: most tokens of the whole answer; 0 takes the model's setting.

        Raises: see `recognise`; ConfigError also where `max_tokens` cannot hold a whole answer.
        """
        ask = Ask(conversation, persona, speaker, scene, labels, max_tokens, seed=seed)
        return self.respond_many([ask])[0]

    def respond_many(
        self, asks: Sequence[Ask], on_event: Callable[[int, Event], bool] | None = None
    ) -> list[Response]:
        """`respond` to several questions in one batch.

        Args:
            on_event: called with (question, event) as answers are written; where it returns False that
                answer ends there, with the failure "stopped".
        """
        prepared = [self.prepare(ask) for ask in asks]
        if self.policy is None:
            return self._ask_endpoint(asks, prepared, on_event)
        return self._generate(asks, prepared, on_event)

    def stream(
        self,
        conversation: Turns,
        persona: Persona | str = "",
        *,
        speaker: str = "",
        scene: str = "",
        labels: LabelSet | Sequence[str] | None = None,
        max_tokens: int = 0,
        seed: int | None = None,
    ) -> Iterator[Event]:
        """`respond`, as it is written: `Emotion`, `SelfEmotion`, `ReplyDelta`s, `Done`.

        Closing the iterator ends the answer. Raises: see `respond`, before the first event or between two.
        """
        ask = Ask(conversation, persona, speaker, scene, labels, max_tokens, seed=seed)
        self.prepare(ask)  # what is wrong with the question is told here, not in the thread
        events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def put(_: int, event: Event) -> bool:
            events.put(event)
            return not stopped.is_set()

        def work() -> None:
            try:
                self.respond_many([ask], put)
                events.put(None)
            except BaseException as e:
                events.put(e)

        threading.Thread(target=work, daemon=True).start()
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            stopped.set()

    # -- prompts ------------------------------------------------------------------------------------

    def least_tokens(self) -> int:
        """The smallest token limit that can hold an answer; 0 where answers are not constrained."""
        limited = self._limited(self.labels, self.max_tokens) if self.constrained else None
        return limited.format.least_tokens() if limited else 0

    def check_labels(self, labels: LabelSet | Sequence[str] | None) -> LabelSet:
        """The label set asked for, or the model's.

        Raises:
            ConfigError: they are none, or no answer over them could be written within the limit.
        """
        known = self.labels if labels is None else label_set_of(labels)
        if self.constrained:
            self._limited(known, self.max_tokens)
        return known

    def _limited(self, labels: LabelSet, max_tokens: int) -> LimitedFormat:
        """The format over a label set under a token limit (ConfigError where it cannot hold an answer)."""
        from selfemo.models.generation.own_format import OwnFormat

        assert self.policy is not None
        known = self._formats.get(labels)
        if known is None:
            known = OwnFormat(
                self.policy,
                labels,
                self.config.prompt.reasoning,
                self.config.evaluation.no_repeat_ngram,
            )
            if len(self._formats) >= _FORMATS_KEPT:
                self._formats.clear()
            self._formats[labels] = known
        return known.limited(max_tokens)

    def _prompt(self, conversation: Conversation, turn: int) -> Prompt:
        prompt = prompt_at(conversation, turn, future=False)
        room, kept = self.config.prompt.max_tokens * _CHARS_PER_TOKEN, 0
        for said in reversed(prompt.history):
            room -= len(said.text) + len(said.speaker)
            if room < 0 and kept:
                break
            kept += 1
        return replace(prompt, history=prompt.history[-kept:])

    def prepare(self, ask: Ask) -> Prompt:
        """The prompt of a question, which is checked by it.

        Raises: see `respond`.
        """
        labels = self.check_labels(ask.labels)
        if self.constrained:
            self._limited(labels, ask.max_tokens or self.max_tokens)
        conversation = conversation_of(ask.conversation, labels, ask.scene)
        prompt = self._prompt(conversation, len(conversation.turns) - 1)
        given = ask.persona if isinstance(ask.persona, Persona) else None
        name = clean(ask.speaker) or (clean(given.speaker) if given else "") or prompt.answerer
        if given is not None:
            description = given.description
        else:
            known = conversation.personas.get(name)
            description = str(ask.persona) or (known.description if known else "")
        persona = Persona(name, clean(description), conversation.scenario)
        return replace(prompt, answerer=name, persona=persona, target=None)

    def _fit(self, prompt: Prompt, max_tokens: int) -> Prompt | None:
        """The prompt inside the length limit; None where it cannot be."""
        limit = self.config.prompt.max_tokens
        reasoning = self.config.prompt.reasoning
        if self.policy is None:
            from selfemo.models.generation.endpoint import estimate_tokens

            fitted = fit(
                prompt,
                lambda chat: range(estimate_tokens(ChatRequest(chat, {}, 0))),
                limit,
                reasoning,
            )
        else:
            room = self.policy.core.config.max_position_embeddings - max_tokens
            fitted = fit(prompt, self.policy.encode, min(limit, room), reasoning)
        return None if fitted is None else fitted.prompt

    def _ids(self, prompt: Prompt) -> list[int]:
        assert self.policy is not None
        return self.policy.encode(messages(prompt, self.config.prompt.reasoning))

    # -- emotions -----------------------------------------------------------------------------------

    def _read(self, prompts: Sequence[Prompt], labels: LabelSet) -> list[Reading]:
        """The emotion of the last utterance of each prompt."""
        fitted = [self._fit(p, self.max_tokens) for p in prompts]
        asked = [p for p in fitted if p is not None]
        if self.policy is None:
            found = iter(self._read_endpoint(asked))
        elif self.constrained and self.config.prompt.reasoning == "none":
            found = iter(self._read_probabilities(asked, labels))
        else:
            found = iter(self._read_written(asked, labels))
        return [Reading(None, failure=TOO_LONG) if p is None else next(found) for p in fitted]

    def _read_probabilities(self, prompts: Sequence[Prompt], labels: LabelSet) -> list[Reading]:
        places = [(p.conversation_id, self._ids(p), "E:") for p in prompts]
        found = []
        for distribution in self._probabilities(places, labels):
            emotion = distribution.top(labels)
            found.append(Reading(emotion, distribution[emotion], distribution))
        return found

    def _probabilities(
        self, places: Sequence[tuple[str, Sequence[int], str]], labels: LabelSet
    ) -> list[EmotionDistribution]:
        """The probability of each label behind a prompt and what is written up to it.

        Args:
            places: (key, prompt ids, text written so far that ends in "E:" or "S:"); places of one key
                are computed as one prefix tree.
        """
        from selfemo.models.generation.label_scores import label_probabilities

        assert self.policy is not None
        with self._lock:
            return label_probabilities(self.policy, places, labels)

    def _read_written(self, prompts: Sequence[Prompt], labels: LabelSet) -> list[Reading]:
        """What the model writes up to the end of its emotion line, as `selfemo evaluate` reads it."""
        from selfemo.models.generation.local import LocalGenerator
        from selfemo.models.generation.requests import Request, SamplingSettings

        assert self.policy is not None
        settings = SamplingSettings(
            max_new_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            max_lines=1 if self.config.prompt.reasoning == "none" else 2,
            token_budget=self.config.evaluation.token_budget,
            no_repeat_ngram=self.config.evaluation.no_repeat_ngram,
        )
        limited = self._limited(labels, self.max_tokens) if self.constrained else None
        requests = [
            Request(
                self._ids(p),
                seed=derive(self.seed, str(messages(p))),
                share=p.conversation_id,
                constraints=limited,
            )
            for p in prompts
        ]
        with self._lock:
            sampled = LocalGenerator(self.policy, settings).generate(requests)
        readings = [_written(parse_recognition(s.text, labels), labels) for (s,) in sampled]
        if not self.constrained:
            return readings
        texts = [s.text for (s,) in sampled]
        places = [
            (p.conversation_id, self._ids(p), text[: _span(text, "E")])
            for p, text in zip(prompts, texts, strict=True)
        ]
        found = self._probabilities(places, labels)
        return [_sure(r, d) for r, d in zip(readings, found, strict=True)]

    # -- answers ------------------------------------------------------------------------------------

    def _generate(
        self,
        asks: Sequence[Ask],
        prompts: Sequence[Prompt],
        on_event: Callable[[int, Event], bool] | None,
    ) -> list[Response]:
        from selfemo.models.generation.local import LocalGenerator
        from selfemo.models.generation.requests import Request, SamplingSettings

        policy = self.policy
        assert policy is not None
        limits = [a.max_tokens or self.max_tokens for a in asks]
        fitted = [self._fit(p, m) for p, m in zip(prompts, limits, strict=True)]
        responses = [_failed(p, TOO_LONG) for p in prompts]
        groups: dict[tuple[float, float], list[int]] = {}
        for n, (ask, prompt) in enumerate(zip(asks, fitted, strict=True)):
            if prompt is not None:
                temperature = self.temperature if ask.temperature is None else ask.temperature
                top_p = self.top_p if ask.top_p is None else ask.top_p
                groups.setdefault((temperature, top_p), []).append(n)
        for (temperature, top_p), members in groups.items():
            settings = SamplingSettings(
                max_new_tokens=max(limits[n] for n in members),
                temperature=temperature,
                top_p=top_p,
                token_budget=self.config.evaluation.token_budget,
                no_repeat_ngram=0 if self.constrained else self.config.evaluation.no_repeat_ngram,
            )
            requests, readers = [], []
            for n in members:
                prompt, ask = fitted[n], asks[n]
                assert prompt is not None
                said = messages(prompt, self.config.prompt.reasoning)
                seed = self.seed if ask.seed is None else ask.seed
                limited = self._limited(prompt.label_set, limits[n]) if self.constrained else None
                requests.append(
                    Request(
                        policy.encode(said),
                        seed=derive(seed, str(said)),
                        # Prompts that begin with one turn share a past. To have all share the
                        # instructions alone makes trees too wide: measured, a quarter slower.
                        share=prompt.history[0],
                        constraints=limited,
                    )
                )
                readers.append(_Reader(n, prompt.label_set, on_event, limited))

            def on_token(
                request: int,
                copy: int,
                ids: Sequence[int],
                readers: list[_Reader] = readers,
                members: list[int] = members,
            ) -> bool:
                if on_event is not None and not readers[request].go_on(policy.decode(ids)):
                    return False
                return len(ids) < limits[members[request]]

            with self._lock:
                sampled = LocalGenerator(policy, settings).generate(requests, on_token=on_token)
            for n, reader, request, (sample,) in zip(
                members, readers, requests, sampled, strict=True
            ):
                prompt = fitted[n]
                assert prompt is not None
                response = _response(prompt, sample.text, sample.finished, reader.stopped)
                tokens = (len(request.prompt_ids), len(sample.token_ids))
                responses[n] = replace(response, tokens=tokens)
            self._add_probabilities(members, fitted, requests, responses)
        if on_event is not None:
            for n, response in enumerate(responses):
                if response.failure != STOPPED:
                    on_event(n, Done(response))
        return responses

    def _add_probabilities(
        self,
        members: Sequence[int],
        prompts: Sequence[Prompt | None],
        requests: Sequence[Any],
        responses: list[Response],
    ) -> None:
        """Put probabilities for the written weights: those seen while it was written, where they tell the
        labels apart, else by another forward pass over all such answers."""
        if not self.constrained:
            return
        by_labels: dict[LabelSet, list[tuple[int, Any]]] = {}
        for n, request in zip(members, requests, strict=True):
            prompt = prompts[n]
            if prompt is None or responses[n].failure is not None:
                continue
            heard, felt = (request.constraints.probabilities(f) for f in "ES")
            if heard is None or felt is None:
                by_labels.setdefault(prompt.label_set, []).append((n, request))
                continue
            r = responses[n]
            responses[n] = replace(r, heard=_sure(r.heard, heard), felt=_sure(r.felt, felt))
        for labels, known in by_labels.items():
            places = [
                (str(n), request.prompt_ids, responses[n].text[: _span(responses[n].text, field)])
                for n, request in known
                for field in "ES"
            ]
            found = iter(self._probabilities(places, labels))
            for n, _ in known:
                r = responses[n]
                responses[n] = replace(
                    r, heard=_sure(r.heard, next(found)), felt=_sure(r.felt, next(found))
                )

    # -- endpoints ----------------------------------------------------------------------------------

    def _run(self, work: Any) -> Any:
        """Run a coroutine on this model's own event loop, whatever loop the caller may be in."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
            loop = self._loop
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    async def _ask_all(
        self,
        requests: Sequence[ChatRequest],
        on_text: Callable[[int, str], bool] | None = None,
    ) -> list[Answer | UnansweredError]:
        from selfemo.models.generation.endpoint import Endpoint

        assert self.spec is not None
        endpoint = Endpoint(self.spec)
        slots = asyncio.Semaphore(self.spec.concurrency)

        async def one(n: int, request: ChatRequest) -> Answer | UnansweredError:
            async with slots:
                try:
                    if on_text is None:
                        return await endpoint.ask(request)
                    return await endpoint.stream(request, lambda text: on_text(n, text))
                except UnansweredError as e:
                    return e

        try:
            return list(await asyncio.gather(*(one(n, r) for n, r in enumerate(requests))))
        finally:
            await endpoint.close()

    def _read_endpoint(self, prompts: Sequence[Prompt]) -> list[Reading]:
        from selfemo.stages.experts import without_thoughts

        reasoning = self.config.prompt.reasoning
        requests = [ChatRequest(messages(p, reasoning), {}, self.max_tokens) for p in prompts]
        return [
            Reading(None, failure=UNANSWERED)
            if isinstance(answer, UnansweredError)
            else _written(
                parse_recognition(without_thoughts(answer.text), prompt.label_set), prompt.label_set
            )
            for prompt, answer in zip(prompts, self._run(self._ask_all(requests)), strict=True)
        ]

    def _ask_endpoint(
        self,
        asks: Sequence[Ask],
        prompts: Sequence[Prompt],
        on_event: Callable[[int, Event], bool] | None,
    ) -> list[Response]:
        from selfemo.stages.experts import without_thoughts

        responses = [_failed(p, TOO_LONG) for p in prompts]
        requests, readers, members = [], [], []
        for n, (ask, prompt) in enumerate(zip(asks, prompts, strict=True)):
            limit = ask.max_tokens or self.max_tokens
            if (fitted := self._fit(prompt, limit)) is not None:
                said = messages(fitted, self.config.prompt.reasoning)
                requests.append(ChatRequest(said, {}, limit, temperature=ask.temperature))
                readers.append(_Reader(n, prompt.label_set, on_event))
                members.append(n)

        def on_text(k: int, text: str) -> bool:
            return readers[k].go_on(without_thoughts(text))

        answers = self._run(self._ask_all(requests, on_text if on_event else None))
        for n, reader, answer in zip(members, readers, answers, strict=True):
            if isinstance(answer, UnansweredError):
                responses[n] = replace(_failed(prompts[n], UNANSWERED), text=answer.detail)
                continue
            text = without_thoughts(answer.text)
            responses[n] = replace(
                _response(prompts[n], text, True, reader.stopped),
                tokens=(answer.prompt_tokens, answer.completion_tokens),
            )
        if on_event is not None:
            for n, response in enumerate(responses):
                if response.failure != STOPPED:
                    on_event(n, Done(response))
        return responses


def _recognition(reading: Reading, conversation: Conversation, turn: int) -> Recognition:
    said = conversation.turns[turn]
    return Recognition(
        reading.emotion, reading.confidence, reading.distribution, reading.written, reading.failure,
        turn, said.speaker, said.text,
    )  # fmt: skip


def _written(read: EmotionDistribution | ParseFailure, labels: LabelSet) -> Reading:
    if isinstance(read, ParseFailure):
        return Reading(None, failure=read.kind.value)
    emotion = read.top(labels)
    return Reading(emotion, read[emotion], read, read)


def _sure(reading: Reading, probabilities: EmotionDistribution) -> Reading:
    """A written emotion with the probability it has."""
    if reading.emotion is None:
        return reading
    return replace(
        reading,
        confidence=probabilities.weight(reading.emotion),
        distribution=probabilities,
    )


def _span(text: str, field: str) -> int:
    """Where the content of the first field of this letter starts, without the blank before it."""
    start = next(a for f, a, _ in field_spans(text) if f == field)
    return len(text[:start].rstrip(" \t"))


def _failed(prompt: Prompt, failure: str) -> Response:
    nothing = Reading(None, failure=failure)
    return Response(prompt.answerer, nothing, nothing, "", failure=failure)


def _response(prompt: Prompt, text: str, finished: bool, stopped: bool) -> Response:
    labels = prompt.label_set
    if stopped:
        return replace(_failed(prompt, STOPPED), text=text)
    parsed = parse(text, labels, finished=finished)
    if isinstance(parsed, Completion):
        return Response(
            prompt.answerer,
            _written(parsed.emotion, labels),
            _written(parsed.self_emotion, labels),
            parsed.reply,
            parsed.reasoning,
            text,
        )
    # The emotion may be readable where what follows it is not.
    failed = replace(_failed(prompt, parsed.kind.value), text=text)
    return replace(failed, heard=_written(parse_recognition(text, labels), labels))


class _Reader:
    """Turns the text of one answer, as it grows, into events."""

    def __init__(
        self,
        number: int,
        labels: LabelSet,
        on_event: Callable[[int, Event], bool] | None,
        limited: LimitedFormat | None = None,
    ):
        self._number, self._labels, self._on_event = number, labels, on_event
        self._limited = limited
        self._told: set[str] = set()
        self._reply = ""
        self.stopped = False

    def go_on(self, text: str) -> bool:
        """Tell what is new in `text`; False where the reader of the events wants no more."""
        fields = [(f, text[a:b]) for f, a, b in field_spans(text)]
        events: list[Event] = []
        for (field, content), _ in itertools.pairwise(fields):
            if field in "ES" and field not in self._told:
                self._told.add(field)
                reading = _written(parse_emotions(content, self._labels), self._labels)
                if self._limited and (known := self._limited.probabilities(field)):
                    reading = _sure(reading, known)
                events.append(Emotion(reading) if field == "E" else SelfEmotion(reading))
        if fields and fields[-1][0] == "R":
            # A character that is cut decodes to a replacement character until its rest is there.
            reply = " ".join(fields[-1][1].rstrip("\ufffd").split())
            if len(reply) > len(self._reply) and reply.startswith(self._reply):
                events.append(ReplyDelta(reply[len(self._reply) :]))
                self._reply = reply
        for event in events:
            if self._on_event is not None and not self._on_event(self._number, event):
                self.stopped = True
        return not self.stopped
