"""`selfemo chat --web`: talk, watch two characters, compare two models blind, read self-play episodes.

The page shows text only as markup.py escapes it, and asks for nothing from any other host.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from selfemo.counting import counted
from selfemo.errors import DataError, SelfEmoError
from selfemo.extras import require
from selfemo.method.prompts import clean
from selfemo.serve.chat.episodes import load_episodes, title
from selfemo.serve.chat.markup import answer, gallery, note, writing
from selfemo.serve.chat.panel import EVENT, Panel, parts
from selfemo.serve.chat.session import Character, Session, sample_characters, unreadable
from selfemo.serve.chat.votes import Votes
from selfemo.serve.selfemo import SelfEmo

_HOUR = 3600
_TURNS = 6
_MOST_TURNS = 20
_SOME_TURNS = f"Math.min({_MOST_TURNS}, Math.max(1, n || {_TURNS}))"
"""Of the slider's value, in the browser: its box of a number may be empty, and gradio fails at that."""


def build(model: SelfEmo, other: SelfEmo | None, session: Session, votes: Path) -> Any:
    """The page, as a gradio.Blocks that is not launched yet (MissingExtraError: gradio is not installed).

    Args:
        other: the model to compare with; None leaves that tab out.
        votes: the file of the comparison's votes.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    require("the page", "gradio")
    import gradio as gr

    tabs = _Tabs(gr, model, session)
    # gradio copies each export to its cache, and by default never deletes it.
    with gr.Blocks(title="SELF-EMO chat", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as page:
        gr.HTML("<h1>SELF-EMO chat</h1>", elem_classes="se-title")
        gr.HTML(gallery(sample_characters().values()), apply_default_css=False, js_on_load=None)
        with gr.Tab("Talk"):
            tabs.talk()
        with gr.Tab("Watch two"):
            watched = tabs.watch()
        if other is not None:
            with gr.Tab("Compare"):
                tabs.compare(other, Votes(votes, (model.name, other.name)))
        try:
            played = load_episodes(model.name, session.you)
        except SelfEmoError:
            played = []
        if played:
            with gr.Tab("Episodes"):
                tabs.episodes(played, watched)
    return page


class _Tabs:
    """The tabs of the page; each public method lays one out and connects its buttons (`gr`: gradio)."""

    def __init__(self, gr: Any, model: SelfEmo, session: Session):
        self.gr, self.model, self.labels, self.session = gr, model, model.labels, session

    def _input(self, label: str, hint: str, name: str) -> Any:
        """A text box for a line, which grows with it; Enter sends it."""
        return self.gr.Textbox(
            label=label, placeholder=hint, show_label=False, container=False, max_length=4000,
            lines=1, max_lines=5, elem_id=name, scale=1, min_width=0,
        )  # fmt: skip

    def talk(self) -> None:
        gr, first = self.gr, self.session.characters[:1]
        with gr.Column(elem_classes="se-panel"):
            panel = Panel(gr, replace(self.session, characters=first), self.labels)
            with gr.Row(elem_classes="se-say"):
                line = self._input("Your line", "Say something", "line")
                send = gr.Button("Send", variant="primary", min_width=0)

        def say(text: str, state: Session, scene: str) -> Iterator[Any]:
            try:
                now = replace(state, scene=scene).said(text)
            except DataError as e:
                yield gr.skip(), *panel.noted(e)
                return
            first = True
            for drawing in panel.answered(self.model, now):
                # Later the text box stays as it is: the user may be typing the next line.
                yield "" if first else gr.skip(), *drawing
                first = False

        told = [line, *panel.shows]
        # One event, so that a second line waits in its box until the answer is there.
        asked = [line, panel.state, panel.scene]
        talking = gr.on([line.submit, send.click], say, asked, told, concurrency_limit=4, **EVENT)
        panel.connect([talking])

    def watch(self) -> Panel:
        gr = self.gr
        first, *more = self.session.characters
        both = replace(self.session, characters=(first, more[0] if more else Character("Bo", "Calm, dry.")))
        extra: list[Any] = []

        def controls() -> None:
            extra.append(gr.Slider(1, _MOST_TURNS, value=_TURNS, step=1, label="Turns of a run"))
            with gr.Row():
                extra.append(
                    gr.Number(label="Turn to change", precision=0, minimum=1, value=1, min_width=80, scale=1)
                )
                extra.append(gr.Textbox(label="New text", max_length=4000, min_width=120, scale=3))
            extra.append(gr.Button("Change it; drop what came after", interactive=False, size="sm"))

        with gr.Column(elem_classes="se-panel"):
            panel = Panel(gr, both, self.labels, controls)
            with gr.Column(elem_classes="se-say"):
                with gr.Row():
                    opening = self._input("First line", "A first line", "opening")
                    begin = gr.Button("Begin", variant="primary", min_width=0)
                with gr.Row(elem_classes="se-even"):
                    step_one, run_on = (
                        gr.Button(t, min_width=0, interactive=False) for t in ("Next turn", _run_for(_TURNS))
                    )
                    pause = gr.Button(
                        "Pause", min_width=0, elem_id="pause"
                    )  # page.js: off while nobody writes
        turns, place, changed, edit = extra
        state, scene = panel.state, panel.scene

        def start(text: str, state: Session, scene: str) -> Any:
            first = state.characters[0].name
            if not clean(text):
                raise DataError(f"type in the box what {first} says first")
            return "", *panel.draw(replace(state, scene=scene, lines=()).said(text, first))

        def go_on(state: Session, count: float, scene: str) -> Iterator[Any]:
            now: Session | None = replace(state, scene=scene)
            for _turn in range(int(count)):
                if now is None:
                    return
                try:
                    now = yield from panel.answered(self.model, now)
                except DataError as e:
                    yield panel.noted(e)
                    return

        def change(state: Session, at: float | None, text: str) -> Any:
            return panel.draw(state.edited(int(at or 0) - 1, text))

        running = [
            step_one.click(go_on, [state, gr.State(1), scene], panel.shows, **EVENT),
            run_on.click(
                go_on,
                [state, turns, scene],
                panel.shows,
                **EVENT,
                js=f"(state, n, scene) => [state, {_SOME_TURNS}, scene]",
            ),
        ]
        pause.click(lambda s: panel.draw(s), state, panel.shows, cancels=running, **EVENT)
        turns.change(
            lambda n: gr.update(value=_run_for(int(n))), turns, run_on, js=f"(n) => {_SOME_TURNS}", **EVENT
        )
        panel.connect(running, [step_one, run_on, edit])
        panel.change([begin.click, opening.submit], start, [opening, state, scene], [opening, *panel.shows])
        panel.change([edit.click], change, [state, place, changed], panel.shows)
        return panel

    def compare(self, other: SelfEmo, votes: Votes) -> None:
        gr = self.gr
        session = replace(self.session, characters=self.session.characters[:1])
        open_vote = gr.State(None)
        choices = {"1 is better": "1", "Tie": "tie", "2 is better": "2"}
        with gr.Column(elem_classes="se-panel"):
            panel = Panel(gr, session, self.labels)
            with gr.Column(elem_classes="se-say"):
                with gr.Row():
                    line = self._input("Your line to both", "Say something", "both")
                    send = gr.Button("Ask both", variant="primary", min_width=0)
                with gr.Row(elem_classes="se-even"):
                    buttons = [gr.Button(text, interactive=False, min_width=0) for text in choices]

        def ways(vote: bool) -> list[Any]:
            """The buttons while there is something to vote on, or not."""
            return [gr.update(interactive=not vote), *(gr.update(interactive=vote) for _ in buttons)]

        def both(after: list[Session]) -> str:
            boxes = "".join(answer(n + 1, a, self.labels) for n, a in enumerate(after))
            return f'<div class="se-both">{boxes}</div>'

        def ask(text: str, state: Session, scene: str, pending: Any) -> Iterator[Any]:
            if pending is not None:
                said = "Vote for one of the two answers first."
                drawing = (gr.skip(), gr.skip(), both(pending[1]) + note(said), gr.skip())
                yield gr.skip(), *drawing, pending, *ways(True)
                return
            try:
                now = replace(state, scene=scene).said(text)
                waits = "".join(writing(now, f"Answer {n}", "", None, self.labels) for n in (1, 2))
                yield "", *panel.draw(now, f'<div class="se-both">{waits}</div>'), None, *ways(False)
                sides = random.sample((0, 1), 2)
                after = [_answered((self.model, other)[side], now) for side in sides]
            except SelfEmoError as e:  # the line goes back to its box
                yield text, *panel.draw(state, note(str(e))), None, *ways(False)
                return
            yield gr.skip(), *panel.draw(now, both(after)), (sides, after), *ways(True)

        def vote(choice: str, state: Session, pending: Any) -> Any:
            if pending is None:
                return *panel.noted("Ask both first."), None, *ways(False)
            sides, after = pending
            try:
                said = votes.add(state, sides, after, choice)
            except DataError as e:
                return gr.skip(), gr.skip(), both(after) + note(str(e)), gr.skip(), pending, *ways(True)
            return *panel.draw(after[0] if choice != "2" else after[1], note(said)), None, *ways(False)

        voting = [*panel.shows, open_vote, send, *buttons]
        asking = gr.on(
            [line.submit, send.click],
            ask,
            [line, panel.state, panel.scene, open_vote],
            [line, *voting],
            **EVENT,
        )
        for button, choice in zip(buttons, choices.values(), strict=True):
            button.click(functools.partial(vote, choice), [panel.state, open_vote], voting, **EVENT)
        panel.connect([asking], also=[open_vote, send, *buttons], reset=lambda: (None, *ways(False)))

    def episodes(self, played: list[Session], watched: Panel) -> None:
        """Lay the tab out; the tab "Watch two" (`watched`) can continue an episode."""
        gr = self.gr
        titles = [f"{n + 1}. {title(e, 50)}" for n, e in enumerate(played)]
        with gr.Column(elem_classes="se-panel"):
            with gr.Row(elem_classes="se-head"):
                which = gr.Dropdown(
                    titles, value=titles[0], label="Episode", show_label=False, container=False, type="index"
                )
            told, emotions = parts(gr, watched.draw(played[0]))
            with gr.Column(elem_classes="se-side"):
                shows = [*told, emotions()]
            with gr.Row(elem_classes="se-say"):
                take = gr.Button("Go on in “Watch two”", variant="primary")
        which.input(lambda k: watched.draw(played[k])[1:], which, shows, **EVENT)
        take.click(
            lambda k: watched.all_of(played[k]), which, watched.whole, cancels=watched.running, **EVENT
        )


def _run_for(turns: int) -> str:
    return f"Run {counted(turns, 'turns')}"


def _answered(model: SelfEmo, asked: Session) -> Session:
    """The session with a model's answer (DataError: it could not be read)."""
    response = model.respond_many([asked.ask()])[0]
    if response.failure:
        raise DataError(f"One of the two: {unreadable(response.failure)}")
    return asked.answered(response)


def launch(page: Any, host: str, port: int, root_path: str = "") -> str:
    """Serve the page in the background; returns its address (DataError: the port is taken).

    Args:
        root_path: its path, or its whole address, behind a proxy.
    """
    import gradio as gr

    here = files("selfemo.serve.chat")
    look, behaviour = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    fonts = ("system-ui", "sans-serif")
    theme = gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", radius_size="lg",
        font=fonts, font_mono=("ui-monospace", "monospace"),
    )  # fmt: skip
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port or None, prevent_thread_lock=True, quiet=True,
            theme=theme, css=look, head=f"<script>{behaviour}</script>", share=False, ssr_mode=False,
            footer_links=[], show_error=True, root_path=root_path or None,
        )  # fmt: skip
    except OSError as e:
        raise DataError(f"{host}:{port} cannot be listened at ({e}); choose another --port") from None
    return str(address)
