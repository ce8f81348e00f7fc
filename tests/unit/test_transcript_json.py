"""JSON and JSON lines as people have them: what each shape says, what is told, and where mistakes are."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from selfemo.data.transcripts import SPEAKER, Reading, ReadSettings, SourceTurn, read_turns
from selfemo.errors import DataError

Said = list[tuple[str, str, str]]


def read(
    folder: Path, name: str, content: str, wanted: ReadSettings | None = None
) -> tuple[list[SourceTurn], Reading]:
    path, reading = folder / name, Reading()
    path.write_text(content, encoding="utf-8")
    return list(read_turns(path, wanted, reading)), reading


def said(folder: Path, name: str, content: Any, **wanted: str) -> Said:
    content = content if isinstance(content, str) else json.dumps(content)
    turns, _ = read(folder, name, content, ReadSettings(**wanted))
    return [(t.conversation, t.speaker, t.text) for t in turns]


def refusal(folder: Path, name: str, content: str, **wanted: str) -> str:
    with pytest.raises(DataError) as e:
        read(folder, name, content, ReadSettings(**wanted))
    return str(e.value)


def test_the_projects_own_form(tmp_path: Path) -> None:
    lines = (
        '{"id": "a", "scene": "A bar.", "labels": ["Calm", "upset"], "split": "dev", '
        '"personas": {"Ann": "shy"}, "turns": [{"speaker": "Ann", "text": "Hi"}]}\n\n'
        '{"id": "b", "labels": ["calm"], "turns": [{"speaker": "Bo", "text": "Yo", "emotion": {"joy": 1}}]}\n'
    )
    (ann, bo), reading = read(tmp_path, "j.jsonl", lines)
    assert (ann.conversation, ann.speaker, ann.text, ann.scene) == ("a", "Ann", "Hi", "A bar.")
    assert ann.labels and list(ann.labels) == ["calm", "upset"] and bo.labels is None
    assert ann.fields == {"speaker": "Ann", "text": "Hi", "split": "dev", "personas": {"Ann": "shy"}}
    assert bo.fields == {"speaker": "Bo", "text": "Yo", "emotion": {"joy": 1}, "labels": ["calm"]}
    assert reading.columns == {"text": "text", "speaker": "speaker", "conversation": "id"}


def test_keys_of_a_conversation_and_of_a_turn(tmp_path: Path) -> None:
    turns = [{"who": 7, "said": "Hi", "source": None}, {"who": "Bo", "said": ""}]
    line = json.dumps({"source": "crm", "day": 3, "turns": turns})
    (first, second), _ = read(tmp_path, "j.jsonl", line)
    assert [first.conversation, first.speaker, first.text] == ["1", "7", "Hi"]
    assert first.fields == {"who": 7, "said": "Hi", "source": None, "conversation_source": "crm", "day": 3}
    assert second.text == "" and second.fields == {"who": "Bo", "said": "", "source": "crm", "day": 3}


def test_a_long_value_is_not_repeated_on_each_turn(tmp_path: Path) -> None:
    spoken = [{"text": f" Line {n}."} for n in range(100)]
    whole = {"text": "".join(t["text"] for t in spoken), "words": list(range(300)), "segments": spoken}
    turns, reading = read(tmp_path, "j.json", json.dumps(whole))
    assert len(turns) == 100 and turns[0].fields == {"text": " Line 0."}
    assert reading.left_out == {"long values beside the turns": 1}
    assert reading.examples["long values beside the turns"][0][1].startswith("words: [0, 1, 2")


@pytest.mark.parametrize(
    "key", ["turns", "messages", "dialogue", "dialog", "Utterances", "conversations", "segments"]
)
def test_lists_of_turns(tmp_path: Path, key: str) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Yo"}]
    expected = [("c", "user", "Hi"), ("c", "bot", "Yo")]
    assert said(tmp_path, "j.jsonl", {"id": "c", key: turns}) == expected
    assert said(tmp_path, "j.json", json.dumps({"conversation_id": "c", key: turns}, indent=1)) == expected
    assert said(tmp_path, "j.json", {"c": {key: turns}}) == expected
    assert said(tmp_path, "j.json", {"c": turns}) == expected


ROWS: list[dict[str, Any]] = [
    {"thread": 1, "author": {"id": 5, "displayName": "Ann"}, "body": "Hi", "likes": 2},
    {"thread": 1, "author": None, "body": None},
    {"thread": 2, "author": "Bo", "body": "Yo"},
]


def test_a_turn_a_line(tmp_path: Path) -> None:
    lines = "".join(json.dumps(r) + "\n" for r in ROWS)
    expected = [("1", "Ann", "Hi"), ("1", SPEAKER, ""), ("2", "Bo", "Yo")]
    assert said(tmp_path, "j.jsonl", lines) == said(tmp_path, "j.json", lines) == expected
    assert said(tmp_path, "j.json", json.dumps(ROWS, indent=2)) == expected
    turns, reading = read(tmp_path, "j.jsonl", lines)
    assert [t.fields for t in turns] == ROWS
    assert reading.columns == {"text": "body", "speaker": "author", "conversation": "thread"}
    assert reading.report.blemishes == {"turns without a speaker": 1}
    lines += json.dumps(ROWS[0])
    assert "j.jsonl:4: conversation '1' goes on here after another" in refusal(tmp_path, "j.jsonl", lines)
    assert {c for c, _, _ in said(tmp_path, "j.jsonl", lines, conversation="none")} == {"j"}
    # A line without a text is kept once there were turns.
    lines = '{"by": "Ann", "msg": "Hi"}\n{"by": "Bo", "picture": "p.png"}\n'
    assert said(tmp_path, "j.jsonl", lines, speaker="by") == [("j", "Ann", "Hi"), ("j", "Bo", "")]


def test_keys_that_are_asked_for(tmp_path: Path) -> None:
    talk = {"id": 1, "day": "Mon", "turns": [{"text": "x", "was": "Hi", "wer": "Ann", "nr": 4}]}
    assert said(tmp_path, "j.json", talk, text="was", speaker="wer") == [("1", "Ann", "Hi")]
    assert said(tmp_path, "j.json", talk, text="was", conversation="day")[0][0] == "Mon"
    assert said(tmp_path, "j.json", talk, text="was", conversation="nr")[0][0] == "4"
    assert (
        said(tmp_path, "j.json", [talk, talk], text="was", conversation="none") == [("j", SPEAKER, "Hi")] * 2
    )
    told = refusal(tmp_path, "a.jsonl", '{"speaker": "a", "message": "b"}\n', speaker="speakers1")
    assert "has no column 'speakers1' (--speaker-column); it has speaker, message; did you mean" in told


def test_a_chat_of_a_language_model(tmp_path: Path) -> None:
    look = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": "u"}]
    chat = [{"role": "user", "content": look}, {"role": "assistant", "content": None, "tool_calls": [1]}]
    turns, _ = read(tmp_path, "j.jsonl", json.dumps({"messages": chat}))
    assert [(t.conversation, t.speaker, t.text) for t in turns] == [
        ("1", "user", "Look"),
        ("1", "assistant", ""),
    ]
    assert [t.fields for t in turns] == chat


def test_exports_of_chats(tmp_path: Path) -> None:
    see = ["See ", {"type": "link", "text": "x.y"}, "!"]
    messages = [
        {"type": "service", "actor": "Ann", "text": "", "action": "call"},
        {"type": "message", "date": "2024-05-01", "from": "Bo", "text": see},
        {"type": "message", "from": "Ann", "text": "", "photo": "p"},
    ]
    telegram = json.dumps({"name": "Ann", "id": 9, "messages": messages})
    turns, reading = read(tmp_path, "result.json", telegram)
    assert [(t.conversation, t.speaker, t.text) for t in turns] == [("9", "Bo", "See x.y!"), ("9", "Ann", "")]
    assert turns[0].fields == {"name": "Ann", **messages[1]}
    assert reading.left_out == {"service messages": 1}
    author = {"id": "8", "name": "ann", "nickname": "A"}
    discord = {"channel": {"id": "4"}, "messages": [{"id": "1", "content": "Hi", "author": author}]}
    assert said(tmp_path, "den.json", discord) == [("den", "A", "Hi")]
    kinds = [("Default", "Hi"), ("GuildMemberJoin", "Joined the server."), ("Reply", "Yo")]
    several = [
        {"type": kind, "timestamp": "2024-05-01", "isPinned": False, "content": text, "author": author}
        for kind, text in kinds
    ]
    turns, reading = read(tmp_path, "hall.json", json.dumps({"messages": several}))
    assert [t.text for t in turns] == ["Hi", "Yo"] and reading.left_out == {"service messages": 1}
    joined = {"subtype": "channel_join", "user": "U2", "text": "joined"}
    assert said(tmp_path, "day.json", [{"user": "U1", "text": "Hi"}, joined]) == [("day", "U1", "Hi")]


def test_lists_and_objects_around_conversations(tmp_path: Path) -> None:
    talks = [{"id": "a", "conversations": [{"from": "human", "value": "Hi"}]}, {"dialog": ["Yo", "Ho"]}]
    assert said(tmp_path, "s.json", talks) == [
        ("a", "human", "Hi"),
        ("2", SPEAKER, "Yo"),
        ("2", SPEAKER, "Ho"),
    ]
    scene = {"scene_id": "c1", "utterances": [{"speakers": ["Ann", "Bo"], "transcript": "Hi"}]}
    turns, reading = read(tmp_path, "e.json", json.dumps({"season": "s1", "episodes": [{"scenes": [scene]}]}))
    assert [(t.conversation, t.speaker, t.text) for t in turns] == [("c1", "Ann and Bo", "Hi")]
    assert reading.examples == {"values outside of conversations": [(1, "season: s1")]}


def test_a_list_for_each_key(tmp_path: Path) -> None:
    lists = {"speaker": [0, 1], "utterance": ["Hi", "Yo"]}
    assert said(tmp_path, "j.jsonl", {"dialogue_id": "d", "turns": lists}) == [
        ("d", "0", "Hi"),
        ("d", "1", "Yo"),
    ]
    assert said(tmp_path, "j.json", lists) == [("j", "0", "Hi"), ("j", "1", "Yo")]
    # Texts alone are turns below a name of turns only: other lists say something else.
    turns, reading = read(
        tmp_path, "j.json", json.dumps({"people": ["Al", "Bo"], "data": [{"dialog": ["Hi"]}]})
    )
    assert [t.text for t in turns] == ["Hi"]
    assert reading.examples["values outside of conversations"] == [(1, 'people: ["Al", "Bo"]')]
    assert said(tmp_path, "j.json", [["Hi", "Yo"], ["Ho"]])[2] == ("2", SPEAKER, "Ho")
    assert "text is no text" in refusal(tmp_path, "j.json", '{"id": 1, "text": ["two", "turns"]}')


def test_messages_that_name_their_conversations(tmp_path: Path) -> None:
    messages = [{"chat_id": 4, "text": "Hi"}, {"chat_id": 5, "text": "Yo"}]
    assert [c for c, _, _ in said(tmp_path, "j.json", {"messages": messages})] == ["4", "5"]
    assert [c for c, _, _ in said(tmp_path, "j.json", {"id": "x", "messages": messages})] == ["x", "x"]


def test_json_over_several_lines_in_a_file_of_lines(tmp_path: Path) -> None:
    one, two = ({"id": i, "turns": [{"speaker": "Ann", "text": "Hi"}]} for i in "ab")
    turns, reading = read(tmp_path, "j.jsonl", json.dumps(one, indent=2))
    assert [t.conversation for t in turns] == ["a"] and reading.form == "JSON over several lines"
    assert len(said(tmp_path, "j.jsonl", json.dumps(one, indent=2) + json.dumps(two, indent=2))) == 2
    assert len(said(tmp_path, "j.jsonl", json.dumps([one, two], indent=2))) == 2


def test_values_that_utf8_or_json_cannot_write(tmp_path: Path) -> None:
    line = '{"speaker": NaN, "text": "a \\ud83d b", "\\udc00": [Infinity], "fine": "\\ud83d\\ude00"}\n'
    turns, reading = read(tmp_path, "j.jsonl", line)
    assert turns[0].speaker == SPEAKER and turns[0].text == "a b"
    assert turns[0].fields == {
        "speaker": None, "text": "a \ufffd b", "\ufffd": ["Infinity"], "fine": "\U0001f600",
    }  # fmt: skip
    assert reading.report.blemishes["unreadable character"] == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": }\n', "a.jsonl:2: broken JSON: Expecting value (column 10)"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "b"\n',
            "a.jsonl:2: broken JSON: Expecting ',' delimiter (column 13)",
        ),
        ("a.jsonl", '\n{\n"text" 1}\n', "a.jsonl:3: broken JSON: Expecting ':' delimiter (column 8)"),
        ("a.jsonl", '{"text": "a"} {"text": "b"}\n', "a.jsonl:1: has several JSON values"),
        ("a.jsonl", '{"text": "a", "text": "b"}\n', "a.jsonl:1: key 'text' occurs twice"),
        ("a.jsonl", '"text"\n', "a.jsonl:1: is JSON, but no object and no list"),
        (
            "a.jsonl",
            '{"was": "a", "wer": "b"}\n',
            "the keys are was, wer: name that of the text by --text-column",
        ),
        (
            "a.jsonl",
            '{"id": 1, "turns": [{"was": "a"}]}\n',
            "the keys are id, turns[].was: name that of the text",
        ),
        (
            "a.jsonl",
            '{"id": 1, "turns": [{"text": "a"}, 5]}\n',
            "a.jsonl:1: turns[1] must be an object or a text",
        ),
        ("a.jsonl", '{"turns": [{"text": "a"}, {"text": true}]}\n', "turns[1].text is no text"),
        (
            "a.jsonl",
            '{"id": 1, "turns": ["a"]}\n{"id": 1, "turns": ["b"]}\n',
            "a.jsonl:2: conversation '1' occurs",
        ),
        (
            "a.jsonl",
            '{"speaker": "a", "text": ""}\n',
            "a.jsonl: no turn has a text; name its key by --text-column",
        ),
        ("a.jsonl", "[" * 100_000, "nested too deep"),
        ("a.json", '{"turns": [\n{"text": "a",}\n]}', "a.json:2: broken JSON:"),
        ("a.json", "", "a.json: is empty"),
        ("a.json", '{"text": {"0": "a"}, "who": {"0": "b"}}', "a.json:1: text is no text but an object"),
        ("a.json", '[{"x": 1}]', "a.json:1: [0] is no conversation"),
        ("a.json", "[" * 30 + '{"text": "a"}' + "]" * 30, "a.json:1: JSON is nested too deep"),
    ],
)
def test_mistakes_in_json(tmp_path: Path, name: str, content: str, says: str) -> None:
    assert says in refusal(tmp_path, name, content)


def test_a_transcript_with_its_words_beside(tmp_path: Path) -> None:
    """As services of speech recognition write it: the whole text and each word once more."""
    spoken = [{"speaker_label": f"spk_{n % 2}", "transcript": f"Part {n}."} for n in range(60)]
    words = [{"alternatives": [{"content": f"Part{n}"}]} for n in range(60)]
    results = {"transcripts": [{"transcript": "Part 0. Part 1."}], "items": words, "audio_segments": spoken}
    turns, reading = read(tmp_path, "job.json", json.dumps({"jobName": "j", "results": results}))
    assert [(t.speaker, t.text) for t in turns[:2]] == [("spk_0", "Part 0."), ("spk_1", "Part 1.")]
    assert len(turns) == 60 and reading.left_out == {
        "values outside of conversations": 1,
        "long values beside the turns": 1,
    }
    # A turn that is none is an error with its place also there.
    assert "segments[1] must be" in refusal(
        tmp_path, "j.json", json.dumps({"text": "x" * 600, "segments": [{"text": "a"}, 5]})
    )


def test_a_line_is_held_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("w") as f:
        for n in range(1_500):
            f.write(json.dumps({"speaker": "Ann", "text": f"Line {n} goes on{' and on' * 200}."}) + "\n")
    turns = read_turns(path)
    next(turns)
    tracemalloc.start()
    count = 1 + sum(1 for _ in turns)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 2_000_000 and count == 1_500 and peak < 500_000


def test_a_conversation_without_turns_is_told(tmp_path: Path) -> None:
    turns, reading = read(tmp_path, "a.jsonl", '{"id": "x9", "turns": []}\n["Hi"]\n')
    assert [(t.conversation, t.text) for t in turns] == [("2", "Hi")]
    assert reading.examples["conversations without turns"] == [(1, '{"id": "x9", "turns": []}')]
