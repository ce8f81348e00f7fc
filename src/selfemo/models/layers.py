"""The parts of a decoder layer on a CPU, each with a backward pass of its own.

A layer of half a thousand units is bound by memory as much as by arithmetic, and what autograd makes of a
norm or of a gated MLP are a dozen passes over tensors that no cache holds, most of them kept until the
backward pass. Here each part is one node that keeps its inputs alone, and works on as many rows at a time as
a core's cache holds.

Products are in fp32 wherever the CPU has no matrix unit (AMX) for bf16: its other instructions for bf16 have
half the rate of fp32's, and without them bf16 is emulated, tens of times slower. Then bf16 is what tensors
between the parts are kept in, and weights are used as they are.

Shapes: m rows (tokens), d units, e units inside the MLP.
"""

from __future__ import annotations

import copy
import types
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPast

from selfemo.models.attention import FewQueries, few_queries, heads_of_a_key, tree_attention
from selfemo.models.blocks import plan
from selfemo.models.devices import cpu_flags
from selfemo.models.packing import pack

_ROWS = 256
"""Rows at a time."""


class _Norm(torch.autograd.Function):
    """RMSNorm of (m, d) in fp32, handed on in another precision."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float, dtype: torch.dtype
    ) -> torch.Tensor:
        out, scale = torch.empty(x.shape, dtype=dtype), torch.empty(len(x), 1)
        for part, s, o in zip(*(t.split(_ROWS) for t in (x, scale, out)), strict=True):
            s.copy_(_scale(part, epsilon))
            _put(torch.mul(part, s, out=_room(o)).mul_(weight), o)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight, scale = ctx.saved_tensors
        d_x, d_weight = torch.empty_like(x), torch.zeros(1, x.shape[-1])
        parts = (t.split(_ROWS) for t in (x, scale, grad, d_x))
        for part, s, g, d in zip(*parts, strict=True):
            part, g = part.float(), g.float()
            both = g * part
            d_weight.addmm_(s.T, both)
            inner = torch.mv(both, weight)[:, None].mul_(s**3).div_(-x.shape[-1])
            _put(torch.mul(g, weight, out=_room(d)).mul_(s).addcmul_(part, inner), d)
        return d_x, d_weight[0].to(weight.dtype), None, None


def _scale(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """(m, 1) fp32: one over the root mean square of the rows of (m, d)."""
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norms.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()


class _Linear(torch.autograd.Function):
    """x @ weight.T + bias of (m, d) by products in fp32, handed on in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        with torch.autocast("cpu", enabled=False):
            return functional.linear(x.float(), weight, bias).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        wide = grad.float()
        need_x, need_weight, *_ = ctx.needs_input_grad
        return (
            (wide @ weight).to(x.dtype) if need_x else None,
            # In the layout of the weight, so that it becomes its gradient as it is.
            torch.mm(wide.T, x.float(), out=torch.empty_like(weight)) if need_weight else None,
            wide.sum(0) if ctx.biased else None,
            None,
        )


class _GatedMlp(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) of (m, d) by products in `dtype`, handed on in the precision of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gate: torch.Tensor,
        up: torch.Tensor,
        down: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        gate, up, down = (w.to(dtype) for w in (gate, up, down))
        m, kept = len(x), any(ctx.needs_input_grad)
        out = torch.empty_like(x)
        inner = [torch.empty(m, len(gate), dtype=x.dtype) for _ in range(2)] if kept else []
        with torch.autocast("cpu", enabled=False):
            for k in range(0, m, _ROWS):
                at = slice(k, k + _ROWS)
                part = x[at].to(dtype)
                into = [i[at] for i in inner] if kept else [None, None]
                g, u = (_product(part, w.T, i) for w, i in zip((gate, up), into, strict=True))
                _product(functional.silu(g).mul_(u), down.T, out[at])
        ctx.save_for_backward(x, gate, up, down, *inner)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, gate, up, down, gated, upper = ctx.saved_tensors
        dtype = gate.dtype
        d_x = torch.empty_like(x)
        d_gate, d_up, d_down = (torch.empty_like(w) for w in (gate, up, down))
        for k in range(0, len(x), _ROWS):
            at = slice(k, k + _ROWS)
            part, g, u, out = (t[at].to(dtype) for t in (x, gated, upper, grad))
            d_inner = out @ down
            silu = functional.silu(g)
            d_u = d_inner * silu
            d_g = torch.ops.aten.silu_backward(d_inner.mul_(u), g)
            # A beta of 0 does not read what is there.
            d_down.addmm_(out.T, silu.mul_(u), beta=k > 0)
            d_gate.addmm_(d_g.T, part, beta=k > 0)
            d_up.addmm_(d_u.T, part, beta=k > 0)
            _product(d_g, gate, d_x[at], d_u, up)
        return d_x, d_gate.float(), d_up.float(), d_down.float(), None


