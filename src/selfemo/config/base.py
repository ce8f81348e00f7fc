"""The base of all sections of the settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section: its values do not change, and a key that it does not know is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")
