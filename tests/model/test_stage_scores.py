"""Each stage that changes weights is scored by itself; runs of earlier versions go on without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from selfemo.errors import UnsupportedError
from selfemo.evaluation.predictions import evaluate, gold_prompts, has_beliefs, predict
from selfemo.evaluation.summary import finish
from selfemo.models.generation import open_sampler
from selfemo.models.generation.scripted import ScriptedSampler
from selfemo.reports.tables import measured
from selfemo.runs.folder import RunFolder, stage_names
from selfemo.runs.inputs import load_conversations
from selfemo.runs.store import Store
from tests.support.runs import STAGES, Watcher, as_of_an_earlier_version, begun, content, evolve, settings


def rows_of(run: Path, evaluation: str) -> list[dict]:
    """Predictions without the name of their evaluation."""
    with Store(run / "store.sqlite", read_only=True) as store:
        return [{**r, "evaluation": ""} for r in store.predictions(evaluation)]


def test_the_policy_after_rl_is_scored_before_its_refit(finished: Path) -> None:
    with Store(finished / "store.sqlite", read_only=True) as store:
        order = [r["name"] for r in store.stages()]
    at = order.index("iteration-1-rl")
    assert order[at : at + 4] == [
        "iteration-1-rl", "evaluate-iteration-1-rl", "iteration-1-refit", "evaluate-iteration-1",
    ]  # fmt: skip
    with RunFolder(finished) as run:
        assert stage_names(run.config) == STAGES == order
    assert len(rows_of(finished, "evaluate-iteration-1-rl")) == 15
    assert rows_of(finished, "evaluate-iteration-1-rl") != rows_of(finished, "evaluate-iteration-1")


def test_beliefs_are_stored_beside_what_was_written(finished: Path, data: Path) -> None:
    """They are the sampler's own label probabilities, also where nothing parses."""
    with RunFolder(finished) as run:
        sampler = open_sampler(run.weights("cold-start"), run.config.model)
        with Store(finished / "store.sqlite", read_only=True) as store:
            rows = store.predictions("evaluate-cold-start")
            untouched = store.predictions("evaluate-start")
        held = [c for c in load_conversations(run.config.data) if c.split == "test"]
        by_id = {p.id: p for p in gold_prompts(held)}
        asked = run.config.evaluation.model_copy(update={"span": "probabilities"})
        found = predict(sampler, [by_id[r["prompt"]] for r in rows], asked, run.config.prompt)
    assert has_beliefs(rows) and has_beliefs(untouched)
    assert all(r["predicted"] is None for r in untouched), "not one of its completions parses"
    for row, prediction in zip(rows, found, strict=True):
        believed = json.loads(row["believed"])
        assert believed == pytest.approx(dict(prediction.predicted)) and len(believed) == 7
        assert prediction.believed == prediction.predicted