class _Projections(torch.autograd.Function):
    """Queries and keys with their rotary positions, and values, of (m, d) by products in `dtype`.

    Args:
        weights: of queries, keys and values; biases: the same, each may be None.
        turn: (m, c) cosines and sines of the positions, of head size c.

    Returns:
        (m, heads, c) of each, in `out`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        wq: torch.Tensor, wk: torch.Tensor, wv: torch.Tensor,
        bq: torch.Tensor | None, bk: torch.Tensor | None, bv: torch.Tensor | None,
        cos: torch.Tensor, sin: torch.Tensor,
        dtype: torch.dtype, out: torch.dtype,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        m, c = cos.shape
        weights = [w.to(dtype) for w in (wq, wk, wv)]
        found = [torch.empty(m, len(w) // c, c, dtype=out) for w in weights]
        with torch.autocast("cpu", enabled=False):
            for k in range(0, m, _ROWS):
                at = slice(k, k + _ROWS)
                part = x[at].to(dtype)
                for whole, w, b, turned in zip(found, weights, (bq, bk, bv), (1, 1, 0), strict=True):
                    y = functional.linear(part, w, None if b is None else b.to(dtype)).float()
                    y = y.unflatten(1, (-1, c))
                    if turned:
                        y = _turned(y, cos[at, None], sin[at, None], _room(whole[at]))
                    _put(y, whole[at])
        ctx.save_for_backward(x, *weights, cos, sin)
        ctx.biased = [b is not None for b in (bq, bk, bv)]
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        x, *weights, cos, sin = ctx.saved_tensors
        dtype, back = weights[0].dtype, -sin
        d_x = torch.empty_like(x)
        d_weights = [torch.empty_like(w) for w in weights]
        d_biases = [torch.zeros(len(w)) if b else None for w, b in zip(weights, ctx.biased, strict=True)]
        for k in range(0, len(x), _ROWS):
            at = slice(k, k + _ROWS)
            part = x[at].to(dtype)
            into = d_x[at] if d_x.dtype == dtype else torch.empty(part.shape, dtype=dtype)
            for j, (grad, w) in enumerate(zip(grads, weights, strict=True)):
                y = grad[at].float()
                if j < 2:
                    # The transpose of a turn is the turn back; cosines and sines of both halves are equal.
                    y = _turned(y, cos[at, None], back[at, None])
                y = y.flatten(1)
                if (d_bias := d_biases[j]) is not None:
                    d_bias += y.sum(0)
                y = y.to(dtype)
                d_weights[j].addmm_(y.T, part, beta=k > 0)
                into = torch.mm(y, w, out=into) if j == 0 else into.addmm_(y, w)
            _put(into, d_x[at])
        return d_x, *(d.float() for d in d_weights), *d_biases, None, None, None, None


def _room(out: torch.Tensor) -> torch.Tensor:
    """Where to compute in fp32 what goes into `out` in the end: there, if it is fp32."""
    return out if out.dtype == torch.float32 else torch.empty(out.shape)


def _put(found: torch.Tensor, out: torch.Tensor) -> None:
    if found.data_ptr() != out.data_ptr():
        out.copy_(found)


def _turned(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Rotary positions of (m, heads, c), by cosines and sines (m, 1, c): first half and second are a pair."""
    half = x.shape[-1] // 2
    out = torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None, *more: torch.Tensor) -> torch.Tensor:
    """a @ b, to which the product of `more` is added; written into `out`, in its precision."""
    direct = out is not None and out.dtype == a.dtype
    found = torch.mm(a, b, out=out) if direct else a @ b
    if more:
        found.addmm_(*more)
    if out is not None and not direct:
        out.copy_(found)
    return found


def has_matrix_unit() -> bool:
    """Whether this CPU multiplies matrices in bf16 faster than in fp32."""
    return bool(cpu_flags() & {"amx_bf16", "bf16"})


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _plain(*parts: Any) -> bool:
    """Whether these are linear layers, no adapters, and train: without gradients autograd costs nothing."""
    return torch.is_grad_enabled() and _linear_layers(*parts)


def _linear_layers(*parts: Any) -> bool:
    return all(type(p) is nn.Linear for p in parts)


def _kept() -> torch.dtype:
    """What tensors between the parts are kept in."""
    return torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32


def _norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled():
        found: torch.Tensor = _Norm.apply(_flat(hidden), self.weight, self.variance_epsilon, _kept())
        return found.view(hidden.shape)
    return (hidden * _scale(hidden, self.variance_epsilon)).mul_(self.weight).to(_kept())


