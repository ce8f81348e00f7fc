"""`selfemo analyse RUN --reader`: a tiny run, read by tiny kept encoders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.config.encoders import EncoderConfig
from selfemo.errors import ConfigError, EngineError, StoreError
from selfemo.evaluation import analysis, expression
from selfemo.evaluation.readers import GIVEN, REAL
from selfemo.evaluation.reading import read_analysis
from selfemo.method.types import LABEL_SETS, LabelSet
from selfemo.models.classifiers.reader import TurnReader
from selfemo.progress import Quiet, Stopped, StopRequest
from selfemo.reports.report import build
from selfemo.runs.store import STORE_FILE, Store
from tests.conftest import MELD, Built
from tests.support.encoders import build_encoder
from tests.support.runs import Watcher, evolve, settings

Kept = Callable[[Path, LabelSet, int], Path]


@pytest.fixture(scope="module")
def kept(built_once: Built) -> Kept:
    """Keeps an encoder with random heads, drawn by a seed."""
    encoder = built_once("encoder-bert", lambda f: build_encoder(f, "bert"))

    def keep(folder: Path, labels: LabelSet, seed: int) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        torch.manual_seed(seed)
        TurnReader.new(EncoderConfig(encoder=str(encoder), max_tokens=64, window=0), [labels], "cpu").save(
            folder
        )
        return folder

    return keep


@pytest.fixture(scope="module")
def writing(built_once: Built, tiny_model: Path, data: Path) -> Path:
    """A run up to its cold start, which learns to write whole completions."""
    config = settings(tiny_model, data, "flywheel.iterations=0", "model.threads=1")
    return built_once("writing", lambda home: evolve(home / "run", config).close()) / "run"


@pytest.fixture(autouse=True)
def few_replies_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model writes fewer than LEAST that parse."""
    monkeypatch.setattr(expression, "LEAST", 1)


@pytest.fixture
def run(writing: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(writing, tmp_path / "run"))


