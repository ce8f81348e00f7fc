"""Full disks, folders that cannot be written, and files that are cut, altered or gone.

Each is told in one message, and the run goes on from the last state that is whole.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from selfemo.config import to_toml
from selfemo.errors import DamagedStoreError, EngineError, StoreError
from selfemo.files import write_text
from selfemo.method.types import Place
from selfemo.progress import Quiet
from selfemo.runs.folder import RunFolder
from selfemo.runs.store import Store
from tests.support.runs import SHORT, assert_goes_on_as_if_never_stopped, begun, content, evolve, settings

pytestmark = pytest.mark.slow


class Said(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def __contains__(self, text: str) -> bool:
        return any(text in line for line in self.lines)


class StopsAt(Said):
    """Interrupts a run as Ctrl-C would, when a stage has taken some steps."""

    def __init__(self, stage: str, steps: int):
        super().__init__()
        self.stage, self.steps = stage, steps

    def bar(self, label: str, total: int):
        from contextlib import contextmanager

        @contextmanager
        def counted():
            done = 0

            def advance(n: int = 1, note: str = "") -> None:
                nonlocal done
                if label == self.stage and done == self.steps:
                    raise KeyboardInterrupt
                done += bool(note)

            yield advance

        return counted()


@pytest.fixture(scope="module")
def whole(short: Path) -> Path:
    """A run that nothing happened to."""
    return short


@pytest.fixture(scope="module")
def halfway(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted in its RL stage, with two states saved."""
    folder = begun(whole, "iteration-1-rl", tmp_path_factory.mktemp("runs") / "halfway")
    with pytest.raises(KeyboardInterrupt):
        evolve(folder, None, StopsAt("iteration-1-rl", 2))
    return folder


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


class BeginsAt(Said):
    """Interrupts a run where a stage begins: what was seen and mended before is told and stored."""

    def __init__(self, stage: str):
        super().__init__()
        self.stage = stage

    def bar(self, label: str, total: int):
        if label == self.stage:
            raise KeyboardInterrupt
        return super().bar(label, total)


def opened(folder: Path, stage: str) -> tuple[Said, dict[str, list]]:
    """Resume up to the beginning of a stage: what was said, and the store then."""
    said = BeginsAt(stage)
    with pytest.raises(KeyboardInterrupt):
        evolve(folder, None, said)
    return said, content(folder)


def resumed(folder: Path, whole: Path) -> Said:
    """Resume to the end; the outcome is that of the run that was never damaged."""
    said = Said()
    evolve(folder, None, said).close()
    assert content(folder) == content(whole)
    a, b = (f / "checkpoints/iteration-1/model.safetensors" for f in (folder, whole))
    assert a.read_bytes() == b.read_bytes()
    return said


# -- damage ----------------------------------------------------------------------------------------------


def test_an_altered_state_is_seen_and_the_one_before_it_is_used(
    halfway: Path, whole: Path, tmp_path: Path
) -> None:
    folder = copied(halfway, tmp_path)
    one, two = (folder / f"checkpoints/.iteration-1-rl-partial/step-{k}.safetensors" for k in (1, 2))
    assert one.exists() and two.exists()
    flipped = bytearray(two.read_bytes())
    flipped[-5] ^= 4  # one bit of one weight: the file is as long, and its header as good, as before
    two.write_bytes(flipped)
    said = resumed(folder, whole)
    assert "step-2.safetensors: not a whole training state: altered" in said
    assert "iteration-1-rl goes back to step 1" in said


def test_states_that_are_gone_start_the_stage_again(halfway: Path, whole: Path, tmp_path: Path) -> None:
    folder = copied(halfway, tmp_path)
    shutil.rmtree(folder / "checkpoints/.iteration-1-rl-partial")
    assert "iteration-1-rl starts again" in resumed(folder, whole)


def test_a_damaged_checkpoint_is_made_again(halfway: Path, whole: Path, tmp_path: Path) -> None:
    """However it is damaged, the run begins anew at the same place; from there it is as if never damaged."""
    stores, folder = [], tmp_path / "run"
    for damage in ("cut", "altered", "no checksums", "deleted file", "deleted"):
        shutil.rmtree(folder, ignore_errors=True)
        checkpoint = copied(halfway, tmp_path) / "checkpoints" / "cold-start"
        weights = checkpoint / "model.safetensors"
        if damage == "cut":
            os.truncate(weights, 1000)
        elif damage == "altered":
            content_ = bytearray(weights.read_bytes())
            content_[-3] ^= 1
            weights.write_bytes(content_)
        elif damage == "no checksums":
            (checkpoint / "selfemo_checksums.json").unlink()
        elif damage == "deleted file":
            (checkpoint / "tokenizer.json").unlink()
        else:
            shutil.rmtree(checkpoint)
        said, store = opened(folder, "cold-start")
        assert "stage cold-start is done again" in said, damage
        stores.append(store)
    assert all(store == stores[0] for store in stores)
    resumed(folder, whole)


