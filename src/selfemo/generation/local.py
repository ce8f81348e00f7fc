"""Sampling with a shared prefix on one device.

Prompts that begin alike (the G copies of one prompt, the turns of one conversation) are one prefix tree,
prefilled once. Decoding treats the open completions of a tree as query positions of one row: each step
appends one key per open completion and a boolean mask says which keys a completion may see. A completion
that has ended leaves the query positions at once, a tree whose completions have all ended leaves the
batch. The random number of a token depends on (seed, prompt, completion, step) alone, so a result does
not depend on what else is in the batch.

Shapes: b rows (trees), s prefix length, q open completions per row, c cache capacity, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from selfemo.errors import NotFiniteError
from selfemo.generation.no_repeat import NoRepeat
from selfemo.generation.requests import Constraint, Observer, Request, SamplingSettings
from selfemo.models import Policy
from selfemo.packing import PackedRows, bins, group_by_key, micro_batches, pack
from selfemo.types import Sample

_TREE_TOKENS = 2048
"""Prefix and generated tokens of one tree: beyond this, masked attention costs more than sharing saves."""


OnToken = Callable[[int, int, Sequence[int]], bool]


class _GrowingLayer(DynamicLayer):
    """A key/value cache that is written in place; torch.cat would copy it whole at each step."""

    is_initialized: bool

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length = capacity, 0

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        n = key_states.shape[-2]
        if not self.is_initialized:
            shape = (*key_states.shape[:-2], self.capacity, key_states.shape[-1])
            self.keys, self.values = key_states.new_zeros(shape), value_states.new_zeros(shape)
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        end = self.length + n
        self.keys[..., self.length : end, :] = key_states
        self.values[..., self.length : end, :] = value_states
        self.length = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def get_seq_length(self) -> int:
        return self.length

    def keep_rows(self, rows: torch.Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]


@dataclass
class _Open:
    """One completion under way: where it hangs in its tree, and what has been sampled so far."""

    request: int
    copy: int
    uniforms: np.ndarray
    position: int
    visible: np.ndarray
    constraint: Constraint | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    lines: int = 0
    done: bool = False
    finished: bool = False


def _uniforms(seed: int, copy: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed & 0xFFFFFFFF, seed >> 32, copy]).random(n)


def _allowed(live: Sequence[_Open], logits: torch.Tensor) -> torch.Tensor | None:
    """(q, v) bool: what each completion may go on with; None where all may go on with anything."""
    if not any(o.constraint for o in live):
        return None
    anything = torch.ones(logits.shape[-1], dtype=torch.bool)
    rows = [o.constraint.allowed() if o.constraint else anything for o in live]
    return torch.stack(rows).to(logits.device)


def sample_tokens(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    temperature: float,
    top_p: float,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw one token per row by inverse CDF.

    Args:
        logits: (q, v) float32.
        uniforms: (q,) in [0, 1).
        temperature: 0 takes the most likely token.
        top_p: nucleus mass; the smallest set of tokens that reaches it is kept.
        allowed: (q, v) bool, tokens that may be drawn.

    Returns:
        ids (q,), log-probabilities (q,) and entropies in nats (q,) of the policy softmax(logits / T),
        before top_p or `allowed` cut it; greedy decoding reports those of T = 1.
    """
    if temperature not in (0, 1):
        logits = logits / temperature
    logp = torch.log_softmax(logits, -1)
    probs = logp.exp()
    entropies = -(probs * logp).sum(-1)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if temperature == 0:
        ids = logits.argmax(-1)
    else:
        if allowed is not None:
            probs = torch.softmax(logits, -1)
        if top_p < 1:
            ordered, order = probs.sort(-1, descending=True)
            ordered = ordered * ((ordered.cumsum(-1) - ordered) < top_p)
            probs = torch.zeros_like(probs).scatter(-1, order, ordered)
        cdf = probs.double().cumsum(-1)
        # Scaling by the last value keeps rounding from pushing a draw past the end.
        draws = uniforms.double().unsqueeze(-1).to(cdf.device) * cdf[:, -1:]
        ids = (
            torch.searchsorted(cdf, draws, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)
        )
    return ids, logp.gather(-1, ids.unsqueeze(-1)).squeeze(-1), entropies


