"""Tables by a description of their columns: Parquet as the Hub lays it out, JSONL, JSON and CSV."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.config.tables import load_table
from selfemo.data import detect, load
from selfemo.data.base import LoadReport, SourceFile
from selfemo.data.table_files import read_table, value_of
from selfemo.errors import ConfigError, DataError
from selfemo.method.types import LABEL_SETS, Utterance
from tests.conftest import dist

datasets = pytest.importorskip("datasets")
ROWS = (
    {"dlg": "k1", "n": 1, "who": "Mia", "said": "I lost it.", "mood": "upset"},
    {"dlg": "k1", "n": 0, "who": "Leo", "said": "Where is the map?", "mood": "calm"},
    {"dlg": "k2", "n": 0, "who": "Mia", "said": "Never mind.", "mood": ""},
)
SETTINGS = {
    "path": "talk.csv", "text": "said", "speaker": "who", "conversation": "dlg", "turn": "n",
    "emotion": "mood", "labels": ["calm", "upset"],
}  # fmt: skip


def describe(folder: Path, file: str = "chats.toml", **settings: object) -> Path:
    path = folder / file
    path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items() if v is not None))
    return path


def csv_file(path: Path, rows: tuple[dict[str, object], ...] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    return path


def hub_parquet(path: Path, **columns: list) -> Path:
    """Parquet with the notes of the Hub's library: `emotion` is a list of classes with names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    each = datasets.List if hasattr(datasets, "List") else datasets.Sequence
    features = {
        "dialog": each(datasets.Value("string")),
        "emotion": each(datasets.ClassLabel(names=["Calm", "Upset", "Glad"])),
    }
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(str(path))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_one_turn_a_row_in_each_kind_of_file(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"talk{suffix}"
    if suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, ROWS)))
    elif suffix == ".json":
        file.write_text(json.dumps(ROWS))
    elif suffix == ".parquet":
        pl.DataFrame(ROWS).write_parquet(file)
    else:
        csv_file(file)
    path = describe(tmp_path, **{**SETTINGS, "path": file.name})
    for spec in (f"table:{path}", str(path)):
        result = load(spec)
        first, second = result.conversations
        assert (first.id, first.dataset, first.split) == ("chats-k1", "chats", "test")
        assert first.label_set.labels == ("calm", "upset")
        assert first.turns == (
            Utterance("Leo", "Where is the map?", dist(calm=1)),
            Utterance("Mia", "I lost it.", dist(upset=1)),
        )
        assert second.turns == (Utterance("Mia", "Never mind."),)
        assert result.report.without_split == {"chats-k1", "chats-k2"}
        assert result.report.blemishes == {"utterances out of order": 1}


def test_a_folder_as_the_hub_lays_it_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    hub_parquet(data / "train-00000-of-00002.parquet", dialog=[["Hi. ", "No!"]], emotion=[[0, 1]])
    hub_parquet(data / "train-00001-of-00002.parquet", dialog=[["Oh?"]], emotion=[[2]])
    hub_parquet(data / "validation-00000-of-00001.parquet", dialog=[["Yes."]], emotion=[[-1]])
    (data / "more.jsonl").write_text("{}")
    (tmp_path / "README.md").write_text("A card.")
    path = describe(
        tmp_path,
        path=".",
        text="dialog",
        emotion="emotion",
        speakers=["Ann", "Ben"],
        none=["-1"],
        name="talks",
    )
    result = load(str(path))
    assert [(c.id, c.split, len(c.turns)) for c in result.conversations] == [
        ("talks-train-0", "train", 2), ("talks-train-1", "train", 1), ("talks-dev-0", "dev", 1),
    ]  # fmt: skip
    first, second, third = result.conversations
    assert first.turns == (Utterance("Ann", "Hi.", dist(calm=1)), Utterance("Ben", "No!", dist(upset=1)))
    assert second.turns[0].emotion == dist(glad=1), "the names are those that the file notes"
    assert third.turns[0].emotion is None
    assert [Path(s[0]).name for s in result.report.skipped] == ["more.jsonl"]
    only = describe(tmp_path, "some.toml", path=".", files="data/val*", text="dialog", speakers=["A"])
    assert [c.split for c in load(str(only)).conversations] == ["dev"]


