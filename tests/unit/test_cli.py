"""The command line: its list, help, how it ends when stopped, and bad input to each group of commands."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from selfemo import __version__
from selfemo.cli import app
from selfemo.cli.main import EXIT_CODES
from selfemo.cli.output import interruptible, program
from selfemo.errors import ConfigError, DataError, SelfEmoError
from selfemo.evaluation.baselines import BASELINES
from selfemo.progress import Stopped
from tests.support.commands import walk

COMMANDS = [path for path, _ in walk(typer.main.get_command(app))]


def test_the_list_of_commands() -> None:
    named = {" ".join(c) for c in COMMANDS}
    assert named == {
        "", "evolve", "sft", "train", "selfplay", "predict", "serve", "chat", "evaluate", "table1",
        "ablate", "judge", "analyse", "report", "doctor", "data", "data check", "data preview", "personas",
        "personas extract", "personas profiles", "personas cluster", "coldstart", "coldstart generate",
        "coldstart soften", "store", "store export", "store select", "baseline", "baseline list",
        "baseline settings", "baseline table", *(f"baseline {name}" for name in BASELINES),
    }  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("  ") and len(lines[2].split()) > 3, "says what the command does"
    if "Commands:" in lines:
        listed = itertools.takewhile(bool, lines[lines.index("Commands:") + 1 :])
        for line in listed:
            assert line.endswith(".") and "..." not in line, f"cut short or wrapped: {line}"
    assert not list(cut(command, done.stdout)), "words that a line break cuts"


def cut(command: tuple[str, ...], shown: str) -> Iterator[str]:
    """Words of a command's help, and names of its options, that its page does not show whole."""
    of: Any = typer.main.get_command(app)
    for name in command:
        of = of.commands[name]
    there = {w.strip(",") for w in shown.split()}
    for text in (of.help, *(getattr(p, "help", "") for p in of.params)):
        yield from {w.strip(",") for w in (text or "").split()} - there
    for parameter in of.params:
        yield from {o for o in parameter.opts if o.startswith("-")} - there


def test_the_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"selfemo {__version__}\n")


