"""A conversation as HTML; everything that people and models write is escaped and shown as text."""

from __future__ import annotations

import html

from selfemo.method.types import LabelSet
from selfemo.runs.dialogues import visible
from selfemo.serve.answers import ReadEmotion
from selfemo.serve.chat.session import Session

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6E6E6E", "#B8A800")
CSS = """
.se-log { max-height: 26rem; overflow-y: auto; display: flex; flex-direction: column; gap: .5rem; }
.se-line { border: 1px solid var(--border-color-primary); border-radius: .5rem; padding: .4rem .6rem;
  background: var(--background-fill-secondary); color: var(--body-text-color); overflow-wrap: anywhere; }
.se-line.se-you { margin-left: 10%; }
.se-line b { margin-right: .4rem; }
.se-tag { display: inline-block; border: 1px solid var(--border-color-primary); border-radius: 1rem;
  padding: 0 .5rem; margin-right: .3rem; font-size: .85em; color: var(--body-text-color); }
.se-tag i { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .35em; }
.se-wrap { overflow-x: auto; color: var(--body-text-color); }
.se-wrap text { fill: currentColor; font-size: 12px; }
.se-wrap line { stroke: currentColor; stroke-opacity: .15; }
.se-note { color: var(--body-text-color); }
"""


def shown(text: str) -> str:
    """Text escaped for HTML, also the marks that turn its direction or that a template would replace."""
    safe = html.escape(visible(text))
    for mark in "${}`":
        safe = safe.replace(mark, f"&#{ord(mark)};")
    return safe


def _colour(emotion: str, labels: LabelSet) -> str:
    return _COLOURS[labels.labels.index(emotion) % len(_COLOURS)] if emotion in labels else "#6E6E6E"


def tag(what: str, reading: ReadEmotion | None, labels: LabelSet) -> str:
    """A label like "feels joy 80%"; "" if there is no emotion."""
    if reading is None or reading.emotion is None:
        return ""
    sure = f" {reading.confidence:.0%}" if reading.confidence else ""
    dot = f'<i style="background:{_colour(reading.emotion, labels)}" aria-hidden="true"></i>'
    return f'<span class="se-tag">{dot}{what} {shown(reading.emotion)}{sure}</span>'


def transcript(session: Session, labels: LabelSet, begun: str = "") -> str:
    """The conversation as HTML; `begun` is the HTML of a reply that is being written."""
    rows = []
    for n, line in enumerate(session.lines):
        tags = tag("feels", line.felt, labels) + tag("read as", line.heard, labels)
        mine = " se-you" if line.speaker == session.you else ""
        rows.append(
            f'<div class="se-line{mine}"><b>{n + 1}. {shown(line.speaker)}</b>{tags}'
            f"<div>{shown(line.text)}</div></div>"
        )
    if begun:
        rows.append(f'<div class="se-line">{begun}</div>')
    body = "".join(rows) or '<p class="se-note">Nothing was said yet.</p>'
    # tabindex: a region that scrolls must be reachable by keyboard.
    log = 'class="se-log" role="log" aria-live="polite" aria-label="Conversation" tabindex="0"'
    return f"<div {log}>{body}</div>"


def timeline(session: Session, labels: LabelSet) -> str:
    """Emotions over the turns as SVG with a row for each label, and the same as a table."""
    points = [
        (n, line.speaker, reading.emotion, kind)
        for n, line in enumerate(session.lines)
        for kind, reading in (("feels", line.felt), ("read as", line.heard))
        if reading is not None and reading.emotion in labels
    ]
    if not points:
        return '<p class="se-note">The emotions appear here, turn by turn.</p>'
    left, step, row = 90, 34, 24
    width, height = left + step * len(session.lines) + 20, row * len(labels) + 26
    parts = []
    for k, name in enumerate(labels):
        y = row * k + row // 2
        parts.append(f'<text x="0" y="{y + 4}">{shown(name)}</text>')
        parts.append(f'<line x1="{left}" x2="{width}" y1="{y}" y2="{y}"/>')
    for n in range(len(session.lines)):
        parts.append(f'<text x="{left + step * n + 8}" y="{height - 6}">{n + 1}</text>')
    for n, _, emotion, kind in points:
        assert emotion is not None
        x, y = left + step * n + 12, row * labels.labels.index(emotion) + row // 2
        colour = _colour(emotion, labels)
        felt, read = f'r="7" fill="{colour}"', f'r="9" fill="none" stroke="{colour}" stroke-width="3"'
        parts.append(f'<circle cx="{x}" cy="{y}" {felt if kind == "feels" else read}/>')
    body = "".join(
        f"<tr><td>{n + 1}</td><td>{shown(who)}</td><td>{kind}</td><td>{shown(emotion or '')}</td></tr>"
        for n, who, emotion, kind in points
    )
    return (
        f'<div class="se-wrap"><svg role="img" aria-label="Emotions by turn; the table below says the same" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{"".join(parts)}</svg></div>'
        '<p class="se-note">Filled: what the speaker feels. Ring: what was read in the turn.</p>'
        "<details><summary>As a table</summary><table><thead><tr><th>turn</th><th>who</th><th></th>"
        f"<th>emotion</th></tr></thead><tbody>{body}</tbody></table></details>"
    )
