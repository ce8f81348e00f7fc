"""JSON lines: conversations of the project's own form, one a line (data/jsonl.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from selfemo.data.jsonl import Jsonl
from selfemo.data.transcripts.reading import Form, Reading, ReadSettings, SourceTurn


def _read(f: IO[str], path: Path, settings: ReadSettings, reading: Reading) -> Iterator[SourceTurn]:
    adapter = Jsonl()
    for _, c in adapter.read_lines(reading.source(path), f):
        labels = None if c.label_set is adapter.label_set else c.label_set
        for t in c.turns:
            yield SourceTurn(c.id, t.speaker, t.text, c.scenario, labels)


FORMS = (Form("jsonl", "JSON lines", (".jsonl", ".ndjson"), lambda head: True, _read),)
