"""The objects of the method (SPEC section 1), which are immutable and know no model library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

MAX_EMOTIONS = 3
"""K of eq. 6: the most emotions that one predicted set may name."""

BUILTIN_MODEL = "builtin:smollm2-135m"
"""The default model, which needs no download."""

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class LabelSet:
    """A closed, ordered set of emotion names. The order breaks ties (core emotions, top emotion).

    Attributes:
        unscored: the label that the data set's papers leave out of their micro F1, or "".
    """

    name: str
    labels: tuple[str, ...]
    unscored: str = ""

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"label set {self.name!r} needs two or more distinct labels")

    def __contains__(self, label: object) -> bool:
        return label in self.labels

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def index(self, label: str) -> int:
        return self.labels.index(label)


UNION = "all"
"""Name of all data sets together in scores, which no data set may have."""
LABEL_SETS: dict[str, LabelSet] = {
    s.name: s
    for s in (
        LabelSet("meld", ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")),
        LabelSet("emorynlp", ("neutral", "joyful", "peaceful", "powerful", "scared", "mad", "sad")),
        LabelSet("iemocap", ("happy", "sad", "neutral", "angry", "excited", "frustrated")),
        LabelSet(
            "dailydialog",
            ("no emotion", "anger", "disgust", "fear", "happiness", "sadness", "surprise"),
            unscored="no emotion",
        ),
        LabelSet(
            "meisd",
            (
                "neutral", "joy", "anger", "sadness", "surprise", "acceptance", "disgust", "fear", "like",
            ),
        ),
        LabelSet(
            "cped",
            (
                "neutral", "happy", "grateful", "relaxed", "positive-other", "anger", "sadness", "fear",
                "depress", "disgust", "astonished", "worried", "negative-other",
            ),
        ),
        LabelSet(
            "emowoz",
            ("neutral", "fearful", "dissatisfied", "apologetic", "abusive", "excited", "satisfied"),
        ),
    )
}  # fmt: skip


def label_set_of(labels: Sequence[str]) -> LabelSet:
    """The known label set of these emotions in this order, or one of their own.

    Raises:
        ValueError: there are fewer than two, or one occurs twice.
    """
    names = tuple(e.strip().lower() for e in labels)
    known = next((s for s in LABEL_SETS.values() if s.labels == names), None)
    return known or LabelSet("own:" + ",".join(names), names)


class EmotionDistribution(Mapping[str, float]):
    """Non-negative weights over emotions that sum to 1; an emotion that is absent has weight 0.

    Built from raw weights, which are divided by their sum (eq. 9); zero weights are left out.

    Raises:
        ValueError: a weight is negative or not finite, or all are zero.
    """

    __slots__ = ("_weights",)

    def __init__(self, raw: Mapping[str, float]):
        if any(not math.isfinite(w) or w < 0 for w in raw.values()):
            raise ValueError("emotion weights must be finite and not negative")
        largest = max(raw.values(), default=0.0)
        if largest <= 0:
            raise ValueError("at least one emotion weight must be above zero")
        # Scaling by the largest first keeps the sum finite for weights near the float limits; weights
        # that sum to 1 already stay as they are, so that storing and reading changes nothing.
        if largest <= 1 and abs(math.fsum(raw.values()) - 1) < 1e-12:
            self._weights = {e: float(w) for e, w in raw.items() if w > 0}
            return
        scaled = {e: w / largest for e, w in raw.items()}
        total = math.fsum(scaled.values())
        self._weights = {e: w / total for e, w in scaled.items() if w / total > 0}

    def __getitem__(self, emotion: str) -> float:
        return self._weights[emotion]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __hash__(self) -> int:
        return hash(frozenset(self._weights.items()))

    def __repr__(self) -> str:
        inside = ", ".join(f"{e} {w:.3g}" for e, w in self._weights.items())
        return f"EmotionDistribution({inside})"

    def weight(self, emotion: str) -> float:
        return self._weights.get(emotion, 0.0)

    def top(self, labels: LabelSet) -> str:
        """The emotion with the largest weight; ties go to the one named first in the label set."""
        return max(self._weights, key=lambda e: (self._weights[e], -labels.index(e)))

    def vector(self, labels: LabelSet) -> list[float]:
        return [self.weight(e) for e in labels.labels]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One turn: speaker, text, and the gold emotion distribution where there is one."""

    speaker: str
    text: str
    emotion: EmotionDistribution | None = None


