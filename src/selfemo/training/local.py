"""SFT and SELF-GRPO on one device, with shared prefixes in training (packing.py).

Departures from the paper's stack (verl), all [ours]:
- the G completions of a prompt, or the samples of one conversation, are one prefix tree, not G rows;
- where one round of sampling feeds one optimiser step, the ratio's denominator is the current forward
  pass itself (detached): the two are the same policy. With several mini-batches per round the old
  log-probabilities are computed once, before the first of them;
- trees whose advantages are all zero are left out when no KL or entropy term acts on them: their gradient
  is exactly zero. Their tokens still count in the token mean.

Shapes: n sequences, l padded completion length, u distinct predicting tokens, v vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from selfemo.config import GrpoConfig, ModelConfig, OptimConfig
from selfemo.errors import EngineError, MissingExtraError, NotFiniteError
from selfemo.files import sha256
from selfemo.method import losses
from selfemo.method.types import EmotionDistribution, LabelSet, Sample
from selfemo.models.generation.label_scores import label_probabilities
from selfemo.models.generation.local import LocalGenerator
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.loading import load_configured
from selfemo.models.memory import KeptMemory, return_memory
from selfemo.models.packing import Pack, bins, group_by_key, micro_batches, pack
from selfemo.models.policy import Policy
from selfemo.runs.store import sync, write_text
from selfemo.training.checkpoints import seal_checkpoint
from selfemo.training.guards import NOT_FINITE
from selfemo.training.protocol import RlItem, SftItem

_DIGEST = ".sha256"
_LOGITS = 1 << 28
"""Most logits at a time: 1 GiB in fp32, of which the loss takes a few times as much."""
_LENGTH_STEP = 32
"""Rows are padded to a multiple of it: kernels compiled for few shapes are used again."""


@dataclass(frozen=True)
class TokenScores:
    """Log-probability and entropy (nats) of completion tokens, (n, l), with the mask of real tokens."""

    logp: torch.Tensor
    entropy: torch.Tensor
    mask: torch.Tensor


def score_tokens(
    policy: Policy,
    packs: Sequence[Pack],
    starts: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    entropy: bool = True,
) -> TokenScores:
    """Score the tokens from `starts` on in each packed sequence, in the order of the packs' paths.

    Logits are computed once for each distinct token that predicts one, nowhere else; beyond `_LOGITS` of
    them chunk by chunk, and again in the backward pass, so that a large vocabulary does not set the size of
    micro-batches. The policy is the softmax of logits / temperature: what was sampled from. Without `entropy`
    that field is zeros.
    """
    rows = policy.rows(packs, _LENGTH_STEP)
    s = rows.input_ids.shape[1]
    predictors: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for b, (p, start) in enumerate(zip(packs, starts, strict=True)):
        for path, first in zip(p.paths, start, strict=True):
            predictors.append(path[first - 1 : -1] + b * s)
            targets.append(p.tokens[path[first:]])
    unique, inverse = np.unique(np.concatenate(predictors), return_inverse=True)
    lengths = [len(t) for t in targets]
    token = torch.from_numpy(np.concatenate(targets)).to(policy.device)
    with policy.autocast():
        hidden = policy.hidden(rows).flatten(0, 1)[torch.from_numpy(unique).to(policy.device)]
    score = functools.partial(_score, policy, temperature, entropy)
    chunk = max(1, _LOGITS // policy.core.get_input_embeddings().weight.shape[0])
    if len(unique) <= chunk:
        flat, entropies = score(hidden, torch.from_numpy(inverse).to(policy.device), token)
    else:
        parts, where = [], []
        for first in range(0, len(unique), chunk):
            inside = np.flatnonzero((inverse >= first) & (inverse < first + chunk))
            where.append(inside)
            index = torch.from_numpy(inside).to(policy.device)
            at = torch.from_numpy(inverse[inside] - first).to(policy.device)
            parts.append(
                checkpoint(
                    score, hidden[first : first + chunk], at, token[index], use_reentrant=False
                )
            )
        order = torch.from_numpy(np.argsort(np.concatenate(where))).to(policy.device)
        flat, entropies = (torch.cat(x)[order] for x in zip(*parts, strict=True))
    return TokenScores(
        _pad(flat, lengths), _pad(entropies, lengths), _length_mask(lengths, policy.device)
    )


def _score(
    policy: Policy,
    temperature: float,
    entropy: bool,
    hidden: torch.Tensor,
    at: torch.Tensor,
    token: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(t,) log-probability of each `token` and entropy, by the logits of the hidden states (u, d) `at` it."""
    with policy.autocast():
        logits = policy.logits(hidden)
    if temperature != 1:
        logits = logits / temperature
    lse = torch.logsumexp(logits, -1)
    flat = logits[at, token] - lse[at]
    with torch.no_grad():
        if not entropy:
            return flat, torch.zeros_like(flat)
        # H = lse - E[logit]: one temporary of logit size instead of three.
        expected = torch.softmax(logits, -1).mul_(logits).sum(-1)
        return flat, (lse - expected)[at]


