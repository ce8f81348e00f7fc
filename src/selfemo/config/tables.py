"""The description of a table of conversations: where its files lie, and the column of each part of a turn."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from selfemo.errors import ConfigError


class TableConfig(BaseModel):
    """A table whose rows are turns, or whole conversations with a list in each column.

    A column inside another is named with a dot between: `messages.content`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = ""
    """A Parquet, JSONL, JSON, CSV or TSV file, or a folder of them; relative to the description's folder."""
    hub: str = ""
    """OWNER/NAME of a data set on the Hugging Face Hub, in place of path; its files are downloaded."""
    revision: str = ""
    """Branch, tag or commit on the Hub; many older data sets have Parquet files at "refs/convert/parquet"."""
    files: str = ""
    """Pattern of the files in the folder, as "plain/*.parquet"; empty takes all of one kind."""
    name: str = ""
    """The data set's name in ids and scores; empty takes the name of the description's file."""
    text: str
    """Column of what is said."""
    speaker: str = ""
    """Column of who says it."""
    speakers: tuple[str, ...] = ()
    """In place of speaker, the names that take turns, as ["A", "B"]."""
    conversation: str = ""
    """Column that names the conversation of a turn; empty where each row is a whole conversation."""
    turn: str = ""
    """Column of a turn's number in its conversation; empty takes the rows as they come."""
    emotion: str = ""
    """Column of the gold emotion, a label or its number, or a list of them; empty for none."""
    labels: tuple[str, ...] = ()
    """The emotions in the order of their numbers; a Parquet file of the Hub may name them itself."""
    none: tuple[str, ...] = ()
    """Values of the emotion column that mean no gold, as ["-1"]."""
    split: str = ""
    """Column of the split; empty takes the file's name."""

    @model_validator(mode="after")
    def _parts_fit(self) -> TableConfig:
        wrong = []
        if bool(self.path) == bool(self.hub):
            wrong.append("name either path or hub")
        if bool(self.speaker) == bool(self.speakers):
            wrong.append('name either speaker, a column, or speakers, the names that take turns (["A", "B"])')
        if self.revision and not self.hub:
            wrong.append("revision is of hub, which is not there")
        parts = Path(self.files).parts
        inside = bool(parts) and not Path(self.files).is_absolute() and ".." not in parts
        if self.files and (not inside or any("**" in part and part != "**" for part in parts)):
            wrong.append('files is a pattern inside the folder, as "*.csv", "part/*.csv" or "**/*.csv"')
        if self.turn and not self.conversation:
            wrong.append("turn orders the rows of a conversation; name its column too (conversation)")
        if not self.emotion and (self.labels or self.none):
            wrong.append("labels and none are of the emotion column, which is not named (emotion)")
        if self.labels and len({e.strip().lower() for e in self.labels} - {""}) < max(2, len(self.labels)):
            wrong.append("labels must be two or more, each once and none empty")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def columns(self) -> dict[str, str]:
        """The columns that are named, by the setting that names them."""
        keys = ("text", "speaker", "conversation", "turn", "emotion", "split")
        return {key: column for key in keys if (column := getattr(self, key))}


def load_table(path: Path) -> TableConfig:
    """The description of a file (ConfigError: it is no TOML; all unknown keys and bad values)."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
        raise ConfigError(f"{path}: cannot be read as TOML: {e}") from None
    try:
        return TableConfig.model_validate(content)
    except ValidationError as e:
        lines = []
        for item in e.errors():
            key, text = ".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                near = difflib.get_close_matches(key, TableConfig.model_fields, n=1)
                valid = f"valid are {', '.join(TableConfig.model_fields)}"
                text = f"unknown key; {f'did you mean {near[0]}?' if near else valid}"
            lines.append(": ".join(part for part in (str(path), key, text) if part))
        raise ConfigError("\n".join(lines)) from None
