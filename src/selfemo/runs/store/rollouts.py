"""Rollouts: scored completions, their rewards, and the gate's verdict on the best of each group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from selfemo.method.types import EmotionDistribution, LabelSet, ParseFailure, Place, RolloutGroup
from selfemo.runs.store.base import Database
from selfemo.runs.store.prompts import read_distribution, read_label_set, write_distribution
from selfemo.training.expression import Reply


class Passed(NamedTuple):
    """A rollout that passed the gate: the emotion read in the turn before, its own, and its reply."""

    emotion: EmotionDistribution
    self_emotion: EmotionDistribution
    reply: str
    r1: float


class RlRollout(NamedTuple):
    """A rollout of an RL stage with its reward R1 and the two emotions that R1 compares."""

    stage: str
    step: int
    iteration: int
    original: bool
    label_set: LabelSet
    target: EmotionDistribution | None
    emotion: EmotionDistribution | None
    r1: float


class Verdicts(NamedTuple):
    """How often the gate gave a verdict on the best rollouts of a stage."""

    stage: str
    verdict: str | None
    n: int


class Failures(NamedTuple):
    """How often a kind of failure occurred in self-play or an evaluation, with the text of the first."""

    kind: str
    place: str
    n: int
    example: str


class Rollouts(Database):
    """Queries on rollouts; `stages.interfaces.Buffer` describes those that stages use."""

    def add_group(self, group: RolloutGroup, place: Place, best: int, verdict: str) -> None:
        self.db.executemany(
            "INSERT INTO rollouts (stage, step, iteration, prompt, member, text, tokens, failure, "
            "emotion, self_emotion, reply, r1, r2, advantage, mean_logprob, entropy, best, gate) "
            "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                (
                    place.stage, place.step, place.iteration, group.prompt.id, i, r.raw.text,
                    len(r.raw.token_ids),
                    r.parsed.kind.value if isinstance(r.parsed, ParseFailure) else None,
                    write_distribution(r.emotion),
                    write_distribution(r.completion.self_emotion if r.completion else None),
                    r.completion.reply if r.completion else None,
                    r.r1, r.r2, r.advantage, r.raw.mean_logprob, r.raw.mean_entropy,
                    int(i == best), verdict if i == best else None,
                )
                for i, r in enumerate(group.rollouts)
            ),
        )  # fmt: skip

    def add_replies(self, prompt_id: str, replies: Mapping[int, Reply], place: Place) -> None:
        self.db.executemany(
            "INSERT INTO replies (stage, step, iteration, prompt, member, self_emotion, text, tokens, fault, "
            "r3, heard, judged, advantage) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                (
                    place.stage, place.step, place.iteration, prompt_id, i,
                    write_distribution(r.said.self_emotion if r.said else None),
                    r.said.reply if r.said else r.raw.text, len(r.raw.token_ids), r.fault, r.reward,
                    write_distribution(r.heard), r.judged, r.advantage,
                )
                for i, r in replies.items()
            ),
        )  # fmt: skip

    def verdicts(self, stage: str) -> dict[str, int]:
        query = (
            "SELECT gate, count(*) AS n FROM rollouts WHERE stage = ? AND best = 1 "
            "GROUP BY gate ORDER BY n DESC, gate"
        )
        return dict(self.stream(query, stage))

    def verdicts_by_stage(self) -> list[Verdicts]:
        """The verdicts of all stages, by stage and the most frequent first."""
        query = (
            "SELECT stage, gate, count(*) AS n FROM rollouts WHERE best = 1 "
            "GROUP BY stage, gate ORDER BY stage, n DESC, gate"
        )
        return [Verdicts(*r) for r in self.stream(query)]

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
        """(prompt, rollout) of each passed turn without a passed turn after it: the longest episodes first,
        of equally long ones the latest."""
        return list(
            self.stream(
                "SELECT p.id, r.id FROM prompts p JOIN rollouts r ON r.prompt = p.id "
                "WHERE r.best = 1 AND r.gate = 'pass' AND p.id NOT IN "
                "(SELECT c.parent FROM prompts c JOIN rollouts q ON q.prompt = c.id "
                "WHERE c.parent IS NOT NULL AND q.best = 1 AND q.gate = 'pass') "
                "ORDER BY p.turn DESC, r.id DESC"
            )
        )

    def passed(self, rollout: int) -> Passed:
        """A rollout that passed the gate, by its id."""
        return self._passed("WHERE id = ?", rollout)

    def passed_answer(self, prompt_id: str, reply: str) -> Passed:
        """The passed rollout of a prompt that said `reply`; else the first that passed."""
        which = "WHERE prompt = ? AND best = 1 AND gate = 'pass' ORDER BY reply = ? DESC, id LIMIT 1"
        return self._passed(which, prompt_id, reply)

    def _passed(self, which: str, *args: object) -> Passed:
        query = f"SELECT emotion, self_emotion, reply, r1 FROM rollouts {which}"
        ((emotion, own, reply, r1),) = self.stream(query, *args)
        read, felt = read_distribution(emotion), read_distribution(own)
        assert read is not None and felt is not None
        return Passed(read, felt, reply, r1)
