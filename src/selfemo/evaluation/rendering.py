"""Tables of text cells as text, Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from selfemo.errors import ConfigError

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


WIDTH = 80
"""Columns of the narrowest terminal that tables are made for."""
_GAP = 2


def _text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(r[i]) for r in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return (" " * _GAP).join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, rows)]) + "\n"


def narrow(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH) -> str:
    """A table as text of at most `width` columns: what does not fit stands below, behind the first column.

    A table with a cell that is too long for this, a path say, stays in one piece.
    """
    widths = [max(len(r[i]) for r in (header, *rows)) for i in range(len(header))]
    if widths[0] + max((w + _GAP for w in widths[1:]), default=0) > width:
        return _text(header, rows)
    blocks, used = [[0]], widths[0]
    for i in range(1, len(header)):
        if used + _GAP + widths[i] > width:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(i)
        used += _GAP + widths[i]
    return "\n".join(_text([header[i] for i in b], [[r[i] for i in b] for r in rows]) for b in blocks)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", r"\|") for c in cells) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *map(line, rows)]) + "\n"


def _latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        escaped = " & ".join("".join(_LATEX.get(ch, ch) for ch in c) for c in cells)
        # LaTeX would read a bracket or star after the line end above as its argument.
        return ("{}" if escaped.startswith(("[", "*")) else "") + escaped + r" \\"

    begin, rule, end = rf"\begin{{tabular}}{{{'l' * len(header)}}}", r"\hline", r"\end{tabular}"
    return "\n".join([begin, rule, line(header), rule, *map(line, rows), rule, end]) + "\n"


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


_RENDER = {"text": _text, "markdown": _markdown, "latex": _latex, "csv": _csv}


DIGITS = 6
"""Significant digits of scores in JSON files: resampling moves the third, other processors the seventh."""


def rounded(value: Any) -> Any:
    """A value of JSON types with DIGITS significant digits in each float."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value


def cell(value: Any) -> str:
    """A number, or an interval [value, low, high], with three decimals; "-" for anything else.

    It is `rounded` first, so that 1.42350001 and the 1.4235 of a JSON file read alike.
    """
    value = rounded(value)
    if isinstance(value, list) and len(value) == 3 and None not in value:
        return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def render(header: Sequence[str], rows: Sequence[Sequence[str]], form: str = "text") -> str:
    """A table of cells as text, markdown, latex or csv; raises ConfigError for another format."""
    if form not in _RENDER:
        raise ConfigError(f"--format {form}: valid are {', '.join(_RENDER)}")
    return _RENDER[form](header, rows)
