"""Values that a shell completes (`selfemo --install-completion`); nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path

from selfemo.method.types import LABEL_SETS, SPLITS


def _beginning(names: list[str], typed: str) -> list[str]:
    return [n for n in names if n.startswith(typed)]


def configurations(incomplete: str) -> list[str]:
    """The shipped configurations; a path is completed by the shell, since no name fits it."""
    # Not `selfemo.config.shipped`: pydantic alone would take longer than a key press may.
    names = sorted(f.stem for f in (Path(__file__).parents[1] / "configs").glob("*.toml"))
    return _beginning(names, incomplete)


def label_sets(incomplete: str) -> list[str]:
    return _beginning(list(LABEL_SETS), incomplete)


def splits(incomplete: str) -> list[str]:
    return _beginning([*SPLITS, "all"], incomplete)


def engines(incomplete: str) -> list[str]:
    return _beginning(["local", "verl"], incomplete)
