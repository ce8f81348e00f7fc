"""`selfemo chat` in the terminal: lines are answered with emotions beside them; commands begin with /."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfemo.counting import counted
from selfemo.errors import DataError, SelfEmoError
from selfemo.files import write_text
from selfemo.runs.dialogues import visible
from selfemo.serve.answers import Done, Emotion, ReadEmotion, ReplyDelta, SelfEmotion
from selfemo.serve.chat.episodes import load_episodes, title
from selfemo.serve.chat.session import (
    Character,
    Session,
    character,
    sample_characters,
    search_characters,
    strongest,
    unreadable,
)
from selfemo.serve.selfemo import SelfEmo

HELP = """\
Type a line and press Enter. In brackets: the three strongest emotions that are
read in a line, or that its speaker feels; behind a reply, how surely it
expresses them.
  /persona NAME[: ...]     talk with somebody of the sample set, or of your own
  /persona                 list the sample set by tens; /more: the next ones
  /find WORDS              list who has these words in the name or description
  /scene TEXT              change where the conversation takes place
  /watch [N] [NAME[: ...]] the character and a second one (--second, or NAME)
                           talk with each other for N turns (1)
  /undo                    take back the last line and the answer to it
  /edit N TEXT             change line N; the lines after it are removed
  /show                    the whole conversation with its emotions
  /episodes [N]            list the run's self-play episodes; N: go on from N
  /export FILE             save as .jsonl (a data set of selfemo) or .md, under
                           a name that no file has yet
  /quit                    end; so does Ctrl-D"""
_PAGE = 10
_MANY = 50


def chat(model: SelfEmo, session: Session, console: Console, second: Character | None = None) -> Session:
    """Talk until the input ends; returns the last session. `second` is whom /watch adds by default."""
    return _Terminal(model, session, console, second).run()


class _Terminal:
    def __init__(self, model: SelfEmo, session: Session, console: Console, second: Character | None):
        self.model, self.session, self.console, self.second = model, session, console, second
        self.tty = sys.stdin.isatty()
        self.listed: list[Character] = []  # what /more goes on with
        self.exported: set[Path] = set()

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
                    self._say(f"  [{said}, read as {_three(event.reading)}]", "dim")
                case SelfEmotion():
                    self._say(name, "bold", end="")
                    self._say(f" [feels {_three(event.reading)}]: ", "dim", end="")
                    started = True
                case ReplyDelta():
                    self._say(event.text, end="")
                case Done(response=response):
                    if started:
                        self.console.print()
                    if response.failure:
                        self._say(unreadable(response.failure), "red")
                    self.session = self.session.answered(response)
                    if not response.failure and (said := self.session.lines[-1].expression()):
                        self._say(f"  [feels {response.self_emotion}, {said}]", "dim")

    def _command(self, name: str = "", rest: str = "") -> bool:
        """Run a command; True ends the chat."""
        match name.lower():
            case "quit" | "exit" | "q":
                return True
            case "persona" if rest:
                self._persona(rest)
            case "persona" | "find":
                self.listed = search_characters(rest)
                if not self.listed:
                    raise DataError(f"nobody has {rest!r} in the name or description; /persona lists all")
                self._more()
            case "more":
                self._more()
            case "scene":
                self.session = replace(self.session, scene=rest)
            case "watch":
                self._watch(rest)
            case "undo":
                if not self.session.lines:
                    raise DataError("there is nothing to undo: nothing was said yet")
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

    def _persona(self, text: str) -> None:
        """Begin a new conversation with somebody.

        A name that nobody has begins none: it lists those with these words, else those with a name near it.
        """
        chosen = character(text)
        if ":" not in text and not chosen.description:
            name = chosen.name
            known = sample_characters()
            spelled = {n.lower(): n for n in known}
            near = difflib.get_close_matches(name.lower(), spelled, n=5)
            self.listed = search_characters(name) or [known[spelled[n]] for n in near]
            own = f"/persona {name}: what they are like"
            if not self.listed:
                raise DataError(
                    f"nobody is called {name}, or nearly so; make somebody with {own}, or see /persona"
                )
            self._say(f"nobody is called {name}; choose one of these, or make somebody with {own}")
            self._more()
            return
        self.session = Session((chosen,), self.session.scene, self.session.you)
        about = f" ({chosen.description})" if chosen.description else ""
        self._say(f"a new conversation with {chosen.name}{about}", "dim")

    def _more(self) -> None:
        """Print the next page of the characters that are listed."""
        if not self.listed:
            raise DataError("nobody more is listed: /persona lists all, /find WORDS some")
        page, self.listed = self.listed[:_PAGE], self.listed[_PAGE:]
        for c in page:
            self._hang("", f"{c.name}: {c.description}", 2)
        more = f"/more: {len(self.listed)} more. " if self.listed else ""
        self._say(f"{more}/persona NAME talks with one of them, /find WORDS searches", "dim")

    def _watch(self, rest: str) -> None:
        count, _, other = rest.partition(" ")
        if any(c.isalpha() for c in count):
            count, other = "", rest
        turns = min(_number(count), _MANY) if count else 1
        first, *more = self.session.characters
        second = character(other) if other else more[0] if more else self.second
        if second is None or second.name == first.name:
            raise DataError("it takes two characters: /watch 4 NAME: what the second one is like")
        watched = replace(self.session, characters=(first, second))
        watched.ask()  # where nothing was said yet, nothing changes
        self.session = watched
        for _turn in range(turns):
            before = len(self.session.lines)
            self._answer()
            if len(self.session.lines) == before:
                break

    def _hang(self, mark: str, text: str, width: int = 4) -> None:
        """Print text whose wrapped lines stay to the right of its mark, in a column of `width`."""
        row = Table.grid()
        row.add_column(width=width)
        row.add_column()
        row.add_row(Text(mark), Text(visible(text)))
        self.console.print(row, highlight=False)

    def _show(self) -> None:
        if not self.session.lines:
            self._say("nothing was said yet", "dim")
        for n, line in enumerate(self.session.lines):
            notes = ", ".join(line.notes("read as")) or "-"
            self._hang(f"{n + 1:3}", f"{line.speaker} [{notes}]: {line.text}")

    def _episodes(self, rest: str) -> None:
        found = load_episodes(self.model.name, self.session.you)
        if rest:
            place = _number(rest) - 1
            if not 0 <= place < len(found):
                raise DataError(f"there is no episode {rest}; there are {len(found)}")
            self.session = found[place]
            self._show()
            return
        for n, session in enumerate(found):
            self._hang(f"{n + 1:3}", title(session, 60))

    def _export(self, rest: str) -> None:
        if not rest:
            raise DataError("name the file: /export talk.jsonl, or talk.md")
        if "\0" in rest:
            raise DataError("the file's name holds a NUL, which no name can have")
        path = Path(rest)
        markdown = path.suffix.lower() == ".md"
        if not markdown and path.suffix.lower() != ".jsonl":
            raise DataError(f"{path} is neither .jsonl (a data set of selfemo) nor .md (a page to read)")
        text = self.session.as_markdown() if markdown else self.session.as_jsonl(self.model.labels)
        if path.exists() and path.resolve() not in self.exported:
            raise DataError(f"{path} exists already; name another file")
        write_text(path, text)
        self.exported.add(path.resolve())
        self._say(f"{path}: {counted(len(self.session.lines), 'turns')}", "dim")


def _three(reading: ReadEmotion) -> str:
    return ", ".join(f"{emotion} {weight:.0%}" for emotion, weight in strongest(reading))


def _number(text: str) -> int:
    try:
        if text.isdecimal():  # int() also reads "+1" and "1_000"
            return int(text)
    except ValueError:  # it has thousands of digits
        pass
    raise DataError(f"{text[:20] or 'nothing'} is not a number of a line or of turns")
