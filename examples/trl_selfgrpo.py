"""SELF-GRPO with TRL on the sample set: python examples/trl_selfgrpo.py --model FOLDER (docs/trl.md)."""

import argparse

import torch
from peft import LoraConfig
from transformers import AutoTokenizer

from selfemo.data import load
from selfemo.errors import SelfEmoError
from selfemo.models.references import resolve
from selfemo.runs.settings import find_checkpoint
from selfemo.training.trl import SelfGRPOConfig, SelfGRPOTrainer, prompt_dataset

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="builtin:smollm2-135m", help="RUN[@CHECKPOINT], model folder or id")
parser.add_argument("--data", default="sample", help="as in selfemo: a path, or meld:PATH")
parser.add_argument("--out", default="runs/trl")
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--batch", type=int, default=8, help="completions of a step and process")
parser.add_argument("--group", type=int, default=4)
parser.add_argument("--lr", type=float, help="default: 1e-5, with --lora 1e-4")
parser.add_argument("--lam-max", type=float, default=0.3)
parser.add_argument("--lora", action="store_true")
parser.add_argument("--vllm", choices=["colocate", "server"], help="generate with vLLM")
parser.add_argument("--listener", help="reward replies: reference, a kept encoder, a model, an endpoint")
cli = parser.parse_args()

gpu = torch.cuda.is_available()
try:
    model = resolve(find_checkpoint(cli.model))
    conversations = load(cli.data).conversations
except SelfEmoError as e:
    raise SystemExit(f"error: {e}") from None
tokenizer = AutoTokenizer.from_pretrained(model)
split = {
    name: prompt_dataset([c for c in conversations if c.split == name], tokenizer, max_prompt_tokens=512)
    for name in ("train", "test")
}
adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if cli.lora else None
args = SelfGRPOConfig(
    cli.out,
    max_steps=cli.steps,
    per_device_train_batch_size=cli.batch,
    num_generations=cli.group,
    max_completion_length=48,
    learning_rate=cli.lr or (1e-4 if cli.lora else 1e-5),
    lam_max=cli.lam_max,
    temperature=0.8,
    logging_steps=1,
    log_completions=True,
    report_to="none",
    **({"credit": "causal", "expression": "listener", "listener": cli.listener} if cli.listener else {}),
    **({"use_vllm": True, "vllm_mode": cli.vllm} if cli.vllm else {}),
    **({} if gpu else {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}),
)
if cli.vllm == "colocate" and not gpu:
    from selfemo.models.generation.vllm_here import prepare

    prepare("cpu")  # or vLLM would go on with the weights that it began with
trainer = SelfGRPOTrainer(model, args, split["train"], split["test"], peft_config=adapters)
trainer.train()
trainer.save_model()
trainer.accelerator.end_training()  # a process that ends with its group still open may abort
