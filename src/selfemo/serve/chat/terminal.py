"""`selfemo chat` in the terminal: lines are answered with emotions beside them; commands begin with /."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from selfemo.errors import DataError, SelfEmoError
from selfemo.files import write_text
from selfemo.runs.dialogues import visible
from selfemo.serve.answers import Done, Emotion, ReplyDelta, SelfEmotion
from selfemo.serve.chat.episodes import load_episodes
from selfemo.serve.chat.session import Character, Session, character, sample_characters, unreadable
from selfemo.serve.selfemo import SelfEmo

HELP = """\
Type a line and press Enter. The words in brackets are the emotions that are heard or felt.
/persona [NAME[: what they are like]]   talk with another character; without NAME: list characters
/scene TEXT                              change where the conversation takes place
/watch [N] [NAME[: ...]]                 two characters talk with each other for N turns (1)
/undo                                    take back the last line and the answer to it
/edit N TEXT                             change line N; the lines after it are removed
/show                                    the whole conversation with its emotions
/episodes [N]                            list the run's self-play episodes; N: continue episode N
/export FILE                             save as .jsonl (a data set of selfemo) or .md
/quit                                    end; so does Ctrl-D"""
_MANY = 50


def chat(model: SelfEmo, session: Session, console: Console) -> Session:
    """Talk until the input ends; returns the last session."""
    return _Terminal(model, session, console).run()


class _Terminal:
    def __init__(self, model: SelfEmo, session: Session, console: Console):
        self.model, self.session, self.console = model, session, console
        self.tty = sys.stdin.isatty()

    def run(self) -> Session:
        who = ", ".join(c.name for c in self.session.characters)
        self._say(f"{self.model.name} plays {who}. /help lists the commands.", "dim")
        for text in self._lines():
            try:
                if text.startswith("/"):
                    if self._command(*text[1:].split(maxsplit=1)):
                        break
                elif text:
                    self.session = self.session.said(text)
                    self._answer()
            except SelfEmoError as e:
                self._say(f"{e}", "red")
        return self.session

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                yield input(f"{self.session.you}: " if self.tty else "").strip()
            except EOFError:
                return
            except UnicodeDecodeError as e:
                self._say(f"the input is not UTF-8 ({e.reason}); that line was left out", "red")

    def _say(self, text: str, style: str = "", end: str = "\n") -> None:
        self.console.print(Text(visible(text), style), end=end, highlight=False, soft_wrap=not end)

    def _answer(self, who: Character | None = None) -> None:
        """Print the next answer as it is written, with the emotions before it."""
        ask = self.session.ask(who)
        name, started = ask.speaker, False
        for event in self.model.stream(ask.conversation, ask.persona, speaker=name, scene=ask.scene):
            match event:
                case Emotion():
                    said = self.session.lines[-1].speaker
                    self._say(f"  [{said} sounds {event.reading.emotion}]", "dim")
                case SelfEmotion():
                    self._say(f"{name} [{event.reading.emotion}]: ", "bold", end="")
                    started = True
                case ReplyDelta():
                    self._say(event.text, end="")
                case Done(response=response):
                    if started:
                        self.console.print()
                    if response.failure:
                        self._say(unreadable(response.failure), "red")
                    self.session = self.session.answered(response)

    def _command(self, name: str = "", rest: str = "") -> bool:
        """Run a command; True ends the chat."""
        match name.lower():
            case "quit" | "exit" | "q":
                return True
            case "persona" if not rest:
                for c in sample_characters().values():
                    self._say(f"  {c.name}: {c.description}")
            case "persona":
                self.session = Session((character(rest),), self.session.scene, self.session.you)
                self._say(f"a new conversation with {self.session.characters[0].name}", "dim")
            case "scene":
                self.session = replace(self.session, scene=rest)
            case "watch":
                self._watch(rest)
            case "undo":
                self.session = self.session.undone()
                self._show()
            case "edit":
                place, _, text = rest.partition(" ")
                self.session = self.session.edited(_number(place) - 1, text)
                if self.session.lines[-1].speaker == self.session.you:
                    self._answer()
                else:
                    self._show()
            case "show":
                self._show()
            case "episodes":
                self._episodes(rest)
            case "export":
                self._export(rest)
            case "help" | "?":
                self._say(HELP)
            case _:
                self._say(f"there is no /{name}; /help lists the commands", "red")
        return False

    def _watch(self, rest: str) -> None:
        count, _, other = rest.partition(" ")
        if count and not count.isdigit():
            count, other = "1", rest
        if other:
            pair = (self.session.characters[0], character(other))
            self.session = replace(self.session, characters=pair)
        if len(self.session.characters) < 2:
            raise DataError("it takes two characters: /watch 4 NAME: what the second one is like")
        for _turn in range(min(_number(count or "1"), _MANY)):
            before = len(self.session.lines)
            self._answer()
            if len(self.session.lines) == before:
                break

    def _show(self) -> None:
        for n, line in enumerate(self.session.lines):
            notes = ", ".join(line.notes("sounds")) or "-"
            self._say(f"{n + 1:3} {line.speaker} [{notes}]: {line.text}")

    def _episodes(self, rest: str) -> None:
        found = load_episodes(self.model.name)
        if rest:
            place = _number(rest) - 1
            if not 0 <= place < len(found):
                raise DataError(f"there is no episode {rest}; there are {len(found)}")
            self.session = found[place]
            self._show()
            return
        for n, session in enumerate(found):
            who = " and ".join(c.name for c in session.characters)
            self._say(f"{n + 1:3} {who}, {len(session.lines)} turns: {session.lines[0].text[:60]}")

    def _export(self, rest: str) -> None:
        if not rest:
            raise DataError("name the file: /export talk.jsonl, or talk.md")
        path = Path(rest)
        markdown = path.suffix.lower() in (".md", ".markdown")
        text = self.session.as_markdown() if markdown else self.session.as_jsonl(self.model.labels)
        write_text(path, text)
        self._say(f"{path}: {len(self.session.lines)} turns", "dim")


def _number(text: str) -> int:
    if not text.isdigit():
        raise DataError(f"{text or 'nothing'} is not a number of a line or of turns")
    return int(text)
