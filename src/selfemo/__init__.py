"""SELF-EMO: emotional self-evolution of language models (arXiv 2604.18003)."""

__version__ = "0.1.0"
