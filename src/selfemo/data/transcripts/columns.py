"""The columns of a table, or the keys of JSON, that hold the text, the speaker and the conversation."""

from __future__ import annotations

import ast
import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from selfemo.data.base import SourceFile
from selfemo.data.transcripts.reading import ReadSettings
from selfemo.errors import DataError

ONE = "none"
"""The name of the conversation column that makes a file one conversation."""

# Names as `squashed` makes them, the best first.
_TEXTS = (
    "text", "utterance", "utterancetext", "message", "messagetext", "messagebody", "messagecontent", "msg",
    "chatmessage", "content", "body", "partbody", "transcript", "transcription", "transcripttext",
    "sentence", "line", "linetext", "comment", "commenttext", "dialoguetext", "dialogtext", "said", "says",
    "speech", "turntext", "post", "posttext", "tweet", "caption", "subtitle", "quote", "value", "dialogue",
    "dialog", "texte", "texto", "testo", "tekst", "nachricht", "mensaje", "messaggio", "mensagem",
    "kommentar", "commentaire", "comentario", "commento",
)  # fmt: skip
_SPEAKERS = (
    "speaker", "speakername", "speakerlabel", "speakers", "name", "character", "charactername", "role",
    "author", "authorname", "sender", "sendername", "from", "fromname", "fromuser", "user", "username",
    "displayname", "fromdisplayname", "authordisplayname", "screenname", "handle", "participant",
    "participantname", "nick", "nickname", "who", "person", "actor", "speakerrole", "participantrole",
    "party", "agent", "commenter", "requester", "speakerid", "speakeridx", "speakerindex", "speakerno",
    "authorid", "senderid", "fromid", "userid", "participantid", "sprecher", "sprecherin", "absender",
    "autor", "auteur", "autore", "locuteur", "hablante", "falante", "parlante", "spreker",
)  # fmt: skip
_PARTED = (
    "conversation", "conv", "convo", "dialogue", "dialog", "thread", "ticket", "session", "chat", "case",
    "call", "interview", "scene", "episode", "meeting", "interaction", "transcript", "room", "channel",
    "gespräch", "gesprächs", "unterhaltung", "sitzung", "conversación", "conversazione", "conversa",
    "gesprek",
)  # fmt: skip
_NUMBERED = ("id", "uuid", "key", "number", "no", "nr", "num", "index", "idx", "", "name")
OBJECT_IDS = ("id", "uuid", *(w + n for w, n in product(_PARTED, _NUMBERED[:8])))
"""Names of the key that numbers an object with turns; "scene" alone describes it."""
# "transcript" alone is a text.
_CONVERSATIONS = tuple(w + n for w, n in product(_PARTED, _NUMBERED) if w + n != "transcript")
# A scene is numbered within its episode, that within its season.
_NESTED = tuple(tuple(w + n for n in _NUMBERED) for w in ("season", "episode", "scene"))
_NEAR = 0.6
USUAL_TEXTS = ("text", "utterance", "message", "content")
"""The most usual names of the text, for messages."""


