"""`selfemo chat --web`: talk, watch two characters, compare two models blind, read self-play episodes.

What people and models write is shown as text: everything is escaped here, and no part of it is read as HTML,
Markdown or a template. The page asks for nothing from any other host.
"""

from __future__ import annotations

import functools
import html
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfemo.errors import DataError, MissingExtraError, SelfEmoError
from selfemo.method.types import LabelSet
from selfemo.runs.dialogues import visible
from selfemo.serve.answers import (
    Done,
    Emotion,
    ReadEmotion,
    ReplyDelta,
    SelfEmotion,
)
from selfemo.serve.chat.session import Character, Session, sample_characters
from selfemo.serve.chat.terminal import load_episodes
from selfemo.serve.selfemo import SelfEmo

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6E6E6E", "#B8A800")
_OWN = "(write one)"
_HOUR = 3600
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
    """Text as HTML shows it, without what turns its direction, or what a template would fill in."""
    safe = html.escape(visible(text))
    return (
        safe.replace("$", "&#36;")
        .replace("{", "&#123;")
        .replace("}", "&#125;")
        .replace("`", "&#96;")
    )


def _colour(emotion: str, labels: LabelSet) -> str:
    return (
        _COLOURS[labels.labels.index(emotion) % len(_COLOURS)] if emotion in labels else "#6E6E6E"
    )


def _tag(what: str, reading: ReadEmotion | None, labels: LabelSet) -> str:
    if reading is None or reading.emotion is None:
        return ""
    sure = f" {reading.confidence:.0%}" if reading.confidence else ""
    dot = f'<i style="background:{_colour(reading.emotion, labels)}" aria-hidden="true"></i>'
    return f'<span class="se-tag">{dot}{what} {shown(reading.emotion)}{sure}</span>'


def transcript(session: Session, labels: LabelSet, begun: str = "") -> str:
    """The conversation as HTML; `begun`: a reply that is being written, ready as HTML."""
    rows = []
    for n, line in enumerate(session.lines):
        tags = _tag("feels", line.felt, labels) + _tag("read as", line.heard, labels)
        mine = " se-you" if line.speaker == session.you else ""
        rows.append(
            f'<div class="se-line{mine}"><b>{n + 1}. {shown(line.speaker)}</b>{tags}'
            f"<div>{shown(line.text)}</div></div>"
        )
    if begun:
        rows.append(f'<div class="se-line">{begun}</div>')
    if not rows:
        rows = ['<p class="se-note">Nothing was said yet.</p>']
    # tabindex: a region that scrolls must be reachable by keyboard.
    return (
        '<div class="se-log" role="log" aria-live="polite" aria-label="Conversation" tabindex="0">'
        + "".join(rows)
        + "</div>"
    )


def timeline(session: Session, labels: LabelSet) -> str:
    """Emotions over the turns as SVG with a row for each label, and the same as a table."""
    points = [
        (n, line.speaker, reading.emotion, kind)
        for n, line in enumerate(session.lines)
        for kind, reading in (("felt", line.felt), ("read", line.heard))
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
        if kind == "felt":
            parts.append(f'<circle cx="{x}" cy="{y}" r="7" fill="{colour}"/>')
        else:
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="9" fill="none" stroke="{colour}" stroke-width="3"/>'
            )
    body = "".join(
        f"<tr><td>{n + 1}</td><td>{shown(who)}</td><td>{'feels' if kind == 'felt' else 'read as'}</td>"
        f"<td>{shown(emotion or '')}</td></tr>"
        for n, who, emotion, kind in points
    )
    return (
        f'<div class="se-wrap"><svg role="img" aria-label="Emotions by turn; the table below says the same" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{"".join(parts)}</svg></div>'
        '<p class="se-note">Filled: what the speaker feels. Ring: what was read in the turn.</p>'
        "<details><summary>As a table</summary><table><thead><tr><th>turn</th><th>who</th><th></th>"
        f"<th>emotion</th></tr></thead><tbody>{body}</tbody></table></details>"
    )


def _answers(model: SelfEmo, session: Session) -> Iterator[tuple[Session, str]]:
    """The session as the next answer is written, with the reply so far as HTML."""
    ask = session.ask()
    tags, reply = "", ""
    for event in model.stream(ask.conversation, ask.persona, speaker=ask.speaker, scene=ask.scene):
        match event:
            case Emotion():
                tags = _tag("reads", event.reading, model.labels)
            case SelfEmotion():
                tags += _tag("feels", event.reading, model.labels)
            case ReplyDelta():
                reply += event.text
            case Done(response=response):
                if response.failure:
                    raise DataError(
                        f"no answer could be read ({response.failure}); say it otherwise"
                    )
                yield session.answered(response), ""
                return
        yield session, f"<b>{shown(ask.speaker)}</b>{tags}<div>{shown(reply)}</div>"


