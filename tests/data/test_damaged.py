"""Damaged data files: every one gives conversations, or a DataError that names file and line.

The files are small ones of each form, and the beginnings of the real ones where they are at hand.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from selfemo.data import base, load
from selfemo.errors import DataError
from tests.support.datasets import FIXTURES
from tests.support.files import EMORY_HEAD, ROOT, emory_json, iemocap, meld

MELD_ROWS = (
    '1,"Hi, there.",Ann,joy,positive,0,0,1,1',
    '2,"He said ""no""\nand left.",Bo,anger,negative,0,1,1,1',
    "3,Oh.,Ann,neutral,neutral,1,0,1,1",
)
EMORY_ROWS = (
    'Hey.,"[\'Ann\', ""Bo""]",Joyful,1,1,1,1,"00:00:01,000","00:00:02,000"',
    'No!,"[\'Bo\']",Mad,1,2,1,1,"00:00:01,000","00:00:02,000"',
)
LINES = (
    {"id": "a", "split": "train", "scene": "s", "personas": {"A": "calm"}, "turns": [
        {"speaker": "A", "text": "hi", "emotion": {"joy": 0.5, "fear": 2}},
        {"speaker": "B", "text": "no", "emotion": "anger"}]},
    {"id": 2, "labels": ["up", "down"], "turns": [{"speaker": "A", "text": "x", "emotion": "Up"}]},
)  # fmt: skip
ODD = (
    b"\x00", b"\xff", b"\x80", b'"', b"'", b",", b"\n", b"\r", b"\xef\xbb\xbf", b"[", b"]" * 40, b"{" * 3000,
    b"[" * 3000, b"9" * 5000, b"1e999", b"NaN", b"-1", b"null", b"\\ud800", b"\xe2\x80\xae", b"\xc2\x92",
    b"A" * 120_000, b"__import__('os')", b"../../x", b"\t", b"true", b'"id":"a",', b"\x1f\x8b", b" ",
)  # fmt: skip


def seeds(folder: Path) -> dict[str, tuple[str, list[Path]]]:
    """Adapter and files by the name of each form, written under `folder`."""
    meld_file = meld(folder, *MELD_ROWS)
    csv = folder / "emorynlp_train_final.csv"
    csv.write_text(EMORY_HEAD + "\n".join(EMORY_ROWS) + "\n")
    tree = folder / "emotion-detection-trn.json"
    tree.write_text(emory_json())
    lines = folder / "mine.jsonl"
    lines.write_text("".join(json.dumps(x) + "\n" for x in LINES))
    release = folder / "iemocap"
    release.mkdir()
    iemocap(release)
    parts = sorted(p for p in release.rglob("*.txt"))
    found = {
        "meld": (f"meld:{meld_file}", [meld_file]),
        "emorynlp-csv": (f"emorynlp:{csv}", [csv]),
        "emorynlp-json": (f"emorynlp:{tree}", [tree]),
        "jsonl": (f"jsonl:{lines}", [lines]),
        "iemocap": (f"iemocap:{release}", parts),
    }
    for name in ("dailydialog", "meisd", "cped", "emowoz", "table"):
        at = folder / name
        at.mkdir()
        path = FIXTURES[name](at)
        # What describes a table is configuration, whose mistakes are ConfigErrors.
        found[name] = (f"{name}:{path}", sorted(f for f in at.iterdir() if f.suffix != ".toml"))
    for name, real in (
        ("meld-real", ROOT / "meld" / "train_sent_emo.csv"),
        ("emorynlp-real", ROOT / "emorynlp" / "emorynlp_train_final.csv"),
    ):
        if real.exists():
            copy = folder / name / real.name
            copy.parent.mkdir()
            copy.write_bytes(b"".join(real.open("rb").readlines()[:25]))
            found[name] = (f"{name.split('-')[0]}:{copy}", [copy])
    return found


def damage(content: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        a = draw.randrange(len(content) + 1)
        b = min(len(content), a + draw.choice((1, 2, 8, 60)))
        match draw.randrange(6):
            case 0:
                content = content[:a] + draw.choice(ODD) + content[a:]
            case 1:
                content = content[:a] + content[b:]
            case 2:
                content = content[:b] + content[a:b] * draw.choice((1, 3)) + content[b:]
            case 3:
                content = content[:a] + draw.choice(ODD) + content[b:]
            case 4:
                content = content[:a]
            case _ if content:
                k = min(a, len(content) - 1)
                content = content[:k] + bytes([content[k] ^ (1 << draw.randrange(8))]) + content[k + 1 :]
            case _:
                pass
    return content


def check(spec: str, files: list[Path], lenient: bool) -> str:
    try:
        result = load(spec, lenient)
    except DataError as e:
        assert e.path is not None and str(e.path) in str(e)
        inside = any(Path(e.path) == f or Path(e.path) in f.parents for f in files)
        # A column that is not there is told of the description that names it.
        inside |= Path(e.path).suffix == ".toml" and any(str(f) in str(e) for f in files)
        assert inside, f"names {e.path}, which is none of {files}"
        assert e.line is None or 1 <= e.line <= 1 + max(
            f.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") for f in files
        )
        # A fault of the whole file has no line; one inside it has.
        return "whole" if e.line is None else "line"
    for c in result.conversations:
        json.dumps([c.id, [[t.speaker, t.text] for t in c.turns]], ensure_ascii=False).encode()
        assert c.turns and all(t.speaker and t.text for t in c.turns)
        for t in c.turns:
            if t.emotion is not None:
                assert abs(math.fsum(t.emotion.values()) - 1) < 1e-9
                assert set(t.emotion) <= set(c.label_set.labels)
    return "loaded"


FORMS = (
    "meld", "emorynlp-csv", "emorynlp-json", "jsonl", "iemocap", "dailydialog", "meisd", "cped", "emowoz",
    "table", "meld-real", "emorynlp-real",
)  # fmt: skip


def run(folder: Path, form: str, n: int, seed: int) -> dict[str, int]:
    """n damaged variants of a form's files, strict and lenient; what they came to."""
    found = seeds(folder)
    if form not in found:
        pytest.skip(f"{form} is not at hand: set SELFEMO_DATA to the folder that holds the data")
    spec, files = found[form]
    whole = {f: f.read_bytes() for f in files}
    assert check(spec, files, False) == "loaded"
    draw, tally = random.Random(seed), {"loaded": 0, "line": 0, "whole": 0}
    for k in range(n):
        file = draw.choice(files)
        bad = damage(whole[file], draw)
        file.write_bytes(bad)
        for lenient in (False, True):
            try:
                tally[check(spec, files, lenient)] += 1
            except BaseException:
                print(f"form {form}, seed {seed}, variant {k}, lenient {lenient}: {bad[:2000]!r}")
                raise
        file.write_bytes(whole[file])
    return tally


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_end_typed(tmp_path: Path, form: str) -> None:
    tally = run(tmp_path, form, 60, seed=0)
    assert tally["loaded"]
    assert tally["whole"] or form == "emowoz", "a break in its JSON has a line"
    assert tally["line"] or form == "emorynlp-json", "a break in its form has none"


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("form", FORMS)
def test_many_damaged_files_end_typed(tmp_path: Path, form: str) -> None:
    run(tmp_path, form, int(os.environ.get("SELFEMO_FUZZ", "200")), seed=1)


