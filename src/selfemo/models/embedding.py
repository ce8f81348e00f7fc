"""Sentence embeddings: all-MiniLM-L6-v2 from its wheel, or any sentence-transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfemo.errors import EngineError
from selfemo.extras import require
from selfemo.models.encoders import MINILM, MINILM_WHEEL
from selfemo.models.references import without_bars
from selfemo.progress import NOTES

DEFAULT_EMBEDDER = MINILM
_MANY = 500
"""Texts that take seconds to embed."""


_WHEEL = ("the wheel with the built-in embedder",
          " (or name another one: --embedder sentence-transformers/all-MiniLM-L6-v2)")  # fmt: skip


def check_embedder(model_id: str = DEFAULT_EMBEDDER) -> None:
    """Check that an embedder's packages are there, before work that ends with it (MissingExtraError)."""
    require("embedding personas", "sentence-transformers")
    if model_id == DEFAULT_EMBEDDER:
        MINILM_WHEEL.require(*_WHEEL)


class Embedder:
    """A sentence embedder: "builtin:all-minilm-l6-v2", a folder, or a hub id.

    Raises:
        MissingExtraError: sentence-transformers or the wheel is not installed.
        EngineError: no such model.
    """

    def __init__(self, model_id: str = DEFAULT_EMBEDDER):
        check_embedder(model_id)
        from sentence_transformers import SentenceTransformer

        source = model_id
        if model_id == DEFAULT_EMBEDDER:
            source = str(MINILM_WHEEL.find(*_WHEEL).parent)
        without_bars()
        NOTES.info("loading the embedder %s", model_id)
        try:
            self._model: Any = SentenceTransformer(source, model_kwargs={"use_safetensors": True})
        except (OSError, ValueError) as e:
            raise EngineError(f"cannot load the embedder {model_id!r}: {e}") from e

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) unit vectors."""
        if len(texts) > _MANY:
            NOTES.info("embedding %s texts", f"{len(texts):,}")
        vectors: NDArray[np.float32] = self._model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
        return vectors