def squashed(name: str) -> str:
    """A name without case, blanks and marks: "Ticket ID", "ticket_id" and "ticketId" are the same."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


@dataclass(frozen=True)
class Columns:
    """The column of each role; `conversation` may be several."""

    text: str | None
    speaker: str | None
    conversation: tuple[str, ...]

    def by_role(self) -> dict[str, str]:
        """What was taken, as `Reading.columns` has it."""
        found = {"text": self.text, "speaker": self.speaker, "conversation": ", ".join(self.conversation)}
        return {role: name for role, name in found.items() if name}


def find_columns(names: Sequence[str], settings: ReadSettings) -> Columns:
    """The columns that are asked for, else those of usual names; None for one that is not there."""
    text = _found(names, settings.text, _TEXTS)
    speaker = _found([n for n in names if n != text], settings.speaker, _SPEAKERS)
    if settings.conversation:
        wanted = asked_conversation(names, settings.conversation)
        conversation = tuple(filter(None, (match(names, name) for name in wanted)))
    else:
        conversation = _usual_conversation([n for n in names if n not in (text, speaker)])
    return Columns(text, speaker, conversation)


def check_columns(names: Sequence[str], settings: ReadSettings) -> None:
    """Raises: ValueError for a column that is asked for and not there; the message names those that are."""
    wanted = [("--text-column", settings.text), ("--speaker-column", settings.speaker)]
    wanted += [("--conversation-column", c) for c in asked_conversation(names, settings.conversation)]
    for option, name in wanted:
        if name and match(names, name) is None:
            near = difflib.get_close_matches(squashed(name), map(squashed, names), n=1, cutoff=_NEAR)
            hint = next((f"; did you mean {n!r}?" for n in names if near and squashed(n) == near[0]), "")
            raise ValueError(f"has no column {name!r} ({option}); it has {', '.join(names)}{hint}")


def asked_conversation(names: Sequence[str], asked: str) -> list[str]:
    """The names that `--conversation-column` gives: one, several with commas between, or none."""
    if asked.casefold() == ONE and match(names, asked) is None:
        return []
    one = not asked or "," not in asked or match(names, asked) is not None
    return [asked] if asked and one else [part.strip() for part in asked.split(",") if part.strip()]


def match(names: Sequence[str], name: str) -> str | None:
    """The column of a name: the very name, else the only one that differs by case, blanks or marks."""
    if name in names:
        return name
    alike = [n for n in names if squashed(n) == squashed(name)]
    return alike[0] if len(alike) == 1 else None


def _found(names: Sequence[str], asked: str, usual: Sequence[str]) -> str | None:
    if asked:
        return match(names, asked)
    by_name = {squashed(n): n for n in reversed(names)}
    return next((by_name[u] for u in usual if u in by_name), None)


def _usual_conversation(names: Sequence[str]) -> tuple[str, ...]:
    found = _found(names, "", _CONVERSATIONS)
    if found is None:
        return ()
    depth = next((d for d, words in enumerate(_NESTED) if squashed(found) in words), 0)
    around = (_found(names, "", words) for words in _NESTED[:depth])
    return (*filter(None, around), found)


def speaker_of(value: str) -> str:
    """A name; the list of names that EmoryNLP writes (`['Ann', 'Bo']`) is joined."""
    if value.startswith("[") and value.endswith("]"):
        try:
            names = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
        if isinstance(names, list) and names and all(isinstance(n, str) for n in names):
            return " and ".join(filter(None, names))
    return value


class Conversations:
    """The conversation of each row; the rows of one must stand together.

    Args:
        whole: the name where there is no column.
    """

    def __init__(self, source: SourceFile, whole: str):
        self._source, self._whole = source, whole
        self._current, self._seen, self._filled = whole, set[int](), False

    def of(self, names: Sequence[str], values: Sequence[str], line: int, *, told: bool = True) -> str:
        """The name of a row's conversation.

        Args:
            told: the row has a text; one without may leave its conversation open.

        Raises:
            DataError: the conversation went on before another one, or a row after the first names none.
        """
        name = ", ".join(" ".join(v.split()) for v in values) if any(map(str.strip, values)) else ""
        if not names or (not name and not told):
            return self._current
        columns = " and ".join(map(repr, names))
        ways = "take the file as one conversation by --conversation-column none, or name another column by it"
        if not name:
            if self._filled:
                raise DataError(
                    f"column {columns} is empty here: fill it in, or {ways}", self._source.path, line
                )
            self._source.blemish("rows without a conversation", line)
            return self._current
        if name != self._current or not self._filled:
            if hash(name) in self._seen:
                raise DataError(
                    f"conversation {name[:60]!r} goes on here after another one (column {columns}): sort the "
                    f"rows by {columns} and keep their order within it, or {ways}",
                    self._source.path,
                    line,
                )
            self._seen.add(hash(name))
            self._current, self._filled = name, True
        return name

    def begin(self, name: str, line: int) -> None:
        """Begin a conversation that is no column's value (DataError: the name occurs twice)."""
        if hash(name) in self._seen:
            raise DataError(f"conversation {name[:60]!r} occurs twice", self._source.path, line)
        self._seen.add(hash(name))
        self._current, self._filled = "", True
