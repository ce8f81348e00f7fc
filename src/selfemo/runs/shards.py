"""The store as Parquet shards, which `selection` takes SFT samples from.

    export-folder/
      manifest.json               files in order with rows, bytes, sha256; settings of the run
      rollouts-00000.parquet      complete groups, in the order of the store
      prompts-00000.parquet       the prompts of the groups in this shard
      ...
      unanswered-00000.parquet    prompts without a rollout
      samples-00000.parquet       the SFT set

A pair of rollouts and prompts needs nothing else to be read; a prompt that a later shard answers again stands
there again. A stopped export is checked and continued; so is one whose run has written more since.

Departures [ours]: all of it; the paper does not say how its data were kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from selfemo.config import GateConfig, load
from selfemo.errors import StoreError
from selfemo.files import lock_folder, need_polars, replacing, sha256, write_json
from selfemo.method.prompts import Reasoning
from selfemo.models.references import CONFIG_FILE
from selfemo.progress import Quiet, Reporter, StopRequest
from selfemo.runs.store import SCHEMA_VERSION, STORE_FILE, Store

SHARDS_VERSION = 2
MANIFEST = "manifest.json"
_Row = tuple[Any, ...]


@dataclass(frozen=True)
class ShardFile:
    """One file of an export; `last` is its largest rollout id (0 if `table` is not "rollouts")."""

    table: str
    name: str
    rows: int
    bytes: int
    sha256: str
    last: int = 0


@dataclass
class Manifest:
    """The files of an export folder, the settings of its run, and whether all rows have been written."""

    gate: GateConfig
    reasoning: Reasoning
    seed: int
    files: list[ShardFile]
    complete: bool = False

    def of(self, table: str) -> list[ShardFile]:
        return [f for f in self.files if f.table == table]

    def pairs(self) -> list[tuple[ShardFile, ShardFile]]:
        """Each shard of rollouts with the one of its prompts."""
        return list(zip(self.of("rollouts"), self.of("prompts"), strict=False))

    def rows(self) -> dict[str, int]:
        """Rows by table."""
        return {t: sum(f.rows for f in self.of(t)) for t in dict.fromkeys(f.table for f in self.files)}

    def write(self, folder: Path) -> None:
        content = {
            "format": "selfemo shards",
            "version": SHARDS_VERSION,
            "store_version": SCHEMA_VERSION,
            "complete": self.complete,
            "settings": {"reasoning": self.reasoning, "gate": self.gate.model_dump(), "seed": self.seed},
            "rows": self.rows(),
            "files": [vars(f) for f in self.files],
        }
        write_json(folder / MANIFEST, content)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export folder (StoreError: there is none of this version)."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != "selfemo shards":
            raise StoreError(f"{path}: not a manifest of `selfemo store export`")
        if content["version"] != SHARDS_VERSION:
            raise StoreError(
                f"{path}: version {content['version']}, need {SHARDS_VERSION}; export the run again, "
                "into a fresh folder"
            )
        settings = content["settings"]
        if settings["reasoning"] not in get_args(Reasoning):
            raise StoreError(f"{path}: reasoning {settings['reasoning']!r}")
        return Manifest(
            GateConfig.model_validate(settings["gate"]),
            settings["reasoning"],
            int(settings["seed"]),
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
    """The fault of a file of an export, in words; "" if it is as it was written."""
    path = folder / file.name
    if not path.exists():
        return "is missing"
    if path.stat().st_size != file.bytes or sha256(path) != file.sha256:
        return "was altered or cut since it was written"
    return ""


def write_shard(folder: Path, table: str, number: int, frame: Any, last: int = 0) -> ShardFile:
    """Write one file of an export (StoreError: the disk is full, or the folder cannot be written)."""
    path = folder / f"{table}-{number:05d}.parquet"
    kept = "free some disk space and run the same command again: the shards before it are kept"
    with replacing(path, kept=kept) as staging:
        frame.write_parquet(staging, compression="zstd")
        size, digest = staging.stat().st_size, sha256(staging)
    return ShardFile(table, path.name, frame.height, size, digest, last)


def _pieces(
    rows: Iterable[_Row], n: int, may_begin: Callable[[_Row], bool] = lambda row: True
) -> Iterator[list[_Row]]:
    """Rows in pieces of at least n; each but the first begins at a row that may begin one."""
    piece: list[_Row] = []
    for row in rows:
        if len(piece) >= n and may_begin(row):
            yield piece
            piece = []
        piece.append(row)
    if piece:
        yield piece


class _Frames:
    """Rows of a store as frames with the columns of their table."""

    def __init__(self, store: Store):
        self.pl = need_polars()
        types = {"INTEGER": self.pl.Int64, "REAL": self.pl.Float64, "TEXT": self.pl.String}
        self.columns = {
            t: {name: types[kind] for name, kind in store.columns(t).items()}
            for t in ("rollouts", "prompts", "samples")
        }

    def __call__(self, table: str, rows: Sequence[_Row]) -> Any:
        return self.pl.DataFrame(rows, schema=self.columns[table], orient="row")


def _kept(
    store: Store, frames: _Frames, folder: Path, manifest: Manifest, say: Callable[[str], None]
) -> list[ShardFile]:
    """The pairs of shards of an earlier export that are undamaged (StoreError: the store has changed)."""
    kept: list[ShardFile] = []
    for pair in manifest.pairs():
        if told := next((f"{f.name} {w}" for f in pair if (w := fault(folder, f))), ""):
            say(f"{folder}: {told}; exporting again from there on")
            break
        kept += pair
    if not kept:
        return kept
    last, row = kept[-2], store.rollout_row(kept[-2].last)
    count = sum(f.rows for f in kept if f.table == "rollouts")
    written = need_polars().read_parquet(folder / last.name)[-1:]
    same = row is not None and frames("rollouts", [row]).equals(written)
    if not same or store.rollout_count(last.last) != count:
        raise StoreError(
            f"{folder}: the store has other rollouts now than when this export began (a stage was done "
            "again); export into a fresh folder"
        )
    return kept


def export(
    run: Path,
    out: Path,
    rows_per_shard: int = 100_000,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> Manifest:
    """Write prompts, rollouts and samples of a run's store as shards into `out`; continues a stopped export.

    Peak memory is that of one shard's rows as Python objects, about 2 KB each.

    Args:
        run: a folder with a store; its seed and settings of gate and reasoning go into the manifest.
        rows_per_shard: rollouts of one shard; it may be longer by up to a group.

    Raises:
        MissingExtraError: polars is not installed.
        StoreError: no store, a full disk, or a store that has changed since the export began.
        Stopped: `stop` was asked for; what is written is kept.
    """
    need_polars()
    if not (run / STORE_FILE).exists():
        raise StoreError(f"{run} holds no {STORE_FILE}; give the folder of a run")
    config = load([run / CONFIG_FILE] if (run / CONFIG_FILE).exists() else [])
    manifest = Manifest(config.gate, config.prompt.reasoning, config.seed, [])
    with lock_folder(out), Store(run / STORE_FILE, read_only=True) as store, store.snapshot():
        _export(store, out, manifest, rows_per_shard, reporter or Quiet(), stop or StopRequest())
    return manifest


def _export(
    store: Store, out: Path, manifest: Manifest, n: int, reporter: Reporter, stop: StopRequest
) -> None:
    frames = _Frames(store)
    for left in out.glob("*.parquet.tmp"):
        left.unlink()
    if (out / MANIFEST).exists():
        manifest.files = _kept(store, frames, out, read_manifest(out), reporter.say)
    manifest.write(out)
    after = max((f.last for f in manifest.files), default=0)
    member = list(frames.columns["rollouts"]).index("member")
    with reporter.bar("rollouts exported", store.rollout_count()) as advance:
        advance(sum(f.rows for f in manifest.of("rollouts")))
        # Member 0 begins a group, and no group is cut.
        for piece in _pieces(store.rollout_rows(after), n, lambda row: row[member] == 0):
            stop.check()
            number, rollouts = len(manifest.of("rollouts")), frames("rollouts", piece)
            asked = store.prompt_rows(rollouts["prompt"].unique(maintain_order=True).to_list())
            manifest.files += [
                write_shard(out, "rollouts", number, rollouts, last=piece[-1][0]),
                write_shard(out, "prompts", number, frames("prompts", asked)),
            ]
            manifest.write(out)
            advance(len(piece))
    # These rows change while a run goes on, so these files are always written again.
    for name, table, rows in (
        ("unanswered", "prompts", store.unanswered_rows()),
        ("samples", "samples", store.sample_rows()),
    ):
        for number, piece in enumerate(_pieces(rows, n)):
            stop.check()
            manifest.files.append(write_shard(out, name, number, frames(table, piece)))
    manifest.complete = True
    manifest.write(out)
    for file in out.glob("*.parquet"):
        if file.name not in {f.name for f in manifest.files}:
            file.unlink()
