"""Table 1: published figures as in the paper, formats that parse back, folders that hold no scores."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.errors import ConfigError, StoreError
from selfemo.evaluation.rendering import cell, narrow, render, rounded
from selfemo.reports.tables import PAPER_SETS, cross, measured, published, table1

cells = st.text(st.characters(blacklist_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=0, max_size=12)
grids = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=6)
)


def test_published_averages_follow_from_their_rows() -> None:
    """The paper's own arithmetic catches a figure that was copied wrongly."""
    rows = published()["table1"]
    assert len(rows) == 22
    checked = 0
    for row in rows:
        for m in ("accuracy", "weighted_f1"):
            parts = [row.get(d, {}).get(m) for d in PAPER_SETS]
            mean = row.get("avg", {}).get(m)
            if mean is not None:
                assert sum(parts) / 3 == pytest.approx(mean, abs=0.011), row
                checked += 1
    assert checked == 8 * 2 + 3
    for row in published()["table2"]:
        a = row["accuracy"]
        assert sum(a[d] for d in PAPER_SETS) / 3 == pytest.approx(a["avg"], abs=0.011), row
    ours = [r for r in rows if r["method"] == "SELF-EMO"]
    assert ours[0]["avg"]["accuracy"] == published()["table2"][0]["accuracy"]["avg"] == 59.29


def test_each_published_row_says_what_it_saw_and_from_where() -> None:
    allowed = {
        "modalities": {"T", "T+A", "T+A+V", "unknown"},
        "context": {"past", "both", "unknown"},
        "selection": {"dev", "test", "unknown"},
    }
    rows = published()["table1"]
    for row in rows:
        saw = row["saw"]
        assert saw.keys() - {"note"} == {*allowed, "source"} and saw["source"], row
        assert all(saw[k] in values for k, values in allowed.items()), row
    header, cells = table1([])
    column = [r[header.index("Saw")] for r in cells]
    assert column[0] == "T, both, test" and column[3] == "T, both, dev" and column[5] == "T, past, dev"
    retrained = [c for c in column if c.endswith("; retrained by the paper")]
    assert retrained == ["T, unknown, unknown; retrained by the paper"] * 2, "BiosERC and PRC-Emo, unified"


@pytest.mark.parametrize(
    ("more", "split", "saw"),
    [
        ({}, "test", "T, past, -"),
        ({"baseline": "encoder", "sees_later": False}, "test", "T, past, dev"),
        ({"baseline": "encoder", "sees_later": True}, "dev, claim half", "T, both, dev"),
        ({"baseline": "encoder", "sees_later": False}, "dev", "T, past, train"),
        ({"baseline": "majority", "sees_later": False, "reads": False}, "test", "-"),
    ],
)
def test_a_measured_row_says_what_it_saw(tmp_path: Path, more: dict, split: str, saw: str) -> None:
    path = folder(
        tmp_path / "a", "mine", {"meld": {**scores(0.6, 0.5), "gold_share": {"joy": 0.5}}}, split=split
    )
    file = path / "scores.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    header, rows = table1([path])
    mine, majority = (dict(zip(header, r, strict=True)) for r in rows[-2:])
    assert (mine["Saw"], majority["Saw"]) == (saw, "-")
    assert measured(path).saw == saw


def test_baselines_trained_alike_are_one_row(tmp_path: Path) -> None:
    """One of each data set is the row of a recipe; one of all data sets, or of a part of the data, is not."""

    def trained(name: str, on: list[str], conversations: int = 0) -> Path:
        of = {d: {**scores(0.6, 0.5), "gold_share": {"joy": 0.5}} for d in on}
        path = folder(tmp_path / name, "TF-IDF", of, on)
        file = path / "scores.json"
        more = {"baseline": "tfidf", "sees_later": False, "train_conversations": conversations}
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
        return path

    meld, emory, part = trained("a", ["meld"]), trained("b", ["emorynlp"]), trained("c", ["emorynlp"], 5)
    rows = [r for r in table1([meld, emory, trained("d", ["meld", "emorynlp"]), part])[1] if r[1] == "TF-IDF"]
    assert [r[0] for r in rows] == [
        "measured, dataset-specific", "measured, unified",
        "measured, dataset-specific, 5 training conversations a data set",
    ]  # fmt: skip
    assert [r[-2] for r in rows] == ["20", "20", "10"]


@settings(max_examples=60, deadline=None)
@given(grids)
def test_csv_round_trip(grid) -> None:
    text = render(grid[0], grid[1:], "csv")
    assert list(csv.reader(io.StringIO(text))) == grid


