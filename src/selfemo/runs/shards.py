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
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from selfemo.config import GateConfig, load
from selfemo.errors import ConfigError, StoreError
from selfemo.files import lock_folder, need_polars, sha256, sync, write_text
from selfemo.method.parsing import parse
from selfemo.method.prompts import Reasoning
from selfemo.method.types import Completion, Prompt, Rollout, Sample
from selfemo.progress import Quiet, Reporter, StopRequest
from selfemo.runs.store import SCHEMA_VERSION, STORE_FILE, Store, read_distribution
from selfemo.seeds import derive
from selfemo.stages.coldstart import parquet_row, parquet_schema
from selfemo.stages.flywheel import fingerprint, share_level
from selfemo.stages.gate import PASS, gate

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


# -- selection ------------------------------------------------------------------------------------------


def best_of_groups(frame: Any, lam: float | None) -> Any:
    """One row a group of a shard of rollouts, by `selfplay.select_best`'s order, in order of the groups.

    Args:
        frame: rollouts in the order of the store; member 0 begins a group.
        lam: lambda of the combined reward; None takes the choice that the run recorded, which was made
            with the lambda of its round.
    """
    pl = need_polars()
    if lam is None:
        return frame.filter(pl.col("best") == 1)
    ranked = frame.with_columns(
        group=(pl.col("member") == 0).cum_sum(),
        parsed=pl.col("failure").is_null(),
        combined=(1 - lam) * pl.col("r1") + lam * pl.col("r2"),
    ).sort(
        "group", "parsed", "combined", "r1", "mean_logprob", "member",
        descending=[False, True, True, True, True, False],
    )  # fmt: skip
    return ranked.unique("group", keep="first", maintain_order=True).drop(
        "group", "parsed", "combined"
    )


_NARROW = np.dtype([("row", "<u4"), ("emotion", "<u2"), ("reward", "<f8"), ("hash", "<u8")])
_PRINT = np.dtype([("words", "<u8", 4), ("at", "<i8")])
_GIVEN = -1
"""`at` of a fingerprint that is in the SFT set already."""


def _ordered(values: np.ndarray) -> np.ndarray:
    """float64 as uint64 in the same order."""
    bits = (np.asarray(values, dtype=np.float64) + 0.0).view(np.uint64)
    negative = bits >> np.uint64(63) == 1
    return np.where(negative, ~bits, bits | np.uint64(1 << 63))


