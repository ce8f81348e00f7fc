"""Optional dependencies: the command names what is missing, in the version that selfemo requires."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo import extras
from selfemo.cli import app
from selfemo.errors import MissingExtraError
from selfemo.extras import install_command, require, requirements


def test_what_is_there_is_no_error() -> None:
    require("the tests", "pytest", "numpy")


def test_the_command_installs_what_is_missing_and_nothing_else() -> None:
    with pytest.raises(MissingExtraError) as told:
        require("`selfemo serve`", "numpy", "no-such-thing")
    said = f"no-such-thing (for `selfemo serve`) is not installed; run: {install_command('no-such-thing')}"
    assert str(told.value) == said


def test_a_requirement_is_that_of_this_version() -> None:
    assert requirements("Gradio", "sentence_transformers", "unheard-of") == [
        "gradio>=6.0", "sentence-transformers>=5", "unheard-of",
    ]  # fmt: skip


def test_the_command_is_ready_for_a_shell() -> None:
    dry = f"{install_command('numpy')} --dry-run --quiet --no-index"
    assert subprocess.run(dry, shell=True, capture_output=True).returncode == 0
    python = shlex.split(dry)[0]
    assert python in (sys.executable, os.path.relpath(sys.executable))


def test_in_a_clone_the_command_takes_the_versions_of_its_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = Path(extras.__file__).parents[2]
    monkeypatch.chdir(clone)
    name = "constraints-verl.txt" if extras.version_of("verl") else "constraints.txt"
    assert f" -m pip install -c {name} 'gradio>=6.0'" in install_command("gradio")
    monkeypatch.setattr(extras, "version_of", lambda distribution: "0.9.1")
    assert " -c constraints-verl.txt " in install_command("gradio")
    monkeypatch.chdir(tmp_path)
    assert f" -c {clone}/constraints-verl.txt " in install_command("gradio")
    # Installed from a wheel there is no such file.
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages/selfemo/extras.py"))
    assert " -c " not in install_command("gradio")


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("sentence_transformers", "personas extract sample --out out --expert local"),
        ("polars", "coldstart generate sample --out out/c.parquet --expert local"),
        ("gradio", "chat builtin:smollm2-135m --web"),
        ("fastapi_offline", "serve"),
    ],
)
def test_what_is_missing_is_said_before_any_work(
    module: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    result = CliRunner().invoke(app, command.split())
    assert isinstance(result.exception, MissingExtraError), result.output
    assert module.replace("_", "-") in str(result.exception)
    assert not list(tmp_path.iterdir())
