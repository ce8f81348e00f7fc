"""The settings of a result, and how those of two results differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfemo.config import Config

SPEED = (
    "model.attention", "model.decoder", "model.compile", "model.threads", "model.gradient_checkpointing",
    "sampling.token_budget", "grpo.micro_tokens", "sft.micro_tokens", "evaluation.token_budget",
)  # fmt: skip
"""Settings that change speed and memory alone, but for rounding."""


def told(config: Config) -> dict[str, Any]:
    """The settings of a result: all but where the data and weights lie, of which a folder's name stays."""
    settings = config.model_dump(mode="json", exclude={"data": {"sources"}})
    if (weights := Path(config.model.id)).exists():
        settings["model"]["id"] = weights.resolve().name
    if config.sampling.backend == "local" and config.grpo.importance_cap == "auto":
        settings["grpo"]["importance_cap"] = 0.0  # as results from before it was a choice have it
    return settings


def differing(
    first: Mapping[str, Any], second: Mapping[str, Any], but: Sequence[str] = SPEED, under: str = ""
) -> list[str]:
    """The settings that differ, each with both values.

    Args:
        but: those that may, or their beginnings.
    """
    found = list[str]()
    for key in dict.fromkeys([*first, *second]):
        a, b, name = first.get(key), second.get(key), f"{under}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differing(a, b, but, f"{name}.")
        elif a != b and not name.startswith(tuple(but)):
            found.append(f"{name}: {a!r}, here {b!r}")
    return found