# -- completion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("selfemo ev", ["evolve", "evaluate"]),
        ("selfemo evolve -c pa", ["paper_qwen3_4b", "paper_qwen3_8b"]),
        ("selfemo evolve -c mine/", []),
        ("selfemo evaluate x --split ", ["dev", "test"]),
        ("selfemo coldstart generate x --split t", ["train", "test"]),
        ("selfemo predict x --labels e", ["emorynlp", "emowoz"]),
        ("selfemo evolve --engine ", ["local", "verl"]),
    ],
)
def test_what_a_shell_completes(typed: str, offered: list[str]) -> None:
    words = typed.split()
    at = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words) - (not typed.endswith(" ")))}
    code = "from selfemo.cli import app; app(prog_name='selfemo')"

    def asked(shell: str, **env: str) -> str:
        env = {**os.environ, "_SELFEMO_COMPLETE": f"complete_{shell}", **env}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert not done.stderr
        return done.stdout

    assert asked("bash", **at).split() == offered
    fish = asked("fish", _TYPER_COMPLETE_ARGS=typed, _TYPER_COMPLETE_FISH_ACTION="get-args")
    assert [line.partition("\t")[0] for line in fish.splitlines() if line] == offered
    zsh = asked("zsh", _TYPER_COMPLETE_ARGS=typed)
    assert all(f'"{name}"' in zsh for name in offered) and "..." not in zsh


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed(shell: str, tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    code = "from selfemo.cli import app; app(prog_name='selfemo')"
    for ask in ("--show-completion", "--install-completion"):
        done = subprocess.run(
            [sys.executable, "-c", code, ask, shell], env=env, capture_output=True, text=True, check=True
        )
        assert ask == "--install-completion" or "_SELFEMO_COMPLETE=complete_" in done.stdout
    written = [f for f in tmp_path.rglob("*") if f.is_file() and "selfemo" in f.name]
    assert written and all("_SELFEMO_COMPLETE" in f.read_text() for f in written)


# -- exit codes ---------------------------------------------------------------------------------------


def test_the_exit_codes_are_in_the_help_and_in_the_docs() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout
    docs = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    for code, meaning in EXIT_CODES.items():
        assert f"    {code:<4} {meaning}\n" in shown
        assert f"| {code} | {meaning} |" in docs


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from selfemo.cli import run\n"
        "try: run()\n"
        "finally: print(sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert "evolve" in done.stdout
    loaded = set(done.stderr.strip("[]\n").replace("'", "").split(", "))
    assert "typer" in loaded
    heavy = {"torch", "transformers", "numpy", "polars", "pydantic", "sklearn", "matplotlib", "rich"}
    assert not loaded & heavy


def until_asleep(pid: int) -> None:
    """Wait until a process waits for something; one that only lacks a core is still running."""
    seen = ""
    while not seen.endswith("SSSSS"):
        time.sleep(0.05)
        seen += Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def ended(*arguments: str, wait_for: Path | None = None, number: int = 0) -> tuple[int, str, str]:
    """Exit code, output and errors of a command; it gets the signal when it opens the pipe `wait_for`."""
    command = [sys.executable, "-m", "selfemo.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if wait_for is not None:
        # Opening returns when the command has opened its end. Once it sleeps, it waits in its read, which the
        # signal ends; one that came between its open and its read would not.
        with wait_for.open("w"):
            until_asleep(process.pid)
            process.send_signal(number)
            said = process.communicate(timeout=200)
    else:
        said = process.communicate(timeout=200)
    return process.returncode, *said


def test_exit_codes(tmp_path: Path) -> None:
    assert ended("--version")[0] == 0
    code, out, said = ended("table1", "--cross")
    assert (code, out) == (1, "") and said.startswith("error: --cross needs folders")
    code, out, said = ended("evolve", "--nonsense")
    assert (code, out) == (2, "") and "No such option" in said
    pipe = tmp_path / "slow.toml"
    os.mkfifo(pipe)
    for number in (signal.SIGINT, signal.SIGTERM):
        assert ended("evolve", "-c", str(pipe), wait_for=pipe, number=number) == (130, "", "stopped\n")


# -- stopping -----------------------------------------------------------------------------------------


WINDOWS = """
import sys
for name in ("fcntl", "termios", "resource", "pwd", "grp"):
    sys.modules[name] = None
import selfemo.files, selfemo.progress, selfemo.runs.folder
from selfemo.cli import run
sys.platform = "win32"
run()
"""


def test_on_windows_one_line_says_what_to_do() -> None:
    command = [sys.executable, "-c", WINDOWS, "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == "error: selfemo does not run on Windows itself; use it in WSL2\n"
    assert done.returncode == 1 and not done.stdout


@pytest.mark.parametrize("how", [Stopped, KeyboardInterrupt])
def test_a_stopped_command_says_how_to_go_on(
    how: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, interruptible("run it again"):
        raise how
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "stopped; run it again\n"


def test_a_signal_is_a_request_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit), interruptible("run it again") as (_, stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        stop.check()
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopping after this step" in capsys.readouterr().err


def test_other_errors_pass_a_block_that_can_be_stopped() -> None:
    with pytest.raises(DataError, match="broken"), interruptible("run it again"):
        raise DataError("broken")


# -- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("evolve -c quickstrat", "did you mean -c quickstart?"),
        ("evolve --set nonsense", "section.key=value"),
        ("evolve --resume {empty}", "is not a run folder"),
        ("evolve --resume {empty} --set grpo.lr=1", "is not a run folder"),
        ("evolve --resume {empty} -c quickstart", "--resume takes its settings from the run"),
        ("evolve --dry-run", "add --engine verl"),
        ("evolve --engine none", "engine"),
        ("sft --out {empty}/m --engine none", "engine"),
        ("sft --out {empty}/m -c {empty}", "cannot be read as TOML"),
        ("train x --out {empty} --resume --set seed=1", "--resume takes its settings from the run"),
        ("selfplay builtin:smollm2-135m --data {empty}/none", "no such file or folder"),
        ("predict {empty}/none.csv --out {empty}/out.csv", "no such file or folder"),
        ("predict sample --out {empty}/out.txt", ".jsonl or .csv"),
        ("serve --host 0.0.0.0", "SELFEMO_TOKEN"),
        ("chat x --web --host 0.0.0.0", "--insecure"),
        ("chat x --compare y", "--compare needs --web"),
        ("chat builtin:smollm2-135m --web --port 0 --compare run9", "run9: no such folder"),
        ("evaluate {empty} --data sample", "not a model folder"),
        ("table1 --cross", "--cross needs folders"),
        ("table1 --format word", "word"),
        ("ablate --out {empty} --keep some", "valid are all, last, none"),
        ("ablate --out {empty} --arm none", "none"),
        ("judge a b --data sample --out {empty} --judge x", "write it as NAME=URL"),
        ("analyse {empty}", "is not a run folder"),
        ("analyse {empty} --split dev", "are for --channel"),
        ("analyse x --channel", "name some with --data"),
        ("analyse x --channel --prompts 3", "data.eval_conversations"),
        ("analyse x --channel --reader y", "--reader and --against are not for --channel"),
        ("analyse x --against y", "name it with --reader"),
        (
            "baseline encoder --data sample --out {empty}/b --set baseline.epoch=3",
            "did you mean baseline.epochs?",
        ),
        ("baseline settings tfdif", "did you mean tfidf?"),
        ("baseline table {empty}", "{empty}: holds no scores"),
        ("report {empty} --out {empty}/r.html", "is not a run folder"),
        ("doctor --machine abacus", "abacus"),
        ("data check {empty}/none", "no such file or folder"),
        ("personas extract sample --out {empty}", "name an expert"),
        ("personas extract sample --out {empty} --expert x", "--expert x"),
        ("personas profiles {empty}", "{empty}"),
        ("personas cluster {empty}", "{empty}"),
        ("coldstart generate sample --out {empty}/c.parquet --reasoning long", "none, brief, full"),
        ("coldstart generate sample --out {empty}/c.parquet --reasoning brief", "needs an --expert"),
        ("coldstart soften x {empty}/c.parquet --out {empty}/d.parquet", "c.parquet"),
        ("store export {empty} --out {empty}/s", "{empty}"),
        ("store select {empty} --out {empty}/s.parquet", "{empty}"),
    ],
)
def test_bad_input_is_an_error_of_the_users(
    command: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SELFEMO_TOKEN", raising=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    result = CliRunner().invoke(app, [w.format(empty=empty) for w in command.split()])
    assert isinstance(result.exception, SelfEmoError), result
    assert says.format(empty=empty) in str(result.exception)
    assert not list(empty.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    "command",
    [
        "evolve --nonsense",
        "train",
        "serve --port 70000",
        "evaluate x",
        "data",
        "store select x --max-share 2",
    ],
)
def test_wrong_usage_ends_with_2_and_a_hint(command: str) -> None:
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 2 and "Usage:" in result.output


def test_the_two_ways_to_give_settings(tmp_path: Path) -> None:
    """--engine is the last word over --set, and --set over -c."""
    from selfemo.cli.options import settings

    found = settings([Path("quickstart")], ["engine=local", "seed=4"], "verl")
    assert (found.engine, found.seed, found.flywheel.prompts) == ("verl", 4, 216)
    with pytest.raises(ConfigError, match="seed=-1"):
        settings(None, ["seed=-1"], "verl")


def test_the_program_is_named_as_a_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "clone" / ".venv" / "bin"
    home.mkdir(parents=True)
    for name in ("python", "selfemo"):
        (home / name).touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(home / "python"))
    monkeypatch.setenv("PATH", str(home))
    assert program() == "selfemo"
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path / "clone")
    assert program() == ".venv/bin/selfemo"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / "none" / "python"))
    assert program() == "selfemo"
