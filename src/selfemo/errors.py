"""One error type per boundary. Each message names the file, line or key and says what to do.

The command line catches `SelfEmoError` and prints the message alone; any other exception is a bug of this
package and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class SelfEmoError(Exception):
    """Base of all errors that the user can mend."""


class DataError(SelfEmoError):
    """A conversation file or folder that cannot be used; lines (or rows) count from 1."""

    def __init__(self, reason: str, path: Path | str | None = None, line: int | None = None):
        self.reason, self.path, self.line = reason, path, line
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(f"{where}{reason}")


class ConfigError(SelfEmoError):
    """One or more mistakes in a configuration; the message lists all of them."""


class EngineError(SelfEmoError):
    """A model, checkpoint or device that cannot be used."""


class UnsupportedError(EngineError):
    """Something that a backend cannot do; the message names both and a backend that can."""


class NotFiniteError(EngineError):
    """Weights or log-probabilities that are NaN or infinite; they are not written."""


class GuardError(SelfEmoError):
    """A training stage that its guard stopped; the work before is saved."""


class EndpointError(SelfEmoError):
    """An expert or judge endpoint that cannot be used; every answer it gave before is kept."""


class StoreError(SelfEmoError):
    """A run folder or its store that cannot be used."""


class InUseError(StoreError):
    """A folder that another process works in."""


class DamagedStoreError(StoreError):
    """A store whose file is damaged: its pages do not fit each other, or it is no database at all."""


class MissingExtraError(SelfEmoError):
    """An optional dependency that is not installed; the message is the command that installs it."""

    def __init__(self, what: str, command: str):
        super().__init__(f"{what} is not installed; run: {command}")
