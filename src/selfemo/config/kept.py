"""Settings of what a run keeps on the disk: resumable states, checkpoints, the journal of its store."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from selfemo.config.base import Positive, Section

JournalMode = Literal["wal", "delete", "truncate", "persist"]


class SaveConfig(Section):
    every_steps: Annotated[int, Field(ge=0)] = 0
    """RL rounds or SFT steps between two resumable states inside a stage; 0 saves them at stage ends
    and where a run is asked to stop."""
    keep_states: Positive = 2
    """States of the running stage that are kept: if the last one is damaged, the stage resumes from the one
    before. Each holds weights and optimiser, three times the trained parameters."""
    keep_stage_checkpoints: bool = True
    """Keep the policy after RL (iteration-i-rl) when the iteration's own model is evaluated."""


class StoreConfig(Section):
    journal_mode: JournalMode = "wal"
    """SQLite's journal. "wal" needs memory that processes share through the file system, which network file
    systems lack; there one of the others: they roll back instead, flush the disk at each commit, and make a
    commit wait for whoever reads the store. A store that has another mode is converted when it is opened
    to be written, and a resumed run may change it."""
