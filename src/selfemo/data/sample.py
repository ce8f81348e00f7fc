"""The built-in sample set: conversations written for this project (CC0), with personas and splits."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from selfemo.data.jsonl import Jsonl


class SampleSet(Jsonl):
    """The JSONL file inside the package; its label set is MELD's."""

    name = "sample"
    looks_for = 'the word "sample"'

    @staticmethod
    def path() -> Path:
        """Where the installed package keeps the file."""
        return Path(str(resources.files("selfemo") / "data" / "sample.jsonl"))

    def matches(self, path: Path) -> bool:
        return path.exists() and path.resolve() == self.path().resolve()
