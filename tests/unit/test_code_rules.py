"""What the source must never do: run code that data, a model or a file brings along."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "selfemo"
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "code", "runpy"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {("os", "system"), ("os", "popen"), ("torch", "load"), ("yaml", "load"), ("tarfile", "open"),
         ("shutil", "unpack_archive"), ("pandas", "read_pickle"), ("importlib", "import_module")}  # fmt: skip
KEYWORDS = {"trust_remote_code", "allow_pickle", "shell"}


def offences(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        at = f"line {getattr(node, 'lineno', 0)}: "
        if isinstance(node, ast.Import):
            found += [at + a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(at + str(node.module))
        elif isinstance(node, ast.Call):
            f = node.func
            if isinstance(f, ast.Name) and f.id in BUILTINS:
                found.append(at + f.id)
            if (
                isinstance(f, ast.Attribute)
                and isinstance(f.value, ast.Name)
                and (f.value.id, f.attr) in CALLS
            ):
                found.append(at + f"{f.value.id}.{f.attr}")
            for k in node.keywords:
                off = isinstance(k.value, ast.Constant) and k.value.value is False
                if k.arg in KEYWORDS and not off:
                    found.append(at + str(k.arg))
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.name)
def test_no_code_from_data(path: Path) -> None:
    assert not offences(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle", "from dill import loads", "import joblib.memory", "eval(x)", "exec('1')",
        "__import__('os')", "torch.load(p)", "os.system(c)", "f(trust_remote_code=True)",
        "f(trust_remote_code=flag)", "np.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)",
    ],
)  # fmt: skip
def test_the_rule_sees_what_it_forbids(bad: str) -> None:
    assert offences(ast.parse(bad))


def test_the_rule_lets_the_rest_be() -> None:
    fine = "model.eval(); re.compile(x); f(trust_remote_code=False); ast.literal_eval(x)"
    assert not offences(ast.parse(fine))


TESTS = SOURCE.parents[1] / "tests"


def imported_tests(tree: ast.AST) -> list[str]:
    """Imports of test modules, which bring their tests along; shared parts are in tests/support."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module or ''}.{a.name}" for a in node.names]
    return [n for n in names if any(part.startswith("test_") for part in n.split("."))]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda p: p.name)
def test_no_test_module_is_imported(path: Path) -> None:
    assert not imported_tests(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    "bad",
    ["import tests.unit.test_x", "from tests.unit.test_x import f", "from tests.unit import test_x",
     "from .test_x import f", "from test_x import f"],
)  # fmt: skip
def test_the_import_rule_sees_what_it_forbids(bad: str) -> None:
    assert imported_tests(ast.parse(bad))


# -- SQL and private names --------------------------------------------------------------------------

SQL = re.compile(
    r"\b(SELECT\b.*\bFROM\b|SELECT (\d|\*|count|DISTINCT)|INSERT (OR \w+ )?INTO|UPDATE \w+ SET|"
    r"DELETE FROM|CREATE (TABLE|INDEX)|PRAGMA \w|(GROUP|ORDER) BY)",
    re.DOTALL,
)


def sql_in(tree: ast.AST) -> list[str]:
    strings = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return [f"line {n.lineno}: {n.value[:40]}" for n in strings if SQL.search(n.value)]


def private_names(tree: ast.AST) -> list[str]:
    """Private names of other files of the package that are imported, or taken from a module."""
    found, modules = [], set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("selfemo"):
            continue
        parts = [*(node.module or "").split("."), *(a.name for a in node.names)]
        found += [f"line {node.lineno}: {p}" for p in parts if re.match(r"_(?!_)", p)]
        modules |= {a.asname or a.name for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            of = node.value
            if isinstance(of, ast.Name) and of.id in modules:
                found.append(f"line {node.lineno}: {of.id}.{node.attr}")
    return found


def test_sql_stands_in_the_store_only() -> None:
    found = {
        name: sql_in(ast.parse(path.read_text()))
        for path in SOURCE.rglob("*.py")
        if not (name := path.relative_to(SOURCE).as_posix()).startswith("runs/store/")
    }
    assert not {name: lines for name, lines in found.items() if lines}


def test_no_private_name_crosses_a_file() -> None:
    found = {
        path.relative_to(SOURCE).as_posix(): private_names(ast.parse(path.read_text()))
        for path in SOURCE.rglob("*.py")
    }
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize(
    "bad",
    [
        "q = 'SELECT a, b FROM t'", "q = 'SELECT 1'", "f'DELETE FROM {t}'", "'UPDATE t SET a = 1'",
        "'INSERT OR IGNORE INTO t VALUES (1)'", "'PRAGMA quick_check'", "'SELECT a\\nFROM t'",
    ],
)  # fmt: skip
def test_the_rule_sees_sql(bad: str) -> None:
    assert sql_in(ast.parse(bad))


def test_the_rule_takes_no_english_for_sql() -> None:
    fine = "'Select one of these, from the list'; 'delete from here'; 'UPDATE: set it'; 'INSERT it'"
    assert not sql_in(ast.parse(fine))


@pytest.mark.parametrize(
    "bad",
    [
        "from selfemo.a import _b", "from selfemo._a import b", "from selfemo import a\na._b()",
        "def f():\n    from selfemo.x.y import _z",
    ],
)  # fmt: skip
def test_the_rule_sees_private_names(bad: str) -> None:
    assert private_names(ast.parse(bad))


def test_the_rule_lets_private_names_of_others_be() -> None:
    fine = "from selfemo import __version__\nimport torch\ntorch._C\nself._x\nfrom os import _exit"
    assert not private_names(ast.parse(fine))
