"""The control arms in real runs of a tiny model: what each takes away, and that nothing else differs."""

from __future__ import annotations

import json
import sqlite3
import tomllib
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from selfemo.config import load
from selfemo.evaluation.experiments.ablate import ablate
from selfemo.progress import Quiet
from selfemo.reports.ablation import write_tables
from selfemo.training.engine import SftItem
from selfemo.training.protocol import RlItem
from tests.conftest import Built
from tests.support.engines import assert_same_gradients, engine, gradients
from tests.support.runs import SETTINGS, Silent, Watcher, assert_same_run, begun, evolve, settings

pytestmark = pytest.mark.slow

ARMS = ["replay-only", "placebo", "same-labels", "original-only"]
SMALL = ("flywheel.replay=0.3", "evaluation.resamples=20")


class Telling(Quiet):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def out(tiny_model: Path, data: Path, built_once: Built) -> Path:
    """The full arm and the controls on one seed, over two iterations; read only."""

    def fill(folder: Path) -> None:
        own = [*SETTINGS.split(), f'model.id="{tiny_model}"', f'data.sources=["{data}"]', *SMALL]
        reporter = Telling()
        ablate([], own, folder, 1, reporter, only=ARMS, present=write_tables)
        (folder / "said.json").write_text(json.dumps(reporter.said))

    return built_once("controls", fill)


def rows(out: Path, arm: str, query: str, *args: Any) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(out / arm / "seed-0" / "store.sqlite")) as db:
        db.row_factory = sqlite3.Row
        return db.execute(query, args).fetchall()


def info(out: Path, arm: str, stage: str) -> dict[str, Any]:
    return json.loads(rows(out, arm, "SELECT info FROM stages WHERE name = ?", stage)[0]["info"])


def steps(out: Path, arm: str, like: str) -> Counter[str]:
    return Counter(r["stage"] for r in rows(out, arm, "SELECT stage FROM metrics WHERE stage LIKE ?", like))


def test_replay_only_differs_from_the_full_arm_in_the_samples_of_the_refit_alone(out: Path) -> None:
    rl = "SELECT prompt, text, r1, advantage FROM rollouts WHERE stage = 'iteration-1-rl' ORDER BY id"
    assert [tuple(r) for r in rows(out, "full", rl)] == [tuple(r) for r in rows(out, "replay-only", rl)]
    full, mine = (info(out, a, "iteration-1-refit") for a in ("full", "replay-only"))
    assert full["used"] > 0 and "replayed" not in full
    assert (mine["used"], mine["left_out"]) == (0, full["used"])
    assert (mine["samples"], mine["steps"]) == (full["samples"], full["steps"])
    assert mine["in_place_of_selfplay"] == full["used"]
    assert mine["replayed"] + mine["repeated"] == mine["samples"]
    assert steps(out, "replay-only", "iteration-1-refit") == steps(out, "full", "iteration-1-refit")
    weights = [
        (out / a / "seed-0" / "checkpoints" / "iteration-2" / "model.safetensors").read_bytes()
        for a in ("full", "replay-only")
    ]
    assert weights[0] != weights[1]
    # Of the second iteration on, what the full refit would replay has self-play in it, this one has not.
    gold = rows(out, "replay-only", "SELECT count(*) AS n FROM samples WHERE source != 'selfplay'")[0]["n"]
    second = info(out, "replay-only", "iteration-2-refit")
    assert second["replayed"] <= gold and second["in_place_of_selfplay"] >= second["left_out"] > 0
    assert second["samples"] == second["replayed"] + second["repeated"]


def test_placebo_gives_each_target_to_another_episode_of_its_round(out: Path) -> None:
    children = rows(out, "placebo", "SELECT * FROM prompts WHERE parent IS NOT NULL")
    by_id = {c["id"]: c for c in children}
    sources: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for r in rows(out, "placebo", "SELECT stage, step, record FROM metrics WHERE stage LIKE '%-rl'"):
        record = json.loads(r["record"])
        made = {c["id"] for c in children if (c["stage"], c["step"]) == (r["stage"], r["step"])}
        assert set(record["targets_from"]) == set(record["targets_from"].values()) == made
        assert all((a == b) == (len(made) == 1) for a, b in record["targets_from"].items())
        sources |= record["targets_from"]
        counts.update(record["targets"])
    assert sources.keys() == by_id.keys() and len(by_id) > 5
    moved = 0
    for c in children:
        best = rows(
            out, "placebo",
            "SELECT self_emotion, reply FROM rollouts "
            "WHERE prompt = ? AND stage = ? AND step = ? AND best = 1",
            c["parent"], c["stage"], c["step"],
        )[0]  # fmt: skip
        (_, said, declared) = json.loads(c["history"])[-1]
        # The history keeps what was declared; the target is what the episode named in the record declared.
        assert (said, declared) == (best["reply"], json.loads(best["self_emotion"]))
        other = json.loads(by_id[sources[c["id"]]]["history"])[-1][2]
        assert json.loads(c["target"]) == other
        moved += other != declared
    assert moved > 0
    found = [info(out, "placebo", f"iteration-{i}-rl") for i in (1, 2)]
    for key in ("targets_shuffled", "targets_own", "targets_same_top"):
        assert sum(f[key] for f in found) == counts[key]
    assert counts["targets_shuffled"] + counts["targets_own"] == len(children)
    said = [s for s in json.loads((out / "said.json").read_text()) if "kept their own target" in s]
    assert len(said) == sum(bool(f["targets_own"]) for f in found)


