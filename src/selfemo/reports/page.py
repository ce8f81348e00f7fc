"""The parts of the report's HTML page: sections, tables, drawings, and text made harmless."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

TEMPLATE = "report.html.jinja"
THEMED = {
    "#ffffff": "var(--back)",
    "#000000": "currentColor",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--red)",
    "#009e73": "var(--green)",
    "#cc79a7": "var(--pink)",
    "#e69f00": "var(--orange)",
    "#56b4e9": "var(--sky)",
    "#8c564b": "var(--brown)",
}
"""Colours of `figures`, and the page's that stand for them, light or dark. All others stay as they are."""
_CELL = re.compile(r"(\S+)( \[[^\[\]]+\])?( p=\S+)?")
"""A value, its interval, and p."""


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
    """The drawing of an SVG file of `figures`, for use inside HTML.

    Ids get the file's name as prefix, and colours follow the page's theme. The drawing is shown at 1.3 times
    its size, shrinks with the page, and never to text below 9 px: then its box scrolls.
    """
    from markupsafe import Markup, escape

    text = path.read_text(encoding="utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for pattern in (r'(\bid=")', r'(href="#)', r"(url\(#)"):
        text = re.sub(pattern, rf"\g<1>{path.stem}-", text)
    text = re.sub(r"((?:fill|stroke): )(#[0-9a-f]{6})", lambda m: m[1] + THEMED.get(m[2], m[2]), text)
    opening = re.match(r"<svg[^>]*>", text)
    assert opening is not None
    box = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) [\d.]+"', opening[0])
    assert box is not None
    points = float(box[1])
    size = f"width: {1.3 * points:.0f}px; min-width: {0.9 * points:.0f}px"
    head = f'<svg {box[0]} style="{size}" role="img" aria-label="{escape(label)}" '
    head += 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Markup(head + text[opening.end() :])


@dataclass(frozen=True)
class Head:
    """The first cell of a row: what it is of, and smaller below it what stays in view when it scrolls."""

    text: str
    note: str


@dataclass
class Table:
    """A table of text cells with a caption; the first cell of a row may be a `Head`.

    Attributes:
        marked: the numbers of the rows that stand out.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    marked: frozenset[int] = frozenset()

    @property
    def shown(self) -> list[tuple[str, list[tuple[str, str, list[str]]]]]:
        """(class, cells) of each row; of each cell its class, its text and the smaller lines below it."""
        return [
            ("marked" if n in self.marked else "", [_cell(k, c) for k, c in enumerate(row)])
            for n, row in enumerate(self.rows)
        ]


def _cell(place: int, content: Any) -> tuple[str, str, list[str]]:
    if isinstance(content, Head):
        return "", content.text, [content.note]
    text = str(content)
    if place == 0:
        return "", text, []
    if found := _CELL.fullmatch(text):
        return "s", found[1], [part for part in found.groups()[1:] if part]
    return ("s" if len(text) <= 30 else "l" if len(text) > 60 else ""), text, []


def headed(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    split: str,
    counts: Mapping[str, int] | None = None,
) -> Table:
    """A table of scores whose data set, split and n stand in the first cell of each row, always in view.

    Args:
        header: begins with what the rows are of; its columns "data" and "n" go into the first cell.
        counts: n by data set, where the header has none.
    """
    at = {name: header.index(name) for name in ("data", "n") if name in header}
    rest = [k for k in range(1, len(header)) if k not in at.values()]
    made = []
    for row in rows:
        dataset = row[at["data"]] if "data" in at else ""
        n = row[at["n"]] if "n" in at else (counts or {}).get(dataset, "")
        note = f"{dataset} {split}".strip() + (f", n={n}" if n != "" else "")
        made.append([Head(row[0], note if dataset else split), *(row[k] for k in rest)])
    return Table(caption, [header[0], *(header[k] for k in rest)], made)


@dataclass
class Section:
    """One part of the report.

    Attributes:
        missing: the command that would fill it.
        folded: `code` is shown when it is asked for.
    """

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    drawings: list[tuple[str, Any]] = field(default_factory=list)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    code: str = ""
    folded: bool = False
    missing: str = ""


def render(name: str, lead: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """The HTML of a report.

    Args:
        lead: (question, sentence), before all else.
    """
    from jinja2 import Environment, StrictUndefined

    template = Environment(
        autoescape=True, finalize=visible, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(files("selfemo.reports").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(name=name, lead=lead, sections=sections)