class LocalGenerator:
    """Samples completions from a `Policy`.

    Args:
        policy: the model, tokenizer and device.
        settings: length, temperature and memory limits.
    """

    def __init__(self, policy: Policy, settings: SamplingSettings):
        self.policy, self.settings = policy, settings
        self._on_token: OnToken | None = None

    def _constraint(self, request: Request) -> Constraint | None:
        if request.constraints:
            return request.constraints.start()
        if self.settings.no_repeat_ngram:
            return NoRepeat(self.settings.no_repeat_ngram, self.policy.line_ends())
        return None

    def generate(
        self,
        requests: Sequence[Request],
        on_done: Callable[[int], None] | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[Sample]]:
        """Complete each request; result i holds the n samples of request i in order.

        Args:
            requests: prompts; those with the same `share` key are prefilled together.
            on_done: called with the number of completions that a finished batch adds (progress).
            on_token: called with (request, copy, ids so far) as each token is drawn; where it returns
                False that completion ends there, unfinished.
        """
        self._on_token = on_token
        results: list[list[Sample | None]] = [[None] * r.n for r in requests]
        for batch in self._batches(requests):
            done = 0
            for open_ in self._run(requests, batch):
                results[open_.request][open_.copy] = Sample(
                    text=self.policy.decode(open_.ids),
                    token_ids=tuple(open_.ids),
                    logprobs=tuple(open_.logprobs),
                    entropies=tuple(open_.entropies),
                    finished=open_.finished,
                )
                done += 1
            if on_done:
                on_done(done)
        return [[s for s in group if s is not None] for group in results]

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[list[int]]]:
        """Batches of trees (lists of request indices) whose cache fits the token budget."""
        if not requests:
            return
        grow = [r.n * self.settings.max_new_tokens for r in requests]
        keys = [(i,) if r.share is None else ("shared", r.share) for i, r in enumerate(requests)]
        prompts = [r.prompt_ids for r in requests]
        trees = group_by_key(prompts, keys, _TREE_TOKENS, grow)
        sizes = [len(pack([prompts[i] for i in t])) + sum(grow[i] for i in t) for t in trees]
        if self.policy.row_cost_is_exact:
            rows = bins(sizes, _TREE_TOKENS)
            trees = [[i for t in row for i in trees[t]] for row in rows]
            sizes = [sum(sizes[t] for t in row) for row in rows]
        for batch in micro_batches(sizes, max(self.settings.token_budget, max(sizes))):
            yield [trees[i] for i in batch]

    @torch.no_grad()
    def _run(self, requests: Sequence[Request], trees: list[list[int]]) -> list[_Open]:
        settings, policy = self.settings, self.policy
        packs = [pack([requests[i].prompt_ids for i in tree]) for tree in trees]
        prefix = max(len(p) for p in packs)
        rows: list[list[_Open]] = []
        starts: list[list[int]] = []
        for tree, p in zip(trees, packs, strict=True):
            row, start = [], []
            ancestors = p.ancestors()
            for i, path in zip(tree, p.paths, strict=True):
                visible = np.zeros(prefix, dtype=bool)
                visible[: len(p)] = ancestors[path[-1]]
                for copy in range(requests[i].n):
                    draws = _uniforms(requests[i].seed, copy, settings.max_new_tokens)
                    constraint = self._constraint(requests[i])
                    row.append(_Open(i, copy, draws, len(path), visible, constraint))
                    start.append(int(path[-1]))
            rows.append(row)
            starts.append(start)
        width = max(len(row) for row in rows)
        capacity = prefix + width * settings.max_new_tokens
        layers = policy.core.config.num_hidden_layers
        cache = Cache(layers=[_GrowingLayer(capacity) for _ in range(layers)])
        with policy.autocast():
            hidden = policy.hidden(policy.rows(packs), cache)
            first = [(b, s) for b, start in enumerate(starts) for s in start]
            where = torch.tensor(first, device=policy.device)
            logits = policy.logits(hidden[where[:, 0], where[:, 1]])
            live = [o for row in rows for o in row]
            self._append(live, logits, 0)
            # seen[b, slot] are the keys that slot may attend to; slots stay put, queries are gathered.
            seen = torch.zeros(len(rows), width, capacity, dtype=torch.bool)
            for b, row in enumerate(rows):
                for slot, o in enumerate(row):
                    seen[b, slot, :prefix] = torch.from_numpy(o.visible)
            length = prefix
            for step in range(1, settings.max_new_tokens):
                slots = [[k for k, o in enumerate(row) if not o.done] for row in rows]
                kept = [b for b, s in enumerate(slots) if s]
                if not kept:
                    break
                if len(kept) <= len(rows) * 3 // 4:
                    index = torch.tensor(kept)
                    for layer in cache.layers:
                        layer.keep_rows(index.to(policy.device))
                    rows, slots = [rows[b] for b in kept], [slots[b] for b in kept]
                    seen = seen[index]
                length = self._step(rows, slots, seen, cache, length, step)
        return live

    def _step(
        self,
        rows: list[list[_Open]],
        slots: list[list[int]],
        seen: torch.Tensor,
        cache: Any,
        length: int,
        step: int,
    ) -> int:
        b, q = len(rows), max(len(s) for s in slots)
        ids = torch.zeros(b, q, dtype=torch.long)
        positions = torch.zeros(b, q, dtype=torch.long)
        mask = torch.zeros(b, 1, q, length + q, dtype=torch.bool)
        mask[:, 0, torch.arange(q), length + torch.arange(q)] = True
        live: list[_Open] = []
        where: list[tuple[int, int]] = []
        for row, chosen in enumerate(slots):
            for column, slot in enumerate(chosen):
                o = rows[row][slot]
                ids[row, column], positions[row, column] = o.ids[-1], o.position
                o.position += 1
                seen[row, slot, length + column] = True
                mask[row, 0, column] = seen[row, slot, : length + q]
                live.append(o)
                where.append((row, column))
        device = self.policy.device
        hidden = self.policy.hidden(
            PackedRows(ids.to(device), positions.to(device), mask.to(device)), cache
        )
        index = torch.tensor(where, device=device)
        self._append(live, self.policy.logits(hidden[index[:, 0], index[:, 1]]), step)
        return length + q

    def _append(self, live: list[_Open], logits: torch.Tensor, step: int) -> None:
        settings = self.settings
        draws = torch.tensor([o.uniforms[step] for o in live])
        for o, row in zip(live, logits, strict=True):
            if isinstance(o.constraint, Observer):
                o.constraint.observe(row)
        allowed = _allowed(live, logits)
        ids, logp, entropy = sample_tokens(
            logits, draws, settings.temperature, settings.top_p, allowed
        )
        values = zip(live, ids.tolist(), logp.tolist(), entropy.tolist(), strict=True)
        for o, token, lp, h in values:
            if math.isnan(lp):
                raise NotFiniteError(
                    "the policy's probabilities are not numbers: its weights are not"
                )
            o.ids.append(token)
            o.logprobs.append(lp)
            o.entropies.append(h)
            if o.constraint and token not in self.policy.end_ids:
                o.constraint.take(token)
            if token in self.policy.end_ids:
                o.done = o.finished = True
            elif settings.max_lines:
                o.lines += int(self.policy.line_ends()[token])
                o.done = o.lines >= settings.max_lines
                o.finished = o.done
            if self._on_token and not self._on_token(o.request, o.copy, o.ids):
                o.done = True
