"""SELF-GRPO steps on the tiny model with completions that are the same in any number of processes.

As a script, under `accelerate launch`: trl_job.py MODEL OUT; each process writes OUT/RANK.json, the first
one the weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from selfemo.seeds import derive
from selfemo.training.trl import SelfGRPOConfig, SelfGRPOTrainer, prompt_dataset
from tests.conftest import toy_conversations

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
            }
        )
        return batch


def trainer_for(model: Path, out: Path, kind: type[Recorder] = Recorder, **settings: Any) -> Recorder:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    extra = {k: settings.pop(k) for k in ("peft_config", "eval_dataset", "callbacks") if k in settings}
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
    return kind(
        str(model),
        SelfGRPOConfig(str(out), **{**config, **settings}),
        train_dataset=prompt_dataset(toy_conversations(), tokenizer),
        rollout_func=forced,
        **extra,
    )


def main(model: str, out: str) -> None:
    from torch.distributed import barrier

    trainer = trainer_for(Path(model), Path(out) / "trl", per_device_train_batch_size=6)
    trainer.train()
    rank = trainer.accelerator.process_index
    (Path(out) / f"{rank}.json").write_text(json.dumps(trainer.batches))
    if rank == 0:
        trainer.model.save_pretrained(Path(out) / "model")
    barrier()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
