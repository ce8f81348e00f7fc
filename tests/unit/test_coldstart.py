"""Cold-start samples: what is read of an expert's answer, and the Parquet file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import load
from selfemo.data import table_files
from selfemo.errors import ConfigError, DataError
from selfemo.method.parsing import parse, parse_emotions
from selfemo.method.prompts import format_emotions
from selfemo.method.types import LABEL_SETS, Completion, EmotionDistribution
from selfemo.runs.inputs import cold_start_samples
from selfemo.stages.coldstart import (
    blend,
    expert_prompts,
    gold_samples,
    question,
    read_parquet,
    read_sample,
    soften,
    write_parquet,
)
from selfemo.stages.experts import MalformedError
from selfemo.stages.flywheel import original_prompts
from tests.conftest import make_prompt, toy_conversations

MELD = LABEL_SETS["meld"]
GOOD = {"emotion": {"joy": 7, "surprise": 3}, "self_emotion": "anger", "reply": "Well, well."}


def test_an_answer_becomes_a_completion() -> None:
    read = read_sample(json.dumps(GOOD), MELD, "none")
    assert read.emotion == EmotionDistribution({"joy": 0.7, "surprise": 0.3})
    assert read.self_emotion == EmotionDistribution({"anger": 1})
    assert read.reply == "Well, well." and read.reasoning == ""
    thought = read_sample(json.dumps({**GOOD, "reasoning": "She\nlaughs."}), MELD, "brief")
    assert thought.reasoning == "She laughs."


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"emotion": {"melancholy": 3}}, "unknown_emotion"),
        ({"emotion": {"joy": 0}}, "zero_weight"),
        ({"emotion": {"joy": -1}}, "bad_weight"),
        ({"emotion": dict.fromkeys(MELD.labels[:4], 1)}, "too_many_emotions"),
        ({"emotion": {}}, "schema"),
        ({"emotion": ["joy"]}, "schema"),
        ({"emotion": {"joy": True}}, "unknown_emotion"),
        ({"self_emotion": None}, "schema"),
        ({"reply": ""}, "schema"),
        ({"reply": "x" * 401}, "schema"),
        ({"reply": 7}, "schema"),
    ],
)
def test_an_unusable_answer_is_a_typed_failure(change: dict, kind: str) -> None:
    with pytest.raises(MalformedError) as e:
        read_sample(json.dumps({**GOOD, **change}), MELD, "none")
    assert e.value.kind == kind


def test_reasoning_that_was_asked_for_must_be_there() -> None:
    with pytest.raises(MalformedError, match="'reasoning' is missing"):
        read_sample(json.dumps(GOOD), MELD, "full")


def test_the_question_shows_no_later_turn_and_no_gold_emotion() -> None:
    for prompt in expert_prompts(toy_conversations(2)):
        text = question(prompt).messages[1]["content"]
        for u in prompt.history:
            assert u.text in text
        (whole,) = [c for c in toy_conversations(2) if c.id == prompt.conversation_id]
        later = {t.text for t in whole.turns[len(prompt.history) :]} - {u.text for u in prompt.history}
        assert not any(t in text for t in later)


def test_a_gold_sample_is_no_original_prompt_of_rl() -> None:
    """The same turn has another answerer there, and the store keeps the first prompt of an id."""
    data = toy_conversations(3)
    samples, source, _ = cold_start_samples(data, load([]).sft, "none", 0)
    originals = {p.id: p for p in original_prompts(data, 0, 1.0)}
    assert source == "gold" and not originals.keys() & {p.id for p, _ in samples}
    first = next(p for p, _ in samples if len(p.history) == 1)
    assert (first.answerer, originals[first.id.removeprefix("cold/")].answerer) == ("Bo", "Listener")


def test_no_emotion_holds_more_than_its_share_of_the_gold_samples() -> None:
    data = toy_conversations(40)  # joy, anger, sadness, fear and neutral in equal parts
    tops = [c.emotion.top(MELD) for _, c in gold_samples(data, 20, max_share=0.25)]
    counts = {e: tops.count(e) for e in set(tops)}
    assert len(tops) == 20 and max(counts.values()) <= 5
    free = [p.id for p, _ in gold_samples(data, 20)]
    assert free == [p.id for p, _ in gold_samples(data, 20, max_share=1.0)]
    few = gold_samples(data, 1000, max_share=0.01)
    assert len(few) == 50  # ten of each of five, and no more to be had
    with pytest.raises(ConfigError, match="set max_samples"):
        load([], ["sft.max_emotion_share=0.5"])


def test_the_file_holds_chats_and_gives_back_its_samples(tmp_path: Path) -> None:
    file = tmp_path / "cold.parquet"
    samples = gold_samples(toy_conversations(4), seed=3)
    assert write_parquet(file, samples, "none", "gold") == len(samples) > 10
    datasets = pytest.importorskip("datasets")
    opened = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    row = opened[0]
    assert [m["role"] for m in row["prompt"]] == ["system", "user"]
    assert row["completion"][0]["role"] == "assistant"
    assert isinstance(parse(row["completion"][0]["content"], MELD), Completion)
    from trl import is_conversational

    assert is_conversational(row)
    back = read_parquet(file)
    assert [c for _, c in back] == [c for _, c in samples]
    for (p, _), (q, _) in zip(back, samples, strict=True):
        assert (p.id, p.answerer, p.persona.description, p.target, p.label_set) == (
            q.id, q.answerer, q.persona.description, q.target, q.label_set,
        )  # fmt: skip
        assert [(u.speaker, u.text) for u in p.history] == [(u.speaker, u.text) for u in q.history]


def test_bad_files_are_named_with_the_row(tmp_path: Path) -> None:
    import polars as pl

    with pytest.raises(DataError, match=r"none\.parquet: cannot be read"):
        read_parquet(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_parquet(tmp_path / "text.parquet")
    pl.DataFrame({"text": ["a"]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="no column completion, id"):
        read_parquet(tmp_path / "other.parquet")
    file = tmp_path / "cold.parquet"
    write_parquet(file, gold_samples(toy_conversations(2))[:2], "none", "gold")
    file.with_name("cold.parquet.sha256").unlink()
    frame = pl.read_parquet(file)
    broken = [*frame["completion"].to_list()[:1], [{"role": "assistant", "content": "E: bliss"}]]
    frame.with_columns(completion=pl.Series(broken)).write_parquet(file)
    with pytest.raises(DataError, match="row 2: its completion does not parse: unknown_emotion"):
        read_parquet(file)
    with pytest.raises(DataError, match="no sample was left"):
        write_parquet(file, [], "none", "gold")


def test_a_damaged_file_is_seen_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some damage makes polars abort the whole process: only another one may find that out."""
    file, checksum = tmp_path / "cold.parquet", tmp_path / "cold.parquet.sha256"
    write_parquet(file, gold_samples(toy_conversations(4)), "none", "gold")
    whole = file.read_bytes()
    assert checksum.read_text() == f"{hashlib.sha256(whole).hexdigest()}  cold.parquet\n"
    draw = random.Random(0)
    for k in range(12):
        bent = bytearray(whole)
        for _ in range(3):
            bent[draw.randrange(len(bent))] ^= 1 << draw.randrange(8)
        file.write_bytes(bent[: draw.randrange(len(bent))] if k % 4 == 0 else bent)
        with pytest.raises(DataError, match=r"differs from its checksum in cold\.parquet\.sha256"):
            read_parquet(file)
    checksum.unlink()
    for k in range(6):  # what no checksum tells: an error, or other samples, and never the end
        at = (k + 1) * len(whole) // 8
        file.write_bytes(whole[:at] + bytes(64) + whole[at + 64 :])
        with contextlib.suppress(DataError):
            assert read_parquet(file)
    file.write_bytes(whole)
    assert read_parquet(file)
    monkeypatch.setattr(table_files, "_READ", "import os; os.abort()")
    with pytest.raises(DataError, match="cannot be read as Parquet: it is damaged"):
        read_parquet(file)


