"""The documents name what there is: paths, tests, modules, symbols, settings, commands and options."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from selfemo.cli.main import app
from selfemo.config import Config
from selfemo.evaluation.baselines import BASELINES

COMMANDS: Any = typer.main.get_command(app)
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "selfemo"
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "experiments/README.md",
             *sorted(f"docs/{f.name}" for f in (ROOT / "docs").glob("*.md"))]  # fmt: skip
FILES = r"toml|jsonl?|md|txt|csv|srt|sqlite|parquet|html|log|png|svg|gguf|whl|npz|part|safetensors|sha256"
OTHERS = {
    "torch.compile",
    "response.heard",
    "response.felt",
    "response.shown",
    "response.expressed",
    "response.sound_replies",
    "checkpoints.NAME",
    "messages.content",
}
"""Dotted names that are none of the package's: of other packages, variables of examples, keys of files."""


def code_of(text: str) -> list[str]:
    """The pieces of code in a document: spans in backticks, indented lines and lines of fenced blocks."""
    pieces, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            pieces.append(line.strip())
        else:
            pieces += re.findall(r"`([^`]+)`", line)
    return pieces


@cache
def python_files() -> list[str]:
    parts = ("src", "tests", "benchmarks", "examples")
    return [f"/{f.relative_to(ROOT).as_posix()}" for part in parts for f in (ROOT / part).rglob("*.py")]


@cache
def all_tests() -> str:
    return "".join(f.read_text() for f in (ROOT / "tests").rglob("test_*.py"))


def missing_paths(text: str) -> list[str]:
    """Paths of the repository that do not exist, and tests that their file does not define."""
    missing = []
    places = r"(?<![\w/.-])((?:src|tests|docs|benchmarks|experiments|examples)/[\w./*-]*\w)(?:::(\w+))?"
    for path, test in re.findall(places, text):
        found = list(ROOT.glob(path))
        if not found or (test and f"def {test}(" not in found[0].read_text()):
            missing.append(f"{path}::{test}" if test else path)
    names = re.findall(r"`([\w/]+\.py)`", text)
    missing += [n for n in names if not any(f.endswith(f"/{n}") for f in python_files())]
    return missing + [n for n in re.findall(r"`(test_\w+)`", text) if f"def {n}(" not in all_tests()]


@cache
def modules() -> dict[str, list[Path]]:
    """Files by module, with and without the names of the packages above."""
    found: dict[str, list[Path]] = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        for k in range(len(parts) + 1):
            found.setdefault(".".join(parts[k:]) or "selfemo", []).append(file)
        found.setdefault(".".join(("selfemo", *parts)), []).append(file)
    return found


def defined(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    names: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign):
            names |= {t.id: node for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: node for a in node.names}
    return names


@cache
def parsed(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text()).body


def has(file: Path, parts: list[str]) -> bool:
    body = parsed(file)
    for part in parts:
        if (node := defined(body).get(part)) is None:
            return False
        body = node.body if isinstance(node, ast.ClassDef) else []
    return True


def is_symbol(name: str) -> bool:
    """Whether a dotted name is a module, or what a module or its class defines."""
    parts = name.split(".")
    files = [(f, k) for k in range(1, len(parts) + 1) for f in modules().get(".".join(parts[:k]), ())]
    return any(has(f, parts[k:]) for f, k in files)


@cache
def baseline_settings() -> set[str]:
    return {key for entry in BASELINES.values() for key in entry.load().kind.model_fields}


def is_setting(name: str) -> bool:
    section, _, key = name.partition(".")
    if section == "baseline":
        return key.partition(".")[0] in baseline_settings()
    field = Config.model_fields.get(section)
    fields = getattr(field.annotation, "model_fields", {}) if field else {}
    return key == "*" or key in fields


def unknown_names(text: str) -> list[str]:
    """Dotted names in backticks that are no symbol, setting or file, and imports that do not work."""
    dotted = re.findall(r"`([a-z_]\w*(?:\.\w+)+)(?: = [^`]*|\(\))?`", text)
    names = [n for n in dotted if not re.search(rf"\.({FILES}|py)$", n) and n not in OTHERS]
    for module, line in re.findall(r"from (selfemo[\w.]*) import ([\w, ]+)", text):
        names += [f"{module}.{symbol.strip()}" for symbol in line.split(",")]
    return [n for n in names if n != "selfemo.SelfEmo" and not is_setting(n) and not is_symbol(n)]


def wrong_commands(text: str) -> list[str]:
    """Commands that there are not, options that they do not have, and configurations that do not exist."""
    wrong = []
    for piece in code_of(re.sub(r" \\\n\s*", " ", text)):
        for call in re.split(r"(?=\bselfemo (?!import\b))", piece):
            words = re.match(r"selfemo ([a-z][a-z0-9]*)(?: +([a-z]+(?:-[a-z]+)*)\b)?", call)
            if words is None:
                continue
            command = COMMANDS.commands.get(words[1])
            if hasattr(command, "commands") and words[2]:
                command = command.commands.get(words[2])
            if command is None:
                wrong.append(call)
                continue
            options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            rest = call.split(" #")[0]
            wrong += [
                f"{words[0]} {o}" for o in re.findall(r"(?<=\s)(--?[a-z][\w-]*)", rest) if o not in options
            ]
            for name in re.findall(r"(?:-c|--config) ([a-z][\w./-]*)", rest):
                if not (PACKAGE / "configs" / f"{name}.toml").exists() and not (ROOT / name).is_file():
                    wrong.append(f"{words[0]} -c {name}")
    return wrong


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    assert not missing_paths(text)
    assert not unknown_names(text)
    assert not wrong_commands(text)


def test_links_between_documents_lead_somewhere() -> None:
    dead = [
        f"{document}: {target}"
        for document in [*DOCUMENTS, "CHANGELOG.md"]
        for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", (ROOT / document).read_text())
        if not ((ROOT / document).parent / target).exists()
    ]
    assert not dead


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (missing_paths, "`src/selfemo/pipeline.py`"), (missing_paths, "see tests/unit/test_none.py"),
        (missing_paths, "`tests/unit/test_docs.py::test_none`"), (missing_paths, "`pipeline.py`"),
        (missing_paths, "`test_" + "none`"),
        (unknown_names, "`pipeline.evolve`"), (unknown_names, "`self_grpo.none`"),
        (unknown_names, "`grpo.none = 1`"),
        (unknown_names, "from selfemo.method import none"),
        (wrong_commands, "    selfemo none"), (wrong_commands, "`selfemo evolve --none`"),
        (wrong_commands, "`selfemo data none x`"), (wrong_commands, "`selfemo evolve -c none`"),
    ],
)  # fmt: skip
def test_the_checks_see_what_is_wrong(check: Callable[[str], list[str]], bad: str) -> None:
    assert check(bad)
