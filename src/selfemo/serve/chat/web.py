"""`selfemo chat --web`: talk, watch two characters, compare two models blind, read self-play episodes.

The page shows text only as markup.py escapes it, and asks for nothing from any other host.
"""

from __future__ import annotations

import functools
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfemo.errors import DataError, MissingExtraError, SelfEmoError
from selfemo.method.types import LabelSet
from selfemo.serve.answers import Done, Emotion, ReplyDelta, SelfEmotion
from selfemo.serve.chat.episodes import load_episodes
from selfemo.serve.chat.markup import CSS, shown, tag, timeline, transcript
from selfemo.serve.chat.session import Character, Session, sample_characters, unreadable
from selfemo.serve.chat.votes import Votes
from selfemo.serve.selfemo import SelfEmo

_OWN = "(write one)"
_PRIVATE: Any = {"api_visibility": "private"}
"""For each event of the page: it is no part of gradio's public API."""
_HOUR = 3600


def build(model: SelfEmo, other: SelfEmo | None, session: Session, votes: Path) -> Any:
    """The page, as a gradio.Blocks that is not launched yet (MissingExtraError: gradio is not installed).

    Args:
        other: the model to compare with; None leaves that tab out.
        votes: the file of the comparison's votes.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError:
        raise MissingExtraError("gradio", "pip install 'selfemo[chat]'") from None
    tabs = _Tabs(gr, model, session)
    # gradio copies each export to its cache, and by default never deletes it.
    with gr.Blocks(title="SELF-EMO chat", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as page:
        gr.Markdown(
            "# SELF-EMO chat\nThe emotions beside each turn are those that the model read or declared."
        )
        with gr.Tab("Talk"):
            tabs.talk()
        with gr.Tab("Watch two"):
            watched = tabs.watch()
        if other is not None:
            with gr.Tab("Compare"):
                tabs.compare(other, Votes(votes, (model.name, other.name)))
        try:
            played = load_episodes(model.name)
        except SelfEmoError:
            played = []
        if played:
            with gr.Tab("Self-play episodes"):
                tabs.episodes(played, watched)
    return page


class _Tabs:
    """The tabs of the page; each public method lays one out and connects its buttons (`gr`: gradio)."""

    def __init__(self, gr: Any, model: SelfEmo, session: Session):
        self.gr, self.model, self.labels, self.session = gr, model, model.labels, session
        self.known = sample_characters()

    def _draw(self, state: Session, begun: str = "") -> tuple[Session, str, str]:
        return state, transcript(state, self.labels, begun), timeline(state, self.labels)

    @contextmanager
    def _errors_shown(self) -> Iterator[None]:
        """Show an error to the user, and leave the page as it was."""
        try:
            yield
        except SelfEmoError as e:
            raise self.gr.Error(shown(str(e)), print_exception=False) from None

    def _cast(self, *fields: str) -> tuple[Character, ...]:
        """The characters from the fields (name, description, name, ...)."""
        names, descriptions = fields[::2], fields[1::2]
        if "" in (given := [n.strip() for n in names]):
            raise self.gr.Error("A character needs a name.")
        if len(set(given)) < len(given):
            raise self.gr.Error("The two need different names.")
        return tuple(Character(n, d.strip()) for n, d in zip(given, descriptions, strict=True))

    def _persona_fields(self, first: Character, title: str) -> tuple[Any, Any]:
        gr = self.gr
        pick = gr.Dropdown([_OWN, *self.known], value=_OWN, label=f"{title}: choose one")
        name = gr.Textbox(first.name, label=f"{title}: name", max_length=200)
        about = gr.Textbox(first.description, label=f"{title}: what they are like", lines=2, max_length=2000)

        def chosen(name: str) -> tuple[Any, Any]:
            c = self.known.get(name)
            return (gr.skip(), gr.skip()) if c is None else (c.name, c.description)

        pick.input(chosen, pick, [name, about], **_PRIVATE)
        return name, about

    def _exports(self, state: Any) -> None:
        gr = self.gr
        with gr.Row():
            as_jsonl = gr.DownloadButton("Export as JSONL", size="sm")
            as_markdown = gr.DownloadButton("Export as Markdown", size="sm")

        # Made whenever the conversation changes, so that one press downloads them.
        def ready(now: Session) -> tuple[Any, Any]:
            if not now.lines:
                return gr.skip(), gr.skip()
            with self._errors_shown():
                jsonl = export_file(now.as_jsonl(self.labels), "chat.jsonl")
                return jsonl, export_file(now.as_markdown(), "chat.md")

        state.change(ready, state, [as_jsonl, as_markdown], show_progress="hidden", **_PRIVATE)

    def talk(self) -> None:
        gr, session = self.gr, self.session
        state = gr.State(session)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                log = gr.HTML(transcript(session, self.labels))
                hint = "Type and press Enter"
                line = gr.Textbox(
                    label="Your line", placeholder=hint, max_length=4000, autofocus=True, elem_id="line"
                )
                with gr.Row():
                    send = gr.Button("Send", variant="primary")
                    undo = gr.Button("Undo")
                    again = gr.Button("New conversation")
            with gr.Column(scale=1, min_width=280):
                name, about = self._persona_fields(session.characters[0], "Character")
                scene = gr.Textbox(session.scene, label="Scene", max_length=500)
                moods = gr.HTML(timeline(session, self.labels))
        self._exports(state)
        shows = [state, log, moods]
        asked, told = [line, state, name, about, scene], [line, *shows]
        talking: list[Any] = [
            trigger(self._say, asked, told, concurrency_limit=4, **_PRIVATE)
            for trigger in (line.submit, send.click)
        ]
        ending = {"cancels": talking, **_PRIVATE}
        undo.click(lambda s: self._draw(s.undone()), state, shows, **ending)
        again.click(lambda s: self._draw(Session(s.characters, s.scene, s.you)), state, shows, **ending)

    def _say(self, text: str, state: Session, name: str, about: str, scene: str) -> Iterator[Any]:
        with self._errors_shown():
            now = Session(self._cast(name, about), scene, state.you, state.lines).said(text)
            yield "", *self._draw(now)
            for step, begun in _answers(self.model, now):
                # Do not change the text box: the user may be typing the next line.
                yield self.gr.skip(), *self._draw(step, begun)

    def watch(self) -> list[Any]:
        """Returns the parts that show the conversation: its state, its lines, its emotions."""
        gr, labels = self.gr, self.labels
        first, *more = self.session.characters
        second = more[0] if more else Character("Bo", "Calm, dry.")
        both = Session((first, second), self.session.scene)
        state = gr.State(both)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                log = gr.HTML(transcript(both, labels))
                opening = gr.Textbox(
                    label="First line, said by the first one", max_length=4000, elem_id="opening"
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
                    people = [*self._persona_fields(first, "First"), *self._persona_fields(second, "Second")]
                turns = gr.Slider(1, 20, value=6, step=1, label="Turns of a run")
                moods = gr.HTML(timeline(both, labels))
        self._exports(state)
        shows = [state, log, moods]
        stepping = step_one.click(self._go_on, [state, gr.State(1)], shows, **_PRIVATE)
        running = run_on.click(self._go_on, [state, turns], shows, **_PRIVATE)
        # A change of the conversation ends the turn that is being written.
        ending: dict[str, Any] = {"cancels": [running, stepping], **_PRIVATE}
        for trigger in (begin.click, opening.submit):
            trigger(self._start, [opening, *people], shows, **ending)
        pause.click(None, **ending)
        edit.click(self._change, [state, place, changed], shows, **ending)
        return shows

    def _start(self, text: str, *people: str) -> Any:
        both = self._cast(*people)
        with self._errors_shown():
            return self._draw(Session(both, self.session.scene).said(text, both[0].name))

    def _go_on(self, state: Session, count: float) -> Iterator[Any]:
        with self._errors_shown():
            for _turn in range(int(count)):
                for step, begun in _answers(self.model, state):
                    state = step
                    yield self._draw(step, begun)

    def _change(self, state: Session, at: float | None, text: str) -> Any:
        with self._errors_shown():
            return self._draw(state.edited(int(at or 0) - 1, text))

    def compare(self, other: SelfEmo, votes: Votes) -> None:
        gr, session = self.gr, self.session
        gr.Markdown("Two models answer the same line. After your vote you see which is which.")
        now = gr.State(Session(session.characters[:1], session.scene))
        open_vote = gr.State(None)
        log = gr.HTML(transcript(Session(session.characters[:1]), self.labels))
        line = gr.Textbox(label="Your line to both", max_length=4000, elem_id="both")
        send = gr.Button("Ask both", variant="primary")
        with gr.Row():
            answers = [gr.HTML(min_height=60), gr.HTML(min_height=60)]
        choices = {"Answer 1 is better": "1", "Tie": "tie", "Answer 2 is better": "2"}
        with gr.Row():
            buttons = [gr.Button(text) for text in choices]
        told = gr.HTML(_note(""))
        with gr.Accordion("The character", open=False):
            name, about = self._persona_fields(session.characters[0], "Both play")
        self._exports(now)

        def ask(text: str, state: Session, name: str, about: str, pending: Any) -> Iterator[Any]:
            with self._errors_shown():
                if pending is not None:
                    raise DataError("vote for one of the two answers first")
                asked = Session(self._cast(name, about), state.scene, state.you, state.lines)
                asked = asked.said(text)
                sides = random.sample((0, 1), 2)
                after = [_answered((self.model, other)[side], asked) for side in sides]
                boxes = (_answer_box(n + 1, a, self.labels) for n, a in enumerate(after))
                yield "", asked, transcript(asked, self.labels), *boxes, (sides, after), ""

        def vote(choice: str, state: Session, pending: Any) -> Iterator[Any]:
            with self._errors_shown():
                if pending is None:
                    raise DataError("ask both first")
                sides, after = pending
                said = votes.add(state, sides, after, choice)
                kept = after[0] if choice != "2" else after[1]
                yield kept, transcript(kept, self.labels), "", "", None, _note(said)

        shows = [now, log, *answers, open_vote, told]
        for trigger in (line.submit, send.click):
            trigger(ask, [line, now, name, about, open_vote], [line, *shows], **_PRIVATE)
        for button, choice in zip(buttons, choices.values(), strict=True):
            button.click(functools.partial(vote, choice), [now, open_vote], shows, **_PRIVATE)

    def episodes(self, played: list[Session], watched: list[Any]) -> None:
        """Lay the tab out; `watched` are the parts of the tab "Watch two", which can continue an episode."""
        gr = self.gr
        titles = [
            f"{n + 1}. {' and '.join(c.name for c in e.characters)}: {e.lines[0].text[:50]}"
            for n, e in enumerate(played)
        ]
        which = gr.Dropdown(titles, value=titles[0], label="Episode", type="index")
        _, lines, emotions = self._draw(played[0])
        shows = [gr.HTML(lines), gr.HTML(emotions)]
        take = gr.Button("Go on from here in “Watch two”")
        which.input(lambda k: self._draw(played[k])[1:], which, shows, **_PRIVATE)
        take.click(lambda k: self._draw(played[k]), which, watched, **_PRIVATE)


def _note(text: str) -> str:
    return f'<p class="se-note" role="status">{shown(text)}</p>'


def _answer_box(n: int, after: Session, labels: LabelSet) -> str:
    said = after.lines[-1]
    tags = tag("reads", after.lines[-2].heard, labels) + tag("feels", said.felt, labels)
    return f'<div class="se-line"><b>Answer {n}</b>{tags}<div>{shown(said.text)}</div></div>'


def _answered(model: SelfEmo, asked: Session) -> Session:
    """The session with a model's answer (DataError: it could not be read)."""
    response = model.respond_many([asked.ask()])[0]
    if response.failure:
        raise DataError(f"one of the two gave no answer ({response.failure}); say it in other words")
    return asked.answered(response)


