"""SFT samples from exported shards, over any number of them, by the streaming engine of polars.

`select` takes, as the flywheel does inside one iteration: the best of each group that passed the gate
(`selfplay.select_best`), no sample twice (`flywheel.fingerprint`), no emotion over its share
(`flywheel.select_samples`), and, if asked for, n of them drawn by a seed.

Each shard is read once; the samples that passed go to a scratch folder, and all further steps are queries
over it. Memory is that of one shard, of about `_AT_ONCE` fingerprints (equal ones have equal first digits, by
which they are divided), and about 30 bytes a candidate for the largest sort. The samples of an emotion are
chosen by a threshold on (reward, place); the n drawn samples are those with the smallest hash of (seed,
fingerprint), so the draw depends neither on how shards are cut nor on their order.

Departures [ours]: all of it; the paper does not say how its data were kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from selfemo.errors import ConfigError, StoreError
from selfemo.files import need_polars, replacing, replacing_folder
from selfemo.method.parsing import parse
from selfemo.method.types import Completion, Prompt, RawCompletion, Rollout
from selfemo.progress import Quiet, Reporter, StopRequest
from selfemo.runs.shards import Manifest, ShardFile, fault, read_manifest
from selfemo.runs.store import Store, read_distribution
from selfemo.seeds import derive
from selfemo.stages.coldstart import parquet_row, parquet_schema
from selfemo.stages.flywheel import fingerprint, share_level
from selfemo.stages.gate import PASS, gate
from selfemo.stages.selfplay import tie_seed

_AT_ONCE = 100_000
"""About how many fingerprints are compared at once."""
_ROW_GROUP = 5_000
"""Samples of one row group, which polars holds in memory before it writes it."""
_NEEDED = ("stage", "step", "iteration", "prompt", "member", "failure", "emotion", "self_emotion",
           "reply", "r1", "r2", "best", "gate")  # fmt: skip


class _Shard(NamedTuple):
    """A pair of files of an export: rollouts, and the prompts that they answer."""

    folder: Path
    manifest: Manifest
    rollouts: ShardFile
    prompts: ShardFile


@dataclass
class Selection:
    """Counts of a selection, from groups to selected samples; emotions are those of the selected ones."""

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
        return asdict(self)


def best_of_groups(frame: Any, lam: float | None, seed: int) -> Any:
    """The best rollout of each group of a shard, in order, by `selfplay.select_best`'s rule.

    Args:
        frame: rollouts in the order of the store; member 0 begins a group.
        lam: lambda of the combined reward; None takes the best that the run recorded, by its round's lambda.
        seed: of the run; it decides between equals.
    """
    pl = need_polars()
    if lam is None:
        return frame.filter(pl.col("best") == 1)
    columns = ("parsed", "combined", "r1")
    ranked = frame.with_columns(
        group=(pl.col("member") == 0).cum_sum(),
        parsed=pl.col("reply").is_not_null(),  # of an E line alone there is nothing to select
        combined=(1 - lam) * pl.col("r1") + lam * pl.col("r2"),
    ).sort("group", *columns, descending=[False, True, True, True], maintain_order=True)
    top = ranked.filter(pl.all_horizontal(pl.col(c) == pl.col(c).first().over("group") for c in columns))
    names = top.select("stage", "step", "prompt", "member").iter_rows()
    draws = [derive(tie_seed(seed, stage, step, prompt), member) for stage, step, prompt, member in names]
    drawn = top.with_columns(draw=pl.Series(draws, dtype=pl.Int64)).sort("group", "draw")
    best = drawn.unique("group", keep="first", maintain_order=True)
    return best.drop("group", "parsed", "combined", "draw")


def _samples(rows: Any, shard: _Shard) -> Iterator[tuple[dict[str, Any], Prompt, Completion]]:
    """Each row, with its prompt (the column `asked`) and its completion as the method's objects."""
    for row in rows.iter_rows(named=True):
        emotion, own = read_distribution(row["emotion"]), read_distribution(row["self_emotion"])
        if row["asked"] is None or emotion is None or own is None:
            raise StoreError(
                f"{shard.folder / shard.rollouts.name}: prompt {row['prompt']!r} or the emotions of its "
                "rollout are missing; this is not a shard of `selfemo store export`"
            )
        prompt = Store.read_prompt(row["asked"], emotions=False)
        parsed = None if shard.manifest.reasoning == "none" else parse(row["text"], prompt.label_set)
        thought = parsed.reasoning if isinstance(parsed, Completion) else ""
        yield row, prompt, Completion(emotion, own, row["reply"], thought)


