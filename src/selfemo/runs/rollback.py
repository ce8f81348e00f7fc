"""A training stage that ends worse is rolled back: the run goes on from the weights before (SPEC section 9).

With flywheel.if_worse = "rollback" an iteration is

    iteration-i-rl -> evaluate-iteration-i-rl -> keep-iteration-i-rl
        -> iteration-i-refit -> evaluate-iteration-i-refit -> keep-iteration-i -> evaluate-iteration-i

A stage keep-C compares C with what the run would go on with otherwise: for RL the checkpoint that it started
from, for a refit what was kept after RL, also where the refit starts from the base model. C is rolled back
where NLL at T of beliefs, each data set at its own T, mean over data sets, rose by more than
flywheel.worse_margin. The record of keep-C holds the choice, so that a resumed run takes it and makes none
anew. The refit writes the checkpoint iteration-i-refit, and keep-iteration-i makes iteration-i of what is
kept: the last iteration is the model of the run, rolled back or not.

The choice is made on the tuning half of the held-out conversations (`data.splits.held_out`), also where all
of them are evaluated, so that the claim half stays for claims.

What a rolled-back stage leaves [ours]:
- RL: no weights, and no prompts for later RL: what its self-play left unanswered was written by weights that
  the run does not go on from, and its targets are what they declared. Its samples do join the refit, which
  starts from the weights before: each passed the gate, most were written between the two checkpoints, the
  gold turns that were drawn for them are used up, and the refit is judged by itself.
- a refit: neither weights nor samples. Later refits do not see the samples of its iteration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfemo.config import Config, DataConfig
from selfemo.counting import counted
from selfemo.data.splits import held_out
from selfemo.errors import ConfigError, DataError
from selfemo.method.prompts import conversation_prompts
from selfemo.method.types import Conversation, LabelSet
from selfemo.runs.folder import COLD, COPY_OF, RunFolder, evaluation_name, kept_name, refit_name
from selfemo.runs.store import PredictionRow, Store

Compare = Callable[
    [Sequence[PredictionRow], Sequence[PredictionRow], Mapping[str, LabelSet]], dict[str, dict[str, Any]]
]
"""Called with the predictions before and after a stage, and the label set of each data set: by data set the
NLL at T of beliefs "before" and "after" it, nats, and what else is worth recording. `evaluation.changes.
belief_changes` is one."""


def mean_change(by: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """The means over data sets, all alike, of NLL at T "before" and "after" a stage, nats.

    Args:
        by: of each data set, at least one.
    """
    before, after = (sum(found[side] for found in by.values()) / len(by) for side in ("before", "after"))
    return before, after


def is_worse(by: Mapping[str, Mapping[str, Any]], margin: float) -> bool:
    """Whether the mean NLL at T over data sets rose by more than `margin` nats; `by` as of `mean_change`."""
    before, after = mean_change(by)
    return after - before > margin


def check_settings(config: Config) -> None:
    """Refuse settings under which no stage can be judged, or only on what a claim is made on.

    Not a part of `Config`: what evaluates a finished run takes its settings with another split or half.

    Raises:
        ConfigError: all of them, with what to set.
    """
    data, reasoning = config.data, config.prompt.reasoning
    beliefs = config.evaluation.beliefs or config.evaluation.span == "probabilities"
    faults = [
        text
        for wrong, text in (
            (reasoning != "none",
             f"prompt.reasoning = {reasoning!r}: it compares label probabilities right after the prompt, "
             'and the model would reason first; set "none"'),
            (not beliefs,
             "evaluation.beliefs = false: it compares label probabilities, which it leaves out; set true"),
            (data.eval_split == "test",
             'data.eval_split = "test": it chooses between weights by their scores, and test is for claims '
             'alone; set "dev"'),
            (data.eval_half == "claim",
             'data.eval_half = "claim": it chooses between weights by their scores, and that half is for '
             'claims; set "tuning", or "all", of which the tuning half then chooses'),
        )
        if wrong
    ]  # fmt: skip
    if faults:
        listed = "\n".join(f"- {text}" for text in faults)
        raise ConfigError(
            'flywheel.if_worse = "rollback" does not go with these settings; change them, or set if_worse = '
            f'"go_on":\n{listed}'
        )


def judged_on(
    conversations: Sequence[Conversation], held: Sequence[Conversation], data: DataConfig
) -> list[Conversation]:
    """The evaluated conversations `held` that are in the tuning half of their split.

    Args:
        conversations: all of the run, of which the halves are drawn.

    Raises:
        DataError: a data set of `held` has none with a gold emotion.
    """
    tuning = {c.id for c in held_out(conversations, data.eval_split, 0, 0, "tuning")}
    chosen = [c for c in held if c.id in tuning]
    for name in dict.fromkeys(c.dataset for c in held):
        if not any(conversation_prompts(c) for c in chosen if c.dataset == name):
            raise DataError(
                f"{name}: no held-out conversation with a gold emotion is in the tuning half of split "
                f'{data.eval_split!r}, where flywheel.if_worse = "rollback" judges stages; raise '
                "data.eval_conversations (0 takes all), give more such conversations, or set if_worse = "
                '"go_on"'
            )
    return chosen


class Judge:
    """Compares checkpoints of a run on the conversations that choices are made on.

    Raises:
        DataError: a data set has no conversation to choose on.
    """

    def __init__(
        self,
        run: RunFolder,
        conversations: Sequence[Conversation],
        held: Sequence[Conversation],
        compare: Compare,
    ):
        self.run, self._compare = run, compare
        chosen = judged_on(conversations, held, run.config.data)
        self._ids = {c.id for c in chosen}
        self._labels = {c.dataset: c.label_set for c in chosen}

    def begin(self) -> None:
        """Say what stages are judged on; raises DataError where the cold start's beliefs are not there."""
        self._changes(COLD, COLD)
        self.run.reporter.say(judged_note(self.run.config.data, len(self._ids), list(self._labels)))

    def _changes(self, before: str, after: str) -> dict[str, dict[str, Any]]:
        def rows(checkpoint: str) -> list[PredictionRow]:
            every = self.run.store.predictions(evaluation_name(checkpoint))
            return [r for r in every if r["conversation"] in self._ids]

        return self._compare(rows(before), rows(after), self._labels)

    def choose(self, trained: str, before: str) -> dict[str, Any]:
        """The record of the choice between a trained checkpoint and the one before; says it.

        "trained", "before", "kept" (one of the two), "rolled_back", "nll_at_t" (mean before and after, nats),
        "margin", "by" data set what `Compare` gives, "judged_on" (number of conversations).
        """
        by, margin = self._changes(before, trained), self.run.config.flywheel.worse_margin
        worse = is_worse(by, margin)
        record = {
            "trained": trained,
            "before": before,
            "kept": before if worse else trained,
            "rolled_back": worse,
            "nll_at_t": list(mean_change(by)),
            "margin": margin,
            "by": by,
            "judged_on": len(self._ids),
        }
        self.run.reporter.say(choice_line(record))
        return record


