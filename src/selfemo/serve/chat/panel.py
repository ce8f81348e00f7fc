"""One conversation on the page, for all tabs: its lines, characters, emotions over the turns, buttons.

`gr` is gradio, an optional extra.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfemo.errors import SelfEmoError
from selfemo.method.prompts import clean
from selfemo.method.types import LabelSet
from selfemo.serve.answers import Done, Emotion, ReplyDelta, SelfEmotion
from selfemo.serve.chat.markup import note, portrait, sentence, shown, timeline, transcript, writing
from selfemo.serve.chat.session import Character, Session, unreadable
from selfemo.serve.selfemo import SelfEmo

EVENT: Any = {"api_visibility": "private", "show_progress": "hidden"}
"""For each event of the page: it is no part of gradio's public API, and nothing covers what it changes."""
Drawing = tuple[Any, Any, Any, Any]
"""New values of a panel's state, lines, turn that is being written, and timeline."""

# props.value is also what Python gets as the component's value.
_CHOOSE = """element.addEventListener("click", () => window.selfemoChoose((name, about) => {
  props.value = {...props.value, name, about};
  trigger("submit");
}));"""


def parts(gr: Any, drawing: Drawing) -> tuple[list[Any], Callable[[], Any]]:
    """The lines and the turn that is being written, laid out here; and what lays the timeline out."""
    _, lines, begun, moods = drawing
    with gr.Column(elem_classes="se-scroll"):
        told = [gr.HTML(lines), gr.HTML(begun)]

    def emotions() -> Any:
        with gr.Accordion("Emotions, turn by turn"):
            return gr.HTML(moods)

    return told, emotions


