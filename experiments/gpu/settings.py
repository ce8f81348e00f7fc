"""The settings of a result, and how those of two results differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfemo.config import Config


def told(config: Config) -> dict[str, Any]:
    """The settings of a result: all but where the data and weights lie, of which a folder's name stays."""
    settings = config.model_dump(mode="json", exclude={"data": {"sources"}})
    if (weights := Path(config.model.id)).exists():
        settings["model"]["id"] = weights.resolve().name
    return settings


def differing(first: Mapping[str, Any], second: Mapping[str, Any], under: str = "") -> list[str]:
    """The settings that differ, each with both values."""
    found = list[str]()
    for key in dict.fromkeys([*first, *second]):
        a, b = first.get(key), second.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differing(a, b, f"{under}{key}.")
        elif a != b:
            found.append(f"{under}{key}: {a!r}, here {b!r}")
    return found
