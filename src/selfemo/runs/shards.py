"""The store as Parquet shards, and selection over any number of them out of core.

    export-folder/
      manifest.json               files in order with rows, bytes, sha256; settings of the run
      rollouts-00000.parquet      whole groups, in the order of the store
      prompts-00000.parquet       the prompts that the groups of this shard answer
      ...
      unanswered-00000.parquet    prompts that nothing has answered
      samples-00000.parquet       the SFT set

A shard is cut between two groups and stands beside its prompts, so whoever reads one pair needs nothing
else: shards may come from many stores and be worked on by many machines. A prompt that is answered again
in a later shard stands there again.

`export` is one reader's snapshot of the store. It writes each file beside and renames it, then notes it in
the manifest; what a stopped export has written is checked and gone on from, and what a run has added since
is appended. `select` takes, as the flywheel does inside one iteration: the best of each group that passed
the gate (`selfplay.select_best`), no sample twice (`flywheel.fingerprint`), no emotion over its share
(`flywheel.select_samples`), and, where asked for, n of them drawn by a seed.

A selection reads the shards twice: first for what is selected by, then for the rows to write. Its memory is
that of one shard, of 1/256 of the candidates' fingerprints, and one byte a candidate, whatever the number of
shards; its scratch folder holds 62 bytes a candidate. A candidate is the best rollout of a group that passed.
So it is because
- no group lies in two shards;
- fingerprints are dealt out to 256 files by their first byte, and equal ones meet in one of them;
- `flywheel.share_level` needs counts alone, and which samples of an emotion stay is a threshold on (reward,
  order), found exactly by counting the digits of the rewards in four passes, in fixed memory;
- the n that are drawn are those with the n smallest values of a hash of (seed, fingerprint), the same kind
  of threshold: which they are depends neither on how shards are cut nor on their order.

Departures [ours]: all of it; the paper does not say how its data were kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from selfemo.config import GateConfig, load
from selfemo.errors import StoreError
from selfemo.files import lock_folder, need_polars, sha256, sync, write_text
from selfemo.method.prompts import Reasoning
from selfemo.progress import Quiet, Reporter, StopRequest
from selfemo.runs.store import SCHEMA_VERSION, STORE_FILE, Store

SHARDS_VERSION = 1
MANIFEST = "manifest.json"
_RUN_CONFIG = "config.toml"
_PARTS = 256
_DIGIT = 16
_ROW_GROUP = 5_000
"""Samples of one row group: polars gathers a row group whole before it writes it."""
_IDS_A_QUERY = 500
"""SQLite takes a limited number of parameters."""


@dataclass(frozen=True)
class ShardFile:
    """One file of an export.

    Attributes:
        table: rollouts, prompts, unanswered or samples.
        last: largest rollout id in it (rollouts alone, else 0).
    """

    table: str
    name: str
    rows: int
    bytes: int
    sha256: str
    last: int = 0


@dataclass
class Manifest:
    """What an export folder holds.

    Attributes:
        gate, reasoning: settings of the run, which a selection goes by.
        complete: every row that the store had has been written.
    """

    gate: GateConfig
    reasoning: Reasoning
    files: list[ShardFile]
    complete: bool = False

    def of(self, table: str) -> list[ShardFile]:
        return [f for f in self.files if f.table == table]

    def pairs(self) -> list[tuple[ShardFile, ShardFile]]:
        """Each shard of rollouts with the one of its prompts."""
        return list(zip(self.of("rollouts"), self.of("prompts"), strict=False))

    def rows(self) -> dict[str, int]:
        """Rows by table."""
        counts: Counter[str] = Counter()
        for f in self.files:
            counts[f.table] += f.rows
        return dict(counts)

    def write(self, folder: Path) -> None:
        content = {
            "format": "selfemo shards",
            "version": SHARDS_VERSION,
            "store_version": SCHEMA_VERSION,
            "complete": self.complete,
            "settings": {"reasoning": self.reasoning, "gate": self.gate.model_dump()},
            "rows": self.rows(),
            "files": [vars(f) for f in self.files],
        }
        write_text(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export folder.

    Raises:
        StoreError: there is none, or it is not one of this version.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != "selfemo shards":
            raise StoreError(f"{path}: no manifest of `selfemo store export`")
        if content["version"] != SHARDS_VERSION:
            raise StoreError(f"{path}: version {content['version']}, need {SHARDS_VERSION}")
        settings = content["settings"]
        if settings["reasoning"] not in get_args(Reasoning):
            raise StoreError(f"{path}: reasoning {settings['reasoning']!r}")
        return Manifest(
            GateConfig.model_validate(settings["gate"]),
            settings["reasoning"],
            [ShardFile(**f) for f in content["files"]],
            bool(content["complete"]),
        )
    except FileNotFoundError:
        raise StoreError(
            f"{folder} is no export: it has no {MANIFEST}. Make one: selfemo store export RUN --out {folder}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as e:
        raise StoreError(f"{path}: cannot be read: {type(e).__name__}: {e}") from None


def fault(folder: Path, file: ShardFile) -> str:
    """What is wrong with a file of an export, or "" where nothing is."""
    path = folder / file.name
    if not path.exists():
        return "is missing"
    if path.stat().st_size != file.bytes or sha256(path) != file.sha256:
        return "was altered or cut since it was written"
    return ""


# -- export ---------------------------------------------------------------------------------------------


def _write(folder: Path, table: str, number: int, frame: Any, last: int = 0) -> ShardFile:
    name = f"{table}-{number:05d}.parquet"
    return ShardFile(table, name, frame.height, *write_frame(folder / name, frame), last)


def write_frame(path: Path, frame: Any) -> tuple[int, str]:
    """Bytes and sha256 of a frame written beside and renamed."""
    staging = path.with_name(path.name + ".tmp")
    try:
        try:
            frame.write_parquet(staging, compression="zstd")
            sync(staging)
            size, digest = staging.stat().st_size, sha256(staging)
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as e:
        raise StoreError(
            f"{path}: cannot be written ({e.strerror or e}); free some disk space and run the same command "
            "again: the shards before it are kept"
        ) from e
    return size, digest


class _Export:
    def __init__(self, store: Store, folder: Path, rows_per_shard: int):
        self.pl = need_polars()
        self.store, self.folder, self.n = store, folder, rows_per_shard
        types = {"INTEGER": self.pl.Int64, "REAL": self.pl.Float64, "TEXT": self.pl.String}
        self.columns = {
            t: {r["name"]: types[r["type"]] for r in store.rows(f"PRAGMA table_info({t})")}
            for t in ("rollouts", "prompts", "samples")
        }

    def frame(self, table: str, rows: Sequence[Any]) -> Any:
        return self.pl.DataFrame(rows, schema=self.columns[table], orient="row")

    def stream(self, query: str, *args: Any) -> Iterator[tuple[Any, ...]]:
        cursor = self.store.db.cursor()
        cursor.row_factory = None
        yield from cursor.execute(query, args)

    def groups(self, after: int) -> Iterator[list[tuple[Any, ...]]]:
        """Rollouts behind an id, in pieces of about n rows that cut no group: member 0 begins one."""
        member = list(self.columns["rollouts"]).index("member")
        piece: list[tuple[Any, ...]] = []
        for row in self.stream("SELECT * FROM rollouts WHERE id > ? ORDER BY id", after):
            if len(piece) >= self.n and row[member] == 0:
                yield piece
                piece = []
            piece.append(row)
        if piece:
            yield piece

    def prompts_of(self, rollouts: Any) -> Any:
        ids = rollouts["prompt"].unique(maintain_order=True).to_list()
        rows: dict[str, tuple[Any, ...]] = {}
        for start in range(0, len(ids), _IDS_A_QUERY):
            part = ids[start : start + _IDS_A_QUERY]
            marks = ",".join("?" * len(part))
            query = f"SELECT * FROM prompts WHERE id IN ({marks})"
            rows.update((r[0], r) for r in self.stream(query, *part))
        if missing := next((i for i in ids if i not in rows), None):
            raise StoreError(
                f"{self.store.path}: rollouts of prompt {missing!r}, which is not in it"
            )
        return self.frame("prompts", [rows[i] for i in ids])

    def pieces(self, query: str) -> Iterator[list[tuple[Any, ...]]]:
        piece: list[tuple[Any, ...]] = []
        for row in self.stream(query):
            piece.append(row)
            if len(piece) == self.n:
                yield piece
                piece = []
        if piece:
            yield piece

    def whole(self, manifest: Manifest, say: Callable[[str], None]) -> list[ShardFile]:
        """The pairs of shards that are as they were written and as the store still is."""
        kept: list[ShardFile] = []
        for pair in zip(manifest.of("rollouts"), manifest.of("prompts"), strict=False):
            if told := next((f"{f.name} {w}" for f in pair if (w := fault(self.folder, f))), ""):
                say(f"{self.folder}: {told}; exporting again from there on")
                break
            kept += pair
        if not kept:
            return kept
        last = kept[-2]
        rows = sum(f.rows for f in kept if f.table == "rollouts")
        (found,) = self.stream("SELECT count(*) FROM rollouts WHERE id <= ?", last.last)
        end = list(self.stream("SELECT * FROM rollouts WHERE id = ?", last.last))
        written = self.pl.read_parquet(self.folder / last.name)[-1:]
        if found[0] != rows or not self.frame("rollouts", end).equals(written):
            raise StoreError(
                f"{self.folder}: the store has other rollouts now than when this export began (a stage was "
                "done again); export into a fresh folder"
            )
        return kept


def export(
    run: Path,
    out: Path,
    rows_per_shard: int = 100_000,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> Manifest:
    """Write prompts, rollouts and samples of a run's store as shards into `out`; goes on where it stopped.

    Peak memory is that of one shard's rows as Python objects, about 2 KB each.

    Args:
        run: a folder with a store; its settings of gate and reasoning go into the manifest.
        rows_per_shard: rollouts of one shard; it may be up to a group longer.

    Raises:
        MissingExtraError: polars is not installed.
        StoreError: no store, a full disk, or a store that has changed under the export.
        Stopped: `stop` was asked for; what is written is kept.
    """
    need_polars()
    reporter = reporter or Quiet()
    if not (run / STORE_FILE).exists():
        raise StoreError(f"{run} holds no {STORE_FILE}; give the folder of a run")
    config = load([run / _RUN_CONFIG] if (run / _RUN_CONFIG).exists() else [])
    lock = lock_folder(out)
    try:
        store = Store(run / STORE_FILE, read_only=True)
        try:
            store.db.execute("BEGIN")  # one snapshot, whatever a run still writes
            return _export(
                _Export(store, out, rows_per_shard),
                Manifest(config.gate, config.prompt.reasoning, []),
                reporter,
                stop or StopRequest(),
            )
        finally:
            store.close()
    finally:
        lock.close()


def _export(job: _Export, manifest: Manifest, reporter: Reporter, stop: StopRequest) -> Manifest:
    out = job.folder
    for left in out.glob("*.parquet.tmp"):
        left.unlink()
    if (out / MANIFEST).exists():
        manifest.files = job.whole(read_manifest(out), reporter.say)
    manifest.write(out)
    after = max((f.last for f in manifest.files), default=0)
    ((total,),) = job.stream("SELECT count(*) FROM rollouts")
    with reporter.bar("rollouts exported", total) as advance:
        advance(sum(f.rows for f in manifest.of("rollouts")))
        for piece in job.groups(after):
            stop.check()
            number = len(manifest.of("rollouts"))
            frame = job.frame("rollouts", piece)
            rollouts = _write(out, "rollouts", number, frame, last=piece[-1][0])
            prompts = _write(out, "prompts", number, job.prompts_of(frame))
            manifest.files += [rollouts, prompts]
            manifest.write(out)
            advance(len(piece))
    # Whether a sample is used and a prompt answered changes as a run goes on: these are written anew.
    for table, query in (
        (
            "unanswered",
            "SELECT p.* FROM prompts p WHERE NOT EXISTS "
            "(SELECT 1 FROM rollouts r WHERE r.prompt = p.id) ORDER BY p.rowid",
        ),
        ("samples", "SELECT * FROM samples ORDER BY id"),
    ):
        columns = "prompts" if table == "unanswered" else table
        for number, piece in enumerate(job.pieces(query)):
            stop.check()
            manifest.files.append(_write(out, table, number, job.frame(columns, piece)))
    manifest.complete = True
    manifest.write(out)
    for file in out.glob("*.parquet"):
        if file.name not in {f.name for f in manifest.files}:
            file.unlink()
    return manifest
