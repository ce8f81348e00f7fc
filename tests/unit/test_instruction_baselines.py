"""Recipes of causal models as baselines: their prompts, tasks, orders and demonstrations, worked by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo import extras
from selfemo.config import load
from selfemo.errors import ConfigError, DataError, EngineError, MissingExtraError
from selfemo.evaluation.baseline_jobs import settings_class
from selfemo.evaluation.baselines import baseline, bios_erc, instruct_erc, prc_emo
from selfemo.evaluation.baselines.base import Task
from selfemo.evaluation.baselines.instruction import Ask, labelled
from selfemo.evaluation.baselines.retrieval import Demonstrations
from selfemo.method.types import LABEL_SETS, Conversation, Persona, Utterance
from selfemo.progress import Quiet, StopRequest
from selfemo.training.label_examples import Example, Stage
from tests.conftest import MELD, dist, toy_conversations

RECIPES = ("instruct-erc", "bios-erc", "prc-emo")
CHOOSE = "Choose one of: neutral, joy, surprise, anger, sadness, disgust, fear."


def talk(*turns: tuple[str, str, str], name: str = "c") -> Conversation:
    """Turns of (speaker, text, label); without a label for ""."""
    said = tuple(Utterance(s, t, dist(**{e: 1}) if e else None) for s, t, e in turns)
    about = {"Ann": Persona("Ann", "Worries a lot."), "Bo": Persona("Bo", "")}
    return Conversation(name, "toy", "train", said, MELD, "", about)


THREE = talk(("Ann", "We won!", "joy"), ("Bo", "Won what?", "surprise"), ("Ann", "Forget it.", "anger"))


def words(example: Example, window: int = 12) -> tuple[str, str]:
    """(what the user says in the prompt, the answer)"""
    return example.text(window)[-1]["content"], example.answer


def task_of(tmp_path: Path, train: Sequence[Conversation]) -> Task:
    return Task(train, [], 0, tmp_path / "states", tmp_path / "shared", "cpu", Quiet(), StopRequest())


def test_the_three_tasks_of_instruct_erc() -> None:
    recipe = instruct_erc.InstructErc(instruct_erc.InstructErcConfig())
    speakers, labels = recipe.stages(labelled([THREE]), instruct_erc.label_prompt)
    assert (speakers.epochs, labels.epochs) == (3, 15)
    assert [words(e) for e in speakers.examples] == [
        ("Conversation:\n?: We won!\nWho says the last line? Choose one of: Ann, Bo.", "Ann"),
        ("Conversation:\nAnn: We won!\n?: Won what?\nWho says the last line? Choose one of: Ann, Bo.", "Bo"),
        (
            "Conversation:\nAnn: We won!\nBo: Won what?\n?: Forget it.\n"
            "Who says the last line? Choose one of: Ann, Bo.",
            "Ann",
        ),
    ]
    assert [words(e) for e in labels.examples] == [
        (f'Conversation:\nAnn: We won!\nWhich emotion does Ann show in "We won!"? {CHOOSE}', "joy"),
        (
            "Conversation:\nAnn: We won!\nBo: Won what?\n"
            f'Which emotion does Bo show in "Won what?"? {CHOOSE}',
            "surprise",
        ),
        (
            "Conversation:\nAnn: We won!\nBo: Won what?\nAnn: Forget it.\n"
            f'Which emotion does Ann show in "Forget it."? {CHOOSE}',
            "anger",
        ),
        (f"Conversation:\nAnn: We won!\nBo speaks next. Which emotion will it be? {CHOOSE}", "surprise"),
        (
            "Conversation:\nAnn: We won!\nBo: Won what?\n"
            f"Ann speaks next. Which emotion will it be? {CHOOSE}",
            "anger",
        ),
    ]
    assert [e.weight for e in labels.examples] == [1, 1, 1, 0.1, 0.1]


def test_tasks_of_instruct_erc_can_be_left_out() -> None:
    config = instruct_erc.InstructErcConfig(speaker_epochs=0, prediction_weight=0)
    (labels,) = instruct_erc.InstructErc(config).stages(labelled([THREE]), instruct_erc.label_prompt)
    assert [e.answer for e in labels.examples] == ["joy", "surprise", "anger"]


def test_one_speaker_is_no_question() -> None:
    turns = labelled([talk(("Ann", "So.", "joy"), ("Ann", "Well.", "joy"))])
    assert not instruct_erc.speaker_examples(turns)
    recipe = instruct_erc.InstructErc(instruct_erc.InstructErcConfig())
    assert [s.name for s in recipe.stages(turns, instruct_erc.label_prompt)] == ["labels"]


def test_a_window_is_of_earlier_turns() -> None:
    shown = [instruct_erc.label_prompt(THREE, 2, w)[1]["content"].count("\n") for w in (0, 1, 2, 12)]
    assert shown == [2, 3, 4, 4]  # the heading, then the lines
    assert "Ann: We won!" not in instruct_erc.speaker_prompt(THREE, 2, 1)[1]["content"]


def test_the_prompt_of_bios_erc() -> None:
    assert bios_erc.prompt(THREE, 2, 1) == [
        {
            "role": "system",
            "content": "You know people well and read their emotions in conversations.\n"
            "About Ann: Worries a lot.\nConversation:\nBo: Won what?\nAnn: Forget it.",
        },
        {"role": "user", "content": f'Which emotion does Ann show in "Forget it."? {CHOOSE}'},
    ]
    whole = bios_erc.prompt(THREE, 0, 5, later=5)[0]["content"]
    assert whole.endswith("Conversation:\nAnn: We won!\nBo: Won what?\nAnn: Forget it.")
    for without in (bios_erc.prompt(THREE, 1, 5), bios_erc.prompt(THREE, 2, 5, about=False)):
        assert "About" not in without[0]["content"]  # Bo has no description


def test_the_prompt_of_prc_emo() -> None:
    other = talk(("Cy", "We did win!", "joy"), name="d")
    near = Demonstrations([other], letters).near(THREE, 0, 3)
    system, user = prc_emo.prompt(THREE, 0, 5, near=near, interpretation="Joy, and\nrelief behind it.")
    assert system["content"].splitlines()[1:] == [
        "Conversation:", "Ann: We won!", "About Ann: Worries a lot.",
        "What an expert hears in it: Joy, and relief behind it.",
        "Lines that say something alike:", '"We did win!" shows joy',
    ]  # fmt: skip
    assert user["content"] == f'Which emotion does Ann show in "We won!"? {CHOOSE}'


def test_how_alike_emotions_are() -> None:
    """Joy lies at 27 degrees, surprise 81, anger 99, fear 171, sadness 261; neutral in the middle."""
    alike = {
        ("joy", "surprise"): math.cos(math.radians(54)), ("anger", "fear"): math.cos(math.radians(72)),
        ("joy", "anger"): 0, ("surprise", "anger"): 0, ("anger", "sadness"): 0,
        ("neutral", "joy"): 1 / 7, ("sadness", "neutral"): 1 / 7,
    }  # fmt: skip
    for (a, b), value in alike.items():
        assert prc_emo.similarity(a, b, 7) == prc_emo.similarity(b, a, 7) == pytest.approx(value)
    assert prc_emo.similarity("peaceful", "joyful", 7) == pytest.approx(math.cos(math.radians(36)))


def test_the_difficulty_of_a_conversation() -> None:
    """Ann: joy to anger (no likeness, 0.4). From Ann to Bo: joy to surprise (0.4 + cos 54); from Bo to Ann:
    surprise to anger (0.4). Two speakers, three turns."""
    shifts = 0.4 + (0.4 + math.cos(math.radians(54))) + 0.4
    assert prc_emo.difficulty(THREE) == pytest.approx((shifts + 2) / (3 + 2))
    calm = talk(("Ann", "One.", "neutral"), ("Ann", "Two.", "neutral"))
    assert prc_emo.difficulty(calm) == pytest.approx(1 / 3)
    # Of her own two turns one shift; between them no other speaker, so it counts once.
    assert prc_emo.difficulty(talk(("Ann", "One.", "neutral"), ("Ann", "Two.", "joy"))) == pytest.approx(
        (0.4 + 1 / 7 + 1) / 3
    )
    # A turn without a label makes no shift, neither to nor from it.
    assert prc_emo.difficulty(
        talk(("Ann", "One.", "joy"), ("Bo", "Two.", ""), ("Ann", "Three.", "joy"))
    ) == pytest.approx(2 / 5)


def test_the_order_of_prc_emo() -> None:
    """Difficulties 0.758 (THREE), 0.514 and 1/3: of seven turns the easy half is calm and one of some."""
    calm = talk(("Ann", "One.", "neutral"), ("Ann", "Two.", "neutral"), name="calm")
    some = talk(("Ann", "One.", "neutral"), ("Ann", "Two.", "joy"), name="some")
    turns = labelled([THREE, some, calm])  # 0 1 2, 3 4, 5 6
    assert prc_emo.curriculum(turns, 2) == [[5, 6, 3], [4, 0, 1, 2]]
    assert prc_emo.curriculum(turns, 3) == [[5, 6], [3, 4], [0, 1, 2]]
    (stage,) = prc_emo.PrcEmo(prc_emo.PrcEmoConfig()).stages(turns, bios_erc.prompt)
    taken = [{i for b in stage.batches(2, 0, epoch) for i in b} for epoch in range(stage.epochs)]
    assert taken == [{3, 5, 6}, *[set(range(7))] * 3]


def test_an_epoch_takes_each_example_once_in_an_order_of_its_own() -> None:
    stage = Stage("labels", [Example(lambda w: [], "joy", "c")] * 10, 3)
    orders = [[i for b in stage.batches(4, 0, e) for i in b] for e in range(3)]
    assert [len(b) for b in stage.batches(4, 0, 0)] == [4, 4, 2]
    assert all(sorted(o) == list(range(10)) for o in orders)
    assert orders[0] != orders[1] and orders[0] == [i for b in stage.batches(4, 0, 0) for i in b]
    assert orders[0] != [i for b in stage.batches(4, 1, 0) for i in b]


def letters(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of how often each letter occurs."""
    counts = np.array([[t.lower().count(chr(97 + k)) for k in range(26)] for t in texts], dtype=float) + 1e-6
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_demonstrations_are_of_other_conversations_and_the_same_labels() -> None:
    own = talk(("Ann", "abc", "joy"), ("Bo", "abcd", "anger"), name="own")
    near = talk(("Cy", "abcc", "sadness"), ("Cy", "abx", "fear"), ("Cy", "nothing at all", ""), name="near")
    far = talk(("Cy", "xyz", "disgust"), name="far")
    others = LABEL_SETS["emorynlp"]
    emory = Conversation("emory", "e", "train", (Utterance("Di", "abc", dist(mad=1)),), others)
    bank = Demonstrations([own, near, far, emory], letters)
    assert [(d.text, d.label) for d in bank.near(own, 0, 3)] == [
        ("abcc", "sadness"), ("abx", "fear"), ("xyz", "disgust")
    ]  # fmt: skip
    assert [d.text for d in bank.near(own, 0, 1)] == ["abcc"]
    assert [d.text for d in bank.near(replace(own, id="held out"), 0, 2)] == ["abc", "abcc"]
    assert (
        bank.near(emory, 0, 3) == [] and bank.near(replace(emory, label_set=LABEL_SETS["cped"]), 0, 3) == []
    )


