"""The cost model: sizes of public models, and every formula on numbers worked by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.config import load
from selfemo.errors import ConfigError, EngineError
from selfemo.runs import costs
from selfemo.runs.costs import KNOWN, Decoding, Machine, ModelShape, Workload

# d 4, two heads of 2, one key head, f 8, v 10, L 3: a layer has 4 (2 x 4 + 2 x 2 + 3 x 8) = 144 weights.
TOY = ModelShape("toy", 3, 4, 2, 1, 2, 8, 10)
# P 10, R 2, G 3, n 5.
WORK = Workload(prompts=5, group=3, prompt_tokens=10, completion_tokens=2)
SLOW = Machine("slow", 1000.0, 100.0, 0, 1, 1.0, 1.0, 1.0, 1.0)


def test_public_sizes() -> None:
    sizes = {
        "builtin:smollm2-135m": 134_515_008,
        "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
        "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
        "Qwen/Qwen3-4B": 4_022_468_096,
        "Qwen/Qwen3-8B": 8_190_735_360,
    }
    assert {name: KNOWN[name].parameters for name in sizes} == sizes


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
def test_sizes_are_those_of_transformers(kind: str) -> None:
    import torch
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=80, vocab_size=100, head_dim=16, tie_word_embeddings=kind == "Qwen2",
    )  # fmt: skip
    if kind == "Qwen2":  # it takes its head size from the width
        config.head_dim = 12
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    shape = costs.shape_from(config.to_dict(), kind)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.body == sum(
        p.numel() for n, p in model.named_parameters() if "layers" in n and p.dim() == 2
    )


def test_weights_by_hand() -> None:
    assert TOY.layer_weights == 144 and TOY.body == 432 and TOY.head == 40
    assert TOY.parameters == 432 + 3 * 8 + 4 + 40
    assert replace(TOY, tied=False).parameters == TOY.parameters + 40
    assert replace(TOY, biases=True).parameters == TOY.parameters + 3 * 8
    assert TOY.kv_bytes(4, 2) == 3 * 2 * 6


def test_tokens_by_hand() -> None:
    assert (WORK.generated, WORK.prefilled, WORK.packed) == (30, 50, 80)
    assert WORK.scores == 5 * (50 + 3 * (20 + 2))
    rows = replace(WORK, shared=False)
    assert (rows.packed, rows.scores) == (5 * 3 * 12, 5 * 3 * 72)
    sft = replace(WORK, sft_samples=8, own_prompt_tokens=4, run_length=4)
    assert sft.sft_tokens == 8 * (4 + 2) + 2 * (10 - 4)
    assert replace(sft, shared=False, own_prompt_tokens=0).sft_tokens == 8 * 12


def test_operations_by_hand() -> None:
    # 2 x 432 x 80 + 2 x 40 x 30 + 4 x (a 4) x (L 3) x 580 scores.
    assert costs.forward_flops(TOY, 80, 30, 580) == 69_120 + 2_400 + 27_840
    # The benchmark of the update counts them in its own way: 6 for 2, 12 for 4.
    shape, p, g, r = KNOWN["builtin:smollm2-135m"], 1000, 8, 96
    work = Workload(1, g, p, r)
    forward = costs.forward_flops(shape, work.packed, work.generated, work.scores)
    seen = json.loads((Path(__file__).parents[2] / "benchmarks/results.json").read_text())
    assert 3 * forward / 1e12 == pytest.approx(seen["update-1000"]["details"]["tflop"], rel=1e-3)


def test_seconds_and_what_bounds_them() -> None:
    how = Decoding(6, 2, 1, TOY.kv_bytes(), masked=False, prefix_once=True)
    work = replace(WORK, old=True, reference=True, steps=2, silent=0.5)
    prefill, decode, old, reference, update = costs.stages(TOY, work, SLOW, how)
    assert prefill.flops == 2 * 432 * 50 + 2 * 40 * 5 + 48 * 5 * 50
    assert prefill.seconds == prefill.flops / 1000 and prefill.bound == "compute"
    # 30 tokens six at a time are 5 steps, each reads 472 weights of 2 bytes; keys: the prompt's once a
    # group and step, and half of each completion.
    assert decode.bytes == 5 * 2 * 472 + 5 * 2 * (10 + 3 * 2 / 2) * TOY.kv_bytes()
    assert decode.flops == 2 * 472 * 30 + 48 * 15 * (20 + 2)
    forward = costs.forward_flops(TOY, 80, 30, WORK.scores)
    assert old.flops == reference.flops == forward
    assert update.flops == 1.5 * forward and update.tokens == 40
    assert update.reading == 36 * TOY.parameters * 2 / 100
    assert update.seconds == update.compute + update.reading
    assert decode.seconds == max(decode.compute, decode.reading)
    packed = costs.stages(TOY, work, replace(SLOW, packs=True), how)[1]
    assert packed.seconds == decode.compute + decode.reading
    fast = replace(SLOW, flops=1e12)
    assert costs.stages(TOY, work, fast, how)[1].bound == "bandwidth"
    eight = costs.stages(TOY, work, replace(SLOW, count=8), how)
    assert eight[0].seconds == prefill.seconds / 8


def test_masked_scores_of_the_local_engine() -> None:
    alone = Decoding(6, 2, 1, 8, masked=False, prefix_once=True)
    local = replace(alone, masked=True)
    a, b = (costs.stages(TOY, WORK, SLOW, h)[1].flops for h in (alone, local))
    assert b - a == 48 * 15 * (3 - 1) * 2  # (G - 1) R^2 / 2 more for each of 15 completions


def test_the_papers_settings() -> None:
    config = load([])
    work = costs.workload(config, 600, 300, engine="verl")
    assert (work.prompts, work.completions, work.rounds, work.steps) == (23000, 184000, 360, 720)
    assert work.old and work.reference and work.checkpointing and not work.shared
    local = costs.workload(config, 600, 300)
    assert local.shared and local.old and local.packed < work.packed / 2
    shape, machine = KNOWN["Qwen/Qwen3-8B"], replace(costs.MACHINES["h100"], count=8)
    need = costs.memory(shape, config, work, machine, "verl")
    assert need.weights + need.gradients + need.optimiser == 16 * shape.parameters / 8
    assert need.peak < machine.memory < costs.memory(
        shape, config, work, replace(machine, count=1), "verl"
    ).peak  # fmt: skip
    how = costs.decoding(shape, config, work, machine, "verl", tensor_parallel=8)
    assert (
        how.rows == pytest.approx(64 * 8, rel=0.01) and how.replicas == 1
    )  # a round's completions


def test_local_memory_by_hand() -> None:
    config = load([], ["model.dtype=fp32", "grpo.micro_tokens=8", "sampling.token_budget=100"])
    need = costs.memory(TOY, config, replace(WORK, reference=True), SLOW, "local")
    n = TOY.parameters
    assert (need.weights, need.gradients, need.optimiser, need.reference) == (
        4 * n,
        4 * n,
        8 * n,
        4 * n,
    )
    # One group is 16 tokens, more than the 8 that were asked for; a layer keeps 16 (4 + 4 + 8) bytes a token.
    # Two of three completions gather the prompt's keys and values anew: 2 x 10 x 2 a of 4 bytes a layer.
    assert need.activations == 16 * 3 * 16 * (4 + 4 + 8) + 2 * 10 * 8 * 4 * 3
    assert need.logits == pytest.approx(6 * 16 * 10)
    assert need.cache == 100 * TOY.kv_bytes(4, 4) and need.casts == 0
    checkpointed = load([], ["model.dtype=fp32", "model.gradient_checkpointing=true"])
    assert costs.memory(TOY, checkpointed, WORK, SLOW, "local").activations < need.activations * 5
    lora = load([], ["model.dtype=fp32", "model.lora={rank=1}"])
    adapters = costs.lora_parameters(TOY, 1)
    assert adapters == 3 * ((4 + 4) * 2 + (4 + 2) * 2 + (4 + 8) * 3)
    small = costs.memory(TOY, lora, replace(WORK, reference=True), SLOW, "local")
    assert (small.gradients, small.reference) == (4 * adapters, 0)


def test_disk_by_hand() -> None:
    config = load([], ["flywheel.iterations=2", "save.keep_stage_checkpoints=false"])
    need = costs.disk_bytes(TOY, config, WORK)
    assert need["checkpoints"] == 3 * 4 * TOY.parameters
    assert need["states"] == 3 * 12 * TOY.parameters
    assert need["store"] == 2 * 30 * costs.store_bytes(10, 2, 3)
    assert costs.store_bytes(10, 2, 3) == pytest.approx(220 + 9.6 + (420 + 39) / 3)


def test_shapes_are_found(tmp_path: Path) -> None:
    config = {"hidden_size": 4, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 2,
              "num_key_value_heads": 1, "intermediate_size": 8, "vocab_size": 10,
              "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert costs.find_shape(str(tmp_path)) == replace(TOY, name=str(tmp_path))
    assert costs.find_shape("Qwen/Qwen3-4B") is KNOWN["Qwen/Qwen3-4B"]
    guess = costs.find_shape("some/model", 14_000_000_000)
    assert guess.parameters == pytest.approx(14e9, rel=1e-3)
    with pytest.raises(EngineError, match="give --parameters"):
        costs.find_shape("some/model")
    with pytest.raises(ConfigError, match="give a number"):
        costs.scaled(-1)
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    with pytest.raises(EngineError, match="num_attention_heads"):
        costs.find_shape(str(tmp_path))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(EngineError, match="cannot be read"):
        costs.find_shape(str(tmp_path))


def test_precision() -> None:
    asked = {d: load([], [f'model.dtype="{d}"']) for d in ("auto", "fp32", "bf16")}
    cpu, gpu = costs.MACHINES["cpu-core"], costs.MACHINES["h100"]
    assert [costs.precision(c, cpu) for c in asked.values()] == ["fp32", "fp32", "bf16"]
    assert [costs.precision(c, gpu) for c in asked.values()] == ["bf16", "fp32", "bf16"]
