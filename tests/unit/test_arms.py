"""The arm `sft-only`: the samples that it takes in place of RL are new ones, and repeated ones are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfemo.config import Config, load
from selfemo.evaluation.experiments.arms import config_of, read_arm
from selfemo.method.types import Completion, Place, Prompt
from selfemo.runs.inputs import cold_start_samples, count_seen, learned_from, run_inputs, seen_samples
from selfemo.runs.store import STORE_FILE, Store
from selfemo.stages.flywheel import add_sample

# 2 iterations of 10 prompts, 8 completions each: RL scores 160.
BUDGET = ["flywheel.prompts=10", "flywheel.iterations=2", "sampling.group_size=8"]
ARM = read_arm("sft-only")


def samples(config: Config) -> list[tuple[Prompt, Completion]]:
    train = run_inputs(config)[1]
    seen = seen_samples(train, config)
    return cold_start_samples(train, config.sft, config.prompt.reasoning, config.seed, seen=seen)[0]


def ids(config: Config) -> list[str]:
    return [p.id for p, _ in samples(config)]


@pytest.fixture(scope="module")
def all_ids() -> list[str]:
    found = ids(load([], ["seed=3"]))
    assert len(found) > 400
    return found


def sft_only(*overrides: str) -> tuple[Config, list[str]]:
    said: list[str] = []
    return config_of(ARM, [], [*BUDGET, *overrides], 3, said.append), said


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_a_model_with_its_cold_start_behind_it_gets_new_samples(share: float) -> None:
    """The first 100 of the seed's order were seen: before, the arm began with them again."""
    settings = ["sft.epochs=0", "sft.max_samples=100", f"sft.max_emotion_share={share}"]
    config, said = sft_only(*settings)
    before = ids(load([], [*settings, "seed=3"]))
    assert (config.sft.epochs, config.sft.max_samples, config.sft.seen) == (1, 160, 100)
    assert config.flywheel.iterations == 0
    got = ids(config)
    assert len(before) == 100 and len(set(got)) == 160 and not set(got) & set(before)
    assert said == ["sft-only, seed 3: of 160 more samples 0 are repeated, the others new"]


def test_what_the_data_lack_is_repeated_and_told(all_ids: list[str]) -> None:
    n = len(all_ids)
    config, said = sft_only("sft.epochs=0", f"sft.max_samples={n - 50}")
    got = ids(config)
    assert got[:50] == all_ids[n - 50 :], "the 50 that are new come first"
    assert got[50:] == all_ids[:110]
    assert "of 160 more samples 110 are repeated" in said[0]
    config, said = sft_only("sft.epochs=0")
    assert (config.sft.seen, config.sft.epochs, len(ids(config))) == (n, 1, 160)
    assert "160 are repeated" in said[0], "the cold start took all"
    # More passes than the data have samples.
    config, said = sft_only("sft.epochs=0", "sft.max_samples=100", "flywheel.prompts=1000")
    assert (len(ids(config)), config.sft.epochs) == (n, -(-16000 // n))
    assert f"of 16000 more samples {16000 - (n - 100)} are repeated" in said[0]


def test_an_arm_with_a_cold_start_of_its_own(all_ids: list[str]) -> None:
    n = len(all_ids)
    config, said = sft_only("sft.epochs=4", "sft.max_samples=40")
    assert (config.sft.epochs, config.sft.max_samples, config.sft.seen) == (4, 200, 0)
    assert ids(config) == all_ids[:200] and " 0 are repeated" in said[0]
    config, said = sft_only("sft.epochs=4", f"sft.max_samples={n - 10}")
    assert (len(ids(config)), config.sft.epochs) == (n, -(-4 * (n + 150) // n))
    assert "150 are repeated" in said[0]
    config, said = sft_only("sft.epochs=4")
    assert config.sft.epochs == -(-(4 * n + 160) // n) and "160 are repeated" in said[0]


def test_the_models_own_run_says_what_it_has_seen(tmp_path: Path, all_ids: list[str]) -> None:
    """It may have another seed, so that the first samples of this one are not those."""
    model = tmp_path / "model"
    model.mkdir()
    assert learned_from(str(model)) is None
    other = samples(load([], ["sft.max_samples=120", "seed=8"]))
    with Store(tmp_path / "model.run" / STORE_FILE) as store, store.transaction():
        store.add_prompts([p for p, _ in other], Place("cold-start"))
        for p, c in other:
            add_sample(store, p, c, 1.0, Place("cold-start"), "gold")
    known = {p.id for p, _ in other}
    assert {f"cold/{i}" for i in learned_from(str(model)) or ()} == known
    assert known & set(all_ids[:160]), "the order of this seed alone would take some again"
    config, said = sft_only("sft.epochs=0", "sft.max_samples=100", f'model.id="{model}"')
    got = samples(config)
    assert not {p.id for p, _ in got} & known and " 0 are repeated" in said[0]
    assert count_seen(got, seen_samples(run_inputs(config)[1], config)) == 0
