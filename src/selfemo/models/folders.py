"""A model folder's files, looked at in a second and without torch: missing, cut, or of another kind."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfemo.errors import EngineError

CONFIG = "config.json"
_ADAPTER = "adapter_config.json"
_GENERATION = "generation_config.json"
_INDEX = "model.safetensors.index.json"
_POINTER = b"version https://git-lfs"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = (
    "tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json",
)  # fmt: skip
"""Files that hold the tokens of a tokenizer."""
_CAUSAL = ("ForCausalLM", "LMHeadModel", "Model")
"""How the names of architectures end that write text from left to right, or may do so."""
_SENSES = ("vision_config", "audio_config", "speech_config", "vision_tower")
_NAMED = 3
"""Most files that a message names."""


def check_files(folder: Path) -> None:
    """Check that a model folder's files are whole and of a model that can be loaded here.

    Sizes of weights are read from the heads of their files; no tensor is.

    Raises:
        EngineError: it is no such folder; the message says what to do.
    """
    for path in _small_files(folder):
        if _starts_with(path, _POINTER):
            raise EngineError(
                f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull` in {folder}, or "
                "fetch the model by `hf download OWNER/NAME --local-dir FOLDER`"
            )
    check_adapter(folder)
    check_config(_json(folder / CONFIG), str(folder))
    if (folder / _GENERATION).exists():
        _json(folder / _GENERATION)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise _no_safetensors(folder)
    if (folder / _INDEX).exists():
        _check_shards(folder)
    for path in weights:
        _check_size(path)
    if not any(True for pattern in _TOKENIZERS for _ in folder.glob(pattern)):
        raise EngineError(
            f"{folder}: it has no tokenizer (tokenizer.json and tokenizer_config.json); copy these two files "
            "from the model that it was made from"
        )


def check_names(names: Sequence[str], hub_id: str) -> None:
    """Check by the names of its files that a model of the hub can be loaded (EngineError: it cannot)."""
    fetch = f"`hf download {hub_id} --local-dir FOLDER`"
    if _ADAPTER in names:
        raise EngineError(
            f"{hub_id} is an adapter (LoRA), not a whole model; {fetch} and give FOLDER: the message then "
            "says how it is merged"
        )
    if names and CONFIG not in names:
        other = any(n.endswith(".gguf") for n in names)
        hint = ", but GGUF files: fetch one and give its path" if other else ""
        raise EngineError(f"{hub_id} is no model that transformers opens: it has no {CONFIG}{hint}")
    if names and not any(n.endswith(".safetensors") for n in names):
        raise EngineError(
            f"{hub_id} holds no *.safetensors weights; pickled weights are not loaded. {fetch} and give "
            "FOLDER: the message then says how they are converted"
        )


def check_gguf(path: Path) -> None:
    """Check that a file begins as a GGUF file does (EngineError: it does not)."""
    if _starts_with(path, _POINTER):
        raise EngineError(
            f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull`, or fetch it"
        )
    if not _starts_with(path, b"GGUF"):
        raise EngineError(f"{path}: no GGUF file, though it is named so; fetch it again")


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Check by a model's config.json that it is a causal language model with whole weights.

    Raises:
        EngineError: it is quantised, an encoder, one that reads and writes in two parts, or one with senses.
    """
    if quantised := config.get("quantization_config"):
        how = quantised.get("quant_method", "an unnamed way") if isinstance(quantised, dict) else quantised
        raise EngineError(
            f"{name}: its weights are quantised ({how}), and whole ones are loaded here; take the model that "
            "it was made from (its page names it), or a GGUF file, which is converted"
        )
    named = config.get("architectures") or []
    what = ", ".join(map(str, named)) or str(config.get("model_type", ""))
    if any(config.get(sense) for sense in _SENSES):
        raise EngineError(
            f"{name}: {what} also takes pictures or sound; only models of text alone are supported: take the "
            "text model of that family"
        )
    if config.get("is_encoder_decoder"):
        raise EngineError(
            f"{name}: {what} is an encoder with a decoder (as T5 and BART are); only causal language models "
            "are supported: Llama, Qwen, SmolLM, Mistral and the like"
        )
    if named and not any(str(a).endswith(_CAUSAL) for a in named):
        raise EngineError(
            f"{name}: {what} does not write text; only causal language models are supported (an architecture "
            "whose name ends with ForCausalLM or LMHeadModel)"
        )


