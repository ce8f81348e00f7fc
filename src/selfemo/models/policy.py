"""A model with its tokenizer on one device, and the tokenizer alone: text to token ids and back."""

from __future__ import annotations

import contextlib
import math
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from selfemo.errors import EngineError
from selfemo.method.prompts import FIRST_FIELDS
from selfemo.models.chat_template import Mended, render, special, turn_end
from selfemo.models.packing import Pack, PackedRows, to_rows

if TYPE_CHECKING:
    import torch

Attention = Literal["tree", "dense", "flex"]
"""The attention of packed rows: "tree" leaves masked blocks out (blocks.py), so a row costs the keys
that its tokens see; "dense" is one kernel over a dense mask, so a row costs the square of its length; "flex"
is one kernel that leaves whole blocks out (flex.py)."""


Decoder = Literal["branches", "slots"]
"""How completions are decoded: "branches" computes equal copies once, with the host in each step
(generation/local.py); "slots" keeps each step on the device (generation/slots.py)."""

LOGITS = 1 << 28
"""Most logits at a time: 1 GiB in fp32, of which a loss or a draw takes a few times as much."""
_NEVER = -1e9
"""The logit of what is never drawn."""
_CHATS = 16_384
"""Most chats whose token ids are kept: four bytes a token, besides the text."""


