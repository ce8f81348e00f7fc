"""Names in registries: an unknown one is refused with the names that exist, before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.config import load
from selfemo.errors import ConfigError, DataError, UnsupportedError
from selfemo.method.rewards import PRIMARY, primary_reward, secondary_rewards
from selfemo.models.generation import open_sampler
from selfemo.progress import StopRequest
from selfemo.training import open_trainer
from tests.conftest import MELD, dist


@pytest.mark.parametrize(("key", "names"), [("primary", "iou, exact"), ("secondary", "count, weighted")])
def test_an_unknown_reward_is_a_mistake_in_the_configuration(key: str, names: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward\.{key}: unknown; valid are {names} \(got 'f1'\)"):
        load([], [f"reward.{key}=f1"])


def test_an_unknown_reward_never_becomes_another_one() -> None:
    with pytest.raises(ConfigError, match=r"reward\.primary = 'Exact'.*valid are iou, exact"):
        primary_reward(dist(joy=1), dist(joy=1), MELD, "Exact")
    with pytest.raises(ConfigError, match=r"reward\.secondary = 'weight'.*valid are count, weighted"):
        secondary_rewards([dist(joy=1)], MELD, "weight")


def test_a_reward_is_one_line_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """R1 by a reward of one's own, by its name in the settings: here 0.25 for all that parses."""
    monkeypatch.setitem(PRIMARY, "quarter", lambda predicted, target, labels: 0.25 * (predicted is not None))
    kind = load([], ["reward.primary=quarter"]).reward.primary
    assert [primary_reward(p, dist(joy=1), MELD, kind) for p in (dist(fear=1), None)] == [0.25, 0]


def test_an_unknown_engine_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="engine = 'trl': valid are local, verl"):
        open_trainer(load([], ["engine=trl"]), tmp_path, StopRequest())
    for command in (["evolve", "--out"], ["train", "builtin:smollm2-135m", "--out"], ["sft", "--out"]):
        out = tmp_path / "run"
        done = CliRunner().invoke(app, [*command, str(out), "-c", "quickstart", "--set", "engine=trl"])
        assert isinstance(done.exception, ConfigError) and "valid are local, verl" in str(done.exception)
        assert not list(tmp_path.iterdir())


def test_an_unknown_backend_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UnsupportedError, match="no backend 'vlm'; there are: local, endpoint, scripted"):
        open_sampler("vlm:model")


def test_an_unknown_data_set_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["data", "check", f"melt:{tmp_path}"])
    assert isinstance(done.exception, DataError)
    assert "meld" in str(done.exception) and "emorynlp" in str(done.exception)