def test_memory_is_bounded_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("w") as f:
        for k in range(3000):
            turns = [{"speaker": "A", "text": "word " * 60, "emotion": "joy"}] * 3
            f.write(json.dumps({"id": k, "turns": turns}) + "\n")
    tracemalloc.start()
    load(f"jsonl:{path}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * path.stat().st_size


def test_what_is_no_text_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(DataError, match="is no regular file"):
            load(f"jsonl:{path}")
    with pytest.raises(DataError, match="is no regular file"):
        load(str(pipe))
    lines = tmp_path / "l.jsonl"
    lines.write_text(json.dumps(LINES[0]))
    monkeypatch.setattr(base, "MAX_FILE_BYTES", 10)
    with pytest.raises(DataError, match="is larger than"):
        load(str(lines))


def test_archives_are_refused_by_name(tmp_path: Path) -> None:
    inner = json.dumps(LINES[0])
    zipped, packed = tmp_path / "data.zip", tmp_path / "data.jsonl"
    with zipfile.ZipFile(zipped, "w") as z:
        z.writestr("../../escape.jsonl", inner)
    packed.write_bytes(gzip.compress(inner.encode()))
    for spec, kind in ((str(zipped), "zip"), (f"meld:{zipped}", "zip"), (str(packed), "gzip")):
        with pytest.raises(DataError, match=f"is a {kind} archive; unpack it"):
            load(spec)


def test_links_out_of_a_folder_are_refused_and_those_inside_are_not(tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret.jsonl", tmp_path / "data"
    secret.write_text(json.dumps(LINES[0]))
    folder.mkdir()
    for target in (secret, Path("../secret.jsonl")):
        (folder / "x.jsonl").symlink_to(target)
        with pytest.raises(DataError, match="leads out of its folder"):
            load(f"jsonl:{folder}")
        with pytest.raises(DataError, match="leads out of its folder"):
            load(str(folder))
        (folder / "x.jsonl").unlink()
    (folder / "real.txt").write_text(json.dumps(LINES[0]))
    (folder / "x.jsonl").symlink_to("real.txt")
    assert len(load(f"jsonl:{folder}").conversations) == 1
    release = tmp_path / "iemocap"
    release.mkdir()
    iemocap(release)
    evaluation = next(release.rglob("EmoEvaluation/*.txt"))
    shutil.move(evaluation, tmp_path / "labels.txt")
    evaluation.symlink_to(tmp_path / "labels.txt")
    with pytest.raises(DataError, match=r"EmoEvaluation.* leads out"):
        load(f"iemocap:{release}")


def test_names_in_the_data_are_no_paths(tmp_path: Path) -> None:
    """Ids and names such as ../../x are text: what is made of them stays in the store."""
    from selfemo.method.prompts import conversation_prompts
    from selfemo.method.types import Place
    from selfemo.runs.store import Store

    record = {**LINES[0], "id": "../../../etc/x", "labels": ["joy", "fear", "../anger"]}
    record["turns"] = [{"speaker": "/etc/passwd", "text": "hi", "emotion": "../anger"}]
    record.pop("personas")
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(record))
    (conversation,) = load(str(path)).conversations
    prompts = conversation_prompts(conversation)
    with Store(tmp_path / "out" / "s.sqlite") as store:
        with store.transaction():
            store.add_prompts(prompts, Place("s"))
        assert store.prompt("../../../etc/x/0") == prompts[0]
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


def test_a_scene_id_can_always_be_stored(tmp_path: Path) -> None:
    """Found by the fuzzing above: JSON can spell half of a surrogate pair."""
    path = tmp_path / "emotion-detection-trn.json"
    path.write_text(emory_json().replace("s01_e02_c03", "s01_\\ud800c03"))
    (conversation,) = load(str(path)).conversations
    assert conversation.id.encode() == b"emorynlp-train-s01_c03"
