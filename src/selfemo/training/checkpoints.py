"""Checkpoints and training states: how weights and optimiser state are written, whole or not at all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from selfemo.errors import EngineError, NotFiniteError
from selfemo.files import fits_checksum, replacing, replacing_folder
from selfemo.models.references import CHECKSUMS

_DIGEST = ".sha256"


def writing_checkpoint(folder: Path) -> AbstractContextManager[Path]:
    """A context whose block fills a folder that then becomes the checkpoint, as a whole and with checksums.

    Raises: EngineError: the disk is full, or the folder cannot be written; nothing is left behind.
    """
    return replacing_folder(
        folder,
        EngineError,
        checksums=CHECKSUMS,
        also=(SafetensorError,),  # so safetensors reports a full disk
        fault="the checkpoint could not be written",
        kept="free some disk space and resume the run: everything before this checkpoint is kept",
    )


def write_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model as a checkpoint that transformers opens (EngineError: see `writing_checkpoint`)."""
    with writing_checkpoint(folder) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)


def must_be_finite(model: Any, path: Path) -> None:
    """Raises: NotFiniteError, where a weight is NaN or infinite."""
    for name, p in model.named_parameters():
        # A sum needs no temporary; where it is not finite, the slow check has the last word.
        if not torch.isfinite(p.detach().sum()) and not torch.isfinite(p.detach()).all():
            raise NotFiniteError(f"{path}: not written, since {name} is not finite")


def write_state(model: Any, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write trained parameters and optimiser state to one safetensors file, with its checksum.

    Raises: EngineError: it cannot be written; the previous file stays.
    """
    flat = {f"p.{n}": p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            flat[f"o.{index}.{key}"] = torch.as_tensor(value).contiguous()
    with replacing(
        path,
        EngineError,
        checksum=path.with_suffix(_DIGEST),
        also=(SafetensorError,),
        fault="the training state could not be written",
        kept="free some disk space and resume the run: the state before it is kept",
    ) as staging:
        save_file(flat, staging)


def read_state(model: Any, optimizer: torch.optim.Optimizer, path: Path, device: str) -> None:
    """Load a file of `write_state` (EngineError: it is missing, cut, altered, or of another model)."""
    try:
        if not fits_checksum(path, path.with_suffix(_DIGEST)):
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
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in flat.items():
        if name.startswith("o."):
            index, key = name[2:].split(".", 1)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for parameter, kept in optimizer.state.items():
        for key, value in kept.items():
            if value.shape == parameter.shape:  # in its layout, too: the fused step goes by memory
                kept[key] = torch.empty_like(parameter).copy_(value)
