"""Optional dependencies: whether they are installed, and the command that installs what is missing.

The command names the packages themselves, so that it works however selfemo was installed.
"""

from __future__ import annotations

import os
import shlex
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from selfemo.errors import MissingExtraError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_PACKAGE = "selfemo"


def version_of(distribution: str) -> str:
    """The installed version; "" where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def stated() -> list[Requirement]:
    """What the package says that it requires; nothing where it runs from its source."""
    from packaging.requirements import Requirement

    try:
        return [Requirement(text) for text in metadata.requires(_PACKAGE) or []]
    except metadata.PackageNotFoundError:
        return []


def requirements(*names: str) -> list[str]:
    """What this version of selfemo requires of each distribution, as "name>=1.2"; else the name alone."""
    from packaging.utils import canonicalize_name

    # Of two extras that state it, the first: verl's, the last, is for an environment of its own.
    known = {canonicalize_name(r.name): f"{r.name}{r.specifier}" for r in reversed(stated())}
    return [known.get(canonicalize_name(name), name) for name in names]


def install_command(*names: str) -> str:
    """The command that installs these distributions into the environment that runs.

    In a clone it takes the versions that its tests ran with, as README does: those of the cluster environment
    where verl is installed.
    """
    tested = Path(__file__).parents[2] / f"constraints{'-verl' * bool(version_of('verl'))}.txt"
    of_clone = tested.exists() and tested.with_name("pyproject.toml").exists()
    # vLLM wants an older transformers than the tests ran with.
    limits = ["-c", shlex.quote(_near(tested))] if of_clone and "vllm" not in names else []
    packages = map(shlex.quote, requirements(*names))
    return " ".join([shlex.quote(_near(sys.executable)), "-m pip install", *limits, *packages])


def _near(path: Path | str) -> str:
    """A path from the present folder where it lies in it."""
    near = os.path.relpath(path)
    return str(path) if near.startswith(os.pardir) else near


def require(purpose: str, *names: str) -> None:
    """Check that distributions are installed; takes milliseconds, since nothing is imported.

    A distribution's module has its name, with "_" for "-".

    Args:
        purpose: what needs them, as in "`selfemo serve`".

    Raises:
        MissingExtraError: names those that are missing, and the command.
    """
    if missing := [name for name in names if find_spec(name.replace("-", "_")) is None]:
        raise MissingExtraError(f"{' and '.join(missing)} (for {purpose})", install_command(*missing))
