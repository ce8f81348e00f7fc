"""The first sentences of a report: what ran, whether it helped and by which stage, where it fails; and, where
replies were rewarded, whether they show their emotion.

They say of a change what its verdict says (`evaluation.changes.VERDICTS`), and no more: a verdict counts only
what its 95% interval shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfemo.config import Config
from selfemo.counting import counted
from selfemo.data import split_source
from selfemo.evaluation.readers import GIVEN, REAL
from selfemo.evaluation.reading_tables import read_data, read_of_last
from selfemo.evaluation.rendering import cell
from selfemo.method.types import UNION
from selfemo.runs.folder import START, evaluation_name

_SAID = {
    "better": "{} made the model better",
    "surer, not better": "{} made the model surer, not better",
    "knows more, scores the same": "{} taught what the scores do not show (knows more, scores the same)",
    "no change beyond noise": "{} made no change beyond noise",
    "knows less, scores the same": "{} did not help (knows less, scores the same)",
    "scores lower, knows more": "{} did not help the scores (scores lower, knows more)",
    "scores lower, knows the same": "{} did not help (scores lower, knows the same)",
    "worse": "{} made the model worse",
}
_BESIDE = {"above": "beats", "not told apart": "is not told apart from", "below": "is below"}
_ONE_ANSWER = 0.8
"""From this share of turns on, one predicted emotion is worth saying."""


@dataclass(frozen=True)
class Facts:
    """What the sentences are made of.

    Attributes:
        stages: the rows of the stages, in order ("name", "status").
        scores: `summary.plain` scores by checkpoint and data set.
        changes: `changes.stage_changes`; change: `changes.whole_change` of the last scored checkpoint.
        finished: whether the run wrote its summary.
        resume: the command that goes on with the run.
        constants: `summary.constants_part`.
        analysis: what `selfemo analyse` wrote; None for nothing.
        read_replies: the command that has an independent reader read the replies.
    """

    config: Config
    stages: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    changes: Sequence[Mapping[str, Any]]
    change: Mapping[str, Any] | None
    finished: bool
    resume: str
    constants: Mapping[str, Any]
    analysis: Mapping[str, Any] | None = None
    read_replies: str = ""

    @property
    def last(self) -> Mapping[str, Mapping[str, Any]]:
        """The scores by data set of the last scored checkpoint; empty for none."""
        return list(self.scores.values())[-1] if self.scores else {}

    @property
    def whole(self) -> Mapping[str, Any] | None:
        """The scores of `last` over all data sets."""
        return self.last.get(UNION) or next(iter(self.last.values()), None)

    @property
    def iterations(self) -> int:
        """How many iterations are done."""
        done = [s["name"] for s in self.stages if s["status"] == "done"]
        return sum(bool(re.fullmatch(r"iteration-\d+-refit", name)) for name in done)

    @property
    def refitted(self) -> bool:
        """Whether a refit has trained: where nothing passes the gate, the policy after RL is kept."""
        return any("refit" in c["stage"] and not c["copied"] for c in self.changes)

    @property
    def complete(self) -> bool:
        return self.finished and self.iterations >= self.config.flywheel.iterations


def sentences(facts: Facts) -> list[tuple[str, str]]:
    """(question, sentence) of each."""
    found = [
        ("What ran", _what_ran(facts)),
        ("Did it help", _did_it_help(facts)),
        ("Where it fails", _where_it_fails(facts)),
    ]
    if facts.config.expresses:
        found.append(("Do replies show their emotion", _do_replies_show_it(facts)))
    return found


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _called(model: str) -> str:
    """A model's id, or the name of its folder."""
    return Path(model).name if model.startswith(("/", ".")) else model


def _dataset(source: str) -> str:
    """The data set of a source: a published one by its name, others by that of the file."""
    kind, path = split_source(source)
    return kind if kind not in ("", "jsonl", "table") else Path(path).name


