"""Checks of a run before anything is made: data, model, extras, disk, and the time that it will take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selfemo.config import Config
from selfemo.data.splits import held_out
from selfemo.errors import EngineError, StoreError
from selfemo.extras import require
from selfemo.method.types import Conversation
from selfemo.models.devices import devices
from selfemo.models.references import ModelReference
from selfemo.progress import Reporter, StopRequest
from selfemo.runs import costs
from selfemo.runs.doctor import check_disk, estimate, lengths, pick_machine
from selfemo.runs.folder import must_be_new
from selfemo.runs.inputs import (
    HOLD_OUT,
    RunInputs,
    cold_start_samples,
    run_inputs,
    seen_samples,
    with_hold_out,
)
from selfemo.runs.settings import check_reply_reader, find_checkpoint, named_readers
from selfemo.training import check_engine, open_trainer


def check_start(
    config: Config, folder: Path, *, cold_start: bool = True, say: Callable[[str], None] | None = None
) -> tuple[Config, RunInputs]:
    """Check what a new run needs: nothing is loaded on a device, and nothing is written.

    What is checked in a second comes first, the engine's own checks, which load torch, last.

    Args:
        cold_start: the run has one, whose samples are checked too.
        say: told of what is no error.

    Returns:
        the configuration, with data.hold_out where the data name no split, and the run's inputs.

    Raises:
        StoreError: the folder holds a run already.
        ConfigError, DataError: data or samples that are missing, broken or empty.
        EngineError, MissingExtraError: an engine, a model or a dependency that cannot be had.
    """
    must_be_new(folder)
    check_engine(config.engine)
    find_checkpoint(config.model.id)
    if config.model.lora is not None:
        require("model.lora", "peft")
    config = with_hold_out(config, say)
    inputs = run_inputs(config)
    _held_out(config, inputs)
    if cold_start:
        sft, reasoning = config.sft, config.prompt.reasoning
        not_trained_on, seen = inputs.overlap.not_trained_on, seen_samples(inputs.training, config)
        cold_start_samples(inputs.training, sft, reasoning, config.seed, not_trained_on, seen)
    labels = list(dict.fromkeys(c.label_set for c in inputs.training))
    for key, reference in named_readers(config).items():
        note = check_reply_reader(key, reference, labels, rewards=True)
        if note and say:
            say(note)
    open_trainer(config, folder, StopRequest())  # it loads no model yet
    return config, inputs


def _held_out(config: Config, inputs: RunInputs) -> list[Conversation]:
    data = config.data
    return held_out(inputs.conversations, data.eval_split, data.eval_conversations, 0, data.eval_half)


@dataclass(frozen=True)
class Expected:
    """A rough estimate of a run: hours; GiB of memory, of memory that is there (0: not known), of disk."""

    hours: float
    memory: float
    free: float
    disk: float

    @property
    def time(self) -> str:
        return f"{max(1, round(60 * self.hours))} min" if self.hours < 1.5 else f"{self.hours:,.0f} hours"

    def __str__(self) -> str:
        there = f" of {self.free:.1f}" if self.free else ""
        return f"{self.time}, {self.memory:.1f}{there} GiB of memory, {self.disk:.1f} GiB of disk"


def expected(
    config: Config, inputs: RunInputs, *, cold_start: bool = True, iterations: int | None = None
) -> Expected | None:
    """What a run will take by `selfemo doctor`'s estimate; None for a model whose sizes are not here.

    Args:
        cold_start: there is one.
        iterations: how many, where they are not config.flywheel.iterations.
    """
    if iterations is not None:
        config = config.model_copy(
            update={"flywheel": config.flywheel.model_copy(update={"iterations": iterations})}
        )
    reference = ModelReference.parse(config.model.id)
    try:
        shape = costs.find_shape(reference.text if reference.text in costs.KNOWN else reference.folder())
    except EngineError:
        return None
    held = _held_out(config, inputs)
    sizes = lengths([*inputs.training, *held], config)
    machine = pick_machine("", config.engine, devices(), 0, config)
    told = estimate(config, shape, sizes, machine, "verl" if config.engine == "verl" else "local")
    hours = told["hours"] * config.flywheel.iterations + told["hours_before"] * cold_start
    disk = sum(told["disk_gib"].values())
    return Expected(hours, told["peak_gib"], machine.memory / costs.GIB, disk)


def check_run(
    config: Config,
    folder: Path,
    reporter: Reporter,
    *,
    cold_start: bool = True,
    iterations: int | None = None,
) -> tuple[Config, RunInputs, Expected | None]:
    """`check_start`, the disk, and what the run will take (`expected`); says what it held out."""
    checked, inputs = check_start(config, folder, cold_start=cold_start, say=reporter.say)
    if checked.data.hold_out != config.data.hold_out:
        held = sum(c.split == checked.data.eval_split for c in inputs.conversations)
        reporter.say(
            f"the data name no split: {held} of {len(inputs.conversations)} conversations are held out "
            f"(data.hold_out = {HOLD_OUT}), the others are to train on"
        )
    if need := expected(checked, inputs, cold_start=cold_start, iterations=iterations):
        check_room(folder, need, reporter)
    return checked, inputs, need


def check_room(folder: Path, need: Expected, reporter: Reporter) -> None:
    """Check that a run's folder can be written (StoreError); say where the disk may have too little room.

    That is no error: need is an estimate, and a run that a full disk stops can be resumed.
    """
    if (found := check_disk(folder, 0)).state != "ok":
        raise StoreError(f"{found.found}; {found.get}")
    if (found := check_disk(folder, need.disk * costs.GIB)).state != "ok":
        reporter.say(f"warning: {found.found}; {found.get}")
