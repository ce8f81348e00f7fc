"""Export from a store of a million rollouts, and selection out of ten million, with peak memory.

    python -m benchmarks.shards [--rollouts 10000000] [--store 1000000] [--folder EMPTY]

Synthetic rollouts with the columns, lengths and shares of real ones: groups of 8, histories of 2 to 10
utterances, half of the emotions neutral, 4% that do not parse, 3% of the groups repeat an earlier one.
Export and each selection run in a process of their own. On the first 80,000 the selection is compared with
the flywheel's functions over all groups in memory. Writes shards.json here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.harness import add_rollouts
from selfemo.config import GateConfig
from selfemo.method.types import (
    LABEL_SETS,
    Completion,
    FailureKind,
    ParseFailure,
    Place,
    RawCompletion,
    Rollout,
    RolloutGroup,
)
from selfemo.runs.selection import best_of_groups, select
from selfemo.runs.shards import Manifest, read_manifest, write_shard
from selfemo.runs.store import STORE_FILE, Store, read_distribution
from selfemo.stages.flywheel import fingerprint, select_samples
from selfemo.stages.gate import PASS, gate
from selfemo.stages.selfplay import select_best, tie_seed

HERE = Path(__file__).parent
G, PER_SHARD, LAM = 8, 100_000, 0.3
LABELS = LABEL_SETS["meld"].labels
SHARES = [0.47, 0.17, 0.12, 0.11, 0.07, 0.03, 0.03]
WORDS = [
    "the", "a", "you", "I", "we", "they", "it", "is", "was", "are", "do", "did", "not", "know", "think",
    "want", "go", "come", "see", "tell", "what", "why", "how", "never", "always", "really", "maybe",
    "please", "sorry", "thank", "look", "wait", "right", "okay", "home", "work", "tonight", "morning",
    "friend", "mother", "door", "car", "coffee", "phone", "money", "time", "thing", "people", "nothing",
]  # fmt: skip


def _phrases(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([" ".join(rng.choice(WORDS, rng.integers(2, 5))) for _ in range(n)])


PHRASES = _phrases(4096)
_NAMES = np.array(LABELS)
_ROLLOUT_COLUMNS = (
    "id", "stage", "step", "iteration", "prompt", "member", "text", "tokens", "failure", "emotion",
    "self_emotion", "reply", "r1", "r2", "advantage", "mean_logprob", "entropy", "best", "gate",
)  # fmt: skip


def _emotions(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) stored JSON and written form."""
    first = rng.choice(7, n, p=SHARES)
    second = (first + rng.integers(1, 7, n)) % 7
    weight = rng.integers(6, 10, n)
    lone = rng.random(n) < 0.7
    table_json, table_text = {}, {}
    for a in range(7):
        table_json[a, a, 0], table_text[a, a, 0] = json.dumps({LABELS[a]: 1.0}), LABELS[a]
        for b in range(7):
            for w in range(6, 10):
                pair = {LABELS[a]: w / 10, LABELS[b]: (10 - w) / 10}
                table_json[a, b, w] = json.dumps(pair)
                table_text[a, b, w] = f"{LABELS[a]} {w}, {LABELS[b]} {10 - w}"
    keys = [
        (a, a, 0) if one else (a, b, w)
        for a, b, w, one in zip(first.tolist(), second.tolist(), weight.tolist(), lone, strict=True)
    ]
    return (
        np.array([table_json[k] for k in keys], dtype=object),
        np.array([table_text[k] for k in keys], dtype=object),
    )


