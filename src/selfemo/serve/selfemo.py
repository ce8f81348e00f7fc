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
from collections.abc import Callable, Iterator, Sequence
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
from selfemo.serve.answers import Done, Event, OnEvent, ReadEmotion, Recognition, ReplyDelta, Response
from selfemo.serve.asking import MOST_REPLIES, Ask, Labels, Sampling, Turns, conversation_of, label_set_of
from selfemo.serve.expressing import (
    OwnReader,
    Reader,
    SharedReader,
    alternatives,
    most_expressive,
    open_reader,
    sound,
)

if TYPE_CHECKING:
    from selfemo.models.policy import Policy

_ANSWER_TOKENS = 128
"""Most tokens of an answer for a model without settings."""


class Answers(Protocol):
    """A kind of model that `SelfEmo` uses: local.py and endpoint.py."""

    @property
    def policy(self) -> Policy | None:
        """The model itself, if this process computes with it."""

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

    def draw(
        self,
        asks: Sequence[Ask],
        prompts: Sequence[Prompt],
        firsts: Sequence[Response],
        counts: Sequence[int],
        goes_on: Callable[[int], bool] | None,
    ) -> list[list[Response]]:
        """So many further answers to each question, whose first answer parsed.

        Where the answer's temperature is 0, theirs is `asking.DRAWN`. `tokens` are those that each takes in
        addition. They declare the first one's E and S, or count for nothing.

        Args:
            goes_on: whether somebody still waits for the answer to a question.
        """


