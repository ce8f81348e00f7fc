"""Emotions of a conversation, and a character's answer to it, in a few lines of Python.

    from selfemo import SelfEmo

    model = SelfEmo("runs/my-run")
    model.recognise([("Ann", "We won!"), ("Bo", "I can't believe it!")])
    model.respond([("Ann", "We won!")], persona="Dry, loyal, hides it when he is moved.")

`confidence` [ours]: the paper's model writes weights, mostly one lone emotion, so that a weight of 1 does not
say how sure it is. For a model on this machine the distribution is therefore the probability of each label at
the place where the model names the emotion, from one forward pass over all labels as a prefix tree,
normalised over the set; the confidence is that of the emotion named. While an answer is written it is taken
at the token where a label begins. An endpoint, and a model without constrained decoding, give the written
weights alone.

With `constrained` (the default for a model on this machine) the decoder allows only text in the format
(generation/own_format.py), so each answer parses, also under a token limit. Training never does that.

asking.py has the questions, answers.py the answers; local.py and endpoint.py get one from the other.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from selfemo.config import Config, load
from selfemo.errors import ConfigError
from selfemo.method.types import LABEL_SETS, Conversation, FailureKind, LabelSet, Persona, Prompt
from selfemo.models.generation import backend_of
from selfemo.models.generation.chat import ExpertSpec, endpoint_of
from selfemo.models.references import ModelReference, run_of
from selfemo.runs.settings import settings_for
from selfemo.runs.store import STORE_FILE, Store
from selfemo.serve import asking
from selfemo.serve.answers import Done, Event, OnEvent, ReadEmotion, Recognition, Response
from selfemo.serve.asking import Ask, Labels, Sampling, Turns, conversation_of, label_set_of

if TYPE_CHECKING:
    from selfemo.models.policy import Policy

_ANSWER_TOKENS = 128
"""Most tokens of an answer for a model without settings."""


class Answers(Protocol):
    """A kind of model that `SelfEmo` uses: local.py and endpoint.py."""

    @property
    def policy(self) -> Policy | None:
        """The model itself, if it is on this machine."""

    def close(self) -> None:
        """Close connections."""

    def least_tokens(self, labels: LabelSet) -> int:
        """The smallest token limit for an answer; 0 if answers are not constrained."""

    def check(self, labels: LabelSet, max_tokens: int) -> None:
        """Refuse a token limit that no answer over these labels fits (ConfigError)."""

    def fit(self, prompt: Prompt, max_tokens: int) -> Prompt | None:
        """The prompt inside the length limit, with room for an answer; None if it does not fit."""

    def read(self, prompts: Sequence[Prompt], labels: LabelSet) -> list[ReadEmotion]:
        """The emotion of the last utterance of each (fitted) prompt."""

    def respond(
        self, asks: Sequence[Ask], prompts: Sequence[Prompt], on_event: OnEvent | None
    ) -> list[Response]:
        """The response to each question, given its fitted prompt; sends no `Done` event."""


def _run_labels(run: Path | None) -> LabelSet | None:
    """The label set of most prompts in a run."""
    if run is None or not (run / STORE_FILE).exists():
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
        ConfigError: a setting or label is wrong.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        constrained: bool = True,
        labels: Labels | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int = 0,
        seed: int = 0,
        files: Sequence[Path | str] = (),
        overrides: Sequence[str] = (),
    ):
        if temperature < 0 or not 0 < top_p <= 1 or max_tokens < 0:
            raise ConfigError("temperature and max_tokens are 0 or more, top_p is above 0, at most 1")
        self.name = str(model)
        self.spec: ExpertSpec | None = endpoint_of(self.name)
        run, checkpoint = None, ""
        self.config: Config
        if self.spec is None:
            self.config, checkpoint = settings_for(self.name, ["sample"], [Path(f) for f in files], overrides)
            run = run_of(checkpoint)
        else:
            self.config = load(files, overrides)
            if ",temperature=" not in self.name.replace(" ", ""):
                self.spec = self.spec.model_copy(update={"temperature": temperature})
        self.constrained = constrained and self.spec is None
        known = label_set_of(labels) if labels is not None else _run_labels(run)
        self.labels = known or LABEL_SETS["meld"]
        plain = self.spec is None and run is None and not files
        self.max_tokens = max_tokens or (_ANSWER_TOKENS if plain else self.config.evaluation.max_new_tokens)
        self._answers: Answers
        if self.spec is None:
            from selfemo.serve.local import LocalAnswers

            sampling = Sampling(self.max_tokens, temperature, top_p, seed)
            self._answers = LocalAnswers(self.config, checkpoint, sampling, self.constrained)
        else:
            from selfemo.serve.endpoint import EndpointAnswers

            prompt = self.config.prompt
            self._answers = EndpointAnswers(self.spec, prompt.reasoning, prompt.max_tokens, self.max_tokens)
        self._answers.check(self.labels, self.max_tokens)

    @property
    def title(self) -> str:
        """What answers call the model: `ModelReference.title`, or the name that an endpoint was given."""
        return self.spec.name if self.spec else ModelReference.parse(backend_of(self.name)[1]).title

    @property
    def policy(self) -> Policy | None:
        """The model itself; None for an endpoint."""
        return self._answers.policy

    def close(self) -> None:
        """End the connection to an endpoint; a local model needs no end."""
        self._answers.close()

    def recognise(
        self,
        conversation: Turns,
        *,
        turns: Literal["all", "last"] = "all",
        scene: str = "",
        labels: Labels | None = None,
    ) -> list[Recognition]:
        """The emotion of each utterance, or of the last one; later utterances are not read.

        Raises:
            DataError: the conversation is empty, or a turn has no speaker or text.
            ConfigError: wrong labels, or no answer over them fits the token limit.
            EndpointError: the endpoint cannot be used.
        """
        return self.recognise_many([conversation], turns=turns, scene=scene, labels=labels)[0]

    def recognise_many(
        self,
        conversations: Sequence[Turns],
        *,
        turns: Literal["all", "last"] = "all",
        scene: str = "",
        labels: Labels | None = None,
    ) -> list[list[Recognition]]:
        """`recognise` of several conversations in one batch."""
        known = self.check_labels(labels)
        typed = [conversation_of(c, known, scene) for c in conversations]
        first = 0 if turns == "all" else -1
        return self.recognise_turns([(c, range(len(c.turns))[first:]) for c in typed])

    def recognise_turns(self, asked: Sequence[tuple[Conversation, Sequence[int]]]) -> list[list[Recognition]]:
        """The emotions of chosen turns, each over its conversation's own label set, in one batch."""
        limit = self.config.prompt.max_tokens
        prompts = [
            asking.recent_prompt(replace(c, id=f"{n}"), turn, limit)
            for n, (c, turns) in enumerate(asked)
            for turn in turns
        ]
        found: dict[int, ReadEmotion] = {}
        for labels in dict.fromkeys(p.label_set for p in prompts):
            self.check_labels(labels)
            members = [n for n, p in enumerate(prompts) if p.label_set == labels]
            found |= zip(members, self._read([prompts[n] for n in members], labels), strict=True)
        in_order = (found[n] for n in range(len(prompts)))
        return [[Recognition.of(next(in_order), t, c.turns[t]) for t in turns] for c, turns in asked]

    def _read(self, prompts: Sequence[Prompt], labels: LabelSet) -> list[ReadEmotion]:
        """The emotion of the last utterance of each prompt."""
        fitted = [self._answers.fit(p, self.max_tokens) for p in prompts]
        found = iter(self._answers.read([p for p in fitted if p is not None], labels))
        too_long = ReadEmotion(None, failure=FailureKind.TOO_LONG)
        return [too_long if p is None else next(found) for p in fitted]

    def respond(
        self,
        conversation: Turns,
        persona: Persona | str = "",
        *,
        speaker: str = "",
        scene: str = "",
        labels: Labels | None = None,
        max_tokens: int = 0,
        seed: int | None = None,
    ) -> Response:
        """A character with this persona hears the last utterance, feels, and answers.

        Args:
            persona: its description, or a `Persona`.
            speaker: its name; "" takes the persona's, else the latest speaker other than the last one.
            scene: where the conversation takes place.
            max_tokens: most tokens of the whole answer; 0 takes the model's setting.

        Raises: see `recognise`; ConfigError also if `max_tokens` cannot hold a whole answer.
        """
        ask = Ask(conversation, persona, speaker, scene, labels, max_tokens, seed=seed)
        return self.respond_many([ask])[0]

    def respond_many(self, asks: Sequence[Ask], on_event: OnEvent | None = None) -> list[Response]:
        """`respond` to several questions in one batch.

        Args:
            on_event: see `answers.OnEvent`; called as answers are written.
        """
        prepared = [self.prepare(ask) for ask in asks]
        limits = [ask.max_tokens or self.max_tokens for ask in asks]
        fitted = list(map(self._answers.fit, prepared, limits))
        members = [n for n, p in enumerate(fitted) if p is not None]
        prompts = [p for p in fitted if p is not None]
        tell = None if on_event is None else lambda k, event: on_event(members[k], event)
        responses = [Response.failed(p, FailureKind.TOO_LONG) for p in prepared]
        answers = self._answers.respond([asks[n] for n in members], prompts, tell)
        for n, answer in zip(members, answers, strict=True):
            responses[n] = answer
        for n, response in enumerate(responses):
            if on_event is not None and response.failure != FailureKind.STOPPED:
                on_event(n, Done(response))
        return responses

    def stream(
        self,
        conversation: Turns,
        persona: Persona | str = "",
        *,
        speaker: str = "",
        scene: str = "",
        labels: Labels | None = None,
        max_tokens: int = 0,
        seed: int | None = None,
    ) -> Iterator[Event]:
        """`respond` as events: `Emotion`, `SelfEmotion`, `ReplyDelta`s, `Done`. Closing the iterator ends it.

        Raises: see `respond`, before the first event or between two.
        """
        ask = Ask(conversation, persona, speaker, scene, labels, max_tokens, seed=seed)
        self.prepare(ask)  # a fault of the question is raised here, not in the thread
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

    def least_tokens(self) -> int:
        """The smallest token limit for an answer; 0 if answers are not constrained."""
        return self._answers.least_tokens(self.labels)

    def check_labels(self, labels: Labels | None) -> LabelSet:
        """The label set asked for, or the model's, if an answer fits the token limit (else ConfigError)."""
        known = self.labels if labels is None else label_set_of(labels)
        self._answers.check(known, self.max_tokens)
        return known

    def prepare(self, ask: Ask) -> Prompt:
        """The prompt of a question. Raises: see `respond`."""
        labels = self.check_labels(ask.labels)
        self._answers.check(labels, ask.max_tokens or self.max_tokens)
        return asking.prompt_of(ask, labels, self.config.prompt.max_tokens)
