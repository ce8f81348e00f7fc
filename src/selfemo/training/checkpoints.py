"""How a folder of model files becomes a checkpoint, whichever engine wrote it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from selfemo.files import sha256
from selfemo.models.references import CHECKSUMS
from selfemo.runs.store import sync


def seal_checkpoint(staging: Path, folder: Path) -> None:
    """Give a folder of model files their checksums and the name of a checkpoint; all of it or nothing.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    sums = {f.name: sha256(f) for f in sorted(staging.iterdir()) if f.is_file()}
    (staging / CHECKSUMS).write_text(json.dumps(sums, indent=1))
    for file in staging.iterdir():
        sync(file)
    if folder.exists():
        shutil.rmtree(folder)
    staging.rename(folder)
    sync(folder.parent)