def _answers(model: SelfEmo, session: Session) -> Iterator[tuple[Session, str]]:
    """The session while the next answer is written, with the HTML of the reply so far."""
    ask = session.ask()
    tags, reply = "", ""
    for event in model.stream(ask.conversation, ask.persona, speaker=ask.speaker, scene=ask.scene):
        match event:
            case Emotion():
                tags = tag("reads", event.reading, model.labels)
            case SelfEmotion():
                tags += tag("feels", event.reading, model.labels)
            case ReplyDelta():
                reply += event.text
            case Done(response=response):
                if response.failure:
                    raise DataError(unreadable(response.failure))
                yield session.answered(response), ""
                return
        yield session, f"<b>{shown(ask.speaker)}</b>{tags}<div>{shown(reply)}</div>"


@functools.cache
def _exports() -> tempfile.TemporaryDirectory[str]:
    """The folder of exported conversations; removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="selfemo-chat-")


def export_file(text: str, name: str) -> str:
    """The path of a new file for the browser to download."""
    folder = Path(tempfile.mkdtemp(dir=_exports().name))
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def launch(page: Any, host: str, port: int) -> str:
    """Serve the page in the background; returns its address (DataError: the port is taken)."""
    import gradio as gr

    fonts = ("system-ui", "sans-serif")
    theme = gr.themes.Base(font=fonts, font_mono=("ui-monospace", "monospace"))
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port or None, prevent_thread_lock=True, quiet=True,
            theme=theme, css=CSS, share=False, ssr_mode=False, footer_links=[], show_error=True,
        )  # fmt: skip
    except OSError as e:
        raise DataError(f"{host}:{port} cannot be listened at ({e}); choose another --port") from None
    return str(address)
