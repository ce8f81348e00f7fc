"""Small copies of the tiny model as people bring models: other templates, tokenizers, weights and files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nTAIL{% endif %}"
)
TEMPLATES = {
    "plain": _TURNS.replace("TAIL", ""),
    "refuses the system role": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system, please') }}{% endif %}"
        + _TURNS.replace("TAIL", "")
    ),
    "alternates": (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must take turns: user, assistant') }}{% endif %}{% endfor %}"
        + _TURNS.replace("TAIL", "")
    ),
    "drops the system message": _TURNS.replace("TAIL", "").replace(
        "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"
    ),
    "knows enable_thinking": _TURNS.replace(
        "TAIL",
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
    ),
    "opens a thought": _TURNS.replace("TAIL", "<think>\n"),
    "opens a thought without a line end": _TURNS.replace("TAIL", "<think>"),
    "answers in a channel": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}"
        "{% if m['role'] == 'assistant' %}<|to|>all{% endif %}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    ),
    "writes the date": "Today is {{ strftime_now('%d %B %Y') }}.\n" + _TURNS.replace("TAIL", ""),
    "ends turns by a token of its own": _TURNS.replace("TAIL", "").replace("<|im_end|>", "<|turn|>"),
}


def copy_of(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    return folder


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Change or, by None, remove keys of a JSON file."""
    held = json.loads((folder / name).read_text())
    held = {k: v for k, v in {**held, **changes}.items() if v is not None}
    (folder / name).write_text(json.dumps(held))


def with_template(model: Path, folder: Path, template: str | None) -> Path:
    copy_of(model, folder)
    file = folder / "chat_template.jinja"
    if template is None:
        file.unlink()
    else:
        file.write_text(template)
    return folder


def with_tokenizer(model: Path, folder: Path, change: Callable[[Any], Any], rows: int | None = None) -> Path:
    """A copy whose tokenizer `change` altered, and whose embedding has `rows` rows."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    copy_of(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (change(tokenizer) or tokenizer).save_pretrained(folder)
    if rows:
        core = AutoModelForCausalLM.from_pretrained(folder)
        core.resize_token_embeddings(rows, mean_resizing=False)
        core.save_pretrained(folder)
    return folder


def of_architecture(tiny_model: Path, folder: Path, name: str) -> Path:
    """A tiny random model of an architecture, with the tokenizer of another."""
    import transformers

    sizes = {
        "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "n_layer": 2,
        "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "n_layers": 2, "d_model": 64, "head_dim": 16,
        "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": None,
        "num_local_experts": 2, "num_experts_per_tok": 2,
    }  # fmt: skip
    kind = f"{name}LMHeadModel" if name in ("Bert", "GPT2") else f"{name}ForCausalLM"
    model = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**sizes))
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / file, folder)
    return folder
