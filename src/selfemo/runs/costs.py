"""What one iteration costs: tokens, floating point operations, bytes, and with a machine also seconds.

Pure arithmetic over a model's shape, the settings and mean lengths; docs/scaling.md derives the formulas and
holds them against measured points. What is modelled is what the engines do:
- local: prefix trees (a prompt is computed once for its G completions, in sampling and in training), float32
  masters with AdamW, forward passes in fp32 or bf16, the reference as a frozen copy, or none under LoRA;
- verl: no sharing in training (G rows a prompt), FSDP over all GPUs, the reference on the host, gradient
  checkpointing, vLLM with prefix caching in half of each GPU's memory (table 12).

Legend: N parameters, L layers, d hidden size, a = heads x head size, k = key/value heads x head size,
f size of the MLP, v vocabulary, P prompt tokens, R completion tokens (means), G group, n prompts, T tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from selfemo.config import Config
from selfemo.errors import ConfigError, EngineError
from selfemo.method.types import BUILTIN_MODEL

EngineName = Literal["local", "verl"]
Dtype = Literal["fp32", "bf16"]
GIB = 2**30


# -- models ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder of the Llama kind.

    Attributes:
        biases: the query, key and value projections have biases (Qwen2).
        qk_norm: queries and keys are normalised by head (Qwen3).
        tied: the head is the embedding.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    tied: bool = True
    biases: bool = False
    qk_norm: bool = False

    @property
    def attention(self) -> int:
        """a: width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """k: width of all key heads."""
        return self.kv_heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Weights of one layer that are multiplied with a token: 2 d a + 2 d k + 3 d f."""
        return self.hidden * (2 * self.attention + 2 * self.kv + 3 * self.mlp)

    @property
    def body(self) -> int:
        return self.layers * self.layer_weights

    @property
    def head(self) -> int:
        """Weights of the language-model head: v d."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """N: layers with norms and biases, last norm, embedding, and the head where it is its own."""
        small = 2 * self.hidden
        small += (self.attention + 2 * self.kv) if self.biases else 0
        small += 2 * self.head_dim if self.qk_norm else 0
        return self.body + self.layers * small + self.hidden + self.head * (1 if self.tied else 2)

    def kv_bytes(self, key_bytes: int = 2, value_bytes: int = 2) -> int:
        """Cached bytes of one token: L k (key + value)."""
        return self.layers * self.kv * (key_bytes + value_bytes)


def _known(*shapes: ModelShape) -> dict[str, ModelShape]:
    return {s.name: s for s in shapes}


KNOWN = _known(
    ModelShape(BUILTIN_MODEL, 30, 576, 9, 3, 64, 1536, 49152),
    ModelShape("HuggingFaceTB/SmolLM2-360M-Instruct", 32, 960, 15, 5, 64, 2560, 49152),
    ModelShape("HuggingFaceTB/SmolLM2-1.7B-Instruct", 24, 2048, 32, 32, 64, 8192, 49152),
    ModelShape("Qwen/Qwen2.5-0.5B-Instruct", 24, 896, 14, 2, 64, 4864, 151936, biases=True),
    ModelShape("Qwen/Qwen2.5-1.5B-Instruct", 28, 1536, 12, 2, 128, 8960, 151936, biases=True),
    ModelShape(
        "Qwen/Qwen2.5-7B-Instruct", 28, 3584, 28, 4, 128, 18944, 152064, tied=False, biases=True
    ),
    ModelShape("Qwen/Qwen3-0.6B", 28, 1024, 16, 8, 128, 3072, 151936, qk_norm=True),
    ModelShape("Qwen/Qwen3-1.7B", 28, 2048, 16, 8, 128, 6144, 151936, qk_norm=True),
    ModelShape("Qwen/Qwen3-4B", 36, 2560, 32, 8, 128, 9728, 151936, qk_norm=True),
    ModelShape("Qwen/Qwen3-8B", 36, 4096, 32, 8, 128, 12288, 151936, tied=False, qk_norm=True),
)
"""Shapes of models that may not be on the disk, from their public configurations."""


def shape_from(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a `config.json` of transformers gives.

    Raises:
        EngineError: a size is missing, or it is of no decoder of the Llama kind.
    """
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        kind = str(config.get("model_type", ""))
        return ModelShape(
            name,
            int(config["num_hidden_layers"]),
            hidden,
            heads,
            int(config.get("num_key_value_heads") or heads),
            int(config.get("head_dim") or hidden // heads),
            int(config["intermediate_size"]),
            int(config["vocab_size"]),
            bool(config.get("tie_word_embeddings", False)),
            kind == "qwen2" or bool(config.get("attention_bias")),
            kind == "qwen3",
        )
    except (KeyError, TypeError, ValueError) as e:
        raise EngineError(f"{name}: its config.json gives no {e}, which costs depend on") from None


def scaled(parameters: int) -> ModelShape:
    """A shape of about so many parameters: the known one that is nearest, wider or narrower."""
    if parameters < 1:
        raise ConfigError(f"parameters is {parameters}; give a number such as 4e9")
    near = min(KNOWN.values(), key=lambda s: abs(math.log(s.parameters / parameters)))
    low, high = 0.01, 100.0
    for _ in range(60):
        factor = math.sqrt(low * high)
        shape = replace(
            near,
            name=f"{parameters:,} parameters, like {near.name}",
            hidden=max(1, round(near.hidden * factor)),
            mlp=max(1, round(near.mlp * factor)),
        )
        low, high = (factor, high) if shape.parameters < parameters else (low, factor)
    return shape


def find_shape(model_id: str, parameters: int = 0) -> ModelShape:
    """The shape of a model by its folder's config.json, or its id; else of `parameters`.

    Raises:
        EngineError: the model is neither on the disk nor known, and `parameters` is 0.
    """
    path = Path(model_id) / "config.json"
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise EngineError(f"{path}: cannot be read: {e}") from None
        return shape_from(content if isinstance(content, dict) else {}, model_id)
    if model_id in KNOWN:
        return KNOWN[model_id]
    if parameters:
        return scaled(parameters)
    raise EngineError(
        f"{model_id}: its sizes are not known here; give --parameters, or the model as a folder. Known "
        f"are {', '.join(KNOWN)}"
    )


# -- machines -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """One device, `count` times.

    Attributes:
        flops: dense peak in the precision of the forward pass, FLOP/s.
        bandwidth: of its memory, bytes/s.
        memory: bytes; 0 where it is not known.
        training, prefill: share of the peak that forward and backward passes, and prefilling, reach.
        reading, streaming: share of the bandwidth that decoding, and the optimiser, reach.
        packs: products with few rows first copy the weights into another order (BLAS on CPUs), so reading
            and computing follow each other instead of overlapping.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float = 0.0
    count: int = 1
    training: float = 0.35
    prefill: float = 0.5
    reading: float = 0.6
    streaming: float = 0.8
    packs: bool = False


CPU_FLOPS, CPU_COPY, CPU_READING = 40e9, 12.3e9, 0.16
"""Of benchmarks/costs.json."""

MACHINES = {
    m.name: m
    for m in (
        Machine("h100", 989e12, 3.35e12, 80e9),
        Machine("h200", 989e12, 4.8e12, 141e9),
        Machine("a100", 312e12, 2.04e12, 80e9),
        Machine("l40s", 362e12, 0.864e12, 48e9),
        Machine("rtx4090", 165e12, 1.01e12, 24e9),
        # Measured on one core of the machine of docs/scaling.md: an update in fp32, a copy, a product of the
        # head with four rows.
        Machine("cpu-core", CPU_FLOPS, CPU_COPY, 0, 1, 1.0, 1.0, CPU_READING, 1.0, True),
    )
}
"""Published dense bf16 peaks. The shares are assumptions, not measurements: scale hours with your own."""


def precision(config: Config, machine: Machine) -> Dtype:
    """Of the forward pass on a machine: "auto" is bf16 but on CPUs, most of which would emulate it."""
    asked = str(config.model.dtype)
    if asked in ("fp32", "bf16"):
        return "fp32" if asked == "fp32" else "bf16"
    return "fp32" if machine.name.startswith("cpu") else "bf16"


# -- one iteration --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """What is computed in one iteration.

    Attributes:
        prompts: n of the RL stage; each is a turn of self-play.
        group: G.
        prompt_tokens, completion_tokens: P and R, means.
        rounds: rounds of sampling.
        steps: optimiser steps of the RL stage.
        reference: a pass of the reference policy (kl_coef above 0).
        old: a pass for the log-probabilities before the first step (several mini-batches a round; verl
            makes it always).
        shared: prefix trees in training.
        silent: share of the groups that are left out of the update, since all their advantages are 0
            (local, without KL and entropy terms).
        sft_samples, sft_steps: samples seen by SFT, epochs counted, and its optimiser steps.
        own_prompt_tokens: tokens of a prompt that the one before it in its conversation does not have.
        run_length: neighbours that SFT packs into one tree.
        eval_prompts: held-out prompts of one evaluation, one completion each.
        checkpointing: activations are computed twice.
    """

    prompts: int
    group: int
    prompt_tokens: float
    completion_tokens: float
    rounds: int = 1
    steps: int = 1
    reference: bool = False
    old: bool = False
    shared: bool = True
    silent: float = 0.0
    sft_samples: int = 0
    sft_steps: int = 0
    own_prompt_tokens: float = 0.0
    run_length: int = 1
    eval_prompts: int = 0
    checkpointing: bool = False

    @property
    def completions(self) -> int:
        return self.prompts * self.group

    @property
    def generated(self) -> float:
        """Sampled tokens: n G R."""
        return self.completions * self.completion_tokens

    @property
    def prefilled(self) -> float:
        """Prompt tokens computed for sampling: n P, since both engines share the prompt there."""
        return self.prompts * self.prompt_tokens

    @property
    def packed(self) -> float:
        """Tokens of one pass over all groups: n (P + G R) with sharing, n G (P + R) without."""
        p, r, g = self.prompt_tokens, self.completion_tokens, self.group
        return self.prompts * ((p + g * r) if self.shared else g * (p + r))

    @property
    def scores(self) -> float:
        """Query-key pairs of that pass by head and layer: n (P^2/2 + G (R P + R^2/2)), or
        n G (P + R)^2 / 2."""
        p, r, g = self.prompt_tokens, self.completion_tokens, self.group
        one = p * p / 2 + g * (r * p + r * r / 2) if self.shared else g * (p + r) ** 2 / 2
        return self.prompts * one

    @property
    def sft_tokens(self) -> float:
        """Tokens of SFT: of each run the first prompt whole, of the others what is their own."""
        p = self.prompt_tokens
        own = self.own_prompt_tokens or p
        runs = self.sft_samples / self.run_length if self.shared else self.sft_samples
        return self.sft_samples * (own + self.completion_tokens) + runs * (p - own)


def workload(
    config: Config,
    prompt_tokens: float,
    completion_tokens: float,
    *,
    engine: EngineName = "local",
    sft_samples: int = 0,
    own_prompt_tokens: float = 0.0,
    eval_prompts: int = 0,
) -> Workload:
    """What the settings ask for in one iteration.

    Args:
        prompt_tokens, completion_tokens: means, of data that were measured or guessed.
        sft_samples: samples of one epoch of the refit; 0 takes one for every second prompt.
    """
    grpo, fly = config.grpo, config.flywheel
    per_round = min(grpo.prompts_per_step, fly.prompts)
    rounds = -(-fly.prompts // per_round)
    per = -(-per_round // min(grpo.mini_batch, per_round))
    samples = (sft_samples or fly.prompts // 2) if fly.refit != "none" else 0
    return Workload(
        prompts=fly.prompts,
        group=config.sampling.group_size,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        rounds=rounds,
        steps=rounds * per,
        reference=grpo.kl_coef > 0,
        old=engine == "verl" or per > 1,
        shared=engine == "local",
        sft_samples=samples * fly.refit_epochs,
        sft_steps=-(-samples // config.sft.batch_size) * fly.refit_epochs,
        own_prompt_tokens=own_prompt_tokens,
        run_length=config.sft.run_length,
        eval_prompts=eval_prompts,
        checkpointing=engine == "verl" or config.model.gradient_checkpointing,
    )


def forward_flops(shape: ModelShape, tokens: float, predicted: float, scores: float) -> float:
    """2 per weight and token, 2 per weight of the head and predicted token, 4 a L per score (2 for the
    product with the key, 2 for the weighted sum of values)."""
    return (
        2 * shape.body * tokens
        + 2 * shape.head * predicted
        + 4 * shape.attention * shape.layers * scores
    )


@dataclass(frozen=True)
class Stage:
    """One part of an iteration.

    Attributes:
        tokens: that pass through the model.
        flops, bytes: work, and memory that is read or written, each over all devices.
        compute, reading: seconds by either; the longer one bounds the stage.
    """

    name: str
    tokens: float
    flops: float
    bytes: float
    compute: float
    reading: float
    both: bool = False

    @property
    def seconds(self) -> float:
        """The longer of the two, or their sum where one follows the other (an update, then AdamW)."""
        return self.compute + self.reading if self.both else max(self.compute, self.reading)

    @property
    def bound(self) -> str:
        return "compute" if self.compute >= self.reading else "bandwidth"


@dataclass(frozen=True)
class Decoding:
    """How many completions are decoded together, and what a step reads.

    Attributes:
        rows: completions under way, over all devices.
        weight_bytes: of one weight as it is read.
        replicas: copies of the model that decode side by side.
        kv: cached bytes of a token.
        masked: the completions of a group stand in one row and compute each other's masked scores too
            (local engine).
        prefix_once: the keys of the prompt are read once a group (local engine), not for each completion.
    """

    rows: float
    weight_bytes: int
    replicas: int
    kv: int
    masked: bool
    prefix_once: bool


def decoding(
    shape: ModelShape, config: Config, work: Workload, machine: Machine, engine: EngineName,
    tensor_parallel: int = 1, vllm_share: float = 0.5,
) -> Decoding:  # fmt: skip
    """What the engine decodes together.

    local: as many groups as fit `sampling.token_budget` with room for max_new_tokens. verl: what fits the
    cache of vLLM, its share of the memory without the weights (at most 1,024 sequences a replica, its
    default).
    """
    if engine == "local":
        room = work.prompt_tokens + work.group * config.sampling.max_new_tokens
        groups = max(1.0, config.sampling.token_budget // room)
        groups = min(groups, work.prompts / work.rounds)
        half = precision(config, machine) == "bf16"
        kv, weight = shape.kv_bytes(4, 2 if half else 4), 2 if half else 4
        return Decoding(groups * work.group, weight, 1, kv, True, True)
    replicas = max(1, machine.count // tensor_parallel)
    kv = shape.kv_bytes()
    free = vllm_share * machine.memory * tensor_parallel - 2 * shape.parameters
    each = max(1.0, min(1024.0, free / (kv * (work.prompt_tokens + work.completion_tokens))))
    rows = min(each * replicas, work.completions / work.rounds)
    return Decoding(rows, 2, replicas, kv, False, False)


def stages(shape: ModelShape, work: Workload, machine: Machine, how: Decoding) -> list[Stage]:
    """The parts of one iteration in order."""
    n, g, p, r = work.prompts, work.group, work.prompt_tokens, work.completion_tokens
    peak, band = machine.flops * machine.count, machine.bandwidth * machine.count

    def prefill(prompts: float) -> Stage:
        flops = forward_flops(shape, prompts * p, prompts, prompts * p * p / 2)
        return Stage("prefill", prompts * p, flops, 0.0, flops / (peak * machine.prefill), 0.0)

    def decode(name: str, prompts: float, group: int) -> Stage:
        tokens = prompts * group * r
        others = group if how.masked else 1
        scores = prompts * group * (r * p + others * r * r / 2)
        flops = forward_flops(shape, tokens, tokens, scores)
        steps = tokens / min(how.rows, prompts * group)
        weights = steps * how.replicas * how.weight_bytes * (shape.body + shape.head)
        keys = prompts * r * (p * (1 if how.prefix_once else group) + group * r / 2)
        total = weights + keys * how.kv
        compute, reading = flops / (peak * machine.prefill), total / (band * machine.reading)
        return Stage(name, tokens, flops, total, compute, reading, machine.packs)

    forward = forward_flops(shape, work.packed, work.generated, work.scores)
    scoring = forward / (peak * machine.training)
    result = [prefill(n), decode("decode", n, g)]
    if work.old:
        result.append(Stage("old log-probabilities", work.packed, forward, 0.0, scoring, 0.0))
    if work.reference:
        result.append(Stage("reference", work.packed, forward, 0.0, scoring, 0.0))
    times = 4 if work.checkpointing else 3
    active = 1 - work.silent

    def train(name: str, tokens: float, flops: float, steps: int) -> Stage:
        # AdamW reads 16 and writes 12 bytes a parameter; norm and clipping read and write the gradient.
        moved = 36.0 * shape.parameters * steps
        compute, reading = flops / (peak * machine.training), moved / (band * machine.streaming)
        return Stage(name, tokens, flops, moved, compute, reading, True)

    result.append(train("update", work.packed * active, times * forward * active, work.steps))
    if work.sft_samples:
        tokens, said = work.sft_tokens, work.sft_samples * r
        scores = work.sft_samples * ((p + r) ** 2 / 2)
        if work.shared:
            own = work.own_prompt_tokens or p
            scores = work.sft_samples * ((own + r) * (p + r) - (own + r) ** 2 / 2)
        flops = times * forward_flops(shape, tokens, said, scores)
        result.append(train("refit", tokens, flops, work.sft_steps))
    if work.eval_prompts:
        first, then = prefill(work.eval_prompts), decode("evaluation", work.eval_prompts, 1)
        result.append(
            replace(
                then,
                tokens=first.tokens + then.tokens,
                flops=first.flops + then.flops,
                compute=first.compute + then.compute,
                reading=first.compute + then.reading,
            )
        )
    return result


# -- memory ---------------------------------------------------------------------------------------------


def activation_bytes(shape: ModelShape, dtype: Dtype, checkpointing: bool = False) -> float:
    """Bytes kept for the backward pass by token.

    By layer in bf16 under autocast: the residual stream before both norms and what they give stay float32
    and the casts are kept too (2 x 4 d + 2 x 4 d + 2 x 2 d); queries, repeated keys and values and the output
    of attention (4 x 2 a); four of the MLP's width (4 x 2 f). In fp32 nothing is cast: 4 x 4 d + 4 x 4 a
    + 4 x 4 f. With checkpointing the input of each layer (4 d), and one layer whole.
    """
    d, a, f = shape.hidden, shape.attention, shape.mlp
    layer = 20 * d + 8 * a + 8 * f if dtype == "bf16" else 16 * d + 16 * a + 16 * f
    return 4 * d * shape.layers + layer if checkpointing else layer * shape.layers


def logit_bytes(shape: ModelShape, dtype: Dtype) -> float:
    """Bytes at the peak by predicted token: float32 logits, their division by the temperature, the gradient
    of each, and in bf16 the product and its gradient: 16 v or 20 v."""
    return shape.vocabulary * (20.0 if dtype == "bf16" else 16.0)


def lora_parameters(shape: ModelShape, rank: int) -> int:
    """Parameters of adapters on all linear layers: rank (in + out) each."""
    d, a, k, f = shape.hidden, shape.attention, shape.kv, shape.mlp
    return shape.layers * rank * ((d + a) * 2 + (d + k) * 2 + (d + f) * 3)


@dataclass(frozen=True)
class Memory:
    """Bytes of one device (local: of the process) by what they hold; the larger of two phases counts."""

    weights: float
    gradients: float
    optimiser: float
    reference: float
    casts: float
    activations: float
    logits: float
    cache: float
    runtime: float
    host: float = 0.0

    @property
    def training(self) -> float:
        return (
            self.weights + self.gradients + self.optimiser + self.reference + self.casts
            + self.activations + self.logits + self.runtime
        )  # fmt: skip

    @property
    def sampling(self) -> float:
        return (
            self.weights + self.optimiser + self.reference + self.casts + self.cache + self.runtime
        )

    @property
    def peak(self) -> float:
        return max(self.training, self.sampling)


def memory(
    shape: ModelShape, config: Config, work: Workload, machine: Machine, engine: EngineName,
    micro_batch: int = 16, vllm_share: float = 0.5,
) -> Memory:  # fmt: skip
    """Peak memory by device.

    local: 4 bytes a parameter for weights, as many for gradients, 8 for Adam's two moments, 4 for the frozen
    reference (full training with a KL term), 2 for bf16 casts; activations of `micro_tokens` packed tokens
    (or one group, if that is longer), and the keys and values of the prompt that each completion but the
    first gathers (attention.py): (G - 1) P x 2 a a layer; logits of the completions among them; the cache of
    `token_budget` tokens. The runtime is what Python, torch and transformers hold besides.
    verl: 16 bytes a parameter over all GPUs, two layers and the embedding gathered in bf16; activations and
    logits (bf16, then float32) of `micro_batch` sequences; while sampling `vllm_share` of the memory is
    vLLM's.

    Args:
        micro_batch: sequences of one backward pass on a GPU (verl).
    """
    n = shape.parameters
    sequence = work.prompt_tokens + work.completion_tokens
    if engine == "verl":
        gathered = 2.0 * (2 * shape.layer_weights + shape.head)
        tokens = micro_batch * sequence
        each = n / machine.count
        return Memory(
            4 * each, 4 * each, 8 * each, 0.0, gathered,
            tokens * activation_bytes(shape, "bf16", True),
            tokens * shape.vocabulary * 6.0,
            vllm_share * machine.memory, 1.5 * GIB,
            host=4.0 * n,
        )  # fmt: skip
    dtype = precision(config, machine)
    group = work.prompt_tokens + work.group * work.completion_tokens
    tokens = max(group, min(config.grpo.micro_tokens, group * work.prompts))
    share = work.group * work.completion_tokens / group
    lora = config.model.lora
    trained = n if lora is None else lora_parameters(shape, lora.rank)
    kv = shape.kv_bytes(4, 2 if dtype == "bf16" else 4)
    kept = 1 if config.model.gradient_checkpointing else shape.layers
    gathered = kept * 2 * shape.attention * (2 if dtype == "bf16" else 4)
    return Memory(
        4.0 * n + (4.0 * trained if lora else 0.0),
        4.0 * trained,
        8.0 * trained,
        4.0 * n if work.reference and lora is None else 0.0,
        2.0 * (shape.body + shape.head) if dtype == "bf16" else 0.0,
        tokens * activation_bytes(shape, dtype, config.model.gradient_checkpointing)
        + tokens / group * (work.group - 1) * work.prompt_tokens * gathered,
        tokens * share * logit_bytes(shape, dtype),
        float(config.sampling.token_budget * kv),
        0.45 * GIB,
    )  # fmt: skip


# -- disk -----------------------------------------------------------------------------------------------

CHARACTERS = 3.0
"""Characters of a token: 2.9 to 3.4 in prompts and 2.8 to 3.1 in completions of MELD, EmoryNLP and the sample
set with the built-in tokenizer of 49,152 tokens; larger vocabularies need fewer tokens."""


def store_bytes(prompt_tokens: float, completion_tokens: float, group: int) -> float:
    """Bytes of the SQLite store by rollout, its share of the prompt's row and of the indices included.

    A rollout: 220 of numbers, keys and index entries, its text, and the reply once more (about 0.6 of it). A
    prompt: 420, and the history as JSON (about 1.3 of the characters).
    """
    rollout = 220 + 1.6 * CHARACTERS * completion_tokens
    prompt = 420 + 1.3 * CHARACTERS * prompt_tokens
    return rollout + prompt / group


PARQUET_SHARE = 0.2
"""Bytes of shards (zstd) against those of the store: 0.18 in benchmarks/shards.json."""


def disk_bytes(shape: ModelShape, config: Config, work: Workload) -> dict[str, float]:
    """What a run folder grows to: checkpoints in float32, the states of a stage in hand, the store twice
    (with its backup), over all iterations.

    A checkpoint of the cold start, and of each iteration one or, with save.keep_stage_checkpoints, two.
    """
    iterations = config.flywheel.iterations
    saved = 1 + iterations * (2 if config.save.keep_stage_checkpoints else 1)
    lora = config.model.lora
    trained = shape.parameters if lora is None else lora_parameters(shape, lora.rank)
    rollouts = work.completions * iterations
    store = rollouts * store_bytes(work.prompt_tokens, work.completion_tokens, work.group)
    return {
        "checkpoints": 4.0 * shape.parameters * saved,
        "states": 12.0 * trained * (config.save.keep_states + 1),
        "store": 2 * store,
    }
