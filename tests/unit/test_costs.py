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
from selfemo.runs.doctor import CHARACTERS, disk

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


def test_what_a_run_does_before_its_iterations_by_hand() -> None:
    """2 epochs of 6 whole samples, E 1 and R 2 tokens behind a prompt of 10 with 4 new ones, and 3 of E."""
    sizes = DATA._replace(cold=6, cold_labels=3, emotion=1)
    config = load([], [*PLAIN, "sft.epochs=2"])
    cold, held_out = costs.parts_before(TOY, config, sizes, SLOW, "local")
    assert cold.tokens == 12 * (4 + 2) + 12 / 4 * 6 + 6 * (4 + 1) + 6 / 4 * 6
    pairs = 12 * (6 * 12 - 18) + 6 * (5 * 11 - 12.5)
    forward = 2 * 432 * cold.tokens + 2 * 40 * (12 * 2 + 6 * 1) + 48 * pairs
    assert cold.hours * 3600 == pytest.approx(3 * forward)
    # The untouched model and the cold start are scored, as the two models of an iteration are.
    assert held_out == costs.parts(TOY, config, sizes, SLOW, "local")[-1]
    assert len(costs.parts_before(TOY, config, sizes._replace(held_out=0), SLOW, "local")) == 1


def test_the_teachers_pass_by_hand() -> None:
    """5 replies: two prompts of 10 that differ by 4, and seven branches of R 2 behind the prompt."""
    names = [p.name for p in costs.parts(TOY, load([], PLAIN), DATA, SLOW, "local")]
    assert "teacher" not in names
    for read in ("gate.channel=0.5", "selfplay.targets=channel"):
        found = costs.parts(TOY, load([], [*PLAIN, read]), DATA, SLOW, "local")
        assert [p.name for p in found] == [*names[:2], "teacher", *names[2:]]
        tokens = 5 * (10 + 4 + 10 + 7 * 2)
        assert found[2].tokens == tokens
        pairs = 5 * (10 * 5 + 4 * (10 + 2) + 10 * 5 + 7 * 2 * (10 + 1))
        logits = 5 * (2 + 7 * 2)
        assert found[2].hours * 3600 == pytest.approx(2 * 432 * tokens + 2 * 40 * logits + 48 * pairs)
        # Without a KL term the teacher is a second model; with one it is the reference.
        for kl in ("0", "0.1"):
            used = costs.memory(TOY, load([], [*PLAIN, read, f"grpo.kl_coef={kl}"]), DATA, SLOW, "local")
            assert used["training"]["reference"] == 4 * TOY.parameters
    assert costs.memory(TOY, load([], PLAIN), DATA, SLOW, "local")["training"]["reference"] == 0


CAUSAL = [*PLAIN, "grpo.credit=causal", "selfplay.synthetic_share=0.2"]
TWO = DATA._replace(completion=6, emotion=2, labels=4, turns=5)  # E 2 of R 6 tokens