@settings(max_examples=60, deadline=None)
@given(grids)
def test_latex_is_balanced_and_has_one_cell_less_than_separators(grid) -> None:
    lines = render(grid[0], grid[1:], "latex").splitlines()
    assert lines[0] == r"\begin{tabular}{" + "l" * len(grid[0]) + "}"
    assert lines[-1] == r"\end{tabular}" and lines.count(r"\hline") == 3
    body = [line for line in lines[1:-1] if line != r"\hline"]
    assert len(body) == len(grid)
    for line in body:
        assert line.endswith(r" \\")
        assert not line.startswith(("[", "*"))
        bare = line[:-3].removeprefix("{}").replace(r"\textbackslash{}", "").replace(r"\textasciitilde{}", "")
        bare = re.sub(r"\\[&%$#_{}]", "", bare.replace(r"\textasciicircum{}", ""))
        assert bare.count("&") == len(grid[0]) - 1
        assert not re.search(r"[\\%$#_{}~^]", bare), "every special character is escaped"


def scores(accuracy: float, f1: float, n: int = 10) -> dict:
    return {"accuracy": [accuracy, 0.1, 0.9], "weighted_f1": [f1, 0.1, 0.9],
            "parse_rate": [0.5, 0.4, 0.6], "utterances": n}  # fmt: skip


def folder(path: Path, name: str, by_set: dict, trained_on=(), split: str = "test") -> Path:
    path.mkdir(parents=True)
    content = {"model": name, "split": split, "trained_on": list(trained_on), "scores": by_set}
    (path / "scores.json").write_text(json.dumps(content))
    return path


def test_measured_rows_stand_beside_published_ones_and_are_marked(tmp_path: Path) -> None:
    whole = folder(tmp_path / "a", "mine", {
        "iemocap": scores(0.5, 0.4), "meld": scores(0.6, 0.5), "emorynlp": scores(0.4, 0.3),
        "all": scores(0.99, 0.99, 30),
    })  # fmt: skip
    part = folder(tmp_path / "b", "part", {"meld": scores(0.6, 0.5), "sample": scores(0.2, 0.1, 30)},
                  split="dev")  # fmt: skip
    header, rows = table1([whole, part])
    assert all(len(r) == len(header) for r in rows) and len(rows) == 24
    at = {name: i for i, name in enumerate(header)}
    first, second = rows[-2:]
    assert first[at["AVG Acc."]] == "50.00" and first[at["AVG W-F1"]] == "40.00"
    assert first[at["Source"]] == "measured on test" and first[at["n"]] == "30"
    assert second[at["AVG Acc."]] == "-", "no average of another kind than the paper's"
    assert second[at["sample Acc."]] == "20.00" and second[at["Source"]] == "measured on dev"
    assert {r[at["Source"]] for r in rows[:-2]} == {"published"}
    wide, more = table1([whole], intervals="columns")
    assert more[-1][wide.index("MELD Acc. low")] == "10.00"
    assert all(len(r) == len(wide) for r in more)


def test_cross_matrix(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", "m1", {"meld": scores(0.6, 0.5)}, ["meld"])
    b = folder(tmp_path / "b", "m2", {"meld": scores(0.3, 0.2), "sample": scores(0.4, 0.1)},
               ["emorynlp", "meld"], "dev")  # fmt: skip
    header, rows = cross([b, a])
    assert header == ["Trained on", "Model", "on MELD", "on sample"]
    assert rows == [
        ["EmoryNLP + MELD", "m2", "30.00 / 20.00 (dev)", "40.00 / 10.00 (dev)"],
        ["MELD", "m1", "60.00 / 50.00", "-"],
    ]


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no scores"):
        measured(tmp_path)
    (tmp_path / "scores.json").write_text('{"model": "x"}')
    with pytest.raises(StoreError, match=r"scores\.json: not what `selfemo evaluate --out` writes"):
        measured(tmp_path)
    with pytest.raises(ConfigError, match="valid are text, markdown, latex, csv"):
        render(["a"], [], "pdf")


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "csv"])
def test_the_command_writes_each_format(tmp_path: Path, form: str) -> None:
    out = tmp_path / "deep" / "table"
    done = CliRunner().invoke(app, ["table1", "--format", form, "--out", str(out)])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert "71.92" in text and "published" in text
    told = CliRunner().invoke(app, ["table1", "--format", form, "--out", str(tmp_path / "too"), "--json"])
    assert json.loads(told.stdout)["rows"] and (tmp_path / "too").read_text() == text
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert rows[-1]["MELD Acc."] == "71.92" and rows[-1]["Method"] == "SELF-EMO"


words = st.text("abc é", min_size=1, max_size=30).filter(str.strip)
tables = st.integers(1, 12).flatmap(
    lambda n: st.lists(st.lists(words, min_size=n, max_size=n), min_size=1, max_size=6)
)


