"""Decoding without the host in the loop: fixed slots, static caches, sampling on the device.

Each completion has a slot beside the others of its prefix tree for as long as it lasts. Its keys stand in a
buffer of the slot, those of the prefix in one of the tree, so that shapes never change: on a CUDA device a
step is recorded once as a graph and replayed, also for later batches that fit its buffers. The host looks
every `_LOOK` steps whether all have ended, and moves what is open into buffers of half the size where it
fits. The random numbers are those of local.py's branches, and so are the tokens up to rounding; copies with
equal tokens are computed each for itself.

Shapes: b rows (trees), w slots a row, p prefix length, t most new tokens, v vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from selfemo.errors import NotFiniteError
from selfemo.models.attention import SlotKeys
from selfemo.models.generation.draws import Drawn, draw_uniforms, sample_tokens
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.packing import PackedRows, pack
from selfemo.models.policy import LOGITS, Policy, head_size

_LOOK = 8
"""Steps between two looks of the host at what has ended."""
_TABLES = 8
"""Most tables that are kept for later batches, each with its caches and its graph. A batch takes one, and
halves of it."""


def _bucket(n: int, step: int) -> int:
    """`n` rounded up to a multiple of `step`, or, beyond eight of them, of an eighth of its power of two."""
    step = max(step, 1 << max(0, (n - 1).bit_length() - 3))
    return -(-n // step) * step


class _PrefixLayer(DynamicLayer):
    """Keys and values of a layer's prefix, written into given buffers (b, g, p, d)."""

    is_initialized: bool

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self._buffers = keys, values

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        b, _, n, _ = key_states.shape
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:b, :, :n] = states
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0


