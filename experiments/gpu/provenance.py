"""What a result of the queue was made by: versions, card, commit, and the source itself."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def provenance(*folders: str) -> dict[str, Any]:
    """Versions, card, commit and digests of this process.

    Args:
        folders: of the repository whose Python and TOML files are counted too, beside the package's.

    Returns:
        "versions" (None: not installed), "card", "commit" (None outside a git checkout; it says nothing of
        what is not committed) and "digests", by folder, which tell the source in both cases.
    """
    return {
        "versions": {"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}},
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "commit": _commit(),
        "digests": {folder: digest(ROOT / folder) for folder in ("src/selfemo", *folders)},
    }


_PACKAGES = ("torch", "transformers", "trl")


def version(package: str) -> str | None:
    """Of an installed distribution; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def digest(folder: Path) -> str:
    """SHA-256 over names and contents of a folder's Python and TOML files."""
    found = hashlib.sha256()
    for file in sorted(f for kind in ("*.py", "*.toml") for f in folder.rglob(kind)):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        found.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return found.hexdigest()


def _commit() -> str | None:
    if not (ROOT / ".git").exists():
        return None
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.strip()
