"""The row "gold prompts of RL per minute": a two-stage round on windows against TRL's step.

Both learn E from the same gold prompts with G completions each, at temperature 1, in one precision and on as
many threads. TRL's trainer samples whole completions; ours samples their E lines, which is all that R1
depends on (SPEC section 9), and trains on windows of turns of one conversation as one tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness import Row
from benchmarks.training import LR, SETTINGS, alternate, engine, grpo_trainer
from selfemo.config import load
from selfemo.method.prompts import Fitted
from selfemo.method.types import Place
from selfemo.models.generation.requests import Request
from selfemo.seeds import rng, shuffled_runs
from selfemo.stages.flywheel import original_prompts
from selfemo.stages.rl import rl_items
from selfemo.stages.selfplay import fit_all, sample_groups, score_group

G, WINDOW, ROUND, TRL_PROMPTS, COMPLETION = 8, 24, 64, 4, 48
GOAL = 40.0


def of_mean_length(fitted: Sequence[Fitted], n: int) -> list[Fitted]:
    """The n prompts whose length is nearest to the mean: what one costs where nothing is shared."""
    mean = sum(len(f.ids) for f in fitted) / len(fitted)
    return sorted(fitted, key=lambda f: abs(len(f.ids) - mean))[:n]


def rl_prompts(model: str, data: str, repeats: int, micro: int = G) -> Row:
    """Seconds a gold prompt: rounds of 64 prompts of ours and steps of 4 of them of TRL's, in turn."""
    from selfemo.method.parsing import parse
    from selfemo.method.rewards import weighted_iou
    from selfemo.method.types import Completion
    from selfemo.runs.inputs import run_inputs

    e = engine(model)
    budget = min(8192, SETTINGS["micro_tokens"])
    config = load(
        [],
        [
            f'data.sources=["{data}"]',
            "prompt.max_tokens=1024",
            f"sampling.group_size={G}",
            f"sampling.max_new_tokens={COMPLETION}",
            "grpo.credit=causal",
            "grpo.normalise=mean",
            "grpo.kl_coef=0",
            f"grpo.micro_tokens={budget}",
        ],
    )
    prompts = original_prompts(run_inputs(config).training, 0, 1.0)
    order = shuffled_runs([p.conversation_id for p in prompts], WINDOW, rng(0, "rl rate"))
    chosen = [prompts[i] for i in order[: (repeats + 1) * ROUND]]
    fitted, _ = fit_all(chosen, e.sampler.encode, config.prompt.max_tokens, "none")
    rounds = [fitted[k : k + ROUND] for k in range(0, len(fitted), ROUND)][: repeats + 1]
    theirs = [of_mean_length(r, TRL_PROMPTS) for r in rounds]
    texts = [e.policy.tokenizer.decode(f.ids) for part in theirs for f in part]
    by_text = {t: f.prompt for t, f in zip(texts, (f for part in theirs for f in part), strict=True)}
    counts: dict[str, list[int]] = {"ours": [], "ours, packed": [], "theirs": []}
    e.begin_stage(config.grpo)
    row = Row(f"gold prompts of RL, G {G}, MELD's lengths", "TRL GRPOTrainer", GOAL, "s a prompt")

    def sample(asked: Any, n: int, seeds: Any, settings: Any) -> Any:
        pairs = zip(asked, seeds, strict=True)
        requests = [Request(f.ids, n, s, share=f.prompt.conversation_id) for f, s in pairs]
        return e.sampler.generate(requests, settings)

    def ours(k: int) -> None:
        sampled = sample_groups(sample, rounds[k], config, Place("rate", k))
        items = []
        for f, s in zip(rounds[k], sampled, strict=True):
            group = score_group(f.prompt, s, config.reward, config.grpo, 0.0)
            items += rl_items(f, group, config.grpo, e.policy.plain_ids)
        counts["ours"].append(sum(len(i.completion_ids) for i in items))
        (measures,) = e.rl_round([items], config.grpo, [LR])
        counts["ours, packed"].append(int(measures["packed_tokens"]))

    def reward(prompts: list[str], completions: list[str], completion_ids: Any, **_: Any) -> Any:
        counts["theirs"].append(sum(map(len, completion_ids)))
        read = [parse(c, by_text[p].label_set) for p, c in zip(prompts, completions, strict=True)]
        golds = [by_text[p].target for p in prompts]
        return [
            weighted_iou(r.emotion, g) if isinstance(r, Completion) and g else 0.0
            for r, g in zip(read, golds, strict=True)
        ]

    t = grpo_trainer(
        model,
        rows=[{"prompt": x} for x in texts],
        rewards=reward,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=TRL_PROMPTS * G // micro,
        max_completion_length=COMPLETION,
        max_steps=repeats + 1,
        shuffle_dataset=False,
    )
    t.add_callback(alternate(row, ours, (ROUND, TRL_PROMPTS)))
    t.train()
    row.checked = "TRL's prompts are among ours; completions are sampled anew, so token counts are given"
    row.details = {
        "completion tokens": counts,
        "prompt tokens": {
            "ours": [sum(len(f.ids) for f in r) for r in rounds],
            "theirs": [sum(len(f.ids) for f in part) for part in theirs],
        },
        "prompts": {"ours": ROUND, "theirs": TRL_PROMPTS},
        "per minute, ours": [60 / s for s in row.ours],
    }
    return row
