"""Training: the `Trainer` protocol and the engines that implement it, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from selfemo.config import Config
from selfemo.errors import ConfigError
from selfemo.progress import StopRequest
from selfemo.training.protocol import Trainer

if TYPE_CHECKING:
    from selfemo.training.rollouts import VllmRollouts


def states_folder(folder: Path, stage: str) -> Path:
    """Where the local trainer keeps the training states of a stage of the run in `folder`."""
    return folder / "checkpoints" / f".{stage}-partial"


def _local(config: Config, folder: Path, stop: StopRequest) -> Trainer:
    from selfemo.training.local import LocalTrainer

    states, rollouts = partial(states_folder, folder), open_rollouts(config)
    return LocalTrainer(config.model, config.sampling.temperature, states, config.save.keep_states, rollouts)


def open_rollouts(config: Config) -> VllmRollouts | None:
    """Who samples in RL beside the policy, by sampling.backend; errors as `VllmRollouts`."""
    if config.sampling.backend == "local":
        return None
    from selfemo.training.rollouts import VllmRollouts

    return VllmRollouts(config.sampling, config.longest)


def _verl(config: Config, folder: Path, stop: StopRequest) -> Trainer:
    from selfemo.training.local import LocalTrainer
    from selfemo.training.verl.trainer import VerlTrainer

    here = LocalTrainer(config.model, config.sampling.temperature, lambda stage: folder)
    return VerlTrainer(config, folder, stop, here)


TRAINERS: dict[str, Callable[[Config, Path, StopRequest], Trainer]] = {"local": _local, "verl": _verl}


def check_engine(name: str) -> None:
    """Raises: ConfigError, where there is no engine of this name."""
    if name not in TRAINERS:
        raise ConfigError(f"engine = {name!r}: valid are {', '.join(TRAINERS)}")


def open_trainer(config: Config, folder: Path, stop: StopRequest) -> Trainer:
    """The trainer of config.engine for the run in `folder` (ConfigError: none for these settings)."""
    check_engine(config.engine)
    return TRAINERS[config.engine](config, folder, stop)