def _linear(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    return _projected(self, hidden, _kept())


def _head(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    return _projected(self, hidden, torch.float32)


def _projected(layer: nn.Linear, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if torch.is_grad_enabled():
        found: torch.Tensor = _Linear.apply(_flat(hidden).to(_kept()), layer.weight, layer.bias, dtype)
        return found.view(*hidden.shape[:-1], -1)
    if not torch.is_autocast_enabled("cpu"):
        return functional.linear(hidden, layer.weight, layer.bias)
    with torch.autocast("cpu", enabled=False):
        return functional.linear(hidden.float(), layer.weight, layer.bias).to(dtype)


def _last_layer(self: Any, hidden_states: torch.Tensor, tree: Any = None, **kwargs: Any) -> Any:
    """A decoder layer that computes but the tokens that are needed of it."""
    narrow, own = getattr(tree, "last", None), self.self_attn
    if narrow is None or not _linear_layers(own.q_proj, own.k_proj, own.v_proj):
        return type(self).forward(self, hidden_states, tree=tree, **kwargs)
    out, _ = own(hidden_states=self.input_layernorm(hidden_states), tree=narrow, **kwargs)
    hidden_states = hidden_states.index_select(1, narrow.only) + out
    return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def _decoder(
    self: Any,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    tree: Any = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> Any:
    """A step of decoding without a call of a module in between, which costs as much as a small kernel."""
    plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    if not (
        plain and isinstance(tree, FewQueries) and all(_linear_layers(*_linear_of(x)) for x in self.layers)
    ):
        return type(self).forward(
            self, input_ids, position_ids=position_ids, tree=tree, past_key_values=past_key_values, **kwargs
        )
    hidden = self.embed_tokens(input_ids)
    cos, sin = (x.flatten(0, 1)[:, None] for x in self.rotary_emb(hidden, position_ids))
    x = hidden.flatten(0, 1)
    for layer in self.layers:
        x = _decoded(layer, x, cos, sin, tree, past_key_values, len(hidden))
    return BaseModelOutputWithPast(_rms_norm(self.norm, x).view(hidden.shape))


def _decoded(
    layer: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, seen: FewQueries, cache: Any, rows: int
) -> torch.Tensor:
    """(m, d) the output of a decoder layer for the tokens of some rows; cosines and sines are (m, 1, c)."""
    q, k, v, o, gate, up, down = _linear_of(layer)
    own, c = layer.self_attn, cos.shape[-1]
    normed = _rms_norm(layer.input_layernorm, x)
    turned = torch.cat([functional.linear(normed, p.weight, p.bias) for p in (q, k)], 1).unflatten(1, (-1, c))
    query, key = _turned(turned, cos, sin).split((len(q.weight) // c, len(k.weight) // c), 1)
    value = functional.linear(normed, v.weight, v.bias).unflatten(1, (-1, c))
    query, key, value = (y.unflatten(0, (rows, -1)).transpose(1, 2) for y in (query, key, value))
    key, value = cache.update(key, value, own.layer_idx)
    attended, _ = tree_attention(own, query, key, value, None, scaling=own.scaling, tree=seen)
    x = _sum(x, attended.flatten(2).flatten(0, 1), o)
    normed = _rms_norm(layer.post_attention_layernorm, x)
    inner = functional.silu(functional.linear(normed, gate.weight)).mul_(functional.linear(normed, up.weight))
    return _sum(x, inner, down)


def _linear_of(layer: Any) -> tuple[Any, ...]:
    own, mlp = layer.self_attn, layer.mlp
    return own.q_proj, own.k_proj, own.v_proj, own.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _rms_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _sum(x: torch.Tensor, inner: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    x = torch.addmm(x, inner, layer.weight.T)
    return x if layer.bias is None else x.add_(layer.bias)


def take_over(model: Any, *, bf16: bool) -> None:
    """Let the parts of a transformers model that are understood here compute by this module.

    A part is known by the names of its layers, and is left alone where its own class computes something else.

    Args:
        bf16: compute products in bf16, else in fp32, also under autocast.
    """
    dtype = torch.bfloat16 if bf16 else torch.float32

    def mlp(self: Any, hidden: torch.Tensor) -> Any:
        parts = (self.gate_proj, self.up_proj, self.down_proj)
        if not _plain(*parts):
            return type(self).forward(self, hidden)
        return _GatedMlp.apply(_flat(hidden), *(p.weight for p in parts), dtype).view(hidden.shape)

    def attention(
        self: Any,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        parts = (self.q_proj, self.k_proj, self.v_proj)
        only = getattr(kwargs.get("tree"), "only", None)
        if only is None and not _plain(*parts):
            return type(self).forward(
                self, hidden_states, position_embeddings=position_embeddings, attention_mask=attention_mask,
                past_key_values=past_key_values, **kwargs,
            )  # fmt: skip
        shape = hidden_states.shape[:-1]
        cos, sin = (_flat(x.float().expand(*shape, -1)) for x in position_embeddings)
        found = _Projections.apply(
            _flat(hidden_states),
            *(p.weight for p in parts),
            *(p.bias for p in parts),
            cos,
            sin,
            dtype,
            _kept(),
        )
        query, key, value = (x.view(*shape, *x.shape[1:]).transpose(1, 2) for x in found)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if only is not None:
            query, shape = query.index_select(2, only), torch.Size((1, len(only)))
        dropout = self.attention_dropout if self.training else 0.0
        out, weights = tree_attention(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(out.reshape(*shape, -1)), weights

    hidden = torch.linspace(-1, 1, 5 * model.config.get_text_config().hidden_size).view(1, 5, -1)
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    places = {"attention_mask": None}
    if rotary is not None:
        places["position_embeddings"] = rotary(hidden, torch.arange(5)[None])

    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            _take(module, _norm, hidden[..., : len(module.weight)])
        elif name.endswith("MLP") and _has(module, "gate_proj", "up_proj", "down_proj"):
            if all(p.bias is None for p in (module.gate_proj, module.up_proj, module.down_proj)):
                _take(module, mlp, hidden)
        elif name.endswith("Attention") and _has(module, "q_proj", "k_proj", "v_proj", "o_proj"):
            _take(module, attention, hidden, **places)
    _take_decoder(model, hidden, places)
    if not bf16:
        _products_in_fp32(model)


def _take(module: Any, forward: Any, *args: Any, **more: Any) -> None:
    """Give a module another forward if both agree; each by itself, since layers of one model may differ."""
    if _agrees(module, forward, *args, **more):
        module.forward = types.MethodType(forward, module)


def _take_decoder(model: Any, hidden: torch.Tensor, places: dict[str, Any]) -> None:
    """Take over the last layer and the steps of decoding, where all that they consist of is taken over."""
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", [])
    if len(layers) and "forward" in vars(getattr(layers[-1], "self_attn", model)):
        row = plan([pack([range(5)])], 5, "cpu")
        _take(layers[-1], _last_layer, hidden, tree=row.narrowed(np.arange(5)), **places)
    if len(layers) and all("forward" in vars(x) for layer in layers for x in _parts(layer)):
        _take(decoder, _decoder, grad=False, **_three_branches(model))


def _parts(layer: Any) -> list[Any]:
    """Those that can be taken over; the layer itself stands for one that it has not."""
    names = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    return [getattr(layer, name, layer) for name in names]


def _three_branches(model: Any) -> dict[str, Any]:
    """Arguments of a step of decoding, on which a decoder is tried: three branches behind two tokens."""
    seen = torch.tensor([[[[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 0, 0, 1]]]]).bool()
    with torch.no_grad():
        first = model.get_decoder()(input_ids=torch.tensor([[1, 2]]), use_cache=True)
    return {
        "input_ids": torch.tensor([[0, 1, 2]]),
        "position_ids": torch.tensor([[2, 2, 1]]),
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool),
        "tree": few_queries(seen, heads_of_a_key(model.config), torch.float32),
        "past_key_values": first.past_key_values,
        "use_cache": True,
    }


def _products_in_fp32(model: Any) -> None:
    head = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is nn.Linear:
            setattr(module, "forward", types.MethodType(_head if module is head else _linear, module))  # noqa: B010
            if module is not head:
                # A few rows, as in decoding, are multiplied up to 1.4 times as fast by a transposed weight.
                module.weight.data = module.weight.data.T.contiguous().T


def _has(module: Any, *names: str) -> bool:
    return all(hasattr(module, n) for n in names)


def _agrees(module: Any, forward: Any, *args: Any, grad: bool = True, **more: Any) -> bool:
    """Whether another forward gives what the module's own gives, on arguments that both take."""
    try:
        with torch.set_grad_enabled(grad):
            # Each with a copy: a cache is changed by what it is given to.
            found, own = (f(module, *args, **copy.deepcopy(more)) for f in (forward, type(module).forward))
    except (TypeError, AttributeError, RuntimeError, ValueError):
        return False
    found, own = ((x if isinstance(x, torch.Tensor) else x[0]).detach() for x in (found, own))
    if found.shape != own.shape:
        return False
    return torch.allclose(found, own, rtol=1e-3, atol=1e-4 * float(own.abs().max()))