def make_shard(number: int, per_shard: int = PER_SHARD) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rollouts and prompts number, number + 1, ... of the synthetic store."""
    rng = np.random.default_rng([7, number])
    groups = per_shard // G
    base = number * groups
    source = np.arange(groups)
    again = rng.random(groups) < 0.03
    source[again] = rng.integers(0, groups, int(again.sum()))
    source = np.where(again[source], np.arange(groups), source)
    turns = rng.integers(2, 11, groups)
    said = PHRASES[rng.integers(0, len(PHRASES), (int(turns.sum()), 3))]
    ends = np.cumsum(turns)
    emotions = rng.choice(7, int(turns.sum()), p=SHARES)
    prompts: list[tuple[Any, ...]] = []
    for i in range(groups):
        span = range(ends[i] - turns[i], ends[i])
        history = [[("Ann", "Bo")[k % 2], " ".join(said[k]), {LABELS[emotions[k]]: 1.0}] for k in span]
        persona = ["Ann", f"Calm, {' '.join(said[span[0]])}; laughs it off afterwards.", ""]
        prompts.append(
            (f"it1.{base + i}>1", "iteration-1-rl", (base + i) // 64, 1, f"e{(base + i) // 4}", i % 4,
             f"p{base + i - 1}", "meld", f"c{(base + i) // 10}", json.dumps(["meld", list(LABELS)]),
             "Ann", json.dumps(persona), "A kitchen, late.", json.dumps(history),
             json.dumps({LABELS[emotions[span[-1]]]: 1.0}), 0)
        )  # fmt: skip
    prompts = [(*prompts[i][:11], *prompts[s][11:]) for i, s in zip(range(groups), source, strict=True)]
    n = groups * G
    e_json, e_text = _emotions(rng, n)
    s_json, s_text = _emotions(rng, n)
    reply = pl.Series(PHRASES[rng.integers(0, len(PHRASES), n)])
    for _ in range(2):
        reply = reply + " " + pl.Series(PHRASES[rng.integers(0, len(PHRASES), n)])
    reply = reply.str.to_titlecase() + "."
    hit = rng.random(n) < 0.15
    r1 = np.where(hit, np.round(rng.choice([1, 1, 0.8181818181818182, 0.6666666666666666, 0.53], n), 6), 0)
    failed = rng.random(n) < 0.04
    broken = {True: "no_emotion", False: None}
    frame = pl.DataFrame({
        "id": np.arange(n) + number * n + 1,
        "step": (np.arange(n) // G + base) // 64,
        "prompt": pl.Series([p[0] for p in prompts]).gather(np.arange(n) // G),
        "member": np.arange(n) % G,
        "tokens": rng.integers(18, 60, n),
        "failure": pl.Series(failed).replace_strict(broken, return_dtype=pl.String),
        "emotion": pl.Series(e_json.tolist()), "self_emotion": pl.Series(s_json.tolist()), "reply": reply,
        "text": pl.Series(e_text.tolist()), "S": pl.Series(s_text.tolist()),
        "r1": r1, "r2": rng.integers(0, 4, n) / 3,
        "mean_logprob": rng.normal(-1, 0.3, n), "advantage": rng.normal(size=n),
        "entropy": rng.normal(1.2, 0.2, n), "fault": rng.random(n),
    })  # fmt: skip
    bad = pl.col("failure").is_not_null()
    frame = frame.with_columns(
        text="E: " + pl.col("text") + "\nS: " + pl.col("S") + "\nR: " + pl.col("reply")
    ).with_columns(
        stage=pl.lit("iteration-1-rl"), iteration=pl.lit(1),
        emotion=pl.when(~bad).then("emotion"), self_emotion=pl.when(~bad).then("self_emotion"),
        reply=pl.when(~bad).then("reply"), r1=pl.when(bad).then(0.0).otherwise("r1"),
        r2=pl.when(bad).then(0.0).otherwise("r2"),
    ).drop("S")  # fmt: skip
    # A repeated group is its source's, rollout by rollout.
    at = (np.repeat(source, G) * G + np.tile(np.arange(G), groups)).astype(np.int64)
    own = frame.select("id", "step", "prompt", "member")
    frame = pl.concat([own, frame.drop("id", "step", "prompt", "member")[at]], how="horizontal")
    chosen = best_of_groups(frame, LAM, 0).select("id", best=pl.lit(1))
    frame = frame.join(chosen, "id", how="left", maintain_order="left").with_columns(
        pl.col("best").fill_null(0)
    )
    verdict = (
        pl.when(pl.col("failure").is_not_null()).then(pl.lit("unparsed"))
        .when(pl.col("r1") < 0.5).then(pl.lit("low_reward"))
        .when(pl.col("fault") < 0.1).then(pl.lit("repetition"))
        .otherwise(pl.lit(PASS))
    )  # fmt: skip
    frame = frame.with_columns(gate=pl.when(pl.col("best") == 1).then(verdict))
    columns = (
        "id", "stage", "step", "iteration", "episode", "turn", "parent", "dataset", "conversation",
        "label_set", "answerer", "persona", "scenario", "history", "target", "skipped",
    )  # fmt: skip
    return (
        frame.select(_ROLLOUT_COLUMNS).cast({"best": pl.Int64, "iteration": pl.Int64}),
        pl.DataFrame(prompts, schema=columns, orient="row"),
    )


def make_export(folder: Path, rollouts: int) -> None:
    """A complete export of synthetic rollouts, without the store that it would come from."""
    folder.mkdir(parents=True)
    manifest = Manifest(GateConfig(), "none", 0, [], complete=True)
    for number in range(rollouts // PER_SHARD):
        for table, frame in zip(("rollouts", "prompts"), make_shard(number), strict=True):
            last = int(frame["id"][-1]) if table == "rollouts" else 0
            manifest.files.append(write_shard(folder, table, number, frame, last))
    manifest.write(folder)


def part_of(folder: Path, out: Path, shards: int) -> Path:
    """The first shards of an export as an export of its own, by hard links."""
    out.mkdir()
    manifest = read_manifest(folder)
    manifest.files = manifest.files[: 2 * shards]
    for file in manifest.files:
        (out / file.name).hardlink_to(folder / file.name)
    manifest.write(out)
    return out


def make_store(folder: Path, rollouts: int) -> None:
    folder.mkdir(parents=True)
    store = Store(folder / STORE_FILE)
    for number in range(rollouts // PER_SHARD):
        frame, prompts = make_shard(number)
        with store.transaction():
            store.add_prompts((Store.read_prompt(p) for p in prompts.iter_rows(named=True)), Place("s"))
            add_rollouts(store, frame.drop("id").iter_rows())
    store.close()


_JOB = """
import json, sys, time
from pathlib import Path
from selfemo.files import need_polars
from selfemo.runs import selection, shards
need_polars()
def peak():  # ru_maxrss would begin with that of the process that started this one
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) // 1024
start, base, job = time.perf_counter(), peak(), json.loads(sys.argv[1])
if job["what"] == "export":
    result = shards.export(Path(job["from"]), Path(job["out"])).rows()
