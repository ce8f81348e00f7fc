"""`selfemo predict` on files: what it adds, and what a kill leaves."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.data.transcripts import ReadSettings
from selfemo.data.transcripts.source import Source
from selfemo.errors import ConfigError, DataError, StoreError
from selfemo.method.types import LABEL_SETS, LabelSet
from selfemo.progress import Lines, Quiet
from selfemo.serve.labelling import CHUNK, check_unmixed, label_file, model_identity
from selfemo.serve.selfemo import SelfEmo


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> SelfEmo:
    return SelfEmo(tiny_model, max_tokens=96, overrides=["prompt.max_tokens=300"])


def many(folder: Path, conversations: int = 90, turns: int = 5) -> Path:
    path = folder / "many.csv"
    with path.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["conversation", "speaker", "text", "Emotion", "note"])
        for c in range(conversations):
            for t in range(turns):
                writer.writerow([f"c{c}", "AB"[t % 2], f"Line {t} of {c}, it is.", "joy", f"n{c}.{t}"])
    return path


def test_csv_in_csv_out_keeps_columns_and_order(model: SelfEmo, tmp_path: Path) -> None:
    path = many(tmp_path, 30)
    done = label_file(Source(str(path)), tmp_path / "out.csv", model, Quiet())
    assert (done.turns, done.failed, done.resumed) == (150, 0, 0)
    rows = list(csv.DictReader((tmp_path / "out.csv").open(newline="")))
    given = list(csv.DictReader(path.open(newline="")))
    added = ["predicted_emotion", "confidence", "distribution", "failure"]
    assert list(rows[0]) == [*given[0], *added], "a gold emotion stays what it was"
    assert [{k: r[k] for k in given[0]} for r in rows] == given
    for row in rows:
        weights = json.loads(row["distribution"])
        assert set(weights) == set(LABEL_SETS["meld"]) and abs(sum(weights.values()) - 1) < 1e-4
        assert weights[row["predicted_emotion"]] == float(row["confidence"]) == max(weights.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["many.csv", "out.csv", "out.csv.about.json"]


def test_what_is_read_is_what_recognise_says(model: SelfEmo, tmp_path: Path) -> None:
    """Over chunk borders too: the first turns of a chunk are read with those of the chunk before."""
    path = tmp_path / "talk.txt"
    said = [("AB"[n % 2], f"Word {n} and no more.") for n in range(CHUNK + 6)]
    path.write_text("".join(f"{s}: {t}\n" for s, t in said))
    label_file(Source(str(path)), tmp_path / "out.jsonl", model, Quiet())
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [r["turn"] for r in rows] == list(range(CHUNK + 6))
    direct = model.recognise(said)
    for row, r in zip(rows, direct, strict=True):
        assert row["text"] == r.text
        assert row["confidence"] == pytest.approx(r.confidence, abs=2e-2)  # bf16, another packing


def test_each_conversation_over_its_own_labels(model: SelfEmo, tmp_path: Path) -> None:
    lines = [
        {"id": "a", "labels": ["calm", "upset"], "turns": [{"speaker": "Ann", "text": "Hi"}]},
        {"id": "b", "turns": [{"speaker": "Bo", "text": "Yo"}]},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    label_file(Source(str(path)), tmp_path / "out.jsonl", model, Quiet())
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [set(r["distribution"]) for r in rows] == [{"calm", "upset"}, set(LABEL_SETS["meld"])]
    own = LabelSet("own", ("tense", "at ease"))
    label_file(Source(str(path)), tmp_path / "own.jsonl", model, Quiet(), labels=own)
    rows = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert all(set(r["distribution"]) == set(own) for r in rows)


def command(model: Path, source: Path, out: Path) -> list[str]:
    return [
        sys.executable, "-m", "selfemo.cli", "predict", str(source), "--model", str(model), "--out",
        str(out), "--set", "prompt.max_tokens=300", "--set", "model.threads=1",
    ]  # fmt: skip


def wait_for_progress(process: subprocess.Popen, out: Path) -> int:
    progress = out.with_name(out.name + ".progress.json")
    for _ in range(6000):
        if progress.exists():
            return json.loads(progress.read_text())["turns"]
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("no progress")


@pytest.mark.extended
@pytest.mark.slow
def test_a_kill_loses_nothing_and_doubles_nothing(tiny_model: Path, tmp_path: Path) -> None:
    source, out, whole = many(tmp_path, 60), tmp_path / "out.csv", tmp_path / "whole.csv"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = CliRunner().invoke(app, command(tiny_model, source, whole)[3:])
    assert told.exit_code == 0, told.output

    process = subprocess.Popen(command(tiny_model, source, out), stderr=subprocess.PIPE, env=env)
    wait_for_progress(process, out)
    process.kill()
    process.communicate()
    assert not out.exists()
    done = json.loads((tmp_path / "out.csv.progress.json").read_text())["turns"]
    assert 0 < done < 300 and done % CHUNK == 0
    with (tmp_path / "out.csv.part").open("ab") as f:
        f.write(b"c0,A,half a li")  # what a kill in the middle of a write leaves

    process = subprocess.Popen(command(tiny_model, source, out), stderr=subprocess.PIPE, env=env)
    while json.loads((tmp_path / "out.csv.progress.json").read_text())["turns"] == done:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 130 and b"run the same command again" in said
    assert f"resuming after {done} finished turns".encode() in said

    again = subprocess.run(command(tiny_model, source, out), check=True, capture_output=True, env=env)
    assert b"300 turns" in again.stdout
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "many.csv", "out.csv", "out.csv.about.json", "whole.csv", "whole.csv.about.json",
    ]  # fmt: skip


def test_what_was_begun_with_something_else_is_not_gone_on_with(
    model: SelfEmo, tiny_model: Path, tmp_path: Path
) -> None:
    source, out = many(tmp_path, 4), tmp_path / "out.jsonl"
    what = {"model": model_identity(model.name), "selfemo": "0.0.0"}
    progress = {"turns": 0, "failed": 0, "bytes": 0, "what": what}
    (tmp_path / "out.jsonl.progress.json").write_text(json.dumps(progress))
    with pytest.raises(StoreError, match=r"was begun with selfemo 0\.0\.0; now 0\.1\.0"):
        label_file(Source(str(source)), out, model, Quiet())
    with pytest.raises(StoreError, match="was begun with selfemo"):
        check_unmixed(out, Source(str(source)), model.name, None)
    (tmp_path / "out.jsonl.progress.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        label_file(Source(str(source)), out, model, Quiet())


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_finished_file_is_never_replaced(
    name: str, model: SelfEmo, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = many(tmp_path, 4), tmp_path / name
    read = Source(str(source))
    first = label_file(Source(str(source)), out, model, Quiet())
    held = out.read_bytes()
    again = label_file(Source(str(source)), out, model, Lines("again"))
    assert (again.turns, again.failed, again.resumed) == (20, first.failed, 20)
    assert "is finished already" in capsys.readouterr().err

    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    with pytest.raises(StoreError) as refused:
        check_unmixed(out, read, str(other), None)
    assert str(refused.value).startswith(f"{out} was made by the model {tiny_model}, ")
    assert "not by other (" in str(refused.value) and "Give another --out" in str(refused.value)
    second = SelfEmo(other, max_tokens=96, overrides=["prompt.max_tokens=300"])
    with pytest.raises(StoreError, match="not by other"):
        label_file(Source(str(source)), out, second, Quiet())
    with pytest.raises(
        StoreError, match=r"was made with --labels of the file, else neutral, .*; now neutral, joyful, "
    ):
        label_file(Source(str(source)), out, model, Quiet(), labels=LABEL_SETS["emorynlp"])
    with pytest.raises(StoreError, match=r"with --labels of the file, .*; now neutral, .* to label anew"):
        check_unmixed(out, read, str(tiny_model), LABEL_SETS["emorynlp"])
    text = Source(str(source), ReadSettings(text="note"))
    with pytest.raises(StoreError, match=r"was made with --text-column not given; now note"):
        check_unmixed(out, text, str(tiny_model), None)
    assert out.read_bytes() == held

    out.write_bytes(held + b"\n")
    with pytest.raises(StoreError, match=f"was changed after {tiny_model} made it"):
        check_unmixed(out, read, str(tiny_model), None)
    (tmp_path / f"{name}.about.json").unlink()
    with pytest.raises(StoreError, match="says which model made it"):
        check_unmixed(out, read, str(tiny_model), None)
    assert out.read_bytes() == held + b"\n"


def test_bad_names_and_files_are_told_before_anything_is_labelled(model: SelfEmo, tmp_path: Path) -> None:
    source = Source(str(many(tmp_path, 2)))
    with pytest.raises(ConfigError, match=r"name it \.jsonl or \.csv"):
        label_file(source, tmp_path / "out.xlsx", model, Quiet())
    with pytest.raises(ConfigError, match="is the input"):
        label_file(source, tmp_path / "many.csv", model, Quiet())
    broken = tmp_path / "broken.txt"
    broken.write_text("Ann: hi\n" * 200 + "2022-12-31: hi\n")
    with pytest.raises(DataError, match=r"broken\.txt:201"):
        Source(str(broken))
    (tmp_path / "none.srt").write_text("")
    with pytest.raises(DataError, match="holds no turn"):
        Source(str(tmp_path / "none.srt"))


def test_a_data_set_by_its_name() -> None:
    source = Source("sample")
    first = next(source.turns())
    assert not source.is_file and source.count == 1441
    assert (first.speaker, first.labels, first.fields) == ("Keira", LABEL_SETS["meld"], {})


def test_rows_without_text_stay_and_are_not_asked_about(model: SelfEmo, tmp_path: Path) -> None:
    """A message that is an attachment alone keeps its row; the others are read without it."""
    path, plain = tmp_path / "chat.csv", tmp_path / "plain.csv"
    rows = ["a,Ann,Look at this.,1", "a,Bo,,2", "a,Ann,So what?,3", "b,Bo,,4", "b,Ann,No.,5"]
    path.write_text("\n".join(["thread,author,message,n", *rows]) + "\n")
    plain.write_text("\n".join(["thread,author,message,n", *(r for r in rows if ",," not in r)]) + "\n")
    source = Source(str(path))
    assert (source.count, source.silent) == (5, 2)
    done = label_file(source, tmp_path / "out.csv", model, Quiet())
    assert (done.turns, done.failed) == (5, 2)
    label_file(Source(str(plain)), tmp_path / "plain_out.csv", model, Quiet())
    found = list(csv.DictReader((tmp_path / "out.csv").open(newline="")))
    assert [r["n"] for r in found] == ["1", "2", "3", "4", "5"]
    assert [r["failure"] for r in found] == ["", "no_text", "", "no_text", ""]
    kept = [r for r in found if r["message"]]
    assert kept == list(csv.DictReader((tmp_path / "plain_out.csv").open(newline="")))


def test_what_a_file_has_beside_its_text_is_in_any_output(model: SelfEmo, tmp_path: Path) -> None:
    path = tmp_path / "chat.csv"
    path.write_text("Ticket,From,Body,turn,mood\n7,Ann,Hi.,first,joy\n7,Bo,Yo.,second,\n")
    label_file(Source(str(path)), tmp_path / "out.jsonl", model, Quiet())
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert list(first)[:6] == ["conversation", "turn", "speaker", "text", "input_turn", "mood"]
    assert (second["conversation"], second["turn"], second["input_turn"]) == ("7", 1, "second")

    lines = tmp_path / "talks.jsonl"
    talk = {"id": "a", "source": "crm", "turns": [{"speaker": "Ann", "text": "Hi", "emotion": "joy"}]}
    other = {"id": "b", "turns": [{"speaker": "Bo", "text": "Yo", "tags": ["x", 1]}]}
    lines.write_text(json.dumps(talk) + "\n" + json.dumps(other) + "\n")
    label_file(Source(str(lines)), tmp_path / "talks.csv", model, Quiet())
    one, two = csv.DictReader((tmp_path / "talks.csv").open(newline=""))
    assert (one["source"], one["emotion"], one["tags"]) == ("crm", "joy", "")
    assert (two["source"], two["emotion"], json.loads(two["tags"])) == ("", "", ["x", 1])
    assert one["predicted_emotion"] in LABEL_SETS["meld"]


def test_a_name_that_is_taken_twice_hides_no_column(model: SelfEmo, tmp_path: Path) -> None:
    again = tmp_path / "again.csv"
    again.write_text("speaker,text,emotion,Predicted_emotion\nAnn,Hi.,gold,earlier\n")
    label_file(Source(str(again)), tmp_path / "again_out.csv", model, Quiet())
    (row,) = csv.DictReader((tmp_path / "again_out.csv").open(newline=""))
    assert (row["emotion"], row["Predicted_emotion"]) == ("gold", "earlier")
    assert row["predicted_predicted_emotion"] in LABEL_SETS["meld"]

    notes = tmp_path / "notes.jsonl"
    notes.write_text('{"said": "Hi.", "text": "one", "input_text": "two", "speaker": "Ann"}\n')
    label_file(Source(str(notes), ReadSettings(text="said")), tmp_path / "notes_out.jsonl", model, Quiet())
    (line,) = map(json.loads, (tmp_path / "notes_out.jsonl").read_text().splitlines())
    assert (line["text"], line["input_input_text"], line["input_text"]) == ("Hi.", "one", "two")
