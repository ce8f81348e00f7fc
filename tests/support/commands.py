"""The commands of the command line, for tests that go over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command and group, with the words that name it."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*path, name))


def leaves(command: Any) -> list[tuple[str, Any]]:
    """The commands that do something, by their names."""
    return [(" ".join(path), c) for path, c in walk(command) if not getattr(c, "commands", None)]
