"""Checkpoints and training states: how weights and optimiser state are written, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from selfemo.errors import EngineError, NotFiniteError
from selfemo.models.loading import CHECKSUMS, sha256
from selfemo.runs.store import sync, write_text

_DIGEST = ".sha256"


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


def write_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model as a safetensors folder that transformers opens.

    Written beside and renamed, with checksums, so that a folder of this name is a whole checkpoint.

    Raises:
        EngineError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as e:
        raise EngineError(f"{folder.parent}: cannot write a checkpoint here: {e}") from e
    try:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        seal_checkpoint(staging, folder)
    except Exception as e:
        # safetensors reports a full disk with an error of its own, not with OSError.
        if not isinstance(e, OSError) and "afetensor" not in type(e).__name__:
            raise
        raise EngineError(
            f"{folder}: the checkpoint could not be written ({e}); free some disk space and "
            "resume the run: everything before this checkpoint is kept"
        ) from e
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def must_be_finite(model: Any, path: Path) -> None:
    """Raises: NotFiniteError, where a weight is NaN or infinite."""
    for name, p in model.named_parameters():
        # A sum is one pass without a temporary; it is finite only if all summands are, or the
        # slow check has the last word.
        if not torch.isfinite(p.detach().sum()) and not torch.isfinite(p.detach()).all():
            raise NotFiniteError(f"{path}: not written, since {name} is not finite")


def write_state(model: Any, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write trained parameters and optimiser state to one safetensors file, beside and renamed.

    Raises:
        EngineError: it cannot be written; the one before stays.
    """
    from safetensors.torch import save_file

    flat = {
        f"p.{n}": p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad
    }
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            flat[f"o.{index}.{key}"] = torch.as_tensor(value).contiguous()
    staging, digest = path.with_suffix(".tmp"), path.with_suffix(_DIGEST)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(flat, staging)
        write_text(digest, sha256(staging))
        sync(staging)
        staging.replace(path)
        sync(path.parent)
    except Exception as e:
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)
        raise EngineError(
            f"{path}: the training state could not be written ({e}); free some disk space and resume "
            "the run: the state before it is kept"
        ) from e


def read_state(model: Any, optimizer: torch.optim.Optimizer, path: Path, device: str) -> None:
    """Put what `write_state` wrote into a model and its optimiser.

    Raises:
        EngineError: the file is missing, cut, altered, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.with_suffix(_DIGEST).read_text().strip() != sha256(path):
            raise EngineError(f"{path}: not a whole training state: altered since it was written")
        flat = load_file(path, device=device)
    except (OSError, SafetensorError) as e:
        raise EngineError(f"{path}: not a whole training state: {e}") from e
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                if f"p.{name}" not in flat:
                    raise EngineError(f"{path}: holds no {name}; it is of another model")
                parameter.copy_(flat[f"p.{name}"])
    whole = optimizer.state_dict()
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in flat.items():
        if name.startswith("o."):
            index, key = name[2:].split(".", 1)
            state.setdefault(int(index), {})[key] = value
    whole["state"] = state
    optimizer.load_state_dict(whole)
