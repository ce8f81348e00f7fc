"""Self-play with an S that is given, in runs of a tiny model: what is kept, and resume."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from selfemo.runs.folder import RunFolder
from selfemo.seeds import derive
from selfemo.stages.selfplay import balanced_emotions
from tests.conftest import MELD
from tests.support.runs import Silent, Watcher, assert_same_run, begun, evolve, settings

STAGE = "iteration-1-rl"
CAUSAL = (
    "grpo.credit=causal", "grpo.mini_batch=6", "grpo.lr=1e-3", "save.every_steps=1", "flywheel.iterations=1",
    "model.threads=1",
)  # fmt: skip


def rows(run: Path, query: str, *args: Any) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(run / "store.sqlite")) as db:
        db.row_factory = sqlite3.Row
        return db.execute(query, args).fetchall()


def whole_and_resumed(finished: Path, tmp_path: Path, config: Any) -> RunFolder:
    """A whole run from the beginning of RL; one that is stopped after its second round ends as it did."""
    whole = evolve(begun(finished, STAGE, tmp_path / "whole", config), None, Silent())
    stopped, n = begun(finished, STAGE, tmp_path / "stopped", config), 0

    def stop_in_rl(stage: str, note: str) -> None:
        nonlocal n
        n += stage == STAGE and bool(note)
        if n == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(stopped, None, Watcher(on_advance=stop_in_rl))
    evolve(stopped, None, Silent()).close()
    assert_same_run(stopped, tmp_path / "whole")
    return whole


@pytest.mark.slow
def test_a_run_is_given_its_self_emotions(
    finished: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    config = settings(tiny_model, data, *CAUSAL, "selfplay.self_emotion=balanced")
    with whole_and_resumed(finished, tmp_path, config):
        pass
    run, kept = tmp_path / "whole", Counter[str]()
    for step in range(3):
        best = rows(
            run, "SELECT * FROM rollouts WHERE stage = ? AND step = ? AND best = 1 ORDER BY id", STAGE, step
        )
        begun_ = [r for r in best if "\nS: " in r["text"]]
        assert len(begun_) > 2
        given = balanced_emotions([MELD] * len(begun_), derive(config.seed, STAGE, step))
        assert len(set(given)) == len(given), "at most six of seven"
        for r, label in zip(begun_, given, strict=True):
            assert r["text"].split("\n")[1:][0] == f"S: {label}" and r["text"].split("\n")[2].startswith("R:")
            if r["gate"] != "unparsed":
                assert json.loads(r["self_emotion"]) == {label: 1.0}
                kept[label] += 1
            assert r["mean_logprob"] < 0 < r["entropy"], "those of the sampled tokens"
    assert len(kept) > 3
    following = rows(run, "SELECT p.target, r.self_emotion FROM prompts p JOIN rollouts r "
                          "ON r.prompt = p.parent AND r.best = 1 WHERE p.stage = ?", STAGE)  # fmt: skip
    assert following and all(r["target"] == r["self_emotion"] for r in following)
