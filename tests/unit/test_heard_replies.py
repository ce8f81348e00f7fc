"""What a teacher hears in the replies of self-play: the gate, the next targets and their counts, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.config import Config, GateConfig, SelfPlayConfig, load
from selfemo.errors import UnsupportedError
from selfemo.method.channel import ChannelScores
from selfemo.method.types import (
    LABEL_SETS,
    Completion,
    EmotionDistribution,
    LabelSet,
    Persona,
    Prompt,
    RawCompletion,
    Rollout,
    RolloutGroup,
)
from selfemo.models.generation.scripted import ScriptedSampler
from selfemo.models.sampler import ChannelPlace, LabelPlace, Message, Sampler
from selfemo.runs.store import Store
from selfemo.stages.gate import CHANNEL_DISAGREES, CHANNEL_TOO_LONG, PASS, channel_fault
from selfemo.stages.selfplay import Turn, next_prompt, next_targets, play_episodes, read_replies
from tests.conftest import MELD, dist, make_prompt

EMORY = LABEL_SETS["emorynlp"]
E = {"Who is there?": {"joy": 0.5, "fear": 0.25, "neutral": 0.25}, "Hooray.": {"joy": 0.75, "neutral": 0.25}}
CHANNEL = {
    "Who is there?": {"joy": 0.1, "fear": 0.6, "neutral": 0.2},
    "Hooray.": {"joy": 0.3, "neutral": 0.1},
}
# E x channel: .05, .15, .05 are joy .2, fear .6, neutral .2; .225, .025 are joy .9, neutral .1.
HEARD = {"Who is there?": {"joy": 0.2, "fear": 0.6, "neutral": 0.2}, "Hooray.": {"joy": 0.9, "neutral": 0.1}}


class Teacher(ScriptedSampler):
    """Hears what stands above; notes its calls. Before a reply it believes in anger."""

    def __init__(self) -> None:
        super().__init__(["x"])
        self.asked: list[str] = []
        self.channels: list[tuple[LabelSet, list[tuple[str, str]]]] = []
        self.opened = 0

    def __call__(self) -> Sampler:
        self.opened += 1
        return self

    def encode(self, messages: list[Message]) -> list[int]:
        return [ord(c) for m in messages for c in m["content"]]

    def label_probabilities(
        self, places: Sequence[LabelPlace], labels: LabelSet
    ) -> list[EmotionDistribution]:
        found = []
        for _, ids, written in places:
            last = "".join(map(chr, ids)).rsplit(": ", 1)[1]
            self.asked.append(last)
            assert written == "E:"
            weights = {**E, "Hm, well.": {labels.labels[-1]: 1}}.get(last, {"anger": 1, "mad": 1})
            found.append(EmotionDistribution({e: w for e, w in weights.items() if e in labels}))
        return found

    def channel_scores(self, places: Sequence[ChannelPlace], labels: LabelSet) -> list[ChannelScores]:
        self.channels.append((labels, [(written, reply) for _, _, written, reply in places]))
        even = dict.fromkeys(labels, 0.5)
        weights = [CHANNEL.get(reply, even) for _, _, _, reply in places]
        logs = [tuple(math.log(w[e]) if e in w else -9.0 for e in labels) for w in weights]
        return [ChannelScores((-99.0, *log[1:]), log) for log in logs]


def turn(name: str, declared: dict[str, float], reply: str, verdict: str = PASS, **change: object) -> Turn:
    prompt = replace(make_prompt(f"{name}/1", dist(joy=1)), **change)  # type: ignore[arg-type]
    said = Completion(dist(joy=1), EmotionDistribution(declared), reply)
    rollout = Rollout(RawCompletion("x"), said, 1.0, 0.5, 0.0)
    return Turn(RolloutGroup(prompt, (rollout,)), 0, verdict)


def persona_of(conversation: str, speaker: str) -> Persona:
    return Persona(speaker, f"{speaker} of {conversation}")


def read(turns: list[Turn], *settings: str) -> tuple[list[Turn], Teacher]:
    teacher = Teacher()
    return read_replies(teacher, turns, persona_of, load([], list(settings))), teacher


TURNS = [
    turn("a", {"fear": 1}, "Who is there?"),
    turn("b", {"joy": 0.6, "fear": 0.4}, "Who is there?"),
    turn("c", {"joy": 1}, "Hooray.", "low_reward"),
    turn("d", {"joy": 1}, "Hooray."),
]


@pytest.mark.parametrize(
    ("channel", "verdicts"),
    [
        ("top", [PASS, CHANNEL_DISAGREES, "low_reward", PASS]),
        ("0.2", [PASS, PASS, "low_reward", PASS]),
        ("0.21", [PASS, CHANNEL_DISAGREES, "low_reward", PASS]),
        ("0.7", [CHANNEL_DISAGREES, CHANNEL_DISAGREES, "low_reward", PASS]),
        ("0.95", [CHANNEL_DISAGREES, CHANNEL_DISAGREES, "low_reward", CHANNEL_DISAGREES]),
    ],
)
def test_a_reply_passes_where_its_emotion_is_heard(channel: str, verdicts: list[str]) -> None:
    turns, teacher = read(TURNS, f"gate.channel={channel}")
    assert [t.verdict for t in turns] == verdicts
    assert [t.group for t in turns] == [t.group for t in TURNS]
    for before, after in zip(TURNS, turns, strict=True):
        if before.verdict == PASS:
            said = before.completion
            assert said and dict(after.heard or {}) == pytest.approx(HEARD[said.reply])
    assert turns[2] == TURNS[2], "what the gate refused before is not read"
    # All in one call: each prompt as it was answered, and the next one; behind its own E, not the policy's.
    assert teacher.opened == 1
    before = "It was only the cat, I promise."
    assert teacher.asked == [before, "Who is there?", before, "Who is there?", before, "Hooray."]
    said = ["Who is there?", "Who is there?", "Hooray."]
    assert teacher.channels == [(MELD, [("E: anger\nS:", r) for r in said])]


def test_label_sets_are_read_apart_and_long_prompts_not_at_all() -> None:
    other = turn("e", {"sad": 1}, "Hm, well.", label_set=EMORY, target=dist(joyful=1))
    long = turn("f", {"joy": 1}, "word " * 500)
    settings = ("prompt.max_tokens=600", "gate.channel=top")
    (refused, first, second), teacher = read([long, other, TURNS[0]], *settings)
    assert (refused.verdict, refused.heard) == (CHANNEL_TOO_LONG, None)
    assert (first.verdict, second.verdict) == (PASS, PASS)
    assert [labels for labels, _ in teacher.channels] == [EMORY, MELD]
    assert first.heard == dist(sad=1)
    (kept,), _ = read([long], "prompt.max_tokens=600", "selfplay.targets=channel")
    assert (kept.verdict, kept.heard) == (PASS, None), "without the gate it passes, with its own S"


def test_a_teacher_is_asked_only_where_it_has_something_to_read() -> None:
    for turns, settings in ((TURNS, ()), (TURNS[2:3], ("gate.channel=top",)), ([], ("gate.channel=top",))):
        found, teacher = read(list(turns), *settings)
        assert found == list(turns) and teacher.opened == 0


def test_a_fault_by_hand() -> None:
    top, half = GateConfig(channel="top"), GateConfig(channel=0.5)
    even = dist(fear=0.5, joy=0.5)
    assert channel_fault(dist(joy=1), even, MELD, top) == "", "of equal ones the first of the label set"
    assert channel_fault(dist(fear=1), even, MELD, top) == CHANNEL_DISAGREES
    assert channel_fault(dist(fear=1), even, MELD, half) == "", "at least so much"
    assert channel_fault(dist(fear=1), None, MELD, half) == CHANNEL_TOO_LONG
    assert channel_fault(dist(fear=1), None, MELD, GateConfig()) == ""


def children(turns: Sequence[Turn]) -> list[Prompt]:
    return [next_prompt(t.group.prompt, t.completion, persona_of, 1, "s") for t in turns if t.completion]


def test_next_targets_are_what_was_heard() -> None:
    turns, _ = read([TURNS[0], TURNS[1], TURNS[3]], "selfplay.targets=channel")
    assert [t.verdict for t in turns] == [PASS] * 3, "without the gate none is refused"
    following = children([*turns, turns[0]])
    heard = {p.id: t.heard for p, t in zip(following, turns, strict=False)}
    heard[following[2].id] = None
    channel = SelfPlayConfig(targets="channel")
    prompts, record = next_targets(following, channel, 0, heard)
    assert [p.id for p in prompts] == [p.id for p in following[:3]]
    assert [dict(p.target or {}) for p in prompts[:2]] == [pytest.approx(HEARD["Who is there?"])] * 2
    assert prompts[2].target == dist(joy=1), "not read: it keeps the S that was declared"
    # b declared joy .6, fear .4, and fear was heard; its history keeps what was declared.
    assert record == {"targets": {"targets_heard": 2, "targets_other_top": 1, "targets_unheard": 1}}
    assert prompts[1].history[-1].emotion == dist(joy=0.6, fear=0.4)
    assert next_targets(following, SelfPlayConfig(), 0, heard) == (following[:3], {})


class Playing(Teacher):
    """A model that plays and hears: each answer declares joy and asks who is there."""

    def __init__(self) -> None:
        super().__init__()
        self._answers = ["E: joy\nS: joy\nR: Hooray."]


def played(config: Config, sampler: Sampler, path: Path) -> tuple[dict[str, int], list[Prompt]]:
    with Store(path / "store.sqlite") as store:
        counts = play_episodes(sampler, [make_prompt("a/1", dist(joy=1))], persona_of, config, store)
        rows = store.rows("SELECT id FROM prompts WHERE parent IS NOT NULL")
        return counts, [store.prompt(r["id"]) for r in rows]


def test_episodes_without_training_have_the_sampler_as_their_teacher(tmp_path: Path) -> None:
    two = ["selfplay.max_turns=2"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    counts, following = played(load([], [*two, "selfplay.targets=channel"]), Playing(), tmp_path / "a")
    assert counts["targets_heard"] > 0 and counts["targets_other_top"] == 0
    assert [dict(p.target or {}) for p in following] == [pytest.approx(HEARD["Hooray."])]
    counts, following = played(load([], [*two, "gate.channel=0.95"]), Playing(), tmp_path / "b")
    assert counts == {CHANNEL_DISAGREES: 1} and following == []
    with pytest.raises(UnsupportedError, match="use a model on this machine"):
        played(load([], ["gate.channel=top"]), ScriptedSampler(["E: joy\nS: joy\nR: Yes."]), tmp_path)