def head_size(config: Any) -> int:
    """Of a transformers configuration's attention heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


class Encoder(ABC):
    """Writes a chat as token ids and reads token ids as text, by a tokenizer alone."""

    tokenizer: Any

    @property
    @abstractmethod
    def _generation_config(self) -> Any: ...

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Rows of the model's vocabulary, which may be more than the tokenizer has tokens."""

    @property
    @abstractmethod
    def context(self) -> int | None:
        """Most tokens of a sequence by the model's configuration; None where it does not say."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a completion: `end_id`, the tokenizer's, those of the generation settings."""
        ids = {*self._named_ends, self.end_id}
        return frozenset(ids if (own := self.tokenizer.eos_token_id) is None else {*ids, own})

    @property
    def _named_ends(self) -> list[int]:
        """The end tokens of the generation settings."""
        value = getattr(self._generation_config, "eos_token_id", None)
        return list(value) if isinstance(value, Sequence) else [] if value is None else [value]

    @cached_property
    def end_id(self) -> int:
        """The token that closes a completion: what the chat template writes behind an assistant's text.

        Where it writes none, the tokenizer's end token, else the first of the generation settings.

        Raises: EngineError: nothing names one.
        """
        own = self.tokenizer.eos_token_id
        found = [turn_end(self.tokenizer), own, *self._named_ends]
        for token in found:
            if token is not None:
                return int(token)
        raise EngineError(
            "its tokenizer names no end token (eos_token), nor do its template and generation_config.json; "
            "write eos_token into tokenizer_config.json"
        )

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return special(self.tokenizer)

    def defused(self, text: str) -> str:
        """`text` with a blank inside whatever the tokenizer would read as one of its special tokens."""
        while (apart := self._special.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text)) != text:
            text = apart  # two that overlap are parted one after the other
        return text

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a chat up to where the assistant's completion starts.

        Special tokens come from the template alone: a message's text cannot open another role. The ids of
        the last chats are kept: a run asks for the same prompts again and again.
        """
        chat = tuple((m["role"], m["content"]) for m in messages)
        if (known := self._chats.get(chat)) is None:
            if len(self._chats) >= _CHATS:
                self._chats.clear()
            known = self._chats[chat] = array("i", self._encode(messages))
        return known.tolist()

    @cached_property
    def _chats(self) -> dict[tuple[tuple[str, str], ...], array[int]]:
        return {}

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        messages = [{**m, "content": self.defused(m["content"])} for m in messages]
        return self.plain_ids(render(self.tokenizer, messages))

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text as it stands."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def line_ids(self, text: str) -> list[int]:
        """Token ids of a part of a completion that begins a line.

        Some tokenizers put a blank before every text. It is left out before a later line, as it is where a
        completion is encoded as a whole.
        """
        if text.startswith(FIRST_FIELDS) or not self._puts_blanks:
            return self.plain_ids(text)
        return self.plain_ids(f"\n{text}")[len(self.plain_ids("\n")) :]

    @cached_property
    def _puts_blanks(self) -> bool:
        first, second = "E: joy\n", "S: joy"
        return self.decode([*self.plain_ids(first), *self.plain_ids(second)]) != first + second

    def decode(self, ids: Sequence[int]) -> str:
        ends = self.end_ids
        kept = [i for i in ids if i not in ends]
        # Some tokenizers take out the blank before a comma unless they are told not to.
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def encode_completion(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a completion, closed by the end token, with each token's characters.

        A first part of one, which ends with a line end, is not closed.
        """
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded.input_ids), [tuple(o) for o in encoded.offset_mapping]
        if text.endswith("\n"):
            return ids, offsets
        return [*ids, self.end_id], [*offsets, (len(text), len(text))]

    @cached_property
    def line_ends(self) -> np.ndarray:
        """(v,) how many line ends each token holds."""
        ids = [[i] for i in range(self.vocabulary)]
        return np.array([t.count("\n") for t in self.tokenizer.batch_decode(ids)])

    def take_tokenizer(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        for derived in ("_special", "_chats", "_puts_blanks", "end_id", "line_ends"):
            self.__dict__.pop(derived, None)


@dataclass
class ChatTokenizer(Encoder):
    """The tokenizer of a model without its weights.

    Attributes:
        mended: what its chat template lacked.
        config: the model's own.
    """

    tokenizer: Any
    generation_config: Any = None
    mended: Mended = field(default_factory=Mended)
    config: Any = None

    @property
    def vocabulary(self) -> int:
        return int(self.config.get_text_config().vocab_size)

    @property
    def context(self) -> int | None:
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @property
    def _generation_config(self) -> Any:
        return self.generation_config


@dataclass
class Policy(Encoder):
    """A causal language model with its tokenizer, on one device.

    Attributes:
        model: the module that trains (a PEFT wrapper under LoRA).
        core: the transformers model inside it.
        dtype: precision of the forward pass; fp32 weights with "bf16" run under autocast.
        source: folder or hub id that the weights were loaded from.
        attention: the attention path of packed rows.
        decoder: the decoding path of completions without constraints.
        compiled: its decoder layers are compiled, where no cache grows.
        fp32_head: compute logits in fp32 where the rest is bf16.
        spare: (n,) rows of the vocabulary that no token has, None without any: they are never drawn.
        bf16_products: products of "bf16" are computed in it; without, as on most CPUs, it saves memory alone.
    """

    model: Any
    core: Any
    tokenizer: Any
    device: torch.device
    dtype: str = "fp32"
    source: str = ""
    attention: Attention = "dense"
    decoder: Decoder = "branches"
    compiled: bool = False
    fp32_head: bool = False
    spare: torch.Tensor | None = None
    bf16_products: bool = True

    def rows(self, packs: Sequence[Pack], multiple: int = 1) -> PackedRows:
        """Packed trees as rows on this device, with the mask or the plan of the attention path.

        Raises: EngineError: see `must_hold`.
        """
        from selfemo.models import blocks, flex

        self.must_hold(max(len(path) for p in packs for path in p.paths))
        if self.attention == "flex" and max(map(len, packs)) >= flex.LEAST_TOKENS:
            multiple = math.lcm(multiple, flex.BLOCK)
            rows = to_rows(packs, self.device, multiple, masked=False)
            return replace(rows, tree=flex.plan(packs, rows.input_ids.shape[1], self.device))
        if self.attention != "tree":
            return to_rows(packs, self.device, multiple)
        rows = to_rows(packs, self.device, multiple, masked=False)
        return replace(rows, tree=blocks.plan(packs, rows.input_ids.shape[1], self.device))

    def must_hold(self, tokens: int) -> None:
        """Check that a model whose positions are a table, as GPT-2's are, has so many of them.

        Rotary positions have no last one, and what a model makes of those beyond its context is its own.

        Raises: EngineError: it has not.
        """
        room = self.context
        if room is not None and tokens > room and not hasattr(self.core.config, "rope_parameters"):
            raise EngineError(
                f"{self.source or 'the model'}: a prompt with its completion may have {tokens} tokens, and "
                f"the model has positions for {room}; lower prompt.max_tokens or the max_new_tokens in use"
            )

    @property
    def joins_trees(self) -> bool:
        """Whether trees side by side in one row cost no more than in rows of their own."""
        return self.attention != "dense"

    def autocast(self, *, cached: bool = True) -> Any:
        """The precision of forward passes; not `cached`, weights are cast again at each use."""
        import torch

        bf16 = self.dtype == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=cached)

    def inference(self) -> Any:
        """The precision of passes that keep nothing for gradients: fp32 where bf16 would only save memory."""
        return self.autocast() if self.bf16_products else contextlib.nullcontext()

    @property
    def _generation_config(self) -> Any:
        return getattr(self.core, "generation_config", None)

    @property
    def vocabulary(self) -> int:
        return int(self.core.get_input_embeddings().weight.shape[0])

    @property
    def context(self) -> int | None:
        return getattr(self.core.config, "max_position_embeddings", None)

    def hidden_of(self, rows: PackedRows, places: np.ndarray, cache: Any = None) -> torch.Tensor:
        """(u, d) last hidden states of some tokens of packed rows, of (u,) ascending places in (b s).

        The last layer computes no others where it can, but keys and values for a cache.
        """
        from selfemo.models.blocks import TreePlan
        from selfemo.models.transfer import to_device

        if isinstance(rows.tree, TreePlan) and len(rows.tree.rows) == 1:
            rows = replace(rows, tree=rows.tree.narrowed(places))
        where = to_device(places, self.device)  # before the forward pass, which a copy would wait for
        found = self.hidden(rows, cache).flatten(0, 1)
        return found if len(found) == len(places) else found[where]

    def hidden(self, rows: Any, cache: Any = None) -> torch.Tensor:
        """(b, s, d) last hidden states of packed rows, each token seeing its ancestors alone."""
        import torch

        decoder = self.core.get_decoder()
        if cache is not None and self.compiled:
            # A cache grows at each step, and each length would be compiled anew.
            with torch.compiler.set_stance("force_eager"):
                return self._hidden(decoder, rows, cache)
        return self._hidden(decoder, rows, cache)

    def _hidden(self, decoder: Any, rows: Any, cache: Any) -> torch.Tensor:
        import torch

        from selfemo.models import attention

        if cache is not None and rows.mask is not None:
            r = attention.heads_of_a_key(self.core.config)
            mixed = torch.is_autocast_enabled(self.device.type)
            dtype = torch.bfloat16 if mixed else self.core.dtype
            if (few := attention.few_queries(rows.mask, r, dtype)) is not None:
                rows = replace(rows, mask=None, tree=few)
        # A mask of four dimensions is taken as made; without one transformers would make its own.
        no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        found: torch.Tensor = decoder(
            input_ids=rows.input_ids,
            position_ids=rows.position_ids,
            attention_mask=no_mask if rows.mask is None else rows.mask,
            tree=rows.tree,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return found

    def logits(self, hidden: torch.Tensor, *, fp32: bool = False) -> torch.Tensor:
        """(..., v) float32 logits of hidden states; with `fp32` or `fp32_head` computed in it, too."""
        import torch

        head = self.core.get_output_embeddings()
        if not (fp32 or self.fp32_head):
            found = head(hidden).float()
        else:
            with torch.autocast(self.device.type, enabled=False):
                found = head(hidden.float())
        # Not infinite: an entropy multiplies it by a probability of 0.
        return found if self.spare is None else found.index_fill_(-1, self.spare, _NEVER)
