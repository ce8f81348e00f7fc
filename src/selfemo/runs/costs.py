"""Memory, tokens and hours of one iteration, from a model's sizes, the settings and mean lengths.

docs/scaling.md gives the formulas and measured points; "measured" means by benchmarks/costs.py. Letters: N
parameters, L layers, d hidden size, a = heads x head size, k = key heads x head size, f size of the MLP,
v vocabulary, P prompt tokens, R completion tokens (means), G completions of a prompt, n prompts; E tokens of
an E line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from selfemo.config import Config
from selfemo.errors import EngineError
from selfemo.method.types import BUILTIN_MODEL

EngineName = Literal["local", "verl"]
GIB = 2**30
RUNTIME = {"local": 0.45 * GIB, "verl": 1.5 * GIB}
"""Bytes that Python and its libraries hold besides the model. Measured (local), assumed (verl)."""
LABELS = 7
"""Emotions of a label set: MELD's and EmoryNLP's."""
VLLM_SEQUENCES = 1024
"""Sequences that one replica of vLLM decodes at once. Assumed: its default."""
CONTRASTED = 3.0
"""Other S behind which a reply is trained on with reward.contrast, of six: most of what a listener says is
small, and seldom kept (training/expression.ROUGH)."""


class ModelShape(NamedTuple):
    """The sizes of a decoder of the Llama kind."""

    layers: int
    hidden: int
    attention: int
    kv: int
    mlp: int
    vocabulary: int
    tied: bool = True

    @property
    def body(self) -> int:
        """Weights of all layers that are multiplied with a token."""
        return self.layers * self.hidden * (2 * self.attention + 2 * self.kv + 3 * self.mlp)

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """N, but for the few in biases and in norms of queries and keys."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.body + norms + self.head * (1 if self.tied else 2)


KNOWN = {
    BUILTIN_MODEL: ModelShape(30, 576, 576, 192, 1536, 49152),
    "Qwen/Qwen3-4B": ModelShape(36, 2560, 4096, 1024, 9728, 151936),
    "Qwen/Qwen3-8B": ModelShape(36, 4096, 4096, 1024, 12288, 151936, tied=False),
}
"""Models that may not be on the disk, from their public configurations."""


def shape_from(config: Mapping[str, Any]) -> ModelShape:
    """The shape in a `config.json` of transformers (KeyError: a size is missing)."""
    d, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or d // heads
    kv, tied = config.get("num_key_value_heads") or heads, bool(config.get("tie_word_embeddings"))
    layers, mlp, v = (config[k] for k in ("num_hidden_layers", "intermediate_size", "vocab_size"))
    return ModelShape(layers, d, size * heads, size * kv, mlp, v, tied)


