"""Commands that a command prints at its end work as they are printed."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.cli.options import settings
from selfemo.config import Config, DataConfig
from selfemo.evaluation.summary import next_commands
from selfemo.runs.inputs import cold_start_samples, run_inputs

pytest.importorskip("polars")


def hinted(output: str) -> tuple[Config, list[str]]:
    """The settings of the command behind "use them:", and its words."""
    (line,) = [x for x in output.splitlines() if x.startswith("use them: ")]
    words = shlex.split(line.removeprefix("use them: "))
    assert Path(words[0]).name == "selfemo" and words[1] == "evolve" and "..." not in words
    values = {
        flag: [w for f, w in itertools.pairwise(words) if f == flag] for flag in ("-c", "--set", "--data")
    }
    return settings([Path(c) for c in values["-c"]], values["--set"], data=values["--data"]), words


@pytest.mark.parametrize("reasoning", ["none", "brief", "full"])
def test_after_samples_of_an_expert(
    reasoning: str, expert: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my data").mkdir()
    done = CliRunner().invoke(app, [
        "coldstart", "generate", "sample", "--out", "my data/cold.parquet", "--max-samples", "12",
        "--agreement", "0", "--reasoning", reasoning, "--expert", f"a={expert()},model=test",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    config, _ = hinted(done.stdout)
    assert (config.data.sources, config.prompt.reasoning) == (("sample",), reasoning)
    training = run_inputs(config).training
    samples, source, _ = cold_start_samples(training, config.sft, config.prompt.reasoning, config.seed)
    assert (
        source == "file" and samples and all(bool(c.reasoning) == (reasoning != "none") for _, c in samples)
    )


def test_after_softening(finished: Path, tmp_path: Path, data: Path) -> None:
    """The settings of the model's run, which the samples were made for."""
    gold, soft = tmp_path / "gold.parquet", tmp_path / "soft.parquet"
    made = CliRunner().invoke(
        app, ["coldstart", "generate", str(data), "--out", str(gold), "--max-samples", "4"]
    )
    assert made.exit_code == 0, made.output
    done = CliRunner().invoke(app, ["coldstart", "soften", str(finished), str(gold), "--out", str(soft)])
    assert done.exit_code == 0, done.output
    config, words = hinted(done.stdout)
    assert f"{finished}/config.toml" in words and config.sft.samples == str(soft)
    training = run_inputs(config).training
    assert cold_start_samples(training, config.sft, config.prompt.reasoning, 0).source == "file"


def test_after_personas(expert: Callable[..., str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [
        "personas", "extract", "sample", "--out", str(tmp_path / "p"), "--conversations", "2",
        "--expert", f"a={expert()},model=test", "--rounds", "3",
    ])  # fmt: skip
    if "sentence-transformers" in str(done.exception):
        pytest.skip("personas are embedded by sentence-transformers")
    assert done.exit_code == 0, done.output
    config, _ = hinted(done.stdout)
    assert list(config.data.personas) == [str(tmp_path / "p")]
    assert run_inputs(config).training


@pytest.mark.parametrize(
    ("evaluated", "splits", "tried"),
    [("dev", "train dev test", True), ("dev", "train dev", False), ("test", "train test", False)],
)
def test_the_test_split_is_tried_where_there_is_one_that_was_not_seen(
    evaluated: str, splits: str, tried: bool
) -> None:
    settings = DataConfig(sources=("mine.jsonl",), eval_split=evaluated)
    lines = next_commands(Path("runs/a"), settings, 1, "selfemo", set(splits.split()))
    assert ("selfemo evaluate runs/a --data mine.jsonl --split test" in lines) == tried


def test_what_to_try_on_a_run_is_quoted() -> None:
    home, data = "my runs/a", "meld:my data"
    settings = DataConfig(sources=(data,), eval_split="dev")
    lines = next_commands(Path(home), settings, 2, "selfemo", {"train", "dev", "test"}, "my reader/model")
    assert lines[0] == "selfemo analyse 'my runs/a' --reader 'my reader/model'"
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "selfemo" and home in words
        assert words[1] != "evolve" or words[-1] == "flywheel.iterations=3"
        assert "--data" not in words or words[words.index("--data") + 1] == data
