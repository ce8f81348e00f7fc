"""A conversation as HTML; everything that people and models write is escaped and shown as text."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from selfemo.method.types import LabelSet
from selfemo.reports.palette import UNKNOWN, emotion_colours
from selfemo.runs.dialogues import visible
from selfemo.serve.answers import ReadEmotion
from selfemo.serve.chat.session import Character, Line, Session, strongest

FELT, READ = "feels", "read as"
"""The words for the emotion that a speaker declares and for the one that is read in what they say."""
_SURE = "How probable the declared emotion is to whoever reads the reply."
_TWO = "Write a first line, or choose others above."
_WHY = "The model named this one. Answers are drawn at random, so it need not be the most probable."


def shown(text: str) -> str:
    """Text escaped for HTML, also the marks that turn its direction or that a template would replace."""
    safe = html.escape(visible(text))
    for mark in "${}`":
        safe = safe.replace(mark, f"&#{ord(mark)};")
    return safe


def bars(what: str, reading: ReadEmotion | None, labels: LabelSet, said: str = "", below: str = "") -> str:
    """The strongest emotions of a reading (session.py: strongest) as bars; "" if there is no emotion.

    The whole track of a bar is 100%. The emotion that the model named is in bold, and "named" stands with
    it if another is more probable. `said`: other words for `what`; `below`: HTML that stands below.
    """
    if reading is None or reading.emotion is None:
        return ""
    colours = emotion_colours(labels)
    rows = []
    for place, (emotion, weight) in enumerate(strongest(reading)):
        named, why = (" se-named", "") if emotion == reading.emotion else ("", "")
        if named and place:
            why = f'<span class="se-why" title="{_WHY}">named</span>'
        fill = f"width:{100 * weight:.1f}%;background:{colours.get(emotion, UNKNOWN)}"
        rows.append(
            f'<div class="se-bar{named}"><span>{shown(emotion)}{why}</span>'
            f'<span class="se-track" aria-hidden="true"><i style="{fill}"></i></span>'
            f"<span>{weight:.0%}</span></div>"
        )
    mark = "se-felt" if what == FELT else "se-read"
    head = f'<span class="se-what {mark}">{said or what}</span>'
    return f'<div class="se-bars">{head}{"".join(rows)}{below}</div>'


def _felt(line: Line, labels: LabelSet) -> str:
    """The emotion that a speaker declared and, where somebody read the line, how surely it expresses it."""
    below = ""
    if line.expressed is not None:
        below = (
            f'<div class="se-sure" title="{_SURE}"><span>expressed</span><span class="se-track" '
            f'aria-hidden="true"><i style="width:{100 * line.expressed:.1f}%"></i></span>'
            f"<span>{line.expressed:.0%}</span></div>"
        )
    below += "".join(f'<span class="se-why">{shown(text)}</span>' for text in line.reservations())
    return bars(FELT, line.felt, labels, below=below)


def turn(head: str, text: str, feelings: Sequence[str], mine: bool = False) -> str:
    """One turn: who speaks (`head`, HTML), what they say (HTML), and their emotions as bars."""
    below = f'<div class="se-feelings">{"".join(feelings)}</div>' if any(feelings) else ""
    return (
        f'<div class="se-line{" se-you" if mine else ""}"><b class="se-who">{head}</b>'
        f'<div class="se-said">{text}</div>{below}</div>'
    )


def transcript(session: Session, labels: LabelSet) -> str:
    """The conversation as HTML."""
    rows = [_turn(n, line, session, labels) for n, line in enumerate(session.lines)]
    body = "".join(rows) or _invitation(session)
    log = 'class="se-log" role="log" aria-live="polite" aria-label="Conversation"'
    return f"<div {log}>{body}</div>"


def _turn(n: int, line: Line, session: Session, labels: LabelSet) -> str:
    feelings = (_felt(line, labels), bars(READ, line.heard, labels))
    head = f'{shown(line.speaker)} <span class="se-n">{n + 1}</span>'
    return turn(head, shown(line.text), feelings, _right(line.speaker, session))


def _right(speaker: str, session: Session) -> bool:
    """Whether a speaker's turns stand on the right: one's own, and those of the second of two characters."""
    return speaker == session.you or (len(session.characters) > 1 and speaker == session.characters[1].name)


def _invitation(session: Session) -> str:
    who = " and ".join(shown(c.name) for c in session.characters)
    more = _TWO if len(session.characters) > 1 else "Say something, or choose somebody else above."
    return f'<div class="se-empty"><b>{who}</b><p>Nothing was said yet. {more}</p></div>'


def writing(session: Session, speaker: str, said: str, felt: ReadEmotion | None, labels: LabelSet) -> str:
    """A turn that is being written: dots before the first word."""
    text = shown(said) or '<span class="se-dots"><i></i><i></i><i></i></span>'
    head = (
        f'{shown(speaker)} <span class="se-busy" role="status" data-who="{shown(speaker)}">is writing</span>'
    )
    return turn(head, text, [bars(FELT, felt, labels)], _right(speaker, session))


def answer(n: int, session: Session, labels: LabelSet) -> str:
    """The last line of a session as answer `n` of a blind comparison."""
    said = session.lines[-1]
    read = bars(READ, session.lines[-2].heard, labels, "reads you as")
    feelings = (_felt(said, labels), read)
    return turn(f"Answer {n}", shown(said.text), feelings)


def note(text: str) -> str:
    """A quiet message in the conversation; "" without text."""
    return f'<p class="se-note" role="status">{shown(sentence(text))}</p>' if text else ""


def sentence(text: str) -> str:
    """A message of an error with a capital letter."""
    return text[:1].upper() + text[1:]


def portrait(character: Character) -> str:
    """A character: initial, name and description, inside one button that opens the choice of another."""
    return (
        f'<span class="se-face" aria-hidden="true">{shown(character.name[:1].upper())}</span>'
        f'<span class="se-about"><b>{shown(character.name)}</b>'
        f"<span>{shown(character.description)}</span></span>"
    )


def gallery(characters: Iterable[Character]) -> str:
    """The choice of a character: a dialog with one's own, a search box, and a card for each known one."""
    cards = "".join(
        f'<button type="button" class="se-card" data-name="{shown(c.name)}" '
        f'data-about="{shown(c.description)}">{portrait(c)}</button>'
        for c in characters
    )
    return (
        '<dialog class="se-gallery" aria-label="Choose a character"><div class="se-top">'
        '<input type="search" class="se-search" aria-label="Search characters" autocomplete="off" '
        'placeholder="Search: name, trait, job"><button type="button" class="se-close">Close</button>'
        '</div><p class="se-count" role="status"></p>'
        '<details class="se-own"><summary>Write your own</summary>'
        '<label>Name<input class="se-name" maxlength="200" autocomplete="off"></label>'
        '<label>What they are like<textarea class="se-like" maxlength="2000" rows="2"></textarea></label>'
        '<button type="button" class="se-use">Use this one</button></details>'
        f'<div class="se-cards">{cards}</div></dialog>'
    )