def keep_rl(run: RunFolder, judge: Judge, after_rl: str, before: str, iteration: int) -> str:
    """The stage that chooses after RL; returns the checkpoint that is kept."""

    def unanswered() -> list[str]:
        return [p.id for p in run.store.pending()[0] if p.iteration == iteration]

    def work() -> dict[str, Any]:
        record = judge.choose(after_rl, before)
        return record | ({"prompts_dropped": len(unanswered())} if record["rolled_back"] else {})

    record = run.stage(kept_name(after_rl), work)
    if record["rolled_back"]:
        # Behind the record, and at each resume: a kill in between leaves out neither the count nor the deed.
        with run.store.transaction():
            run.store.skip(unanswered())
    return str(record["kept"])


def keep_refit(run: RunFolder, judge: Judge, before: str, iteration: str) -> str:
    """The stage that chooses after a refit, and makes the iteration's checkpoint of what is kept; returns it.

    Args:
        before: what was kept after RL.
    """
    refitted = refit_name(iteration)

    def work() -> dict[str, Any]:
        record: dict[str, Any] = {}
        if run.copied().get(refitted) == before:  # there was no refit
            kept = before
        else:
            record = judge.choose(refitted, before)
            kept = record["kept"]
        run.weights(kept)  # checked before it is copied
        run.copy_checkpoint(kept, iteration)
        return record | {COPY_OF: kept}

    run.stage(kept_name(iteration), work, iteration)
    return iteration


def choices(store: Store) -> list[dict[str, Any]]:
    """The records of a run's choices (`Judge.choose`), in order."""
    found = (json.loads(r["info"]) for r in store.stages() if r["status"] == "done")
    return [info for info in found if "rolled_back" in info]


def rolled_back_refits(store: Store) -> set[int]:
    """The iterations whose refit was rolled back."""
    refits = {c["trained"] for c in choices(store) if c["rolled_back"]}
    numbers = (n.removeprefix("iteration-").removesuffix("-refit") for n in refits if n.endswith("-refit"))
    return {int(n) for n in numbers}


def choice_line(record: Mapping[str, Any]) -> str:
    """One line on a choice: "iteration-1-rl rolled back to cold-start: NLL at T 1.520 -> 1.600"."""
    before, after = record["nll_at_t"]
    what = f"rolled back to {record['before']}" if record["rolled_back"] else "kept"
    return f"{record['trained']} {what}: NLL at T {before:.3f} -> {after:.3f}"


def choice_lines(config: Config, store: Store) -> list[str]:
    """`choice_line` of each choice of a run, then `judged_note`; empty for a run that made none."""
    made = choices(store)
    return [*map(choice_line, made), judged_note(config.data, made[-1]["judged_on"])] if made else []


def judged_note(data: DataConfig, conversations: int, names: Sequence[str] = ()) -> str:
    """What stages were judged on, and what that means for scores.

    Args:
        conversations: how many.
        names: of the data sets.
    """
    judged = counted(conversations, "conversations") + (f" of {', '.join(names)}" if names else "")
    shown = "Scores on that half" if data.eval_half == "tuning" else "Scores on the whole split"
    return (
        f"Stages are judged on {judged} in the tuning half of {data.eval_split}, "
        f"and one that ends worse is rolled back. {shown} are therefore chosen on; claim on the other "
        f"half (selfemo evaluate RUN --data DATA --split {data.eval_split} --set data.eval_half=claim) or on "
        "test."
    )
