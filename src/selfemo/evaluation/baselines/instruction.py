"""What the recipes share that train a causal model to answer a prompt with the label of a turn.

Departures of all three [ours]: the loss is on the answer alone; the answer is read as the probability of
each label of the set, where they let the model write and look for a label; the labels stand in each prompt,
so that one model reads several data sets; no 4-bit weights; the wording.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from selfemo.config.instruction import InstructionConfig
from selfemo.data.splits import drawn
from selfemo.evaluation.baselines.base import Baseline, Reader, Task, choice_score, tops
from selfemo.method.prompts import clean
from selfemo.method.types import Conversation, LabelSet
from selfemo.models.sampler import Message
from selfemo.training.label_examples import Example, Stage

Settings = TypeVar("Settings", bound=InstructionConfig)
Ask = Callable[[Conversation, int, int], list[Message]]
"""ask(conversation, turn, window) gives the chat that asks for the label of a turn."""
Turn = tuple[Conversation, int]
LABELS = "labels"
"""The name of the stage that teaches labels."""


class Instruction(Baseline[Settings]):
    """A recipe of prompts, and of the stages in which a causal model is trained on them."""

    @property
    def backbone(self) -> str:
        return self.settings.model

    @property
    def keeps(self) -> bool:
        return True

    def check(self) -> None:
        from selfemo.extras import require
        from selfemo.models.references import ModelReference

        if not self.settings.full:
            require("baseline.lora", "peft")
        ModelReference.parse(self.settings.model).check()

    @abstractmethod
    def asker(self, task: Task) -> Ask:
        """What asks for the label of a turn, the same in training and after it."""

    def stages(self, turns: Sequence[Turn], ask: Ask) -> list[Stage]:
        """The stages of a training on some labelled turns; the last one teaches labels."""
        return [Stage(LABELS, label_examples(turns, ask), self.settings.epochs)]

    def train(self, task: Task) -> Reader:
        ask = self.asker(task)
        turns = drawn(labelled(task.train), self.settings.max_samples, task.seed, "samples")
        sets = dict.fromkeys(c.dataset for c in task.choose)
        choose = [
            c
            for name in sets
            for c in drawn(
                [c for c in task.choose if c.dataset == name], self.settings.choose_conversations, 0, "choose"
            )
        ]
        from selfemo.training.label_sft import train_labels

        return train_labels(
            self.settings, self.stages(turns, ask), ask, lambda reader: choice_score(reader, choose),
            seed=task.seed, states=task.states, device=task.device, reporter=task.reporter, stop=task.stop,
        )  # fmt: skip


def labelled(conversations: Sequence[Conversation]) -> list[Turn]:
    """Each turn with a gold emotion, as (conversation, its number)."""
    return [(c, i) for c in conversations for i, top in enumerate(tops(c)) if top >= 0]


def gold(conversation: Conversation, turn: int) -> str:
    """The gold label of a labelled turn."""
    return conversation.label_set.labels[tops(conversation)[turn]]


def label_examples(turns: Sequence[Turn], ask: Ask) -> list[Example]:
    """The example of each turn, whose answer is its label."""
    return [Example(partial(ask, c, i), gold(c, i), c.id) for c, i in turns]


def context(conversation: Conversation, turn: int, window: int, later: int = 0) -> str:
    """A turn with at most `window` turns before it and `later` behind it, each "NAME: text" on a line."""
    return "\n".join(
        f"{clean(t.speaker)}: {clean(t.text)}"
        for t in conversation.turns[max(0, turn - window) : turn + 1 + later]
    )


def choices(labels: LabelSet) -> str:
    return f"Choose one of: {', '.join(labels)}."


def question(conversation: Conversation, turn: int) -> str:
    """Asks for the emotion of a turn's speaker in it."""
    said = conversation.turns[turn]
    return f'Which emotion does {clean(said.speaker)} show in "{clean(said.text)}"?'


def biography(conversation: Conversation, turn: int) -> str:
    """What is known of a turn's speaker, with a line end; "" of one without a persona."""
    speaker = conversation.turns[turn].speaker
    persona = conversation.personas.get(speaker)
    if persona is None or not persona.description:
        return ""
    return f"About {clean(speaker)}: {clean(persona.description)}\n"


def chat(system: str, user: str) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]
