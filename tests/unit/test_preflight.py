"""Before a run: what is wrong is said, nothing is left behind, long runs are not started unasked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.cli.output import confirm
from selfemo.config import load, shipped, to_toml
from selfemo.data.splits import existing_split, held_out
from selfemo.errors import ConfigError, DataError, SelfEmoError
from selfemo.evaluation.overlap import training_data
from selfemo.progress import Console, Quiet
from selfemo.runs.inputs import HOLD_OUT, load_conversations, run_inputs
from selfemo.runs.overlap import note_overlap
from selfemo.runs.preflight import Expected, check_room, check_run, check_start, expected
from selfemo.runs.settings import settings_for, sources_of
from tests.support.files import model_folder


def talk(n: int, **more: object) -> dict[str, object]:
    turns = [
        {"speaker": who, "text": f"line {k} of {n}", "emotion": "joy"}
        for k, who in enumerate(["Ann", "Bo"] * 2)
    ]
    return {"id": f"c{n}", "turns": turns, **more}


def write(path: Path, *talks: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(t) + "\n" for t in talks))
    return str(path)


WRONG = [
    ("--data {home}/talks.jsonl", "no such file or folder; did you mean {home}/talk.jsonl?"),
    ("--data meld:{home}", "is not meld data"),
    ("--data sample --set model.id=run9", "run9: no such folder"),
    ("--data sample --set data.eval_split=test --set sft.samples=none.parquet", "none.parquet"),
    (
        "--data sample --set prompt.reasoning=full --set grpo.gold_weight=0 --set grpo.credit=completion "
        "--set selfplay.self_emotion=sampled --set evaluation.span=all",
        "gold data hold no reasoning",
    ),
    ("--data {home}/talk.jsonl", "no conversation of split 'train'"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
@pytest.mark.parametrize("command", ["evolve", "sft", "ablate"])
def test_nothing_is_left_where_a_run_cannot_begin(
    command: str, wrong: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "talk.jsonl", talk(1, split="test"))
    line = [command, "-c", "quickstart", "--out", "runs/new", *wrong.format(home=tmp_path).split()]
    result = CliRunner().invoke(app, line)
    assert isinstance(result.exception, SelfEmoError), result.output
    assert said.format(home=tmp_path) in str(result.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["talk.jsonl"]


@pytest.mark.parametrize("name", sorted(set(shipped()) - {"quickstart"}))
def test_a_shipped_configuration_asks_for_data(name: str) -> None:
    with pytest.raises(ConfigError, match="name your conversations by --data PATH"):
        run_inputs(load([name]))


def test_data_is_an_option_of_every_command_that_takes_settings(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["doctor", "-c", "meld", "--data", "sample", "--json"])
    told = {f["what"]: f["found"] for f in json.loads(found.stdout)["findings"]}
    assert told["data sample"].startswith("113 train")


def test_conversations_without_a_split_are_parted_once_for_all(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.jsonl", *(talk(n) for n in range(30)))
    config = load(["quickstart"], [f'data.sources=["{mine}"]'])
    checked, inputs = check_start(config, tmp_path / "run")
    held = {c.id for c in inputs.conversations if c.split == "dev"}
    assert (checked.data.hold_out, len(held), len(inputs.training)) == (HOLD_OUT, 6, 24)
    plain, _ = check_start(load([], [f'data.sources=["{mine}"]']), tmp_path / "run")
    assert plain.data.eval_split == "dev", "what is held out is no test split"
    assert {c.id for c in load_conversations(checked.data) if c.split == "dev"} == held
    shuffled = write(tmp_path / "again.jsonl", *(talk(n) for n in reversed(range(30))))
    other = checked.data.model_copy(update={"sources": (shuffled,)})
    assert {c.id for c in load_conversations(other) if c.split == "dev"} == held
    assert [c.split for c in load_conversations(config.data)] == ["test"] * 30, "as before for evaluation"


def test_conversations_without_a_split_beside_others_with_one_are_told(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.jsonl", *(talk(n, split="train") for n in range(3)), talk(3), talk(4))
    config, said = load(["quickstart"], [f'data.sources=["{mine}"]', "data.eval_split=test"]), []
    checked, inputs = check_start(config, tmp_path / "run", say=said.append)
    assert (checked.data.hold_out, len(inputs.training)) == (0, 3)
    assert said == [
        "2 of 5 conversations name no split, as others do: they are split test, "
        "and nothing is trained on them"
    ]
    told = CliRunner().invoke(app, ["data", "check", mine]).output
    assert "conversations that name no split: 2; others do, so these are split test" in told


def test_a_split_that_was_named_is_never_trained_on(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.jsonl", *(talk(n, split="test") for n in range(5)))
    with pytest.raises(
        DataError, match=r"no conversation of split 'train' in .*mine.jsonl \(there are: 5 test\)"
    ):
        check_start(load(["quickstart"], [f'data.sources=["{mine}"]']), tmp_path / "run")


def test_the_split_is_chosen_from_what_exists() -> None:
    talks = load_conversations(load().data)
    train = [c for c in talks if c.split == "train"]
    assert existing_split(talks, "dev") == "dev"
    assert existing_split([c for c in talks if c.split != "test"], "test") == "dev"
    assert existing_split(train, "dev") == "train"


def test_evaluation_takes_the_held_out_split_that_there_is_and_says_so(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.jsonl", talk(1, split="train"), talk(2, split="dev"), talk(3, split="dev"))
    (tmp_path / "answers.jsonl").write_text('"E: joy\\nS: joy\\nR: Well."\n' * 8)
    line = ["evaluate", f"scripted:{tmp_path / 'answers.jsonl'}", "--data", mine, "--json"]
    told = CliRunner().invoke(app, line)
    assert json.loads(told.stdout)["split"] == "dev", told.output
    assert "no split test: dev is evaluated" in told.stderr
    one = CliRunner().invoke(app, [*line, "--conversations", "1"])
    assert json.loads(one.stdout)["eval_conversations"] == 1
    wrong = CliRunner().invoke(app, [*line, "--split", "test"])
    assert "no conversation in split 'test' to evaluate on; there are: 1 train, 2 dev" in str(wrong.exception)


def test_the_defaults_would_take_days_and_more_memory_and_quickstart_minutes() -> None:
    quick, whole = (expected(c, run_inputs(c)) for c in (load(["quickstart"]), load()))
    assert quick and whole
    assert quick.hours < 1 < 20 < whole.hours and whole.memory > 4 * quick.memory
    short = load(["quickstart"], ["flywheel.prompts=36", "data.eval_conversations=2"])
    less = expected(short, run_inputs(short))
    assert less and less.hours < quick.hours / 2, "fewer prompts and held-out turns are less work"


def test_a_long_run_is_not_started_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["evolve"])
    assert isinstance(result.exception, ConfigError) and "add --yes" in str(result.exception)
    assert "this run will take about" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        (Expected(1.9, 4, 8, 1), False),
        (Expected(2.0, 4, 8, 1), True),
        (Expected(0.1, 9, 8, 1), True),
        (Expected(0.1, 9, 0, 1), False),
        (None, False),
    ],
)
def test_when_it_asks(told: Expected | None, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[str] = []

    def no(text: str, **_: object) -> None:
        answers.append(text)
        raise typer.Abort

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", no)
    confirm(told, Console(), yes=True)
    assert not answers
    if asked:
        with pytest.raises(typer.Abort):
            confirm(told, Console(), yes=False)
    else:
        confirm(told, Console(), yes=False)
    assert len(answers) == asked


def test_a_disk_with_little_room_is_a_warning(tmp_path: Path) -> None:
    said: list[str] = []

    class Watcher(Quiet):
        def say(self, text: str) -> None:
            said.append(text)

    check_room(tmp_path / "run", Expected(0.1, 1, 2, 1e-6), Watcher())
    assert not said
    check_room(tmp_path / "run", Expected(0.1, 1, 2, 1e9), Watcher())
    assert said[0].startswith("warning: ") and "the run needs about 1000000000.0 GiB" in said[0]


def test_times_are_said_in_minutes_and_hours() -> None:
    assert [Expected(h, 1, 2, 3).time for h in (0.001, 0.3, 1.6, 1234.4)] == [
        "1 min", "18 min", "2 hours", "1,234 hours",
    ]  # fmt: skip


def test_what_a_run_held_out_is_of_its_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = write(tmp_path / "mine.jsonl", *(talk(n) for n in range(10)))
    other = write(tmp_path / "other.jsonl", *(talk(n) for n in range(10)))
    checked, inputs = check_start(load(["quickstart"], ['data.sources=["mine.jsonl"]']), tmp_path / "run")
    model_folder(tmp_path / "run" / "checkpoints" / "cold-start")
    (tmp_path / "run" / "config.toml").write_text(to_toml(checked))
    note_overlap(tmp_path / "run", inputs.overlap, Quiet().say)
    for source in (mine, "mine.jsonl", "jsonl:mine.jsonl"):
        config, _ = settings_for("run", [source], [], [])
        assert [c.split for c in load_conversations(config.data)].count("dev") == 2, source
    config, _ = settings_for("run", [other], [], [])
    assert [c.split for c in load_conversations(config.data)] == ["test"] * 10
    monkeypatch.chdir(tmp_path.parent)  # the run says "mine.jsonl", which is nothing here
    place = os.path.relpath(tmp_path)
    config, _ = settings_for(f"{place}/run", [f"{place}/mine.jsonl"], [], [])
    assert [c.split for c in load_conversations(config.data)].count("dev") == 2
    trained = training_data(f"{place}/run", [], lenient=False, say=pytest.fail)
    assert {c.id for c in trained} == {c.id for c in inputs.training}
    os.remove(mine)
    assert sources_of(tmp_path / "run") == ("mine.jsonl",), "what is there no more is called as before"


@pytest.mark.parametrize(
    "line",
    [
        "evolve -c quickstart --data talks.jsonl", "evolve -c quickstart --data sample --set model.id=run9",
        "evolve --resume run9", "evolve -c quickstart --set grpo.nix=1", "evolve --engine none",
        "sft --out new --data talks.jsonl", "train run9 --out new", "selfplay run9 --data sample",
        "predict talk.jsonl --model run9 --out new", "evaluate run9 --data sample", "chat run9", "serve run9",
        "report run9", "analyse run9", "ablate --data talks.jsonl --out new",
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_torch_is_loaded(line: str, tmp_path: Path) -> None:
    write(tmp_path / "talk.jsonl", talk(1, split="test"))
    code = (
        "import sys; from selfemo.cli.main import run\n"
        "try: run()\nfinally: print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr


_ASK = "x=http://localhost:1/v1,model=y"


@pytest.mark.parametrize(
    ("hidden", "line"),
    [
        ("gguf", "predict talk.jsonl --out new.csv"), ("openai", f"predict talk.jsonl --out n.csv -m {_ASK}"),
        ("gguf", "evaluate builtin:smollm2-135m --data sample"), ("openai", f"evaluate {_ASK} --data sample"),
        ("openai", f"judge builtin:smollm2-135m run9 --data sample --judge {_ASK} --out new"),
        ("gguf", f"judge {_ASK} {_ASK} --data sample --judge local --out new"),
        ("openai", f"chat {_ASK}"), ("gradio", "chat builtin:smollm2-135m --web"), ("fastapi", "serve"),
        ("openai", f"serve {_ASK}"), ("openai", f"analyse {_ASK} --channel --data sample"),
        ("openai", f"personas extract sample --expert {_ASK} --out new"),
        ("openai", f"coldstart generate sample --expert {_ASK} --out new.parquet"),
        ("polars", "coldstart generate sample --expert local --out new.parquet"),
        ("polars", "coldstart soften builtin:smollm2-135m talk.jsonl --out new.parquet"),
        ("peft", "evolve -c quickstart --data sample --set model.lora.rank=4 --out new"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_told_before_torch_is_loaded(hidden: str, line: str, tmp_path: Path) -> None:
    write(tmp_path / "talk.jsonl", talk(1, split="test"))
    code = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def without(name, path=None, target=None):\n"
        f"    return None if name.partition('.')[0] == {hidden!r} else find(name, path, target)\n"
        "PathFinder.find_spec = without\n"
        "from selfemo.cli.main import run\n"
        "try: run()\nfinally: print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
    assert f"{hidden} (for " in done.stderr and "is not installed; run: " in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["talk.jsonl"], "nothing was begun"


def test_splits_that_only_test_conversations_name_are_no_hold_out(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.jsonl", *(talk(n) for n in range(4)), talk(4, split="test"))
    said: list[str] = []
    with pytest.raises(DataError, match=r"no conversation of split 'train' .*\(there are: 5 test\)"):
        check_start(load([], [f'data.sources=["{mine}"]']), tmp_path / "run", say=said.append)
    assert said[0].startswith("4 of 5 conversations name no split, as others do")


def test_what_was_held_out_is_counted_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = write(tmp_path / "mine.jsonl", *(talk(n) for n in range(30)))
    config = load([], [f'data.sources=["{mine}"]'])
    assert config.data.eval_split == "test"
    check_run(config, tmp_path / "run", Console())
    assert "6 of 30 conversations are held out" in " ".join(capsys.readouterr().err.split())


def test_one_stage_is_estimated_as_one(tmp_path: Path) -> None:
    config = load(["quickstart"], ["flywheel.iterations=1000"])
    inputs = run_inputs(config)
    whole = expected(config, inputs)
    one = expected(config, inputs, cold_start=False, iterations=1)
    sft = expected(config, inputs, iterations=0)
    assert whole and one and sft
    assert whole.hours == pytest.approx(1000 * one.hours + sft.hours) and whole.disk > 100 * one.disk


def test_an_ablation_of_data_without_splits_asks_and_parts_them(tmp_path: Path, monkeypatch) -> None:
    """An empty folder is no ablation that goes on; each run has the same held-out conversations."""
    mine = write(tmp_path / "mine.jsonl", *(talk(n) for n in range(10)))
    (tmp_path / "a").mkdir()
    line = ["ablate", "--data", mine, "--out", str(tmp_path / "a"), "--seeds", "1", "--arm", "vanilla-grpo"]
    refused = CliRunner().invoke(app, [*line, "--jobs", "8"])
    assert isinstance(refused.exception, ConfigError) and "add --yes" in str(refused.exception)
    given: list[list[str]] = []

    def ablation(files, overrides, *rest, **more):
        given.append(overrides)
        return {"arms": {}}

    monkeypatch.setattr("selfemo.evaluation.experiments.ablate.ablate", ablation)
    CliRunner().invoke(app, [*line, "--yes"])
    config = load([], given[0])
    assert (config.data.hold_out, config.data.eval_split) == (HOLD_OUT, "dev")
    assert run_inputs(config).training and held_out(run_inputs(config).conversations, "dev", 0, 0)


def test_memory_counts_once_for_each_job_and_time_for_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    console = Console()
    monkeypatch.setattr(console, "say", said.append)
    confirm(Expected(0.1, 2, 8, 1), console, False, "all 6 runs", 6, 3)
    assert said[0].startswith("all 6 runs will take about 36 min, 6.0 of 8.0 GiB of memory, 6.0 GiB of disk")
    with pytest.raises(ConfigError, match="add --yes"):
        confirm(Expected(0.1, 2, 8, 1), console, False, "all 6 runs", 6, 5)


def test_selfplay_leaves_a_run_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    (tmp_path / "answers.jsonl").write_text('"E: joy\\nS: joy\\nR: Well."\n')
    line = ["selfplay", f"scripted:{tmp_path / 'answers.jsonl'}", "--data", "sample", "--out"]
    done = CliRunner().invoke(app, [*line, str(tmp_path / "run")])
    assert "already holds a run" in str(done.exception)
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["config.toml"]


@pytest.mark.parametrize("answer", ["no emotion at all", "E: joy\nS: joy\nR: Well."])
def test_selfplay_ends_its_progress_where_no_episode_goes_on(answer: str, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text(json.dumps(answer) + "\n")
    line = ["selfplay", f"scripted:{tmp_path / 'answers.jsonl'}", "--data", "sample", "--out"]
    done = CliRunner().invoke(app, [*line, str(tmp_path / "played")])
    assert done.exit_code == 0, done.exception
    assert re.search(r"self-play turns: 4 of 4 in \d+ s\n\Z", done.stderr)
