"""The cost model: sizes of public models, and every formula on numbers worked by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.config import load
from selfemo.errors import EngineError
from selfemo.runs import costs
from selfemo.runs.costs import KNOWN, RUNTIME, Lengths, Machine, ModelShape

# L 3, d 4, a 4, k 2, f 8, v 10: a layer has 4 (2 x 4 + 2 x 2 + 3 x 8) = 144 weights. P 10, R 2, n 5, G 3.
TOY, DATA = ModelShape(3, 4, 4, 2, 8, 10), Lengths(10, 2, own=4, refit=8, held_out=5)
PLAIN = ["model.dtype=fp32", "flywheel.prompts=5", "sampling.group_size=3", "grpo.kl_coef=0",
         "grpo.mini_batch=64", "flywheel.refit_epochs=1", "sft.run_length=4", "grpo.micro_tokens=8",
         "sampling.token_budget=100"]  # fmt: skip
SLOW = Machine("cpu", 1.0, 1.0, 0.0, 1, 1.0, 1.0, 1.0)


def test_sizes(tmp_path: Path) -> None:
    # N of the makers; norms of queries and keys, 9,216 weights, are left out.
    assert KNOWN["builtin:smollm2-135m"].parameters == 134_515_008
    assert KNOWN["Qwen/Qwen3-4B"].parameters == 4_022_468_096 - 36 * 256
    assert (TOY.body, TOY.head, TOY.parameters) == (432, 40, 432 + 40 + 7 * 4)
    assert TOY._replace(tied=False).parameters == TOY.parameters + 40
    config = {"hidden_size": 4, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 10,
              "num_key_value_heads": 1, "intermediate_size": 8, "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert costs.find_shape(str(tmp_path)) == TOY
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    with pytest.raises(EngineError, match="give the model as a folder"):
        costs.find_shape(str(tmp_path))


@pytest.mark.parametrize("engine", ["local", "verl"])
def test_tokens_and_hours_by_hand(engine) -> None:
    local, config = engine == "local", load([], PLAIN)
    prefill, decode, scores, update, refit, held_out = costs.parts(TOY, config, DATA, SLOW, engine)
    # The policy after RL and the refit are scored: prompts, completions, prompts again for the beliefs.
    assert (prefill.tokens, decode.tokens, held_out.tokens) == (50, 30, 2 * (50 + 10 + 50))
    once = costs.parts(TOY, load([], [*PLAIN, "flywheel.refit=none"]), DATA, SLOW, engine)[-1]
    bare = costs.parts(TOY, load([], [*PLAIN, "evaluation.beliefs=false"]), DATA, SLOW, engine)[-1]
    assert (once.tokens, bare.tokens) == (50 + 10 + 50, 2 * (50 + 10))
    assert update.tokens == (5 * (10 + 3 * 2) if local else 5 * 3 * 12)
    assert refit.tokens == (8 * (4 + 2) + 2 * (10 - 4) if local else 8 * 12)
    assert scores.tokens == (0 if local else update.tokens)  # verl: before the first step
    assert prefill.hours * 3600 == pytest.approx(2 * 432 * 50 + 2 * 40 * 5 + 48 * 5 * 50)
    # 48 = 4 a L for each pair of a query with a key before it.
    pairs = 5 * (50 + 3 * (20 + 2)) if local else 5 * 3 * 72
    forward = 2 * 432 * update.tokens + 2 * 40 * 30 + 48 * pairs
    assert update.hours * 3600 == pytest.approx((3 if local else 4) * forward)
    # Much computing power: decoding waits for weights of 4 bytes (local: one group at a time) or 2.
    fast = costs.parts(TOY, config, DATA, replace(SLOW, flops=1e12), engine)[1]
    weights = 10 * 4 * 472 if local else 2 * 2 * 472
    keys = 5 * 2 * (10 + 3) * 2 * 3 * 2 * 4 if local else 5 * 2 * (30 + 3) * 2 * 3 * 2 * 2
    assert fast.hours * 3600 == pytest.approx(weights + keys)


def test_memory_by_hand() -> None:
    config, n = load([], [*PLAIN, "grpo.kl_coef=0.1"]), TOY.parameters
    need = costs.memory(TOY, config, DATA, SLOW, "local")
    held = {"weights": 4 * n, "optimiser": 8 * n, "reference": 4 * n, "casts": 0, "runtime": RUNTIME["local"]}
    assert need["sampling"] == {**held, "cache": 100 * 3 * 2 * 8}
    # A group is 16 tokens, more than micro_tokens; two of three completions gather the prompt's keys anew.
    activations = 16 * 3 * 16 * (4 + 4 + 8) + 2 * 10 * 8 * 4 * 3
    training = {**held, "gradients": 4 * n, "activations": activations, "logits": 6 * 16 * 10}
    assert need["training"] == pytest.approx(training)
    small = costs.memory(TOY, load([], [*PLAIN, "model.lora={rank=1}"]), DATA, SLOW, "local")["training"]
    assert small["gradients"] == 4 * 3 * (2 * 8 + 2 * 6 + 3 * 12) and small["reference"] == 0
    qwen, eight = KNOWN["Qwen/Qwen3-8B"], Machine("h100", 1, 1, 80e9, 8)
    paper = costs.memory(qwen, load([]), Lengths(600, 300), eight, "verl")["training"]
    assert sum(paper[k] for k in ("weights", "gradients", "optimiser")) == 2 * 8_190_726_144
    assert 20e9 < sum(paper.values()) < 80e9
