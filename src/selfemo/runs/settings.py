"""Settings and weights to use a model with: those of the run that it comes from, where it comes from one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from selfemo.config import Config, load
from selfemo.models.references import CONFIG_FILE, START, ModelReference


def find_checkpoint(model: str) -> str:
    """A model reference as one that can be loaded: a model folder, a GGUF file, or an id.

    Raises:
        EngineError: there is no such model, or its run has no checkpoint (of that name).
    """
    reference = ModelReference.parse(model)
    if reference.run is not None and reference.checkpoint == START:
        return load([reference.run / CONFIG_FILE]).model.id
    return reference.path


def settings_for(
    model: str, sources: Sequence[str], files: Sequence[Path], overrides: Sequence[str]
) -> tuple[Config, str]:
    """Configuration and checkpoint to use a model with on some sources.

    The settings are those of the run that the model comes from, if any, then files, then overrides.

    Raises:
        EngineError: see `find_checkpoint`.
        ConfigError: a setting is wrong.
    """
    checkpoint, run = find_checkpoint(model), ModelReference.parse(model).run
    own = [] if run is None else [run / CONFIG_FILE]
    config = load([*own, *files], [f"data.sources={json.dumps(list(sources))}", *overrides])
    return config, checkpoint
