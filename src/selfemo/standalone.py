"""The stages on their own: `selfemo sft`, `train`, `selfplay`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfemo.config import Config
from selfemo.dialogues import dialogues
from selfemo.errors import EngineError
from selfemo.evaluation import held_out
from selfemo.pipeline import (
    COLD,
    START,
    Run,
    find_checkpoint,
    load_conversations,
    open_engine,
    settings_for,
    training_conversations,
)
from selfemo.progress import Reporter
from selfemo.prompts import conversation_prompts
from selfemo.seeds import rng
from selfemo.selfplay import persona_book, play_episodes
from selfemo.stopping import StopRequest
from selfemo.store import STORE_FILE, Store
from selfemo.types import Conversation


def sft_alone(out: Path, config: Config, reporter: Reporter) -> dict[str, Any]:
    """Cold start into a model folder; its samples and metrics go to OUT.run beside it."""
    run = Run(out.with_name(out.name + ".run"), config, reporter)
    try:
        run.cold_start(training_conversations(load_conversations(config), config))
        source = run.folder / "checkpoints" / COLD
        if out.exists():
            raise EngineError(f"{out} exists already; the trained model is in {source}")
        shutil.copytree(source, out)
        row = run.store.stage(COLD)
        assert row is not None
        return dict(json.loads(row["info"]))
    finally:
        run.close()


def train_alone(
    model: str,
    out: Path,
    config: Config | None,
    reporter: Reporter,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """SELF-GRPO from a model; the policy goes to OUT/checkpoints/iteration-1-rl.

    Args:
        config: None goes on with the stage that OUT holds.
    """
    if config is not None:
        own = config.model.model_copy(update={"id": find_checkpoint(model)})
        config = config.model_copy(update={"model": own})
    run = Run(out, config, reporter, stop)
    config = run.config
    try:
        conversations = load_conversations(config)
        train = training_conversations(conversations, config)
        originals = [p for c in train for p in conversation_prompts(c, future=True)]
        held: list[Conversation] = []
        if config.engine == "verl":
            limit = config.data.eval_conversations
            held = held_out(conversations, config.data.eval_split, limit, 0)
        name = run.rl(originals, train, held, START, 1)
        row = run.store.stage(name)
        assert row is not None
        return dict(json.loads(row["info"]))
    finally:
        run.close()


def selfplay_alone(
    model: str,
    sources: Sequence[str],
    n: int,
    folder: Path,
    files: Sequence[Path],
    overrides: Sequence[str],
    reporter: Reporter,
) -> tuple[dict[str, int], list[str]]:
    """Play n episodes from held-out histories; returns counts and the longest dialogues."""
    config, checkpoint = settings_for(model, sources, files, overrides)
    conversations = load_conversations(config)
    held = held_out(conversations, config.data.eval_split, 0, 0)
    prompts = [p for c in held for p in conversation_prompts(c, future=True)]
    order = rng(config.seed, "episodes").permutation(len(prompts))[:n]
    engine = open_engine(config, checkpoint)
    store = Store(folder / STORE_FILE)
    try:
        with reporter.bar("self-play turns", config.selfplay.max_turns) as advance:
            counts = play_episodes(
                engine,
                [prompts[i] for i in order],
                persona_book(conversations),
                config,
                store,
                on_turn=lambda turn, live: advance(1, f"{live} go on"),
            )
        return counts, dialogues(store, n)
    finally:
        store.close()
