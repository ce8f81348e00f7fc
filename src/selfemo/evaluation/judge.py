"""Blind comparison of two answers to one prompt (SPEC section 7; fig. 3, tables 8 to 11).

A judge reads persona, situation and two answers, writes five aspects and gives a verdict. Self-emotion and
reply have a question each, asked in both orders; a pair is won only where both orders say so. The judge sees
the parsed completion in one form, and no name, path, checkpoint, reasoning or raw text of a system.

Departures from the paper [ours]: both orders (it asks one). A pair is decided without a question where an
answer did not parse (its system loses) and where the two answers are equal (a tie).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selfemo.evaluation.metrics import krippendorff_alpha, mean_interval, paired_difference
from selfemo.method.prompts import clean, format_emotions
from selfemo.method.types import Completion, Prompt
from selfemo.stages.experts import MalformedError, Question, one_line, read_json

Kind = Literal["self_emotion", "reply"]
Outcome = Literal["a", "b", "tie"]
KINDS: tuple[Kind, ...] = ("self_emotion", "reply")
ASPECTS = ("persona", "situation", "answer_1", "answer_2", "comparison")
VERDICTS = ("1", "2", "tie")
ORDERS = ("ab", "ba")
"""The order of the two systems' answers in a question."""
PROMPT_VERSION = 1
MAX_ASPECT = 600
_ANSWER_TOKENS = 600
_SHOWN_TURNS = 30
"""Turns of the history that a judge reads, the last ones."""


@dataclass(frozen=True)
class Pair:
    """The answers of systems A and B to one prompt; None where one did not parse."""

    prompt: Prompt
    a: Completion | None
    b: Completion | None

    def shown(self, kind: Kind) -> tuple[str, str] | None:
        """The two texts that a judge compares, A's and B's; None where one is missing."""
        if self.a is None or self.b is None:
            return None
        if kind == "self_emotion":
            return format_emotions(self.a.self_emotion), format_emotions(self.b.self_emotion)
        return clean(self.a.reply), clean(self.b.reply)

    def settled(self, kind: Kind) -> Outcome | None:
        """The outcome, where no judge has to be asked."""
        if (shown := self.shown(kind)) is None:
            return "tie" if self.a is self.b is None else ("b" if self.a is None else "a")
        return "tie" if shown[0] == shown[1] else None


@dataclass(frozen=True)
class Judgement:
    """A judge's answer: five texts and "1", "2" or "tie"."""

    aspects: Mapping[str, str]
    verdict: str


def read_judgement(text: str) -> Judgement:
    """Parse a judge's answer.

    Raises:
        MalformedError: no JSON, a key missing or of the wrong type, no verdict.
    """
    found = read_json(text)
    for key in (*ASPECTS, "verdict"):
        if key not in found:
            raise MalformedError("schema", f"the key {key!r} is missing")
    aspects = {k: one_line(found[k], k, MAX_ASPECT) for k in ASPECTS}
    verdict = str(found["verdict"]).strip().lower()
    if verdict not in VERDICTS:
        raise MalformedError("schema", f"verdict must be one of {', '.join(VERDICTS)}")
    return Judgement(aspects, verdict)


_SCHEMA = {
    "type": "object",
    "properties": {
        **{k: {"type": "string", "minLength": 1, "maxLength": MAX_ASPECT} for k in ASPECTS},
        "verdict": {"type": "string", "enum": list(VERDICTS)},
    },
    "required": [*ASPECTS, "verdict"],
    "additionalProperties": False,
}
_ASKED: dict[Kind, tuple[str, str]] = {
    "self_emotion": (
        "Each answer names what {who} feels on hearing the last line (emotions with weights that sum to 10).",
        "Which feeling is more believable for this person in this situation?",
    ),
    "reply": (
        "Each answer is what {who} says next.",
        "Which line fits this person and this situation better, in what it says and in the feeling it shows?",
    ),
}


def item_of(prompt_id: str, kind: Kind, order: str) -> str:
    """The name of a question in the store."""
    return f"{kind}/{order}/{prompt_id}"


def question(pair: Pair, kind: Kind, order: str) -> Question[Judgement]:
    """The question on a pair whose answers both parsed, with A's answer first for order "ab"."""
    if (shown := pair.shown(kind)) is None:
        raise ValueError("a pair without two answers has no question")
    first, second = shown if order == "ab" else shown[::-1]
    p = pair.prompt
    who = clean(p.answerer)
    scene = f"Scene: {clean(p.scenario)}\n" if p.scenario else ""
    turns = "".join(f"{clean(u.speaker)}: {clean(u.text)}\n" for u in p.history[-_SHOWN_TURNS:])
    what, which = _ASKED[kind]
    form = json.dumps({**dict.fromkeys(ASPECTS, "..."), "verdict": "1, 2 or tie"})
    return Question(
        item_of(p.id, kind, order),
        [
            {
                "role": "system",
                "content": "You compare two answers on how well they fit a person and a conversation. You "
                "judge what is written alone; which answer stands first means nothing. You answer with one "
                "JSON object and nothing else.",
            },
            {
                "role": "user",
                "content": f"{scene}{turns}\n{who}: {clean(p.persona.description) or 'nothing is known'}\n\n"
                f"{what.format(who=who)}\nAnswer 1: {first}\nAnswer 2: {second}\n\n{which}\n"
                f"persona: what {who}'s character leads you to expect here.\n"
                "situation: what is going on and what the last line does.\n"
                "answer_1: how well answer 1 fits both.\nanswer_2: how well answer 2 fits both.\n"
                "comparison: what decides between them.\n"
                'verdict: "1", "2", or "tie" where neither is clearly better.\n'
                f"One or two sentences each.\nForm: {form}",
            },
        ],
        _SCHEMA,
        read_judgement,
        _ANSWER_TOKENS,
    )


