"""CSV, TSV, JSON and JSON lines as people have them: what each says, what is told, and where mistakes are."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from selfemo.data.transcripts import SPEAKER, Reading, ReadSettings, SourceTurn, read_turns
from selfemo.errors import DataError

AsIs = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def read(
    folder: Path, name: str, content: str | bytes, wanted: ReadSettings | None = None
) -> tuple[list[SourceTurn], Reading]:
    path, reading = folder / name, Reading()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_turns(path, wanted, reading)), reading


def said(folder: Path, name: str, content: str | bytes, **wanted: str) -> list[tuple[str, str, str]]:
    turns, _ = read(folder, name, content, ReadSettings(**wanted))
    return [(t.conversation, t.speaker, t.text) for t in turns]


def refusal(folder: Path, name: str, content: str | bytes, **wanted: str) -> str:
    with pytest.raises(DataError) as e:
        read(folder, name, content, ReadSettings(**wanted))
    return str(e.value)


# -- one turn a row ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["Any tea ? __eou__ No . __eou__", "\"['Any tea?', 'No.']\"", "['Tea?' 'No.']"]
)
def test_a_row_with_a_whole_dialogue_is_refused(tmp_path: Path, text: str) -> None:
    told = refusal(tmp_path, "d.csv", f"n,dialog\n1,Hello .\n2,{text}\n")
    assert "d.csv:3: column 'dialog' holds a whole dialogue here: write one turn a row" in told


@pytest.mark.parametrize("text", ["No . __eou__", "['No.']", "[it's a boy's]"])
def test_a_row_with_one_utterance_is_a_turn(tmp_path: Path, text: str) -> None:
    assert said(tmp_path, "d.csv", f"n,dialog\n1,{text}\n") == [("d", SPEAKER, text)]


# -- columns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("Utterance,Speaker,Dialogue_ID", ("Utterance", "Speaker", "Dialogue_ID")),
        ("Conversation ID,Speaker Name,Message Text", ("Message Text", "Speaker Name", "Conversation ID")),
        ("conversationId,author,body", ("body", "author", "conversationId")),
        ("TicketID,From,Comment", ("Comment", "From", "TicketID")),
        ("session-no.,participant,said", ("said", "participant", "session-no.")),
        ("AuthorID,Author,Content", ("Content", "Author", None)),
        ("chat_name,chat_id,user,msg", ("msg", "user", "chat_id")),
        ("Sprecher,Text,Gespräch", ("Text", "Sprecher", "Gespräch")),
        ("Locuteur,Texte,Conversation", ("Texte", "Locuteur", "Conversation")),
        ("Autor,Mensaje,Conversación", ("Mensaje", "Autor", "Conversación")),
        ("Season,Episode,Scene_ID,Speaker,Utterance", ("Utterance", "Speaker", "Season, Episode, Scene_ID")),
        ("Episode,Season,Dialogue_ID,Utterance", ("Utterance", None, "Dialogue_ID")),
        ("Season,Episode,Line", ("Line", None, "Season, Episode")),
        ("message,text,role,name", ("text", "name", None)),
        ("Character,Dialogue", ("Dialogue", "Character", None)),
        ("call,transcript", ("transcript", None, "call")),
        ("user_id,text", ("text", "user_id", None)),
    ],
)
def test_columns_of_usual_names(tmp_path: Path, header: str, columns: tuple[str | None, ...]) -> None:
    values = ",".join("a" for _ in header.split(","))
    turns, reading = read(tmp_path, "a.csv", f"{header}\n{values}\n")
    roles = ("text", "speaker", "conversation")
    assert tuple(reading.columns.get(r) for r in roles) == columns
    assert list(turns[0].fields) == header.split(",")


def test_columns_that_are_asked_for(tmp_path: Path) -> None:
    table = "nr,wer,was,Text\n7,Jo,gut,x\n7,Al,ja,y\n8,Jo,nein,z\n"
    assert said(tmp_path, "a.csv", table, text="was", speaker="WER", conversation="nr") == [
        ("7", "Jo", "gut"), ("7", "Al", "ja"), ("8", "Jo", "nein"),
    ]  # fmt: skip
    assert said(tmp_path, "a.csv", table, conversation="nr, wer", text="was")[1][0] == "7, Al"
    assert {c for c, _, _ in said(tmp_path, "a.csv", table, conversation="none")} == {"a"}
    none = "none,text\n1,a\n2,b\n"
    assert [c for c, _, _ in said(tmp_path, "a.csv", none, conversation="none")] == ["1", "2"]
    comma = '"a,b",text\n1,x\n'
    assert said(tmp_path, "a.csv", comma, conversation="a,b") == [("1", SPEAKER, "x")]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"text": "mesage"}, "'mesage' (--text-column); it has ticket, message, by; did you mean 'message'?"),
        ({"speaker": "zz"}, "has no column 'zz' (--speaker-column); it has ticket, message, by"),
        ({"conversation": "ticket,thread"}, "has no column 'thread' (--conversation-column)"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there(tmp_path: Path, wanted: dict[str, str], says: str) -> None:
    assert says in refusal(tmp_path, "a.csv", "ticket,message,by\n1,Hi,Jo\n", **wanted)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("who cares,what\nAnn,Hi\n", "a.csv:1: has no text column (looked for text, utterance"),
        ("Ann,Good evening\nBo,Hello\n", "write a line such as `speaker,text` above it"),
        ("Good evening\nHello\n", "message, content, ...), but one column 'Good evening' (between commas"),
        ("text,text\na,b\n", "a.csv:1: has two columns 'text'; rename one"),
        ("line,cue\n1,Hi\n2,Ho\n", "a.csv:1: column 'line' holds only numbers; name the text"),
        ("text,message\n,Hi\n,Ho\n", "a.csv:1: column 'text' is empty in all rows; name the text by"),
        ("", "a.csv: is empty"),
        ("\n\n", "a.csv: is empty"),
    ],
)  # fmt: skip
def test_a_header_that_names_no_text(tmp_path: Path, content: str, says: str) -> None:
    assert says in refusal(tmp_path, "a.csv", content)


def test_numbers_are_a_text_where_they_are_asked_for(tmp_path: Path) -> None:
    assert said(tmp_path, "a.csv", "line\n1\n", text="line") == [("a", SPEAKER, "1")]


def test_speakers_in_a_list_and_without_a_name(tmp_path: Path) -> None:
    table = "Speaker,Utterance\n\"['Ann Lee', 'Bo']\",Hi\n['Bo'],Yo\n[loud],Ho\n,Hm\n"
    turns, reading = read(tmp_path, "a.csv", table)
    assert [t.speaker for t in turns] == ["Ann Lee and Bo", "Bo", "[loud]", SPEAKER]
    assert turns[0].fields["Speaker"] == "['Ann Lee', 'Bo']"
    assert reading.report.blemishes == {"rows without a speaker": 1}


def test_conversations_stand_together(tmp_path: Path) -> None:
    mixed = "ticket,text\n1,a\n2,b\n1,c\n"
    told = refusal(tmp_path, "a.csv", mixed)
    assert "a.csv:4: conversation '1' goes on here after another one (column 'ticket')" in told
    assert "sort the rows by 'ticket'" in told and "--conversation-column none" in told
    assert len(said(tmp_path, "a.csv", mixed, conversation="none")) == 3
    gap = "ticket,text\n1,a\n,b\n"
    assert "a.csv:3: column 'ticket' is empty here: fill it in" in refusal(tmp_path, "a.csv", gap)
    # A row without a text names nothing; a column that is empty so far is none.
    assert said(tmp_path, "a.csv", "ticket,text,x\n1,a,\n,,u\n1,b,\n")[1:] == [
        ("1", SPEAKER, ""),
        ("1", SPEAKER, "b"),
    ]
    turns, reading = read(tmp_path, "a.csv", "ticket,text\n,a\n,b\n5,c\n")
    assert [t.conversation for t in turns] == ["a", "a", "5"]
    assert reading.report.blemishes == {"rows without a conversation": 2}


# -- rows -------------------------------------------------------------------------------------------


def test_empty_rows_empty_texts_and_columns_without_a_name(tmp_path: Path) -> None:
    table = ",speaker,text,,note,,\n0,Ann,Hi,,x,,\n\n1,Bo,,,,,\n,,,,,,\n2,Cy,Yo,,,,,,\n"
    turns, reading = read(tmp_path, "a.csv", table)
    assert [(t.speaker, t.text) for t in turns] == [("Ann", "Hi"), ("Bo", ""), ("Cy", "Yo")]
    assert turns[0].fields == {"column 1": "0", "speaker": "Ann", "text": "Hi", "note": "x"}
    assert {tuple(t.fields) for t in turns} == {("column 1", "speaker", "text", "note")}
    assert reading.left_out == {"empty rows": 2}
    assert [line for line, _ in reading.examples["empty rows"]] == [3, 5]


def test_a_value_below_no_name_is_carried(tmp_path: Path) -> None:
    turns, _ = read(tmp_path, "a.csv", "speaker,text,,\nAnn,Hi,,\nBo,Yo,,later\n")
    assert [t.fields.get("column 4") for t in turns] == ["", "later"]
    assert "column 3" not in turns[0].fields


def test_columns_of_one_name(tmp_path: Path) -> None:
    turns, _ = read(tmp_path, "a.csv", "note,text,note,note (2),note\na,Hi,b,c,d\n")
    assert turns[0].fields == {
        "note": "a",
        "text": "Hi",
        "note (2)": "b",
        "note (2) (2)": "c",
        "note (3)": "d",
    }


def test_rows_of_another_width(tmp_path: Path) -> None:
    turns, reading = read(tmp_path, "a.csv", "speaker,text,note\nAnn,Hi\nBo,Yo,x\n")
    assert turns[0].fields == {"speaker": "Ann", "text": "Hi", "note": ""}
    assert reading.report.blemishes == {"rows with fewer fields than the header": 1}
    assert reading.report.examples["rows with fewer fields than the header"] == ["a.csv:2"]
    short = refusal(tmp_path, "a.csv", "speaker,text\nAnn,Hi\nBo\n")
    assert "a.csv:3: has 1 fields, the header 2 (separated by commas); its text is missing" in short
    long = refusal(tmp_path, "a.csv", "speaker;text\nAnn;Well; yes\n")
    assert "a.csv:2: has 3 fields, the header 2 (separated by semicolons)" in long and '"Well, yes"' in long


# -- separators and quotation marks -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.csv", "speaker;text;t\nAnn;Hi, Bo, you;1,5\nBo;Yo;2,5\n", "a table (CSV with semicolons)"),
        ("a.csv", "t,ms;speaker;text\n1,5;Ann;Hi, Bo, you\n2,5;Bo;Yo\n", "a table (CSV with semicolons)"),
        ("a.csv", "sep=;\nspeaker;text\nAnn;Hi, Bo, you\nBo;Yo\n", "a table (CSV with semicolons)"),
        ("a.csv", '"sep=#"\r\nspeaker#text\r\nAnn#Hi, Bo, you\r\nBo#Yo\r\n', "a table (CSV with '#')"),
        ("a.csv", "speaker|text\nAnn|Hi, Bo, you\nBo|Yo\n", "a table (CSV with vertical bars)"),
        ("a.csv", "speaker\ttext\nAnn\tHi, Bo, you\nBo\tYo\n", "a table (TSV, each line a row)"),
        ("a.tsv", 'speaker,text\nAnn,"Hi, Bo, you"\nBo,Yo\n', "a table (CSV)"),
        ("a.tsv", 'speaker;text\n"Ann";"Hi, Bo, you"\nBo;Yo\n', "a table (CSV with semicolons)"),
        ("a.csv", '"speaker","text"\n"Ann","Hi, Bo, you"\n"Bo","Yo"\n', "a table (CSV)"),
        (
            "a.csv",
            '"speaker";"no;te";"text"\n"Ann";"";"Hi, Bo, you"\nBo;;Yo',
            "a table (CSV with semicolons)",
        ),
        ("a.csv", 'speaker, text\nAnn, "Hi, Bo, you"\nBo, Yo\n', "a table (CSV)"),
        ("a.csv", '\n\nspeaker,text\nAnn,"Hi, Bo, you"\nBo,Yo\n', "a table (CSV)"),
        ("a.csv", '\ufeffspeaker,text\nAnn,"Hi, Bo, you"\nBo,Yo\n', "a table (CSV)"),
    ],
)
def test_separators(tmp_path: Path, name: str, content: str, form: str) -> None:
    turns, reading = read(tmp_path, name, content)
    assert [(t.speaker, t.text) for t in turns] == [("Ann", "Hi, Bo, you"), ("Bo", "Yo")]
    assert reading.form == form


def test_texts_over_several_lines_are_told(tmp_path: Path) -> None:
    turns, reading = read(tmp_path, "a.csv", 'speaker,text\r\nAnn,"Hi,\r\n\r\nBo, there?"\r\nBo,Yes\r\n')
    assert [(t.speaker, t.text) for t in turns] == [("Ann", "Hi, Bo, there?"), ("Bo", "Yes")]
    assert turns[0].fields["text"] == "Hi,\r\n\r\nBo, there?"
    assert reading.report.examples == {"texts over several lines": ["a.csv:2"]}


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('speaker,text\nAnn,the pub"s door\nBo,6" tall\n', ['the pub"s door', '6" tall']),
        ('speaker,text\nAnn,"Stop" she said\nBo,"No, ""stop"""\n', ['"Stop" she said', 'No, "stop"']),
        ('n,text\n1,"She said \\"stop, now\\" to us"\n2,ok\\n\n', ['She said "stop, now" to us', "ok\\n"]),
        ('n,text\n1,"in C:\\"\n2,"a"\n', ["in C:\\", "a"]),
    ],
)  # fmt: skip
def test_quotation_marks_of_csv(tmp_path: Path, content: str, texts: list[str]) -> None:
    assert [text for _, _, text in said(tmp_path, "a.csv", content)] == texts


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('speaker,text\nAnn,Hi\nBo,"Wait\nAnn,What?\n', "a.csv:3: broken CSV: a quotation mark opens here"),
        ('speaker,text\n"Ann\nLee","Hi\nBo,Yo\n', "a.csv:3: broken CSV: a quotation mark opens here and is"),
        ('speaker,text\nAnn,"No, wait\nBo,What?\nAnn,"Stop" she said\n',
         "a.csv:2: broken CSV: a quotation mark opens here, and the next one, on line 4, does not close it"),
        ('speaker,text\nAnn,"Stop", she said, "now"\n', "a.csv:2: has 4 fields, the header 2"),
        ('speaker,text\nAnn,"Oh "well", she" said, "now"\n', "a.csv:2: broken CSV: a quotation mark"),
        ('speaker,text\nAnn,Hi\nBo,Yo\nAnn,"Wait\nBo,What?\nAnn,Stop"\n', "a.csv:4: line 5 looks like a row"),
        ('a,text\n1,"b\nc,d"",\n', "is not closed"),
        ('text\n"' + "x" * 100_001 + '"\n', "a.csv:2: broken CSV: a field has more than 100,000 characters"),
    ],
)  # fmt: skip
def test_quotation_marks_that_cannot_be_read(tmp_path: Path, content: str, says: str) -> None:
    assert says in refusal(tmp_path, "a.csv", content)


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        # Corpora: a line is a turn.
        (['"Stay', "Why?", 'Now"'], ['"Stay', "Why?", 'Now"']),
        (['"Stay" he', 'the pub"s', '"Yes, well"'], ['"Stay" he', 'the pub"s', '"Yes, well"']),
        (['"Stay"', "Why"], ['"Stay"', "Why"]),
        # Programs: each field is quoted, or each that must be.
        (['"Stay"', '"Why?"'], ["Stay", "Why?"]),
        (['"He said ""stay"""', "Why", '"well, yes"'], ['He said "stay"', "Why", "well, yes"]),
    ],
)
def test_quotation_marks_of_tsv(tmp_path: Path, rows: list[str], texts: list[str]) -> None:
    for name in ("a.tsv", "a.csv"):
        table = "n\ttext\n" + "".join(f"{n}\t{row}\n" for n, row in enumerate(rows))
        assert [text for _, _, text in said(tmp_path, name, table)] == texts


