"""Features of turns for heads over conversations: an encoder that reads each turn on its own, fine-tuned
once.

The fine-tune is COSMIC's (declare-lab/conv-emotion:COSMIC/feature-extraction/roberta_train_meld.sh):
cross-entropy on single utterances, Adam with betas 0.9 and 0.98, lr 1e-5 for RoBERTa-large, warm-up over 6%
of the steps, linear decay, weight decay 0.1, batches of 32, up to 30 epochs, the best one by dev. The last
hidden layer of the classifier is then the feature, and the encoder does not change any more.

[ours]: the best epoch is that of the best weighted F1, and training ends 5 epochs after it; one layer of
features instead of the mean of the last four. All seeds share one fine-tune, so that deviations over seeds
are those of the heads.

    SHARED/encoder-DIGEST/        the fine-tuned encoder, as `selfemo baseline encoder --keep` keeps one
    SHARED/features-DIGEST.npz    features of some conversations
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from selfemo.config.base import Fraction, NonNegative
from selfemo.config.encoders import EncoderConfig
from selfemo.config.sections import FitConfig
from selfemo.errors import ConfigError, EngineError
from selfemo.evaluation.baselines.base import Task, choice_score, digest
from selfemo.files import replacing, replacing_folder, sha256
from selfemo.method.types import Conversation

_SEED = 0
"""Of the fine-tune, whatever the seed of the head."""

Compute = Callable[[Sequence[Conversation]], list[np.ndarray]]


class FineTuneConfig(EncoderConfig):
    """The encoder behind the features; values are for RoBERTa-large, and a small encoder needs a higher
    lr."""

    window: int = 0
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    warmup: Fraction = 0.06
    weight_decay: NonNegative = 0.1
    epochs: Annotated[int, Field(ge=0)] = 30
    """0: no fine-tune; features are embeddings of the encoder as it is."""
    patience: Annotated[int, Field(ge=0)] = 5

    @model_validator(mode="after")
    def _one_turn(self) -> FineTuneConfig:
        if self.window or self.later:
            raise ValueError(
                "features are of single turns, whose context is the head's task: fine_tune.window and "
                "fine_tune.later must be 0"
            )
        return self


class FeaturesConfig(FitConfig):
    """Where features come from; the rest is the training of a head on them."""

    features: str = ""
    """A folder with a trained encoder whose features are taken: OUT/seed-N/model of `selfemo baseline encoder
    --keep` with baseline.window=0, or OUT/shared/encoder-* of another head. Empty: a fine-tune of one's
    own."""
    fine_tune: FineTuneConfig = FineTuneConfig()


class Features:
    """Features of conversations by an encoder, each computed once and kept in files.

    Args:
        compute: (t, d) float32 of each conversation; slow.
        name: names the encoder and its weights.
        folder: of the files.
    """

    def __init__(self, compute: Compute, name: str, folder: Path, say: Callable[[str], None]):
        self._compute, self._name, self._folder, self._say = compute, name, folder, say
        self._known: dict[str, np.ndarray] = {}

    def of(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        """(t, d) of each conversation."""
        keys = [_text(c) for c in conversations]
        missing = {k: c for k, c in zip(keys, conversations, strict=True) if k not in self._known}
        if missing:
            self._known.update(zip(missing, self._kept_or_made(list(missing.values())), strict=True))
        return [self._known[k] for k in keys]

    def _kept_or_made(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        sizes = [len(c.turns) for c in conversations]
        file = self._folder / f"features-{_short([self._name, *map(_text, conversations)])}.npz"
        if (rows := self._kept(file, sum(sizes))) is None:
            self._say(f"features of {sum(sizes):,} turns")
            rows = np.concatenate(self._compute(conversations))
            with replacing(file, EngineError) as staging, staging.open("wb") as f:
                np.savez(f, rows=rows)
        return np.split(rows, np.cumsum(sizes)[:-1])

    def _kept(self, file: Path, turns: int) -> np.ndarray | None:
        try:
            with np.load(file, allow_pickle=False) as held:
                rows: np.ndarray = held["rows"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            self._say(f"{file}: cannot be read ({e}); its features are computed again")
            return None
        return rows if len(rows) == turns else None


def _text(conversation: Conversation) -> str:
    """All that features depend on."""
    return json.dumps([[t.speaker, t.text] for t in conversation.turns])


def _short(parts: Sequence[str]) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def check_features(config: FeaturesConfig) -> None:
    """Check that an encoder for features can be had (SelfEmoError); no weights are read."""
    if config.features:
        from selfemo.models.classifiers.reader import kept_settings

        kept = kept_settings(Path(config.features)).settings
        if kept.window or kept.later:
            raise ConfigError(
                f"baseline.features: the encoder in {config.features} sees more than the turn that it reads; "
                "train one with `selfemo baseline encoder --keep --set baseline.window=0`"
            )
    else:
        from selfemo.models.encoders import check_encoder

        check_encoder(config.fine_tune.encoder)


def open_features(config: FeaturesConfig, task: Task) -> Features:
    """Features as the settings say; fine-tunes the encoder where no seed has done so.

    Raises: EngineError: the encoder cannot be loaded or written; Stopped.
    """
    say = task.reporter.say
    if config.features:
        folder = Path(config.features)
    elif config.fine_tune.epochs:
        folder = _fine_tuned(config.fine_tune, task)
    else:
        name = config.fine_tune.model_dump_json()
        return Features(lambda cs: _embeddings(config.fine_tune, task, cs), name, task.shared, say)
    weights = "".join(sha256(f) for f in sorted(folder.glob("*.safetensors")))

    def compute(conversations: Sequence[Conversation]) -> list[np.ndarray]:
        from selfemo.models.classifiers.reader import TurnReader

        return TurnReader.load(folder, task.device).features(conversations)

    return Features(compute, weights, task.shared, say)


def _embeddings(
    config: FineTuneConfig, task: Task, conversations: Sequence[Conversation]
) -> list[np.ndarray]:
    """Embeddings of the encoder as it is, scaled so that their elements have a mean square of 1."""
    from selfemo.models.classifiers.reader import TurnReader

    reader = TurnReader.new(config, task.label_sets, task.device)
    return [x * np.float32(np.sqrt(x.shape[1])) for x in reader.embeddings(conversations)]


def _fine_tuned(config: FineTuneConfig, task: Task) -> Path:
    """The folder of the fine-tuned encoder."""
    from selfemo.training.turn_encoder import train_encoder

    name = _short([config.model_dump_json(), digest(task.train), digest(task.choose)])
    folder = task.shared / f"encoder-{name}"
    if not folder.exists():
        reader = train_encoder(
            config, task.train, lambda reader: choice_score(reader, task.choose), seed=_SEED,
            states=task.shared / f"fine-tune-{name}", device=task.device, reporter=task.reporter,
            stop=task.stop, label="fine-tune",
        )  # fmt: skip
        with replacing_folder(folder, EngineError) as staging:
            reader.save(staging)
    return folder
