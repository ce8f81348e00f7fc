"""How weights become a checkpoint on the disk, whichever backend wrote them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from safetensors import SafetensorError

from selfemo.errors import EngineError
from selfemo.files import replacing_folder
from selfemo.models.loading import CHECKSUMS


def writing_checkpoint(folder: Path) -> AbstractContextManager[Path]:
    """A block that fills the folder it is given with model files, which then becomes the checkpoint.

    The checkpoint gets its checksums, and is there as a whole or not at all.

    Raises:
        EngineError: the disk is full, or the folder cannot be written; nothing is left behind.
    """
    return replacing_folder(
        folder,
        EngineError,
        checksums=CHECKSUMS,
        also=(SafetensorError,),  # so safetensors reports a full disk
        fault="the checkpoint could not be written",
        kept="free some disk space and resume the run: everything before this checkpoint is kept",
    )
