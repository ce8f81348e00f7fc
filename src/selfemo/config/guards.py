"""Settings of the guards of a training stage (training/guards.py)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from selfemo.config.base import Fraction, NonNegative, PositiveFloat, Section

GuardAction = Literal["warn", "stop", "rollback"]


class GuardConfig(Section):
    """The alarms of a training stage, and what each of them does (guards.py)."""

    numbers: GuardAction = "stop"
    kl: GuardAction = "stop"
    collapse: GuardAction = "warn"
    hacking: GuardAction = "warn"
    expression: GuardAction = "warn"
    max_kl: PositiveFloat = 10.0
    """Nats per token; a healthy run stays far below 1."""
    min_entropy: NonNegative = 0.02
    """Nats per sampled token (with causal credit nearly all are of E lines); 0 for no such limit."""
    max_emotion_share: Fraction = 0.98
    """1 for no such limit."""
    window: Annotated[int, Field(ge=2)] = 10
    """Rounds that collapse and hacking are measured over."""
    hacking_change: PositiveFloat = 0.05
    expression_change: PositiveFloat = 0.1
    """Nats that the listener's R3 rises by since the stage began, from which on the reader's is looked at."""
    length_change: PositiveFloat = 0.2
    """Nats by which the lengths of replies may become surer told from those of people's turns since the
    stage began; where all are told, that is log 2 = 0.69."""
    min_distinct: NonNegative = 0.1
    """Least share of different pairs of words in the replies of a window; 0 for no such limit."""
    max_refused: Fraction = 0.5
    """Largest share of the replies of a window that break a rule, so that they earn nothing; 1: no limit."""
    max_rollbacks: Annotated[int, Field(ge=0)] = 3
    """Rollbacks of one stage; the next alarm stops it."""
