"""Checkpoints of verl that hold adapters beside the weights below them, made into plain ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from selfemo.errors import EngineError

_ADAPTER = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_BELOW = re.compile(r"^base_model\.model\.|\.base_layer(?=\.)")


def merge_adapters(folder: Path, scale: float) -> None:
    """Add `scale` B A to the weights in a folder of safetensors files, which then have their own names again.

    File by file, so no more than one of them is in memory, beside the adapters.

    Args:
        scale: alpha / rank of the adapters.

    Raises: EngineError: there are no adapters, or half a one, or one over weights that are not there.
    """
    files = sorted(folder.glob("*.safetensors"))
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for file in files:
        with safe_open(file, "pt") as held:
            for name in held.keys():  # noqa: SIM118 - no dictionary
                if found := _ADAPTER.fullmatch(name):
                    layer = _BELOW.sub("", found[1]) + ".weight"
                    parts.setdefault(layer, {})[found[2]] = held.get_tensor(name).float()
    if not parts or any(len(pair) < 2 for pair in parts.values()):
        raise EngineError(f"{folder}: verl trained adapters, and they are not here whole")
    places: dict[str, str] = {}
    for file in files:
        with safe_open(file, "pt") as held:
            plain = {
                _BELOW.sub("", name): held.get_tensor(name)
                for name in held.keys()  # noqa: SIM118
                if not _ADAPTER.fullmatch(name)
            }
        for layer in plain.keys() & parts.keys():
            pair = parts.pop(layer)
            plain[layer] = (plain[layer].float() + scale * pair["B"] @ pair["A"]).to(plain[layer].dtype)
        save_file(plain, file, {"format": "pt"})
        places |= dict.fromkeys(plain, file.name)
    if parts:
        raise EngineError(f"{folder}: adapters over {min(parts)}, which is not here")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        told = json.loads(index.read_text())
        index.write_text(json.dumps(told | {"weight_map": places}, indent=2))