@settings(max_examples=80, deadline=None)
@given(tables)
def test_a_narrow_table_has_80_columns_at_most_and_every_cell(grid) -> None:
    text = narrow(grid[0], grid[1:])
    assert all(len(line) <= 80 for line in text.splitlines())
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert all(len(b) == len(grid) + 1 for b in blocks)
    for k, row in enumerate(grid):
        found = "  ".join(block[0 if k == 0 else k + 1] for block in blocks)
        assert all(c.strip() in found for c in row)


def test_a_table_with_a_long_path_stays_in_one_piece() -> None:
    path = "/data/" + "x" * 70
    assert narrow(["file", "turns", "more"], [[path, "3", "y"]]).splitlines()[2] == f"{path}  3      y"


def test_a_number_is_shown_as_json_files_hold_it() -> None:
    """1.42350001 rounds to 1.424, and the 1.4235 of its file, a little less as a float, to 1.423."""
    assert f"{1.42350001:.3f}" == "1.424" and rounded(1.42350001) == 1.4235
    assert cell(1.42350001) == cell(1.4235) == "1.423"
    assert cell([1.42350001, 0, 2.5]) == "1.423 [0.000, 2.500]" and cell([None] * 3) == cell(None) == "-"


def measured_folders(tmp_path: Path) -> list[Path]:
    """One model on MELD and on EmoryNLP in a folder each, another model, and the first on dev."""
    constants = {"meld": {"label": "neutral", "source": "training split", "majority": {
        "accuracy": [0.48, 0.4, 0.5], "weighted_f1": [0.31, 0.3, 0.4]}}}  # fmt: skip
    made = [
        folder(tmp_path / "a", "mine", {"meld": scores(0.6, 0.5)}, ["meld"]),
        folder(tmp_path / "b", "mine", {"emorynlp": scores(0.4, 0.3, 30), "all": scores(0.9, 0.9)}),
        folder(tmp_path / "c", "other", {"emorynlp": scores(0.1, 0.1)}),
        folder(tmp_path / "d", "mine", {"iemocap": scores(0.2, 0.2)}, split="dev"),
        folder(tmp_path / "e", "mine", {"meld": scores(0.7, 0.7)}),
    ]
    known = json.loads((made[0] / "scores.json").read_text())
    (made[0] / "scores.json").write_text(json.dumps(known | {"constants": constants}))
    return made


def test_folders_of_one_model_are_one_row(tmp_path: Path) -> None:
    header, rows = table1(measured_folders(tmp_path))
    at = {name: i for i, name in enumerate(header)}
    ours = [[r[at[c]] for c in ("Setting", "Method", "MELD Acc.", "EmoryNLP Acc.", "IEMOCAP Acc.", "n")]
            for r in rows if r[-1] != "published"]  # fmt: skip
    assert ours == [
        ["measured", "mine", "60.00", "40.00", "-", "40"],
        ["measured", "majority label", "48.00", "-", "-", "40"],
        ["measured", "other", "-", "10.00", "-", "10"],
        ["measured, dev", "mine", "-", "-", "20.00", "10"],
        ["measured", "mine", "70.00", "-", "-", "10"],  # MELD once more: a row of its own
    ]


def test_other_weights_of_one_name_stay_apart(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", "mine", {"meld": scores(0.6, 0.5)})
    b = folder(tmp_path / "b", "mine", {"emorynlp": scores(0.4, 0.3)})
    content = json.loads((b / "scores.json").read_text()) | {"evaluated_model": "mine (0123)"}
    (b / "scores.json").write_text(json.dumps(content))
    assert len([r for r in table1([a, b])[1] if r[-1] != "published"]) == 2


def test_the_majority_of_an_older_folder_is_that_of_its_held_out_labels(tmp_path: Path) -> None:
    """A share of .5: F1 of that label is 2 * .5 / 1.5 = 2/3, half of which is the weighted one."""
    old = folder(tmp_path / "a", "mine", {"meld": {**scores(0.6, 0.5), "gold_share": {"joy": 0.5, "a": 0.3}}})
    header, rows = table1([old])
    last = dict(zip(header, rows[-1], strict=True))
    assert (last["Method"], last["MELD Acc."], last["MELD W-F1"]) == ("majority label", "50.00", "33.33")
    assert last["Source"] == "labels of the held-out data, on test"


def test_latex_has_the_intervals(tmp_path: Path) -> None:
    folders = measured_folders(tmp_path)
    done = CliRunner().invoke(app, ["table1", *map(str, folders), "--format", "latex"])
    assert done.exit_code == 0, done.output
    (mine,) = (line for line in done.output.splitlines() if "60.00" in line and "mine" in line)
    assert "& 60.00 [10.00, 90.00] & 50.00 [10.00, 90.00] & 40.00 [10.00, 90.00] &" in mine