@functools.cache
def _exports() -> tempfile.TemporaryDirectory[str]:
    """Where exported talks wait for their download; removed at the process's end."""
    return tempfile.TemporaryDirectory(prefix="selfemo-chat-")


def _file(text: str, name: str) -> str:
    folder = Path(tempfile.mkdtemp(dir=_exports().name))
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


class Votes:
    """Blind votes, one JSON object a line; what is written stays."""

    def __init__(self, path: Path, names: Sequence[str]):
        self.path, self.names = path, tuple(names)

    def add(
        self, session: Session, sides: Sequence[int], answers: Sequence[Session], vote: str
    ) -> str:
        """Note a vote for "1", "2" or "tie"; returns who was who, for the voter.

        Args:
            sides: which model stood first and second.
            answers: the session as each of them, first and second, would have it go on.
        """
        winner = None if vote == "tie" else self.names[sides[int(vote) - 1]]
        record = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "turns": [[line.speaker, line.text] for line in session.lines],
            "answers": [a.lines[-1].text for a in answers],
            "models": [self.names[k] for k in sides],
            "vote": vote,
            "winner": winner,
        }
        try:
            with self.path.open("a", encoding="utf-8") as f:
                f.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as e:
            raise DataError(f"the vote cannot be kept: {e.strerror or e}", self.path) from e
        return (
            f"Answer 1 was {self.names[sides[0]]}, answer 2 was {self.names[sides[1]]}. Thank you."
        )


