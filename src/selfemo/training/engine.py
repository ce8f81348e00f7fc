"""The engine of one device: forward, backward and optimiser steps of SFT and SELF-GRPO on prefix trees.

Departures from the paper's stack (verl), all [ours]:
- the G completions of a prompt, or the samples of one conversation, are one prefix tree, not G rows;
- where a round of sampling feeds one optimiser step, sampling and current policy are the same, so the ratio's
  denominator is the current forward pass itself (detached). With several mini-batches per round the old
  log-probabilities are computed once, before the first of them;
- trees whose advantages are all zero are left out if no KL or entropy term acts on them: their gradient is
  exactly zero. Their tokens still count in the token mean.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from selfemo.config import GrpoConfig, LoraConfig, ModelConfig, OptimConfig
from selfemo.errors import EngineError
from selfemo.extras import require
from selfemo.method import losses
from selfemo.method.channel import ChannelScores
from selfemo.method.parsing import emotion_line
from selfemo.method.types import EmotionDistribution, LabelSet
from selfemo.models.compiling import compile_layers
from selfemo.models.generation.local import LocalSampler
from selfemo.models.loading import load_configured
from selfemo.models.memory import after_step, return_memory
from selfemo.models.packing import bins, group_by_key, micro_batches, pack
from selfemo.models.policy import Policy
from selfemo.models.sampler import ChannelPlace, LabelPlace, Sampler
from selfemo.models.transfer import to_device
from selfemo.training.checkpoints import must_be_finite, read_state, write_checkpoint, write_state
from selfemo.training.guards import NOT_FINITE
from selfemo.training.protocol import RlItem
from selfemo.training.token_scores import TokenScores, inputs, score_tokens


@dataclass(frozen=True)
class SftItem:
    """One encoded sample; `weights` are the loss weights of its completion tokens."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    weights: Sequence[float]
    tree: Hashable


