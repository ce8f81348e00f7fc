"""SELF-GRPO steps on the tiny model with completions that are the same in any number of processes.

As a script, under `accelerate launch`: trl_job.py MODEL OUT KIND; each process writes OUT/RANK.json, the
first one the weights. KIND is a name of `KINDS`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from selfemo.config import GrpoConfig, RewardConfig
from selfemo.method.prompts import Fitted, conversation_prompts
from selfemo.method.scoring import with_rest
from selfemo.method.types import Prompt, RawCompletion, Rollout
from selfemo.seeds import derive
from selfemo.stages.rl import rl_items
from selfemo.stages.selfplay import score_group
from selfemo.training.protocol import RlItem
from selfemo.training.trl import SelfGRPOConfig, SelfGRPOTrainer, prompt_dataset
from tests.conftest import toy_conversations

PROMPTS: dict[str, Prompt] = {p.id: p for c in toy_conversations() for p in conversation_prompts(c)}
REPLIES: dict[str, Any] = {"credit": "causal", "expression": "listener", "max_completion_length": 40}
"""Settings of a trainer that rewards replies, long enough for all of `TEXTS`."""
KINDS: dict[str, dict[str, Any]] = {"recognition": {}, "replies": REPLIES}
TEXTS = (
    "E: joy\nS: neutral\nR: Well done.",
    "E: joy 7, surprise 3\nS: joy\nR: Really?",
    "E: neutral\nS: neutral\nR: I see.",
    "E: anger 6, disgust 4\nS: fear\nR: Oh no.",
    "E: sadness 5, fear 3, neutral 2\nS: sadness\nR: I am sorry.",
    "E: fear\nS: fear\nR: Who is it?",
    "E: anger\nS: fear\nR: I will.",
    "E: bliss\nS: joy\nR: Well.",
    "I do not know.",
)


def forced(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Completions by place in the whole batch; every ninth is cut, every fourth prompt's are all one."""
    tokenizer = trainer.processing_class
    chats = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    completions = []
    for i, prompt in enumerate(prompts):
        place = trainer.accelerator.process_index * len(prompts) + i
        said = prompt[-1]["content"]
        flat = derive(0, said) % 4 == 0
        step = trainer.state.global_step
        text = TEXTS[derive(7, step, said, 0 if flat else place) % (1 if flat else len(TEXTS))]
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
        cut = not flat and derive(8, step, said, place) % 9 == 0
        completions.append(ids if cut else [*ids, tokenizer.eos_token_id])
    return {"prompt_ids": chats["input_ids"], "completion_ids": completions, "logprobs": None}


class Recorder(SelfGRPOTrainer):
    """Keeps what TRL is about to train on: the batches of `_generate_and_score_completions`."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if not hasattr(self, "batches"):
            self.batches: list[dict[str, Any]] = []
        length = batch["completion_mask"].sum(1)
        counts = batch["completion_mask"] * batch.get("tool_mask", 1)
        self.batches.append(
            {
                "step": self.state.global_step,
                "mode": "train" if self.model.training else "eval",
                "lam": self.lambda_callback.value,
                "prompt_id": [r["prompt_id"] for r in inputs],
                "prompt_ids": [
                    ids[m.bool()].tolist()
                    for ids, m in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
                ],
                "completion_ids": [
                    ids[:n].tolist() for ids, n in zip(batch["completion_ids"], length, strict=True)
                ],
                "advantages": batch["advantages"].tolist(),
                "counts": [row[:n].tolist() for row, n in zip(counts, length, strict=True)],
                "items": int(batch["num_items_in_batch"]),
            }
        )
        return batch


EXTRA = ("peft_config", "train_dataset", "eval_dataset", "callbacks", "reply_reader", "rollout_func")
"""Arguments of a trainer beside its settings."""


def trainer_for(model: Path, out: Path, kind: type[Recorder] = Recorder, **settings: Any) -> Recorder:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    extra = {
        "train_dataset": prompt_dataset(toy_conversations(), tokenizer),
        "rollout_func": forced,
        **{k: settings.pop(k) for k in EXTRA if k in settings},
    }
    config = {
        "max_steps": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 12,
        "per_device_eval_batch_size": 8,
        "max_completion_length": 8,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "beta": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return kind(str(model), SelfGRPOConfig(str(out), **{**config, **settings}), **extra)


def causal_items(
    batch: dict[str, Any], tokenizer: Any, grpo: GrpoConfig, lam: float
) -> tuple[list[RlItem], list[Rollout]]:
    """What the local engine would train on for these completions, groups of four, each of them completed."""
    items: list[RlItem] = []
    rollouts: list[Rollout] = []
    for start in range(0, len(batch["prompt_id"]), 4):
        prompt, lines, rests = PROMPTS[batch["prompt_id"][start]], [], []
        for ids in batch["completion_ids"][start : start + 4]:
            ended = ids[-1] == tokenizer.eos_token_id
            own = ids[:-1] if ended else ids
            ends = [n for n in range(1, len(own) + 1) if tokenizer.decode(own[:n]).endswith("\n")]
            # Two texts begin with no E line, and what is sampled in two stages ends with the first line.
            n = ends[0] if ends else len(ids)
            line = RawCompletion(tokenizer.decode(own[:n]), tuple(ids[:n]), finished=bool(ends) or ended)
            lines.append(line)
            rests.append(RawCompletion(tokenizer.decode(own[n:]), tuple(ids[n:]), finished=ended))
        group = score_group(prompt, lines, RewardConfig(), grpo, lam)
        own_items = []
        for k, rest in enumerate(rests):
            done = group
            if group.rollouts[k].emotion is not None:
                done = with_rest(group, k, rest, lam=lam, how=grpo.normalise)
            rollouts.append(done.rollouts[k])
            fitted = Fitted(prompt, tuple(batch["prompt_ids"][start]), 0)
            own_items.append(rl_items(fitted, done, grpo, tokenizer.encode)[k])
        items += own_items
    return items, rollouts


def main(model: str, out: str, kind: str) -> None:
    from torch.distributed import barrier

    trainer = trainer_for(Path(model), Path(out) / "trl", per_device_train_batch_size=6, **KINDS[kind])
    trainer.train()
    rank = trainer.accelerator.process_index
    (Path(out) / f"{rank}.json").write_text(json.dumps(trainer.batches))
    if rank == 0:
        trainer.model.save_pretrained(Path(out) / "model")
    barrier()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
