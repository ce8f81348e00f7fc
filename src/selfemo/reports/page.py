"""The parts of the report's HTML page: sections, tables, drawings, and text made harmless."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def visible(value: Any) -> Any:
    """Text whose control and direction marks are shown as [U+XXXX]."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(
        f"[U+{ord(ch):04X}]"
        if unicodedata.category(ch) in ("Cc", "Cf", "Cs", "Zl", "Zp") and ch not in "\n\t"
        else ch
        for ch in value
    )


def inline_svg(path: Path, label: str) -> Any:
    """The drawing of an SVG file of `figures`, for use inside HTML; ids get the file's name as prefix."""
    from markupsafe import Markup, escape

    text = path.read_text(encoding="utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for pattern in (r'(\bid=")', r'(href="#)', r"(url\(#)"):
        text = re.sub(pattern, rf"\g<1>{path.stem}-", text)
    opening = re.match(r"<svg[^>]*>", text)
    assert opening is not None
    box = re.search(r'viewBox="[\d. -]+"', opening[0])
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg" '
    return Markup(head + 'xmlns:xlink="http://www.w3.org/1999/xlink">' + text[opening.end() :])


@dataclass
class Table:
    """A table of text cells with a caption."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Section:
    """One part of the report; `missing` is the command that would fill it."""

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    drawings: list[tuple[str, Any]] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    code: str = ""
    missing: str = ""
