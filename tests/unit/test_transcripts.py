"""Transcripts as turns: what each form says, and where each mistake is."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfemo.data.transcripts import SPEAKER, ReadSettings, SourceTurn, read_turns
from selfemo.errors import DataError


def read(folder: Path, name: str, content: str | bytes, settings: ReadSettings | None = None) -> list:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_turns(path, settings))


def said(turns: list[SourceTurn]) -> list[tuple[str, str, str]]:
    return [(t.conversation, t.speaker, t.text) for t in turns]


def test_csv_with_its_columns(tmp_path: Path) -> None:
    turns = read(
        tmp_path, "a.csv",
        'Dialogue_ID,Speaker,Utterance,note\r\n1,Ann,"Hi, Bo",x\r\n1,Bo,"two\nlines",\r\n2,Cy,Yes.,y\r\n',
    )  # fmt: skip
    assert said(turns) == [("1", "Ann", "Hi, Bo"), ("1", "Bo", "two lines"), ("2", "Cy", "Yes.")]
    assert turns[0].fields == {"Dialogue_ID": "1", "Speaker": "Ann", "Utterance": "Hi, Bo", "note": "x"}


def test_csv_of_other_separators_and_columns(tmp_path: Path) -> None:
    assert said(read(tmp_path, "a.csv", "speaker;text\nAnn;a, b\n")) == [("a", "Ann", "a, b")]
    assert said(read(tmp_path, "a.tsv", "text\tx\nhello, you\t1\n")) == [("a", SPEAKER, "hello, you")]
    columns = ReadSettings(text="was", speaker="wer", conversation="nr", encoding="cp1252")
    turns = read(tmp_path, "a.csv", "nr,wer,was\n7,J\xfcrgen,sch\xf6n\n".encode("cp1252"), columns)
    assert said(turns) == [("7", "Jürgen", "schön")]


def test_jsonl_keeps_scene_and_labels(tmp_path: Path) -> None:
    lines = (
        '{"id": "a", "scene": "A bar.", "labels": ["calm", "upset"], '
        '"turns": [{"speaker": "Ann", "text": "Hi"}]}\n\n'
        '{"id": "b", "turns": [{"speaker": "Bo", "text": "Yo", "emotion": "joy"}]}\n'
    )
    turns = read(tmp_path, "j.jsonl", lines)
    assert said(turns) == [("a", "Ann", "Hi"), ("b", "Bo", "Yo")]
    assert turns[0].scene == "A bar." and turns[0].labels and list(turns[0].labels) == ["calm", "upset"]
    assert turns[1].labels is None


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "speaker,text\nAnn,Hi\nBo\n", "a.csv:3: has 1 fields, the header 2"),
        ("a.csv", 'speaker,text\nAnn,"Hi\nBo,Yo\n', "a.csv:2: broken CSV"),
        ("a.csv", "who,what\nAnn,Hi\n", "a.csv:1: has no text column"),
        ("a.csv", "text,text\nAnn,Hi\n", "a.csv:1: has two columns 'text'"),
        ("a.csv", "", "a.csv: is empty"),
        ("a.csv", "text\nHi\n \n", "a.csv:3: column text is empty"),
        ("a.csv", "thread,text\n1,a\n2,b\n1,c\n", "a.csv:4: conversation '1' goes on here"),
        ("a.csv", b"text\nsch\xf6n\n", "name its encoding by --encoding"),
        ("a.jsonl", '{"id": "a", "turns": []}\n', "a.jsonl:1: the conversation is empty"),
        ("a.jsonl", "\n{\n", "a.jsonl:2: broken JSON"),
        ("a.pdf", "x", "a.pdf: of no known form"),
    ],
)
def test_mistakes_are_named_with_their_place(
    tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    with pytest.raises(DataError) as e:
        read(tmp_path, name, content)
    assert says in str(e.value)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column 'what'; it has text"):
        read(tmp_path, "a.csv", "text\nHi\n", ReadSettings(text="what"))
    with pytest.raises(DataError, match="no such encoding"):
        read(tmp_path, "a.csv", "text\nHi\n", ReadSettings(encoding="latin-99"))


def test_a_file_larger_than_what_is_held(tmp_path: Path) -> None:
    """Reading holds one turn at a time, not the file."""
    import tracemalloc

    path = tmp_path / "big.csv"
    with path.open("w") as f:
        f.write("speaker,text\n")
        for n in range(1_500):
            f.write(f"Ann,Line {n} of a long monologue{' that goes on and on' * 80}.\n")
    assert path.stat().st_size > 2_000_000
    turns = read_turns(path)
    next(turns)
    tracemalloc.start()
    count = 1 + sum(1 for _ in turns)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1_500 and peak < 500_000