LINES = st.lists(
    st.tuples(
        st.sampled_from(["Ann", "Bo", "Cy"]),
        st.text("abc ?", min_size=1, max_size=8),
        st.sampled_from(MELD.labels),
    ),
    min_size=1, max_size=9,
)  # fmt: skip
BANK = Demonstrations(
    [talk(("Ann", "abc", "joy"), ("Bo", "a?", "anger"), ("Bo", "ccc", "fear"), name="bank")], letters
)


def askers(later: int) -> dict[str, Ask]:
    near = instruct_erc.label_prompt
    found: dict[str, Ask] = {
        "bios-erc": lambda c, i, w: bios_erc.prompt(c, i, w, later),
        "prc-emo": lambda c, i, w: prc_emo.prompt(c, i, w, later, near=BANK.near(c, i, 3)),
    }
    return found if later else {**found, "instruct-erc": lambda c, i, w: near(c, i, w, BANK.near(c, i, 1))}


@given(LINES, LINES, LINES, st.integers(0, 12))
def test_a_past_only_prompt_does_not_change_with_later_turns(
    start: list[tuple[str, str, str]],
    one: list[tuple[str, str, str]],
    other: list[tuple[str, str, str]],
    window: int,
) -> None:
    first, second = talk(*start, *one), talk(*start, *other)
    for ask in askers(0).values():
        for turn in range(len(start)):
            assert ask(first, turn, window) == ask(second, turn, window)