else:
    result = selection.select([Path(job["from"])], Path(job["out"]), n=job["n"]).as_dict()
print(json.dumps({"seconds": round(time.perf_counter() - start, 1), "peak_mib": peak(),
                  "imports_mib": base, **result}))
"""


def job(**what: Any) -> dict[str, Any]:
    command = [sys.executable, "-c", _JOB, json.dumps(what)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def groups_in_memory(folder: Path) -> Iterator[tuple[RolloutGroup, list[str | None]]]:
    """Groups with the verdicts of their members, read back from shards."""
    manifest = read_manifest(folder)
    for a, b in zip(manifest.of("rollouts"), manifest.of("prompts"), strict=True):
        asked = {
            r["id"]: Store.read_prompt(r) for r in pl.read_parquet(folder / b.name).iter_rows(named=True)
        }
        rows = pl.read_parquet(folder / a.name).to_dicts()
        for start in range(0, len(rows), G):
            group = rows[start : start + G]
            members = []
            for r in group:
                e, s = read_distribution(r["emotion"]), read_distribution(r["self_emotion"])
                parsed = Completion(e, s, r["reply"]) if e and s else ParseFailure(FailureKind.EMPTY)
                sample = RawCompletion(r["text"], (1,), (r["mean_logprob"],))
                members.append(Rollout(sample, parsed, r["r1"], r["r2"], 0.0))
            prompt = asked[group[0]["prompt"]]
            tie = tie_seed(0, group[0]["stage"], group[0]["step"], prompt.id)
            yield RolloutGroup(prompt, tuple(members)), [r["gate"] for r in group], tie


def reference(folder: Path, lam: float, share: float) -> list[str]:
    """Fingerprints that the flywheel's functions choose over everything in memory."""
    seen: set[str] = set()
    rows: list[tuple[str, str, float]] = []
    for group, verdicts, tie in groups_in_memory(folder):
        best = select_best(group, lam, tie)
        rollout = group.rollouts[best]
        verdict = verdicts[best] or gate(group.prompt, rollout, GateConfig())
        if verdict != PASS or rollout.completion is None:
            continue
        digest = fingerprint(group.prompt, rollout.completion)
        if digest not in seen:
            seen.add(digest)
            top = rollout.completion.emotion.top(group.prompt.label_set)
            rows.append((digest, top, rollout.r1))
    kept = select_samples([r[1] for r in rows], [r[2] for r in rows], share)
    return [r[0] for r, k in zip(rows, kept, strict=True) if k]


