"""The run's SQLite store: prompts, rollouts, rewards, lineage, SFT samples, predictions, metrics.

One file, in WAL mode unless `store.journal_mode` says otherwise. Each training step is one transaction, so a
killed run loses at most the step that it was in. A commit survives a kill at once, and a power failure after
the next `set_stage`.

All SQL stands in this package: `base` opens and checks the file, each other module has one subject's queries.
"""

from __future__ import annotations

from selfemo.runs.store.experts import Experts
from selfemo.runs.store.exports import Exports
from selfemo.runs.store.predictions import PredictionRow as PredictionRow
from selfemo.runs.store.predictions import Predictions
from selfemo.runs.store.prompts import Prompts
from selfemo.runs.store.prompts import read_distribution as read_distribution
from selfemo.runs.store.rollouts import Rollouts
from selfemo.runs.store.samples import SampleRow as SampleRow
from selfemo.runs.store.samples import Samples
from selfemo.runs.store.schema import SCHEMA_VERSION as SCHEMA_VERSION
from selfemo.runs.store.stages import Stages

STORE_FILE = "store.sqlite"
BACKUP_FILE = "store.backup.sqlite"


class Store(Stages, Samples, Prompts, Rollouts, Predictions, Experts, Exports):
    """The store in the file `path`, which is opened or created, and checked.

    Raises: StoreError: no store of this version, or it cannot be opened. DamagedStoreError: it is damaged.
    """