def test_where_there_is_no_refit_the_policy_is_scored_once(
    finished: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    more = ("flywheel.refit=none", "flywheel.iterations=1", "flywheel.prompts=6")
    folder = begun(finished, "iteration-1-rl", tmp_path / "run", settings(tiny_model, data, *more))
    watcher, bars = Watcher(lambda stage: bars.append(stage)), []
    with evolve(folder, None, watcher) as run:
        assert bars == ["iteration-1-rl", "evaluate-iteration-1-rl"], "the copy is not scored anew"
        assert [s for s in watcher.said if s.startswith("stage ")] == [
            "stage 4 of 7: iteration-1-rl", "stage 5 of 7: evaluate-iteration-1-rl",
            "stage 6 of 7: iteration-1-refit", "stage 7 of 7: evaluate-iteration-1",
        ]  # fmt: skip
        record = json.loads(run.store.stage("evaluate-iteration-1")["info"])
        first = json.loads(run.store.stage("evaluate-iteration-1-rl")["info"])
        summary = finish(run)
    assert record == {**first, "taken_from": "iteration-1-rl"} and first["jsonl"]["utterances"] == 15
    assert rows_of(folder, "evaluate-iteration-1") == rows_of(folder, "evaluate-iteration-1-rl")
    assert summary["scores"]["iteration-1"] == summary["scores"]["iteration-1-rl"]
    assert list(summary["free_changes"]) == ["start", "cold-start", "iteration-1-rl"]
    assert measured(folder).scores == {"jsonl": record["jsonl"]}


@pytest.mark.parametrize("weights", ["kept", "removed"])
def test_a_finished_run_of_an_earlier_version_resumes(finished: Path, tmp_path: Path, weights: str) -> None:
    """Scored late where the policy is still there, and left out with a word where it is not."""
    folder = as_of_an_earlier_version(Path(shutil.copytree(finished, tmp_path / "run")))
    if weights == "removed":
        for n in (1, 2):
            shutil.rmtree(folder / "checkpoints" / f"iteration-{n}-rl")
    before, watcher = content(folder)["metrics"], Watcher()
    with evolve(folder, None, watcher) as run:
        summary = finish(run)
    assert content(folder)["metrics"] == before, "nothing is trained again"
    late = {f"iteration-{n}-rl" for n in (1, 2)}
    if weights == "kept":
        assert late < set(summary["scores"]) and not {s for s in watcher.said if not s.startswith("stage ")}
        for name in late:
            assert rows_of(folder, f"evaluate-{name}") == rows_of(finished, f"evaluate-{name}")
    else:
        assert not late & set(summary["scores"])
        assert watcher.said == [
            f"iteration-{n}-rl was never scored, and its weights were not kept; left out" for n in (1, 2)
        ]
    assert list(summary["scores"])[-1] == "iteration-2"
    assert not has_beliefs(rows_of(folder, "evaluate-iteration-2"))


def test_an_interrupted_run_of_an_earlier_version_goes_on(
    finished: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    """Begun before, finished now: the same training, and scores of what is trained from here on."""
    folder = as_of_an_earlier_version(begun(finished, "evaluate-iteration-1", tmp_path / "run"))
    with evolve(folder, None, Watcher()) as run:
        summary = finish(run)
    ours, theirs = content(folder), content(finished)
    assert {t: ours[t] for t in ("metrics", "rollouts", "samples")} == {
        t: theirs[t] for t in ("metrics", "rollouts", "samples")
    }
    assert len(summary["scores"]) == 6
    assert not has_beliefs(rows_of(folder, "evaluate-cold-start"))
    assert has_beliefs(rows_of(folder, "evaluate-iteration-2"))


class Wordless(ScriptedSampler):
    """Writes, and cannot tell probabilities."""

    def label_probabilities(self, places, labels):
        raise UnsupportedError("scripted without weights cannot tell the probability of a label")


@pytest.mark.parametrize("asked", [True, False])
def test_a_sampler_that_cannot_tell_probabilities_is_scored_without_and_it_is_said(
    tiny_model: Path, data: Path, tmp_path: Path, asked: bool
) -> None:
    config = settings(tiny_model, data, f"evaluation.beliefs={str(asked).lower()}")
    held = [c for c in load_conversations(config.data) if c.split == "test"]
    with Store(tmp_path / "s.sqlite") as store:
        sampler = Wordless(["E: joy\nS: joy\nR: Yes."])
        note = evaluate(sampler, held, store, "e", config.evaluation, config.prompt)
        rows = store.predictions("e")
    told = "label probabilities are left out: scripted without weights cannot tell the probability of a label"
    assert note == (told if asked else "")
    assert len(rows) == 15 and not has_beliefs(rows) and all(r["predicted"] for r in rows)
    probable = config.evaluation.model_copy(update={"span": "probabilities"})
    with Store(tmp_path / "p.sqlite") as store, pytest.raises(UnsupportedError, match="without weights"):
        evaluate(Wordless(["E: joy"]), held, store, "e", probable, config.prompt)
