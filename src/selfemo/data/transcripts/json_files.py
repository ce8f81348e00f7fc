"""JSON files, and the shapes of JSON that programs write: conversations and turns are found by their keys.

An object with a list of turns is a conversation. A list of turns without one, or an object a line, is a
table. Lists and objects around conversations are gone into.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from selfemo.data.base import MAX_FILE_BYTES
from selfemo.data.jsonl import unique_keys
from selfemo.data.transcripts.columns import (
    OBJECT_IDS,
    USUAL_TEXTS,
    Columns,
    Conversations,
    asked_conversation,
    check_columns,
    find_columns,
    match,
    squashed,
)
from selfemo.data.transcripts.reading import SPEAKER, Form, Reading, ReadSettings, SourceTurn
from selfemo.errors import DataError
from selfemo.method.types import LabelSet, label_set_of

_TURNS = (
    "turns", "messages", "utterances", "dialogue", "dialog", "conversation", "conversations", "segments",
    "audiosegments", "chatmessages", "lines", "transcript", "chat",
)  # fmt: skip
# Of a speaker that is an object.
_PERSON = ("displayname", "nickname", "realname", "name", "username", "login", "role", "label", "id")
_SPOKEN_TYPES = ("Default", "Reply", "ChatInputCommand", "ContextMenuCommand", "ThreadStarterMessage")
"""Types of Discord's messages that somebody wrote; the others say who came, what was pinned, and the like."""
_LONG = 500
"""Characters of a value beside the turns, at most, to be repeated on each of them."""
_DEPTH = 20
_KEYS = 1000
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_AS_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_BLANK = re.compile(r"\s*")
_EMPTY: tuple[Any, ...] = (None, "", [], {})


def _constant(name: str) -> str | None:
    """NaN, which pandas writes for a missing value, is None."""
    return None if name == "NaN" else name


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=_constant)


