"""data.exclude_overlap in whole runs of a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from selfemo.evaluation.jobs import evaluate_model
from selfemo.evaluation.summary import finish
from tests.conftest import toy_conversations, write_jsonl
from tests.support.runs import Silent, Watcher, evolve, settings


def test_a_run_leaves_out_what_its_data_share(tiny_model: Path, tmp_path: Path) -> None:
    """One scene is in both splits: it is told, recorded, not trained on, and known to a later evaluation."""
    scene = toy_conversations(1)[0]
    longer = [replace(t, text=f"{t.text} That is what I wanted to say.") for t in scene.turns]
    shared = replace(scene, id="shared", turns=tuple(longer))
    file = tmp_path / "s.jsonl"
    held = [*toy_conversations(2, "test"), replace(shared, id="held", split="test")]
    write_jsonl(file, [*toy_conversations(4), shared, *held])
    small = ("flywheel.iterations=0", "sft.epochs=1")
    trained = {}
    for exclude in ("no", "train", "eval"):
        watcher = Watcher()
        chosen = settings(tiny_model, file, *small, f"data.exclude_overlap={exclude}")
        with evolve(tmp_path / exclude, chosen, watcher) as run:
            part = finish(run)["overlap"]
            scored = run.store.predictions("evaluate-cold-start")
            trained[exclude] = {p.conversation_id for _, p in run.store.samples()}
        assert part["line"] in watcher.said and f"1 of {len(held)} jsonl" in part["line"]
        record = json.loads((tmp_path / exclude / "overlap.json").read_text())
        assert record["left_out"] == {"no": [], "train": ["shared"], "eval": ["held"]}[exclude]
        assert len(record["copies"]) == len(longer)
        assert ("held" in {r["conversation"] for r in scored}) == (exclude != "eval")
        clean = {c: by["jsonl"]["conversations"] for c, by in part["scores"].items()}
        assert clean == ({"start": 2, "cold-start": 2} if exclude == "no" else {})
    assert (
        trained["no"] == trained["eval"] == trained["train"] | {"shared"} and "shared" not in trained["train"]
    )
    for exclude, overlapping in (("no", ["held"]), ("train", []), ("eval", [])):
        found = evaluate_model(str(tmp_path / exclude), [str(file)], None, [], [], Silent()).overlap
        assert found is not None and found["conversations"] == overlapping
