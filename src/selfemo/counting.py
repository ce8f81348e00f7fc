"""Counts in words: "1 turn", "2 turns"."""

from __future__ import annotations


def singular(things: str) -> str:
    """A regular plural of a noun, or words that end in one, for a single thing: "replies" is "reply"."""
    return things.removesuffix("ies") + "y" if things.endswith("ies") else things.removesuffix("s")


def counted(n: int, things: str, form: str = "") -> str:
    """A number with the plural of what it counts; `form`: of the number, as in `format`."""
    return f"{n:{form}} {singular(things) if n == 1 else things}"
