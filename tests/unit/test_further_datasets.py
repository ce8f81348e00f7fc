"""MEISD, CPED and EmoWOZ on small files of their layout; and no data set is taken for another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from selfemo.data import ADAPTERS, detect, load
from selfemo.data.checks import check_lines
from selfemo.errors import DataError
from selfemo.method.types import LABEL_SETS, Persona, Utterance
from selfemo.runs.inputs import with_known_personas
from tests.conftest import dist
from tests.support.datasets import DIALOGUES, FIXTURES, ONE, SPLITS, TWO, cped, emowoz, meisd, voted

# -- MEISD -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("felt", "gold", "top", "noted"),
    [
        ("Joy ,2", {"joy": 1}, "joy", None),
        ("neutral,", {"neutral": 1}, "neutral", None),
        ("anger,1,disgust,3", {"anger": 0.25, "disgust": 0.75}, "disgust", None),
        ("fear,2,anger,2", {"fear": 0.5, "anger": 0.5}, "fear", None),
        ("sadness,2,fear,1,anger,1", {"sadness": 0.5, "fear": 0.25, "anger": 0.25}, "sadness", None),
        ("anger,1,digust,1", {"anger": 0.5, "disgust": 0.5}, "anger", "misspelt emotion"),
        ("like,2,zz,1", {"like": 1}, "like", "unknown further emotion, left out"),
        ("joy,2,like,neu", {"joy": 2 / 3, "like": 1 / 3}, "joy", "unreadable intensity, taken as 1"),
    ],
)
def test_meisd_gold_is_the_intensities(
    tmp_path: Path, felt: str, gold: dict[str, float], top: str, noted: str | None
) -> None:
    result = load(str(meisd(tmp_path, f"Well then,4,0,{felt}")))
    (c,) = result.conversations
    emotion = c.turns[0].emotion
    assert emotion is not None and dict(emotion) == pytest.approx(gold, abs=1e-6)
    assert emotion.top(c.label_set) == top and c.label_set is LABEL_SETS["meisd"]
    found = dict(result.report.blemishes)
    assert found.pop("no speakers in the file: all turns are of one") == 1
    assert found == ({noted: 1} if noted else {})


def test_meisd_dialogues_have_neither_speakers_nor_splits(tmp_path: Path) -> None:
    path = meisd(tmp_path, "No.,1,1,fear,1", "Who?,1,0,surprise,1", *[f"So.,2,{n},joy,1" for n in range(9)])
    result = load(str(path))
    first, second = result.conversations
    assert [(t.speaker, t.text) for t in first.turns] == [("Speaker", "Who?"), ("Speaker", "No.")]
    assert result.report.without_split == {"meisd-all-1", "meisd-all-2"} == {first.id, second.id}
    named = load(str(meisd(tmp_path, *[f"So.,2,{n},joy,1" for n in range(9)], name="train.csv")))
    assert not named.report.without_split and named.conversations[0].split == "train"
    assert not with_known_personas(named.conversations)[0].personas, "one name for all says nothing of one"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("Hm,x,0,joy,1", "dialog_ids and uttr_ids must be whole numbers"),
        ("Hm,1,0,glee,1", "unknown label 'glee'; valid are neutral, joy"),
        ("Hm,1,0,,", "unknown label ''"),
        (" ,1,0,joy,1", "the utterance is empty"),
    ],
)
def test_meisd_broken_rows(tmp_path: Path, row: str, says: str) -> None:
    path = meisd(tmp_path, "Yes,1,0,joy,1", row)
    with pytest.raises(DataError, match=re.escape(says)) as e:
        load(str(path))
    assert (e.value.path, e.value.line) == (path, 3)
    assert [s[1] for s in load(str(path), lenient=True).report.skipped] == [3]


# -- CPED ------------------------------------------------------------------------------------------


def test_cped_has_personas_of_its_own(tmp_path: Path) -> None:
    result = load(str(cped(tmp_path, TWO, ONE).parent))
    (c,) = result.conversations
    assert (c.id, c.split, c.label_set) == ("cped-train-07_003", "train", LABEL_SETS["cped"])
    assert c.turns == (
        Utterance("小周", "谁在那儿", dist(worried=1)), Utterance("其他", "没有人。", dist(neutral=1)),
    )  # fmt: skip
    said = "Female, young; emotionally stable, outgoing, critical and competitive, conscientious."
    assert c.personas == {"小周": Persona("小周", said)}
    assert with_known_personas([c])[0].personas == c.personas
    lines = check_lines(result, ADAPTERS["cped"])
    assert "train: 1 conversation, 2 utterances (official 94187: differs by -94185)" in lines


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("worried", "bored"), "unknown label 'bored'; valid are neutral, happy"),
        (("07_003_000", "07_003_x"), "Utterance_ID end with a number"),
        ((",low,", ",middling,"), "Neuroticism is 'middling', and must be high, low or unknown"),
        (("小周", " "), "the utterance or its speaker is empty"),
    ],
)
def test_cped_broken_rows(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    path = cped(tmp_path, TWO, ONE.replace(*change, 1))
    with pytest.raises(DataError, match=re.escape(says)) as e:
        load(str(path))
    assert (e.value.path, e.value.line) == (path, 3)
    assert [s[1] for s in load(str(path), lenient=True).report.skipped] == [3]


# -- EmoWOZ ----------------------------------------------------------------------------------------


def test_emowoz_labels_are_of_the_user(tmp_path: Path) -> None:
    result = load(str(emowoz(tmp_path).parent))
    first, second = result.conversations
    assert (first.id, first.split, second.id, second.split) == (
        "emowoz-train-MUL0001", "train", "emowoz-dev-DMAGE1", "dev",
    )  # fmt: skip
    assert first.turns == (
        Utterance("User", "I need a taxi.", dist(neutral=1)),
        Utterance("System", "Where to?"),
        Utterance("User", "You are no help!", dist(dissatisfied=1)),
    )
    assert result.report.utterances == {"train": 2, "dev": 1}, "those that have a label"
    alone = load(str(tmp_path / "emowoz-dialmage.json"))
    assert [c.id for c in alone.conversations] == ["emowoz-dev-DMAGE1"]


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ([], "has no turns (log)"),
        ([{"text": " "}], "log[0] has no text"),
        ([{"text": "Hi.", "emotion": voted(7)}], "log[0]: label 7 is not one of 0 to 6"),
        ([{"text": "Hi.", "emotion": [{"emotion": "sad"}]}], "has no whole number as emotion"),
    ],
)
def test_emowoz_broken_dialogues(tmp_path: Path, log: list[Any], says: str) -> None:
    splits = {**SPLITS, "test": {"multiwoz": ["MUL2.json"]}}
    path = emowoz(tmp_path, {**DIALOGUES, "MUL2.json": {"log": log}}, splits)
    with pytest.raises(DataError, match=re.escape(says)) as e:
        load(str(path))
    line = (
        path.read_text().split("\n").index(next(x for x in path.read_text().split("\n") if "MUL2" in x)) + 1
    )
    assert (e.value.path, e.value.line) == (path, line) and "dialogue MUL2.json: " in str(e.value)
    assert [s[1] for s in load(str(path), lenient=True).report.skipped] == [line]


def test_emowoz_needs_its_splits(tmp_path: Path) -> None:
    path = emowoz(tmp_path, {**DIALOGUES, "MUL9.json": {"log": [{"text": "Hi."}]}})
    with pytest.raises(DataError, match=r"MUL9\.json: is in no split of data-split\.json"):
        load(str(path))
    for splits, says in (
        ({"train": {"multiwoz": 3}}, "'train' must map multiwoz and dialmage to lists"),
        ([], "a JSON object"),
    ):  # fmt: skip
        emowoz(tmp_path, splits=splits)
        with pytest.raises(DataError, match=says):
            load(str(path))
    (tmp_path / "data-split.json").unlink()
    with pytest.raises(DataError, match=r"has no data-split\.json beside it"):
        load(str(path))
    path.write_text("{")
    (tmp_path / "data-split.json").write_text("{")
    with pytest.raises(DataError, match=r"data-split\.json:1: broken JSON"):
        load(f"emowoz:{path}")


# -- No data set is taken for another --------------------------------------------------------------


def test_each_data_set_has_a_fixture() -> None:
    assert {k.removesuffix("-json") for k in FIXTURES} == set(ADAPTERS) - {"sample"}


@pytest.mark.parametrize("kind", FIXTURES)
def test_no_data_set_is_taken_for_another(tmp_path: Path, kind: str) -> None:
    name, path = kind.removesuffix("-json"), FIXTURES[kind](tmp_path)
    assert [a.name for a in ADAPTERS.values() if a.matches(path)] == [name]
    assert detect(path) == (ADAPTERS[name], path)
    result = load(f"{name}:{path}")
    assert result.conversations and len(load(str(path)).conversations) == len(result.conversations)
    told = check_lines(result, ADAPTERS[name])
    assert told[0].startswith(f"data set: {'rows' if name == 'table' else name} (labels: ")