def test_two_stages_windows_and_labels_by_hand() -> None:
    def tokens(*more: str, lengths: Lengths = TWO) -> dict[str, float]:
        found = costs.parts(TOY, load([], [*CAUSAL, *more]), lengths, SLOW, "local")
        return {part.name: part.tokens for part in found}

    # 5 prompts of 10: prefilled for three E lines of 2, and again, with the best of them, for 4 tokens more.
    found = tokens()
    assert (found["prefill"], found["decode"]) == (5 * 10 + 5 * 12, 5 * 3 * 2 + 5 * 4)
    assert found["update"] == 5 * (10 + 3 * 2)
    # 8 samples of 4 + 6 tokens and 4 of 4 + 2; each run of four has a first prompt of 10.
    assert found["refit"] == 8 * (4 + 6) + 2 * 6 + 4 * (4 + 2) + 1 * 6
    none = ("flywheel.refit=none", "selfplay.max_turns=1")
    assert (tokens(*none)["prefill"], tokens(*none)["decode"]) == (5 * 10, 5 * 3 * 2)
    # Conversations of 5 in windows of 4 are 2 windows, 2.5 prompts each: 1 - 1/2.5 of four in five share 6.
    shared = 0.8 * 0.6 * 6
    windows = tokens("flywheel.window=4")
    assert windows["update"] == pytest.approx(5 * (10 - shared + 6))
    assert windows["prefill"] == pytest.approx(5 * (2 * (10 - shared) + 2))
    assert tokens("flywheel.window=5")["update"] == pytest.approx(5 * (10 - 0.8 * 0.8 * 6 + 6))
    unknown = tokens("flywheel.window=4", lengths=TWO._replace(turns=0))
    assert unknown["update"] == pytest.approx(5 * (10 - 0.8 * 0.75 * 6 + 6))
    # Gold lines of the originals beside three E lines, and alone.
    assert tokens("grpo.gold_weight=1")["update"] == pytest.approx(5 * (10 + 3.8 * 2))
    alone = tokens("grpo.gold_weight=1", "grpo.reward_weight=0")
    assert alone["update"] == pytest.approx(5 * (10 + 0.8 * 2)) and alone["decode"] == found["decode"]
    # Windows count with whole completions too; verl packs nothing.
    assert tokens("grpo.credit=completion", "flywheel.window=4")["update"] == pytest.approx(
        5 * (10 - shared + 18)
    )
    config = load([], [*PLAIN, "flywheel.window=4"])
    assert costs.parts(TOY, config, TWO, SLOW, "verl")[3].tokens == 5 * 3 * 16


def test_memory_and_disk_of_two_stages() -> None:
    config = load([], CAUSAL)
    need = costs.memory(TOY, config, TWO, SLOW, "local")["training"]
    # A group is 10 + 3 x 2 tokens, as with completions of 2 tokens.
    assert need == costs.memory(TOY, load([], PLAIN), DATA, SLOW, "local")["training"]
    whole, parts = (disk(TOY, load([], s), TWO)["store"] for s in (PLAIN, CAUSAL))
    assert whole - parts == pytest.approx(2 * 5 * 1.6 * CHARACTERS * (3 * 6 - (3 * 2 + 4)))


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
    lent = costs.memory(qwen, load([], ["model.lora={rank=16}"]), Lengths(600, 300), eight, "verl")[
        "training"
    ]
    adapters = 36 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12288))
    assert lent["gradients"] == adapters * 4 / 8 and lent["optimiser"] == adapters * 8 / 8
    assert lent["weights"] == (8_190_726_144 + adapters) * 4 / 8


def test_the_replies_that_a_listener_compares_by_hand() -> None:
    """Prompts of 100 tokens in a window of one, completions of 30 with an E line of 5; 4 replies."""
    lengths = costs.Lengths(100, 30, emotion=5)
    causal = ["grpo.credit=causal", "sampling.group_size=8", "selfplay.max_turns=1", "flywheel.refit=none"]
    on = [*causal, "reward.expression=listener", "reward.replies=4"]
    off, found = (costs.rl_costs(load([], more), lengths) for more in (causal, on))
    assert (off.rest, off.replies, off.packed) == (0, 0, 100 + 8 * 5)
    assert (found.rest, found.replies, found.again) == (25, 4, 12)
    assert found.packed == 100 + 8 * 5 + (4 + 12) * 25
    plain = costs.rl_costs(load([], [*on, "reward.contrast=false"]), lengths)
    assert (plain.again, plain.packed) == (0, 100 + 8 * 5 + 4 * 25)
    more = costs.rl_costs(load([], [*on, "reward.replies=0"]), lengths)
    assert more.replies == 8, "as many as a group has"
    # Twice the prompt for what is expected, and for each reply a prompt of its own.
    shape = costs.KNOWN["builtin:smollm2-135m"]
    tokens, operations = costs.listening(shape, load([], [*on, "flywheel.prompts=10"]), lengths)
    assert tokens == 10 * (2 * 100 + 4 * (100 + 25)) and operations > 2 * shape.body * tokens
