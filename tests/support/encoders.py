"""Tiny encoders of random weights, as `selfemo.models.encoders.load_encoder` opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfemo.config.encoders import EncoderConfig
from selfemo.method.types import LABEL_SETS, LabelSet

WORDS = (  # noqa: SIM905
    "a the we it is was not so very and i you she he they bus leaves at nine stop right now hooray won "
    "miss her someone door ann bo cy what why no yes good bad day night home here there"
).split()
MARKS = [".", ",", "!", "?", ":", "'"]
SHARES = [0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05]
"""What a kept reader expects of the labels of MELD, in their order."""


def build_encoder(folder: Path, kind: str = "bert", positions: int = 64) -> Path:
    """A folder with two layers of 32 dimensions, without dropout, and a tokenizer of words.

    Args:
        kind: "bert", "roberta" or "mpnet", each with positions and pads of its own.
        positions: tokens that it reads.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import (
        BertConfig,
        BertModel,
        MPNetConfig,
        MPNetModel,
        PreTrainedTokenizerFast,
        RobertaConfig,
        RobertaModel,
    )

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"] + list("abcdefghijklmnopqrstuvwxyz")
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys([*special, *WORDS, *MARKS, *letters]))}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    kinds: dict[str, tuple[Any, Any, int]] = {
        "bert": (BertConfig, BertModel, 0),
        "roberta": (RobertaConfig, RobertaModel, 2),
        "mpnet": (MPNetConfig, MPNetModel, 2),
    }
    settings, model, more = kinds[kind]
    torch.manual_seed(0)
    built = model(
        settings(
            vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=positions + more, pad_token_id=1,
            initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    built.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def kept(folder: Path, base: Path, labels: LabelSet = LABEL_SETS["meld"], **more: Any) -> Path:
    """A reader as `selfemo baseline encoder --keep` keeps it, with random heads."""
    import torch

    from selfemo.models.classifiers.reader import TurnReader

    torch.manual_seed(3)
    config = EncoderConfig(encoder=str(base), max_tokens=64, **more)
    reader = TurnReader.new(config, [labels], "cpu")
    reader.shares = [SHARES[: len(labels)]]
    folder.mkdir()
    reader.save(folder)
    return folder
