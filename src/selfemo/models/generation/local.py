"""Sampling with a shared prefix on one device.

Prompts that begin alike (the G copies of one prompt, the turns of one conversation) are one prefix tree,
prefilled once. Decoding treats the open completions of a tree as query positions of one row: each step
appends one key per open completion and a boolean mask says which keys a completion may see. Copies of one
prompt are one branch for as long as their tokens are equal: the branch is computed once, each copy draws its
own token, and where the tokens differ the branch forks, which copies a row of the mask and no key. A
completion that has ended leaves at once, a tree whose completions have all ended leaves the batch. The random
number of a token depends on (seed, prompt, completion, step) alone, so a result does not depend on the rest
of the batch.

Shapes: b rows (trees), s prefix length, q open branches per row, c cache capacity, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from selfemo.config import ModelConfig
from selfemo.errors import EngineError, NotFiniteError, UnsupportedError
from selfemo.method.channel import ChannelScores
from selfemo.method.types import EmotionDistribution, LabelSet, RawCompletion
from selfemo.models.generation.branches import branch_logp
from selfemo.models.generation.channel_scores import channel_scores
from selfemo.models.generation.draws import Drawn, draw_uniforms, sample_tokens
from selfemo.models.generation.label_scores import label_probabilities
from selfemo.models.generation.no_repeat import constraint_of
from selfemo.models.generation.requests import Constraint, Observer, Request, SamplingSettings
from selfemo.models.generation.slots import SlotTables, decode_slots
from selfemo.models.generation.texts import Texts
from selfemo.models.loading import load_configured, load_policy
from selfemo.models.memory import after_step
from selfemo.models.packing import PackedRows, bins, group_by_key, micro_batches, pack
from selfemo.models.policy import Policy
from selfemo.models.sampler import CHUNK, ChannelPlace, LabelPlace
from selfemo.models.transfer import to_device

_TREE_TOKENS = 2048
"""Prefix and generated tokens of one tree: beyond this, masked attention costs more than sharing saves."""
_LINE_TOKENS = 8
"""Tokens that a copy is expected to add for each line, where completions end with a line: E lines have 4 to
15, and equal ones are one branch. Trees are cut by it; memory is counted by what a copy may grow to."""
OnToken = Callable[[int, int, Sequence[int]], bool]
"""Called as each token is drawn: (request, copy, ids so far) to whether the completion goes on."""


class _GrowingLayer(DynamicLayer):
    """A key/value cache that is written in place; torch.cat would copy all of it at each step."""

    is_initialized: bool

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length = capacity, 0

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            shape = (*key_states.shape[:-2], self.capacity, key_states.shape[-1])
            self.keys, self.values = key_states.new_empty(shape), value_states.new_empty(shape)
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        end = self.length + key_states.shape[-2]
        self.keys[..., self.length : end, :] = key_states
        self.values[..., self.length : end, :] = value_states
        self.length = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def get_seq_length(self) -> int:
        return self.length

    def keep_rows(self, rows: torch.Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]


@dataclass
class _Open(Drawn):
    """One completion under way, with the tokens sampled so far."""

    uniforms: np.ndarray = field(default_factory=lambda: np.empty(0))
    constraint: Constraint | None = None
    lines: int = 0
    done: bool = False


class _Branches:
    """Where the branches of a batch stand: b rows of w slots, in arrays so that a step is a few calls.

    There is a slot for each completion; a branch is in that of one of its completions.

    Attributes:
        open: (b, w) bool, slots with a branch that goes on.
        who: (b, w) index of the slot's completion.
        tokens, positions: (b, w) the last token, and the position in its sequence.
        seen: (b, w, capacity) bool on the device, the keys that a slot may attend to.
        members: of the branch in the slot of completion i, its completions.
    """

    def __init__(self, rows: int, width: int, capacity: int, device: torch.device):
        self.open = np.zeros((rows, width), dtype=bool)
        self.who, self.tokens, self.positions = np.zeros((3, rows, width), dtype=np.int64)
        self.members: dict[int, list[int]] = {}
        self.seen = torch.zeros(rows, width, capacity, dtype=torch.bool)
        self.device = device

    def keep(self, rows: np.ndarray) -> torch.Tensor:
        """Let go of all other rows; returns the indices of the kept ones, on the device."""
        for name in ("open", "who", "tokens", "positions"):
            setattr(self, name, getattr(self, name)[rows])
        index = torch.from_numpy(rows).to(self.device)
        self.seen = self.seen[index]
        return index

    def branches(self) -> list[list[int]]:
        """The completions of each open branch, in the order of `open`."""
        return [self.members[k] for k in self.who[self.open].tolist()]

    def fork(self, drawn: Sequence[Sequence[tuple[int, int]]], first: Mapping[int, int]) -> None:
        """Put the completions of each branch that go on into branches of equal tokens.

        Args:
            drawn: of each open branch, in the order of `open`: (completion, its token) of those that go on.
            first: the slot of each completion in its row.
        """
        rows, columns = np.nonzero(self.open)
        copies: list[tuple[int, int, int]] = []
        for row, column, went_on in zip(rows.tolist(), columns.tolist(), drawn, strict=True):
            parts: dict[int, list[int]] = {}
            for k, token in went_on:
                parts.setdefault(token, []).append(k)
            owner = int(self.who[row, column])
            stays = next((t for t, part in parts.items() if owner in part), next(iter(parts), None))
            self.open[row, column] = stays is not None
            for token, part in parts.items():
                slot = column if token == stays else first[part[0]]
                self.members[owner if token == stays else part[0]] = part
                self.tokens[row, slot], self.open[row, slot] = token, True
                if token != stays:
                    self.positions[row, slot] = self.positions[row, column]
                    copies.append((row, slot, column))
        if copies:
            at, to, of = (torch.tensor(x, device=self.device) for x in zip(*copies, strict=True))
            self.seen[at, to] = self.seen[at, of]

    def queries(self, length: int) -> tuple[PackedRows, torch.Tensor, int]:
        """The open slots as query positions (b, q) after `length` keys.

        Returns:
            the rows, (n, 2) the place of each open slot in them, in the order of `open`, and the number
            of keys after this step.
        """
        # Open slots first, in their order; the rest of a row is padding that nothing attends to.
        order = np.argsort(~self.open, axis=1, kind="stable")[:, : int(self.open.sum(1).max())]
        valid = np.take_along_axis(self.open, order, 1)
        b, q = order.shape
        ids, positions = (
            np.where(valid, np.take_along_axis(x, order, 1), 0) for x in (self.tokens, self.positions)
        )
        self.positions += self.open
        rows, columns = np.nonzero(valid)
        where, chosen, filled, ids_, positions_ = (
            to_device(x, self.device) for x in (np.stack([rows, columns], 1), order, valid, ids, positions)
        )
        own = torch.arange(q, device=self.device)
        at = torch.arange(b, device=self.device)[:, None]
        self.seen[at, chosen, length + own] = filled
        mask = self.seen[at, chosen, : length + q] & filled[..., None]
        mask[:, own, length + own] = True
        return PackedRows(ids_, positions_, mask[:, None]), where, length + q


class LocalSampler(Texts):
    """A model on this device as a `Sampler`; training the same `Policy` changes its completions."""

    def __init__(self, policy: Policy):
        self.policy = self.reader = policy
        self._tables = SlotTables()

    @property
    def chunk(self) -> int:
        """Enough to fill a GPU; on a CPU more at once is no faster, and more is lost by an interrupt."""
        return 2048 if self.policy.device.type == "cuda" else CHUNK

    def generate(
        self,
        requests: Sequence[Request],
        settings: SamplingSettings,
        on_done: Callable[[int], None] | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[RawCompletion]]:
        """See `Sampler.generate`; a completion that `on_token` ends is unfinished."""
        self.policy.model.eval()
        generator = LocalGenerator(self.policy, settings, on_token, self._tables)
        samples = generator.generate(requests, on_done)
        after_step()
        return samples

    def label_probabilities(
        self, places: Sequence[LabelPlace], labels: LabelSet
    ) -> list[EmotionDistribution]:
        self.policy.model.eval()
        found = label_probabilities(self.policy, places, labels)
        after_step()
        return found

    def channel_scores(self, places: Sequence[ChannelPlace], labels: LabelSet) -> list[ChannelScores]:
        self.policy.model.eval()
        found = channel_scores(self.policy, places, labels, partial(branch_logp, self.policy))
        after_step()
        return found

    def load(self, weights: str) -> None:
        """Copy other weights of the same architecture into the policy, in place, with their tokenizer.

        Raises:
            UnsupportedError: the policy trains adapters.
            EngineError: there is no such model, or it is of another architecture or size.
        """
        policy = self.policy
        if policy.model is not policy.core:
            raise UnsupportedError(
                "local cannot load weights below adapters (model.lora); open a new sampler"
            )
        new = load_policy(weights, str(policy.device), policy.dtype, policy.attention)

        def form(core: Any) -> tuple[str, dict[str, Any]]:
            return core.config.model_type, {name: x.shape for name, x in core.state_dict().items()}

        if form(policy.core) != form(new.core):
            raise EngineError(f"{weights}: its weights are not of the same model as {policy.source}")
        policy.core.load_state_dict(new.core.state_dict())
        policy.core.generation_config = new.core.generation_config
        policy.take_tokenizer(new.tokenizer)
        policy.spare = new.spare
        policy.source = new.source


@dataclass
class LocalGenerator:
    """Samples completions from a `Policy` under one set of settings."""

    policy: Policy
    settings: SamplingSettings
    on_token: OnToken | None = None
    tables: SlotTables = field(default_factory=SlotTables)

    def generate(
        self, requests: Sequence[Request], on_done: Callable[[int], None] | None = None
    ) -> list[list[RawCompletion]]:
        """See `Sampler.generate`."""
        longest = max((len(r.prompt_ids) for r in requests), default=0)
        self.policy.must_hold(longest + self.settings.max_new_tokens)
        results: list[list[RawCompletion | None]] = [[None] * r.n for r in requests]
        # What a constraint allows, and whether a caller goes on, is decided on the host.
        held = self.on_token or self.settings.no_repeat_ngram or any(r.constraints for r in requests)
        for batch in self._batches(requests):
            finished: Sequence[Drawn]
            if self.policy.decoder == "slots" and not held:
                finished = decode_slots(self.policy, self.settings, requests, batch, self.tables)
            else:
                finished = self._run(requests, batch)
            for o in finished:
                results[o.request][o.copy] = RawCompletion(
                    self.policy.decode(o.ids), tuple(o.ids), tuple(o.logprobs), tuple(o.entropies), o.finished
                )
            if on_done:
                on_done(len(finished))
        return [[s for s in group if s is not None] for group in results]

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[list[int]]]:
        """Batches of trees (lists of request indices) whose cache fits the token budget."""
        if not requests:
            return
        grow = [r.n * self.settings.max_new_tokens for r in requests]
        keys = [(i,) if r.share is None else ("shared", r.share) for i, r in enumerate(requests)]
        prompts = [r.prompt_ids for r in requests]
        lines = self.settings.max_lines
        expected = [min(g, r.n * lines * _LINE_TOKENS) for g, r in zip(grow, requests, strict=True)]
        trees = group_by_key(prompts, keys, _TREE_TOKENS, expected if lines else grow)
        packed = [len(pack([prompts[i] for i in t])) for t in trees]
        sizes = [n + sum(grow[i] for i in t) for n, t in zip(packed, trees, strict=True)]
        if self.policy.joins_trees:
            rows = bins(
                [
                    n + sum(expected[i] if lines else grow[i] for i in t)
                    for n, t in zip(packed, trees, strict=True)
                ],
                _TREE_TOKENS,
            )
            trees = [[i for t in row for i in trees[t]] for row in rows]
            sizes = [sum(sizes[t] for t in row) for row in rows]
        for batch in micro_batches(sizes, max(self.settings.token_budget, max(sizes))):
            yield [trees[i] for i in batch]

    @torch.no_grad()
    def _run(self, requests: Sequence[Request], trees: list[list[int]]) -> list[_Open]:
        settings, policy = self.settings, self.policy
        packs = [pack([requests[i].prompt_ids for i in tree]) for tree in trees]
        rows = policy.rows(packs)
        prefix = rows.input_ids.shape[1]
        width = max(sum(requests[i].n for i in tree) for tree in trees)
        capacity = prefix + width * settings.max_new_tokens
        slots = _Branches(len(trees), width, capacity, policy.device)
        live: list[_Open] = []
        starts: list[tuple[int, int]] = []
        first: dict[int, int] = {}
        for b, (tree, p) in enumerate(zip(trees, packs, strict=True)):
            ancestors = p.ancestors()
            slot = 0
            for i, path in zip(tree, p.paths, strict=True):
                n, seed = requests[i].n, requests[i].seed
                slots.seen[b, slot : slot + n, : len(p)] = torch.from_numpy(ancestors[path[-1]])
                slots.positions[b, slot : slot + n] = len(path)
                for copy in range(n):
                    draws = draw_uniforms(seed, copy, settings.max_new_tokens)
                    k, constraint = len(live), constraint_of(requests[i], settings, policy)
                    live.append(_Open(i, copy, uniforms=draws, constraint=constraint))
                    slots.who[b, slot + copy] = k
                    first[k] = slot + copy
                    # What a constraint allows may differ between copies of equal tokens, so they stay apart.
                    if copy and constraint is None:
                        slots.members[k - copy].append(k)
                        continue
                    slots.open[b, slot + copy], slots.members[k] = True, [k]
                    starts.append((b, int(path[-1])))
                slot += n
        slots.seen = slots.seen.to(policy.device)
        layers = policy.core.config.num_hidden_layers
        cache = Cache(layers=[_GrowingLayer(capacity) for _ in range(layers)])
        with policy.inference():
            unique, inverse = np.unique([b * prefix + at for b, at in starts], return_inverse=True)
            logits = policy.logits(policy.hidden_of(rows, unique, cache))[to_device(inverse, policy.device)]
            self._append(live, first, logits, 0, slots)
            length = prefix
            for step in range(1, settings.max_new_tokens):
                open_rows: np.ndarray = np.any(slots.open, axis=1)
                if not open_rows.any():
                    break
                if open_rows.sum() <= open_rows.size * 3 // 4:
                    kept = slots.keep(np.flatnonzero(open_rows))
                    for layer in cache.layers:
                        layer.keep_rows(kept)
                queries, where, length = slots.queries(length)
                hidden = policy.hidden(queries, cache)
                logits = policy.logits(hidden[where[:, 0], where[:, 1]])
                self._append(live, first, logits, step, slots)
        return live

    def _append(
        self, live: list[_Open], first: Mapping[int, int], logits: torch.Tensor, step: int, slots: _Branches
    ) -> None:
        """Draw a token for each open completion; `logits` are of the branches in the order of `slots`."""
        settings, branches = self.settings, slots.branches()
        draws = np.zeros((len(branches), max(map(len, branches))))
        for row, branch in zip(draws, branches, strict=True):
            row[: len(branch)] = [live[k].uniforms[step] for k in branch]
        allowed = self._allowed([live[branch[0]] for branch in branches], logits)
        found = sample_tokens(logits, torch.from_numpy(draws), settings.temperature, settings.top_p, allowed)
        ids, logp, entropy = (x.tolist() for x in found)
        end_ids = self.policy.end_ids
        ends = self.policy.line_ends if settings.max_lines else None
        went_on: list[list[tuple[int, int]]] = []
        for branch, tokens, values, h in zip(branches, ids, logp, entropy, strict=True):
            went_on.append([])
            for k, token, lp in zip(branch, tokens, values, strict=False):
                if math.isnan(lp):
                    raise NotFiniteError("the policy's probabilities are not numbers: its weights are not")
                o = live[k]
                o.ids.append(token)
                o.logprobs.append(lp)
                o.entropies.append(h)
                if o.constraint and token not in end_ids:
                    o.constraint.take(token)
                if token in end_ids:
                    o.done = o.finished = True
                elif ends is not None:
                    o.lines += int(ends[token])
                    o.done = o.finished = o.lines >= settings.max_lines
                if self.on_token and not self.on_token(o.request, o.copy, o.ids):
                    o.done = True
                if not o.done:
                    went_on[-1].append((k, token))
        slots.fork(went_on, first)

    @staticmethod
    def _allowed(heads: Sequence[_Open], logits: torch.Tensor) -> torch.Tensor | None:
        """(q, v) bool, what the constraints allow; `heads` are one completion of each branch."""
        if not any(o.constraint for o in heads):
            return None
        for o, row in zip(heads, logits, strict=True):
            if isinstance(o.constraint, Observer):
                o.constraint.observe(row)
        anything = torch.ones(logits.shape[-1], dtype=torch.bool)
        rows = [o.constraint.allowed() if o.constraint else anything for o in heads]
        return torch.stack(rows).to(logits.device)


def open_backend(reference: str, config: ModelConfig) -> LocalSampler:
    """A model reference on this device."""
    return LocalSampler(load_configured(config, reference))