def compare(folder: Path, lam: float | None, share: float) -> dict[str, Any]:
    out = folder.with_name("compared.parquet")
    select([folder], out, lam=lam, max_share=share)
    got = pl.read_parquet(out)["fingerprint"].to_list()
    expected = reference(folder, LAM if lam is None else lam, share)
    assert got == expected, f"lam {lam}, share {share}: {len(got)} against {len(expected)}"
    return {"lam": lam, "max_share": share, "selected": len(got), "equal": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=10_000_000)
    parser.add_argument("--store", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to work; removed at the end")
    parser.add_argument("--shards", type=Path, help="shards of an earlier run; made here if missing")
    parser.add_argument("--results", type=Path, default=HERE / "shards.json")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    results: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "polars": pl.__version__,
    }

    def note(key: str, value: Any) -> None:
        results[key] = value
        print(key, json.dumps(value), flush=True)

    try:
        start = time.perf_counter()
        make_store(folder / "run", args.store)
        size = sum(f.stat().st_size for f in (folder / "run").iterdir())
        note("store", {
            "rollouts": args.store, "seconds to fill": round(time.perf_counter() - start, 1),
            "bytes a rollout": round(size / args.store),
        })  # fmt: skip
        done = job(what="export", **{"from": str(folder / "run"), "out": str(folder / "exported")})
        size = sum(f.stat().st_size for f in (folder / "exported").iterdir())
        note("export", {**done, "bytes a rollout": round(size / args.store)})
        shutil.rmtree(folder / "run")
        out = folder / "x.parquet"

        def select_from(source: Path, n: int = 0) -> dict[str, Any]:
            done = job(what="select", n=n, **{"from": str(source), "out": str(out)})
            done["bytes a sample"] = round(out.stat().st_size / done["selected"])
            print("select", json.dumps(done), flush=True)
            return done

        selections = [select_from(folder / "exported")]
        note("select 10,000", select_from(folder / "exported", 10_000))
        shutil.rmtree(folder / "exported")
        made = args.shards or folder / "all"
        if not made.exists():
            make_export(made, args.rollouts)
        files = [f.bytes for f in read_manifest(made).files]
        note("shards", {
            "rollouts": args.rollouts, "files": len(files),
            "bytes a rollout": round(sum(files) / args.rollouts),
        })  # fmt: skip
        for rollouts in (3_000_000, 10_000_000):
            if rollouts <= args.rollouts:
                part = part_of(made, folder / f"{rollouts}", rollouts // PER_SHARD)
                selections.append(select_from(part))
        results["select"] = selections
        part = folder / "80000"
        part.mkdir()
        manifest = Manifest(GateConfig(), "none", 0, [], complete=True)
        for number in range(2):
            for table, frame in zip(("rollouts", "prompts"), make_shard(number, 40_000), strict=True):
                manifest.files.append(write_shard(part, table, number, frame))
        manifest.write(part)
        cases = ((None, 0.5), (None, 0.2), (0.0, 0.34), (0.7, 0.3))
        note("against memory", [compare(part, *case) for case in cases])
        args.results.write_text(json.dumps(results, indent=1) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