@given(LINES, st.integers(1, 5))
def test_the_published_window_shows_later_turns(start: list[tuple[str, str, str]], later: int) -> None:
    first, second = (talk(*start, ("Ann", text, "joy")) for text in ("So it begins.", "So it ends."))
    for ask in askers(later).values():
        for turn in range(len(start)):
            shown = len(start) - turn <= later
            assert (ask(first, turn, 5) != ask(second, turn, 5)) is shown


def test_what_sees_later_turns_says_so(tmp_path: Path) -> None:
    assert not any(baseline(name)(baseline(name).kind()).sees_later for name in RECIPES)
    assert bios_erc.BiosErc(bios_erc.BiosErcConfig(later=5)).sees_later
    assert prc_emo.PrcEmo(prc_emo.PrcEmoConfig(later=5)).sees_later
    told = prc_emo.PrcEmoConfig(interpretations="notes.jsonl", interpretations_see_later=True)
    assert prc_emo.PrcEmo(told).sees_later
    assert not prc_emo.PrcEmo(told.model_copy(update={"interpretations": ""})).sees_later


def test_recipes_have_the_settings_of_their_sources() -> None:
    """Those that differ, as (rank, alpha, lr, window, batch, epochs, NEFTune)."""
    found = {}
    for name in RECIPES:
        c = baseline(name).kind()
        found[name] = c.lora.rank, c.lora.alpha, c.lr, c.window, c.batch_size, c.epochs, c.neftune
    assert found == {
        "instruct-erc": (16, 16, 2e-4, 12, 32, 15, 0),
        "bios-erc": (32, 128, 3e-4, 5, 16, 3, 5),
        "prc-emo": (32, 128, 3e-4, 5, 4, 4, 5),
    }


