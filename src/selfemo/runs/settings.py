"""Settings and weights of a model that is used outside of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from selfemo.config import REFERENCE, Config, DataConfig, load
from selfemo.data import split_source, whole_path
from selfemo.errors import EngineError, SelfEmoError
from selfemo.method.types import UNION, LabelSet
from selfemo.models.generation import backend_of, open_sampler
from selfemo.models.references import CONFIG_FILE, READER_FILE, SCORES_FILE, START, ModelReference, run_of
from selfemo.models.reply_readers import check_not_above
from selfemo.runs.overlap import noted_overlap


def find_checkpoint(model: str) -> str:
    """A model reference as one that can be loaded: a model folder, a GGUF file, or an id.

    A reference to another backend (`scripted:FILE`) stays as it is (EngineError: it does not exist). That
    the weights can be had is checked (`ModelReference.check`); none are loaded.
    """
    backend, rest = backend_of(model)
    if backend != "local":
        return model
    reference = ModelReference.parse(rest)
    if reference.run is not None and reference.checkpoint == START:
        return find_checkpoint(load([reference.run / CONFIG_FILE]).model.id)
    reference.check()
    return reference.path


def named_readers(config: Config) -> dict[str, str]:
    """The models besides its own that read the replies of a run, by the setting that names each."""
    if not config.expresses:
        return {}
    named = {"reward.listener": config.reward.listener, "reward.reader": config.reward.reader}
    return {key: reference for key, reference in named.items() if reference not in ("", REFERENCE)}


def check_reply_reader(key: str, reference: str, labels: Sequence[LabelSet], *, rewards: bool = False) -> str:
    """Check that a reader of replies can be had and knows the label sets; no weights are loaded.

    Args:
        key: the setting that names it, for messages.
        rewards: R3 is computed by it, so that it must know what to expect before a reply.

    Returns:
        a warning of an encoder whose scores show no knowledge beyond the shares of the labels; else "".

    Raises:
        EngineError: there is no such model; an encoder that is not whole, or was trained on other labels.
        ConfigError, DataError: an endpoint or a file of answers that is written wrongly.
    """
    folder = Path(reference)
    if (folder / READER_FILE).exists():
        from selfemo.models.classifiers.reader import kept_settings, must_know

        must_know(kept_settings(folder), labels, f"{key} = {reference}", shares=rewards)
        poor = _not_above_shares(folder.resolve().parent / SCORES_FILE, labels)
        return poor and (
            f"{key} = {reference}: on held-out turns of {poor} it did not do better than the shares of the "
            "labels, so that R3 by it may be noise; train it longer, or on more conversations"
        )
    try:
        check_not_above(reference)
        if backend_of(reference)[0] == "local":
            find_checkpoint(reference)
        else:
            open_sampler(reference)  # it reads how it is written, and asks nobody
    except SelfEmoError as e:
        how = ""
        if not folder.exists() and isinstance(e, EngineError):
            how = "; an encoder is the folder seed-N/model that `selfemo baseline encoder --keep` wrote"
        raise type(e)(f"{key}: {e}{how}") from None
    return ""


def _not_above_shares(scores: Path, labels: Sequence[LabelSet]) -> str:
    """The data sets of some label sets on which an encoder's NLL at T is not better than that of the label
    shares, over which R3 is a gain, by its 95% interval; "" for none, and without scores."""
    try:
        found = json.loads(scores.read_text(encoding="utf-8"))
        told = {
            d: found["constants"][d]["against"]["nll_verdict"]
            for d, s in found["scores"].items()
            if d != UNION and any(set(s["gold_share"]) <= set(of) for of in labels)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # moved, or of an earlier version
        return ""
    return ", ".join(d for d, verdict in told.items() if verdict not in (None, "above"))


def settings_for(
    model: str, sources: Sequence[str], files: Sequence[Path], overrides: Sequence[str]
) -> tuple[Config, str]:
    """Configuration and checkpoint for a model and data sources.

    The settings are those of the run that the model comes from, if any, then files, then overrides. What the
    run held out of data without splits (data.hold_out) is a part of its own data alone: it trained on nothing
    of other data, so all of them can be evaluated.

    Raises: EngineError: see `find_checkpoint`. ConfigError: a setting is wrong.
    """
    checkpoint, run = find_checkpoint(model), run_of(model)
    own = [] if run is None else [run / CONFIG_FILE]
    data = [f"data.sources={json.dumps(list(sources))}"]
    if run is not None and not {*map(_place, sources)} & {*map(_place, sources_of(run))}:
        data.append("data.hold_out=0.0")
    return load([*own, *files], [*data, *overrides]), checkpoint


def sources_of(run: Path) -> tuple[str, ...]:
    """The data of a run as any folder calls them, where the run kept that and they are still there."""
    kept = (noted_overlap(run) or {}).get("sources") or ()
    there = all(s == "sample" or os.path.exists(split_source(s)[1]) for s in kept)
    return tuple(kept) if kept and there else load([run / CONFIG_FILE]).data.sources


def data_of(run: Path) -> DataConfig:
    """The data settings of a run, with `sources_of`."""
    return load([run / CONFIG_FILE]).data.model_copy(update={"sources": sources_of(run)})


def _place(source: str) -> str:
    """The real path of a source, without the name of its data set."""
    return os.path.realpath(split_source(whole_path(source))[1])