def test_a_spreadsheets_unicode_text(tmp_path: Path) -> None:
    table = 'Speaker\tText\tNote\r\nÉva\t"She said ""go"", ok"\t1\r\nBo\t"two\nlines"\t2\r\n'
    turns, reading = read(tmp_path, "a.csv", table.encode("utf-16"))
    assert [(t.speaker, t.text) for t in turns] == [("Éva", 'She said "go", ok'), ("Bo", "two lines")]
    assert reading.encoding == "utf-16" and reading.form == "a table (TSV)"
    assert reading.report.blemishes == {"texts over several lines": 1}


def test_a_tsv_of_other_widths_swallows_no_line(tmp_path: Path) -> None:
    told = refusal(tmp_path, "a.tsv", 'speaker\ttext\tnote\nAnn\t"Stay\nBo\nCy\tNow"\tx\n')
    assert "a.tsv:2: has 2 fields, the header 3 (separated by tabs) and a quotation mark" in told
    assert "a.tsv:2: has 3 fields" in refusal(tmp_path, "a.tsv", "speaker\ttext\nAnn\tHi\tyou\n")


# -- encodings --------------------------------------------------------------------------------------

ENCODED = [
    ("cp1252", "Jürgen", "Das war schön, aber viel zu groß für uns"),
    ("cp1252", "Zoë", "Où étais-tu hier ? C\u2019est déjà fini"),
    ("cp1252", "Íñigo", "¿Qué pasó? Mañana será otro día, señor"),
    ("cp1250", "Zdeněk", "Přišel jsem pozdě, řekl jsem ti to už včera"),
    ("cp1250", "Łukasz", "Zażółć gęślą jaźń, powiedział wczoraj chłopiec"),
    ("cp1251", "Аня", "Почему ты не позвонил мне вчера вечером?"),
    ("shift_jis", "花子", "ごめんなさい、昨日は電話するのを忘れていました"),
    ("gb18030", "小明", "对不起,我昨天晚上忘记给你打电话了"),
    ("euc-kr", "영희", "미안해요, 어제 전화하는 것을 잊어버렸어요"),
]
SAME = {"shift_jis": "cp932", "euc-kr": "cp949"}


