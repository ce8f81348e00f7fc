"""BiosERC (Xue and others 2024, arXiv 2407.04279; yingjie7/BiosERC): prompts that say who the speaker is.

Of the recipe (src/reformat_data_ft_llm.py, src/ft_llm.py, scripts/train_llm.sh): the biography of the turn's
speaker, the turns around it, and the question for its emotion; LoRA r 32, alpha 128, dropout 0.05 on all
linear layers; AdamW 3e-4 without weight decay, gradients of norm 0.3 at most, warm-up of 3%, then linear
decay; 3 epochs of batches of 16; NEFTune 5.

The published prompt shows 5 turns before and 5 after: `later=5`, which is marked. Published biographies are
written by Llama-2-70B from the whole conversation, so they see later turns, too; ours are personas that come
from the training split (`selfemo personas extract`, or the plain description of the data set).

[ours]: past only; a batch is 16 prompts, where the recipe has 16 rows of up to 2,048 tokens with several
prompts each; an epoch is chosen, where it evaluates each 50 steps; see also instruction.py.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from selfemo.config import LoraConfig
from selfemo.config.base import Positive
from selfemo.config.instruction import InstructionConfig
from selfemo.evaluation.baselines.base import Task
from selfemo.evaluation.baselines.instruction import (
    Ask,
    Instruction,
    biography,
    chat,
    choices,
    context,
    question,
)
from selfemo.method.types import Conversation
from selfemo.models.sampler import Message


class BiosErcLora(LoraConfig):
    rank: Positive = 32
    alpha: Annotated[float, Field(gt=0)] = 128
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.05


class BiosErcConfig(InstructionConfig):
    lr: Annotated[float, Field(gt=0)] = 3e-4
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 0.3
    batch_size: Positive = 16
    epochs: Positive = 3
    neftune: Annotated[float, Field(ge=0)] = 5.0
    lora: BiosErcLora = BiosErcLora()
    later: Annotated[int, Field(ge=0)] = 0
    """Most later turns in a prompt. Other values than 0 give a model that no past-only one compares with."""
    biographies: bool = True
    """Put the persona of the turn's speaker into the prompt (data.personas names folders of profiles)."""


class BiosErc(Instruction[BiosErcConfig]):
    kind = BiosErcConfig

    @property
    def sees_later(self) -> bool:
        return self.settings.later > 0

    def asker(self, task: Task) -> Ask:
        config = self.settings
        return lambda c, turn, window: prompt(c, turn, window, config.later, about=config.biographies)


def prompt(
    conversation: Conversation, turn: int, window: int, later: int = 0, *, about: bool = True
) -> list[Message]:
    """Who the speaker is, the turns around, and the question."""
    known = biography(conversation, turn) if about else ""
    return chat(
        f"You know people well and read their emotions in conversations.\n{known}"
        f"Conversation:\n{context(conversation, turn, window, later)}",
        f"{question(conversation, turn)} {choices(conversation.label_set)}",
    )
