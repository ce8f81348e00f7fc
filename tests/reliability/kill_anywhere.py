"""SIGKILL a job at random moments, resume it, and compare what it leaves with an uninterrupted one's.

    python -m tests.reliability.kill_anywhere --job evolve --kills 60 --out docs/data/kill_evolve.json
    python -m tests.reliability.kill_anywhere --job evolve --journal delete

Jobs: `evolve` (a tiny model that really trains), `personas` (extraction from a server with faults),
`evaluate` (an endpoint with faults) and `judge` (two systems and a judge, endpoints with faults). Each is the
command of a user, in a process of its own that gets SIGKILL; half of the kills wait for a write to begin (a
staging file or folder appears) and come right then.
When a run has come to its end it is compared, and a new one begins until all kills are spent. Every
comparison is of bytes or rows: store content, metrics, scores, weights, and the list of files.

To spare the seconds of imports the process is forked from one that has them; every tenth one is a fresh
interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with threads cannot be forked safely

SERVER = Path(__file__).parent.parent / "support" / "expert_server.py"
SETTINGS = """
model.device=cpu model.dtype=fp32 model.threads=1 prompt.max_tokens=400 sampling.max_new_tokens=40
sampling.group_size=4 sft.lr=5e-3 sft.batch_size=8 sft.run_length=4 sft.epochs=20
sft.micro_tokens=4096 sft.label_weight=2 grpo.prompts_per_step=6 grpo.mini_batch=3 grpo.lr=1e-4
grpo.lam_max=0.5 flywheel.iterations=2 flywheel.prompts=18 flywheel.refit_epochs=2
flywheel.refit=policy evaluation.span=all evaluation.max_new_tokens=40 evaluation.resamples=50
save.every_steps=1
"""
TABLES = {
    "prompts": "*", "predictions": "*", "metrics": "stage, step, record", "answers": "key, item, text",
    "samples": "stage, step, iteration, source, prompt, completion, emotion, reward, fingerprint, used",
    "rollouts": "stage, step, iteration, prompt, member, text, tokens, failure, emotion, self_emotion, "
    "reply, r1, r2, advantage, mean_logprob, entropy, best, gate",
    "stages": "name, status, step, checkpoint, info",
    "personas": "segment, speaker, description, scenario", "failures": "*", "profiles": "*",
}  # fmt: skip
"""What must not depend on interruptions: times do, row numbers may have gaps, and the tokens that an expert
was paid depend on how often a faulty server had to be asked."""
UNORDERED = {"predictions", "answers", "personas", "stages"}


def content(folder: Path, tables: list[str]) -> dict[str, list]:
    db = sqlite3.connect(f"{(folder / 'store.sqlite').as_uri()}?mode=ro", uri=True)
    try:
        found = {t: db.execute(f"SELECT {TABLES[t]} FROM {t} ORDER BY rowid").fetchall()
                 for t in tables}  # fmt: skip
    finally:
        db.close()
    return {t: sorted(map(str, rows)) if t in UNORDERED else rows for t, rows in found.items()}


def files(folder: Path) -> dict[str, str]:
    """Hashes of what must be equal, by name; "" for files that hold times or are no result."""
    same = (".safetensors", ".jsonl", ".toml", "scores.json", ".parquet")
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        if p.name.endswith(same) else ""
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith(("-wal", "-shm"))
    }  # fmt: skip


def differences(folder: Path, reference: Path, tables: list[str]) -> list[str]:
    found = []
    a, b = content(folder, tables), content(reference, tables)
    for table in tables:
        if a[table] != b[table]:
            found.append(f"table {table}: {len(a[table])} rows, {len(b[table])} in the reference")
    left, right = files(folder), files(reference)
    return found + sorted(f"file {n}" for n in left.keys() | right.keys() if left.get(n) != right.get(n))


@dataclass
class Job:
    """A command that can be killed: `command(folder)` begins it or goes on with it.

    Attributes:
        tables: what is compared.
        stage: says where a folder's job stands, for the tally of kills.
        finish: checks beyond the comparison, by what it returns.
    """

    command: Callable[[Path], list[str]]
    tables: list[str]
    stage: Callable[[Path], str] = lambda folder: "under way"
    finish: Callable[[Path, int], list[str]] = lambda folder, kills: []


@dataclass
class Outcome:
    kills: int = 0
    at_writes: int = 0
    runs: int = 0
    where: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)


def _spawn(arguments: list[str], log: Path, fresh: bool) -> int:
    """Start `selfemo ARGUMENTS`; returns the process id."""
    if fresh:
        with log.open("ab") as out:
            command = [sys.executable, "-m", "selfemo.cli", *arguments]
            return subprocess.Popen(command, stdout=out, stderr=out).pid
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = ["selfemo", *arguments]
        from selfemo.cli import run

        try:
            run()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        sys.stdout.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _ended(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _staging(folder: Path) -> set[str]:
    """Staging files and folders of writes that are under way."""
    places = [
        folder,
        folder / "checkpoints",
        *folder.glob("checkpoints/.*-partial"),
        *folder.glob("answers-*"),
    ]
    found = set()
    for place in places:
        with contextlib.suppress(OSError):
            for entry in os.scandir(place):
                name = entry.name
                if name.endswith(".tmp") or (
                    place.name == "checkpoints" and name[0] == "." and not name.endswith("-partial")
                ):
                    found.add(f"{place.name}/{name}")
    return found


def _wait_to_kill(pid: int, folder: Path, delay: float, at_write: bool) -> tuple[int | None, bool]:
    """Sleep, then for `at_write` go on until a write begins; the exit code where it ended before."""
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        if (code := _ended(pid)) is not None:
            return code, False
        time.sleep(min(0.01, max(0.0, deadline - time.monotonic())))
    while at_write:
        if _staging(folder):
            return None, True
        if (code := _ended(pid)) is not None:
            return code, False
    return _ended(pid), False


def kill_anywhere(job: Job, folder: Path, kills: int, seed: int, say=print) -> Outcome:
    """Kill and resume `job` until `kills` are spent and the last run has come to its end."""
    draw, outcome, log = random.Random(seed), Outcome(), folder / "log"
    reference = folder / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    pid = _spawn(job.command(reference), log, fresh=False)
    while (code := _ended(pid)) is None:
        time.sleep(0.01)
    whole = time.monotonic() - started
    if code:
        raise RuntimeError(f"the uninterrupted job failed:\n{log.read_text()[-3000:]}")
    say(f"uninterrupted: {whole:.1f} s")
    job.finish(reference, 0)
    run, here, attempts = folder / "run-0", 0, 0
    while True:
        attempts += 1
        fresh = attempts % 10 == 0
        pid = _spawn(job.command(run), log, fresh)
        at_write = draw.random() < 0.5
        # Most draws fall inside what is left of the job; a fresh interpreter needs seconds to begin.
        delay = draw.uniform(0, 0.35 * whole) + (4 * draw.random() if fresh else 0)
        code, in_write = None, False
        if outcome.kills < kills:
            code, in_write = _wait_to_kill(pid, run, delay, at_write)
        else:
            while (code := _ended(pid)) is None:
                time.sleep(0.01)
        if code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            outcome.kills += 1
            here += 1
            outcome.at_writes += in_write
            outcome.where[job.stage(run)] += 1
            continue
        if code:
            outcome.differences.append(f"run {outcome.runs}: exit {code}: {log.read_text()[-2000:]}")
            return outcome
        wrong = differences(run, reference, job.tables) + job.finish(run, here)
        outcome.differences += [f"run {outcome.runs} after {here} kills: {d}" for d in wrong]
        outcome.runs += 1
        say(f"run {outcome.runs} ended after {here} kills: {wrong or 'equal'}")
        shutil.rmtree(run)
        if outcome.kills >= kills:
            return outcome
        run, here = folder / f"run-{outcome.runs}", 0


# -- the jobs ---------------------------------------------------------------------------------------------


def evolve_job(folder: Path, journal: str) -> Job:
    """Two iterations of the whole loop on a tiny model, a state after each step."""
    import torch

    torch.set_num_threads(1)
    # Loaded here once: kills shall fall into the work of a run, not into its imports.
    import selfemo.evaluation.summary
    import selfemo.reports.figures
    import selfemo.runs.evolve
    import selfemo.training.local  # noqa: F401
    from selfemo.config import load, to_toml
    from tests.conftest import build_tiny_model, toy_conversations, write_jsonl

    data, toml = folder / "toy.jsonl", folder / "c.toml"
    write_jsonl(data, [*toy_conversations(10), *toy_conversations(3, "test")])
    model = build_tiny_model(folder / "tiny")
    own = [f'model.id="{model}"', f'data.sources=["{data}"]', f"store.journal_mode={journal}"]
    toml.write_text(to_toml(load([], [*SETTINGS.split(), *own])))

    def command(run: Path) -> list[str]:
        if (run / "config.toml").exists():
            return ["evolve", "--resume", str(run)]
        return ["evolve", "-c", str(toml), "--out", str(run)]

    def stage(run: Path) -> str:
        if not (run / "config.toml").exists():
            return "before the first stage"
        db = sqlite3.connect(f"{(run / 'store.sqlite').as_uri()}?mode=ro", uri=True)
        try:
            done = {n for (n,) in db.execute("SELECT name FROM stages WHERE status = 'done'")}
        except sqlite3.Error as e:
            undone = e.sqlite_errorname == "SQLITE_READONLY_ROLLBACK"
            return "inside a commit" if undone else "before the first stage"
        finally:
            db.close()
        order = ["evaluate-start", "cold-start", "evaluate-cold-start"]
        for i in (1, 2):
            order += [f"iteration-{i}-rl", f"evaluate-iteration-{i}-rl"]
            order += [f"iteration-{i}-refit", f"evaluate-iteration-{i}"]
        return next((n for n in order if n not in done), "summary")

    return Job(command, ["prompts", "rollouts", "samples", "predictions", "metrics", "stages"], stage)


@contextlib.contextmanager
def _server(*flags: object) -> Iterator[str]:
    command = [sys.executable, str(SERVER), *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.kill()
        process.wait()


def _no_answer_lost(log: Path, concurrency: int) -> Callable[[Path, int], list[str]]:
    """At a kill only the answers under way may be lost, so only they are paid a second time.

    A faulty server's unusable answers are asked for anew without any kill: as often as in the reference.
    """
    without_kills: list[int] = []

    def finish(run: Path, kills: int) -> list[str]:
        twice = sum(n - 1 for n in Counter(log.read_text().split()).values())
        os.truncate(log, 0)
        without_kills.append(twice)
        allowed = 2 * without_kills[0] + kills * concurrency
        return [f"{twice} answers paid twice, {allowed} may be"] if kills and twice > allowed else []

    return finish


def personas_job(folder: Path, url: str, log: Path, concurrency: int = 8) -> Job:
    import selfemo.runs.expert_jobs  # noqa: F401

    data = folder / "mine.jsonl"
    with data.open("w") as f:
        for i in range(300):
            turns = [{"speaker": "Ann", "text": f"Line {i}"}, {"speaker": "Bo", "text": f"Yes {i}"}]
            f.write(json.dumps({"id": f"c{i}", "split": "train", "turns": turns}) + "\n")

    def command(run: Path) -> list[str]:
        expert = f"e={url},model=planted,concurrency={concurrency},timeout=2,attempts=12"
        return ["personas", "extract", f"jsonl:{data}", "--out", str(run), "--expert", expert]

    finish = _no_answer_lost(log, concurrency)
    return Job(command, ["personas", "failures", "profiles"], finish=finish)


def evaluate_job(folder: Path, url: str, log: Path, concurrency: int = 4) -> Job:
    import selfemo.evaluation.jobs  # noqa: F401

    data = _labelled(folder / "data.jsonl", 80)

    def command(run: Path) -> list[str]:
        model = f"e={url},model=planted,concurrency={concurrency},timeout=2,attempts=12"
        return ["evaluate", model, "--data", str(data), "--out", str(run)]

    finish = _no_answer_lost(log, concurrency)
    return Job(command, ["predictions", "answers"], finish=finish)


def _labelled(path: Path, conversations: int) -> Path:
    """Held-out conversations of four turns each."""
    with path.open("w") as f:
        for i in range(conversations):
            turns = [{"speaker": "AB"[k % 2], "text": f"Line {k} of {i}.",
                      "emotion": "joy" if (i + k) % 3 else "anger"} for k in range(4)]  # fmt: skip
            f.write(json.dumps({"id": f"c{i}", "split": "test", "turns": turns}) + "\n")
    return path


def judge_job(folder: Path, urls: list[str], logs: list[Path], concurrency: int = 4) -> Job:
    """Two systems answer, a judge compares: `urls` and `logs` are of the three servers, the judge's last."""
    import selfemo.evaluation.judge_jobs  # noqa: F401

    data = _labelled(folder / "data.jsonl", 20)
    x, y, judge = (
        f"{n}={url},model=m-{n},concurrency={concurrency},timeout=2,attempts=12"
        for n, url in zip("xyj", urls, strict=True)
    )
    lost = [_no_answer_lost(log, concurrency) for log in logs]
    verdicts: list[Any] = []

    def command(run: Path) -> list[str]:
        return ["judge", x, y, "--judge", judge, "--data", str(data), "--split", "test",
                "--conversations", "0", "--prompts", "0", "--out", str(run)]  # fmt: skip

    def stage(run: Path) -> str:
        if (run / "store.sqlite").exists():
            return "judging"
        return "second system" if (run / "answers-b").exists() else "first system"

    def finish(run: Path, kills: int) -> list[str]:
        verdicts.append(json.loads((run / "judge.json").read_text())["kinds"])
        other = ["judge.json has other verdicts"] if verdicts[-1] != verdicts[0] else []
        return other + [fault for each in lost for fault in each(run, kills)]

    return Job(command, ["answers", "failures"], stage, finish)


