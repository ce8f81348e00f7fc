"""Settings of the rewards: R1 and R2 of E, and R3 of the reply [ours]."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from selfemo.config.base import NonNegative, Section
from selfemo.method.rewards import PRIMARY, SECONDARY

REFERENCE = "reference"
"""The listener that is the policy of the stage's start."""


def _one_of(registry: Mapping[str, object]) -> AfterValidator:
    def known(name: str) -> str:
        if name not in registry:
            raise ValueError(f"unknown; valid are {', '.join(registry)}")
        return name

    return AfterValidator(known)


class RewardConfig(Section):
    """Names of rewards: R1 from `rewards.PRIMARY`, R2 from `rewards.SECONDARY`."""

    primary: Annotated[str, _one_of(PRIMARY)] = "iou"
    secondary: Annotated[str, _one_of(SECONDARY)] = "count"
    expression: Literal["none", "listener"] = "none"
    """R3 [ours]: whether replies are rewarded by how far a frozen listener finds S in them. Needs causal
    credit: one S and several replies are drawn behind the best E line (training/expression.py). With verl,
    which samples whole completions, those of a group are compared (training/whole_replies.py)."""
    listener: str = REFERENCE
    """Who listens: "reference", the policy of the stage's start, which verl does not keep; or the folder of
    an encoder that `selfemo baseline encoder --keep` kept, a model, or an endpoint. Never the reader that
    judges afterwards."""
    reader: str = ""
    """An independent reader of the same replies, in the words of `listener`, from which nothing learns: an
    alarm says so where the listener hears S more and more, and the reader does not. Empty: none."""
    replies: Annotated[int, Field(ge=0)] = 0
    """Replies of a prompt that R3 compares; 0: as many as sampling.group_size."""
    contrast: bool = True
    """Replies earn by what they tell of S beyond the other emotions, and train behind each of those too, as
    the listener finds them there [ours]. Off: they earn R3, behind the S that they declare alone."""
    length_weight: NonNegative = 0.0
    """Weight of how like people's turns replies are in length (method/lengths.py) beside what they tell of S,
    both in nats [ours]: without it replies become exclamations. verl has none."""
    expression_weight: NonNegative = 1.0
    """Weight of what replies learn beside what E lines do; each is the mean over its own tokens."""

    @property
    def heard_by_reference(self) -> bool:
        """Whether the policy of the stage's start listens to the replies."""
        return self.expression != "none" and self.listener == REFERENCE

    @model_validator(mode="after")
    def _somebody_listens(self) -> RewardConfig:
        if self.replies == 1:
            raise ValueError("replies = 1: a reply alone has no advantage; use 2 or more, or 0")
        if self.expression == "none" and self.reader:
            raise ValueError(
                f'reader = "{self.reader}" with expression = "none": no reply is rewarded, so that none is '
                'judged; set expression = "listener"'
            )
        if self.expression == "none" and self.length_weight:
            raise ValueError(
                f'length_weight = {self.length_weight:g} with expression = "none": no reply is rewarded; set '
                'expression = "listener"'
            )
        if self.reader and os.path.abspath(self.reader) == os.path.abspath(self.listener):
            raise ValueError(
                f'reader = "{self.reader}" is the listener itself, which cannot tell whether it is deceived; '
                "name another one"
            )
        if self.expression == "none" and self.listener != REFERENCE:
            raise ValueError(
                f'listener = "{self.listener}" with expression = "none": nobody would listen; set expression '
                '= "listener"'
            )
        return self
