"""What made a result: card, versions, commit, and a digest of the sources, which needs no git."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import selfemo

ROOT = Path(__file__).parents[2]
SOURCES = (Path(selfemo.__file__).parent, Path(__file__).parent)
VERSIONS = ("selfemo", "python", "torch", "transformers", "trl")
KEYS = (*VERSIONS, "device", "commit", "dirty", "sources")


def provenance(*folders: Path) -> dict[str, Any]:
    """KEYS with their values: `commit` and `dirty` (whether tracked files differ from it) are None where the
    code lies in no repository of its own, as on a machine that was sent the files alone.

    Args:
        folders: of sources that count too, besides SOURCES.
    """
    return {
        "selfemo": selfemo.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "trl": _version("trl"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **commit(ROOT),
        "sources": digest((*SOURCES, *folders)),
    }


def made_by(result: Mapping[str, Any]) -> str:
    """What a result, or a part of it, was made by."""
    return (
        f"{result['device']}, torch {result['torch']}, commit {result['commit']}, sources {result['sources']}"
    )


def _version(package: str) -> str | None:
    """Of an installed distribution; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit(root: Path) -> dict[str, Any]:
    """The commit of the repository whose top is `root`, and whether its tracked files were changed since."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():  # none, or one that the code merely lies in
        return {"commit": None, "dirty": None}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(root, "rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where it is not there or fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def digest(folders: tuple[Path, ...]) -> str:
    """SHA-256, in hexadecimal, over the names and bytes of the code and settings below some folders."""
    found = hashlib.sha256()
    for folder in folders:
        files = sorted(f for f in folder.rglob("*") if f.suffix in (".py", ".toml"))
        for file in files:
            content = file.read_bytes()
            found.update(f"{folder.name}/{file.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
            found.update(content)
    return found.hexdigest()