def _passed(best: Any, shard: _Shard, seed: int) -> Any:
    """The rows of `best` that passed the gate, with the selection's columns; unjudged ones are judged now."""
    pl = need_polars()
    verdict, found = pl.col("gate"), []
    unjudged = verdict.is_null() & pl.col("reply").is_not_null()  # an E line alone is no sample
    asked = best.filter(pl.col("failure").is_null() & (unjudged | (verdict == PASS)))
    for k, (row, prompt, completion) in enumerate(_samples(asked, shard)):
        rollout = Rollout(RawCompletion(""), completion, row["r1"], row["r2"], 0.0)
        if row["gate"] is None and gate(prompt, rollout, shard.manifest.gate) != PASS:
            continue
        digest = fingerprint(prompt, completion)
        top = completion.emotion.top(prompt.label_set)
        found.append((k, digest, int(digest[:4], 16), top, derive(seed, "select", digest)))
    schema = {"k": pl.UInt32, "fingerprint": pl.String, "part": pl.Int64, "top": pl.String,
              "draw": pl.Int64}  # fmt: skip
    keys = pl.DataFrame(found, schema=schema, orient="row")
    return pl.concat([asked[keys["k"]], keys.drop("k")], how="horizontal")


def _lowest(rows: Any, n: int, key: Any) -> Any:
    """An expression that is true for the n rows with the smallest (key, place)."""
    pl = need_polars()
    ranked = rows.select(pl.col("at"), key=key).bottom_k(n, by=["key", "at"])
    at, limit = ranked.collect(engine="streaming").sort("key", "at").row(-1)
    return (key < limit) | ((key == limit) & (pl.col("at") <= at))


def _chosen(scratch: Path, given: Sequence[Any], result: Selection, max_share: float, n: int) -> Any:
    """Places of the selected candidates; `result` gets its counts.

    A candidate that equals a gold sample of `given`, the SFT sets of the exports, is a duplicate.
    """
    pl = need_polars()
    passed = pl.scan_parquet(scratch / "passed-*.parquet")
    rows = passed.select("at", "fingerprint", "part", "top", "draw", loss=-pl.col("r1"))
    for samples in given:
        gold = samples.lazy().filter(pl.col("source") != "selfplay")
        rows = rows.join(gold, "fingerprint", how="anti")
    parts = 1 + result.passed // _AT_ONCE
    for k in range(parts):
        mine = rows.filter(pl.col("part") % parts == k).drop("part")
        firsts = mine.sort("at").unique("fingerprint", keep="first", maintain_order=True)
        firsts.drop("fingerprint").sink_parquet(scratch / f"first-{k:05d}.parquet", engine="streaming")

    def counts(rows: Any) -> dict[str, int]:
        found = rows.group_by("top").len().collect(engine="streaming").sort("top")
        return dict(found.iter_rows())

    rows = pl.scan_parquet(scratch / "first-*.parquet")
    found = counts(rows)
    level = share_level(list(found.values()), max_share)
    capped = rows
    for emotion in (e for e, count in found.items() if count > level):
        mine = pl.col("top") == emotion
        capped = capped.filter(~mine | _lowest(rows.filter(mine), level, pl.col("loss")))
    left = sum(min(count, level) for count in found.values())
    result.duplicates = result.passed - sum(found.values())
    result.over_share = sum(found.values()) - left
    if 0 < n < left:
        result.not_drawn = left - n
        capped = capped.filter(_lowest(capped, n, pl.col("draw")))
    result.emotions = counts(capped)
    result.selected = sum(result.emotions.values())
    return capped.select("at").collect(engine="streaming")


def _written(rows: Any, shard: _Shard) -> Any:
    """Selected candidates in the columns of the output."""
    pl = need_polars()
    made = [
        {
            **parquet_row(prompt, completion, shard.manifest.reasoning, "selfplay"),
            "reward": row["r1"],
            "emotion": row["top"],
            "parent": prompt.lineage.parent,
            "turn": prompt.lineage.turn,
            **{k: row[k] for k in ("fingerprint", "stage", "step", "iteration")},
        }
        for row, prompt, completion in _samples(rows, shard)
    ]
    schema = {
        **parquet_schema(pl),
        "reward": pl.Float64,
        **dict.fromkeys(("emotion", "fingerprint", "stage", "parent"), pl.String),
        **dict.fromkeys(("step", "iteration", "turn"), pl.Int64),
    }
    return pl.DataFrame(made, schema=schema)