def test_a_run_takes_its_cold_start_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cold.parquet"
    joy = EmotionDistribution({"joy": 1})
    write_parquet(file, [(make_prompt(), Completion(joy, joy, "Good.", "She laughs."))], "brief", "expert")
    config = load([], [f"sft.samples={file}", "prompt.reasoning=brief"])
    ((prompt, completion),), source, _ = cold_start_samples([], config.sft, config.prompt.reasoning, 0)
    assert source == "file" and prompt.id == "cold/c/1" and completion.reasoning == "She laughs."
    with pytest.raises(ConfigError, match="1 of 1 samples"):
        cold_start_samples([], load([], [f"sft.samples={file}"]).sft, "none", 0)


def test_a_label_and_what_a_model_believes_are_blended() -> None:
    gold = EmotionDistribution({"anger": 1})
    believed = EmotionDistribution({"anger": 0.2, "disgust": 0.4, "neutral": 0.3, "sadness": 0.1})
    mixed = blend(gold, believed, 0.7)  # 0.76, 0.12, 0.09; the fourth is cut
    assert dict(mixed) == pytest.approx(
        {"anger": 0.76 / 0.97, "disgust": 0.12 / 0.97, "neutral": 0.09 / 0.97}
    )
    assert format_emotions(mixed) == "anger 8, disgust 1, neutral 1"
    assert blend(gold, believed, 1.0) == gold
    several = EmotionDistribution({"joy": 0.6, "surprise": 0.4})
    assert blend(several, believed, 0.6) == several


weights = st.dictionaries(st.sampled_from(MELD.labels), st.floats(0.01, 1), min_size=1)


@given(st.sampled_from(MELD.labels), weights, st.floats(0.6, 1))
def test_what_is_softened_reads_back_with_its_own_label_on_top(
    label: str, believed: dict[str, float], own_weight: float
) -> None:
    mixed = blend(EmotionDistribution({label: 1}), EmotionDistribution(believed), own_weight)
    assert mixed.top(MELD) == label and mixed.weight(label) >= own_weight - 1e-9
    read = parse_emotions(format_emotions(mixed), MELD)
    assert isinstance(read, EmotionDistribution) and read.top(MELD) == label


@pytest.mark.parametrize("reasoning", ["", "He shouts."])
def test_the_own_emotion_is_read_behind_the_softened_one(reasoning: str) -> None:
    asked: list[str] = []
    answers = iter(({"joy": 0.5, "anger": 0.5}, {"fear": 1}))

    def believed(places):
        asked.extend(written for _, written in places)
        return [EmotionDistribution(next(answers))]

    lone = EmotionDistribution({"joy": 1})
    ((prompt, softened),) = soften(
        [(make_prompt(), Completion(lone, lone, "Yes.", reasoning))], believed, 0.6
    )
    thought = f"T: {reasoning}\n" if reasoning else ""
    assert asked == [f"{thought}E:", f"{thought}E: joy 8, anger 2\nS:"]
    assert dict(softened.emotion) == pytest.approx({"joy": 0.8, "anger": 0.2})
    assert dict(softened.self_emotion) == pytest.approx({"joy": 0.6, "fear": 0.4})
    assert (softened.reply, softened.reasoning) == ("Yes.", reasoning) and prompt == make_prompt()
    with pytest.raises(ValueError, match=r"is not in \[0.6, 1\]"):
        soften([], believed, 0.5)
