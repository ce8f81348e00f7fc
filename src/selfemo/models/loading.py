"""Loading of policies: device, precision, attention path, and the check that packed rows fit the model."""

from __future__ import annotations

import logging
import os
import types
from typing import Any

import torch
from torch.nn import functional

from selfemo.config import ModelConfig
from selfemo.errors import EngineError
from selfemo.models import devices, layers, memory
from selfemo.models.compiling import compile_layers
from selfemo.models.packing import pack
from selfemo.models.policy import Attention, Decoder, Policy, head_size
from selfemo.models.references import ModelReference, without_bars
from selfemo.models.tokenizers import cannot_load, load_tokenizer, spare_rows
from selfemo.progress import NOTES

_SHAPE_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}
"""Most shapes of matrices whose kernels oneDNN keeps, from its first use on. Two packs seldom have the same
shape, and kernels hold megabytes: with the default of 1,024 a run of ten minutes grows by gigabytes."""

_FLEX_HEAD = 16
"""Least head size of FlexAttention's kernels on CUDA."""


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError("device is cuda but torch sees no CUDA device; use device = 'cpu' or 'auto'")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> str:
    """The precision of forward passes: "auto" is bf16 where that is faster, else fp32.

    On a CPU it is faster with AMX, which multiplies matrices. Others compute products in fp32 whatever the
    precision (layers.py): bf16 saves memory there, and hardly time (docs/performance.md).
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if devices.cpu_flags() & {"amx_bf16", "bf16"} else "fp32"


def load_policy(
    model_id: str,
    device: str = "auto",
    dtype: str = "fp32",
    attention: Attention | None = None,
    *,
    decoder: Decoder | None = None,
    compiled: bool = False,
    fp32_head: bool = False,
) -> Policy:
    """Load a model with float32 weights (training masters) and check that packing holds for it.

    Args:
        model_id: a model reference (references.py).
        attention: None takes "tree" on a CPU, where leaving out masked blocks is fastest, and "dense" on
            other devices, where "tree" has not been measured yet.
        decoder: None takes "branches"; "slots" has not been measured yet.
        compiled, fp32_head: of `Policy`.

    Raises:
        EngineError: the reference names no model that can be loaded, or packed rows do not fit its
            architecture.
    """
    without_bars()
    for variable, most in _SHAPE_CACHES.items():
        os.environ.setdefault(variable, most)
    reference = ModelReference.parse(model_id)
    where = pick_device(device)
    source = reference.weights()
    reader = load_tokenizer(model_id)
    NOTES.info("loading the weights of %s", model_id)
    if where.type == "cpu":
        memory.keep_memory()
    model = _weights(reference, source)
    _take_ends(model, reader.end_ids)
    if (window := _window(model.config)) is not None:
        NOTES.info(
            "%s: some of its layers look back %d tokens; here they see all, so keep prompt.max_tokens and "
            "sampling.max_new_tokens together below that", model_id, window,
        )  # fmt: skip
    head = head_size(model.config)
    if attention == "flex" and where.type == "cuda" and head < _FLEX_HEAD:
        raise EngineError(
            f'{model_id}: its heads of {head} are under {_FLEX_HEAD}, the least of model.attention = "flex"; '
            'use "dense"'
        )
    model.to(where).eval()
    path = attention or ("tree" if where.type == "cpu" else "dense")
    precision = pick_dtype(dtype, where)
    spare = spare_rows(reader.tokenizer, model.get_output_embeddings().weight.shape[0])
    policy = Policy(
        model, model, reader.tokenizer, where, precision, source, path,
        decoder=decoder or "branches", fp32_head=fp32_head,
        spare=torch.tensor(spare, device=where) if spare else None,
    )  # fmt: skip
    if where.type == "cpu" and not compiled:
        policy.bf16_products = policy.dtype == "bf16" and layers.has_matrix_unit()
        layers.take_over(model, bf16=policy.bf16_products)
        memory.return_memory()
    elif policy.dtype == "bf16":
        _lean_bf16(model)
    if where.type == "cuda":
        # cuDNN's attention makes a plan for each new shape, and packs and decoding steps hardly ever have one
        # shape twice; where memory was short its execution failed instead of saying so.
        torch.backends.cuda.enable_cudnn_sdp(False)
    _check_packing(policy)
    if compiled:
        _compile(policy)
    return policy


def _weights(reference: ModelReference, source: str) -> Any:
    """The model of a folder or hub id in float32 (EngineError: not all of its weights are there, or fit)."""
    from transformers import AutoModelForCausalLM

    from selfemo.models.attention import IMPLEMENTATION

    report = logging.getLogger("transformers.modeling_utils")
    report.addFilter(_no_report)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            attn_implementation=IMPLEMENTATION,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that they can be named
            output_loading_info=True,
        )
    except Exception as e:
        # A broken file of a model raises as many types as there are readers of its files.
        raise EngineError(cannot_load(reference, e)) from e
    finally:
        report.removeFilter(_no_report)
    if other := sorted(found["mismatched_keys"]):
        name, there, wanted = other[0]
        raise EngineError(
            f"{reference.text}: {len(other)} of its weights do not have the shapes of its config.json, such "
            f"as {name}: {tuple(there)} in the file, {tuple(wanted)} by config.json; the two are of "
            "different models: fetch both again"
        )
    if missing := sorted(found["missing_keys"]):
        raise EngineError(
            f"{reference.text}: {len(missing)} of the weights that its config.json asks for are in no file, "
            f"such as {missing[0]}; they would be random. Fetch the model again, whole"
        )
    if unused := sorted(found["unexpected_keys"]):
        NOTES.info(
            "%s: %d of its weights are not used, such as %s: its config.json has no place for them",
            reference.text, len(unused), unused[0],
        )  # fmt: skip
    return model


def _window(config: Any) -> int | None:
    """How far layers of sliding attention look back, in tokens; None without any below the context."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    longest = getattr(config, "max_position_embeddings", None)
    return int(window) if window and slides and (longest is None or window < longest) else None


