"""Adapters on small files of this test's own: what they read, mend, refuse and skip."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.data import ADAPTERS, detect, load, resolve
from selfemo.data.base import MAX_FIELD_CHARS, LoadReport, SourceFile
from selfemo.data.checks import check_lines
from selfemo.data.personas_plain import describe_speakers, with_personas
from selfemo.data.splits import hold_out
from selfemo.errors import DataError
from selfemo.method.types import LABEL_SETS, Conversation, EmotionDistribution, LabelSet, Persona, Utterance
from tests.conftest import dist, toy_conversations
from tests.support.files import EMORY_HEAD, MELD_HEAD, emory_json, iemocap, meld

# -- MELD ------------------------------------------------------------------------------------------


def test_meld_rows_become_ordered_conversations(tmp_path: Path) -> None:
    meld(
        tmp_path,
        '1,"Oh, no!",Ann,Surprise,x,0,1,1,1',
        "2,Hi there,Bo,neutral,x,0,0,1,1",
        "3,Bye,Ann,sadness,x,3,0,1,1",
        "4,Gone,Bo,joy,x,3,2,1,1",
    )
    result = load(str(tmp_path))
    first, second = result.conversations
    assert (first.id, first.dataset, first.split) == ("meld-train-0", "meld", "train")
    assert first.turns == (
        Utterance("Bo", "Hi there", dist(neutral=1)),
        Utterance("Ann", "Oh, no!", dist(surprise=1)),
    )
    assert second.speakers == ("Ann", "Bo")
    assert result.report.blemishes == {"utterances out of order": 1, "gap in utterance numbers": 1}
    assert result.report.utterances == {"train": 4}


@pytest.mark.parametrize(
    ("row", "line", "says"),
    [
        ("5,Hm,Ann,glee,x,0,1,1,1", 3, "unknown label 'glee'; valid are neutral, joy"),
        ("5,Hm,Ann,joy,x,zero,1,1,1", 3, "must be whole numbers"),
        ("5,,Ann,joy,x,0,1,1,1", 3, "utterance or its speaker is empty"),
        ("5,Hm,Ann", 3, "too few fields"),
        ("5,Hm,Ann,joy,x,0,1,1,1,9,9", 3, "too many fields"),
    ],
)
def test_a_broken_row_names_file_line_reason(tmp_path: Path, row: str, line: int, says: str) -> None:
    path = meld(tmp_path, "1,Hi,Ann,joy,x,0,0,1,1", row, "9,Ok,Bo,anger,x,0,2,1,1")
    with pytest.raises(DataError) as e:
        load(str(path))
    assert str(e.value).startswith(f"{path}:{line}: ") and says in str(e.value)
    lenient = load(str(path), lenient=True)
    assert [(s[1], says in s[2]) for s in lenient.report.skipped] == [(line, True)]
    assert len(lenient.conversations[0].turns) == 2
    assert any(f"skipped: {path}:{line}" in x for x in check_lines(lenient, ADAPTERS["meld"]))


def test_blemishes_of_encoding_are_mended_and_counted(tmp_path: Path) -> None:
    text = "\ufeff" + MELD_HEAD + "1,It\x92s\xa0me\x07,Ann,joy,x,0,0,1,1\n"
    (tmp_path / "dev_sent_emo.csv").write_bytes(text.replace("\n", "\r\n").encode())
    result = load(str(tmp_path))
    assert result.conversations[0].turns[0].text == "It\u2019s me"
    assert result.report.blemishes == {
        "byte order mark": 1, "Windows line ends": 1, "cp1252 character as control code": 1,
        "non-breaking space": 1, "control character": 1,
    }  # fmt: skip
    (tmp_path / "dev_sent_emo.csv").write_bytes(
        (MELD_HEAD + "1,It\u2019s,A,joy,x,0,0,1,1\n").encode("cp1252")
    )
    again = load(str(tmp_path))
    assert again.conversations[0].turns[0].text == "It\u2019s"
    assert again.report.blemishes["cp1252 file"] == 1


@pytest.mark.parametrize(
    "right",
    [
        "It\u2019s",
        "caf\u00e9",
        "na\u00efve \u2014 or not",
        "5\u00b0, \u00a35",
        "\u201cwell\u201d",
        "\u20ac9",
        "ok \U0001f600",
        "\u00e0 la",
    ],
)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_text_that_was_encoded_twice_is_read_as_it_was(right: str, encoding: str) -> None:
    # cp1252 lacks five of the bytes, which programs keep as control codes.
    shown = [bytes([b]).decode(encoding, errors="ignore") or chr(b) for b in right.encode()]
    wrong = "".join(shown)
    report = LoadReport("x")
    assert SourceFile(report, Path("f")).clean(wrong, 7) == right
    assert report.blemishes["doubly encoded text"] >= 1 and report.examples["doubly encoded text"][0] == "f:7"
    assert set(report.blemishes) == {"doubly encoded text"}


@pytest.mark.parametrize(
    "text",
    [
        "CAF\u00c9\u2026",
        "\u00abAMANH\u00c3\u00bb",
        "\u00c3\u2026",
        "\u00c2GE 5",
        "p\u00e2te",
        "\u00e2\u20ac",
        "S\u00c3O \u00c0S 9\u00ba",
        "\u00f0\u0178",
    ],
)
def test_text_that_only_looks_encoded_twice_stays(text: str) -> None:
    report = LoadReport("x")
    assert SourceFile(report, Path("f")).clean(text) == text
    assert not report.blemishes


@given(st.text(st.characters(min_codepoint=0xA0, max_codepoint=0x2122), max_size=12))
def test_text_in_other_letters_is_not_mended(text: str) -> None:
    report = LoadReport("x")
    if not {"\u00c2", "\u00c3", "\u00e2", "\u00f0"} & set(text):
        SourceFile(report, Path("f")).clean(text)
        assert "doubly encoded text" not in report.blemishes


def test_a_huge_field_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = meld(tmp_path, f"1,{'x' * (MAX_FIELD_CHARS + 1)},Ann,joy,x,0,0,1,1")
    with pytest.raises(DataError, match=r"train_sent_emo\.csv:2: broken CSV"):
        load(str(path))


def test_missing_column_file_and_wrong_adapter(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load("meld:" + str(tmp_path / "none"))
    path = meld(tmp_path, "Hi,['A'],Neutral,1,1,1,1,0,0", name="train.csv", head=EMORY_HEAD)
    with pytest.raises(DataError, match=rf"it looks like emorynlp: use emorynlp:{path}"):
        load(f"meld:{path}")
    with pytest.raises(DataError, match=r"train\.csv:1: has no column Dialogue_ID"):
        ADAPTERS["meld"].load(path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"is of no known data set .*selfemo predict.*Looked for"):
        detect(tmp_path / "notes.txt")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="is empty"):
        ADAPTERS["meld"].load(tmp_path / "empty.csv")
    bare = tmp_path / "bare" / "train_sent_emo.csv"
    bare.parent.mkdir()
    bare.write_text(MELD_HEAD)
    with pytest.raises(DataError, match="holds no conversation"):
        load(str(bare))


def test_official_counts_are_compared(tmp_path: Path) -> None:
    result = load(str(meld(tmp_path, "1,Hi,Ann,joy,x,0,0,1,1")))
    lines = check_lines(result, ADAPTERS["meld"])
    assert "train: 1 conversation, 1 utterance (official 9989: differs by -9988)" in lines
    assert "dev: absent" in lines


# -- EmoryNLP --------------------------------------------------------------------------------------


def test_emorynlp_csv(tmp_path: Path) -> None:
    path = meld(
        tmp_path,
        """Hey.,['Ann A'],Joyful,2,1,1,3,0,0""",
        """"Hello, you.","['Bo B', 'Cy C']",Mad,2,2,1,3,0,0""",
        """Alone.,['Ann A'],Peaceful,2,1,2,3,0,0""",
        name="emorynlp_dev_final.csv",
        head=EMORY_HEAD,
    )
    result = load(str(path))
    assert [c.id for c in result.conversations] == ["emorynlp-dev-s01e03c02", "emorynlp-dev-s02e03c02"]
    assert result.conversations[0].turns[1] == Utterance("Bo B and Cy C", "Hello, you.", dist(mad=1))
    assert result.report.blemishes["several speakers in a list"] == 1


@pytest.mark.parametrize("speaker", ["Ann", "__import__('os')", "[]", "{'a': 1}", "[" * 500])
def test_emorynlp_speakers_are_data_not_code(tmp_path: Path, speaker: str) -> None:
    path = meld(tmp_path, f'Hey.,"{speaker}",Joyful,2,1,1,3,0,0', name="dev.csv", head=EMORY_HEAD)
    with pytest.raises(DataError, match=r"dev\.csv:2: Speaker must be a list of names"):
        load(str(path))


def test_emorynlp_json(tmp_path: Path) -> None:
    path = tmp_path / "emotion-detection-trn.json"
    path.write_text(emory_json())
    (c,) = load(str(tmp_path)).conversations
    assert (c.id, c.split) == ("emorynlp-train-s01_e02_c03", "train")
    assert c.turns == (Utterance("Ann", "Hey.", dist(scared=1)),)
    for changes, says in (
        ({"emotion": None}, "lacks speakers, transcript or emotion"),
        ({"emotion": "Glad"}, "unknown label 'Glad'"),
        ({"transcript": " "}, "is empty"),
    ):
        path.write_text(emory_json(**changes))
        with pytest.raises(DataError, match=says):
            load(str(path))
    path.write_text(emory_json()[:-3])
    with pytest.raises(DataError, match=r"trn\.json:1: broken JSON"):
        load(str(path))


# -- IEMOCAP (the release's layout, invented text) -------------------------------------------------


def test_iemocap_votes_order_and_context(tmp_path: Path) -> None:
    iemocap(tmp_path)
    iemocap(tmp_path, 5)
    result = load(str(tmp_path))
    first, test = result.conversations
    assert (first.split, test.split) == ("train", "test")
    assert [t.speaker for t in first.turns] == ["Ses01_F", "Ses01_M", "Ses01_F"]
    assert first.turns[0].emotion == dist(neutral=2 / 3, excited=1 / 3)
    assert first.turns[1].emotion is None, "no consensus: context only"
    assert first.turns[2].emotion == dist(frustrated=1), "no vote inside the six: the consensus label"
    assert result.report.utterances == {"train": 2, "test": 2}
    assert result.report.blemishes == {"line without a time": 2}


def test_iemocap_refuses_what_is_not_its_form(tmp_path: Path) -> None:
    iemocap(tmp_path, evaluation="[1.0 - 2.0]\tSes01F_test01_F000\tjoy\t[2.5, 2.5, 2.5]\n")
    with pytest.raises(DataError, match=r"Ses01F_test01\.txt:1: unknown label 'joy'"):
        load(str(tmp_path))
    with pytest.raises(DataError, match="looked for folders SessionN"):
        load(f"iemocap:{tmp_path / 'Session1'}")
    iemocap(tmp_path)
    (tmp_path / "Session1/dialog/EmoEvaluation/Ses01F_test01.txt").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        load(str(tmp_path))


# -- JSONL -----------------------------------------------------------------------------------------


def jsonl(folder: Path, *items: object) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join((i if isinstance(i, str) else json.dumps(i)) + "\n" for i in items))
    return path


def turn(**kw) -> dict:
    return {"speaker": "Ann", "text": "Hi.", "emotion": "joy", **kw}


def test_jsonl_of_ones_own(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"id": "a", "split": "train", "scene": "A bar.", "personas": {"Ann": "Loud."},
         "turns": [turn(), turn(speaker="Bo", emotion={"joy": 3, "fear": 1}), turn(emotion=None)]},
        {"id": 2, "labels": ["calm", "Upset"], "turns": [turn(emotion="upset")]},
    )  # fmt: skip
    a, b = load(str(path)).conversations
    assert (a.scenario, a.personas["Ann"]) == ("A bar.", Persona("Ann", "Loud.", "A bar."))
    assert a.turns[1].emotion == dist(joy=0.75, fear=0.25) and a.turns[2].emotion is None
    assert (b.id, b.split, b.label_set.labels) == ("2", "test", ("calm", "upset"))


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ('{"id": 1, "turns": [', "broken JSON"),
        ("[]", "must be one JSON object"),
        ({"id": "a", "turns": []}, "the conversation is empty"),
        ({"turns": [turn()]}, "key 'id' is missing"),
        ({"id": "a", "turn": [turn()]}, "unknown key 'turn'; did you mean 'turns'?"),
        ({"id": "a", "turns": [turn(), turn(emotoin="x")]}, r"turns\[1\]: unknown key 'emotoin'"),
        ({"id": "a", "turns": [turn(emotion="glee")]}, r"turns\[0\]: unknown label 'glee'"),
        ({"id": "a", "turns": [turn(emotion={"joy": -1})]}, r"turns\[0\]: emotion weights must"),
        ({"id": "a", "turns": [turn(emotion={"joy": 0})]}, r"turns\[0\]: at least one"),
        ({"id": "a", "turns": [turn(emotion=3)]}, r"turns\[0\]: emotion must be"),
        ({"id": "a", "turns": [turn(text="  ")]}, r"turns\[0\]: speaker and text must not be empty"),
        ({"id": "a", "split": "val", "turns": [turn()]}, "split must be one of"),
        ({"id": "a", "labels": ["x"], "turns": [turn()]}, "two or more distinct labels"),
        ({"id": "a", "personas": ["x"], "turns": [turn()]}, "personas must map"),
        ('{"id": "a", "turns": ' + "[" * 5000 + "]" * 5000 + "}", "turn must be|nested too deep"),
    ],
)
def test_jsonl_errors(tmp_path: Path, item: object, says: str) -> None:
    path = jsonl(tmp_path, {"id": "ok", "turns": [turn()]}, item)
    with pytest.raises(DataError, match=rf"mine\.jsonl:2: .*({says})"):
        load(str(path))
    assert len(load(str(path), lenient=True).conversations) == 1


def test_jsonl_ids_are_unique(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *[{"id": "a", "turns": [turn()]}] * 2)
    with pytest.raises(DataError, match=r"mine\.jsonl:2: id 'a' occurs twice"):
        load(str(path))


# Without the letters that begin text which looks encoded twice.
letters = st.characters(exclude_categories=["C", "Z"], exclude_characters="ÂÃâð")
plain = st.text(letters, min_size=1, max_size=20)


@given(st.lists(st.tuples(plain, plain, st.sampled_from(LABEL_SETS["meld"].labels)), min_size=1, max_size=5))
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, turns) -> None:
    folder = tmp_path_factory.mktemp("round")
    item = {"id": "a", "turns": [{"speaker": s, "text": t, "emotion": e} for s, t, e in turns]}
    (c,) = load(str(jsonl(folder, item))).conversations
    assert [(t.speaker, t.text, t.emotion.top(c.label_set)) for t in c.turns] == turns


@given(st.text(max_size=60))
def test_clean_text_is_clean_and_idempotent(text: str) -> None:
    report = LoadReport("x")
    once = SourceFile(report, Path("f")).clean(text)
    assert not any(ord(ch) < 32 or 0x7F <= ord(ch) <= 0x9F for ch in once)
    assert once == " ".join(once.split())
    assert SourceFile(LoadReport("x"), Path("f")).clean(once) == once


# -- personas without a model ----------------------------------------------------------------------


def test_plain_personas_come_from_the_training_split_alone() -> None:
    loud = tuple(Utterance("Loud", "NO! Not again!", dist(anger=1)) for _ in range(12))
    calm = tuple(
        Utterance("Calm", "I think we could perhaps look at it together tomorrow morning.", dist(neutral=1))
        for _ in range(12)
    )
    rare = (Utterance("Rare", "Oh!", dist(fear=1)),)
    labels = LABEL_SETS["meld"]
    train = [Conversation("a", "x", "train", loud + calm + rare, labels)]
    personas = describe_speakers(train, labels)
    assert personas["Loud"].description == "Talks in short lines, exclaims; quick to anger."
    assert personas["Calm"].description == "Talks in long lines; even-tempered."
    assert "Rare" not in personas, "one line says nothing"
    test = [Conversation("b", "x", "test", tuple(Utterance("Loud", "hm", dist(joy=1)) for _ in range(50)),
                         labels)]  # fmt: skip
    assert describe_speakers(train + test, labels) == personas
    assert describe_speakers(test, labels) == {}


def test_own_personas_are_kept() -> None:
    c = toy_conversations(1)[0]
    (after,) = with_personas([c], {"Ann": Persona("Ann", "other"), "Zed": Persona("Zed", "nobody")})
    assert after.personas == c.personas


# -- the sample set --------------------------------------------------------------------------------


def test_the_sample_set_keeps_its_promises() -> None:
    result = load("sample")
    conversations = result.conversations
    turns = [t for c in conversations for t in c.turns]
    assert len(conversations) >= 150 and len(turns) >= 1100
    tops = [t.emotion.top(LABEL_SETS["meld"]) for t in turns]
    for emotion in LABEL_SETS["meld"].labels:
        assert tops.count(emotion) / len(tops) > 0.07, emotion
    assert {c.split for c in conversations} == {"train", "dev", "test"}
    assert all(set(c.personas) >= set(c.speakers) and c.scenario for c in conversations)
    groups = sum(len(c.speakers) > 2 for c in conversations)
    assert 0.1 < groups / len(conversations) < 0.5
    texts = [t.text for t in turns]
    assert len(set(texts)) / len(texts) > 0.97
    assert not result.report.blemishes and not result.report.skipped


def test_labels_without_neutral_have_plain_personas_too() -> None:
    labels = LabelSet("own", ("happy", "upset"))
    turns = [
        Utterance(who, "Well.", EmotionDistribution({e: 1.0}))
        for who in ("Ann", "Bo") for e in ("happy", "upset", "happy", "upset", "happy")
    ]  # fmt: skip
    found = describe_speakers([Conversation("c", "jsonl", "train", tuple(turns), labels)], labels)
    assert {p.description for p in found.values()} == {"Talks in medium lines; no mood stands out."}


def test_what_is_skipped_is_not_held_out(tmp_path: Path) -> None:
    """Whichever line is broken, each fifth of what can be read is held out."""
    lines = [f'{{"id": "c{n}", "turns": [{{"speaker": "A", "text": "Hi"}}]}}' for n in range(5)]
    for broken in range(5):
        text = "\n".join('{"id": "c", "turns": []}' if n == broken else s for n, s in enumerate(lines))
        (tmp_path / "mine.jsonl").write_text(text)
        result = load(str(tmp_path / "mine.jsonl"), lenient=True)
        assert result.report.without_split == {c.id for c in result.conversations}
        held = hold_out(result.conversations, result.report.without_split, 0.2)
        assert Counter(c.split for c in held) == {"train": 3, "dev": 1}


def test_a_file_without_splits_is_told_what_training_does(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "a", "turns": [{"speaker": "A", "text": "Hi"}]}\n')
    adapter, at = resolve(str(path))
    lines = check_lines(adapter.load(at), adapter)
    assert any("conversations that name no split: 1; training holds" in line for line in lines)