class LocalEngine:
    """A policy with its sampler and its optimiser.

    Args:
        config: model, device, precision, adapters.
        checkpoint: weights to start from instead of `config.id`.
        temperature: of sampling; RL trains the policy at this temperature.

    Attributes:
        weights_version: another object after each change of the weights.
        importance_cap: of `grpo.importance_cap = "auto"`; 0 where the policy itself samples.
    """

    def __init__(self, config: ModelConfig, checkpoint: str | None = None, temperature: float = 1.0):
        self.temperature = temperature
        self.config = config
        self.policy = load_configured(config, checkpoint)
        self.sampler = LocalSampler(self.policy)
        if config.lora is not None:
            self._add_adapters(config.lora)
        if config.gradient_checkpointing:
            self.policy.core.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        self._optimizer: torch.optim.Optimizer | None = None
        self._reference: Policy | None = None
        self.weights_version = object()
        self.importance_cap = 0.0

    def _add_adapters(self, lora: LoraConfig) -> None:
        require("model.lora", "peft")
        import peft

        settings = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(0)
        try:
            model = peft.get_peft_model(self.policy.core, settings)
        except ValueError as e:
            raise EngineError(f"model.lora.targets: {e}") from e
        self.policy.model, self.policy.core = model, model.get_base_model()

    def sft_item(
        self, prompt_ids: Sequence[int], completion: str, share: str, label_weight: float
    ) -> SftItem:
        """Encode a sample; tokens of its E line weigh `label_weight`, all others 1."""
        ids, offsets = self.policy.encode_completion(completion)
        start, end = emotion_line(completion)
        weights = [label_weight if start <= first < end else 1.0 for first, _ in offsets]
        return SftItem(tuple(prompt_ids), tuple(ids), tuple(weights), share)

    def begin_stage(self, config: OptimConfig) -> None:
        """A fresh optimiser; call at the start of each training stage."""
        self._reference = None
        parameters = [p for p in self.policy.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )

    def end_stage(self) -> None:
        """Free optimiser state and reference policy."""
        self._optimizer = self._reference = None
        self.policy.model.zero_grad(set_to_none=True)
        return_memory()

    def _apply(self, config: OptimConfig, lr: float, loss: float) -> dict[str, float]:
        """Make the optimiser step, unless loss or gradient is not finite; then `not_finite` is 1."""
        assert self._optimizer is not None, "begin_stage comes first"
        parameters = self._optimizer.param_groups[0]["params"]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        finite = np.isfinite(norm) and np.isfinite(loss)
        if finite:
            self._optimizer.param_groups[0]["lr"] = lr
            self._optimizer.step()
            self.weights_version = object()
        self._optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "lr": lr, **({} if finite else {NOT_FINITE: 1.0})}

    def sft_step(self, items: Sequence[SftItem], config: OptimConfig, lr: float) -> dict[str, float]:
        """One optimiser step (see `_apply`) on the weighted token mean of -log p over all items."""
        measures = self.sft_backward(items, config.micro_tokens)
        applied = self._apply(config, lr, measures["loss"])
        after_step()
        return {**measures, **applied}

    def sft_backward(self, items: Sequence[SftItem], micro_tokens: int) -> dict[str, float]:
        """Accumulate the gradient of the weighted token mean of -log p over all items."""
        self.policy.model.train()
        total = sum(float(np.sum(i.weights)) for i in items)
        # Sums stay on the device: reading one would wait for it at each micro-batch.
        loss_sum, tokens = torch.zeros((), device=self.policy.device), 0
        for scores, order, size in _scored(self.policy, items, micro_tokens, 1.0, entropy=False):
            weights = to_device(_pad([torch.tensor(items[i].weights) for i in order]), self.policy.device)
            loss = losses.masked_sum(-scores.logp * weights, scores.mask) / total
            loss.backward()
            loss_sum += loss.detach()
            tokens += size
        return {"loss": float(loss_sum), "packed_tokens": tokens}

    def logprobs(
        self, policy: Policy, items: Sequence[SftItem | RlItem], micro_tokens: int
    ) -> list[torch.Tensor]:
        """Log-probabilities of each item's completion under a policy, without gradient."""
        result: list[torch.Tensor] = [torch.empty(0)] * len(items)
        with torch.no_grad():
            for scores, order, _ in _scored(policy, items, micro_tokens, self.temperature, entropy=False):
                for row, i in enumerate(order):
                    result[i] = scores.logp[row, : len(items[i].completion_ids)].clone()
        return result

    def _reference_logprobs(self, items: Sequence[RlItem], micro: int) -> list[torch.Tensor]:
        """Log-probabilities under the reference policy: adapters off, else the copy of `set_reference`."""
        if self.config.lora is not None:
            with self.policy.model.disable_adapter():
                return self.logprobs(self.policy, items, micro)
        if self._reference is None:
            raise EngineError("kl_coef is set but set_reference was not called for this stage")
        return self.logprobs(self._reference, items, micro)

    def set_reference(self) -> None:
        """Freeze the present weights as the reference policy of this stage."""
        if self.config.lora is not None:  # then the reference is the model with its adapters off
            return
        core = copy.deepcopy(self.policy.core).requires_grad_(False).eval()
        if self.policy.compiled:  # a copy is not
            compile_layers(core)
        self._reference = replace(self.policy, model=core, core=core)

    def start_sampler(self, weights: str) -> Sampler:
        """The policy of the stage's start, frozen: the reference policy, as its KL term has it.

        Without a KL term nothing keeps it. Then it is loaded at the first call and stays to the end of the
        stage, as a second model in memory; under LoRA it is the model with its adapters off.

        Args:
            weights: those that the stage began with.
        """
        if self.config.lora is not None:
            return _AdaptersOff(self.policy)
        if self._reference is None:
            policy = load_configured(self.config, weights)
            policy.core.requires_grad_(False).eval()
            self._reference = policy
        return LocalSampler(self._reference)

    def rl_round(
        self, minibatches: Sequence[Sequence[RlItem]], config: GrpoConfig, rates: Sequence[float]
    ) -> list[dict[str, float]]:
        """Make one optimiser step (see `_apply`) per mini-batch; the policy before the call sampled them all.

        Returns the measures of each step: loss, entropy and KL (token means), clip fraction, norm.
        """
        old: list[list[torch.Tensor]] | None = None
        if len(minibatches) > 1:
            old = [self.logprobs(self.policy, items, config.micro_tokens) for items in minibatches]
        steps = []
        for k, (items, lr) in enumerate(zip(minibatches, rates, strict=True)):
            measures = self.rl_backward(items, config, old[k] if old else None)
            # A mini-batch without any gradient makes no step: Adam's momentum would still move weights.
            idle = {"grad_norm": 0.0, "lr": lr}
            applied = self._apply(config, lr, measures["loss"]) if measures["packed_tokens"] else idle
            steps.append({**measures, **applied})
            after_step()
        return steps

    def rl_backward(
        self, items: Sequence[RlItem], config: GrpoConfig, old: Sequence[torch.Tensor] | None = None
    ) -> dict[str, float]:
        """Accumulate the gradient of eq. 14 (token mean) over one mini-batch; replies that R3 rewards have a
        token mean of their own, and the two are added.

        Args:
            old: log-probabilities of each item under the policy that sampled it; None for the present policy.
        """
        tokens = sum(len(i.completion_ids) for i in items)
        by_kind = Counter[bool]()
        for i in items:
            by_kind[i.reply] += len(i.completion_ids)
        quiet = not config.kl_coef and not config.entropy_coef
        # What weighs nothing is not computed: silent groups, also beside their gold line.
        active = [k for k, i in enumerate(items) if i.advantage != 0 or i.rest != 0 or not quiet]
        chosen = [items[k] for k in active]
        ref = self._reference_logprobs(chosen, config.micro_tokens) if config.kl_coef else None
        self.policy.model.train()
        # Sums stay on the device: reading one would wait for it at each micro-batch.
        sums = torch.zeros(4, device=self.policy.device)
        apart: list[torch.Tensor] = []
        seen = packed = 0
        for scores, order, size in _scored(self.policy, chosen, config.micro_tokens, self.temperature):
            advantages = [torch.tensor(chosen[i].advantages(), dtype=torch.float32) for i in order]
            before = scores.logp.detach() if old is None else _pad([old[active[i]] for i in order])
            sampled = to_device(_pad([_sampled(chosen[i]) for i in order]), self.policy.device)
            elsewhere = to_device(torch.tensor([[chosen[i].elsewhere] for i in order]), self.policy.device)
            here = scores.mask & ~elsewhere
            apart.append(torch.where(here, before - sampled, torch.nan).flatten())
            token = losses.token_loss(
                scores.logp,
                before,
                to_device(_pad(advantages), self.policy.device),
                _pad([ref[i] for i in order]) if ref else None,
                scores.entropy if config.entropy_coef else None,
                _weights(before, sampled, elsewhere, self._cap(config)),
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                kl_coef=config.kl_coef,
                entropy_coef=config.entropy_coef,
            )
            means = torch.tensor([tokens / by_kind[chosen[i].reply] for i in order]).unsqueeze(1)
            weighed = token.loss * to_device(means, self.policy.device)
            loss = losses.masked_sum(weighed, scores.mask) / tokens
            loss.backward()
            with torch.no_grad():
                parts = (scores.entropy, token.kl, token.clipped.float())
                sums += torch.stack([loss, *(losses.masked_sum(x, scores.mask) for x in parts)])
            seen += sum(len(chosen[i].completion_ids) for i in order)
            packed += size
        loss_sum, *token_sums = sums.tolist()
        each = (v / max(1, seen) for v in token_sums)
        return {
            "loss": loss_sum,
            **dict(zip(("entropy", "kl", "clipped"), each, strict=True)),
            "tokens": tokens,
            "packed_tokens": packed,
            "silent_groups": len({i.prompt for i in items} - {i.prompt for i in chosen}),
            **mismatch(apart, config.clip_low, config.clip_high),
        }

    def _cap(self, config: GrpoConfig) -> float:
        return self.importance_cap if config.importance_cap == "auto" else config.importance_cap

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each weight, and its name, as in a checkpoint of `save`: adapters are merged in, one at a time."""
        for name, weight in self.policy.core.named_parameters():
            if ".lora_" in name:
                continue
            place, wrapped, own = name.partition(".base_layer.")
            if wrapped and own == "weight":
                layer = self.policy.core.get_submodule(place)
                for adapter in layer.active_adapters:
                    weight = weight + layer.get_delta_weight(adapter)
            yield f"{place}.{own}" if wrapped else name, weight

    def save(self, folder: Path) -> None:
        """Write the weights, with the adapters merged in, as a checkpoint."""
        must_be_finite(self.policy.model, folder)
        core = self.policy.core
        if self.config.lora is not None:
            core = copy.deepcopy(self.policy.model).merge_and_unload()
        write_checkpoint(core, self.policy.tokenizer, folder)

    def save_training_state(self, path: Path) -> None:
        assert self._optimizer is not None, "begin_stage comes first"
        must_be_finite(self.policy.model, path)
        write_state(self.policy.model, self._optimizer, path)

    def load_training_state(self, path: Path) -> None:
        assert self._optimizer is not None, "begin_stage comes first"
        read_state(self.policy.model, self._optimizer, path, str(self.policy.device))
        self.weights_version = object()


class _AdaptersOff(LocalSampler):
    """Reads with the model below the adapters that it trains."""

    def label_probabilities(
        self, places: Sequence[LabelPlace], labels: LabelSet
    ) -> list[EmotionDistribution]:
        with self.policy.model.disable_adapter():
            return super().label_probabilities(places, labels)

    def channel_scores(self, places: Sequence[ChannelPlace], labels: LabelSet) -> list[ChannelScores]:
        with self.policy.model.disable_adapter():
            return super().channel_scores(places, labels)


def _scored(
    policy: Policy,
    items: Sequence[SftItem | RlItem],
    micro_tokens: int,
    temperature: float,
    *,
    entropy: bool = True,
) -> Iterator[tuple[TokenScores, list[int], int]]:
    """Score items in micro-batches of prefix trees within the token budget.

    Yields: scores of a micro-batch, the index of the item in each row, the number of packed tokens.
    """
    if not items:
        return
    sequences = [inputs(i.prompt_ids, i.completion_ids) for i in items]
    trees = group_by_key(sequences, [i.tree for i in items], micro_tokens)
    sizes = [len(pack([sequences[i] for i in tree])) for tree in trees]
    if policy.joins_trees:
        batches = [[[i for t in row for i in trees[t]]] for row in bins(sizes, micro_tokens)]
    else:
        batches = [[trees[t] for t in batch] for batch in micro_batches(sizes, micro_tokens)]
    for batch in batches:
        packs = [pack([sequences[i] for i in row]) for row in batch]
        completions = [[items[i].completion_ids for i in row] for row in batch]
        scores = score_tokens(policy, packs, completions, temperature=temperature, entropy=entropy)
        yield scores, [i for row in batch for i in row], sum(map(len, packs))


def _sampled(item: RlItem) -> torch.Tensor:
    """(l,) the log-probabilities of an item's tokens when they were sampled; NaN where they were not."""
    if item.sampled is None:
        return torch.full((len(item.completion_ids),), torch.nan)
    return torch.tensor(item.sampled, dtype=torch.float32)