def test_same_labels_learns_from_the_labels_that_original_only_draws(out: Path) -> None:
    drawn = (
        "SELECT r.stage, r.step, r.prompt, p.target, count(*) AS members FROM rollouts r "
        "JOIN prompts p ON p.id = r.prompt WHERE r.stage LIKE '%-rl' GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    labels, rewards = (rows(out, a, drawn) for a in ("same-labels", "original-only"))
    assert [tuple(r)[:4] for r in labels] == [tuple(r)[:4] for r in rewards], "round by round"
    assert len(labels) == 2 * 18
    assert {r["members"] for r in labels} == {1} and {r["members"] for r in rewards} == {4}
    assert steps(out, "same-labels", "%-rl") == steps(out, "original-only", "%-rl")
    for i in (1, 2):
        mine, theirs = (
            info(out, a, f"iteration-{i}-rl") for a in ("same-labels", "original-only")
        )  # fmt: skip
        assert mine["labels"] == 18 and mine["labels_digest"] == theirs["labels_digest"]
        assert info(out, "same-labels", f"iteration-{i}-refit")["refit"].startswith("none")
    arms = {a["name"]: a for a in json.loads((out / "ablation.json").read_text())["arms"]}
    (run,) = arms["same-labels"]["runs"]
    assert run["same_labels"] == {"arm": "original-only", "equal": True, "common": 36, "draws": [36, 36]}
    assert run["labels"] == arms["original-only"]["runs"][0]["labels"]
    assert run["labels"]["labels"] == 36
    full = arms["full"]["runs"][0]["labels"]
    assert full["labels"] < 36, "self-play takes the place of originals"
    said = json.loads((out / "said.json").read_text())
    line = "same-labels, seed 0: the same labels as original-only (36 draws against 36, 36 in common)"
    assert line in said and line in (out / "ablation.md").read_text()
    settings_ = tomllib.loads((out / "same-labels" / "seed-0" / "config.toml").read_text())
    assert settings_["grpo"]["reward_weight"] == 0


def test_same_labels_is_cross_entropy_on_the_gold_lines(out: Path, tiny_model: Path) -> None:
    """Its gradient is that of supervised training on the same lines, where a round has one mini-batch."""
    grpo = load([out / "same-labels" / "seed-0" / "config.toml"], ["grpo.kl_coef=0"]).grpo
    items = [([5, 6, 7], [20, 21]), ([8, 9, 10, 11], [22, 23, 24])]
    by_labels, by_sft = engine(tiny_model), engine(tiny_model)
    by_labels.rl_backward([RlItem(p, e, grpo.gold_weight, f"p{k}") for k, (p, e) in enumerate(items)], grpo)
    by_sft.sft_backward([SftItem(p, e, [1.0] * len(e), f"p{k}") for k, (p, e) in enumerate(items)], 4096)
    assert_same_gradients(*(gradients(e.policy.model) for e in (by_labels, by_sft)))
    records = rows(out, "same-labels", "SELECT record FROM metrics WHERE stage LIKE '%-rl' ORDER BY id")
    norms = [json.loads(r["record"])["grad_norm"] for r in records]
    assert len(norms) == 6 and min(norms) > 0


def test_labels_are_not_compared_with_an_arm_that_is_not_run(out: Path, tiny_model: Path, data: Path) -> None:
    own = [*SETTINGS.split(), f'model.id="{tiny_model}"', f'data.sources=["{data}"]', *SMALL]
    reporter = Telling()
    before = (out / "ablation.json").read_bytes()
    try:
        found = ablate([], own, out, 1, reporter, only=["same-labels"])
    finally:
        (out / "ablation.json").write_bytes(before)
    assert "same_labels" not in found["arms"][1]["runs"][0]
    assert any("add --arm original-only" in s for s in reporter.said)


@pytest.mark.parametrize(
    ("stage", "more"),
    [("iteration-1-rl", "selfplay.targets=shuffled"), ("iteration-1-refit", "flywheel.refit_on=replay")],
)
def test_a_control_that_is_interrupted_resumes_to_the_same_run(
    finished: Path, tiny_model: Path, data: Path, tmp_path: Path, stage: str, more: str
) -> None:
    config = settings(
        tiny_model, data, "save.every_steps=1", "flywheel.iterations=1", "flywheel.replay=0.3", more
    )
    evolve(begun(finished, stage, tmp_path / "whole", config), None, Silent()).close()
    folder, n = begun(finished, stage, tmp_path / "torn", config), 0

    def interrupt(at: str, note: str) -> None:
        nonlocal n
        n += at == stage
        if n == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(folder, None, Watcher(on_advance=interrupt))
    evolve(folder, None, Silent()).close()
    assert_same_run(folder, tmp_path / "whole")
