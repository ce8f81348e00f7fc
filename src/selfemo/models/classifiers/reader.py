"""A trained encoder with its tokenizer: probabilities of labels for turns, and a folder that it is kept in.

config.json, model.safetensors, tokenizer   the encoder, as transformers opens it
heads.safetensors                           the layers behind it
reader.json                                 label sets and settings
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from selfemo.config.encoders import EncoderConfig
from selfemo.errors import EngineError
from selfemo.files import write_json
from selfemo.method.types import Conversation, EmotionDistribution, LabelSet
from selfemo.models.classifiers.encoder import TurnEncoder
from selfemo.models.classifiers.layout import Row, RowBuilder
from selfemo.models.encoders import load_encoder, most_tokens
from selfemo.models.loading import pick_device, pick_dtype
from selfemo.models.references import READER_FILE

_HEADS = "heads.safetensors"
Item = tuple[int, Row]
"""A row, and the number of its label set."""


class TurnReader:
    """An encoder that reads turns; see `Reader` of the baselines.

    Attributes:
        cut: turns of which tokens were left out when they were read last, as they alone are too long.
        shares: of each label of each label set among the turns it was trained on; None where they are not
            known.
    """

    def __init__(
        self, model: TurnEncoder, tokenizer: Any, config: EncoderConfig, label_sets: Sequence[LabelSet]
    ):
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.label_sets = list(label_sets)
        self.builder = RowBuilder.of(config, tokenizer)
        self.dtype = pick_dtype("auto", model.device)
        self.cut = 0
        self.shares: list[list[float]] | None = None

    def items(self, conversation: Conversation) -> list[Item]:
        """The rows of a conversation.

        Raises: EngineError: the reader was not trained on its label set.
        """
        which = self._which(conversation.label_set, conversation.id)
        return [(which, row) for row in self.builder.rows(conversation)]

    def _which(self, labels: LabelSet, of: str, *, shares: bool = False) -> int:
        must_know(Kept(self.config, self.label_sets, self.shares), [labels], of, shares=shares)
        return self.label_sets.index(labels)

    def logits(self, items: Sequence[Item]) -> torch.Tensor:
        """(n, k) float32 logits of the turns read in some rows."""
        which = torch.tensor([w for w, row in items for _ in row.places])
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.dtype == "bf16"):
            found: torch.Tensor = self.model(
                [row for _, row in items], self.tokenizer.pad_token_id or 0, which
            )
        return found.float()

    def states(self, items: Sequence[Item]) -> torch.Tensor:
        """(n, d) float32 what stands for each turn read in some rows, from the encoder alone."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.dtype == "bf16"):
            found = self.model.states([row for _, row in items], self.tokenizer.pad_token_id or 0)
        return found.float()

    def read(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        found = [np.zeros((len(c.turns), len(c.label_set))) for c in conversations]
        for (i, turn), row in self._outputs(conversations, lambda items: self.logits(items).softmax(-1)):
            found[i][turn] = row[: found[i].shape[1]]
        return found

    def read_last(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        """(k,) probabilities of the labels for the last turn of each conversation."""
        found = [np.zeros(len(c.label_set)) for c in conversations]
        for (i, _), row in self._outputs(
            conversations, lambda items: self.logits(items).softmax(-1), last=True
        ):
            found[i] = row[: len(found[i])]
        return found

    def expected(self, labels: LabelSet) -> EmotionDistribution:
        """The shares of the labels among the turns it was trained on.

        Raises: EngineError: they were not kept, or it was trained on other labels.
        """
        which = self._which(labels, self.config.encoder, shares=True)
        assert self.shares is not None
        return EmotionDistribution(dict(zip(labels, self.shares[which], strict=True)))

    def features(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        """(t, d) what the heads see of each turn of each conversation."""
        return self.vectors(conversations, self.model.features)

    def embeddings(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        """(t, d) unit vectors of each turn of each conversation, from the encoder alone."""
        return self.vectors(conversations, lambda states: torch.nn.functional.normalize(states, dim=-1))

    def vectors(
        self, conversations: Sequence[Conversation], of: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[np.ndarray]:
        """(t, d) a function of the states of each turn of each conversation."""
        d = self.model.dense.out_features
        found = [np.zeros((len(c.turns), d), dtype=np.float32) for c in conversations]

        for (i, turn), row in self._outputs(conversations, lambda items: of(self.states(items))):
            found[i][turn] = row
        return found

    def _outputs(
        self,
        conversations: Sequence[Conversation],
        of: Callable[[Sequence[Item]], torch.Tensor],
        *,
        last: bool = False,
    ) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """((conversation, turn), output) of each turn, computed in batches of similar length.

        Args:
            last: of the last turn of each conversation alone.
        """
        self.model.eval()
        named = [(i, item) for i, c in enumerate(conversations) for item in self.items(c)]
        if last:
            named = [
                (i, _last_place(item)) for i, item in named if _reads(item, len(conversations[i].turns) - 1)
            ]
        self.cut = sum(row.cut for _, (_, row) in named)
        for part in micro_batches([len(row.ids) for _, (_, row) in named], self.config.micro_tokens):
            items = [named[k][1] for k in part]
            with torch.no_grad():
                rows = of(items).cpu().numpy()
            at = [(named[k][0], p.turn) for k in part for p in named[k][1][1].places]
            yield from zip(at, rows, strict=True)

    def save(self, folder: Path) -> None:
        self.model.core.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        rest = {
            n: p.detach().contiguous()
            for n, p in self.model.state_dict().items()
            if not n.startswith("core.")
        }
        save_file(rest, folder / _HEADS)
        sets = [{"name": s.name, "labels": list(s.labels), "unscored": s.unscored} for s in self.label_sets]
        held = {"label_sets": sets, "shares": self.shares, "settings": self.config.model_dump(mode="json")}
        write_json(folder / READER_FILE, held)

    @staticmethod
    def new(config: EncoderConfig, label_sets: Sequence[LabelSet], device: str) -> TurnReader:
        """An encoder with heads that are not trained yet."""
        core, tokenizer = load_encoder(config.encoder, pick_device(device))
        if config.max_tokens > (most := most_tokens(core)):
            raise EngineError(
                f"{config.encoder}: it reads {most} tokens, and max_tokens is {config.max_tokens}; lower it"
            )
        model = TurnEncoder(core, label_sets, config.pooling, config.dropout).to(core.device)
        reader = TurnReader(model, tokenizer, config, label_sets)
        if config.layout == "conversation":
            _check_past_only(reader)
        return reader

    @staticmethod
    def load(folder: Path, device: str = "auto") -> TurnReader:
        """A reader that `save` wrote (EngineError: there is none, or it is not whole)."""
        config, sets, shares = kept_settings(folder)
        reader = TurnReader.new(config.model_copy(update={"encoder": str(folder)}), sets, device)
        reader.shares = shares
        try:
            found = reader.model.load_state_dict(load_file(folder / _HEADS), strict=False)
            if lacking := [n for n in found.missing_keys if not n.startswith("core.")]:
                raise RuntimeError(f"it has no {lacking[0]}")
        except (OSError, SafetensorError, RuntimeError) as e:
            raise EngineError(f"{folder / _HEADS}: cannot be read ({e})") from None
        return reader


def _reads(item: Item, turn: int) -> bool:
    """Whether a turn is read in a row."""
    return any(p.turn == turn for p in item[1].places)


def _last_place(item: Item) -> Item:
    """The row with its last place alone."""
    which, row = item
    return which, replace(row, places=row.places[-1:])


class Kept(NamedTuple):
    """What a kept reader says of itself; `shares` as `TurnReader` has them."""

    settings: EncoderConfig
    label_sets: list[LabelSet]
    shares: list[list[float]] | None


def kept_settings(folder: Path) -> Kept:
    """Settings and label sets of a reader that was saved (EngineError: there is none)."""
    try:
        held = json.loads((folder / READER_FILE).read_text(encoding="utf-8"))
        sets = [LabelSet(s["name"], tuple(s["labels"]), s["unscored"]) for s in held["label_sets"]]
        shares = held.get("shares")
        if shares is not None and [len(of) for of in shares] != [len(s) for s in sets]:
            raise ValueError("shares of other labels")
        return Kept(EncoderConfig.model_validate(held["settings"]), sets, shares)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise EngineError(
            f"{folder}: no trained reader, as `selfemo baseline encoder --keep` keeps it ({e})"
        ) from None


def must_know(kept: Kept, labels: Sequence[LabelSet], of: str, *, shares: bool = False) -> None:
    """Check that a kept reader was trained on some label sets.

    Args:
        of: how a message calls the reader.
        shares: the shares of its labels are needed, too.

    Raises:
        EngineError: it was trained on others; it has seen no turn of a label, or an earlier version kept it,
            without the shares.
    """
    for asked in labels:
        if asked not in kept.label_sets:
            known = ", ".join(s.name for s in kept.label_sets)
            raise EngineError(
                f"{of}: labels of {asked.name}, and it was trained on those of {known}; for both train one "
                "encoder on both: selfemo baseline encoder, with a --data for each"
            )
        if shares and kept.shares is not None:
            of_each = zip(asked, kept.shares[kept.label_sets.index(asked)], strict=True)
            if unseen := [e for e, share in of_each if not share]:
                raise EngineError(
                    f"{of}: it was trained on no turn that is {' or '.join(unseen)}, so that it cannot tell "
                    "how well a reply shows that; train it on more conversations"
                )
    if shares and kept.shares is None:
        raise EngineError(
            f"{of}: an earlier version kept this reader, without the shares of its labels; train it again "
            "with `selfemo baseline encoder --keep`"
        )


def micro_batches(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of items in batches of similar length, each of at most `budget` tokens with its padding.

    An item alone may pass the budget.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        if batches and sizes[i] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _check_past_only(reader: TurnReader) -> None:
    """Check that the encoder takes the block-causal mask: what is read of a turn must not change with later
    ones (EngineError: its architecture has an attention of its own)."""
    size = reader.model.core.config.vocab_size
    ids = [(100 + i) % size for i in range(12)]
    rows = [
        Row((*ids[:6], *later), (0,) * 3 + (1,) * 3 + (2,) * len(later), ()) for later in (ids[:3], ids[6:])
    ]
    reader.model.eval()
    with torch.no_grad():
        from selfemo.models.classifiers.encoder import batch

        seen = []
        for row in rows:
            tokens, mask = batch([row], 0)
            device = reader.model.device
            hidden = reader.model.core(
                input_ids=tokens.to(device), attention_mask=mask.to(device)
            ).last_hidden_state
            seen.append(hidden[0, :6])
    if not torch.allclose(seen[0], seen[1], atol=1e-3):
        raise EngineError(
            f"{reader.config.encoder}: later turns change what it reads of earlier ones: its attention takes "
            'no mask of ours; use layout = "utterance"'
        )
