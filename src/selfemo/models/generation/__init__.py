"""Generation backends, one a file: each is a `Sampler` (models/sampler.py).

A new backend is one file here, and one function and one line of `SAMPLERS` below.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from selfemo.errors import UnsupportedError

if TYPE_CHECKING:
    from selfemo.config import ModelConfig
    from selfemo.models.sampler import Sampler


def _local(reference: str, config: ModelConfig) -> Sampler:
    from selfemo.models.generation.local import LocalSampler
    from selfemo.models.loading import load_configured

    return LocalSampler(load_configured(config, reference))


def _endpoint(reference: str, config: ModelConfig) -> Sampler:
    from selfemo.models.generation.chat import parse_expert
    from selfemo.models.generation.endpoint import EndpointSampler

    return EndpointSampler(parse_expert(reference))


def _scripted(reference: str, config: ModelConfig) -> Sampler:
    from selfemo.models.generation.scripted import ScriptedSampler, read_script

    return ScriptedSampler(read_script(Path(reference)))


SAMPLERS: dict[str, Callable[[str, ModelConfig], Sampler]] = {
    "local": _local,
    "endpoint": _endpoint,
    "scripted": _scripted,
}
"""Backends by name: (text after the name, settings of models) to a sampler."""


def backend_of(reference: str) -> tuple[str, str]:
    """The backend that a reference names, and the text for it; see `open_sampler`, also for errors."""
    from selfemo.models.generation.chat import names_endpoint

    if names_endpoint(reference):
        return "endpoint", reference
    name, colon, rest = reference.partition(":")
    if not colon or name == "builtin" or Path(reference).exists():
        return "local", reference
    if name not in SAMPLERS:
        raise UnsupportedError(f"no backend {name!r}; there are: {', '.join(SAMPLERS)}")
    return name, rest


def open_sampler(reference: str, config: ModelConfig | None = None) -> Sampler:
    """The sampler that a reference names.

    Args:
        reference: BACKEND:REST (`scripted:FILE` reads answers from a JSONL file of strings), an endpoint as
            `NAME=URL,model=MODEL`, or else a model reference (models/references.py) for "local".
        config: device, precision and threads of a local model; its `id` is not used.

    Raises:
        UnsupportedError: no backend of this name; the message has the names that exist.
        EngineError: there is no such model.
        ConfigError, DataError: the endpoint is written wrongly, or the file of answers cannot be used.
    """
    from selfemo.config import ModelConfig

    name, rest = backend_of(reference)
    return SAMPLERS[name](rest, config or ModelConfig())