def run_job(name: str, folder: Path, kills: int, seed: int, journal: str, say=print) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    if name == "evolve":
        return kill_anywhere(evolve_job(folder, journal), folder / "runs", kills, seed, say)
    from selfemo.models.generation import endpoint

    endpoint.FIRST_WAIT = 0.02  # waiting for the faulty server would be most of the time
    faults = ("--faults", 0.2, "--hang", 2.5) if name == "personas" else ("--only", "500", "--times", 2)
    # Judging: two systems whose replies end differently, and a judge that goes by one of the words.
    kinds = ([("--salt", "x", "--reply", "gladly"), ("--salt", "y"), ("--judge", "gladly")]
             if name == "judge" else [()])  # fmt: skip
    logs = [folder / f"answers-{k}.log" for k in range(len(kinds))]
    with contextlib.ExitStack() as servers:
        urls = [
            servers.enter_context(_server("--latency", 0.04, "--log", log, *faults, *kind))
            for log, kind in zip(logs, kinds, strict=True)
        ]
        if name == "judge":
            job = judge_job(folder, urls, logs)
        else:
            job = (personas_job if name == "personas" else evaluate_job)(folder, urls[0], logs[0])
        return kill_anywhere(job, folder / "runs", kills, seed, say)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", choices=("evolve", "personas", "evaluate", "judge"), default="evolve")
    parser.add_argument("--journal", choices=("wal", "delete", "truncate", "persist"), default="wal",
                        help="of the store of evolve")  # fmt: skip
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the result goes as JSON")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="selfemo-kill-") as folder:
        outcome = run_job(args.job, Path(folder), args.kills, args.seed, args.journal)
    result = {
        "command": f"python -m tests.reliability.kill_anywhere --job {args.job} --kills {args.kills} "
        f"--seed {args.seed}" + ("" if args.journal == "wal" else f" --journal {args.journal}"),
        "job": args.job, "kills": outcome.kills, "kills_inside_a_write": outcome.at_writes,
        "runs_compared": outcome.runs, "killed_in": dict(outcome.where.most_common()),
        "differences": outcome.differences, "seconds": round(time.monotonic() - started),
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    raise SystemExit(bool(outcome.differences))


if __name__ == "__main__":
    main()
