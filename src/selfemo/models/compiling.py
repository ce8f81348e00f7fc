"""torch.compile for parts of a model: where its results are kept, and how many versions it may make."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface

from selfemo.models.references import cache_dir

_VERSIONS = 64
"""Most versions of one function: with gradient or without, under autocast or not, one row or more, each kind
of attention, each model of a process."""


def prepare() -> None:
    """Keep what is compiled on disk, and fail where a function needs too many versions.

    Beyond the limit torch would go on uncompiled and say nothing; for attention that is a matrix of all
    scores.
    """
    import torch._dynamo

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
    config = torch._dynamo.config
    config.recompile_limit = max(_VERSIONS, config.recompile_limit)
    config.fail_on_recompile_limit_hit = True


def compile_layers(core: Any) -> None:
    """Compile each decoder layer of a transformers model at its first use, for all shapes.

    All layers have one code, so that they are compiled once.
    """
    from selfemo.models.attention import IMPLEMENTATION, tree_attention

    prepare()
    # Attention is called as it is: its plans are Python objects, another one each time.
    AttentionInterface.register(IMPLEMENTATION, torch.compiler.disable(tree_attention))
    for layer in core.get_decoder().layers:
        layer.compile(dynamic=True)


def for_all_lengths(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled for all shapes, also where the code around it runs uncompiled."""
    prepare()
    compiled = torch.compile(function, dynamic=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("default"):
            return compiled(*args, **kwargs)

    return call