def _read(folder: Path, file: ShardFile, columns: Sequence[str] | None = None) -> Any:
    if wrong := fault(folder, file):
        raise StoreError(f"{folder / file.name}: {wrong}; the same `selfemo store export` writes it again")
    return need_polars().read_parquet(folder / file.name, columns=columns)


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
    """Write SFT samples from the shards of one or more exports.

    With one export of a run with one iteration, lam None and the run's flywheel.max_emotion_share, it selects
    the same set as the flywheel. A rollout that is best under another `lam` and was not judged by the gate is
    judged now, by the run's settings.

    Args:
        folders: exports; of equal samples the one in the first folder and shard stays.
        out: NAME.parquet, or a folder for one file a shard. Rows are in the order of the shards; the columns
            are those that `sft.samples` takes, and emotion, reward, fingerprint and lineage.
        lam: see `best_of_groups`.
        max_share: see `flywheel.select_samples`; over the whole selection, not by iteration.
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
            raise StoreError(f"{folder}: the export was stopped; run it again to go on: selfemo store export")
    shards = [_Shard(f, m, *pair) for f, m in manifests for pair in m.pairs()]
    scratch, result = out.with_name(f".{out.name}-scratch"), Selection(shards=len(shards))
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        given = [_read(f, file) for f, m in manifests for file in m.of("samples")]
        with reporter.bar("shards read", len(shards)) as advance:
            for number, shard in enumerate(shards):
                stop.check()
                passed = _candidates(shard, lam, iterations, seed, result)
                passed.write_parquet(scratch / f"passed-{number:05d}.parquet")
                advance(1, f"{result.passed:,} passed")
        places = _chosen(scratch, given, result, max_share, n)
        if not result.selected:
            given_folders = ", ".join(map(str, folders))
            raise StoreError(f"{given_folders}: no sample was left to write: {result.as_dict()}")
        parts = []
        with reporter.bar("samples written", result.selected) as advance:
            for number, shard in enumerate(shards):
                stop.check()
                passed = pl.read_parquet(scratch / f"passed-{number:05d}.parquet")
                rows = passed.join(places, "at", how="semi", maintain_order="left")
                if rows.height:
                    parts.append(scratch / f"part-{number:05d}.parquet")
                    _written(rows, shard).write_parquet(parts[-1])
                    advance(rows.height)
        _put(parts, out)
    except (OSError, pl.exceptions.PolarsError) as e:
        raise StoreError(f"{out}: the selection could not be written: {e}") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return result


def _candidates(
    shard: _Shard, lam: float | None, iterations: Collection[int], seed: int, result: Selection
) -> Any:
    """The best of each group of a shard that passed the gate; `result` counts them.

    The column `at` is their place among the candidates of all shards.
    """
    pl = need_polars()
    needed = _NEEDED if shard.manifest.reasoning == "none" else (*_NEEDED, "text")
    frame = _read(shard.folder, shard.rollouts, needed)
    if iterations:
        frame = frame.filter(pl.col("iteration").is_in(list(iterations)))
    best = best_of_groups(frame, lam, shard.manifest.seed)
    asked = _read(shard.folder, shard.prompts).select(prompt="id", asked=pl.struct(pl.all()))
    best = best.join(asked, "prompt", how="left", maintain_order="left")
    passed = _passed(best, shard, seed).with_row_index("at", result.passed)
    result.rollouts += frame.height
    result.groups += best.height
    result.passed += passed.height
    return passed


def _put(parts: Sequence[Path], out: Path) -> None:
    """Write the parts as one file, or as a folder that may replace an earlier selection."""
    if out.suffix == ".parquet":
        rows = need_polars().scan_parquet(parts)
        with replacing(out) as staging:
            rows.sink_parquet(staging, row_group_size=_ROW_GROUP, maintain_order=True)
        return
    if out.exists() and any(not f.name.startswith("part-") for f in out.iterdir()):
        raise StoreError(f"{out} holds other files than an earlier selection; name a new folder")
    with replacing_folder(out) as folder:
        for path in parts:
            path.replace(folder / path.name)
