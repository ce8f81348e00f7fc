"""The wheel alone, outside the repository: its resources, the command, the library, a named configuration."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from selfemo.config import load

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RESOURCES = (
    "py.typed", "data/sample.jsonl", "data/LICENSE", "reports/published.toml", "reports/report.html.jinja",
    "serve/chat/page.css", "serve/chat/page.js",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the source, installed alone into a folder."""
    home = tmp_path_factory.mktemp("wheel")
    source = home / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", home, source]
    try:
        __import__("setuptools.build_meta")
    except ImportError:
        built = [*pip, "wheel", "--no-deps", "-w", home, source]
    subprocess.run(list(map(str, built)), check=True)
    (wheel,) = home.glob("selfemo-*.whl")
    put = [*pip, "install", "--no-deps", "--no-index", "--no-compile", "--target", home / "installed"]
    subprocess.run([*map(str, put), str(wheel)], check=True)
    shutil.rmtree(source)
    return home


def outside(home: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run with the installed wheel and without the repository on the path."""
    env = {**os.environ, "PYTHONPATH": str(home / "installed")}
    return subprocess.run(
        list(map(str, command)), cwd=home, env=env, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_every_file_that_is_read(home: Path) -> None:
    (wheel,) = home.glob("selfemo-*.whl")
    names = {n.removeprefix("selfemo/") for n in zipfile.ZipFile(wheel).namelist()}
    source = ROOT / "src" / "selfemo"
    wanted = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
    wanted = {n for n in wanted if "__pycache__" not in n}
    assert wanted <= names
    assert {*RESOURCES, "configs/quickstart.toml", "evaluation/arms/full.toml"} <= wanted
    assert not [n for n in names if n.startswith(("tests", "benchmarks", "experiments"))]


def test_the_command_and_the_library(home: Path) -> None:
    told = outside(home, home / "installed" / "bin" / "selfemo", "--help")
    assert told.returncode == 0 and "evolve" in told.stdout, told.stderr
    code = "import selfemo; from selfemo import SelfEmo; print(selfemo.__file__, SelfEmo.__name__)"
    told = outside(home, sys.executable, "-c", code)
    assert told.stdout.split() == [str(home / "installed/selfemo/__init__.py"), "SelfEmo"], told.stderr
    for command in ("data check sample", "table1"):
        told = outside(home, sys.executable, "-m", "selfemo.cli", *command.split())
        assert told.returncode == 0, told.stderr


def test_shipped_names_are_found(home: Path) -> None:
    told = outside(home, sys.executable, "-m", "selfemo.cli", "evolve", "-c", "quickstrat")
    assert told.returncode == 1 and "did you mean -c quickstart?" in told.stderr
    told = outside(home, sys.executable, "-m", "selfemo.cli", "ablate", "--out", "ablation", "--arm", "none")
    assert told.returncode == 1 and "vanilla-grpo" in told.stderr


@pytest.mark.extended
def test_evolve_by_the_name_of_a_configuration(home: Path, tiny_model: Path) -> None:
    """A whole run with a tiny model, and its settings are the shipped ones."""
    sets = [
        f'model.id="{tiny_model}"', "model.device=cpu", "sft.max_samples=8", "sft.label_samples=8",
        "flywheel.iterations=0", "data.eval_conversations=1",
    ]  # fmt: skip
    told = outside(
        home, sys.executable, "-m", "selfemo.cli", "evolve", "-c", "quickstart", "--out", "run", "--json",
        *[x for s in sets for x in ("--set", s)],
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["run"] == "run"
    assert load([home / "run" / "config.toml"]) == load(["quickstart"], sets)
