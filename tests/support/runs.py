"""Whole runs on the tiny model: their settings, copies of them in the middle, and what must be the same."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import contextmanager
from pathlib import Path

import pytest

from selfemo.config import Config, load
from selfemo.evaluation.changes import belief_changes
from selfemo.evaluation.predictions import evaluate_checkpoint
from selfemo.runs.evolve import evolve as run_evolve
from selfemo.runs.folder import CONFIG_FILE, RunFolder, save_config


def evolve(path, config, reporter=None, stop=None, overrides=()) -> RunFolder:
    """Algorithm 1, its checkpoints scored as the command line scores them."""
    return run_evolve(path, config, evaluate_checkpoint, reporter, stop, overrides, belief_changes)


class Silent:
    def say(self, text: str) -> None: ...

    def bar(self, label: str, total: int):
        from selfemo.progress import Quiet

        return Quiet().bar(label, total)


SETTINGS = """
model.device=cpu model.dtype=fp32 prompt.max_tokens=400 sampling.max_new_tokens=40
sampling.group_size=4 sft.lr=5e-3 sft.batch_size=8 sft.run_length=4 sft.epochs=40
sft.micro_tokens=4096 sft.label_weight=2 grpo.prompts_per_step=6 grpo.mini_batch=3 grpo.lr=1e-4
grpo.lam_max=0.5 flywheel.iterations=2 flywheel.prompts=18 flywheel.refit_epochs=1
flywheel.refit=policy flywheel.refit_lr=5e-4 evaluation.span=all evaluation.max_new_tokens=40
evaluation.resamples=50
"""


SHORT = (
    "sft.epochs=12", "flywheel.iterations=1", "save.every_steps=1", "model.threads=1",
)  # fmt: skip


def settings(tiny_model: Path, data: Path, *more: str) -> Config:
    own = [f'model.id="{tiny_model}"', f'data.sources=["{data}"]']
    return load([], [*SETTINGS.split(), *own, *more])


STAGES = [
    "evaluate-start", "cold-start", "evaluate-cold-start",
    *(
        f"{a}iteration-{i}{b}"
        for i in (1, 2)
        for a, b in (("", "-rl"), ("evaluate-", "-rl"), ("", "-refit"), ("evaluate-", ""))
    ),
]  # fmt: skip


class Watcher(Silent):
    """Sees a run go by: `on_begin(stage)` at the beginning of each stage, `on_advance(stage, note)` in it."""

    def __init__(self, on_begin=lambda stage: None, on_advance=lambda stage, note: None):
        self.on_begin, self.on_advance = on_begin, on_advance
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def bar(self, label: str, total: int):
        self.on_begin(label)

        @contextmanager
        def watched():
            yield lambda n=1, note="": self.on_advance(label, note)

        return watched()


def photographed(home: Path, config: Config) -> RunFolder:
    """The run HOME/whole; HOME/STAGE is what a kill at the beginning of that stage would leave."""
    camera = Watcher(lambda stage: shutil.copytree(home / "whole", home / stage))
    return evolve(home / "whole", config, camera)


def assert_drawn(figure: Path) -> None:
    """A figure is an SVG with lines or areas, a PNG, and the rows of what it shows under names."""
    svg = figure.with_suffix(".svg").read_text()
    assert "<svg" in svg and svg.count("<path") > 5 and svg.rstrip().endswith("</svg>")
    assert figure.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    head, *rows = figure.with_suffix(".csv").read_text().splitlines()
    assert "," in head and rows and all(r.count(",") >= head.count(",") for r in rows)


def begun(finished: Path, stage: str, folder: Path, config: Config | None = None) -> Path:
    """A copy of the run as it was when a stage began; with other settings for what comes after it."""
    shutil.copytree(finished.parent / stage, folder)
    if config is not None:
        save_config(folder / CONFIG_FILE, config)
    return folder


def as_of_an_earlier_version(folder: Path) -> Path:
    """Make a run what a version without scores of the policy after RL, and without beliefs, leaves."""
    for name in ("store.sqlite", "store.backup.sqlite"):
        db = sqlite3.connect(folder / name)
        with db:
            db.execute("DELETE FROM stages WHERE name LIKE 'evaluate-%-rl'")
            db.execute("DELETE FROM predictions WHERE evaluation LIKE 'evaluate-%-rl'")
            db.execute("ALTER TABLE predictions DROP COLUMN believed")
            db.execute("DROP TABLE replies")
            db.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
        db.close()
    lines = (folder / CONFIG_FILE).read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("beliefs =", "eval_half ="))]
    assert len(kept) == len(lines) - 2
    (folder / CONFIG_FILE).write_text("\n".join(kept) + "\n")
    return folder


def content(folder: Path) -> dict[str, list]:
    """All that must not depend on interruptions (times do)."""
    db = sqlite3.connect(folder / "store.sqlite")
    there = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    tables = {
        # A store of an earlier version has no replies before it is written.
        t: db.execute(f"SELECT * FROM {t} ORDER BY rowid").fetchall() if t in there else []
        for t in ("prompts", "rollouts", "replies", "samples", "predictions")
    }
    strip = lambda rows: [r[1:] for r in rows]  # noqa: E731  row numbers may have gaps
    tables |= {t: strip(tables[t]) for t in ("rollouts", "replies", "samples")}
    tables["predictions"] = sorted(tables["predictions"])
    tables["metrics"] = db.execute("SELECT stage, step, record FROM metrics ORDER BY id").fetchall()
    return tables


def assert_same_run(folder: Path, reference: Path) -> None:
    assert content(folder) == content(reference)
    weights = [
        {p.parent.name: p.read_bytes() for p in f.glob("checkpoints/[!.]*/model.safetensors")}
        for f in (folder, reference)
    ]
    assert weights[0] == weights[1]


def assert_goes_on_as_if_never_stopped(
    folder: Path, finished: Path, stage: str, watcher: Watcher | None = None
) -> None:
    """Resume a run that was stopped in `stage`, up to the next one: it is as the whole run was there.

    What comes after depends on the folder alone. Behind the last stages the run goes on to its end.
    """
    watcher = watcher or Watcher()
    after = next(iter(STAGES[STAGES.index(stage) + 1 : -1]), "")
    if not after:
        evolve(folder, None, watcher).close()
        return assert_same_run(folder, finished)

    def end(begins: str) -> None:
        if begins == after:
            raise KeyboardInterrupt

    watcher.on_begin = end
    with pytest.raises(KeyboardInterrupt):
        evolve(folder, None, watcher)
    return assert_same_run(folder, finished.parent / after)