def top_keys(
    chunks: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]], wanted: Mapping[int, int]
) -> dict[int, tuple[int, int]]:
    """For each class the key of its wanted-th largest, and how many of that very key belong to the top.

    Four passes over `chunks`, each counting one digit of 16 bits; memory depends on the number of classes.

    Args:
        chunks: gives (classes (m,), keys (m,) uint64) anew at each call.
        wanted: class to how many, from 1 to the number of its keys.
    """
    classes = sorted(wanted)
    prefix = np.zeros(len(classes), dtype=np.uint64)
    left = np.array([wanted[c] for c in classes], dtype=np.int64)
    size = 1 << _DIGIT
    for digit in range(64 // _DIGIT - 1, -1, -1):
        shift = np.uint64(digit * _DIGIT)
        above = np.uint64((digit + 1) * _DIGIT)
        counts = np.zeros((len(classes), size), dtype=np.int64)
        for labels, keys in chunks():
            for row, c in enumerate(classes):
                mine = keys[labels == c]
                if digit < 64 // _DIGIT - 1:
                    mine = mine[mine >> above == prefix[row]]
                digits = (mine >> shift) & np.uint64(size - 1)
                counts[row] += np.bincount(digits.astype(np.int64), minlength=size)
        for row in range(len(classes)):
            # beyond[d]: keys of a digit above d.
            beyond = np.concatenate([np.cumsum(counts[row][::-1])[::-1][1:], [0]])
            chosen = int(np.flatnonzero(beyond < left[row])[0])
            left[row] -= beyond[chosen]
            prefix[row] = (prefix[row] << np.uint64(_DIGIT)) | np.uint64(chosen)
    return {c: (int(prefix[i]), int(left[i])) for i, c in enumerate(classes)}


@dataclass
class Selection:
    """What a selection did; the counts add up from groups to selected."""

    shards: int = 0
    rollouts: int = 0
    groups: int = 0
    passed: int = 0
    duplicates: int = 0
    over_share: int = 0
    not_drawn: int = 0
    selected: int = 0
    emotions: dict[str, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class _Selector:
    """The candidates of a selection in a scratch folder: `kept` is one byte for each."""

    def __init__(self, scratch: Path, seed: int):
        self.scratch, self.seed = scratch, seed
        self.emotions: dict[str, int] = {}
        self.sizes: list[int] = []
        self.kept = np.zeros(0, dtype=bool)

    @property
    def n(self) -> int:
        return sum(self.sizes)

    def add_prints(self, digests: Sequence[str], at: np.ndarray) -> None:
        """Deal fingerprints out by their first byte."""
        if not digests:
            return
        raw = np.frombuffer(bytes.fromhex("".join(digests)), dtype=np.uint8).reshape(-1, 32)
        prints = np.zeros(len(digests), dtype=_PRINT)
        prints["words"] = raw.view("<u8")
        prints["at"] = at
        order = np.argsort(raw[:, 0], kind="stable")
        ends = np.searchsorted(raw[order, 0], np.arange(_PARTS + 1))
        for part in np.unique(raw[:, 0]).tolist():
            with (self.scratch / f"prints-{part:03d}").open("ab") as f:
                f.write(prints[order[ends[part] : ends[part + 1]]].tobytes())

    def add(
        self, digests: Sequence[str], rows: Sequence[int], emotions: Sequence[str], rewards: Any
    ) -> None:
        """The candidates of the next shard: `rows` is where they stand in it."""
        number, first = len(self.sizes), self.n
        narrow = np.zeros(len(digests), dtype=_NARROW)
        narrow["row"] = rows
        narrow["emotion"] = [self.emotions.setdefault(e, len(self.emotions)) for e in emotions]
        narrow["reward"] = rewards
        narrow["hash"] = [derive(self.seed, "select", d) for d in digests]
        (self.scratch / f"narrow-{number:05d}").write_bytes(narrow.tobytes())
        self.add_prints(digests, np.arange(first, first + len(digests)))
        self.sizes.append(len(digests))

    def narrow(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(a view of `kept`, the narrow columns) of each shard."""
        first = 0
        for number, size in enumerate(self.sizes):
            raw = (self.scratch / f"narrow-{number:05d}").read_bytes()
            yield self.kept[first : first + size], np.frombuffer(raw, dtype=_NARROW)
            first += size

    def drop_duplicates(self) -> int:
        """Keep the first of each fingerprint, and none that is in the SFT set already."""
        self.kept = np.zeros(self.n, dtype=bool)
        for path in sorted(self.scratch.glob("prints-*")):
            prints = np.frombuffer(path.read_bytes(), dtype=_PRINT)
            order = np.lexsort((prints["at"], *prints["words"].T))
            words = prints["words"][order]
            new = np.ones(len(order), dtype=bool)
            new[1:] = (words[1:] != words[:-1]).any(1)
            at = prints["at"][order][new]
            self.kept[at[at != _GIVEN]] = True
            path.unlink()
        return self.n - int(self.kept.sum())

    def counts(self) -> dict[str, int]:
        """Kept candidates by emotion."""
        total = np.zeros(len(self.emotions), dtype=np.int64)
        for kept, columns in self.narrow():
            total += np.bincount(columns["emotion"][kept], minlength=len(total))
        return {e: int(total[i]) for e, i in self.emotions.items()}

    def _keep_top(
        self,
        classes: Callable[[np.ndarray], np.ndarray],
        keys: Callable[[np.ndarray], np.ndarray],
        wanted: Mapping[int, int],
    ) -> int:
        """Of each class in `wanted` keep so many with the largest keys, the first of equals."""
        if not wanted:
            return 0

        def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for kept, columns in self.narrow():
                chosen = columns[kept]
                yield classes(chosen), keys(chosen)

        limits = top_keys(chunks, wanted)
        room = {c: ties for c, (_, ties) in limits.items()}
        before = int(self.kept.sum())
        for kept, columns in self.narrow():
            labels, values = classes(columns), keys(columns)
            for c, (limit, _) in limits.items():
                mine = kept & (labels == c)
                equal = mine & (values == np.uint64(limit))
                late = equal & (np.cumsum(equal) > room[c])
                room[c] -= int(equal.sum() - late.sum())
                kept &= ~(late | (mine & (values < np.uint64(limit))))
        return before - int(self.kept.sum())

    def cap(self, max_share: float) -> int:
        """Leave no emotion over its share; how many went."""
        counts = self.counts()
        level = share_level(list(counts.values()), max_share)
        wanted = {self.emotions[e]: level for e, n in counts.items() if n > level}
        return self._keep_top(lambda c: c["emotion"], lambda c: _ordered(c["reward"]), wanted)

    def draw(self, n: int) -> int:
        """Keep n that a hash of the seed chooses; how many went."""
        if not n or n >= int(self.kept.sum()):
            return 0
        return self._keep_top(
            lambda c: np.zeros(len(c), dtype=np.uint16), lambda c: ~c["hash"], {0: n}
        )


@dataclass(frozen=True)
class _Pair:
    """A shard of rollouts and the one of its prompts."""

    folder: Path
    manifest: Manifest
    rollouts: ShardFile
    prompts: ShardFile

    def frame(self) -> Any:
        """The rollouts, with the place of each as `row`."""
        needed = _NEEDED if self.manifest.reasoning == "none" else (*_NEEDED, "text")
        return _read(self.folder, self.rollouts, needed).with_row_index("row")

    def samples(self, rows: Any) -> Iterator[tuple[dict[str, Any], Prompt, Completion]]:
        """Rollouts that parsed, with their prompts and what they say."""
        pl = need_polars()
        found = _read(self.folder, self.prompts)
        asked = {
            row["id"]: Store.read_prompt(row, emotions=False)
            for row in found.filter(pl.col("id").is_in(rows["prompt"].to_list())).iter_rows(
                named=True
            )
        }
        for row in rows.iter_rows(named=True):
            prompt = asked.get(row["prompt"])
            emotion = read_distribution(row["emotion"])
            self_emotion = read_distribution(row["self_emotion"])
            if prompt is None or emotion is None or self_emotion is None:
                raise StoreError(
                    f"{self.folder / self.rollouts.name}: row {row['row']}: its prompt {row['prompt']!r} "
                    "or its emotions are not there; this is no shard of `selfemo store export`"
                )
            thought = ""
            if self.manifest.reasoning != "none":
                parsed = parse(row["text"], prompt.label_set)
                thought = parsed.reasoning if isinstance(parsed, Completion) else ""
            yield row, prompt, Completion(emotion, self_emotion, row["reply"], thought)

    def candidates(self, best: Any) -> Iterator[tuple[str, int, str, float]]:
        """(fingerprint, row, emotion, reward) of those that pass the gate."""
        pl = need_polars()
        verdict = pl.col("gate")
        asked = best.filter(pl.col("failure").is_null() & (verdict.is_null() | (verdict == PASS)))
        for row, prompt, completion in self.samples(asked):
            if row["gate"] is None:
                rollout = Rollout(Sample(""), completion, row["r1"], row["r2"], 0.0)
                if gate(prompt, rollout, self.manifest.gate) != PASS:
                    continue
            top = completion.emotion.top(prompt.label_set)
            yield fingerprint(prompt, completion), row["row"], top, row["r1"]

    def written(self, rows: Sequence[int]) -> Any:
        """The selected rows as they are written."""
        pl = need_polars()
        made = [
            {
                **parquet_row(prompt, completion, self.manifest.reasoning, "selfplay"),
                "reward": row["r1"],
                "emotion": completion.emotion.top(prompt.label_set),
                "fingerprint": fingerprint(prompt, completion),
                "stage": row["stage"],
                "parent": prompt.lineage.parent,
                "step": row["step"],
                "iteration": row["iteration"],
                "turn": prompt.lineage.turn,
            }
            for row, prompt, completion in self.samples(self.frame()[rows])
        ]
        schema = {
            **parquet_schema(pl),
            "reward": pl.Float64,
            **dict.fromkeys(("emotion", "fingerprint", "stage", "parent"), pl.String),
            **dict.fromkeys(("step", "iteration", "turn"), pl.Int64),
        }
        return pl.DataFrame(made, schema=schema)


_NEEDED = ("stage", "step", "iteration", "prompt", "member", "failure", "emotion", "self_emotion",
           "reply", "r1", "r2", "mean_logprob", "best", "gate")  # fmt: skip


def select(
    folders: Sequence[Path],
    out: Path,
    *,
    lam: float | None = None,
    max_share: float = 0.5,
    n: int = 0,
    seed: int = 0,
    iterations: Collection[int] = (),
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> Selection:
    """SFT samples from the shards of one or more exports: see the head of this file.

    With one export of a run with one iteration, lam None and the run's flywheel.max_emotion_share it is the
    set that the flywheel chose. A rollout that is best under another `lam` and was not judged by the gate is
    judged now, by the run's settings.

    Args:
        folders: exports; of equal samples the one in the first folder and shard stays.
        out: NAME.parquet, or a folder for one file a shard. Rows are in the order of the shards; the columns
            are those that `sft.samples` takes, and emotion, reward, fingerprint and lineage.
        lam: see `best_of_groups`.
        max_share: see `flywheel.select_samples`; over all that is selected, not by iteration.
        n: most samples; 0 for all.
        iterations: take rollouts of these alone.

    Raises:
        MissingExtraError: polars is not installed.
        StoreError: an export that is not complete, or a file that is missing, altered or cannot be written.
        Stopped: `stop` was asked for; nothing is written.
    """
    pl = need_polars()
    reporter, stop = reporter or Quiet(), stop or StopRequest()
    if lam is not None and not 0 <= lam <= 1:
        raise ConfigError(f"lambda is {lam}; it lies from 0 to 1")
    manifests = [(f, read_manifest(f)) for f in folders]
    for folder, manifest in manifests:
        if not manifest.complete:
            raise StoreError(
                f"{folder}: the export was stopped; run it again to go on: selfemo store export"
            )
    pairs = [
        _Pair(folder, manifest, *pair)
        for folder, manifest in manifests
        for pair in zip(manifest.of("rollouts"), manifest.of("prompts"), strict=True)
    ]
    scratch, result = out.with_name(f".{out.name}-scratch"), Selection()
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        chosen = _Selector(scratch, seed)
        for folder, manifest in manifests:
            for file in manifest.of("samples"):
                given = _read(folder, file, ["source", "fingerprint"])
                prints = given.filter(pl.col("source") != "selfplay")["fingerprint"].to_list()
                chosen.add_prints(prints, np.full(len(prints), _GIVEN))
        with reporter.bar("shards read", len(pairs)) as advance:
            for pair in pairs:
                stop.check()
                frame = pair.frame()
                if iterations:
                    frame = frame.filter(pl.col("iteration").is_in(list(iterations)))
                best = best_of_groups(frame, lam)
                found = list(pair.candidates(best))
                digests, rows, emotions, rewards = zip(*found, strict=True) if found else ((),) * 4
                chosen.add(digests, rows, emotions, rewards)
                result.shards += 1
                result.rollouts += frame.height
                result.groups += best.height
                advance(1, f"{chosen.n:,} passed")
        result.passed = chosen.n
        result.duplicates = chosen.drop_duplicates()
        result.over_share = chosen.cap(max_share)
        result.not_drawn = chosen.draw(n)
        result.selected = int(chosen.kept.sum())
        result.emotions = {e: c for e, c in sorted(chosen.counts().items()) if c}
        if not result.selected:
            raise StoreError(
                f"{', '.join(map(str, folders))}: no sample was left to write: {result.as_dict()}"
            )
        _write_selection(chosen, pairs, out, reporter, stop)
    except (OSError, pl.exceptions.PolarsError) as e:
        raise StoreError(f"{out}: the selection could not be written: {e}") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return result


def _read(folder: Path, file: ShardFile, columns: Sequence[str] | None = None) -> Any:
    if what := fault(folder, file):
        raise StoreError(
            f"{folder / file.name}: {what}; the same `selfemo store export` writes it again"
        )
    return need_polars().read_parquet(folder / file.name, columns=columns)


def _write_selection(
    chosen: _Selector, pairs: Sequence[_Pair], out: Path, reporter: Reporter, stop: StopRequest
) -> None:
    pl = need_polars()
    final = chosen.scratch / "final"
    final.mkdir()
    parts = []
    with reporter.bar("samples written", int(chosen.kept.sum())) as advance:
        for number, (pair, (kept, columns)) in enumerate(zip(pairs, chosen.narrow(), strict=True)):
            stop.check()
            if kept.any():
                parts.append(final / f"part-{number:05d}.parquet")
                pair.written(columns["row"][kept].tolist()).write_parquet(parts[-1])
                advance(int(kept.sum()))
    if out.suffix == ".parquet":
        staging = chosen.scratch / out.name
        pl.scan_parquet(parts).sink_parquet(staging, row_group_size=_ROW_GROUP, maintain_order=True)
        sync(staging)
        staging.replace(out)
        return
    for path in parts:
        sync(path)
    if out.exists():
        if any(not f.name.startswith("part-") for f in out.iterdir()):
            raise StoreError(
                f"{out} holds other files than an earlier selection; name a new folder"
            )
        shutil.rmtree(out)
    final.replace(out)
