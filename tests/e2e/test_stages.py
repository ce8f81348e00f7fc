"""`selfemo evolve` on a tiny model: what the console, the summary and the report say of each stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.config import to_toml
from selfemo.evaluation.changes import VERDICTS
from selfemo.runs.store import Store
from tests.conftest import toy_conversations, write_jsonl
from tests.support.runs import SHORT, settings


@pytest.fixture(scope="module")
def told(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run folder, and what the command printed; enough conversations are held out for a verdict."""
    home = tmp_path_factory.mktemp("stages")
    talks = [*toy_conversations(10), *toy_conversations(8, "dev"), *toy_conversations(1, "test")]
    write_jsonl(data := home / "toy.jsonl", talks)
    more = ("save.every_steps=0", "flywheel.prompts=6", "sft.epochs=30", "data.eval_split=dev")
    config = settings(tiny_model, data, *SHORT, *more)
    (home / "c.toml").write_text(to_toml(config))
    done = CliRunner().invoke(app, ["evolve", "-c", str(home / "c.toml"), "--out", str(home / "run")])
    assert done.exit_code == 0, done.output
    return home / "run", done.output


def mean_r1(run: Path, checkpoint: str) -> float:
    with Store(run / "store.sqlite", read_only=True) as store:
        found = [r["r1"] for r in store.predictions(f"evaluate-{checkpoint}")]
    return sum(found) / len(found)


def test_the_summary_says_what_each_stage_added(told: tuple[Path, str]) -> None:
    run, _ = told
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["scores"]) == ["start", "cold-start", "iteration-1-rl", "iteration-1"]
    changes = {c["stage"]: c for c in summary["changes"]}
    assert list(changes) == ["cold start (labels)", "RL 1", "refit 1"]
    for c in changes.values():
        if c["copied"]:
            continue
        by = c["by"]["jsonl"]
        assert by["verdict"] in VERDICTS.values() and by["utterances"] == 40
        assert by["nll_at_t"]["believed"] and by["nll_at_t"]["utterances"] == 40
        moved = mean_r1(run, c["to"]) - mean_r1(run, c["from"])
        assert by["mean_r1"]["difference"][0] == pytest.approx(moved)
        sides = [summary["scores"][c[k]]["jsonl"]["calibration"] for k in ("from", "to")]
        fall = sides[1]["nll_tempered"] - sides[0]["nll_tempered"]
        assert by["nll_at_t"]["difference"][0] == pytest.approx(fall, abs=1e-9)
        assert by["nll_at_t"]["temperatures"] == pytest.approx([s["temperature"] for s in sides])
    labels = changes["cold start (labels)"]["by"]["jsonl"]
    assert labels["verdict"] == "better", "a word gives each emotion away, and the labels teach it"
    free = summary["free_changes"]["iteration-1-rl"]["jsonl"]
    assert list(free) == ["as it is", "majority class", "most probable label", "prior shift"]
    assert free["as it is"]["mean_r1"][0] == pytest.approx(mean_r1(run, "iteration-1-rl"))


def test_the_console_and_the_files_show_it(told: tuple[Path, str]) -> None:
    run, output = told
    text, markdown = " ".join(output.split()), (run / "summary.md").read_text()
    for word in ("What each stage added", "iteration-1-rl", "RL 1", "refit 1", "NLL at T", "better"):
        assert word in text and word in markdown, word
    assert f"selfemo evaluate {run} --data" in output and "--split test" in output
    assert "What a free change of the same checkpoint would give" in markdown and "prior shift" in markdown


def test_the_report_shows_it(told: tuple[Path, str]) -> None:
    run, _ = told
    page = run.parent / "report.html"
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(page)])
    assert done.exit_code == 0, done.output
    html = page.read_text()
    for part in ('<section id="stages"', '<section id="free"', "<bdi>RL 1</bdi>", "<bdi>prior shift</bdi>"):
        assert part in html, part
