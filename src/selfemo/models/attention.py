"""The attention implementation that is registered with transformers: which path computes it.

By the `tree` argument of a forward pass: blocks of a packed tree (blocks.py), FlexAttention (flex.py), a few
queries of decoding, or slots of decoding; without one it is transformers' own scaled dot product attention.

Shapes: b rows, h query heads, g key/value heads, r = h / g, q queries, p keys, s row length, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from selfemo.models import blocks, flex

IMPLEMENTATION = "selfemo_tree"
_OTHER_TERMS = ("position_bias", "s_aux", "sinks", "softcap")
"""Arguments by which some architectures change the scores; no path here, nor PyTorch's own, takes them."""
_FEW_QUERIES = 64
"""Up to here keys are not repeated for the query heads that share them."""


@dataclass(frozen=True)
class FewQueries:
    """The keys that a few queries see, for query heads as further queries.

    Attributes:
        mask: (b, 1, r q, p) what is added to the scores of q queries: 0, or minus infinity.
    """

    mask: torch.Tensor


def heads_of_a_key(config: Any) -> int:
    """How many query heads share a key head (r)."""
    h: int = config.num_attention_heads
    return h // (getattr(config, "num_key_value_heads", None) or h)


def few_queries(seen: torch.Tensor, r: int, dtype: torch.dtype) -> FewQueries | None:
    """The plan of queries that see the keys of `seen` (b, 1, q, p bool); None where they are many, or r is 1.

    It is made once for all layers.
    """
    b, _, q, p = seen.shape
    if r == 1 or q > _FEW_QUERIES:
        return None
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
    return FewQueries(mask[:, :, None].expand(-1, -1, r, -1, -1).reshape(b, 1, r * q, p))


@dataclass(frozen=True)
class SlotKeys:
    """The keys of completions in fixed slots behind shared prefixes (generation/slots.py).

    Attributes:
        prefix: of each layer, keys and values (b, g, p, d) of the rows' prefixes.
        own: of each layer, keys and values (b, g, w, t, d) of the tokens in each slot.
        visible: (b, 1, 1, w, p + t) bool, the keys of either that a slot may attend to.
        at: (1,) where the present token's key goes in `own`.
    """

    prefix: Sequence[tuple[torch.Tensor, torch.Tensor]]
    own: Sequence[tuple[torch.Tensor, torch.Tensor]]
    visible: torch.Tensor
    at: torch.Tensor


def tree_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree: blocks.TreePlan | FewQueries | SlotKeys | flex.FlexPlan | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """(b, s, h, d) outputs for queries (b, h, s, d), keys and values (b, g, s, d); zero at padding.

    Raises: ValueError: the architecture's scores have a further term, such as sinks.
    """
    if other := [name for name in _OTHER_TERMS if kwargs.get(name) is not None]:
        raise ValueError(f"its attention scores have a further term: {', '.join(other)}")
    if isinstance(tree, SlotKeys):
        return _slots(query, key, value, tree, module.layer_idx, scaling), None
    if isinstance(tree, flex.FlexPlan):
        return flex.attend(query, key, value, tree, scaling), None
    if isinstance(tree, FewQueries):
        return _few_queries(query, key, value, tree.mask, scaling), None
    if tree is None:
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return out
    return blocks.attend(query, key, value, tree, scaling, dropout), None


def _few_queries(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Decoding: the query heads of one key head become further queries, so that no cache is copied."""
    b, h, q, d = query.shape
    g = key.shape[1]
    folded = query.reshape(b, g, h // g * q, d)
    out = functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(b, h, q, d).transpose(1, 2).contiguous()


def _slots(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: SlotKeys,
    layer: int,
    scaling: float | None,
) -> torch.Tensor:
    """(b, w, h, d) outputs of one token a slot, queries (b, h, w, d), whose key and value join `keys.own`.

    Scores over the prefix and over the slot's own tokens are two products and one softmax, in fp32.
    """
    b, h, w, d = query.shape
    (before, before_v), (own, own_v) = keys.prefix[layer], keys.own[layer]
    for buffer, x in ((own, key), (own_v, value)):
        buffer.index_copy_(3, keys.at, x[:, :, :, None].to(buffer.dtype))
    g, p = before.shape[1:3]
    query = query.reshape(b, g, h // g, w, d)
    shared = (query.flatten(2, 3) @ before.mT).view(b, g, h // g, w, p)
    scores = torch.cat([shared, torch.einsum("bgrwd,bgwtd->bgrwt", query, own)], -1).float()
    scores = scores * (d**-0.5 if scaling is None else scaling)
    weights = scores.masked_fill(~keys.visible, -torch.inf).softmax(-1).to(before.dtype)
    out = (weights[..., :p].flatten(2, 3) @ before_v).view(b, g, h // g, w, d)
    out = out + torch.einsum("bgrwt,bgwtd->bgrwd", weights[..., p:], own_v)
    return out.reshape(b, h, w, d).transpose(1, 2).contiguous()


AttentionInterface.register(IMPLEMENTATION, tree_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