def _no_report(record: logging.LogRecord) -> bool:
    """Keep transformers' table of missing weights off the terminal; its content is in our message."""
    return "LOAD REPORT" not in str(record.msg)


def _take_ends(model: Any, ends: frozenset[int]) -> None:
    """Write end tokens that the model's own settings lack into them, so that its checkpoints name them."""
    settings = model.generation_config
    named = settings.eos_token_id
    known = set(named if isinstance(named, (list, tuple)) else [] if named is None else [named])
    if not ends <= known:
        settings.eos_token_id = sorted(known | ends)


def load_configured(config: ModelConfig, checkpoint: str | None = None) -> Policy:
    """`load_policy` by some settings, or of a checkpoint under them; training adds the adapters."""
    if config.threads:
        torch.set_num_threads(config.threads)
    return load_policy(
        checkpoint or config.id,
        config.device,
        config.dtype,
        None if config.attention == "auto" else config.attention,
        decoder=None if config.decoder == "auto" else config.decoder,
        compiled=config.compile,
        fp32_head=config.fp32_head,
    )


def _lean_bf16(model: Any) -> None:
    """Let norms and rotary embeddings return bf16, which autocast would otherwise cast from fp32 again.

    transformers' norms return fp32 from fp32 weights, which autocast then casts once for each projection;
    fp32 cosines make queries and keys fp32, cached ones too. What is computed inside stays fp32.
    """

    def norm(self: Any, hidden: torch.Tensor) -> Any:
        if not torch.is_autocast_enabled(hidden.device.type):
            return type(self).forward(self, hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            out = functional.rms_norm(
                hidden.float(), self.weight.shape, self.weight.float(), self.variance_epsilon
            )
        return out.bfloat16()

    def rotary(self: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = type(self).forward(self, hidden, *args, **kwargs)
        if not torch.is_autocast_enabled(hidden.device.type):
            return found
        return tuple(x.bfloat16() for x in found)

    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = types.MethodType(norm, module)
        elif name.endswith("RotaryEmbedding"):
            module.forward = types.MethodType(rotary, module)


def _compile(policy: Policy) -> None:
    """Compile the decoder layers, and try them (EngineError: torch.compile does not work here)."""
    compile_layers(policy.core)
    policy.compiled = True
    try:
        with torch.no_grad(), policy.autocast():
            policy.hidden(policy.rows([pack([[1, 2], [1, 3]])]))
    except Exception as e:
        # Each backend and compiler has exceptions of its own.
        said = (str(e).splitlines() or [""])[0]
        raise EngineError(
            f"model.compile: torch.compile does not work here ({type(e).__name__}: {said}); it takes a C++ "
            "compiler on a CPU and triton on a GPU; install them, or leave model.compile out"
        ) from e


def _check_packing(policy: Policy) -> None:
    """Refuse an architecture whose packed rows give other logits than plain ones (EngineError)."""
    v = policy.vocabulary
    sequences = [[t % v for t in tokens] for tokens in ((7, 11, 13, 17, 19), (7, 11, 13, 23))]
    tree = pack(sequences)
    try:
        with torch.no_grad():
            packed = policy.logits(policy.hidden(policy.rows([tree])))[0]
            plain = [
                policy.core(torch.tensor([s], device=policy.device)).logits[0].float() for s in sequences
            ]
    except Exception as e:  # each architecture that takes no masks or positions has an exception of its own
        raise _other_architecture(policy, f"packed rows cannot be computed ({type(e).__name__}: {e})") from e
    for logits, path in zip(plain, tree.paths, strict=True):
        if policy.spare is not None:
            logits[:, policy.spare] = packed[path][:, policy.spare]
        if not torch.allclose(packed[path], logits, atol=1e-2, rtol=1e-3):
            raise _other_architecture(policy, "packed rows and plain rows disagree")


def _other_architecture(policy: Policy, why: str) -> EngineError:
    return EngineError(
        f"{policy.source}: {why} for this architecture ({policy.core.config.model_type}); the local engine "
        "supports decoder models with full causal attention (Llama, Qwen2, Qwen3, SmolLM and the like)"
    )