def test_columns_inside_records_several_labels_and_a_split_column(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "Help!"}, {"role": "bot", "content": "How?"}],
         "felt": [["fear", "surprise"], []], "part": "validation"},
        {"messages": [{"role": "user", "content": "Thanks."}], "felt": [["joy"]], "part": "train"},
    ]  # fmt: skip
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = describe(
        tmp_path, path="chat.jsonl", text="messages.content", speaker="messages.role", emotion="felt",
        labels=list(LABEL_SETS["meld"]), split="part",
    )  # fmt: skip
    first, second = load(str(path)).conversations
    assert (first.split, second.split, first.label_set) == ("dev", "train", LABEL_SETS["meld"])
    assert first.turns == (
        Utterance("user", "Help!", dist(fear=0.5, surprise=0.5)), Utterance("bot", "How?"),
    )  # fmt: skip
    assert value_of({"a.b": 1, "a": {"b": 2}}, "a.b") == 1


def test_all_columns_that_are_not_there_are_told_at_once(tmp_path: Path) -> None:
    csv_file(tmp_path / "talk.csv")
    path = describe(tmp_path, **{**SETTINGS, "text": "sayd", "speaker": "by", "emotion": "mod"})
    with pytest.raises(DataError) as e:
        load(str(path))
    for part in (
        "text = 'sayd' (did you mean 'said'?)",
        "speaker = 'by'",
        "emotion = 'mod' (did you mean 'mood'?)",
        "its columns are dlg, n, who, said, mood",
    ):
        assert part in str(e.value)
    assert str(e.value).startswith(f"{path}: ")


def test_all_mistakes_of_a_description_are_told_at_once(tmp_path: Path) -> None:
    path = describe(tmp_path, text=3, speker="who", labels="joy")
    with pytest.raises(ConfigError) as e:
        load_table(path)
    told = str(e.value).splitlines()
    assert len(told) == 3 and all(line.startswith(f"{path}: ") for line in told)
    assert "speker: unknown key; did you mean speaker?" in str(e.value)
    path = describe(
        tmp_path, text="said", revision="main", turn="n", labels=["a", "A"], none=["x"], files="../*.csv"
    )
    with pytest.raises(ConfigError) as e:
        load_table(path)
    for part in (
        "either path or hub",
        "either speaker",
        "revision is of hub",
        "files is a pattern inside",
        "turn orders the rows",
        "labels and none are of the emotion column",
        "two or more, each once",
    ):
        assert part in str(e.value)


@pytest.mark.parametrize("pattern", [".", "**.csv", "part**/*.csv", "/data/*.csv", "a/../../b.csv"])
def test_a_pattern_that_no_folder_can_be_searched_by_is_told(tmp_path: Path, pattern: str) -> None:
    path = describe(tmp_path, path="data", text="said", speaker="who", files=pattern)
    with pytest.raises(ConfigError, match="files is a pattern inside the folder"):
        load_table(path)
    path = describe(tmp_path, path="x", text="t", speakers=["A"], emotion="e", labels=["calm", " "])
    with pytest.raises(ConfigError, match="labels must be two or more, each once and none empty"):
        load_table(path)
    path.write_text("text = ")
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        load_table(path)


def test_labels_that_are_not_named_are_listed(tmp_path: Path) -> None:
    csv_file(tmp_path / "talk.csv")
    path = describe(tmp_path, **{**SETTINGS, "labels": None})
    with pytest.raises(DataError, match=re.escape("""write them as labels = [...]""")) as e:
        load(str(path))
    assert '"upset", "calm"' in str(e.value)