def _weights(
    old: torch.Tensor, sampled: torch.Tensor, elsewhere: torch.Tensor, cap: float
) -> torch.Tensor | None:
    """The importance weight of each token (n l); None where all weigh 1.

    Args:
        elsewhere: (n 1) whether an item was sampled behind other tokens (`RlItem.elsewhere`).
    """
    if not cap and not bool(elsewhere.any()):
        return None
    own = losses.importance(old, sampled, cap) if cap else torch.ones_like(old)
    return torch.where(elsewhere, losses.importance(old, sampled, 1.0), own)


def mismatch(apart: Sequence[torch.Tensor], clip_low: float, clip_high: float) -> dict[str, float]:
    """How far sampler and trainer are apart on what was sampled from the same weights, |difference of log p|
    in nats: mean, 99th percentile, and the share of tokens that eq. 14 would clip for it."""
    difference = torch.cat(list(apart)).cpu().numpy() if apart else np.empty(0)
    difference = difference[~np.isnan(difference)]  # padding, and what was not sampled
    if not len(difference):
        return {}
    ratio, size = np.exp(difference), np.abs(difference)
    outside = (ratio < 1 - clip_low) | (ratio > 1 + clip_high)
    return {
        "mismatch": float(size.mean()),
        "mismatch_p99": float(np.quantile(size, 0.99)),
        "mismatch_clipped": float(outside.mean()),
    }


def _pad(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
