"""The settings of an encoder that reads the emotion of turns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfemo.config.base import Positive
from selfemo.config.sections import FitConfig

Layout = Literal["utterance", "conversation"]
Pooling = Literal["first", "mean", "mask"]


class EncoderConfig(FitConfig):
    """Defaults are EmoBERTa's (Kim and Vossen 2021, tae898/erc), whose lr of about 1e-5 with batches of 4 is
    for RoBERTa-large."""

    warmup: Annotated[float, Field(ge=0, le=1)] = 0.2
    encoder: str = "builtin:all-minilm-l6-v2"
    """builtin:all-minilm-l6-v2, builtin:all-mpnet-base-v2, a folder, or a hub id such as roberta-large."""
    layout: Layout = "utterance"
    """A row for each turn, as EmoBERTa has it, or one row for a conversation, which costs a fraction
    (models/classifiers/layout.py)."""
    pooling: Pooling = "first"
    """What stands for a turn: its CLS token; the mean of its tokens, as sentence encoders were trained; or
    the mask token of "NAME feels MASK" behind it, as SPCL has it."""
    window: Annotated[int, Field(ge=-1)] = -1
    """Most earlier turns that are seen; -1: as many as fit, 0: the turn alone."""
    later: Annotated[int, Field(ge=-1)] = 0
    """Most later turns that are seen. Other values than 0 give a model that no past-only one compares to."""
    max_tokens: Annotated[int, Field(ge=8)] = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    head_lr: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of the heads, as a factor of lr."""
    class_weights: bool = False
    """Weigh each label by the inverse of its share in the training data."""
    micro_tokens: Positive = 8192
    """Tokens of one micro-batch, padding included; the rest of a batch accumulates gradient."""

    @model_validator(mode="after")
    def _asked_by_turn(self) -> EncoderConfig:
        if self.pooling == "mask" and self.layout == "conversation":
            raise ValueError('pooling = "mask" asks about one turn of a row; set layout = "utterance"')
        return self

    @model_validator(mode="after")
    def _one_direction(self) -> EncoderConfig:
        if self.later and self.layout == "conversation":
            raise ValueError('later turns are seen with layout = "utterance" alone')
        if self.window > 0 and self.layout == "conversation":
            raise ValueError(
                'layout = "conversation" has one row for all turns, each of which sees all earlier ones; '
                'set window = -1 (or 0), or layout = "utterance"'
            )
        return self


class SpclConfig(FitConfig):
    """Defaults are those of SPCL (Song et al. 2022, caskcsg/SPCL), which are for sup-simcse-roberta-large."""

    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    epochs: Positive = 16
    patience: Annotated[int, Field(ge=0)] = 5
    max_grad_norm: Annotated[float, Field(gt=0)] = 5.0
    encoder: str = "builtin:all-minilm-l6-v2"
    """builtin:all-minilm-l6-v2, builtin:all-mpnet-base-v2, a folder, or a hub id; one with a mask token."""
    window: Annotated[int, Field(ge=-1)] = 8
    """Most earlier turns that are seen; -1: as many as fit, 0: the turn alone."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    head_lr: Annotated[float, Field(gt=0)] = 100.0
    """Learning rate of the heads, as a factor of lr."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Of similarities, in the loss and in the probabilities."""
    queue: Positive = 256
    """Latest vectors of a label that its prototypes are drawn from."""
    support: Positive = 64
    """Vectors that a prototype is the mean of; of a label with fewer, its centre stands for it."""
    reads: Literal["centres", "head"] = "centres"
    """What gives the probabilities: similarity to the centres of the labels, or the linear heads."""
    micro_tokens: Positive = 8192
    """Tokens of one batch when turns are read, padding included. In training a step is one batch, as its loss
    compares all turns of it."""

    @model_validator(mode="after")
    def _room_in_queue(self) -> SpclConfig:
        if self.support > self.queue:
            raise ValueError(
                f"support = {self.support} vectors of a queue of {self.queue}: raise queue, or lower support"
            )
        return self

    @property
    def reader(self) -> EncoderConfig:
        """The settings of the encoder behind it."""
        return EncoderConfig(
            encoder=self.encoder, pooling="mask", window=self.window, max_tokens=self.max_tokens,
            micro_tokens=self.micro_tokens,
        )  # fmt: skip
