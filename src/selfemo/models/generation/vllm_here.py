"""vLLM in this process: one engine, whose weights may be replaced by those of a policy that trains here.

It runs in the calling thread (no engine process), so that weights are handed over as tensors and constraints
(requests.py) as objects. On a CPU vLLM packs weights when it loads them, and new ones would not be seen:
`plain_linears` keeps them as they are.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from selfemo.config import ModelConfig
from selfemo.errors import EngineError, MissingExtraError, NotFiniteError
from selfemo.extras import install_command, version_of
from selfemo.models.generation.branches import branch_logp
from selfemo.models.generation.local import OnToken
from selfemo.models.generation.vllm import Draw, TokenRequest, Tokens, VllmSampler
from selfemo.models.loading import load_policy, pick_device, pick_dtype
from selfemo.models.memory import return_memory
from selfemo.models.policy import Encoder, Policy, head_size
from selfemo.models.references import ModelReference, without_bars
from selfemo.models.sampler import CHUNK
from selfemo.models.tokenizers import load_tokenizer, spare_rows
from selfemo.progress import NOTES

LEAST_VERSION = (0, 24)
"""The oldest vLLM whose interface this fits, by its source; it was run with 0.27 and 0.32."""
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights and constraints are objects of this process
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the second one takes no processors of logits such as ours
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # torch's own threads, which the trainer has too
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_NEEDED = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER")
_CPU_CACHE = 1 << 30
"""Bytes of keys and values on a CPU, where no setting says how many tokens they must hold."""
_CPU_CONTEXT = 8192
_BLOCK = 32
"""Tokens of a block of keys and values on a CPU. Copies of a prompt share whole blocks alone, and vLLM's own
choice, 128, is a third of a prompt."""
_LARGEST_BLOCK = 128
_SPARE_SHARE = 0.02
"""Share of a GPU that is left alone of what is free."""
_READ = {"max_tokens": 1, "temperature": 0}
"""vLLM settings of a request that reads and draws nothing."""
_ASKED = "Ann: You will not believe it, we won!\nBo: And nobody told me?"
_SAID = "E: surprise\nS: joy\nR: I wanted to see your face when you hear it."
TOLERANCE = {"fp32": 5e-4, "fp32 on a GPU": 0.02, "bf16": 0.15}
"""Most that log p of `_SAID` may differ in the mean, nats. fp32 was seen to differ by 5e-6 in the mean, bf16
by 0.05. One matrix of SmolLM2-135M that stayed as it was, where all others were halved: by 1.7e-3 (a middle
layer's queries) to 1.9 (the embedding, its head); 23 of the 47 that were tried are above bf16's tolerance.
What kernels of a GPU that compute in TF32 make of fp32 was not measured."""


def plain_linears() -> None:
    """Let vLLM on a CPU compute with the weights as they are; call it before an engine is made.

    vLLM packs the weights of linear layers, and of the head, into a form of its own kernels. After new ones
    were loaded it would go on with the packed old ones, and say nothing.
    """
    from vllm.model_executor.layers import utils

    def dispatch(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = dispatch


def prepare(device: str) -> None:
    """Set what vLLM must find when it is imported into a process whose policy trains on `device`."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if device == "cpu":
        plain_linears()


def check_version() -> None:
    """Whether vLLM is installed, and not too old (MissingExtraError, EngineError)."""
    found = version_of("vllm")
    if not found:
        where = "" if torch.cuda.is_available() else " (on a GPU; on a CPU see docs/vllm.md)"
        raise MissingExtraError("vllm (for sampling by vLLM)", install_command("vllm") + where)
    numbers = tuple(int(n) for n in found.split("+")[0].split(".")[:2] if n.isdigit())
    if numbers < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise EngineError(f"vllm {found} is installed, and {least} is the oldest that works here; upgrade it")


class Here:
    """A `TokenEngine` in this process.

    Args:
        model: folder or hub id of the weights.
        device, dtype: where and in which precision ("fp32", "bf16") it computes.
        reader: the model's tokenizer.
        context: most tokens of a prompt and its completion; None takes the model's, on a CPU at most 8,192.
        cache_tokens: whose keys and values are kept; None takes vLLM's own share of a GPU, a GiB on a CPU.
        shared: a policy trains on the same device: memory is given back while vLLM sleeps.

    Raises:
        MissingExtraError: vLLM is not installed.
        EngineError: it is too old, or cannot run the model.
    """

    def __init__(
        self,
        model: str,
        device: torch.device,
        dtype: str,
        reader: Encoder,
        *,
        context: int | None = None,
        cache_tokens: int | None = None,
        shared: bool = False,
    ):
        check_version()
        for name in _NEEDED:
            if os.environ.get(name, _SETTINGS[name]) != _SETTINGS[name]:
                raise EngineError(f"{name} is set; vLLM in this process needs {_SETTINGS[name]}: unset it")
        if device.index:
            raise EngineError(
                f"vLLM in this process takes the first GPU; set CUDA_VISIBLE_DEVICES={device.index}"
            )
        self.device, self.dtype, self.model = device, dtype, model
        self._sleeps = shared and device.type == "cuda"
        self._asleep = False
        self._ids = itertools.count()
        self._spare = spare_rows(reader.tokenizer, reader.vocabulary)
        whole = reader.context or _CPU_CONTEXT
        if context is not None and context > whole:
            context = whole
        limit = context or (whole if device.type == "cuda" else min(whole, _CPU_CONTEXT))
        self._context = limit
        NOTES.info("starting vLLM with %s", model)
        try:
            self._llm = self._start(limit, cache_tokens)
            self.token_logp([[1, 2]], [1])  # some models start that it has no kernel for
        except Exception as e:
            # vLLM has exceptions of its own for each setting, and those of torch.
            said = " ".join(str(e).split()) or type(e).__name__
            raise EngineError(f"vLLM cannot run {model}: {said}") from e

    def _start(self, context: int, cache_tokens: int | None) -> Any:
        without_bars()
        cpu = self.device.type == "cpu"
        prepare(self.device.type)
        import vllm
        from transformers import AutoConfig

        from selfemo.models.generation.vllm_constraints import processor

        config = AutoConfig.from_pretrained(self.model, trust_remote_code=False).get_text_config()
        layers, heads = config.num_hidden_layers, getattr(config, "num_key_value_heads", None)
        size = 4 if self.dtype == "fp32" else 2
        token = 2 * layers * (heads or config.num_attention_heads) * head_size(config) * size
        memory: dict[str, Any] = {}
        if cpu:
            # A seeded request whose prompt is read in parts ends vLLM: a CPU's generators have no offset.
            memory |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(context, _CPU_CONTEXT)}
            memory["block_size"] = _BLOCK
        if cache_tokens is not None or cpu:
            # Whole blocks, of which vLLM keeps one for itself.
            least = (-(-context // _LARGEST_BLOCK) + 1) * _LARGEST_BLOCK
            memory["kv_cache_memory_bytes"] = max(least, cache_tokens or _CPU_CACHE // token) * token
            if not cpu:
                # vLLM refuses to start where less than this share is free, and a policy may have taken some.
                free, total = torch.cuda.mem_get_info(self.device)
                memory["gpu_memory_utilization"] = max(0.01, free / total - _SPARE_SHARE)
        with _undisturbed():
            return vllm.LLM(
                self.model,
                dtype={"fp32": "float32", "bf16": "bfloat16"}[self.dtype],
                skip_tokenizer_init=True,
                generation_config="vllm",
                use_tqdm_on_load=False,
                max_model_len=context,
                enforce_eager=cpu,
                enable_prefix_caching=True,
                enable_sleep_mode=self._sleeps,
                logprobs_mode="processed_logprobs",
                logits_processors=[processor(self._spare)],
                async_scheduling=False,  # a constraint sees each token before the next is drawn
                **memory,
            )

    @property
    def context(self) -> int:
        return self._context

    @property
    def chunk(self) -> int:
        return 2048 if self.device.type == "cuda" else CHUNK

    def complete(
        self,
        requests: Sequence[TokenRequest],
        draw: Draw,
        on_done: Callable[[int], None] | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[Tokens]]:
        """See `TokenEngine.complete`; with `on_token` each request has one completion."""
        from selfemo.models.generation.vllm_constraints import holding

        found: list[dict[int, Tokens]] = [{} for _ in requests]

        def take(k: int, output: Any) -> bool:
            goes_on = True
            for c in output.outputs:
                ids = list(c.token_ids)
                if on_token:
                    goes_on = on_token(requests[k].request, requests[k].copy, ids)
                if c.finish_reason is None and goes_on:
                    continue
                found[k][c.index] = Tokens(ids, self._logprobs(requests[k], c), c.finish_reason == "stop")
                if on_done:
                    on_done(1)
            return goes_on

        with holding(r.constraint for r in requests) as keys:
            asked = [
                (
                    r.ids,
                    {
                        "n": r.n, "seed": r.seed, "max_tokens": r.limit, "temperature": draw.temperature,
                        "top_p": draw.top_p, "stop_token_ids": list(draw.stop), "ignore_eos": True,
                        "logprobs": 0, "extra_args": key,
                    },
                )
                for r, key in zip(requests, keys, strict=True)
            ]  # fmt: skip
            self._run(asked, take, stream=on_token is not None)
        return [[group[i] for i in range(r.n)] for group, r in zip(found, requests, strict=True)]

    @staticmethod
    def _logprobs(request: TokenRequest, completion: Any) -> list[float]:
        if request.constraint is not None:  # vLLM tells those of what the constraint left
            return [math.nan] * len(completion.token_ids)
        pairs = zip(completion.token_ids, completion.logprobs, strict=True)
        logp = [told[token].logprob for token, told in pairs]
        if any(map(math.isnan, logp)):
            raise NotFiniteError("vLLM's probabilities are not numbers: its weights are not")
        return logp

    def next_logp(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """See `TokenEngine.next_logp`."""
        found: list[list[float]] = [[] for _ in prompts]

        def take(k: int, output: Any) -> bool:
            told = output.outputs[0].logprobs[0]
            found[k] = [told[token].logprob for token in tokens[k]]
            return True

        asked = [
            (ids, {**_READ, "logprob_token_ids": list(wanted)})
            for ids, wanted in zip(prompts, tokens, strict=True)
        ]
        self._run(asked, take)
        return found

    def token_logp(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[float]]:
        """See `TokenEngine.token_logp`."""
        found: list[list[float]] = [[] for _ in sequences]

        def take(k: int, output: Any) -> bool:
            pairs = zip(sequences[k], output.prompt_logprobs, strict=True)
            found[k] = [told[token].logprob for token, told in list(pairs)[starts[k] :]]
            return True

        self._run([(s, {**_READ, "prompt_logprobs": 0}) for s in sequences], take)
        return found

    def _run(
        self,
        asked: Sequence[tuple[Sequence[int], dict[str, Any]]],
        take: Callable[[int, Any], bool],
        *,
        stream: bool = False,
    ) -> None:
        """Ask vLLM for some completions; what is under way when this fails or is interrupted is ended.

        Args:
            asked: prompt ids, and settings of vLLM's SamplingParams.
            take: gets (number of the request, vLLM's output), and says whether it goes on.
            stream: give each output at each step, else when it is finished.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if self._asleep:
            raise EngineError("vLLM sleeps; it is woken by new weights")
        engine = self._llm.llm_engine
        kind = RequestOutputKind.CUMULATIVE if stream else RequestOutputKind.FINAL_ONLY
        open_: dict[str, int] = {}
        try:
            for k, (ids, settings) in enumerate(asked):
                params = SamplingParams(detokenize=False, output_kind=kind, **settings)
                name = str(next(self._ids))
                open_[name] = k
                engine.add_request(name, {"prompt_token_ids": list(ids)}, params)
            while engine.has_unfinished_requests():
                for output in engine.step():
                    name = output.request_id
                    if not take(open_[name], output) and not output.finished:
                        engine.abort_request([name])
                        del open_[name]
                    elif output.finished:
                        del open_[name]
        finally:
            if open_:
                engine.abort_request(list(open_))

    def take(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Go on with other weights, named as in a checkpoint; what is cached of the old ones is forgotten."""
        if self._asleep:
            return_memory()
            torch.cuda.empty_cache()  # what the policy's update left, of which vLLM takes its own back
            self._llm.wake_up(tags=["weights"])
        self._llm.apply_model(lambda model: model.load_weights(weights))
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM did not forget what it had cached of the old weights")

    def sleep(self) -> bool:
        """Give memory to the policy that trains on the same GPU; `take` wakes it. Nothing elsewhere.

        Returns: whether it sleeps.
        """
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=2)  # the weights come anew
            self._asleep = True
        return self._asleep

    def close(self) -> None:
        """Nothing: the engine ends with the process."""

    def load(self, weights: str) -> None:
        """See `Sampler.load`.

        Raises:
            EngineError: no such model, or not one of the same architecture and size.
        """
        policy = load_policy(weights, "cpu")
        if _form(policy.source) != _form(self.model):
            raise EngineError(f"{weights}: its weights are not of the same model as {self.model}")
        self.take(policy.core.named_parameters())
        check_weights(self, policy)


def check_weights(engine: Here, policy: Policy) -> float:
    """Whether vLLM computes with the weights of a policy, by the log-probabilities of a short text.

    Returns:
        the mean of |difference of log p|, nats.

    Raises:
        EngineError: they are further apart than the precision explains; the message has both.
    """
    ids = [*policy.encode([{"role": "user", "content": _ASKED}]), *policy.plain_ids(_SAID)]
    (there,) = engine.token_logp([ids], [1])
    # vLLM counts rows of the vocabulary that no token has.
    ((here,),) = branch_logp(replace(policy, spare=None), [(0, ids[:1], [ids[1:]])], [0])
    gap = statistics.fmean(abs(a - b) for a, b in zip(here, there, strict=True))
    exact = "fp32" if engine.device.type == "cpu" else "fp32 on a GPU"
    most = TOLERANCE["bf16" if "bf16" in (engine.dtype, policy.dtype) else exact]
    if not gap <= most:
        raise EngineError(
            "vLLM does not compute with the weights that it was given: the mean log-probability of a text "
            f"is {statistics.fmean(there):.4f} there and {statistics.fmean(here):.4f} here, and its tokens "
            f"differ by {gap:.4f} nats in the mean, where rounding explains {most}; use sampling.backend = "
            f'"local", and tell which vLLM ({version_of("vllm")}) and model this was'
        )
    return gap


_FORM = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings",
)  # fmt: skip


def _form(model: str) -> list[Any]:
    """What must be equal of two models whose weights are to be exchanged."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()
    return [getattr(config, name, None) for name in _FORM]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep what vLLM changes of the process when it starts: seeds of all generators, torch's threads."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if cards:
            torch.cuda.set_rng_state_all(cards)
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def open_here(reference: str, config: ModelConfig) -> VllmSampler:
    """A model reference by vLLM in this process, on the device and in the precision of some settings.

    Raises: as `Here` and `load_tokenizer`.
    """
    check_version()
    if config.threads:
        torch.set_num_threads(config.threads)
    reader = load_tokenizer(reference)
    device = pick_device(config.device)
    weights = ModelReference.parse(reference).weights()
    return VllmSampler(reader, Here(weights, device, pick_dtype(config.dtype, device), reader))