def refused(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is to be done here")


def file_of(run: Path) -> Any:
    return json.loads((run / "analysis.json").read_text())


def test_a_reader_judges_the_replies_that_are_there(
    run: Path, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = analysis.analyse(run, 0, Quiet())
    of_each = [name + end for name in alone["checkpoints"] for end in ("", GIVEN)]
    assert alone["readers"] == {} and list(alone["replies"]) == of_each
    for name, record in alone["checkpoints"].items():
        assert len(alone["replies"][name]) == record["parsed"] >= len(alone["replies"][name + GIVEN])
    monkeypatch.setattr(analysis, "open_sampler", refused)  # from here on nothing is sampled
    first, second = kept(tmp_path / "a", MELD, 1), kept(tmp_path / "b", MELD, 2)
    result = analysis.analyse(run, 0, Quiet(), reader=str(first))
    assert result == file_of(run) and result["checkpoints"] == alone["checkpoints"]
    reading = result["readers"][str(first)]
    assert list(reading["expression"]) == [*of_each, REAL]
    record = reading["expression"]["cold-start"]["jsonl"]
    assert record["replies"] == alone["checkpoints"]["cold-start"]["parsed"] > 0 and record["unread"] == 0
    # What was counted is what the encoder finds, of the reply alone.
    encoder = TurnReader.load(first, "cpu")
    prompts = {p.id: p for p in analysis.chosen_prompts(_config(run), 0)[0]}
    found = reading["found"]["cold-start"]
    for i, reply in alone["replies"]["cold-start"].items():
        turns = (replace(prompts[i].history[0], text=reply["reply"]),)
        (row,) = encoder.read_last([_talk(prompts[i], turns)])
        assert max(found[i], key=found[i].get) == MELD.labels[int(row.argmax())]
    declared = [
        max(r["self_emotion"], key=r["self_emotion"].get) for r in alone["replies"]["cold-start"].values()
    ]
    assert record["declared"]["share"]["joy"] == pytest.approx(declared.count("joy") / len(declared))
    # 3 held-out conversations of five turns by two speakers: 12 next turns.
    assert reading["expression"][REAL]["jsonl"]["replies"] == 12

    both = analysis.analyse(run, 0, Quiet(), reader=str(second))
    assert list(both["readers"]) == [str(first), str(second)]
    assert both["readers"][str(first)] == reading != both["readers"][str(second)]
    monkeypatch.setattr("selfemo.evaluation.reading.read_replies", refused)  # a reader reads nothing twice
    with Store(run / STORE_FILE) as store:
        store.set_clusters([("Plain.", 0, "plain", 0.0, 0.0), ("Else.", -1, "", 0.0, 0.0)])
    clustered = analysis.analyse(run, 0, Quiet(), reader=str(first))
    by = clustered["readers"][str(first)]["expression"]["cold-start"]["jsonl"]
    name = "plain"
    assert {c: v["n"] for c, v in by.pop("by_cluster").items()} == {name: record["replies"]}
    assert by | {"by_cluster": {}} == record
    monkeypatch.undo()

    again = kept(first, MELD, 3)
    other = analysis.analyse(run, 0, Quiet(), reader=str(again))["readers"][str(first)]
    assert other["weights"] != reading["weights"] and other["found"] != reading["found"]
    fewer = analysis.analyse(run, 4, Quiet(), reader=str(second))
    assert list(fewer["readers"]) == [str(second)], "other prompts are another analysis"


def _config(run: Path) -> Any:
    from selfemo.config import load

    return load([run / "config.toml"])


def _talk(prompt: Any, turns: Any) -> Any:
    from selfemo.method.types import Conversation

    return Conversation(prompt.id, prompt.dataset, "dev", turns, prompt.label_set)


def test_what_a_reader_found_is_printed_and_reported(run: Path, kept: Kept, tmp_path: Path) -> None:
    reader = kept(tmp_path / "reader", MELD, 1)
    done = CliRunner().invoke(app, ["analyse", str(run), "--prompts", "0", "--reader", str(reader)])
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "Is the declared emotion found in the reply? jsonl, read by" in said
    assert "0 is chance" in said and REAL in said and "by declared emotion: jsonl" in said
    build(run, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    section = page[page.index('<section id="expression"') :]
    section = section[: section.index("</section>")]
    assert "0 is chance" in section and REAL in section and section.count("<table") == 6
    result = file_of(run)
    last = list(result["checkpoints"])[-1]
    assert sum(r["reply"][:20] in section for r in result["replies"][last].values()) >= 1
    (run / "analysis.json").unlink()
    build(run, tmp_path / "r.html")
    assert f"selfemo analyse {run} --reader ENCODER" in (tmp_path / "r.html").read_text()


def test_what_cannot_judge_is_refused_before_anything_is_sampled(
    run: Path, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "open_sampler", refused)
    of_others = kept(tmp_path / "others", LABEL_SETS["emorynlp"], 1)
    with pytest.raises(
        EngineError, match=r"labels of meld, and it was trained on .*emorynlp; for both train one"
    ):
        analysis.analyse(run, 0, Quiet(), reader=str(of_others))
    for own in (str(run), f"{run}@cold-start", str(run / "checkpoints" / "cold-start")):
        with pytest.raises(ConfigError, match="it is of the run that it is to judge"):
            analysis.analyse(run, 0, Quiet(), reader=own)
    shutil.copytree(run / "checkpoints" / "cold-start", tmp_path / "copy")
    with pytest.raises(ConfigError, match="it has the weights of a checkpoint"):
        analysis.analyse(run, 0, Quiet(), reader=str(tmp_path / "copy"))
    with pytest.raises(ConfigError, match="began with"):
        analysis.analyse(run, 0, Quiet(), reader=_config(run).model.id)
    assert not (run / "analysis.json").exists()
    done = CliRunner().invoke(app, ["analyse", str(run), "--channel", "--reader", str(of_others)])
    assert isinstance(done.exception, ConfigError) and "--reader and --against are not for --channel" in str(
        done.exception
    )


def test_an_analysis_of_an_earlier_version_and_a_stopped_reading(
    run: Path, kept: Kept, tmp_path: Path
) -> None:
    reader = str(kept(tmp_path / "reader", MELD, 1))
    whole = analysis.analyse(run, 4, Quiet(), reader=reader)
    earlier = {k: v for k, v in whole.items() if k not in ("replies", "readers")}
    (run / "analysis.json").write_text(json.dumps(earlier))
    assert read_analysis(run) == earlier | {"replies": {}, "readers": {}}
    assert analysis.analyse(run, 4, Quiet())["checkpoints"] == whole["checkpoints"]

    stop = StopRequest()

    def ask(label: str, note: str) -> None:
        stop.asked = label == "read cold-start"

    with pytest.raises(Stopped):
        analysis.analyse(run, 4, Watcher(on_advance=ask), stop, reader=reader)
    assert list(file_of(run)["readers"][reader]["found"]) == ["start", f"start{GIVEN}"]
    assert analysis.analyse(run, 4, Quiet(), reader=reader) == whole, "its replies are written anew"


def test_two_runs_are_compared_by_one_reader(run: Path, kept: Kept, tmp_path: Path) -> None:
    reader, other = str(kept(tmp_path / "reader", MELD, 1)), Path(shutil.copytree(run, tmp_path / "other"))
    given = f"cold-start{GIVEN}"

    def compared() -> Any:
        result = analysis.analyse(run, 0, Quiet(), reader=reader, against=other)
        return result["readers"][reader]["blind"]

    with pytest.raises(StoreError, match=f"was not read by .*run `selfemo analyse {other} --reader"):
        compared()
    assert not (run / "analysis.json").exists(), "nothing was sampled"
    analysis.analyse(other, 0, Quiet(), reader=reader)
    (found,) = compared()
    # Both runs have the same weights, and write the same to the same S.
    assert found["early"] == f"{other}: {given}" and found["late"] == given
    (record,) = found["by_data"].values()
    assert record["ties"] == record["pairs"] > 0 and record["difference"] == [0, 0, 0]
    # Another run, in whose replies the reader finds no S.
    content = file_of(other)
    entry = content["readers"][reader]["found"][given]
    for i, reply in content["replies"][given].items():
        reply["reply"] = "Else."
        entry[i] = {e: 0.0 if e in reply["self_emotion"] else 1 / 6 for e in MELD.labels}
    (other / "analysis.json").write_text(json.dumps(content))
    (found,) = compared()
    (record,) = found["by_data"].values()
    assert record["late"] == record["pairs"] and record["difference"][0] > 0, "and it stands once"
    again = ["analyse", str(run), "--prompts", "0", "--reader", reader]
    done = CliRunner().invoke(app, [*again, "--against", str(other)])
    assert "Which reply shows the given S better? cold-start against" in " ".join(done.stdout.split())
    assert "Which reply shows" in CliRunner().invoke(app, again).stdout, "it stays"
    with pytest.raises(StoreError, match="its analysis is of other prompts"):
        analysis.analyse(run, 4, Quiet(), reader=reader, against=other)
    kept(Path(reader), MELD, 2)
    with pytest.raises(StoreError, match="had other weights then"):
        compared()
    done = CliRunner().invoke(app, ["analyse", str(run), "--against", str(other)])
    assert isinstance(done.exception, ConfigError) and "name it with --reader" in str(done.exception)
