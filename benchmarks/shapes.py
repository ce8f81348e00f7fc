"""Models of real dimensions with random weights: speed does not depend on what the weights are.

python -m benchmarks.shapes qwen3-0.6b --tokenizer FOLDER --out FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {  # its vocabulary is its tokenizer's
        "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    },
    "smollm2-135m": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49152, "rope_theta": 100000.0,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "rope_theta": 1000000.0,
    },
    "qwen3-1.7b": {
        "model_type": "qwen3", "hidden_size": 2048, "intermediate_size": 6144,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "rope_theta": 1000000.0,
    },
}  # fmt: skip


def write(shape: str, tokenizer: str, out: Path) -> None:
    """A model folder of that shape; its tokenizer is another model's, whose ids all fit."""
    settings = {"tie_word_embeddings": True, "max_position_embeddings": 8192, **SHAPES[shape]}
    read = AutoTokenizer.from_pretrained(tokenizer)
    settings.setdefault("vocab_size", len(read))
    settings |= {"bos_token_id": read.bos_token_id, "eos_token_id": read.eos_token_id}
    torch.manual_seed(0)
    kind = settings.pop("model_type")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    model.save_pretrained(out)
    read.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write(args.shape, args.tokenizer, args.out)


if __name__ == "__main__":
    main()
