"""The settings of a causal model that is trained to answer a prompt with the label of a turn."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from selfemo.config.base import Positive
from selfemo.config.sections import FitConfig, LoraConfig
from selfemo.method.types import BUILTIN_MODEL


class InstructionConfig(FitConfig):
    """What all such recipes share; `batch_size` counts prompts."""

    model: str = BUILTIN_MODEL
    """A model reference: builtin:smollm2-135m, a folder, a hub id, a run."""
    lora: LoraConfig = LoraConfig()
    full: bool = False
    """Train all weights instead of adapters."""
    window: Annotated[int, Field(ge=0)] = 5
    """Most earlier turns in a prompt."""
    max_tokens: Annotated[int, Field(ge=64)] = 2048
    """Of a prompt; the oldest turns are left out until it fits."""
    max_samples: Annotated[int, Field(ge=0)] = 0
    """Labelled turns to train on, drawn by the seed: a budget for small machines. 0 takes all."""
    choose_conversations: Annotated[int, Field(ge=0)] = 0
    """Conversations that an epoch is chosen on, drawn once for all seeds, of each data set. 0 takes all."""
    neftune: Annotated[float, Field(ge=0)] = 0.0
    """Size of the uniform noise on embeddings in training (NEFTune's alpha); 0: none."""
    micro_tokens: Positive = 4096
    """Packed tokens of one micro-batch; the rest of a batch accumulates gradient."""
    gradient_checkpointing: bool = False
