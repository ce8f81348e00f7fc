"""Conversations whose speakers have the personas of job folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfemo.data.personas_plain import describe_speakers, with_personas
from selfemo.errors import StoreError
from selfemo.method.types import Conversation
from selfemo.runs.store import STORE_FILE, Store
from selfemo.stages.personas import Who, attach_profiles


def profiles_of(folder: Path) -> dict[Who, str]:
    """The profiles that `selfemo personas extract` left in a folder, by speaker.

    Raises:
        StoreError: the folder holds no store or no profile.
    """
    if not (folder / STORE_FILE).exists():
        raise StoreError(f"{folder} is no folder of `selfemo personas extract`: no {STORE_FILE}")
    with Store(folder / STORE_FILE, read_only=True) as store:
        known = {(p.dataset, p.scope, p.speaker): p.description for p in store.profiles()}
    if not known:
        raise StoreError(f"{folder} holds no profile yet; run `selfemo personas extract` to its end")
    return known


def with_known_personas(
    conversations: Sequence[Conversation], folders: Sequence[Path] = ()
) -> list[Conversation]:
    """Give each speaker a persona: a profile of one of the folders (the last that has one), the
    conversation's own, or else the plain description drawn from the training split.

    Raises:
        StoreError: a folder holds no store or no profile.
    """
    result: list[Conversation] = []
    for labels in {c.label_set.name: c.label_set for c in conversations}.values():
        mine = [c for c in conversations if c.label_set.name == labels.name]
        result.extend(with_personas(mine, describe_speakers(mine, labels)))
    for folder in folders:
        result = attach_profiles(result, profiles_of(folder))
    return result
