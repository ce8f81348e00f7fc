"""Sampling held to a JSON schema, by llguidance: at each step only tokens that can still end in a valid
answer may be drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from selfemo.errors import EngineError, MissingExtraError
from selfemo.models import Policy


class Grammar:
    """One schema, compiled for one policy's tokenizer; `start()` begins a completion.

    Raises:
        MissingExtraError: llguidance is not installed.
        EngineError: the schema uses what the grammar compiler cannot hold a model to.
    """

    def __init__(self, policy: Policy, schema: Mapping[str, Any]):
        try:
            import llguidance
            import llguidance.hf
        except ImportError:
            raise MissingExtraError(
                "llguidance, which holds a local model to JSON,", "pip install 'selfemo[experts]'"
            ) from None
        size = policy.core.get_output_embeddings().weight.shape[0]
        self._tokenizer = _tokenizers.get(id(policy.tokenizer))
        if self._tokenizer is None:
            self._tokenizer = llguidance.hf.from_tokenizer(
                policy.tokenizer, n_vocab=size, eos_token=policy.tokenizer.eos_token_id
            )
            _tokenizers[id(policy.tokenizer)] = self._tokenizer
        self._size = size
        self._llguidance = llguidance
        # No white space but where the grammar says so: a small model would fill its limit with it.
        self._text = llguidance.LLMatcher.grammar_from_json_schema(
            json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}})
        )
        if problem := llguidance.LLMatcher.validate_grammar(self._text, self._tokenizer):
            raise EngineError(f"a model cannot be held to this JSON schema: {problem}")

    def start(self) -> _Matcher:
        return _Matcher(self._llguidance.LLMatcher(self._tokenizer, self._text), self._size)


class _Matcher:
    """One completion's place in the grammar."""

    def __init__(self, matcher: Any, size: int):
        self._matcher, self._size = matcher, size

    def allowed(self) -> torch.Tensor:
        words = torch.empty((self._size + 31) // 32, dtype=torch.int32)
        self._matcher.unsafe_compute_mask_ptr(words.data_ptr(), words.numel() * 4)
        bits = (words.unsqueeze(1) >> torch.arange(32, dtype=torch.int32)) & 1
        return bits.flatten()[: self._size].bool()

    def take(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise EngineError(f"the grammar refuses token {token}: {self._matcher.get_error()}")


_tokenizers: dict[int, Any] = {}