@dataclass(frozen=True, slots=True)
class Persona:
    """P: the personality description of one speaker, with the scenario it was taken from."""

    speaker: str
    description: str
    scenario: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, with the personas that are known for its speakers."""

    id: str
    dataset: str
    split: Split
    turns: tuple[Utterance, ...]
    label_set: LabelSet
    scenario: str = ""
    personas: Mapping[str, Persona] = field(default_factory=dict)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Speakers in order of appearance."""
        return tuple(dict.fromkeys(t.speaker for t in self.turns))


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a prompt comes from: original data (iteration 0, no parent) or self-play (eq. 7)."""

    iteration: int = 0
    episode: str = ""
    turn: int = 0
    parent: str | None = None

    @property
    def synthetic(self) -> bool:
        return self.parent is not None


@dataclass(frozen=True, slots=True)
class Prompt:
    """x = (H, P, label set, y).

    history ends with the interlocutor's utterance; `answerer` speaks next with `persona`; `target` is
    the distribution y of that last utterance (gold, or the self-emotion its speaker declared).
    """

    id: str
    dataset: str
    conversation_id: str
    label_set: LabelSet
    history: tuple[Utterance, ...]
    answerer: str
    persona: Persona
    target: EmotionDistribution | None
    scenario: str = ""
    lineage: Lineage = Lineage()

    @property
    def interlocutor(self) -> str:
        return self.history[-1].speaker


@dataclass(frozen=True, slots=True)
class Completion:
    """A parsed completion: E for the last speaker, S for the answering one, the reply r."""

    emotion: EmotionDistribution
    self_emotion: EmotionDistribution
    reply: str
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run something happens: the stage, its step or round (or 0), the iteration (0: before)."""

    stage: str
    step: int = 0
    iteration: int = 0


class FailureKind(StrEnum):
    """Why there is no usable completion. Never merged with a wrong answer (SPEC section 2).

    The first group is of the text, the second of the prompt or the backend that was asked.
    """

    EMPTY = "empty"
    NO_EMOTION = "no_emotion"
    NO_SELF_EMOTION = "no_self_emotion"
    NO_REPLY = "no_reply"
    EXTRA_TEXT = "extra_text"
    BAD_WEIGHT = "bad_weight"
    ZERO_WEIGHT = "zero_weight"
    UNKNOWN_EMOTION = "unknown_emotion"
    REPEATED_EMOTION = "repeated_emotion"
    TOO_MANY_EMOTIONS = "too_many_emotions"
    TRUNCATED = "truncated"

    NO_TEXT = "no_text"
    """The utterance has no words."""
    TOO_LONG = "too_long"
    """The last utterance and the persona alone pass the length limit."""
    REFUSED = "refused"
    """The endpoint refuses to answer this prompt."""
    UNANSWERED = "unanswered"
    """The endpoint gave no answer."""
    STOPPED = "stopped"
    """The reader of the answer did not wait for its end."""


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """A completion that does not parse: the kind of failure, and the text at fault."""

    kind: FailureKind
    detail: str = ""


Parsed = Completion | ParseFailure


def emotion_of(parsed: Completion | EmotionDistribution | ParseFailure) -> EmotionDistribution | None:
    """E of a completion, or of its E line alone; None for a failure."""
    if isinstance(parsed, ParseFailure):
        return None
    return parsed.emotion if isinstance(parsed, Completion) else parsed


def _mean_of_sampled(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return math.fsum(known) / len(known) if known else 0.0


@dataclass(frozen=True, slots=True)
class RawCompletion:
    """One sampled token sequence, as the generation backends return it.

    Attributes:
        text: the decoded completion without the end token.
        token_ids: sampled ids, the end token included where it was reached.
        logprobs: log-probability of each token under the policy softmax(logits / T), nats; NaN for a token
            that was given and not sampled.
        entropies: entropy of the policy at each token, nats; NaN likewise.
        finished: the end token was reached within the limit.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    entropies: tuple[float, ...] = ()
    finished: bool = True

    @property
    def mean_logprob(self) -> float:
        return _mean_of_sampled(self.logprobs)

    @property
    def mean_entropy(self) -> float:
        return _mean_of_sampled(self.entropies)

    def then(self, rest: RawCompletion) -> RawCompletion:
        """This one and, behind it, what `rest` goes on with; finished where `rest` is."""
        return RawCompletion(
            self.text + rest.text,
            self.token_ids + rest.token_ids,
            self.logprobs + rest.logprobs,
            self.entropies + rest.entropies,
            rest.finished,
        )

    def part(self, start: int, stop: int | None, text: str, *, finished: bool) -> RawCompletion:
        """The tokens from `start` to `stop`, with the text that they are."""
        which = slice(start, stop)
        return RawCompletion(
            text, self.token_ids[which], self.logprobs[which], self.entropies[which], finished
        )


@dataclass(frozen=True, slots=True)
class Rollout:
    """One scored member of a group: its tokens and text, what they say, R1, R2 and advantage.

    Attributes:
        parsed: the completion; its emotion E alone, where no more was sampled; or the failure.
        advantage: of eq. 13; of all tokens, or of the first `head` of them.
        head: the number of tokens up to the end of the E line, where credit is causal (SPEC section 9).
        rest: the advantage of the tokens behind them.
    """

    raw: RawCompletion
    parsed: Completion | EmotionDistribution | ParseFailure
    r1: float
    r2: float
    advantage: float
    head: int | None = None
    rest: float = 0.0

    @property
    def completion(self) -> Completion | None:
        return self.parsed if isinstance(self.parsed, Completion) else None

    @property
    def emotion(self) -> EmotionDistribution | None:
        """E; None where the text failed to parse."""
        return emotion_of(self.parsed)


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The G completions sampled for one prompt."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