def test_a_run_that_prunes_ends_the_same_and_makes_a_damaged_model_again(
    whole: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config = settings(tiny_model, data, *SHORT, "save.keep_stage_checkpoints=false")
    evolve(folder, config, Quiet()).close()

    def kept(run: Path) -> set[str]:
        return {p.name for p in (run / "checkpoints").iterdir()}

    assert kept(folder) == {"cold-start", "iteration-1"} == kept(whole) - {"iteration-1-rl"}
    assert content(folder) == content(whole)
    os.truncate(folder / "checkpoints/iteration-1/model.safetensors", 1000)
    # The refit begins with the policy that was pruned, so the RL stage is done again too.
    assert "stage iteration-1-refit is done again" in resumed(folder, whole)
    assert kept(folder) == {"cold-start", "iteration-1"}


def damaged_page(store: Path) -> None:
    """Random bytes over a page of the table tree in the middle of the file."""
    db = sqlite3.connect(store)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'rollouts'").fetchone()[0]
    size = db.execute("PRAGMA page_size").fetchone()[0]
    db.close()
    with store.open("r+b") as f:
        f.seek((root - 1) * size)
        f.write(random.Random(0).randbytes(size))


def test_a_damaged_store_is_put_aside_for_its_copy(halfway: Path, whole: Path, tmp_path: Path) -> None:
    """However it is damaged, the copy takes its place; from there the run is as if never damaged."""
    stores, folder = [], tmp_path / "run"
    for damage in ("page", "header", "cut", "deleted"):
        shutil.rmtree(folder, ignore_errors=True)
        store = copied(halfway, tmp_path) / "store.sqlite"
        if damage == "page":
            damaged_page(store)
        elif damage == "header":
            with store.open("r+b") as f:
                f.write(b"not a database at all")
        elif damage == "cut":
            os.truncate(store, store.stat().st_size // 2 // 4096 * 4096)
        else:
            for part in folder.glob("store.sqlite*"):
                part.unlink()
        said, rows = opened(folder, "iteration-1-rl")
        assert "the run goes on from store.backup.sqlite" in said, damage
        assert bool(list(folder.glob("damaged-*-store.sqlite"))) == (damage != "deleted")
        stores.append(rows)
    assert all(rows == stores[0] for rows in stores)
    resumed(folder, whole)


def test_a_damaged_store_without_a_copy_is_one_message(halfway: Path, tmp_path: Path) -> None:
    folder = copied(halfway, tmp_path)
    (folder / "store.backup.sqlite").unlink()
    damaged_page(folder / "store.sqlite")
    before = (folder / "store.sqlite").read_bytes()
    with pytest.raises(DamagedStoreError, match=r"store\.sqlite: is damaged: .*start a new run"):
        RunFolder(folder, None)
    assert (folder / "store.sqlite").read_bytes() == before
    with pytest.raises(DamagedStoreError, match="is damaged"):
        Store(folder / "store.sqlite", read_only=True)


# -- a full disk ---------------------------------------------------------------------------------------------


def limited(arguments: list[str], most: int) -> subprocess.CompletedProcess[str]:
    """The command in a process that may write no file longer than `most` bytes."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    return subprocess.run(
        [sys.executable, "-m", "selfemo.cli", *arguments],
        capture_output=True, text=True, check=False, preexec_fn=limit,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("most", "says", "stage"),
    [
        (60_000, "store", "evaluate-start"),  # the store, in the first evaluation
        (300_000, "could not be written", "cold-start"),  # the first training state
    ],
)
def test_a_full_disk_is_one_message_and_the_run_goes_on_afterwards(
    tiny_model: Path, data: Path, whole: Path, tmp_path: Path, most: int, says: str, stage: str
) -> None:
    toml, folder = tmp_path / "c.toml", tmp_path / "run"
    toml.write_text(to_toml(settings(tiny_model, data, *SHORT)))
    done = limited(["evolve", "-c", str(toml), "--out", str(folder)], most)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "error: " in done.stderr and says in done.stderr.replace("\n", " "), done.stderr
    if not (folder / "config.toml").exists():
        RunFolder(folder, settings(tiny_model, data, *SHORT)).close()
    assert_goes_on_as_if_never_stopped(folder, whole, stage)
    left = [p for p in folder.rglob("*") if ".tmp" in p.name]
    assert not left, "nothing half-written is left"


def test_a_copy_that_does_not_fit_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.sqlite"
    with Store(tmp_path / "s.sqlite") as store:
        store.backup(copy)
        before = copy.read_bytes()
        with store.transaction():
            for k in range(300):
                store.add_metrics(Place("s", k), {"x": "y" * 500})

        def full(path: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("selfemo.files.sync", full)
        with pytest.raises(StoreError, match="No space left"):
            store.backup(copy)
        with pytest.raises(StoreError, match=r"config\.toml: cannot be written \(No space left"):
            write_text(tmp_path / "config.toml", "x")
        assert copy.read_bytes() == before
        assert sorted(p.name for p in tmp_path.iterdir() if "s.sqlite" not in p.name) == ["copy.sqlite"]


# -- folders and processes -------------------------------------------------------------------------------


def without_privilege(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The command without root's right to write where the mode forbids it."""

    def drop() -> None:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP

    return subprocess.run(
        [sys.executable, "-m", "selfemo.cli", *arguments],
        capture_output=True, text=True, check=False, preexec_fn=drop,
    )  # fmt: skip


def test_folders_that_cannot_be_written_are_one_message(halfway: Path, whole: Path, tmp_path: Path) -> None:
    closed, folder = tmp_path / "closed", copied(halfway, tmp_path)
    closed.mkdir(mode=0o555)
    checkpoints = folder / "checkpoints"
    checkpoints.chmod(0o555)
    for arguments, says in (
        (["--out", str(closed / "run")], f"{closed} cannot be written; name another folder: --out"),
        (["--resume", str(folder)], "the checkpoint could not be written (Permission denied)"),
    ):
        done = without_privilege(["evolve", *arguments])
        told = " ".join(done.stderr.split())
        assert done.returncode == 1 and "Traceback" not in told and says in told, done.stderr
    assert f"selfemo evolve --resume {folder}" in told
    checkpoints.chmod(0o755)
    resumed(folder, whole)


def test_a_second_process_on_a_run_is_refused(halfway: Path, tmp_path: Path) -> None:
    folder = copied(halfway, tmp_path)
    before = content(folder)
    run = RunFolder(folder, None)
    second = subprocess.run(
        [sys.executable, "-m", "selfemo.cli", "evolve", "--resume", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    run.close()
    assert second.returncode == 1 and "is in use by another process" in second.stderr.replace("\n", " ")
    assert content(folder) == before


def test_a_run_that_cannot_begin_lets_go_of_its_folder(halfway: Path, tmp_path: Path) -> None:
    folder = copied(halfway, tmp_path)
    (folder / "store.backup.sqlite").unlink()
    (folder / "store.sqlite").write_bytes(b"x" * 5000)
    for _ in range(2):
        with pytest.raises(DamagedStoreError):
            RunFolder(folder, None)


def test_what_a_killed_process_was_writing_is_removed(halfway: Path, tmp_path: Path) -> None:
    folder = copied(halfway, tmp_path)
    states = folder / "checkpoints/.iteration-1-rl-partial"
    (folder / "checkpoints/.cold-start-x1y2z3").mkdir()
    for left in (folder / "metrics.jsonl.tmp", states / "step-3.tmp", states / "step-3.sha256.tmp",
                 folder / "store.backup.sqlite.tmp-journal"):  # fmt: skip
        left.write_text("half")
    RunFolder(folder, None).close()
    assert not [p for p in folder.rglob("*") if ".tmp" in p.name or "x1y2z3" in p.name]
    assert (states / "step-2.safetensors").exists()


def test_a_state_is_written_or_the_one_before_stays(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfemo.config import SftConfig
    from selfemo.training import checkpoints
    from tests.support.engines import engine

    e = engine(tiny_model)
    e.begin_stage(SftConfig())
    path = tmp_path / "step-1.safetensors"
    e.save_training_state(path)
    before = path.read_bytes()

    def half(tensors, file) -> None:
        Path(file).write_bytes(before[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", half)
    with pytest.raises(EngineError, match=r"could not be written \(.*No space left.*is kept"):
        e.save_training_state(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    e.load_training_state(path)