@pytest.mark.parametrize(
    ("change", "settings", "line", "says"),
    [
        ({"mood": "glee"}, {}, 4, "unknown label 'glee'; valid are calm, upset"),
        ({"mood": "2"}, {}, 4, "unknown label '2'"),
        ({"n": "x"}, {}, 4, "turn 'x' is no whole number"),
        ({"said": " "}, {}, 4, "the utterance or its speaker is empty"),
        ({"dlg": ""}, {}, 4, "names no conversation"),
        ({"n": "sometime"}, {"turn": None, "split": "n"}, 2, "split '1' is none of train, dev"),
        (
            {},
            {"conversation": None, "turn": None},
            2,
            "'said' holds one turn: name its conversation's column",
        ),
    ],
)
def test_broken_rows(
    tmp_path: Path, change: dict[str, str], settings: dict[str, object], line: int, says: str
) -> None:
    rows = tuple({k: str(v) for k, v in r.items()} for r in ROWS)
    file = csv_file(tmp_path / "talk.csv", (*rows[:2], {**rows[2], **change}))
    path = describe(tmp_path, **{**SETTINGS, **settings})
    with pytest.raises(DataError, match=re.escape(says)) as e:
        load(str(path))
    assert (e.value.path, e.value.line) == (file, line)
    if line == 4:
        lenient = load(str(path), lenient=True)
        assert [s[1] for s in lenient.report.skipped] == [4] and len(lenient.conversations) == 1


def test_speakers_take_turns_by_number(tmp_path: Path) -> None:
    rows = [{"dlg": "a", "n": n, "said": text} for n, text in ((3, "Two."), (2, "One."), (5, "Four."))]
    csv_file(tmp_path / "talk.csv", tuple(rows))
    settings = {**SETTINGS, "speaker": None, "speakers": ["Ann", "Ben"], "emotion": None, "labels": None}
    (c,) = load(str(describe(tmp_path, **settings))).conversations
    assert [(t.speaker, t.text) for t in c.turns] == [("Ann", "One."), ("Ben", "Two."), ("Ben", "Four.")]
    csv_file(tmp_path / "talk.csv", tuple({**r, "said": "" if r["n"] == 2 else r["said"]} for r in rows))
    by_row = describe(tmp_path, **{**settings, "turn": None})
    (c,) = load(str(by_row), lenient=True).conversations
    assert [t.speaker for t in c.turns] == ["Ann", "Ann"], "the row that is left out had its turn"


