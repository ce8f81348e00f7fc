"""What commands print: words for people, or one JSON object; no bars and logs of libraries, no Python."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from selfemo.cli import app
from selfemo.config import load
from selfemo.evaluation.jobs import _once
from selfemo.runs.dialogues import NO_DIALOGUE
from selfemo.runs.inputs import load_conversations
from tests.conftest import toy_conversations, write_jsonl
from tests.support.runs import SETTINGS

FOREIGN = re.compile(
    r"Loading weights|Writing model shards|it/s\]|s/it\]|Warning:|WARNING|Traceback|"
    r"\{'|\{\"|\['|<\w+\.\w+: |\bNone\b|Path\(|Counter\("
)
"""Bars and logs of libraries; dicts, lists, enums and types of Python."""

SMALL = [
    *SETTINGS.split(),
    "sft.epochs=2",
    "grpo.prompts_per_step=3",
    "flywheel.prompts=6",
    "selfplay.max_turns=2",
]
Run = Callable[..., Result]


@pytest.fixture
def run(tiny_model: Path, data: Path, tmp_path: Path) -> Run:
    """Runs a command, {model} and so on replaced, with small settings where it takes some."""
    (tmp_path / "talk.txt").write_text("Ann: Did you hear that?\nBo: Only the cat.\n")
    places = {"model": tiny_model, "data": data, "here": tmp_path}

    def invoke(command: str, *more: str) -> Result:
        sets = [w for s in (*SMALL, f"model.id={tiny_model}") for w in ("--set", s)]
        words = [w.format(**places) for w in command.split()]
        done = CliRunner().invoke(app, [*words, *(sets if words[0] in TAKE_SETTINGS else []), *more])
        assert done.exit_code == 0, done.output
        return done

    return invoke


TAKE_SETTINGS = {"predict", "evaluate", "selfplay", "sft", "train", "evolve"}
COMMANDS = {
    "predict": "predict {here}/talk.txt --model {model} --out {here}/out.jsonl",
    "evaluate": "evaluate {model} --data {data} --split test",
    "selfplay": "selfplay {model} --data {data} --prompts 2 --out {here}/played --set data.eval_split=test",
    "sft": 'sft --out {here}/cold --set data.sources=["{data}"]',
    "train": 'train {model} --out {here}/rl --set data.sources=["{data}"]',
}
KEYS = {
    "predict": {"out", "turns", "failed", "resumed"},
    "evaluate": {"scores", "model", "split"},
    "selfplay": {"out", "counts", "dialogues"},
    "sft": {"out", "samples", "steps"},
    "train": {"out", "checkpoint"},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_words_and_no_python(name: str, run: Run) -> None:
    done = run(COMMANDS[name])
    assert not (found := FOREIGN.search(done.stdout + done.stderr)), f"{found}: {done.output}"
    assert done.stdout.strip() and "loading the weights of" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_one_json_object_and_nothing_beside_it(name: str, run: Run) -> None:
    done = run(COMMANDS[name], "--json")
    assert set(json.loads(done.stdout)) >= KEYS[name]
    assert not FOREIGN.search(done.stderr), done.stderr
    if name == "train":
        assert (Path(json.loads(done.stdout)["checkpoint"]) / "config.json").exists()


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("report {run} --out {here}/r.html", {"files"}),
        ("analyse {run} --prompts 4", {"checkpoints"}),
        ("store export {run} --out {here}/shards", {"out", "files", "rollouts"}),
        ("table1 {run}", {"header", "rows"}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_of_a_run(command: str, keys: set[str], short: Path, tmp_path: Path) -> None:
    words = [w.format(run=short, here=tmp_path) for w in command.split()]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)) >= keys
    assert not FOREIGN.search(done.stderr), done.stderr


@pytest.mark.parametrize("there", [True, False])
def test_a_report_of_a_data_set_that_no_prompt_is_of(short: Path, tmp_path: Path, there: bool) -> None:
    """One that is held out alone has predictions only: its labels come from the data, or it is left out."""
    run = tmp_path / "run"
    shutil.copytree(short, run)
    first = "(SELECT min(conversation) FROM predictions)"
    lost = f"UPDATE predictions SET dataset = 'lost' WHERE conversation = {first}"
    with closing(sqlite3.connect(run / "store.sqlite")) as db, db:
        db.execute("UPDATE prompts SET dataset = 'other'" if there else lost)
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "r.html").read_text()
    assert "always answering" in page and f"{15 if there else 10} held-out turns" in page


def test_a_source_that_is_not_scored_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('"E: joy\\nS: joy\\nR: Well."\n' * 40)
    turn = '{"speaker": "Ann", "text": "Hm.", "emotion": "joy"}'
    (tmp_path / "dev.jsonl").write_text(f'{{"id": "d", "split": "dev", "turns": [{turn}, {turn}]}}\n')
    line = ["evaluate", f"scripted:{tmp_path / 'answers.jsonl'}", "--data", str(data), "--json"]
    done = CliRunner().invoke(app, [*line, "--data", str(tmp_path / "dev.jsonl")])
    told = f"{tmp_path / 'dev.jsonl'}: not scored, since it has no split test (there are: dev)"
    assert told in " ".join(done.stderr.split()), done.stderr
    assert "not scored" not in CliRunner().invoke(app, line).stderr


def test_a_conversation_that_comes_twice_counts_once(data: Path) -> None:
    talks = load_conversations(load([], [f'data.sources=["{data}"]']).data)
    other = replace(talks[0], turns=talks[1].turns)  # another one of the same name
    assert _once([*talks, *talks, other]) == [*talks, other]


def test_a_run_on_data_without_splits_tries_no_split_that_is_not_there(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Its end also says why there is nothing of self-play to read; evaluated, it scores what it held out."""
    path, run = tmp_path / "mine.jsonl", tmp_path / "run"
    write_jsonl(path, toy_conversations(10))
    path.write_text(path.read_text().replace('"split": "train", ', ""))
    words = [w for s in (*SMALL, f"model.id={tiny_model}", "selfplay.max_turns=1") for w in ("--set", s)]
    done = CliRunner().invoke(app, ["evolve", "--data", str(path), "--out", str(run), *words])
    assert done.exit_code == 0, done.output
    assert "2 of 10 conversations are held out" in " ".join(done.stderr.split())
    assert (
        f"evaluate {run}@start --data {path} --split dev" in done.stdout and "--split test" not in done.stdout
    )
    said = " ".join(done.stdout.split())
    assert NO_DIALOGUE in said and "Three self-play dialogues" not in said
    scored = CliRunner().invoke(app, ["evaluate", str(run), "--data", str(path), "--json"])
    assert json.loads(scored.stdout)["split"] == "dev"
    told = "of 10 conversations those that the run held out are scored: 2 conversations"
    assert told in " ".join(scored.stderr.split())
