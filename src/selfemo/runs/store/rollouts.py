"""Rollouts: scored completions with their rewards, and what the gate said of the best of a group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from selfemo.method.types import EmotionDistribution, LabelSet, ParseFailure, Place, RolloutGroup
from selfemo.runs.store.base import Database
from selfemo.runs.store.prompts import read_distribution, read_label_set, write_distribution


class Passed(NamedTuple):
    """A rollout that passed the gate: what it read in the turn before, declared of itself, and said."""

    emotion: EmotionDistribution
    self_emotion: EmotionDistribution
    reply: str
    r1: float


class RlRollout(NamedTuple):
    """A rollout of an RL stage with what it was scored on."""

    stage: str
    step: int
    iteration: int
    original: bool
    label_set: LabelSet
    target: EmotionDistribution | None
    emotion: EmotionDistribution | None
    r1: float


class Verdicts(NamedTuple):
    """How often the gate said something of the best rollouts of a stage."""

    stage: str
    verdict: str | None
    n: int


class Failures(NamedTuple):
    """How often a kind of failure occurred in a place, with the text of the first."""

    kind: str
    place: str
    n: int
    example: str


class Rollouts(Database):
    """Queries on rollouts."""

    def add_group(self, group: RolloutGroup, place: Place, best: int, verdict: str) -> None:
        """Insert a scored group; `verdict` is what the gate said of member `best`."""
        self.db.executemany(
            "INSERT INTO rollouts (stage, step, iteration, prompt, member, text, tokens, failure, "
            "emotion, self_emotion, reply, r1, r2, advantage, mean_logprob, entropy, best, gate) "
            "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                (
                    place.stage, place.step, place.iteration, group.prompt.id, i, r.sample.text,
                    len(r.sample.token_ids),
                    r.parsed.kind.value if isinstance(r.parsed, ParseFailure) else None,
                    write_distribution(r.completion.emotion if r.completion else None),
                    write_distribution(r.completion.self_emotion if r.completion else None),
                    r.completion.reply if r.completion else None,
                    r.r1, r.r2, r.advantage, r.sample.mean_logprob, r.sample.mean_entropy,
                    int(i == best), verdict if i == best else None,
                )
                for i, r in enumerate(group.rollouts)
            ),
        )  # fmt: skip

    def last_step(self, stage: str) -> int | None:
        """The last step of a stage that wrote rollouts."""
        found: int | None = self.value("SELECT max(step) FROM rollouts WHERE stage = ?", stage)
        return found

    def verdicts(self, stage: str) -> dict[str, int]:
        """Verdicts of the gate on the best rollouts of a stage, the most frequent first."""
        return dict(
            self.stream(
                "SELECT gate, count(*) AS n FROM rollouts WHERE stage = ? AND best = 1 "
                "GROUP BY gate ORDER BY n DESC, gate",
                stage,
            )
        )

    def verdicts_by_stage(self) -> list[Verdicts]:
        """Those of all stages, by stage and the most frequent first."""
        return [
            Verdicts(*r)
            for r in self.stream(
                "SELECT stage, gate, count(*) AS n FROM rollouts WHERE best = 1 "
                "GROUP BY stage, gate ORDER BY stage, n DESC, gate"
            )
        ]

    def failures(self) -> list[Failures]:
        """Failures by kind, of all rollouts ("self-play") and of the predictions of each evaluation."""
        rollouts = self.stream(
            "SELECT failure, 'self-play', count(*), text, min(id) FROM rollouts "
            "WHERE failure IS NOT NULL GROUP BY failure"
        )
        predictions = self.stream(
            "SELECT failure, evaluation, count(*), text, min(prompt) FROM predictions "
            "WHERE failure IS NOT NULL GROUP BY failure, evaluation"
        )
        return [Failures(*r[:4]) for r in (*rollouts, *predictions)]

    def rl_rollouts(self) -> Iterator[RlRollout]:
        """The rollouts of all RL stages with their prompts' targets, in order of insertion."""
        for stage, step, iteration, original, labels, target, emotion, r1 in self.stream(
            "SELECT r.stage, r.step, r.iteration, p.parent IS NULL, p.label_set, p.target, "
            "r.emotion, r.r1 FROM rollouts r JOIN prompts p ON p.id = r.prompt "
            "WHERE r.stage LIKE '%-rl' ORDER BY r.id"
        ):
            yield RlRollout(
                stage, step, iteration, bool(original), read_label_set(labels),
                read_distribution(target), read_distribution(emotion), r1,
            )  # fmt: skip

    def episode_ends(self) -> list[tuple[str, int]]:
        """(prompt, rollout) of the passed turns that no passed turn follows: the longest episodes, and of
        those the latest, first."""
        return [
            (prompt, rollout)
            for prompt, rollout in self.stream(
                "SELECT p.id, r.id FROM prompts p JOIN rollouts r ON r.prompt = p.id "
                "WHERE r.best = 1 AND r.gate = 'pass' AND p.id NOT IN "
                "(SELECT c.parent FROM prompts c JOIN rollouts q ON q.prompt = c.id "
                "WHERE c.parent IS NOT NULL AND q.best = 1 AND q.gate = 'pass') "
                "ORDER BY p.turn DESC, r.id DESC"
            )
        ]

    def passed(self, rollout: int) -> Passed:
        """A rollout that passed the gate, by its id."""
        return self._passed("WHERE id = ?", rollout)

    def passed_answer(self, prompt_id: str, reply: str) -> Passed:
        """The passed rollout of a prompt that said `reply`; else the first that passed."""
        return self._passed(
            "WHERE prompt = ? AND best = 1 AND gate = 'pass' ORDER BY reply = ? DESC, id LIMIT 1",
            prompt_id,
            reply,
        )

    def _passed(self, which: str, *args: object) -> Passed:
        ((emotion, own, reply, r1),) = self.stream(
            f"SELECT emotion, self_emotion, reply, r1 FROM rollouts {which}", *args
        )
        read, felt = read_distribution(emotion), read_distribution(own)
        assert read is not None and felt is not None
        return Passed(read, felt, reply, r1)