def _what_ran(facts: Facts) -> str:
    config, names = facts.config, [s["name"] for s in facts.stages]
    model, data = _called(config.model.id), _listed([_dataset(s) for s in config.data.sources])
    if (whole := facts.whole) is None:
        scored = "no checkpoint has been evaluated"
    else:
        turns = counted(whole["utterances"], "held-out turns", ",")
        of = counted(whole["conversations"], "conversations", ",")
        scored = f"it was evaluated on {turns} of {of} ({config.data.evaluated_on} split)"
    if names and evaluation_name(START) not in names:  # a command of one stage, not `evolve`
        return f"{model} went through {_listed(names)} alone, on {data}; {scored}."
    planned = config.flywheel.iterations
    refits = facts.refitted if facts.complete else config.flywheel.refit != "none"
    refit = " and a refit" if refits else ""
    plan = (
        f"a cold start, then {counted(planned, 'iterations')} of self-play with RL{refit} "
        f"({counted(config.flywheel.prompts, 'prompts', ',')}{' each' if planned > 1 else ''})"
        if planned
        else "a cold start, without self-play and RL"
    )
    if facts.complete:
        return f"{model} was trained on {data} by {plan}; {scored}."
    if not names:
        return f"The run has not begun: {model} is to be trained on {data} by {plan}; {scored}."
    at = facts.stages[-1]
    where = f"{at['name']} is {'the last stage that is done' if at['status'] == 'done' else 'not done'}"
    return (
        f"The run has not finished: {model} is being trained on {data} by {plan}; {facts.iterations} of "
        f"{counted(planned, 'iterations')} done, {where} ({facts.resume} goes on); {scored}."
    )


def _did_it_help(facts: Facts) -> str:
    so_far = "" if facts.complete else "So far: "
    if not facts.last:
        return f"That is not known: no checkpoint has been evaluated ({facts.resume} does it)."
    stages = [(c, c["by"].get(UNION) or next(iter(c["by"].values()))) for c in facts.changes if c["by"]]
    if facts.change is not None:
        parts = _listed(["self-play", "RL", *(["refits"] if facts.refitted else [])])
        said = _changed(f"after the cold start, {parts}", facts.change)
        groups: dict[str, list[str]] = {}
        for c, by in stages:
            undone = " (rolled back)" if c.get("rolled_back") else ""
            groups.setdefault(by["verdict"].replace(";", ","), []).append(c["stage"] + undone)
        if absent := [c["stage"] for c in facts.changes if c["copied"]]:
            groups["none took place"] = absent
        by_stage = "; ".join(f"{_listed(names)}: {verdict}" for verdict, names in groups.items())
        said += f" (by stage, {by_stage})" if len(facts.changes) > 1 else ""
    elif stages:
        said = _changed(f"the {stages[-1][0]['stage']}", stages[-1][1])
    else:
        said = "that is not known, since one checkpoint alone was evaluated"
    majority = "; ".join(
        _majority(
            d,
            s,
            facts.constants["constants"][d]["label"],
            facts.constants["against_constants"][d],
            len(facts.last),
        )
        for d, s in facts.last.items()
        if d != UNION
    )
    text = f"{said}; {majority}."
    return so_far + text if so_far else text[0].upper() + text[1:]


def _changed(what: str, change: Mapping[str, Any]) -> str:
    """What a change record says, with accuracy in points and NLL at T in nats."""
    numbers = [
        "accuracy {:+.1f} points [{:+.1f}, {:+.1f}]".format(*_points(change["accuracy"]["difference"]))
    ]
    if nll := change["nll_at_t"]:
        numbers.append("NLL at T {:+.3f} nats [{:+.3f}, {:+.3f}]".format(*nll["difference"]))
    verdict = change["verdict"]
    said = _SAID.get(verdict, "{}: " + verdict.replace("{", "").replace("}", "")).format(what)
    return f"{said}: {', '.join(numbers)}"


def _points(values: Sequence[float]) -> list[float]:
    return [round(100 * v, 1) + 0.0 for v in values]  # no "-0.0"


def _majority(
    dataset: str, scores: Mapping[str, Any], label: str, against: Mapping[str, Any], sets: int
) -> str:
    """The accuracy beside that of the majority label for every turn, on the same turns."""
    value, low, high = scores["accuracy"]
    shown = f"its accuracy{f' on {dataset}' if sets > 1 else ''}, {value:.1%} [{low:.1%}, {high:.1%}],"
    by = "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*_points(against["accuracy"]["difference"]))
    return f"{shown} {_BESIDE[against['verdict']]} always answering “{label}” ({by})"