@pytest.mark.parametrize(("encoding", "speaker", "text"), ENCODED)
def test_another_encoding_is_named(tmp_path: Path, encoding: str, speaker: str, text: str) -> None:
    table = f'n,speaker,text\n1,Bo,ok\n2,{speaker},"{text}"\n'.encode(encoding)
    told = refusal(tmp_path, "a.csv", table)
    assert "a.csv:3: is not utf-8 text; it looks like" in told
    # The likeliest are named, with the line as each reads it; which one reads right is seen at once.
    named = SAME.get(encoding, encoding)
    assert re.search(rf"{named} \('2,{speaker}", told) and "--encoding" in told
    assert said(tmp_path, "a.csv", table, encoding=named) == [("a", "Bo", "ok"), ("a", speaker, text)]


def test_the_likeliest_encoding_is_given_as_an_option(tmp_path: Path) -> None:
    told = refusal(tmp_path, "a.csv", "speaker;text\nJürgen;Das war schön\n".encode("cp1252"))
    assert told.endswith("it looks like cp1252 ('Jürgen;Das war schön'): give --encoding cp1252")


def test_one_line_that_is_no_utf8(tmp_path: Path) -> None:
    table = "text\nschön\ngrößer\n".encode() + "süß\n".encode("cp1252")
    assert "a.csv:4: is not UTF-8 here, though 2 other lines are" in refusal(tmp_path, "a.csv", table)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["Hello you", "Где ты был вчера", "你昨天晚上去哪里了"])
