"""What commands print: words for people, or one JSON object; no bars and logs of libraries, no Python."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from selfemo.cli import app
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