def values_of(raw: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of the JSON values of a text, one after the other.

    Raises:
        ValueError: broken JSON (json.JSONDecodeError), a key that occurs twice, or nested too deep.
    """
    at, line, counted = _skip(raw, 0), 1, 0
    while at < len(raw):
        line, counted = line + raw.count("\n", counted, at), at
        try:
            value, end = _DECODER.raw_decode(raw, at)
        except RecursionError:
            raise ValueError("JSON is nested too deep") from None
        yield line, _readable(value) if _SURROGATE_AS_ESCAPE.search(raw, at, end) else value
        at = _skip(raw, end)


def _skip(raw: str, at: int) -> int:
    found = _BLANK.match(raw, at)
    return found.end() if found else at


def _readable(value: Any) -> Any:
    """A value without lone surrogates, which JSON can spell and UTF-8 cannot."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_readable(v) for v in value]
    if isinstance(value, dict):
        return {_readable(k): _readable(v) for k, v in value.items()}
    return value


@dataclass(frozen=True)
class _Around:
    """What an object says of the turns inside: the conversation, and what is carried on each turn."""

    name: str
    scene: str = ""
    labels: LabelSet | None = None
    extras: dict[str, Any] = field(default_factory=dict)


def _is_service(item: dict[str, Any]) -> bool:
    """Whether a message is of the program: Telegram's and Slack's by their kind, Discord's by its type."""
    kind, discord = item.get("type"), "isPinned" in item and "timestamp" in item
    return (
        kind == "service"
        or str(item.get("subtype")).startswith(("channel_", "group_"))
        or (discord and isinstance(kind, str) and kind not in _SPOKEN_TYPES)
    )


class JsonTurns:
    """The turns of the JSON values of one file, whatever their shape."""

    def __init__(self, path: Path, settings: ReadSettings, reading: Reading):
        self._path, self._settings, self._reading = path, settings, reading
        self._source = reading.source(path)
        self._conversations = Conversations(self._source, path.stem)
        self._keys: dict[str, None] = {}
        self._found: dict[tuple[str, ...], Columns] = {}
        self._rows = self._texts = 0
        self._key_columns: tuple[str, ...] = ()

    def of(self, value: Any, line: int, name: str) -> Iterator[SourceTurn]:
        """The turns of one value that begins on a line; `name` is the conversation if nothing else names it.

        Raises:
            DataError: no conversation and no turn is in it, or one is broken.
        """
        if not isinstance(value, list | dict):
            raise DataError("is JSON, but no object and no list", self._path, line)
        yield from self._inside(value, line, name, "", 0)

    def finish(self) -> None:
        """Raises: DataError if no turn had a text, or never a key that is asked for."""
        keys = list(self._keys)
        try:
            if self._rows:
                check_columns(keys, self._settings)
        except ValueError as e:
            raise DataError(str(e), self._path) from None
        if self._rows and not self._texts:
            raise DataError(
                f"no turn has a text; name its key by --text-column: the keys are {', '.join(keys)}",
                self._path,
            )

    def _inside(self, value: Any, line: int, name: str, place: str, depth: int) -> Iterator[SourceTurn]:
        if depth > _DEPTH:
            raise DataError("JSON is nested too deep", self._path, line)
        if isinstance(value, dict) and self._turns_key(value) is None:
            value = _as_list(value)
        if isinstance(value, list):
            # Texts alone are turns where no key says that they are something else.
            if self._is_turns(value, texts="." not in place and place[:1] in ("", "[")):
                yield from self._listed(value, line, name, place)
            else:
                for n, item in enumerate(value):
                    inner = f"{name}-{n + 1}" if place else str(n + 1)
                    yield from self._inside(item, line, inner, f"{place}[{n}]", depth + 1)
            return
        if not isinstance(value, dict):
            raise DataError(f"{place} is no conversation and no turn", self._path, line)
        key = self._turns_key(value)
        if key is not None:
            yield from self._object(value, key, line, name, place)
        elif self._is_turn(value) or (self._rows and not place and not self._holds(value, depth)):
            yield from self._turn(value, None, line, place)
        elif self._holds(value, depth):
            for key, item in value.items():
                if self._holds(item, depth):
                    inner = f"{name}-{key}" if place else key
                    yield from self._inside(item, line, inner, f"{place}.{key}".lstrip("."), depth + 1)
                else:
                    self._reading.leave_out("values outside of conversations", f"{key}: {_dump(item)}", line)
        else:
            raise DataError(self._nothing(value, place).lstrip(" ."), self._path, line)

    def _nothing(self, value: dict[str, Any], place: str) -> str:
        text = self._columns(value).text
        if text is not None:
            kind = "an object" if isinstance(value[text], dict) else "a list or true or false"
            return f"{place}.{text} is no text but {kind}; write each turn as an object"
        keys = list[str]()
        for key, item in value.items():
            first = item[0] if isinstance(item, list) and item else None
            keys += [f"{key}[].{k}" for k in first] if isinstance(first, dict) else [key]
        return (
            f"{place} is no conversation (an object with a list of turns, "
            f"messages, ...) and no turn with a text ({', '.join(USUAL_TEXTS)}, ...); the keys are "
            f"{', '.join(keys) or 'none'}: name that of the text by --text-column"
        )

    def _holds(self, value: Any, depth: int) -> bool:
        """Whether a value has a conversation or a turn somewhere inside."""
        if depth > _DEPTH:
            return False
        value = _as_list(value)
        if isinstance(value, list):
            return self._is_turns(value) or any(self._holds(v, depth + 1) for v in value)
        if not isinstance(value, dict):
            return False
        if self._turns_key(value) is not None or self._is_turn(value):
            return True
        return any(self._holds(v, depth + 1) for v in value.values())

    def _turns_key(self, item: dict[str, Any]) -> str | None:
        """The key of an object's list of turns; an empty list only where no other is there."""
        lists = {squashed(k): k for k, v in reversed(item.items()) if isinstance(_as_list(v), list)}
        usual = [lists[t] for t in _TURNS if t in lists]
        filled = next((k for k in usual if self._is_turns(_as_list(item[k]), texts=True)), None)
        return filled or next((k for k in usual if not item[k]), None)

    def _is_turns(self, value: Any, texts: bool = False) -> bool:
        """Whether a list is one of turns; `texts`: texts alone are turns too."""
        if not isinstance(value, list) or not value:
            return False
        if all(isinstance(v, str) for v in value):
            return texts
        return any(isinstance(v, dict) and self._is_turn(v) for v in value)

    def _is_turn(self, item: dict[str, Any]) -> bool:
        key = self._columns(item).text
        return key is not None and _text(item[key]) is not None and self._turns_key(item) is None

    def _columns(self, item: dict[str, Any]) -> Columns:
        """The keys of a turn's roles; an empty name is passed over."""
        names = tuple(item)
        text = self._by_names(names).text
        filled = tuple(k for k in names if k == text or item[k] not in _EMPTY)
        return self._by_names(filled)

    def _by_names(self, names: tuple[str, ...]) -> Columns:
        if names not in self._found:
            if len(self._found) > _KEYS:
                self._found.clear()
            self._found[names] = find_columns(names, self._settings)
        return self._found[names]

    def _object(
        self, item: dict[str, Any], key: str, line: int, name: str, place: str
    ) -> Iterator[SourceTurn]:
        """The turns of a conversation, with what stands beside them."""
        turns, beside = _as_list(item[key]), {k: v for k, v in item.items() if k != key}
        where = f"{place}.{key}".lstrip(".")
        self._keys |= dict.fromkeys(beside)
        if not turns:
            self._reading.leave_out("conversations without turns", _dump(item), line)
            return
        asked = asked_conversation(tuple(beside), self._settings.conversation)
        ids = [match(tuple(beside), a) for a in asked]
        if not asked:
            by_name = {squashed(k): k for k in reversed(beside)}
            ids = [next((by_name[i] for i in OBJECT_IDS if i in by_name and _name(beside[by_name[i]])), None)]
        taken = [k for k in ids if k]
        rows = any(isinstance(t, dict) and self._columns(t).conversation for t in turns)
        if (asked or rows) and len(taken) < len(ids):
            around = _Around("")  # the turns name their conversations
        elif self._settings.conversation and not asked:
            around = _Around(self._path.stem)
        else:
            given = ", ".join(self._source.clean(_name(beside.pop(k)), line) for k in taken)
            self._note({"conversation": ", ".join(taken)})
            around = _Around(given or name)
            self._conversations.begin(around.name, line)
        scene, labels = "", None
        if isinstance(beside.get("scene"), str):
            scene = self._source.clean(beside.pop("scene"), line)
        if (labels := _labels(beside.get("labels"))) is not None:
            del beside["labels"]
        extras = self._repeated(beside, turns, line)
        yield from self._each(turns, _Around(around.name, scene, labels, extras), line, where)

    def _repeated(self, beside: dict[str, Any], turns: Sequence[Any], line: int) -> dict[str, Any]:
        """What is carried on each turn; a long value is left out where it would be there many times."""
        kept = {}
        for key, value in beside.items():
            if len(turns) > 1 and len(dumped := _dump(value)) > _LONG:
                if not isinstance(value, str) or "".join(value.split()) != self._joined(turns):
                    self._reading.leave_out("long values beside the turns", f"{key}: {dumped}", line)
            else:
                kept[key] = value
        return kept

    def _joined(self, turns: Sequence[Any]) -> str:
        """The turns' texts without blanks: Whisper writes them once more as a whole."""
        said = [
            t if isinstance(t, str) else _text(t.get(self._columns(t).text))
            for t in turns
            if isinstance(t, str | dict)
        ]
        return "".join("".join((s or "").split()) for s in said)

    def _listed(self, turns: list[Any], line: int, name: str, place: str) -> Iterator[SourceTurn]:
        """A list of turns that no object names: rows of a table if they name their conversations."""
        rows = any(isinstance(t, dict) and self._columns(t).conversation for t in turns)
        if rows or self._settings.conversation:
            yield from self._each(turns, _Around(""), line, place)
        else:
            self._conversations.begin(name, line)
            yield from self._each(turns, _Around(name), line, place)

    def _each(self, turns: Sequence[Any], around: _Around, line: int, place: str) -> Iterator[SourceTurn]:
        for n, turn in enumerate(turns):
            yield from self._turn(turn, around, line, f"{place}[{n}]")

    def _turn(self, turn: Any, around: _Around | None, line: int, place: str) -> Iterator[SourceTurn]:
        """One turn, in a conversation or as a row of its own."""
        around = around or _Around("")
        item = {"text": turn} if isinstance(turn, str) else turn
        if not isinstance(item, dict):
            raise DataError(f"{place} must be an object or a text", self._path, line)
        if _is_service(item):
            self._reading.leave_out("service messages", _dump(item), line)
            return
        columns = self._columns(item)
        self._keys |= dict.fromkeys(item) if len(self._keys) < _KEYS else {}
        text = _text(item[columns.text]) if columns.text else ""
        if text is None:
            raise DataError(f"{place}.{columns.text}".lstrip(".") + " is no text", self._path, line)
        said = self._source.clean(text, line)
        self._rows += 1
        self._texts += bool(said)
        roles = columns.by_role()
        if around.name:
            roles.pop("conversation", None)
            conversation = around.name
        else:
            self._key_columns = columns.conversation or self._key_columns
            names = self._key_columns
            conversation = self._conversations.of(
                names, [_name(item.get(k)) for k in names], line, told=bool(said)
            )
        who = self._source.clean(_name(item[columns.speaker]), line) if columns.speaker else ""
        if not who:
            self._source.blemish("turns without a speaker", line)
        fields = {} if isinstance(turn, str) else dict(item)
        if not isinstance(turn, str):
            self._note(roles)
        for key, value in around.extras.items():
            while key in item:
                key = f"conversation_{key}"
            fields[key] = value
        yield SourceTurn(conversation, who or SPEAKER, said, around.scene, around.labels, fields)

    def _note(self, roles: dict[str, str]) -> None:
        known = self._reading.columns
        for role, key in roles.items():
            if key and key not in known.setdefault(role, key).split(", ") and key != known[role]:
                known[role] += f", {key}"


def _as_list(value: Any) -> Any:
    """The turns of an object that has a list for each key, as data sets have it; else the value."""
    columns = list(value.values()) if isinstance(value, dict) else []
    lists = all(isinstance(c, list) and c and len(c) == len(columns[0]) for c in columns)
    if not lists or not any(all(isinstance(v, str) for v in c) for c in columns):
        return value
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _labels(given: Any) -> LabelSet | None:
    """The label set that `labels` names in the project's form, a list of two or more names."""
    if not isinstance(given, list) or not all(isinstance(e, str) and e.strip() for e in given):
        return None
    try:
        return label_set_of([" ".join(e.split()) for e in given])
    except ValueError:
        return None


def _text(value: Any) -> str | None:
    """A text, or the texts of its parts as chat programs write them; None for what is no text."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return "" if value is None else str(value)
    if isinstance(value, dict):
        return _text(value["text"]) if isinstance(value.get("text"), str | list) else None
    if not isinstance(value, list):
        return None
    parts = list[str]()
    for part in value:
        if not isinstance(part, str) and not (isinstance(part, dict) and ("type" in part or "text" in part)):
            return None
        parts.append(part if isinstance(part, str) else _text(part.get("text")) or "")
    if len(parts) > 1 and all(isinstance(part, str) for part in value):
        return None  # several texts are several turns
    # Strings between objects are what stands between marked words: their blanks are there.
    between = len({type(part) for part in value}) > 1
    return ("" if between else " ").join(parts)


def _name(value: Any) -> str:
    """A name: a text, a number, several of them, or what names an object; "" for nothing."""
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return str(value).strip()
    if isinstance(value, list):
        return " and ".join(filter(None, map(_name, value)))
    if isinstance(value, dict):
        by_name = {squashed(k): v for k, v in value.items() if not isinstance(v, list | dict)}
        return next((found for p in _PERSON if (found := _name(by_name.get(p)))), "")
    return ""


def _dump(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_whole(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    """The turns of a file of one JSON value, or of several, each over any number of lines.

    Raises:
        DataError: the file is too large, broken JSON (with line and column), or no turn is in it.
    """
    f.seek(0)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"is larger than {MAX_FILE_BYTES >> 20} MiB; write it as JSON lines", path)
    raw = f.read()
    turns = JsonTurns(path, settings, reading)
    first = True
    try:
        values = list(values_of(raw))
    except json.JSONDecodeError as e:
        raise DataError(f"broken JSON: {e.msg} (column {e.colno})", path, e.lineno) from None
    except ValueError as e:
        raise DataError(str(e), path) from None
    del raw
    for line, value in values:
        yield from turns.of(value, line, path.stem if len(values) == 1 else str(line))
        first = False
    if first:
        raise DataError("is empty", path)
    turns.finish()


FORMS = (Form("json", "JSON", (".json",), lambda head: True, read_whole, columns=True),)
