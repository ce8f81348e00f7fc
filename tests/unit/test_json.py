"""--json: one JSON object on standard output, by every command that has a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from selfemo.cli import app
from tests.support.commands import leaves

NO_RESULT = {"serve": "answers over HTTP until it is stopped", "chat": "a conversation of a person"}
"""Commands without --json, and why."""


def said(*arguments: str) -> Any:
    """What a command prints with --json."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize(("name", "command"), leaves(typer.main.get_command(app)))
def test_every_command_has_it(name: str, command: Any) -> None:
    options = {o: p for p in command.params for o in p.opts}
    assert ("--json" in options) != (name in NO_RESULT)
    if name not in NO_RESULT:
        assert options["--json"].help == "Print one JSON object."


def test_data_check(tmp_path: Path) -> None:
    found = said("data", "check", "sample", "sample", "--copies", str(tmp_path / "copies.jsonl"))
    first = found["data_sets"][0]
    assert (first["source"], first["data_set"]) == ("sample", "sample")
    assert first["splits"]["test"]["conversations"] > 0 and first["skipped"] == []
    utterances = sum(s["utterances"] for s in first["splits"].values())
    assert utterances == sum(n for s in first["splits"].values() for n in s["emotions"].values()) == 1441
    assert found["overlap"] and (tmp_path / "copies.jsonl").exists()


def test_table1() -> None:
    found = said("table1")
    assert all(len(row) == len(found["header"]) for row in found["rows"])


def test_doctor() -> None:
    done = CliRunner().invoke(app, ["doctor", "-c", "quickstart", "--json"])
    assert json.loads(done.stdout)["findings"] and done.exit_code in (0, 1)


def test_cold_start_from_gold_data(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    found = said(
        "coldstart", "generate", "sample", "--out", str(tmp_path / "c.parquet"), "--max-samples", "4"
    )
    assert found == {"samples": 4, "source": "gold"}
    asked = ["coldstart", "generate", "sample", "--out", str(tmp_path / "d.parquet"), "--dry-run"]
    assert said(*asked)["calls"] == 0


def test_the_plan_of_a_cluster() -> None:
    found = said("evolve", "-c", "paper_qwen3_4b", "--data", "sample", "--dry-run")
    assert (
        found["waves"][0]["steps"][0] == 1
        and found["gpus"] > 0
        and isinstance(found["waves"][0]["command"], list)
    )
