"""Sampling under a grammar: llguidance allows the tokens that can still end in a valid answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch

from selfemo.errors import EngineError
from selfemo.models.policy import Encoder


class Compiled:
    """A grammar in llguidance's own form, for one policy's tokenizer; `start()` begins a completion.

    Raises:
        EngineError: the compiler cannot take the grammar.
    """

    def __init__(self, policy: Encoder, text: Callable[[Any], str], what: str):
        import llguidance
        import llguidance.hf

        self.size = policy.vocabulary
        tokenizer = _tokenizers.get(policy.tokenizer)
        if tokenizer is None:
            # The tokenizer may have tokens that the model has no rows for; they are never allowed.
            whole = max(self.size, 1 + max(policy.tokenizer.get_vocab().values()))
            tokenizer = _tokenizers[policy.tokenizer] = llguidance.hf.from_tokenizer(
                policy.tokenizer, n_vocab=whole, eos_token=policy.end_id
            )
        self.tokenizer = tokenizer
        self._llguidance = llguidance
        self._text = text(llguidance.LLMatcher)
        if problem := llguidance.LLMatcher.validate_grammar(self._text, self.tokenizer):
            raise EngineError(f"a model cannot be held to {what}: {problem}")

    def start(self) -> Matcher:
        matcher = self._llguidance.LLMatcher(self.tokenizer, self._text)
        return Matcher(matcher, self.tokenizer.vocab_size, self.size)


class Grammar(Compiled):
    """A JSON schema; errors as of `Compiled`."""

    def __init__(self, policy: Encoder, schema: Mapping[str, Any]):
        # No white space but where the grammar says so: a small model would fill its limit with it.
        whole = json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}})
        super().__init__(policy, lambda m: m.grammar_from_json_schema(whole), "this JSON schema")


class Matcher:
    """The state of one completion in the grammar.

    Args:
        tokens, rows: how many there are of the tokenizer, and of the model.
    """

    def __init__(self, matcher: Any, tokens: int, rows: int):
        self._matcher, self._tokens, self._rows = matcher, tokens, rows

    def allowed(self) -> torch.Tensor:
        words = torch.empty((self._tokens + 31) // 32, dtype=torch.int32)
        self._matcher.unsafe_compute_mask_ptr(words.data_ptr(), words.numel() * 4)
        bits = (words.unsqueeze(1) >> torch.arange(32, dtype=torch.int32)) & 1
        return bits.flatten()[: self._rows].bool()

    def take(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise EngineError(f"the grammar refuses token {token}: {self._matcher.get_error()}")


_tokenizers: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
