"""The run's SQLite store: prompts, rollouts, rewards, lineage, SFT samples, predictions, metrics.

One file in WAL mode; each training step is one transaction, so a killed run loses at most the step that
it was in, and a resume deletes what an unfinished stage wrote after its last checkpoint. A commit is safe
from a kill at once and from a power failure with the next `set_stage`. The file is checked when it is
opened; `backup` keeps a whole copy beside it.

All SQL stands in this package: `base` opens and checks the file, each other module holds the queries of
one subject, and `Store` is all of them together.
"""

from __future__ import annotations

from selfemo.runs.store.experts import Experts
from selfemo.runs.store.exports import Exports
from selfemo.runs.store.predictions import PredictionRow, Predictions
from selfemo.runs.store.prompts import Prompts, read_distribution
from selfemo.runs.store.rollouts import Rollouts
from selfemo.runs.store.samples import SampleRow, Samples
from selfemo.runs.store.schema import SCHEMA_VERSION
from selfemo.runs.store.stages import StageRow, Stages

STORE_FILE = "store.sqlite"
BACKUP_FILE = "store.backup.sqlite"


class Store(Stages, Samples, Prompts, Rollouts, Predictions, Experts, Exports):
    """The store of a run or of another job, with the queries of all subjects.

    Opens or creates the file `path`, and checks that its pages are whole. A context manager, which closes it.

    Raises:
        StoreError: the file is no store of this version, or cannot be opened.
        DamagedStoreError: the file is damaged.
    """


__all__ = [
    "BACKUP_FILE",
    "SCHEMA_VERSION",
    "STORE_FILE",
    "PredictionRow",
    "SampleRow",
    "StageRow",
    "Store",
    "read_distribution",
]