def build(model: SelfEmo, other: SelfEmo | None, session: Session, votes: Path) -> Any:
    """The page, as a gradio.Blocks that is not launched yet.

    Raises:
        MissingExtraError: gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError:
        raise MissingExtraError("gradio", "pip install 'selfemo[chat]'") from None
    labels, known = model.labels, sample_characters()
    kept = Votes(votes, (model.name, other.name if other else ""))

    def draw(state: Session, begun: str = "") -> tuple[Session, str, str]:
        return state, transcript(state, labels, begun), timeline(state, labels)

    def guarded(work: Iterator[Any]) -> Iterator[Any]:
        """Show what went wrong to the user, with the page as it was."""
        try:
            yield from work
        except SelfEmoError as e:
            raise gr.Error(shown(str(e)), print_exception=False) from None

    def cast(*fields: str) -> tuple[Character, ...]:
        names, descriptions = fields[::2], fields[1::2]
        if "" in (given := [n.strip() for n in names]):
            raise gr.Error("A character needs a name.")
        if len(set(given)) < len(given):
            raise gr.Error("The two need different names.")
        return tuple(Character(n, d.strip()) for n, d in zip(given, descriptions, strict=True))

    def chosen(name: str) -> tuple[Any, Any]:
        c = known.get(name)
        return (gr.skip(), gr.skip()) if c is None else (c.name, c.description)

    def persona_fields(first: Character, what: str) -> tuple[Any, Any]:
        pick = gr.Dropdown([_OWN, *known], value=_OWN, label=f"{what}: choose one")
        name = gr.Textbox(first.name, label=f"{what}: name", max_length=200)
        about = gr.Textbox(
            first.description, label=f"{what}: what they are like", lines=2, max_length=2000
        )
        pick.input(chosen, pick, [name, about], api_visibility="private")
        return name, about

    def exports(state: Any) -> None:
        with gr.Row():
            as_jsonl = gr.DownloadButton("Export as JSONL", size="sm")
            as_markdown = gr.DownloadButton("Export as Markdown", size="sm")

        def jsonl(now: Session) -> str:
            try:
                return _file(now.as_jsonl(labels), "chat.jsonl")
            except DataError as e:
                raise gr.Error(shown(str(e)), print_exception=False) from None

        # The file is made when the conversation changes, so that one press fetches it.
        def ready(now: Session) -> tuple[Any, Any]:
            if not now.lines:
                return gr.skip(), gr.skip()
            return jsonl(now), _file(now.as_markdown(), "chat.md")

        state.change(
            ready, state, [as_jsonl, as_markdown], api_visibility="private", show_progress="hidden"
        )

    first = session.characters[0]
    second = session.characters[1] if len(session.characters) > 1 else Character("Bo", "Calm, dry.")
    # gradio copies each export to a cache of its own, and keeps it for good unless it is told not to.
    with gr.Blocks(
        title="SELF-EMO chat", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)
    ) as page:
        gr.Markdown(
            "# SELF-EMO chat\nEmotions beside each turn are what the model read, or declared."
        )
        with gr.Tab("Talk"):
            talk = gr.State(session)
            with gr.Row():
                with gr.Column(scale=2, min_width=280):
                    log = gr.HTML(transcript(session, labels))
                    line = gr.Textbox(
                        label="Your line", placeholder="Type and press Enter", max_length=4000,
                        autofocus=True, elem_id="line",
                    )  # fmt: skip
                    with gr.Row():
                        send = gr.Button("Send", variant="primary")
                        undo = gr.Button("Undo")
                        again = gr.Button("New conversation")
                with gr.Column(scale=1, min_width=280):
                    name, about = persona_fields(first, "Character")
                    scene = gr.Textbox(session.scene, label="Scene", max_length=500)
                    moods = gr.HTML(timeline(session, labels))
            exports(talk)

            def say(text: str, state: Session, who: str, what: str, where: str) -> Iterator[Any]:
                now = Session(cast(who, what), where, state.you, state.lines).said(text)
                yield "", *draw(now)
                for step, begun in _answers(model, now):
                    # The box is left alone: somebody may be typing the next line.
                    yield gr.skip(), *draw(step, begun)

            def saying(*given: Any) -> Iterator[Any]:
                yield from guarded(say(*given))

            shows = [talk, log, moods]
            talking: list[Any] = [
                trigger(
                    saying, [line, talk, name, about, scene], [line, *shows],
                    api_visibility="private", concurrency_limit=4,
                )
                for trigger in (line.submit, send.click)
            ]  # fmt: skip
            undo.click(
                lambda s: draw(s.undone()), talk, shows, api_visibility="private", cancels=talking
            )
            again.click(
                lambda s: draw(Session(s.characters, s.scene, s.you)), talk, shows,
                api_visibility="private", cancels=talking,
            )  # fmt: skip

        with gr.Tab("Watch two"):
            watch = gr.State(Session((first, second), session.scene))
            with gr.Row():
                with gr.Column(scale=2, min_width=280):
                    watch_log = gr.HTML(transcript(Session((first, second)), labels))
                    opening = gr.Textbox(
                        label="First line, said by the first one",
                        max_length=4000,
                        elem_id="opening",
                    )
                    with gr.Row():
                        begin = gr.Button("Begin", variant="primary")
                        step_one = gr.Button("Next turn")
                        run_on = gr.Button("Run")
                        pause = gr.Button("Pause", variant="stop")
                    with gr.Row():
                        place = gr.Number(label="Line to change", precision=0, minimum=1, value=1)
                        changed = gr.Textbox(label="New text", max_length=4000)
                        edit = gr.Button("Change it; drop what came after")
                with gr.Column(scale=1, min_width=280):
                    with gr.Accordion("The two", open=False):
                        one_name, one_about = persona_fields(first, "First")
                        two_name, two_about = persona_fields(second, "Second")
                    turns = gr.Slider(1, 20, value=6, step=1, label="Turns of a run")
                    watch_moods = gr.HTML(timeline(Session((first, second)), labels))
            exports(watch)
            people = [one_name, one_about, two_name, two_about]
            watch_shows = [watch, watch_log, watch_moods]

            def start(text: str, who: str, a: str, other_one: str, b: str) -> Any:
                both = cast(who, a, other_one, b)
                try:
                    return draw(Session(both, session.scene).said(text, both[0].name))
                except DataError as e:
                    raise gr.Error(shown(str(e)), print_exception=False) from None

            def go_on(state: Session, count: float) -> Iterator[Any]:
                now = state
                for _turn in range(int(count)):
                    for step, begun in _answers(model, now):
                        now = step
                        yield draw(step, begun)

            def going_on(state: Session, count: float) -> Iterator[Any]:
                yield from guarded(go_on(state, count))

            def change(state: Session, at: float | None, text: str) -> Any:
                try:
                    return draw(state.edited(int(at or 0) - 1, text))
                except DataError as e:
                    raise gr.Error(shown(str(e)), print_exception=False) from None

            stepping = step_one.click(
                going_on, [watch, gr.State(1)], watch_shows, api_visibility="private"
            )
            running = run_on.click(going_on, [watch, turns], watch_shows, api_visibility="private")
            under_way: list[Any] = [
                running,
                stepping,
            ]  # what changes the conversation ends a turn being written
            for trigger in (begin.click, opening.submit):
                trigger(
                    start,
                    [opening, *people],
                    watch_shows,
                    api_visibility="private",
                    cancels=under_way,
                )
            pause.click(None, cancels=under_way, api_visibility="private")
            edit.click(
                change, [watch, place, changed], watch_shows, api_visibility="private",
                cancels=under_way,
            )  # fmt: skip

        if other is not None:
            with gr.Tab("Compare"):
                gr.Markdown(
                    "Two models answer the same line. Which is which is said after your vote."
                )
                _compare(gr, model, other, session, kept, guarded, cast, persona_fields, exports)

        try:
            played = load_episodes(model.name)
        except SelfEmoError:
            played = []
        if played:
            with gr.Tab("Self-play episodes"):
                titles = [
                    f"{n + 1}. {' and '.join(c.name for c in e.characters)}: {e.lines[0].text[:50]}"
                    for n, e in enumerate(played)
                ]
                which = gr.Dropdown(titles, value=titles[0], label="Episode", type="index")
                ep_log = gr.HTML(transcript(played[0], labels))
                ep_moods = gr.HTML(timeline(played[0], labels))
                take = gr.Button("Go on from here in “Watch two”")
                which.input(
                    lambda k: (transcript(played[k], labels), timeline(played[k], labels)),
                    which, [ep_log, ep_moods], api_visibility="private",
                )  # fmt: skip
                take.click(lambda k: draw(played[k]), which, watch_shows, api_visibility="private")
    return page


def _compare(
    gr: Any,
    model: SelfEmo,
    other: SelfEmo,
    session: Session,
    kept: Votes,
    guarded: Any,
    cast: Any,
    persona_fields: Any,
    exports: Any,
) -> None:
    """The tab of the blind comparison."""
    labels, models = model.labels, (model, other)
    now = gr.State(Session(session.characters[:1], session.scene))
    open_vote = gr.State(None)
    log = gr.HTML(transcript(Session(session.characters[:1]), labels))
    line = gr.Textbox(label="Your line to both", max_length=4000, elem_id="both")
    send = gr.Button("Ask both", variant="primary")
    with gr.Row():
        answers = [gr.HTML(min_height=60), gr.HTML(min_height=60)]
    with gr.Row():
        buttons = [
            gr.Button("Answer 1 is better"), gr.Button("Tie"), gr.Button("Answer 2 is better"),
        ]  # fmt: skip
    told = gr.HTML('<p class="se-note" role="status"></p>')
    with gr.Accordion("The character", open=False):
        name, about = persona_fields(session.characters[0], "Both play")
    exports(now)

    def box(n: int, after: Session) -> str:
        said = after.lines[-1]
        tags = _tag("reads", after.lines[-2].heard, labels) + _tag("feels", said.felt, labels)
        return f'<div class="se-line"><b>Answer {n}</b>{tags}<div>{shown(said.text)}</div></div>'

    def ask(text: str, state: Session, who: str, what: str, pending: Any) -> Iterator[Any]:
        if pending is not None:
            raise DataError("vote for one of the two answers first")
        asked = Session(cast(who, what), state.scene, state.you, state.lines).said(text)
        sides = random.sample((0, 1), 2)
        after = []
        for n in range(2):
            response = models[sides[n]].respond_many([asked.ask()])[0]
            if response.failure:
                raise DataError(
                    f"one of the two gave no answer ({response.failure}); say it otherwise"
                )
            after.append(asked.answered(response))
        yield (
            "", asked, transcript(asked, labels), *(box(n + 1, a) for n, a in enumerate(after)),
            (sides, after), "",
        )  # fmt: skip

    def asking(*given: Any) -> Iterator[Any]:
        yield from guarded(ask(*given))

    def vote(choice: str, state: Session, pending: Any) -> Iterator[Any]:
        if pending is None:
            raise DataError("ask both first")
        sides, after = pending
        said = kept.add(state, sides, after, choice)
        goes_on = after[0] if choice != "2" else after[1]
        yield (
            goes_on, transcript(goes_on, labels), "", "", None,
            f'<p class="se-note" role="status">{shown(said)}</p>',
        )  # fmt: skip

    for trigger in (line.submit, send.click):
        trigger(
            asking, [line, now, name, about, open_vote],
            [line, now, log, *answers, open_vote, told], api_visibility="private",
        )  # fmt: skip
    for button, choice in zip(buttons, ("1", "tie", "2"), strict=True):

        def voting(state: Session, pending: Any, choice: str = choice) -> Iterator[Any]:
            yield from guarded(vote(choice, state, pending))

        button.click(
            voting, [now, open_vote], [now, log, *answers, open_vote, told],
            api_visibility="private",
        )  # fmt: skip


def launch(page: Any, host: str, port: int, *, wait: bool = True) -> str:
    """Serve the page; returns its address, or does not return where it waits.

    Raises:
        DataError: the port is taken.
    """
    import gradio as gr

    fonts = ("system-ui", "sans-serif")
    theme = gr.themes.Base(font=fonts, font_mono=("ui-monospace", "monospace"))
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port or None, prevent_thread_lock=True, quiet=True,
            theme=theme, css=CSS, share=False, ssr_mode=False, footer_links=[], show_error=True,
        )  # fmt: skip
    except OSError as e:
        raise DataError(
            f"{host}:{port} cannot be listened at ({e}); choose another --port"
        ) from None
    if wait:
        page.block_thread()
    return str(address)