def test_one_setting_of_an_adapter_leaves_the_others_as_the_recipe_has_them() -> None:
    kind = settings_class("bios-erc")
    assert load([], ["baseline.lora.rank=8"], kind).baseline.lora.alpha == 128  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"baseline\.windw: unknown key; did you mean baseline\.window"):
        load([], ["baseline.windw=3"], kind)


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_missing_is_told_before_anything_is_begun(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = baseline(name).kind
    with pytest.raises(EngineError, match="builtin:llama"):
        baseline(name)(kind(model="builtin:llama")).check()
    monkeypatch.setattr(extras, "find_spec", lambda module: None if module == "peft" else object())
    with pytest.raises(MissingExtraError, match=r"peft \(for baseline.lora\) is not installed"):
        baseline(name)(kind()).check()


def test_demonstrations_need_an_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda module: None if "sentence" in module else object())
    with pytest.raises(MissingExtraError, match="sentence-transformers"):
        prc_emo.PrcEmo(prc_emo.PrcEmoConfig()).check()
    with pytest.raises(MissingExtraError, match="sentence-transformers"):
        instruct_erc.InstructErc(instruct_erc.InstructErcConfig(retrieval=True)).check()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no interpretation"),
        ('{"id": "c/0", "text": "Joy."}\n{"id": "c/1"', r":2: broken JSON"),
        ('{"id": "c/0", "id": "c/1", "text": "Joy."}', r":1: broken JSON: key 'id' occurs twice"),
        ('{"id": "c/0"}', r':1: a line is \{"id"'),
        ("[1]", r':1: a line is \{"id"'),
        ('{"id": "c/0", "text": 3}', r':1: a line is \{"id"'),
        ('{"id": "c/0", "text": "Joy."}\n\n{"id": "c/0", "text": "Joy."}', r":3: c/0 occurs twice"),
    ],
)
def test_a_broken_file_of_interpretations(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "notes.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        prc_emo.PrcEmo(prc_emo.PrcEmoConfig(interpretations=str(tmp_path / "notes.jsonl"))).check()


def test_a_file_of_interpretations_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"notes\.jsonl: cannot be read"):
        prc_emo.PrcEmo(prc_emo.PrcEmoConfig(interpretations=str(tmp_path / "notes.jsonl"))).check()


def test_each_labelled_turn_needs_an_interpretation(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    train = toy_conversations(1)
    ids = [f"{train[0].id}/{i}" for i in range(5)]
    config = prc_emo.PrcEmoConfig(interpretations=str(file), demonstrations=0)
    file.write_text(json.dumps({"id": ids[0], "text": "Glad."}))
    with pytest.raises(DataError, match=f"no text for {ids[1]}, {ids[2]}, {ids[3]} and 1 more, of 5 turns"):
        prc_emo.PrcEmo(config).check_data(train)
    file.write_text("\n".join(json.dumps({"id": i, "text": f"Felt in {i}."}) for i in ids))
    prc_emo.PrcEmo(config).check_data(train)
    ask = prc_emo.PrcEmo(config).asker(task_of(tmp_path, train))
    assert f"hears in it: Felt in {ids[2]}." in ask(train[0], 2, 5)[0]["content"]
    with pytest.raises(DataError, match="no text for toydev0/0"):
        ask(toy_conversations(1, "dev")[0], 2, 5)
