"""The files of tables: their columns and rows, whatever their kind."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfemo.data.base import SourceFile, first_row, further_rows
from selfemo.data.jsonl import unique_keys, whole_json
from selfemo.errors import DataError
from selfemo.files import need_polars

KINDS = ((".parquet",), (".jsonl", ".ndjson"), (".json",), (".csv", ".tsv"))
"""Suffixes of each kind of file, the kinds in the order in which a folder's are preferred."""
_READ = "import sys, polars; polars.read_parquet(sys.argv[1])"


@dataclass(frozen=True)
class Table:
    """The columns of a file, and its rows, each with its line (or its number, counted from 1).

    Attributes:
        columns: also those inside others, with a dot between.
        class_names: the names behind the numbers of a column, where the file holds them.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[int, dict[str, Any]]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_table(source: SourceFile) -> Table:
    """A whole file (DataError: of another kind, unreadable, or a broken row, unless lenient)."""
    suffix = source.path.suffix.lower()
    if suffix in KINDS[0]:
        return _parquet(source.path)
    if suffix in KINDS[1]:
        return _of_records(_json_lines(source))
    if suffix in KINDS[2]:
        return _of_records(_json_list(source))
    if suffix in KINDS[3]:
        return _csv(source, "\t" if suffix == ".tsv" else ",")
    known = ", ".join(s for kind in KINDS for s in kind)
    raise DataError(f"is of no known kind of table; valid are {known}", source.path)


def value_of(row: Any, column: str) -> Any:
    """The value of a column; a column inside a list of records gives a list."""
    if isinstance(row, list):
        return [value_of(inside, column) for inside in row]
    if not isinstance(row, dict):
        return None
    if column in row:
        return row[column]
    outer, dot, inner = column.partition(".")
    return value_of(row.get(outer), inner) if dot else None


def check_parquet(path: Path) -> None:
    """Let another process read a Parquet file first.

    A damaged file can end the process that reads it (polars aborts on some) without an error to catch.

    Raises: DataError: it is damaged.
    """
    probe = subprocess.run([sys.executable, "-c", _READ, path], capture_output=True, check=False)
    if probe.returncode < 0 or b"PanicException" in probe.stderr:
        raise DataError("cannot be read as Parquet: it is damaged", path)


def _parquet(path: Path) -> Table:
    pl = need_polars()
    check_parquet(path)
    try:
        frame = pl.read_parquet(path)
        described = pl.read_parquet_metadata(path).get("huggingface", "{}")
    except (OSError, pl.exceptions.PolarsError) as e:
        raise DataError(f"cannot be read as Parquet: {str(e).splitlines()[0]}", path) from None
    rows = list(enumerate(frame.to_dicts(), 1))
    columns = dict.fromkeys([*frame.columns, *_columns([row for _, row in rows])])
    return Table(tuple(columns), rows, _class_names(described))


def _class_names(described: str) -> dict[str, tuple[str, ...]]:
    """The names of numbered classes by column, from what the Hub's library notes in a Parquet file."""
    found: dict[str, tuple[str, ...]] = {}

    def look(column: str, feature: Any) -> None:
        if isinstance(feature, list):
            feature = feature[0] if feature else {}
        if not isinstance(feature, dict):
            return
        if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
            found[column] = tuple(map(str, feature["names"]))
        elif "_type" in feature:
            look(column, feature.get("feature"))
        else:
            for key, inside in feature.items():
                look(f"{column}.{key}" if column else key, inside)

    try:
        look("", json.loads(described)["info"]["features"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found


def _json_lines(source: SourceFile) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, raw in enumerate(source.text().split("\n"), 1):
        if not raw.strip():
            continue
        try:
            item = json.loads(raw, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as e:
            source.fail(line, f"broken JSON: {e}")
            continue
        if isinstance(item, dict):
            rows.append((line, item))
        else:
            source.fail(line, "a line must be one JSON object")
    return rows


def _json_list(source: SourceFile) -> list[tuple[int, dict[str, Any]]]:
    items = whole_json(source.text(), source.path)
    if not isinstance(items, list):
        raise DataError("must be a JSON list of objects, one a row", source.path)
    rows = []
    for number, item in enumerate(items, 1):
        if isinstance(item, dict):
            rows.append((number, item))
        else:
            source.fail(number, "a row must be a JSON object")
    return rows


def _of_records(rows: list[tuple[int, dict[str, Any]]]) -> Table:
    return Table(tuple(_columns([row for _, row in rows])), rows)


def _columns(records: Sequence[Any], prefix: str = "") -> dict[str, None]:
    """The columns of records, and those of records inside them."""
    found: dict[str, None] = {}
    inside: dict[str, list[Any]] = {}
    for record in records:
        for key, value in record.items() if isinstance(record, dict) else ():
            found[prefix + key] = None
            if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
                inside.setdefault(key, []).extend(value if isinstance(value, list) else [value])
    for key, values in inside.items():
        found |= _columns(values, f"{prefix}{key}.")
    return found


def _csv(source: SourceFile, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(source.text(), newline=""), delimiter=delimiter)
    header = first_row(reader, source.path)
    rows = []
    for line, fields, unclosed in further_rows(reader, source):
        if len(fields) != len(header):
            many = "few" if len(fields) < len(header) else "many"
            source.fail(line, f"has too {many} fields ({len(fields)} for {len(header)} columns){unclosed}")
            continue
        rows.append((line, dict(zip(header, fields, strict=True))))
    return Table(tuple(header), rows)