def timeline(session: Session, labels: LabelSet) -> str:
    """Emotions over the turns: a row for each label, larger dots for more probable ones; and as a table."""
    readings = [
        (n, line.speaker, what, reading)
        for n, line in enumerate(session.lines)
        for what, reading in ((FELT, line.felt), (READ, line.heard))
        if reading is not None and reading.emotion is not None
    ]
    if not readings:
        return '<p class="se-hint">The emotions appear here, turn by turn.</p>'
    step, row = 28, 20
    width, height = step * len(session.lines), row * len(labels)
    colours = emotion_colours(labels)
    parts = [f'<line x1="0" x2="{width}" y1="{y}" y2="{y}"/>' for y in range(row // 2, height, row)]
    for n, _, what, reading in readings:
        weights = reading.distribution or dict(strongest(reading))
        line = session.lines[n]
        # Side by side where a turn has both.
        aside = 0 if line.felt is None or line.heard is None else -6 if what == FELT else 6
        for k, name in enumerate(labels):
            if (weight := weights.get(name, 0.0)) < 0.05:
                continue
            x, y, r = step * n + step // 2 + aside, row * k + row // 2, 2 + 5 * weight**0.5
            at = f'cx="{x}" cy="{y}" r="{r:.1f}"'
            if what == FELT:
                parts.append(f'<circle class="se-dot" {at} fill="{colours[name]}"/>')
            else:
                parts.append(f'<circle class="se-edge" {at}/>')
                parts.append(f'<circle class="se-ring" {at} stroke="{colours[name]}"/>')
    numbers = "".join(
        f'<text x="{step * n + step // 2}" y="{height + 12}">{n + 1}</text>'
        for n in range(len(session.lines))
    )
    names = "".join(
        f'<span><i style="background:{colours[name]}"></i>{shown(name)}</span>' for name in labels
    )
    body = "".join(
        f"<tr><td>{n + 1}</td><td>{shown(who)}</td><td>{what}</td><td>{shown(r.emotion or '')}</td></tr>"
        for n, who, what, r in readings
    )
    # The scroll box is read from right to left, so that it shows the newest turn without a script.
    return (
        f'<div class="se-time"><div class="se-names" aria-hidden="true">{names}</div>'
        '<div class="se-wrap" tabindex="0" role="img" aria-label="Emotions by turn; the table says the same">'
        f'<div><svg width="{width}" height="{height + 16}" aria-hidden="true">{"".join(parts)}{numbers}</svg>'
        "</div></div></div>"
        f'<p class="se-key"><span class="se-what se-felt">{FELT}</span>'
        f'<span class="se-what se-read">{READ}</span><span>larger: more probable</span></p>'
        '<table class="se-table"><caption>Emotions by turn</caption><thead>'
        f"<tr><th>turn</th><th>who</th><th></th><th>emotion</th></tr></thead><tbody>{body}</tbody></table>"
    )