class Panel:
    """The layout of one conversation; made inside a column of the class `se-panel`.

    Attributes:
        state: the session.
        shows: the components of a `Drawing`; the first is the state.
        scene: the text box of the scene.
        whole: the components that `all_of` has the values of.
        running: the events that write turns; `connect` sets them.
    """

    def __init__(self, gr: Any, session: Session, labels: LabelSet, more: Callable[[], None] = lambda: None):
        """`more` lays out what else belongs under "Scene and more"."""
        self.gr, self.labels = gr, labels
        self.running: list[Any] = []
        self.state = gr.State(session)
        with gr.Row(elem_classes="se-head"):
            self._people = [self._person(c) for c in session.characters]
            self._undo, self._new = (
                gr.Button(text, interactive=False, min_width=0, elem_classes="se-small")
                for text in ("Undo", "New")
            )
        told, emotions = parts(gr, self.draw(session))
        with gr.Column(elem_classes="se-side"):
            self.shows = [self.state, *told, emotions()]
            with gr.Accordion("Scene and more", open=False):
                self.scene = gr.Textbox(
                    session.scene, label="Scene", max_length=500, placeholder="A kitchen, late.",
                    info="Where the talk takes place; it counts from the next line on.",
                )  # fmt: skip
                more()
                with gr.Row():
                    self._saves = [
                        gr.DownloadButton(f"Save as {kind}", interactive=False, min_width=0, size="sm")
                        for kind in ("JSONL", "Markdown")
                    ]
        self.whole = [*self.shows, self.scene, *self._people]

    def _person(self, character: Character) -> Any:
        return self.gr.HTML(
            _face(character),
            html_template='<button class="se-person" title="Choose somebody else">${value.card}'
            '<span class="se-change"><span>change</span></span></button>',
            js_on_load=_CHOOSE,
            apply_default_css=False,
            elem_classes="se-people",
        )

    def connect(
        self,
        running: Sequence[Any],
        needs_lines: Sequence[Any] = (),
        also: Sequence[Any] = (),
        reset: Callable[[], Sequence[Any]] = tuple,
    ) -> None:
        """Connect the panel's own buttons.

        Args:
            running: the events that write turns.
            needs_lines: buttons that are of use once something was said.
            also: components that a change of the conversation sets to the values of `reset`.
        """
        self.running = list(running)
        ending: Any = {"cancels": self.running, **EVENT}
        state = self.state
        shows = [*self.shows, *also]
        self._undo.click(lambda s: (*self.draw(s.undone()), *reset()), state, shows, **ending)
        self._new.click(lambda s: (*self.draw(replace(s, lines=())), *reset()), state, shows, **ending)
        for place, person in enumerate(self._people):

            def choose(wanted: dict[str, str], now: Session, place: int = place) -> Any:
                return *self._choose(place, wanted, now), *reset()

            self.change([person.submit], choose, [person, state], [person, *shows])
        gr = self.gr
        buttons = [self._undo, self._new, *needs_lines]

        # The files are made whenever the conversation changes, so that one press downloads them.
        def ready(now: Session) -> list[Any]:
            some = bool(now.lines)
            ways = [gr.update(interactive=some) for _ in buttons]
            if not some:
                return [*ways, *(gr.update(interactive=False) for _ in self._saves)]
            files = (
                export_file(now.as_jsonl(self.labels), "chat.jsonl"),
                export_file(now.as_markdown(), "chat.md"),
            )
            return [*ways, *(gr.update(value=f, interactive=True) for f in files)]

        state.change(ready, state, [*buttons, *self._saves], **EVENT)

    def change(
        self,
        triggers: Sequence[Any],
        changed: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
    ) -> None:
        """Connect a change of the conversation that may be refused (SelfEmoError); call it after `connect`.

        It ends the turn that is being written. gradio does that before it calls the function, so a first
        event only tries the change: a refusal is told, and everything stays as it is. A change that is
        accepted counts a state up, whose event makes it (`success` of the first event would end no other).
        """
        gr = self.gr
        accepted = gr.State(0)

        def tried(count: int, *given: Any) -> int:
            try:
                changed(*given)
            except SelfEmoError as e:
                raise gr.Error(shown(sentence(str(e))), print_exception=False) from None
            return count + 1

        gr.on(triggers, tried, [accepted, *inputs], accepted, **EVENT)
        accepted.change(changed, inputs, outputs, cancels=self.running, **EVENT)

    def _choose(self, place: int, wanted: dict[str, str], state: Session) -> Any:
        people = list(state.characters)
        people[place] = Character(clean(wanted["name"])[:200], clean(wanted["about"])[:2000])
        return _face(people[place]), *self.draw(replace(state, characters=tuple(people)))

    def draw(self, session: Session, begun: str = "") -> Drawing:
        """A session, with the HTML of what stands below its lines."""
        return session, transcript(session, self.labels), begun, timeline(session, self.labels)

    def noted(self, error: SelfEmoError | str) -> Drawing:
        """A message below the lines, which stay."""
        return self.gr.skip(), self.gr.skip(), note(str(error)), self.gr.skip()

    def all_of(self, session: Session) -> tuple[Any, ...]:
        """The values of `whole` for a session."""
        faces = [_face(c) for c in session.characters[: len(self._people)]]
        faces += [self.gr.skip()] * (len(self._people) - len(faces))
        return *self.draw(session), session.scene, *faces

    def answered(self, model: SelfEmo, session: Session) -> Generator[Drawing, None, Session | None]:
        """Draw the next answer while it is written; returns the session with it, None if there is none.

        The lines stay without an answer, and a note says why there is none.
        """
        ask, skip = session.ask(), self.gr.skip()
        felt, reply = None, ""

        def begun() -> str:
            return writing(session, ask.speaker, reply, felt, self.labels)

        yield self.draw(session, begun())
        try:
            for event in model.stream(ask.conversation, ask.persona, speaker=ask.speaker, scene=ask.scene):
                lines = skip
                match event:
                    case Emotion():
                        session = session.heard(event.reading)
                        lines = transcript(session, self.labels)
                    case SelfEmotion():
                        felt = event.reading
                    case ReplyDelta():
                        reply += event.text
                    case Done(response=response):
                        session = session.answered(response)
                        yield self.draw(
                            session, note(unreadable(response.failure) if response.failure else "")
                        )
                        return None if response.failure else session
                yield skip, lines, begun(), skip
        except SelfEmoError as e:
            yield self.draw(session, note(str(e)))
        return None


def _face(character: Character) -> dict[str, str]:
    return {"card": portrait(character), "name": character.name, "about": character.description}


@functools.cache
def _exports() -> tempfile.TemporaryDirectory[str]:
    """The folder of exported conversations; removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="selfemo-chat-")


def export_file(text: str, name: str) -> str:
    """The path of a new file for the browser to download."""
    folder = Path(tempfile.mkdtemp(dir=_exports().name))
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)