def test_wide_encodings_without_a_mark(tmp_path: Path, encoding: str, text: str) -> None:
    table = f"speaker,text\nAnn,{text}\n".encode(encoding)
    told = refusal(tmp_path, "a.csv", table)
    assert told.endswith(f"looks like {encoding} without a byte order mark: give --encoding {encoding}")
    assert said(tmp_path, "a.csv", table, encoding=encoding) == [("a", "Ann", text)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("asked", ["", "utf-16-le", "utf-8", "cp1252"])
def test_a_byte_order_mark_goes_before_what_is_asked(tmp_path: Path, encoding: str, asked: str) -> None:
    table = "speaker,text\nÉva,Hello\n".encode(encoding)
    turns, _ = read(tmp_path, "a.csv", table, ReadSettings(encoding=asked))
    assert turns[0].fields == {"speaker": "Éva", "text": "Hello"}


def test_encodings_that_are_wrong(tmp_path: Path) -> None:
    assert "no such encoding of text: latin-99" in refusal(
        tmp_path, "a.csv", "text\na\n", encoding="latin-99"
    )
    assert "no such encoding of text: base64" in refusal(tmp_path, "a.csv", "text\na\n", encoding="base64")
    assert "no such encoding of text: idna" in refusal(tmp_path, "a.csv", "text\na\n", encoding="idna")
    told = refusal(tmp_path, "a.csv", "text\na\n".encode("utf-16-be"), encoding="utf-16")
    assert "has no byte order mark; give --encoding utf-16-le or utf-16-be" in told
    assert "is not cp424 text; name its" in refusal(tmp_path, "a.csv", b"text\nr\n", encoding="cp424")
    told = refusal(tmp_path, "a.csv", "text\nschön\n", encoding="ascii")
    assert "a.csv:2: is not ascii text" in told
    assert "a.csv:1: is not utf-16-le text" in refusal(
        tmp_path, "a.csv", b"text\nab\n" + b"\xd8" * 3, encoding="utf-16-le"
    )


def zipped(name: str) -> bytes:
    import zipfile

    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, "x")
    return made.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (zipped("xl/workbook.xml"), "is no text but an Excel workbook (.xlsx); save it as CSV UTF-8"),
        (zipped("word/document.xml"), "is no text but a Word document (.docx); save it as text"),
        (zipped("content.xml"), "is no text but an OpenDocument file"),
        (zipped("chat.txt"), "is no text but a zip archive; unpack it"),
        (b"PK\x03\x04cut off", "is no text but a zip archive"),
        (b"%PDF-1.7\n", "is no text but a PDF; save it as text"),
        (b"\x1f\x8b\x08", "is no text but a gzip archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "is no text but an old Excel or Word file"),
        (b"PAR1\x15", "is no text but a Parquet file"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, says: str) -> None:
    for name in ("a.csv", "a.jsonl"):
        assert says in refusal(tmp_path, name, content)
        assert says in refusal(tmp_path, name, content, encoding="cp1252")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.xlsx", "save it as CSV UTF-8"), ("a.docx", "save it as text"), ("a.zip", "unpack it"),
        ("a.ass", "convert the subtitles to SRT"), ("a.html", "export the chat as JSON or text"),
        ("a.log", "name the form by --form (csv, tsv,"),
    ],
)  # fmt: skip
def test_suffixes_that_are_not_read(tmp_path: Path, name: str, says: str) -> None:
    told = refusal(tmp_path, name, "Ann: Hi\n")
    assert "of no known form; there are .csv," in told and says in told