class _Table:
    """The slots of one shape, with all that a step reads and writes, on the device.

    Attributes:
        prefix, own: of each layer, keys and values (b, g, p, d) and (b, g, w, t, d).
        seen: (b, w, p) bool, the keys of the prefix that a slot may attend to.
        at: (1,) index of the next token of all slots.
        tokens, positions: (b, w) the last token and the position of the next input.
        done, finished: (b, w) bool, ended, and ended by itself.
        lines, length: (b, w) line ends and tokens drawn.
        numbers: (b, w, t) uniform random numbers.
        ids, logprobs, entropies: (b, w, t) what was drawn.
    """

    def __init__(self, policy: Policy, settings: SamplingSettings, b: int, w: int, p: int):
        self.policy, self.settings, self.shape = policy, settings, (b, w, p)
        config, t, device = policy.core.config, settings.max_new_tokens, policy.device
        g, d = getattr(config, "num_key_value_heads", None) or config.num_attention_heads, head_size(config)
        dtype = torch.bfloat16 if policy.dtype == "bf16" else torch.float32

        def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
            keys, values = torch.zeros(2, *shape, dtype=dtype, device=device)
            return keys, values

        layers = range(config.num_hidden_layers)
        self.prefix = [pair(b, g, p, d) for _ in layers]
        self.own = [pair(b, g, w, t, d) for _ in layers]
        self.seen = torch.zeros(b, w, p, dtype=torch.bool, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            # Each for itself: compiled layers are made for a view's offset and base.
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.tokens, self.positions, self.lines, self.length = (zeros(b, w) for _ in range(4))
        self.done, self.finished = (zeros(b, w, dtype=torch.bool) for _ in range(2))
        self.numbers = torch.zeros(b, w, t, dtype=torch.float64, device=device)
        self.ids = torch.zeros(b, w, t, dtype=torch.int64, device=device)
        self.logprobs, self.entropies = torch.zeros(2, b, w, t, device=device).unbind()
        self._columns = torch.arange(t, device=device)
        v = policy.vocabulary
        self._vocabulary = v
        self._ends = torch.zeros(v, dtype=torch.bool, device=device)
        self._ends[torch.tensor(sorted(e for e in policy.end_ids if e < v), dtype=torch.int64)] = True
        self._line_ends = torch.from_numpy(policy.line_ends[:v]).to(device)
        self._graph: Any = None
        self._warm = False
        self.pool: Any = None

    @property
    def state(self) -> tuple[torch.Tensor, ...]:
        """What belongs to each slot, (b, w, ...)."""
        return (
            self.seen, self.tokens, self.positions, self.lines, self.length, self.done, self.finished,
            self.numbers, self.ids, self.logprobs, self.entropies,
        )  # fmt: skip

    def clear(self) -> None:
        """Every slot ended, nothing drawn."""
        for x in (self.at, *self.state):
            x.zero_()
        self.done.fill_(True)

    def draw(self, hidden: torch.Tensor) -> None:
        """Draw the next token of each slot from the hidden state (b * w, d) of its last."""
        settings, shape = self.settings, self.tokens.shape
        numbers = self.numbers.index_select(2, self.at).flatten(0, 1)
        chunk = max(1, LOGITS // self._vocabulary)
        parts = [
            sample_tokens(self.policy.logits(h), u, settings.temperature, settings.top_p)
            for h, u in zip(hidden.split(chunk), numbers.split(chunk), strict=True)
        ]
        ids, logp, entropy = (torch.cat(x).view(*shape) for x in zip(*parts, strict=True))
        for into, x in ((self.ids, ids), (self.logprobs, logp), (self.entropies, entropy)):
            into.index_copy_(2, self.at, x[..., None])
        goes_on, ended = ~self.done, self._ends[ids]
        self.length += goes_on
        if settings.max_lines:
            self.lines += torch.where(ended, 0, self._line_ends[ids])
            ended = ended | (self.lines >= settings.max_lines)
        self.finished |= goes_on & ended
        self.done |= ended
        self.tokens.copy_(ids)
        self.at += 1

    def step(self) -> None:
        """Read the last token of each slot, and draw the next."""
        visible = torch.cat([self.seen, (self._columns < self.at).expand(*self.tokens.shape, -1)], -1)
        keys = SlotKeys(self.prefix, self.own, visible[:, None, None], self.at - 1)
        hidden = self.policy.hidden(PackedRows(self.tokens, self.positions, None, keys))
        self.positions += 1
        self.draw(hidden.flatten(0, 1))

    def advance(self) -> None:
        """`step`, on a CUDA device as a graph from the second time on."""
        if self.policy.device.type != "cuda":
            return self.step()
        if self._graph is not None:
            self._graph.replay()
            return None
        # Training changes weights in place: a graph casts them anew, and reads no casts of its first use.
        with self.policy.autocast(cached=False):
            if not self._warm:
                self._warm = True
                return self.step()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                self.step()
        self._graph = graph
        graph.replay()  # recording has computed nothing
        return None


class SlotTables:
    """Tables that were used before, of one policy, by shape and settings; the last few are kept on CUDA."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, _Table] = OrderedDict()
        self._pool: Any = None

    def get(self, policy: Policy, settings: SamplingSettings, shape: tuple[int, int, int]) -> _Table:
        """A cleared table of b rows, w slots and p tokens."""
        if policy.device.type != "cuda":
            table = _Table(policy, settings, *shape)
        else:
            of = (settings.max_new_tokens, settings.temperature, settings.top_p, settings.max_lines)
            key = (shape, of, id(policy.core), id(policy.tokenizer), policy.end_ids)
            found = self._kept.pop(key, None)
            # Another is let go of before a new one asks for memory.
            while found is None and len(self._kept) >= _TABLES:
                self._kept.popitem(last=False)
            table = self._kept[key] = found or _Table(policy, settings, *shape)
            # One graph runs at a time, and nothing in the pool is read behind it: all share one.
            self._pool = table.pool = self._pool or torch.cuda.graph_pool_handle()
        table.clear()
        return table


@torch.no_grad()
def decode_slots(
    policy: Policy,
    settings: SamplingSettings,
    requests: Sequence[Request],
    trees: Sequence[Sequence[int]],
    tables: SlotTables,
) -> list[Drawn]:
    """The completions of one batch of trees (lists of request indices).

    Raises:
        NotFiniteError: a probability is not a number.
    """
    packs = [pack([requests[i].prompt_ids for i in tree]) for tree in trees]
    rows = policy.rows(packs)
    prefix = rows.input_ids.shape[1]
    width = max(sum(requests[i].n for i in tree) for tree in trees)
    table = tables.get(policy, settings, (_bucket(len(trees), 1), _bucket(width, 4), _bucket(prefix, 64)))
    b, w, p = table.shape
    found: list[Drawn] = []
    who = np.full((b, w), -1)
    seen, positions = np.zeros((b, w, p), dtype=bool), np.zeros((b, w), dtype=np.int64)
    last = np.zeros((len(trees), w), dtype=np.int64)
    numbers = np.zeros((b, w, settings.max_new_tokens))
    for row, (tree, packed) in enumerate(zip(trees, packs, strict=True)):
        slot = 0
        for i, path in zip(tree, packed.paths, strict=True):
            mine = slice(slot, slot + requests[i].n)
            seen[row, mine][:, path] = True
            positions[row, mine], last[row, mine] = len(path), path[-1]
            for copy in range(requests[i].n):
                who[row, slot + copy] = len(found)
                numbers[row, slot + copy] = draw_uniforms(requests[i].seed, copy, settings.max_new_tokens)
                found.append(Drawn(i, copy))
            slot += requests[i].n
    for into, x in ((table.seen, seen), (table.positions, positions), (table.numbers, numbers)):
        into.copy_(torch.from_numpy(x))
    table.done.copy_(torch.from_numpy(who < 0))
    with policy.autocast():
        layers = [_PrefixLayer(*buffers) for buffers in table.prefix]
        hidden = policy.hidden(rows, Cache(layers=layers))
        at = torch.from_numpy(last).to(policy.device)
        ends = torch.zeros(b, w, hidden.shape[-1], dtype=hidden.dtype, device=policy.device)
        ends[: len(trees)] = hidden[torch.arange(len(trees), device=policy.device)[:, None], at]
        table.draw(ends.flatten(0, 1))
        for step in range(1, settings.max_new_tokens):
            if step % _LOOK == 0:
                goes_on = ~table.done.cpu().numpy()
                if not goes_on.any():
                    break
                table, who = _smaller(table, who, goes_on, tables, found)
            table.advance()
    _read(table, who, found)
    return found


def _smaller(
    table: _Table, who: np.ndarray, goes_on: np.ndarray, tables: SlotTables, found: list[Drawn]
) -> tuple[_Table, np.ndarray]:
    """The open slots in a table of half the rows or slots, or a half of that, if they fit; reads the rest."""
    b, w, p = table.shape
    rows = np.flatnonzero(goes_on.any(1))
    width = int(goes_on.sum(1).max())
    shape = _halved(b, len(rows)), _halved(w, width), p
    if shape == table.shape:
        return table, who
    _read(table, np.where(goes_on, -1, who), found)
    order = np.argsort(~goes_on[rows], axis=1, kind="stable")[:, :width]
    device = table.policy.device
    at, slots = torch.from_numpy(rows).to(device), torch.from_numpy(order).to(device)
    new = tables.get(table.policy, table.settings, shape)
    n = len(rows)
    for into, x in zip(new.state, table.state, strict=True):
        into[:n, :width] = x[at[:, None], slots]
    for (before, own), (new_before, new_own) in zip(
        zip(table.prefix, table.own, strict=True), zip(new.prefix, new.own, strict=True), strict=True
    ):
        for x, into in zip(before, new_before, strict=True):
            into[:n] = x[at]
        for x, into in zip(own, new_own, strict=True):
            into[:n, :, :width] = x[at[:, None], :, slots].transpose(1, 2)
    new.at.copy_(table.at)
    kept = np.full(new.tokens.shape, -1)
    kept[:n, :width] = np.where(np.take_along_axis(goes_on[rows], order, 1), who[rows[:, None], order], -1)
    return new, kept


def _halved(n: int, least: int) -> int:
    """n, halved as long as `least` fit: few sizes, so that later batches find their tables and graphs."""
    while (half := -(-n // 2)) >= least and half < n:
        n = half
    return n


def _read(table: _Table, who: np.ndarray, found: list[Drawn]) -> None:
    """Give what was drawn to the completions `who` (b, w); -1 for slots without one."""
    at = np.nonzero(who >= 0)
    ids, logprobs, entropies, length, finished = (
        x.cpu().numpy()[at]
        for x in (table.ids, table.logprobs, table.entropies, table.length, table.finished)
    )
    values = zip(who[at].tolist(), ids, logprobs, entropies, length.tolist(), finished.tolist(), strict=True)
    for k, tokens, logp, entropy, n, whole in values:
        if np.isnan(logp[:n]).any():
            raise NotFiniteError("the policy's probabilities are not numbers: its weights are not")
        drawn = found[k]
        drawn.ids, drawn.logprobs, drawn.entropies = (x[:n].tolist() for x in (tokens, logp, entropy))
        drawn.finished = whole