def _pad(flat: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    parts = torch.split(flat, list(lengths))
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def _length_mask(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    columns = torch.arange(max(lengths))
    return (columns[None, :] < torch.tensor(lengths)[:, None]).to(device)


class LocalEngine:
    """The policy with what trains and samples it.

    Args:
        config: model, device, precision, adapters.
        checkpoint: weights to start from instead of `config.id`.
        temperature: of the sampling policy, which is the one that RL trains.
    """

    def __init__(
        self, config: ModelConfig, checkpoint: str | None = None, temperature: float = 1.0
    ):
        self.temperature = temperature
        self.config = config
        self.policy = load_configured(config, checkpoint)
        if config.lora is not None:
            self._add_adapters()
        if config.gradient_checkpointing:
            self.policy.core.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        self._optimizer: torch.optim.Optimizer | None = None
        self._reference: Policy | None = None
        self._memory = KeptMemory()

    def _add_adapters(self) -> None:
        lora = self.config.lora
        assert lora is not None
        try:
            import peft
        except ImportError as e:
            raise MissingExtraError("peft (for model.lora)", "pip install peft") from e
        targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
        torch.manual_seed(0)
        try:
            model = peft.get_peft_model(
                self.policy.core,
                peft.LoraConfig(
                    r=lora.rank,
                    lora_alpha=lora.alpha,
                    lora_dropout=lora.dropout,
                    target_modules=targets,
                    task_type="CAUSAL_LM",
                ),
            )
        except ValueError as e:
            raise EngineError(f"model.lora.targets: {e}") from e
        self.policy.model, self.policy.core = model, model.get_base_model()

    # -- text ---------------------------------------------------------------------------------------

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        return self.policy.encode(messages)

    def sft_item(
        self, prompt_ids: Sequence[int], completion: str, share: str, label_weight: float
    ) -> SftItem:
        """Encode a sample; tokens of its E line weigh `label_weight`, all others 1."""
        ids, offsets = self.policy.encode_completion(completion)
        start = completion.find("E:")
        end = completion.find("\n", start)
        weights = [label_weight if start <= first < end else 1.0 for first, _ in offsets]
        return SftItem(tuple(prompt_ids), tuple(ids), tuple(weights), share)

    # -- sampling ---------------------------------------------------------------------------------

    def generate(
        self,
        requests: Sequence[Request],
        settings: SamplingSettings,
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Sample]]:
        self.policy.model.eval()
        samples = LocalGenerator(self.policy, settings).generate(requests, on_done)
        return_memory()
        return samples

    def label_probabilities(
        self, places: Sequence[tuple[Hashable, Sequence[int], str]], labels: LabelSet
    ) -> list[EmotionDistribution]:
        """How probable each label is behind a prompt and what is written up to it (label_scores.py)."""
        self.policy.model.eval()
        found = label_probabilities(self.policy, places, labels)
        return_memory()
        return found

    # -- optimiser --------------------------------------------------------------------------------

    def begin_stage(self, config: OptimConfig) -> None:
        """A fresh optimiser; call at the start of each training stage."""
        self._reference = None
        self._memory = KeptMemory()
        parameters = [p for p in self.policy.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            parameters,
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def end_stage(self) -> None:
        """Free optimiser state and reference policy."""
        self._optimizer = self._reference = None
        self.policy.model.zero_grad(set_to_none=True)
        return_memory()

    def _apply(self, config: OptimConfig, lr: float, loss: float) -> dict[str, float]:
        """The optimiser step; where loss or gradient is not finite, weights and optimiser stay."""
        assert self._optimizer is not None, "begin_stage comes first"
        parameters = self._optimizer.param_groups[0]["params"]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        whole = np.isfinite(norm) and np.isfinite(loss)
        if whole:
            self._optimizer.param_groups[0]["lr"] = lr
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "lr": lr, **({} if whole else {NOT_FINITE: 1.0})}

    # -- supervised -------------------------------------------------------------------------------

    def sft_step(
        self, items: Sequence[SftItem], config: OptimConfig, lr: float
    ) -> dict[str, float]:
        """One optimiser step on the weighted token mean of -log p over all items.

        A step whose loss or gradient is not finite is left out and has the measure `not_finite` = 1.
        """
        measures = self.sft_backward(items, config.micro_tokens)
        applied = self._apply(config, lr, measures["loss"])
        self._memory.after_step()
        return {**measures, **applied}

    def sft_backward(self, items: Sequence[SftItem], micro_tokens: int) -> dict[str, float]:
        """Accumulate the gradient of the weighted token mean of -log p over all items."""
        self.policy.model.train()
        total = sum(float(np.sum(i.weights)) for i in items)
        # Sums stay on the device: reading one would wait for it at each micro-batch.
        loss_sum, tokens = torch.zeros((), device=self.policy.device), 0
        for batch in _trees(self.policy, items, micro_tokens):
            packs, starts, order = _pack_items(items, batch)
            scores = score_tokens(self.policy, packs, starts, entropy=False)
            weights = _pad_values([items[i].weights for i in order], scores.logp)
            loss = losses.masked_sum(-scores.logp * weights, scores.mask) / total
            loss.backward()
            loss_sum += loss.detach()
            tokens += sum(len(p) for p in packs)
        return {"loss": float(loss_sum), "packed_tokens": tokens}

    # -- reinforcement ----------------------------------------------------------------------------

    def _score_detached(
        self, policy: Policy, items: Sequence[RlItem], micro_tokens: int
    ) -> list[torch.Tensor]:
        """Log-probabilities of each item's completion under a policy, without gradient."""
        result: list[torch.Tensor] = [torch.empty(0)] * len(items)
        with torch.no_grad():
            for batch in _trees(policy, items, micro_tokens):
                packs, starts, order = _pack_items(items, batch)
                scores = score_tokens(
                    policy, packs, starts, temperature=self.temperature, entropy=False
                )
                for row, i in enumerate(order):
                    result[i] = scores.logp[row, : len(items[i].completion_ids)].clone()
        return result

    def _reference_logprobs(self, items: Sequence[RlItem], micro: int) -> list[torch.Tensor]:
        """Under the reference policy: adapters off, else the frozen copy of `set_reference`."""
        if self.config.lora is not None:
            with self.policy.model.disable_adapter():
                return self._score_detached(self.policy, items, micro)
        if self._reference is None:
            raise EngineError("kl_coef is set but set_reference was not called for this stage")
        return self._score_detached(self._reference, items, micro)

    def set_reference(self) -> None:
        """Freeze the present weights as the reference policy of this stage.

        Under LoRA the reference is the model with its adapter off and nothing is copied.
        """
        if self.config.lora is not None:
            return
        core = copy.deepcopy(self.policy.core).requires_grad_(False).eval()
        self._reference = replace(self.policy, model=core, core=core)

    def rl_round(
        self,
        minibatches: Sequence[Sequence[RlItem]],
        config: GrpoConfig,
        rates: Sequence[float],
    ) -> list[dict[str, float]]:
        """One optimiser step per mini-batch, all sampled by the policy as it is at the call.

        Returns the measures of each step: loss, entropy and KL (token means), clip fraction, norm. One
        whose loss or gradient is not finite is left out and has the measure `not_finite` = 1.
        """
        old: list[list[torch.Tensor]] | None = None
        if len(minibatches) > 1:
            old = [
                self._score_detached(self.policy, items, config.micro_tokens)
                for items in minibatches
            ]
        steps = []
        for k, (items, lr) in enumerate(zip(minibatches, rates, strict=True)):
            measures = self.rl_backward(items, config, old[k] if old else None)
            # A mini-batch without any gradient makes no step: Adam's momentum would still move weights.
            idle = {"grad_norm": 0.0, "lr": lr}
            applied = (
                self._apply(config, lr, measures["loss"]) if measures["packed_tokens"] else idle
            )
            steps.append({**measures, **applied})
            self._memory.after_step()
        return steps

    def rl_backward(
        self,
        items: Sequence[RlItem],
        config: GrpoConfig,
        old: Sequence[torch.Tensor] | None = None,
    ) -> dict[str, float]:
        """Accumulate the gradient of eq. 14 (token mean) over one mini-batch.

        Args:
            old: log-probabilities of each item under the policy that sampled it; None if that is the
                present policy.
        """
        tokens = sum(len(i.completion_ids) for i in items)
        quiet = not config.kl_coef and not config.entropy_coef
        silent = {
            share
            for share in {i.share for i in items}
            if quiet and all(i.advantage == 0 for i in items if i.share == share)
        }
        active = [k for k, i in enumerate(items) if i.share not in silent]
        chosen = [items[k] for k in active]
        ref = self._reference_logprobs(chosen, config.micro_tokens) if config.kl_coef else None
        self.policy.model.train()
        # On the device: reading one would wait for it at each micro-batch.
        sums = torch.zeros(4, device=self.policy.device)
        seen = packed = 0
        for batch in _trees(self.policy, chosen, config.micro_tokens):
            packs, starts, order = _pack_items(chosen, batch)
            scores = score_tokens(self.policy, packs, starts, temperature=self.temperature)
            if old is None:
                before = scores.logp.detach()
            else:
                before = _pad_tensors([old[active[i]] for i in order])
            advantage = torch.tensor(
                [chosen[i].advantage for i in order], dtype=torch.float32, device=scores.logp.device
            )
            token = losses.token_loss(
                scores.logp,
                before,
                advantage,
                _pad_tensors([ref[i] for i in order]) if ref else None,
                scores.entropy if config.entropy_coef else None,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                kl_coef=config.kl_coef,
                entropy_coef=config.entropy_coef,
            )
            loss = losses.masked_sum(token.loss, scores.mask) / tokens
            loss.backward()
            with torch.no_grad():
                parts = (scores.entropy, token.kl, token.clipped.float())
                sums += torch.stack([loss, *(losses.masked_sum(x, scores.mask) for x in parts)])
            seen += sum(len(chosen[i].completion_ids) for i in order)
            packed += sum(len(p) for p in packs)
        loss_sum, *token_sums = sums.tolist()
        means = (v / max(1, seen) for v in token_sums)
        return {
            "loss": loss_sum,
            **dict(zip(("entropy", "kl", "clipped"), means, strict=True)),
            "tokens": tokens,
            "packed_tokens": packed,
            "silent_groups": len(silent),
        }

    # -- checkpoints ------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the weights (adapters merged) as a safetensors folder that transformers opens.

        Written beside and renamed, with checksums, so that a folder of this name is a whole checkpoint.

        Raises:
            EngineError: the disk is full or the folder cannot be written; nothing is left behind.
            NotFiniteError: a weight is NaN or infinite; nothing is written.
        """
        self._must_be_finite(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        except OSError as e:
            raise EngineError(f"{folder.parent}: cannot write a checkpoint here: {e}") from e
        try:
            self._mergeable().save_pretrained(staging)
            self.policy.tokenizer.save_pretrained(staging)
            seal_checkpoint(staging, folder)
        except Exception as e:
            # safetensors reports a full disk with an error of its own, not with OSError.
            if not isinstance(e, OSError) and "afetensor" not in type(e).__name__:
                raise
            raise EngineError(
                f"{folder}: the checkpoint could not be written ({e}); free some disk space and "
                "resume the run: everything before this checkpoint is kept"
            ) from e
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _must_be_finite(self, path: Path) -> None:
        for name, p in self.policy.model.named_parameters():
            # A sum is one pass without a temporary; it is finite only if all summands are, or the
            # slow check has the last word.
            if not torch.isfinite(p.detach().sum()) and not torch.isfinite(p.detach()).all():
                raise NotFiniteError(f"{path}: not written, since {name} is not finite")

    def _mergeable(self) -> Any:
        if self.config.lora is None:
            return self.policy.core
        return copy.deepcopy(self.policy.model).merge_and_unload()

    def save_training_state(self, path: Path) -> None:
        """Trained parameters and optimiser state in one safetensors file, written and renamed.

        Raises:
            EngineError: it cannot be written; the one before stays.
            NotFiniteError: a weight is NaN or infinite; nothing is written.
        """
        from safetensors.torch import save_file

        self._must_be_finite(path)

        assert self._optimizer is not None
        flat = {
            f"p.{n}": p.detach().contiguous()
            for n, p in self.policy.model.named_parameters()
            if p.requires_grad
        }
        for index, state in self._optimizer.state_dict()["state"].items():
            for key, value in state.items():
                flat[f"o.{index}.{key}"] = torch.as_tensor(value).contiguous()
        staging, digest = path.with_suffix(".tmp"), path.with_suffix(_DIGEST)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(flat, staging)
            write_text(digest, sha256(staging))
            sync(staging)
            staging.replace(path)
            sync(path.parent)
        except Exception as e:
            with contextlib.suppress(OSError):
                staging.unlink(missing_ok=True)
            raise EngineError(
                f"{path}: the training state could not be written ({e}); free some disk space and resume "
                "the run: the state before it is kept"
            ) from e

    def load_training_state(self, path: Path) -> None:
        """Continue from `save_training_state`.

        Raises:
            EngineError: the file is missing, cut, altered, or of another model.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        assert self._optimizer is not None
        try:
            if path.with_suffix(_DIGEST).read_text().strip() != sha256(path):
                raise EngineError(
                    f"{path}: not a whole training state: altered since it was written"
                )
            flat = load_file(path, device=str(self.policy.device))
        except (OSError, SafetensorError) as e:
            raise EngineError(f"{path}: not a whole training state: {e}") from e
        with torch.no_grad():
            for name, parameter in self.policy.model.named_parameters():
                if parameter.requires_grad:
                    if f"p.{name}" not in flat:
                        raise EngineError(f"{path}: holds no {name}; it is of another model")
                    parameter.copy_(flat[f"p.{name}"])
        whole = self._optimizer.state_dict()
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in flat.items():
            if name.startswith("o."):
                index, key = name[2:].split(".", 1)
                state.setdefault(int(index), {})[key] = value
        whole["state"] = state
        self._optimizer.load_state_dict(whole)


def _trees(policy: Policy, items: Sequence[Any], micro_tokens: int) -> Iterator[list[list[int]]]:
    """Micro-batches of trees (lists of item indices) within the token budget."""
    if not items:
        return
    sequences = [[*i.prompt_ids, *i.completion_ids] for i in items]
    trees = group_by_key(sequences, [i.share for i in items], micro_tokens)
    sizes = [len(pack([sequences[i] for i in tree])) for tree in trees]
    if policy.attention == "tree":
        for row in bins(sizes, micro_tokens):
            yield [[i for t in row for i in trees[t]]]
        return
    for batch in micro_batches(sizes, micro_tokens):
        yield [trees[i] for i in batch]


def _pack_items(
    items: Sequence[Any], trees: list[list[int]]
) -> tuple[list[Pack], list[list[int]], list[int]]:
    packs = [pack([[*items[i].prompt_ids, *items[i].completion_ids] for i in t]) for t in trees]
    starts = [[len(items[i].prompt_ids) for i in t] for t in trees]
    return packs, starts, [i for t in trees for i in t]


def _pad_values(values: Sequence[Sequence[float]], like: torch.Tensor) -> torch.Tensor:
    padded = np.zeros(tuple(like.shape), dtype=np.float32)
    for row, v in enumerate(values):
        padded[row, : len(v)] = v
    return torch.from_numpy(padded).to(like.device)


def _pad_tensors(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
