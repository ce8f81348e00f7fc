"""Generation backends, one a file: each is a `Sampler` (models/sampler.py).

A new backend is one file here with a function `open_backend`, and one line of `SAMPLERS` below.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from selfemo.errors import UnsupportedError

if TYPE_CHECKING:
    from selfemo.config import ModelConfig
    from selfemo.models.sampler import Sampler


SAMPLERS = {
    "local": "selfemo.models.generation.local",
    "endpoint": "selfemo.models.generation.endpoint",
    "scripted": "selfemo.models.generation.scripted",
    "vllm": "selfemo.models.generation.vllm",
}
"""Backends by name: the module whose `open_backend(text after the name, model settings)` gives a sampler."""
_BY_SETTING = {"vllm"}
"""Backends that `model.backend` chooses, since the reference is any of a local model's."""


def backend_of(reference: str) -> tuple[str, str]:
    """The backend that a reference names, and the text for it; see `open_sampler`, also for errors."""
    from selfemo.models.generation.chat import names_endpoint

    if names_endpoint(reference):
        return "endpoint", reference
    name, colon, rest = reference.partition(":")
    if not colon or name == "builtin" or Path(reference).exists():
        return "local", reference
    if name in _BY_SETTING:
        raise UnsupportedError(f"{reference}: name the model alone, {rest}, with --backend {name}")
    if name not in SAMPLERS:
        raise UnsupportedError(f"no backend {name!r}; there are: {', '.join(SAMPLERS)}")
    return name, rest


def open_sampler(reference: str, config: ModelConfig | None = None) -> Sampler:
    """The sampler that a reference names.

    Args:
        reference: BACKEND:REST (`scripted:FILE` reads answers from a JSONL file of strings), an endpoint as
            `NAME=URL,model=MODEL`, or else a model reference (models/references.py) for "local".
        config: backend, device, precision and threads of a local model; its `id` is not used.

    Raises:
        UnsupportedError: no backend of this name; the message has the names that exist.
        EngineError: there is no such model.
        ConfigError, DataError: the endpoint is written wrongly, or the file of answers cannot be used.
    """
    from selfemo.config import ModelConfig

    name, rest = backend_of(reference)
    config = config or ModelConfig()
    if name == "local":
        name = config.backend
    opened: Sampler = import_module(SAMPLERS[name]).open_backend(rest, config)
    return opened