def _check_best_of(n: int, least: int) -> None:
    if not isinstance(n, int) or not least <= n <= MOST_REPLIES:
        raise ConfigError(f"best_of is {n!r}, and must be a whole number from {least} to {MOST_REPLIES}")


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
            id), or an endpoint as `NAME=URL,model=MODEL[,key=ENV_VARIABLE,...]`, a vLLM server also with
            `tokenizer=REFERENCE`.
        constrained: hold answers to the format, so that each one parses (local models only).
        labels: label set by default; else the run's, else MELD's seven.
        temperature: 0 is greedy.
        max_tokens: most tokens of an answer; 0 takes `evaluation.max_new_tokens` of the run or the
            settings, and 128 for a model without either.
        reader: who reads the replies, for `Response.expressed`: the folder of a kept encoder, another model,
            an endpoint, or the `reader` of another SelfEmo. "": the model reads its own, if `best_of` asks.
        best_of: replies of which an answer has the most expressive; 1 reads the one reply, 0 reads none
            without a reader.
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
        reader: str | Path | Reader = "",
        best_of: int = 0,
        files: Sequence[Path | str] = (),
        overrides: Sequence[str] = (),
    ):
        if temperature < 0 or not 0 < top_p <= 1 or max_tokens < 0:
            raise ConfigError("temperature and max_tokens are 0 or more, top_p is above 0, at most 1")
        _check_best_of(best_of, least=0)
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
        self._best_of = best_of
        self._reader: SharedReader | None = None  # a wrong one is told before the model is loaded
        if isinstance(reader, SharedReader):
            self._reader = reader
        elif not isinstance(reader, str | Path):
            self._reader = SharedReader(reader)
        elif reader and str(reader) != self.name:
            self._reader = open_reader(str(reader), [Path(f) for f in files], overrides)
        if self._reader is not None:
            self._reader.check(self.labels)
        self._answers: Answers
        if self.spec is None:
            from selfemo.serve.local import LocalAnswers

            sampling = Sampling(self.max_tokens, temperature, top_p, seed)
            self._answers = LocalAnswers(self.config, checkpoint, sampling, self.constrained)
        else:
            from selfemo.serve.endpoint import EndpointAnswers

            prompt = self.config.prompt
            limits = prompt.max_tokens, self.max_tokens
            self._answers = EndpointAnswers(self.spec, prompt.reasoning, *limits)
        self._answers.check(self.labels, self.max_tokens)

    @property
    def reader(self) -> Reader:
        """Who reads the replies."""
        return self._reader or OwnReader(self)

    @property
    def title(self) -> str:
        """What answers call the model: `ModelReference.title`, or the name that an endpoint was given."""
        return self.spec.name if self.spec else ModelReference.parse(backend_of(self.name)[1]).title

    @property
    def policy(self) -> Policy | None:
        """The model itself; None for an endpoint, and with vLLM."""
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
        found = iter(self.read_prompts(prompts))
        return [[Recognition.of(next(found), t, c.turns[t]) for t in turns] for c, turns in asked]

    def read_prompts(self, prompts: Sequence[Prompt]) -> list[ReadEmotion]:
        """The emotion of the last utterance of each prompt; prompts of one conversation share their cache."""
        found: dict[int, ReadEmotion] = {}
        for labels in dict.fromkeys(p.label_set for p in prompts):
            self.check_labels(labels)
            members = [n for n, p in enumerate(prompts) if p.label_set == labels]
            found |= zip(members, self._read([prompts[n] for n in members], labels), strict=True)
        return [found[n] for n in range(len(prompts))]

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
        best_of: int | None = None,
    ) -> Response:
        """A character with this persona hears the last utterance, feels, and answers.

        Args:
            persona: its description, or a `Persona`.
            speaker: its name; "" takes the persona's, else the latest speaker other than the last one.
            scene: where the conversation takes place.
            max_tokens: most tokens of the whole answer; 0 takes the model's setting.
            best_of: draw so many replies behind the answer's E and S, the plain answer's own among them, and
                give the one that expresses S most by the `reader`; 1 has it read the reply alone. None takes
                the model's setting.

        Raises: see `recognise`; ConfigError also if `max_tokens` cannot hold a whole answer, or if `best_of`
        is out of range or asks for labels that the reader does not know.
        """
        ask = Ask(conversation, persona, speaker, scene, labels, max_tokens, seed=seed, best_of=best_of)
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
        mine = [asks[n] for n in members]

        def tell(k: int, event: Event | None) -> bool:
            if isinstance(event, ReplyDelta) and self._replies(mine[k]) > 1:
                event = None  # which reply it will be is not known yet
            return on_event is None or on_event(members[k], event)

        responses = [Response.failed(p, FailureKind.TOO_LONG) for p in prepared]
        answers = self._answers.respond(mine, prompts, on_event and tell)
        answers = self._with_expression(mine, prompts, answers, on_event and tell)
        for n, ask, answer in zip(members, mine, answers, strict=True):
            if on_event is not None and self._replies(ask) > 1 and answer.reply:
                on_event(n, ReplyDelta(answer.reply))
            responses[n] = answer
        for n, response in enumerate(responses):
            if on_event is not None and response.failure != FailureKind.STOPPED:
                on_event(n, Done(response))
        return responses

    def _replies(self, ask: Ask) -> int:
        """The replies of which a question gets the most expressive; 0: its reply is not read."""
        asked = self._best_of if ask.best_of is None else ask.best_of
        return max(asked, self._reader is not None)

    def _with_expression(
        self, asks: Sequence[Ask], prompts: Sequence[Prompt], answers: list[Response], tell: OnEvent | None
    ) -> list[Response]:
        """The answers, those that ask for it with their replies read, or chosen among several."""
        more = self._drawn(asks, prompts, answers, tell)
        found, options = list(answers), dict[int, list[Response]]()
        for n, answer in enumerate(answers):
            if answer.failure is not None or not self._replies(asks[n]):
                continue
            if n in more and tell is not None and not tell(n, None):
                found[n] = Response.failed(prompts[n], FailureKind.STOPPED)
                continue
            options[n] = sound(prompts[n], alternatives(answer, more.get(n, ())), self.config.gate)
        said = list(dict.fromkeys((prompts[n], a.reply) for n, some in options.items() for a in some))
        read = dict(zip(said, self.reader.read(said) if said else (), strict=True))
        return [
            most_expressive(prompts[n], options[n], read) if n in options else answer
            for n, answer in enumerate(found)
        ]

    def _drawn(
        self,
        asks: Sequence[Ask],
        prompts: Sequence[Prompt],
        answers: Sequence[Response],
        tell: OnEvent | None,
    ) -> dict[int, list[Response]]:
        """Further answers, by question, to those that get the best of several."""
        several = [n for n, a in enumerate(answers) if a.failure is None and self._replies(asks[n]) > 1]
        if not several:
            return {}
        drawn = self._answers.draw(
            [asks[n] for n in several],
            [prompts[n] for n in several],
            [answers[n] for n in several],
            [self._replies(asks[n]) - 1 for n in several],
            None if tell is None else lambda k: tell(several[k], None),
        )
        return dict(zip(several, drawn, strict=True))

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
        best_of: int | None = None,
    ) -> Iterator[Event]:
        """`respond` as events: `Emotion`, `SelfEmotion`, `ReplyDelta`s, `Done`. Closing the iterator ends it.

        The best of several replies is one `ReplyDelta`, once it is chosen.

        Raises: see `respond`, before the first event or between two.
        """
        ask = Ask(conversation, persona, speaker, scene, labels, max_tokens, seed=seed, best_of=best_of)
        self.prepare(ask)  # a fault of the question is raised here, not in the thread
        events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def put(_: int, event: Event | None) -> bool:
            if event is not None:
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
        if ask.best_of is not None:
            _check_best_of(ask.best_of, least=1)
        if self._reader is not None:
            self._reader.check(labels)
        return asking.prompt_of(ask, labels, self.config.prompt.max_tokens)
