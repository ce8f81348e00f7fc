"""The ablation of table 2 end to end on a tiny model, and the statistics over seeds."""

from __future__ import annotations

import csv
import json
import sqlite3
import tomllib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from selfemo import experiments
from selfemo.config import load
from selfemo.errors import ConfigError, StoreError
from selfemo.experiments import ablate, arms_for, over_seeds, paired_over_seeds
from selfemo.progress import Quiet
from selfemo.stopping import Stopped, StopRequest
from selfemo.tables import cross, measured
from tests.conftest import toy_conversations
from tests.model.test_pipeline import SETTINGS, write_jsonl

SMALL = ("flywheel.iterations=1", "flywheel.prompts=18", "evaluation.resamples=50")


@pytest.fixture(scope="module")
def config(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = tmp_path_factory.mktemp("data") / "toy.jsonl"
    write_jsonl(data, [*toy_conversations(8), *toy_conversations(3, "test")])
    return [*SETTINGS.split(), f'model.id="{tiny_model}"', f'data.sources=["{data}"]', *SMALL]


@pytest.fixture(scope="module")
def ablated(config: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in the middle of its second run, then gone on with."""
    out = tmp_path_factory.mktemp("ablation") / "a"
    stop = StopRequest()

    class Asking(Quiet):
        def bar(self, label: str, total: int):
            @contextmanager
            def bar():
                def advance(n: int = 1, note: str = "") -> None:
                    begun = (out / "vanilla-grpo" / "seed-0" / "store.sqlite").exists()
                    stop.asked = stop.asked or (begun and label == "iteration-1-rl")

                yield advance

            return bar()

    with pytest.raises(Stopped):
        ablate([], config, out, 2, Asking(), stop=stop)
    assert (out / "full" / "seed-0" / "summary.json").exists()
    assert not (out / "ablation.json").exists()
    ablate([], config, out, 2, Quiet())
    return out


@pytest.mark.slow
def test_each_arm_is_what_it_says(ablated: Path) -> None:
    result = json.loads((ablated / "ablation.json").read_text())
    assert [a["name"] for a in result["arms"]] == ["full", "vanilla-grpo", "original-only"]
    stores = {a: sqlite3.connect(ablated / a / "seed-1" / "store.sqlite") for a in
              ("full", "vanilla-grpo", "original-only")}  # fmt: skip

    def one(arm: str, query: str) -> int:
        return stores[arm].execute(query).fetchone()[0]

    for arm in stores:  # the same budget, data and seed
        assert one(arm, "SELECT count(DISTINCT step || prompt) FROM rollouts") == 18
        assert one(arm, "SELECT count(*) FROM predictions") == 3 * 15
        settings = tomllib.loads((ablated / arm / "seed-1" / "config.toml").read_text())
        assert settings["seed"] == 1
    cold = "SELECT group_concat(prompt || text) FROM predictions WHERE evaluation='evaluate-cold-start'"
    assert one("full", cold) == one("vanilla-grpo", cold) == one("original-only", cold)
    assert one("full", "SELECT count(*) FROM prompts WHERE parent IS NOT NULL") > 0
    assert one("original-only", "SELECT count(*) FROM prompts WHERE parent IS NOT NULL") == 0
    after = "SELECT count(*) FROM metrics WHERE stage = 'iteration-1-refit'"
    assert one("original-only", after) == 0 < one("full", after)
    lambdas = [
        {json.loads(r)["lambda"] for (r,) in db.execute(
            "SELECT record FROM metrics WHERE stage = 'iteration-1-rl'")}
        for db in stores.values()
    ]  # fmt: skip
    assert max(lambdas[0]) > 0 and lambdas[1] == lambdas[2] == {0.0}


@pytest.mark.slow
def test_its_figures_follow_from_its_runs(ablated: Path) -> None:
    result = json.loads((ablated / "ablation.json").read_text())
    values = {}
    for arm in result["arms"]:
        found = []
        for run in arm["runs"]:
            summary = json.loads((ablated / run["folder"] / "summary.json").read_text())
            assert (
                run["scores"]["jsonl"]["mean_r1"]
                == summary["scores"]["iteration-1"]["jsonl"]["mean_r1"]
            )
            found.append(run["scores"]["jsonl"]["mean_r1"][0])
        values[arm["name"]] = found
        assert arm["scores"]["jsonl"]["mean_r1"]["mean"] == pytest.approx(np.mean(found))
    for arm in result["arms"][1:]:
        against = arm["against_full"]["jsonl"]["mean_r1"]
        delta = np.subtract(values[arm["name"]], values["full"])
        assert against["mean"] == pytest.approx(delta.mean())
        for run, d in zip(arm["runs"], delta, strict=True):
            within = run["against_full"]["jsonl"]
            assert within["prompts"] == 15 and within["mean_r1"]["difference"][0] == pytest.approx(
                d
            )
    rows = list(csv.DictReader((ablated / "ablation.csv").open()))
    assert len(rows) == 3 * 2 * 4
    assert {
        float(r["value"]) for r in rows if r["arm"] == "full" and r["measure"] == "mean_r1"
    } == set(values["full"])
    text = (ablated / "ablation.md").read_text()
    assert "w/o SELF-GRPO" in text and "54.11" in text and "original-only" in text


@pytest.mark.slow
def test_what_is_done_is_not_run_again_and_other_settings_are_refused(
    ablated: Path, config: list[str], monkeypatch
) -> None:
    before = (ablated / "ablation.json").read_text()

    def never(*args, **kwargs):
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr(experiments, "evolve", never)
    ablate([], config, ablated, 2, Quiet())
    assert (ablated / "ablation.json").read_text() == before
    one = ablate([], config, ablated, 1, Quiet(), only=["vanilla-grpo"])
    assert [a["name"] for a in one["arms"]] == ["full", "vanilla-grpo"]
    assert one["arms"][1]["against_full"]["jsonl"]["accuracy"]["p_value"] is None
    ablate([], config, ablated, 2, Quiet())
    with pytest.raises(StoreError, match=r"other settings \(grpo.lr\)"):
        ablate([], [*config, "grpo.lr=0.5"], ablated, 2, Quiet())
    kept = sorted(p.name for p in (ablated / "full" / "seed-0" / "checkpoints").iterdir())
    assert kept == ["iteration-1"]


@pytest.mark.slow
def test_its_runs_are_rows_of_the_tables(ablated: Path) -> None:
    found = measured(ablated / "full" / "seed-0")
    assert found.name == "seed-0 iteration-1" and found.trained_on == ("jsonl",)
    _, rows = cross([ablated / "full" / "seed-0"])
    assert rows[0][0] == "jsonl" and "/" in rows[0][2]


def test_arms_of_a_configuration() -> None:
    assert [a.name for a in arms_for(load())] == ["full", "vanilla-grpo", "original-only"]
    with_experts = arms_for(load([], ["sft.samples=x.parquet", "prompt.reasoning=brief"]))
    assert [a.name for a in with_experts][:2] == ["full", "gold-cold-start"]
    gold = load([], ["sft.samples=x.parquet", "prompt.reasoning=brief", *with_experts[1].overrides])
    assert gold.sft.samples == "" and gold.prompt.reasoning == "none"
    for spoiled in ("grpo.lam_max=0", "selfplay.max_turns=1", "selfplay.synthetic_share=0"):
        with pytest.raises(ConfigError, match="full arm"):
            arms_for(load([], [spoiled]))
    with pytest.raises(ConfigError, match="has lambda 0 throughout"):
        arms_for(load([], ["flywheel.prompts=64"]))
    with pytest.raises(ConfigError, match="no arm 'gold-cold-start' here"):
        ablate([], [], Path("nowhere"), 1, Quiet(), only=["gold-cold-start"])


def test_statistics_over_seeds_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 8):
        a, b = rng.random(n), rng.random(n)
        found = paired_over_seeds(a.tolist(), b.tolist())
        theirs = stats.ttest_rel(b, a)
        assert found["p_value"] == pytest.approx(theirs.pvalue)
        assert found["interval"] == pytest.approx(list(theirs.confidence_interval(0.95)))
        assert over_seeds(a.tolist())["sd"] == pytest.approx(a.std(ddof=1))
    assert over_seeds([0.5]) == {"mean": 0.5, "sd": None, "interval": None}
    assert paired_over_seeds([0.1, 0.2], [0.1, 0.2])["p_value"] == 1.0