def winner(verdict: str, order: str) -> Outcome:
    """The system that a verdict is for."""
    return "tie" if verdict == "tie" else "a" if (verdict == "1") == (order == "ab") else "b"


def combine(first: Outcome, second: Outcome) -> Outcome:
    """The outcome of a pair from those of its two orders: a tie where they differ."""
    return first if first == second else "tie"


Verdicts = Mapping[tuple[str, str, str], str]
"""Judge, prompt id and order to a verdict; of one kind."""


def summarise(pairs: Sequence[Pair], kind: Kind, judges: Sequence[str], verdicts: Verdicts) -> dict[str, Any]:
    """Wins of A over B in one kind, over all judges and by judge.

    A pair's score is the mean over its judges of 1 (A), 0.5 (tie), 0 (B); it is won where that is above one
    half. A pair that no judge has answered in both orders is left out.

    Returns:
        pairs, wins, ties, losses, win_rate (mean score with its 95% interval by conversation), p_value
        (sign flips by conversation), alpha (Krippendorff's, nominal, over the pairs that judges were asked;
        None for one judge), position_bias (share of answer 1 among verdicts other than ties; None without
        one), flips (pairs whose two orders name opposite winners), unparsed_a, unparsed_b, identical,
        unanswered, and by_judge (the same of each judge).
    """
    both = {j: [_outcomes(p, kind, j, verdicts) for p in pairs] for j in judges}
    flips = {j: sum(o is not None and set(o) == {"a", "b"} for o in both[j]) for j in judges}
    outcomes = {j: [None if o is None else combine(*o) for o in both[j]] for j in judges}
    by_pair = [[outcomes[j][i] for j in judges] for i in range(len(pairs))]
    asked = [o for o, p in zip(by_pair, pairs, strict=True) if p.settled(kind) is None]
    return _tally(pairs, by_pair) | {
        "alpha": krippendorff_alpha(asked),
        "position_bias": _first_share(judges, pairs, verdicts),
        "flips": sum(flips.values()),
        "unparsed_a": sum(p.a is None for p in pairs),
        "unparsed_b": sum(p.b is None for p in pairs),
        "identical": sum(p.a is not None and p.b is not None and p.settled(kind) == "tie" for p in pairs),
        "by_judge": {
            j: {
                **_tally(pairs, [[o] for o in outcomes[j]]),
                "position_bias": _first_share([j], pairs, verdicts),
                "flips": flips[j],
            }
            for j in judges
        },
    }


def _outcomes(pair: Pair, kind: Kind, judge: str, verdicts: Verdicts) -> tuple[Outcome, Outcome] | None:
    """A judge's outcomes for a pair in both orders; None where a verdict is missing."""
    if (settled := pair.settled(kind)) is not None:
        return settled, settled
    first, second = (verdicts.get((judge, pair.prompt.id, o)) for o in ORDERS)
    return None if first is None or second is None else (winner(first, "ab"), winner(second, "ba"))


def _first_share(judges: Sequence[str], pairs: Sequence[Pair], verdicts: Verdicts) -> float | None:
    """The share of "1" among the verdicts other than ties."""
    ids = {p.prompt.id for p in pairs}
    given = Counter(v for (j, i, _), v in verdicts.items() if j in judges and i in ids)
    decided = given["1"] + given["2"]
    return given["1"] / decided if decided else None


_POINTS = {"a": 1.0, "tie": 0.5, "b": 0.0}


def _tally(pairs: Sequence[Pair], outcomes: Sequence[Sequence[Outcome | None]]) -> dict[str, Any]:
    """Counts, win rate and p-value of pairs, each with the outcomes of some judges."""
    points = [[_POINTS[o] for o in said if o is not None] for said in outcomes]
    scores = [sum(p) / len(p) for p in points if p]
    clusters = [pair.prompt.conversation_id for pair, p in zip(pairs, points, strict=True) if p]
    others = [1 - s for s in scores]
    return {
        "pairs": len(scores),
        "wins": sum(s > 0.5 for s in scores),
        "ties": sum(s == 0.5 for s in scores),
        "losses": sum(s < 0.5 for s in scores),
        "win_rate": mean_interval(scores, clusters).as_list() if scores else None,
        "p_value": paired_difference(others, scores, clusters).p_value if scores else None,
        "unanswered": len(pairs) - len(scores),
    }
