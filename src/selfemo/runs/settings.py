"""Settings and weights of a model that is used outside of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from selfemo.config import Config, load
from selfemo.models.generation import backend_of
from selfemo.models.references import CONFIG_FILE, START, ModelReference, run_of


def find_checkpoint(model: str) -> str:
    """A model reference as one that can be loaded: a model folder, a GGUF file, or an id.

    A reference to another backend (`scripted:FILE`) stays as it is (EngineError: it does not exist). That
    the weights can be had is checked (`ModelReference.check`); none are loaded.
    """
    backend, rest = backend_of(model)
    if backend != "local":
        return model
    reference = ModelReference.parse(rest)
    if reference.run is not None and reference.checkpoint == START:
        return find_checkpoint(load([reference.run / CONFIG_FILE]).model.id)
    reference.check()
    return reference.path


def settings_for(
    model: str, sources: Sequence[str], files: Sequence[Path], overrides: Sequence[str]
) -> tuple[Config, str]:
    """Configuration and checkpoint for a model and data sources.

    The settings are those of the run that the model comes from, if any, then files, then overrides.

    Raises: EngineError: see `find_checkpoint`. ConfigError: a setting is wrong.
    """
    checkpoint, run = find_checkpoint(model), run_of(model)
    own = [] if run is None else [run / CONFIG_FILE]
    return load([*own, *files], [f"data.sources={json.dumps(list(sources))}", *overrides]), checkpoint
