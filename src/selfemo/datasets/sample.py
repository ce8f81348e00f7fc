"""The built-in sample set: conversations written for this project (CC0), with personas and splits."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from selfemo.datasets.jsonl import Jsonl


class Sample(Jsonl):
    looks_for = 'the word "sample"'

    def __init__(self) -> None:
        super().__init__("sample")

    @staticmethod
    def path() -> Path:
        return Path(str(resources.files("selfemo") / "data" / "sample.jsonl"))

    def matches(self, path: Path) -> bool:
        return path.exists() and path.resolve() == self.path().resolve()