def test_lists_of_other_lengths(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"t": ["x", "y"], "w": ["A"], "e": 0}\n{"t": [], "w": []}\n{"t": ["x"], "w": ["A"], "e": [0]}\n'
    )
    path = describe(tmp_path, path="a.jsonl", text="t", speaker="w", emotion="e", labels=["calm", "upset"])
    skipped = [(s[1], s[2]) for s in load(str(path), lenient=True).report.skipped]
    assert skipped == [(1, "text has 2 turns, and speaker 1 values"), (2, "the conversation is empty")]
    whole = describe(tmp_path, path="a.jsonl", text="t", speaker="w", conversation="e")
    with pytest.raises(DataError, match=r"a\.jsonl:1: 't' holds a list, a whole conversation"):
        load(str(whole))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.parquet", b"PAR1 nothing", "cannot be read as Parquet"),
        ("a.jsonl", b"{]\n", "a.jsonl:1: broken JSON"),
        ("a.jsonl", b"[1]\n", "a line must be one JSON object"),
        ("a.json", b'{"a": 1}', "must be a JSON list of objects"),
        ("a.json", b"[1]", "a.json:1: a row must be a JSON object"),
        ("a.json", b"[", "broken JSON"),
        ("a.json", b'[{"t": "x", "t": "y"}]', "broken JSON: key 't' occurs twice"),
        ("a.jsonl", b'{"t": "x", "t": "y"}', "a.jsonl:1: broken JSON: key 't' occurs twice"),
        ("a.json", b"[" * 100_000, "nested too deep"),
        ("a.json", b'[{"t": ' + b"9" * 5000 + b"}]", "broken JSON"),
        ("a.csv", b"t,w\nx\n", "a.csv:2: has too few fields (1 for 2 columns)"),
        ("a.csv", b"", "is empty"),
        ("a.xlsx", b"x", "is of no known kind of table"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    path = describe(tmp_path, path=name, text="t", speaker="w", conversation="c")
    with pytest.raises(DataError) as e:
        load(str(path))
    assert says in str(e.value)


def test_places_that_hold_nothing(tmp_path: Path) -> None:
    path = describe(tmp_path, path="none", text="t", speakers=["A"])
    with pytest.raises(DataError, match="no such file or folder"):
        load(str(path))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no file of Parquet, JSONL, JSON or CSV"):
        load(str(path))
    taken = describe(tmp_path, "meld.toml", path="none", text="t", speakers=["A"])
    with pytest.raises(ConfigError, match="'meld' is another data set's"):
        load(str(taken))
    outside = tmp_path / "outside.jsonl"
    outside.write_text('{"t": ["x"]}')
    (tmp_path / "none" / "link.jsonl").symlink_to(outside)
    with pytest.raises(DataError, match="leads out of its folder"):
        load(str(path))


def test_the_hub_that_cannot_be_reached_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client's own switch for work without a network: it answers from its cache, which is empty here.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = describe(tmp_path, hub="nobody/nothing-there", text="t", speakers=["A"])
    with pytest.raises(
        DataError, match=r"hub = 'nobody/nothing-there' cannot be had: .*name their folder as path"
    ):
        load(str(path))


def test_a_described_table_is_evaluated(tmp_path: Path) -> None:
    csv_file(tmp_path / "talk.csv")
    path = describe(tmp_path, **SETTINGS)
    assert detect(path)[0].name == "table"
    told = CliRunner().invoke(app, ["data", "check", str(path)])
    assert told.exit_code == 0, told.output
    assert "data set: chats (labels: calm, upset)\nno split: 2 conversations, 3 utterances" in told.output
    answers = tmp_path / "answers.jsonl"
    answers.write_text('"E: upset\\nS: calm\\nR: Well."\n' * 2)
    out = tmp_path / "scores"
    command = ["evaluate", f"scripted:{answers}", "--data", f"table:{path}", "--out", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads((out / "scores.json").read_text())["scores"]["chats"]["accuracy"][0] == 0.5


def test_class_names_that_are_no_label_set(tmp_path: Path) -> None:
    features = datasets.Features(
        {"t": datasets.Value("string"), "e": datasets.ClassLabel(names=["Joy", "joy"])}
    )
    data = datasets.Dataset.from_dict({"t": ["Hm."], "e": [0]}, features=features)
    data.to_parquet(str(tmp_path / "test.parquet"))
    path = describe(tmp_path, path="test.parquet", text="t", emotion="e", speakers=["A"], conversation="t")
    with pytest.raises(
        DataError, match=r"names its classes Joy, joy, which are no labels.*labels = \[\.\.\.\]"
    ):
        load(str(path))


def test_numbers_of_classes_inside_records(tmp_path: Path) -> None:
    each = datasets.List if hasattr(datasets, "List") else (lambda f: [f])
    features = datasets.Features(
        {
            "log": each(
                {"text": datasets.Value("string"), "emotion": datasets.ClassLabel(names=["calm", "upset"])}
            )
        }
    )
    log = [[{"text": "Hm.", "emotion": 0}, {"text": "Ha!", "emotion": 1}]]
    datasets.Dataset.from_dict({"log": log}, features=features).to_parquet(str(tmp_path / "test.parquet"))
    table = read_table(SourceFile(LoadReport("x"), tmp_path / "test.parquet"))
    assert table.class_names == {"log.emotion": ("calm", "upset")}
    path = describe(
        tmp_path, path="test.parquet", text="log.text", emotion="log.emotion", speakers=["A", "B"]
    )
    (c,) = load(str(path)).conversations
    assert c.split == "test" and [t.emotion for t in c.turns] == [dist(calm=1), dist(upset=1)]
