"""SELF-EMO: emotional self-evolution of language models (arXiv 2604.18003)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfemo.serve.selfemo import SelfEmo

__version__ = "0.1.0"
__all__ = ["SelfEmo", "__version__"]


def __getattr__(name: str) -> Any:
    # Loaded where it is used: `selfemo --help` must not wait for a model library.
    if name == "SelfEmo":
        from selfemo.serve.selfemo import SelfEmo

        return SelfEmo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