def _do_replies_show_it(facts: Facts) -> str:
    """What independent readers found in the last checkpoint's replies, the first one's and people's."""
    result = facts.analysis or {"checkpoints": {}, "readers": {}}
    said = [
        f"{d}, read by {reference}, {shown}"
        for reference, reading in result["readers"].items()
        for d in read_data(reading)
        if (shown := _kappas(result, reading, d))
    ]
    if not said and result["readers"]:
        return "Too few replies could be read to say."
    if not said:
        return (
            "Replies were rewarded for it, and no independent reader has judged them yet: "
            f"{facts.read_replies} asks one."
        )
    return (
        f"Kappa of the declared emotion, S, and what is read in the reply (0 is chance): {'; '.join(said)}."
    )


def _kappas(result: Mapping[str, Any], reading: Mapping[str, Any], dataset: str) -> str:
    """Kappa of the last checkpoint's replies to an S that was given, else to its own, and in brackets that of
    the first checkpoint and of people's turns, where they were read; "" for none."""
    if not (last := read_of_last(result, reading, dataset)):
        return ""
    kind = GIVEN if last[-1].endswith(GIVEN) else ""
    names = [*(c + kind for c in result["checkpoints"]), REAL]
    kappa = {n: k for n in names if (k := reading["expression"].get(n, {}).get(dataset, {}).get("kappa"))}
    beside = [n for n in (next(iter(kappa)), REAL) if n in kappa and n != last[-1]]
    told = ", ".join(f"{n.removesuffix(kind)} {cell(kappa[n])}" for n in beside)
    return f"{last[-1]}, {cell(kappa[last[-1]])}" + (f" ({told})" if told else "")


def _where_it_fails(facts: Facts) -> str:
    if (scores := facts.whole) is None:
        return "That is not known before an evaluation."
    labels, rows = scores["confusion"]["labels"], scores["confusion"]["rows"]
    n, failed = scores["utterances"], sum(row[-1] for row in rows)
    hits = {e: (rows[k][k], sum(rows[k])) for k, e in enumerate(labels) if sum(rows[k])}
    if all(hit == of for hit, of in hits.values()):
        return f"It made no error on {counted(n, 'held-out turns', ',')}."
    said = [*_one_answer(labels, rows, n), _least(hits)]
    wrong = [
        (rows[i][j], rows[i][j] / sum(rows[i]), -i, -j)
        for i in range(len(labels)) for j in range(len(labels)) if i != j and rows[i][j]
    ]  # fmt: skip
    if wrong:
        count, _, i, j = max(wrong)
        taken = f"{labels[-i]} taken for {labels[-j]} ({count} of {sum(rows[-i])} turns)"
        said.append(f"the most frequent confusion is {taken}")
    if failed:
        said.append(f"{failed} of {n} answers could not be read")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _one_answer(labels: Sequence[str], rows: Sequence[Sequence[int]], n: int) -> list[str]:
    predicted = [sum(row[j] for row in rows) for j in range(len(labels))]
    most = max(predicted)
    if most < _ONE_ANSWER * n:
        return []
    return [f"it answers “{labels[predicted.index(most)]}” on {most} of {n} turns"]


def _least(hits: Mapping[str, tuple[int, int]]) -> str:
    """The emotions that are never recognised; else the two that are least, of those with five turns or more
    where there are any."""
    never = sorted((e for e, (hit, _) in hits.items() if hit == 0), key=lambda e: -hits[e][1])
    if never:
        shown = [f"{e} (0 of {hits[e][1]})" for e in never[:3]]
        more = [counted(len(never) - 3, "more emotions")] if len(never) > 3 else []
        return f"it never recognises {_listed([*shown, *more])}"
    known = {e: c for e, c in hits.items() if c[1] >= 5} or hits
    worst = sorted(known, key=lambda e: (known[e][0] / known[e][1], -known[e][1]))[:2]
    return f"it recognises {_listed([f'{e} ({known[e][0]} of {known[e][1]})' for e in worst])} least"
