"""The row "gold prompts of RL per minute": a two-stage round on windows against TRL's step.

Both learn E from the same gold prompts with G completions each, at temperature 1, in one precision and on as
many threads. TRL's trainer samples whole completions; ours samples their E lines, which is all that R1
depends on (SPEC section 9), and trains on windows of turns of one conversation as one tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import ours as our
from benchmarks.harness import Meter, Row
from benchmarks.ours import LINES, Done, G, Side
from benchmarks.training import alternate, sampling_trainer
from selfemo.method.prompts import Fitted

ROUND, TRL_PROMPTS = 64, 4
GOAL = 40.0


def of_mean_length(fitted: Sequence[Fitted], n: int) -> list[Fitted]:
    """The n prompts whose length is nearest to the mean: what one costs where nothing is shared."""
    mean = sum(len(f.ids) for f in fitted) / len(fitted)
    return sorted(fitted, key=lambda f: abs(len(f.ids) - mean))[:n]


def rl_prompts(
    model: str, data: str, repeats: int, micro: int = G, size: int = ROUND, *, made_up: bool = False
) -> Row:
    """Seconds a gold prompt: rounds of `size` prompts of ours and steps of 4 of them of TRL's, in turn.

    Args:
        made_up: see `ours.gold_round`.
    """
    from selfemo.method.parsing import parse
    from selfemo.method.rewards import weighted_iou
    from selfemo.method.types import Completion

    side, memory = Side(model), Meter()
    e = side.engine
    rounds = our.gold_rounds(data, repeats + 1, size, e)
    theirs = [of_mean_length(r, TRL_PROMPTS) for r in rounds]
    texts = [e.policy.tokenizer.decode(f.ids) for part in theirs for f in part]
    by_text = {t: f.prompt for t, f in zip(texts, (f for part in theirs for f in part), strict=True)}
    counts: dict[str, list[int]] = {"ours": [], "ours, packed": [], "theirs": []}
    parts: list[dict[str, float]] = []
    of = ", MELD's lengths" if data.startswith("meld") else ""
    row = Row(f"gold prompts of RL, G {G}{of}", "TRL GRPOTrainer", GOAL, "s a prompt")
    round_ = our.gold_round(side, rounds, made_up=made_up)

    def ours(k: int) -> Done:
        done = round_(k)
        counts["ours"].append(sum(len(c.token_ids) for c in done.completions))
        counts["ours, packed"].append(done.tokens)
        parts.append(done.parts)
        return done

    def reward(prompts: list[str], completions: list[str], completion_ids: Any, **_: Any) -> Any:
        counts["theirs"].append(sum(map(len, completion_ids)))
        read = [parse(c, by_text[p].label_set) for p, c in zip(prompts, completions, strict=True)]
        golds = [by_text[p].target for p in prompts]
        return [
            weighted_iou(r.emotion, g) if isinstance(r, Completion) and g else 0.0
            for r, g in zip(read, golds, strict=True)
        ]

    t = memory.run(
        lambda: sampling_trainer(
            model, texts, reward, TRL_PROMPTS, micro, repeats, max_completion_length=LINES
        )
    )
    t.add_callback(alternate(row, ours, (side.memory, memory), (size, TRL_PROMPTS)))
    t.train()
    row.checked = "TRL's prompts are among ours; completions are sampled anew, so token counts are given"
    row.details = {
        "completion tokens": counts,
        "prompt tokens": {
            "ours": [sum(len(f.ids) for f in r) for r in rounds],
            "theirs": [sum(len(f.ids) for f in part) for part in theirs],
        },
        "prompts": {"ours": size, "theirs": TRL_PROMPTS},
        "parts of a round, s": parts[1:],
        "per minute, ours": [60 / s for s in row.ours],
    }
    return row