def find_shape(model_id: str) -> ModelShape:
    """The shape of a known model id, or of a model folder's config.json (EngineError: neither)."""
    if model_id in KNOWN:
        return KNOWN[model_id]
    path = Path(model_id) / "config.json"
    try:
        return shape_from(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as e:
        why = f"its sizes are not known ({path}: {type(e).__name__}: {e}); give the model as a folder"
        raise EngineError(f"{model_id}: {why}; known are {', '.join(KNOWN)}") from None


@dataclass(frozen=True)
class Machine:
    """`count` devices, each with FLOP/s, bytes/s and bytes (0: not known), and the shares of these rates that
    training, forward passes and the reads of decoding reach: assumed."""

    name: str
    flops: float
    bandwidth: float
    memory: float = 0.0
    count: int = 1
    training: float = 0.35
    forward: float = 0.5
    reading: float = 0.6


MACHINES = {
    "h100": Machine("h100", 989e12, 3.35e12, 80e9),
    "h200": Machine("h200", 989e12, 4.8e12, 141e9),
    "a100": Machine("a100", 312e12, 2.04e12, 80e9),
    "l40s": Machine("l40s", 362e12, 0.864e12, 48e9),
    "rtx4090": Machine("rtx4090", 165e12, 1.01e12, 24e9),
    "cpu-core": Machine("cpu-core", 40e9, 2.0e9, 0.0, 1, 1.0, 1.0, 1.0),
}
"""GPUs: the makers' dense bf16 peaks, assumed. cpu-core: measured, an update in fp32 and a product of the
language-model head with four rows."""


class Lengths(NamedTuple):
    """P, R, tokens of a prompt that differ from the one before; samples of the refit, held-out prompts; E,
    the refit's samples of E alone besides, prompts of a conversation (0: not known); samples of the cold
    start, whole and of E alone."""

    prompt: float
    completion: float
    own: float = 0.0
    refit: int = 0
    held_out: int = 0
    emotion: float = 0.0
    labels: int = 0
    turns: float = 0.0
    cold: int = 0
    cold_labels: int = 0


class Rl(NamedTuple):
    """What a prompt of RL costs on average.

    Attributes:
        prompt: tokens of it in a prefix tree of its window.
        sequences: those that are trained on, the gold line among them.
        tokens: of each of them.
        rest: tokens behind the E line of the best, where they are sampled by themselves.
        replies: such parts that R3 compares and trains on, of `rest` tokens each.
        again: those that are trained on behind another S (reward.contrast).
    """

    prompt: float
    sequences: float
    tokens: float
    rest: float
    replies: int = 0
    again: float = 0.0

    @property
    def trained(self) -> float:
        """Tokens of a prompt's completions that are trained on."""
        return self.sequences * self.tokens + (self.replies + self.again) * self.rest

    @property
    def packed(self) -> float:
        return self.prompt + self.trained


def rl_costs(config: Config, lengths: Lengths) -> Rl:
    """Tokens of a prompt of RL with the local engine: windows, two-stage rollouts, the anchor on gold."""
    grpo, fly, p, r = config.grpo, config.flywheel, lengths.prompt, lengths.completion
    original = 1 - (config.selfplay.synthetic_share if config.selfplay.max_turns > 1 else 0.0)
    # A conversation is cut into as few windows as hold it.
    window = lengths.turns / -(-lengths.turns // fly.window) if lengths.turns else float(fly.window)
    shared = original * (1 - 1 / max(1.0, window)) * (p - (lengths.own or p))
    if grpo.credit == "completion":
        return Rl(p - shared, config.sampling.group_size, r, 0.0)
    sequences = config.sampling.group_size * (grpo.reward_weight > 0) + original * (grpo.gold_weight > 0)
    e = lengths.emotion or r
    replies = (config.reward.replies or config.sampling.group_size) if config.expresses else 0
    again = CONTRASTED * replies if config.reward.contrast else 0.0
    return Rl(p - shared, sequences, e, max(0.0, r - e) if config.replies else 0.0, replies, again)


class Part(NamedTuple):
    """One part of an iteration, with the tokens that pass through the model."""

    name: str
    tokens: float
    hours: float


def uses_bf16(config: Config, machine: Machine, engine: EngineName) -> bool:
    """Whether forward passes are in bf16: "auto" counts as fp32 on CPUs, which it is without AMX."""
    auto = config.model.dtype == "auto" and not machine.name.startswith("cpu")
    return engine == "verl" or auto or config.model.dtype == "bf16"


def forward_flops(shape: ModelShape, tokens: float, predicted: float, pairs: float) -> float:
    """Operations of a forward pass: of the tokens, of those whose logits are made, of pairs in attention."""
    weights = 2 * shape.body * tokens + 2 * shape.head * predicted
    return weights + 4 * shape.attention * shape.layers * pairs


def reading(shape: ModelShape, config: Config, lengths: Lengths) -> tuple[float, float]:
    """Tokens and operations of the teacher's pass over the replies of an iteration (stages/channel.py).

    If all pass the gate before. Of each the prompt, with the next one behind it, for E; then the prompt with
    one branch for each of LABELS, which has the tokens behind the E line.
    """
    rl, p, n = rl_costs(config, lengths), lengths.prompt, config.flywheel.prompts
    f, own, r = rl.prompt, lengths.own or p, LABELS * max(0.0, lengths.completion - lengths.emotion)
    tokens = n * (2 * f + own + r)
    pairs = n * (2 * f * (p - f / 2) + own * (p + own / 2) + r * (p + r / LABELS / 2))
    return tokens, forward_flops(shape, tokens, n * (2 + r), pairs)


def listening(shape: ModelShape, config: Config, lengths: Lengths) -> tuple[float, float]:
    """Tokens and operations of a listener that is a model of this shape (models/reply_readers.py).

    The prompt for what it expects, and for each reply the next prompt with it.
    """
    rl, p, n = rl_costs(config, lengths), lengths.prompt, config.flywheel.prompts
    own = rl.replies * ((lengths.own or p) + rl.rest)
    tokens = n * (2 * rl.prompt + own)
    pairs = n * (2 * rl.prompt * (p - rl.prompt / 2) + own * p)
    return tokens, forward_flops(shape, tokens, n * 2 * (1 + rl.replies), pairs)


@dataclass(frozen=True)
class _Work:
    """Hours of pieces of work with one model on one machine."""

    shape: ModelShape
    config: Config
    lengths: Lengths
    machine: Machine
    engine: EngineName

    @property
    def local(self) -> bool:
        return self.engine == "local"

    @property
    def per_round(self) -> int:
        return min(self.config.grpo.prompts_per_step, self.config.flywheel.prompts)

    @property
    def times(self) -> int:
        """Forward passes that one with its gradients counts as."""
        return 3 if self.local and not self.config.model.gradient_checkpointing else 4

    def hours(self, flops: float, rate: float) -> float:
        """Of operations, at this share of the peak."""
        return flops / (self.machine.flops * self.machine.count * 3600 * rate)

    def sampling(self, prompts: int, group: int, own: float, p: float, r: float) -> tuple[Part, Part]:
        """Prefill `own` of the p tokens of each prompt, then decode r tokens of each completion."""
        config, shape, machine = self.config, self.shape, self.machine
        g = config.sampling.group_size
        room = config.sampling.token_budget // (self.lengths.prompt + g * config.sampling.max_new_tokens)
        replicas = 1 if self.local else max(1, machine.count // config.cluster.tensor_parallel)
        rows = g * max(1.0, room) if self.local else VLLM_SEQUENCES * replicas
        weight, key = (2 if uses_bf16(config, machine, self.engine) else 4), (4 if self.local else 2)
        band = machine.bandwidth * machine.count * 3600
        begun = forward_flops(shape, prompts * own, prompts, prompts * own * (p - own / 2))
        tokens = prompts * group * r
        computing = self.hours(forward_flops(shape, tokens, tokens, tokens * (p + r / 2)), machine.forward)
        steps = tokens / min(rows, min(prompts, self.per_round) * group) * replicas
        seen = prompts * r * (p * (1 if self.local else group) + group * r / 2)
        read = steps * weight * (shape.body + shape.head) + seen * 2 * shape.layers * shape.kv * key
        hours = max(computing, read / (band * machine.reading))
        prefill = Part("prefill", prompts * own, self.hours(begun, machine.forward))
        return prefill, Part("decode", tokens, hours)

    def supervised(self, name: str, whole: float, labels: float) -> Part:
        """Training on samples, whole ones and those of E alone; each counts once an epoch."""
        p, own = self.lengths.prompt, self.lengths.own or self.lengths.prompt
        tokens = work = 0.0
        for samples, said in ((whole, self.lengths.completion), (labels, self.lengths.emotion)):
            first, runs = (own, samples / self.config.sft.run_length) if self.local else (p, samples)
            pairs = samples * ((first + said) * (p + said) - (first + said) ** 2 / 2)
            more = samples * (first + said) + runs * (p - first)
            work += self.times * forward_flops(self.shape, more, samples * said, pairs)
            tokens += more
        return Part(name, tokens, self.hours(work, self.machine.training))

    def evaluation(self, times: int) -> Part:
        """Scoring the held-out prompts, with as many models."""
        p, r = self.lengths.prompt, self.lengths.completion
        read = list(self.sampling(self.lengths.held_out, 1, p, p, r))
        if self.config.evaluation.beliefs and self.config.prompt.reasoning == "none":
            read.append(read[0])  # the probabilities of the labels: the prompts once more
        return Part(
            "evaluation", times * sum(part.tokens for part in read), times * sum(part.hours for part in read)
        )


def parts_before(
    shape: ModelShape, config: Config, lengths: Lengths, machine: Machine, engine: EngineName
) -> list[Part]:
    """What a run does before its iterations: the cold start, and scores of two models."""
    work, epochs = _Work(shape, config, lengths, machine, engine), config.sft.epochs
    fit = work.supervised("cold start", lengths.cold * epochs, lengths.cold_labels * epochs)
    return [fit, *([work.evaluation(2)] if lengths.held_out else [])]


def parts(
    shape: ModelShape, config: Config, lengths: Lengths, machine: Machine, engine: EngineName
) -> list[Part]:
    """The parts of one iteration in order."""
    work = _Work(shape, config, lengths, machine, engine)
    local, p, r = work.local, lengths.prompt, lengths.completion
    n, g, grpo, fly = config.flywheel.prompts, config.sampling.group_size, config.grpo, config.flywheel
    rl = rl_costs(config, lengths) if local else Rl(p, g, r, 0.0)
    prefill, decode = work.sampling(n, g, rl.prompt, p, rl.tokens)
    if rl.rest:  # the prompt and the best E line are prefilled once more
        begun, whole = work.sampling(n, max(1, rl.replies), rl.prompt + rl.tokens, p + rl.tokens, rl.rest)
        prefill = Part("prefill", prefill.tokens + begun.tokens, prefill.hours + begun.hours)
        decode = Part("decode", decode.tokens + whole.tokens, decode.hours + whole.hours)
    f, q = rl.prompt, rl.sequences
    packed = n * (rl.packed if local else g * (p + r))
    own = q * (rl.tokens * p + rl.tokens**2 / 2)
    own += (rl.replies + rl.again) * (rl.rest * p + rl.rest**2 / 2)
    pairs = n * (f * (p - f / 2) + own if local else g * (p + r) ** 2 / 2)
    scoring = work.hours(forward_flops(shape, packed, n * rl.trained, pairs), machine.training)
    # Log-probabilities of the policy before several steps of one round (verl: always), and of the reference.
    passes = (not local or work.per_round > grpo.mini_batch) + (grpo.kl_coef > 0)
    result = [prefill, decode]
    if local and config.reads_replies:
        tokens, operations = reading(shape, config, lengths)
        result.append(Part("teacher", tokens, work.hours(operations, machine.forward)))
    if local and config.reward.heard_by_reference:
        tokens, operations = listening(shape, config, lengths)
        result.append(Part("listener", tokens, work.hours(operations, machine.forward)))
    result += [Part("log-probabilities", passes * packed, passes * scoring)]
    result.append(Part("update", packed, work.times * scoring))
    if fly.refit != "none" and lengths.refit:
        epochs = fly.refit_epochs
        result.append(work.supervised("refit", lengths.refit * epochs, lengths.labels * epochs))
    if lengths.held_out:
        result.append(work.evaluation(1 + (fly.refit != "none")))  # the policy after RL, and the refit
    return result


def memory(
    shape: ModelShape, config: Config, lengths: Lengths, machine: Machine, engine: EngineName
) -> dict[str, dict[str, float]]:
    """Bytes of one device (local: of the process) in the phases "training" and "sampling", by use."""
    n, d, a, f = shape.parameters, shape.hidden, shape.attention, shape.mlp
    p, r, lora = lengths.prompt, lengths.completion, config.model.lora
    local, bf16 = engine == "local", uses_bf16(config, machine, engine)
    layer = 20 * d + 8 * a + 8 * f if bf16 else 16 * (d + a + f)
    again = not local or config.model.gradient_checkpointing
    activations = 4 * d * shape.layers + layer if again else layer * shape.layers
    linear = 2 * (d + a) + 2 * (d + shape.kv) + 3 * (d + f)
    adapters = 0.0 if lora is None else float(shape.layers * lora.rank * linear)
    trained, held = adapters or float(n), n + adapters
    if local:
        rl = rl_costs(config, lengths)._replace(prompt=p)  # the first of a window has none to share with
        group = rl.packed
        tokens = max(group, min(config.grpo.micro_tokens, group * config.flywheel.prompts))
        logits = tokens * rl.trained / group * (20 if bf16 else 16)
        # From when each completion but the first kept the prompt's keys and values anew: an upper bound.
        gathered = (
            max(0.0, rl.sequences + rl.replies + rl.again - 1)
            * p
            / group
            * (1 if again else shape.layers)
            * 2
            * a
            * (2 if bf16 else 4)
        )
        casts = float(bf16 * (shape.body + shape.head))
        # On most CPUs sampling is in fp32 whatever the precision.
        key = shape.layers * shape.kv * (6 if bf16 and not machine.name.startswith("cpu") else 8)
        cache = float(config.sampling.token_budget * key)
    else:
        trained, held = trained / machine.count, held / machine.count
        tokens = config.cluster.micro_batch_per_gpu * (p + r)
        logits, gathered = tokens * 6, 0.0
        casts = 2 * shape.body / shape.layers + shape.head
        cache = config.cluster.gpu_memory_utilization * machine.memory
    listens = config.reward.heard_by_reference
    asked = config.reads_replies or listens or config.grpo.self_anchor > 0
    reference = local and lora is None and (config.grpo.kl_coef > 0 or asked)
    both = {"weights": 4.0 * held, "optimiser": 8.0 * trained, "reference": 4.0 * n * reference,
            "casts": 2.0 * casts, "runtime": RUNTIME[engine]}  # fmt: skip
    training = {"gradients": 4.0 * trained, "activations": tokens * (activations + gathered),
                "logits": logits * shape.vocabulary}  # fmt: skip
    if local and config.sampling.backend == "vllm":  # its copy, which a GPU has back while the policy trains
        both["vllm"] = (2.0 if bf16 else 4.0) * n
    return {"training": {**both, **training}, "sampling": {**both, "cache": cache}}