def _small_files(folder: Path) -> Iterator[Path]:
    """The files that a model is loaded from, by what a clone without Git LFS leaves as pointers."""
    for pattern in ("*.json", "*.model", "*.jinja", "*.safetensors"):
        yield from sorted(folder.glob(pattern))


def _starts_with(path: Path, begin: bytes) -> bool:
    try:
        with path.open("rb") as f:
            return f.read(len(begin)) == begin
    except OSError as e:
        raise EngineError(f"{path}: cannot be read: {e}") from e


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise EngineError(f"cannot load model {str(path.parent)!r}: {path.name} is no whole JSON: {e}") from e
    if not isinstance(found, dict):
        raise EngineError(f"cannot load model {str(path.parent)!r}: {path.name} is no JSON object")
    return found


def check_adapter(folder: Path) -> None:
    """Refuse an adapter over another model (EngineError: how it is merged)."""
    if not (folder / _ADAPTER).exists():
        return
    base = _json(folder / _ADAPTER).get("base_model_name_or_path") or "BASE"
    raise EngineError(
        f"{folder} is an adapter (LoRA) over {base}, not a whole model; merge it into its model first: "
        f"python -c \"from peft import AutoPeftModelForCausalLM as A; m = A.from_pretrained('{folder}'); "
        "m.merge_and_unload().save_pretrained('MERGED')\", copy the tokenizer's files into MERGED, and give "
        "MERGED"
    )


def _no_safetensors(folder: Path) -> EngineError:
    pickles = [f.name for pattern in _PICKLES for f in sorted(folder.glob(pattern))]
    if not pickles:
        return EngineError(f"{folder} holds no *.safetensors weights")
    return EngineError(
        f"{folder} holds no *.safetensors weights; pickled weights are not loaded ({pickles[0]}), since a "
        'pickle can run any code. If you trust them, convert them once: python -c "from transformers import '
        f"AutoModelForCausalLM as A; A.from_pretrained('{folder}').save_pretrained('NEW')\", copy the "
        "tokenizer's files into NEW, and give NEW"
    )


def _check_shards(folder: Path) -> None:
    """Whether all files are there that the index of a model in several files names."""
    placed = _json(folder / _INDEX).get("weight_map")
    if not isinstance(placed, dict):
        raise EngineError(f"cannot load model {str(folder)!r}: {_INDEX} has no weight_map")
    named = sorted({str(name) for name in placed.values()})
    if gone := [name for name in named if not (folder / name).exists()]:
        more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
        raise EngineError(
            f"cannot load model {str(folder)!r}: {', '.join(gone[:_NAMED])}{more} of {len(named)} files of "
            "weights missing; fetch the model again (a download goes on where it stopped)"
        )


def _check_size(path: Path) -> None:
    """Whether a safetensors file is as long as its head says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > size:
                raise ValueError("its head is cut")
            head = json.loads(f.read(length))
        ends = [int(t["data_offsets"][1]) for key, t in head.items() if key != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as e:
        raise EngineError(
            f"cannot load model {str(path.parent)!r}: {path.name} is no whole safetensors file ({e}); "
            "fetch it again"
        ) from e
    if (whole := 8 + length + max(ends, default=0)) != size:
        raise EngineError(
            f"cannot load model {str(path.parent)!r}: {path.name} is cut: {size:,} bytes of {whole:,}; "
            "fetch it again (a download goes on where it stopped)"
        )
