"""InstructERC (Lei and others 2023, arXiv 2309.11911; LIN-SHANG/InstructERC): SFT on three tasks.

Of the recipe (code/data_process.py, code/main_new.py, code/train_and_inference_Uni.sh):
- the label of a turn, from it and up to 12 earlier turns, with the list of labels;
- speaker identification, a stage of 3 epochs of its own before the others: who says a turn, of a list;
- emotion prediction: the label of a turn from the turns before it and the name of who speaks next, beside the
  main task in the second stage of 15 epochs (6 without the first stage);
- LoRA r 16, alpha 16, dropout 0.05 on queries, keys and values; AdamW 2e-4, betas 0.9 and 0.95, no weight
  decay; batch 32; a tenth of the steps warm up, then linear decay; prompts of 1,024 tokens;
- as an option, the training turn nearest by sentence embeddings as a demonstration.

Where the sources differ: the script passes 0.1 as the weight of emotion prediction, and the training loop
leaves it unused; it weighs 0.1 here. The loop's KL term is commented out; there is none here.

[ours]: speakers by their names, where the recipe numbers them; speaker identification sees the earlier turns,
and asks among the speakers of the conversation, since names that hold for one conversation alone could not be
told from a lone line; a first turn has no emotion prediction (there it repeats the main task); the epoch is
chosen on turns that are not scored, where the recipe takes the best on test; see also instruction.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from selfemo.config import LoraConfig
from selfemo.config.base import Positive
from selfemo.config.instruction import InstructionConfig
from selfemo.evaluation.baselines.base import Task
from selfemo.evaluation.baselines.instruction import (
    LABELS,
    Ask,
    Instruction,
    Turn,
    chat,
    choices,
    context,
    gold,
    label_examples,
    question,
)
from selfemo.evaluation.baselines.retrieval import Demonstration, Demonstrations
from selfemo.method.prompts import clean
from selfemo.method.types import Conversation
from selfemo.models.sampler import Message
from selfemo.training.label_examples import Example, Stage

_SYSTEM = "You read conversations and say how people feel."


class InstructErcLora(LoraConfig):
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.05
    targets: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "k_proj", "v_proj", "query_key_value")


class InstructErcConfig(InstructionConfig):
    lr: Annotated[float, Field(gt=0)] = 2e-4
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    batch_size: Positive = 32
    epochs: Positive = 15
    window: Annotated[int, Field(ge=0)] = 12
    max_tokens: Annotated[int, Field(ge=64)] = 1024
    lora: InstructErcLora = InstructErcLora()
    speaker_epochs: Annotated[int, Field(ge=0)] = 3
    """Epochs of speaker identification before all else; 0: without that task."""
    prediction_weight: Annotated[float, Field(ge=0)] = 0.1
    """Loss weight of emotion prediction; 0: without that task."""
    retrieval: bool = False
    """Put the nearest training turn with its label before each prompt of the main task."""
    embedder: str = "builtin:all-minilm-l6-v2"


class InstructErc(Instruction[InstructErcConfig]):
    kind = InstructErcConfig

    def check(self) -> None:
        super().check()
        if self.settings.retrieval:
            from selfemo.models.embedding import check_embedder

            check_embedder(self.settings.embedder)

    def asker(self, task: Task) -> Ask:
        if not self.settings.retrieval:
            return label_prompt
        bank = Demonstrations.of(task, self.settings.embedder)
        return lambda c, turn, window: label_prompt(c, turn, window, bank.near(c, turn, 1))

    def stages(self, turns: Sequence[Turn], ask: Ask) -> list[Stage]:
        config = self.settings
        main = label_examples(turns, ask)
        if config.prediction_weight:
            main += prediction_examples(turns, config.prediction_weight)
        speakers = speaker_examples(turns) if config.speaker_epochs else []
        first = [Stage("speakers", speakers, config.speaker_epochs)] if speakers else []
        return [*first, Stage(LABELS, main, config.epochs)]


def label_prompt(
    conversation: Conversation, turn: int, window: int, near: Sequence[Demonstration] = ()
) -> list[Message]:
    """The main task: the emotion of a turn."""
    shown = "".join(f"For example, {d.line()}.\n" for d in near)
    return chat(
        _SYSTEM,
        f"{shown}Conversation:\n{context(conversation, turn, window)}\n"
        f"{question(conversation, turn)} {choices(conversation.label_set)}",
    )


def speaker_prompt(conversation: Conversation, turn: int, window: int) -> list[Message]:
    """Speaker identification: who says a turn."""
    before = context(conversation, turn - 1, window - 1) + "\n" if turn and window else ""
    names = ", ".join(map(clean, conversation.speakers))
    return chat(
        _SYSTEM,
        f"Conversation:\n{before}?: {clean(conversation.turns[turn].text)}\n"
        f"Who says the last line? Choose one of: {names}.",
    )


def prediction_prompt(conversation: Conversation, turn: int, window: int) -> list[Message]:
    """Emotion prediction: what the earlier turns make of who speaks next."""
    before = context(conversation, turn - 1, max(0, window - 1))
    return chat(
        _SYSTEM,
        f"Conversation:\n{before}\n{clean(conversation.turns[turn].speaker)} speaks next. "
        f"Which emotion will it be? {choices(conversation.label_set)}",
    )


def speaker_examples(turns: Sequence[Turn]) -> list[Example]:
    """Speaker identification of each turn, where there is more than one speaker."""
    return [
        Example(partial(speaker_prompt, c, i), clean(c.turns[i].speaker), c.id)
        for c, i in turns
        if len(c.speakers) > 1
    ]


def prediction_examples(turns: Sequence[Turn], weight: float) -> list[Example]:
    """Emotion prediction of each turn but a first one."""
    return [Example(partial(prediction_prompt, c, i), gold(c, i), c.id, weight) for c, i in turns if i]
