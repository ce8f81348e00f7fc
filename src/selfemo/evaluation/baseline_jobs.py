"""`selfemo baseline`: train a baseline with several seeds and score it, by the protocol of SPEC section 11.

    OUT/settings.toml       all settings
    OUT/scores.json         the mean over seeds, as of `selfemo evaluate`, with intervals and deviations
    OUT/seed-N/             an evaluation folder, as of `selfemo evaluate --out`; what is finished stays
    OUT/seed-N/model/       the trained model, where it is kept
    OUT/seed-N/training/    the state of a training that was stopped
    OUT/shared/             what seeds share, such as features

Past only unless a setting says otherwise, which is marked; official splits; epochs and settings are chosen on
conversations that are not scored: dev where test is scored, the tuning half of dev where its claim half is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, create_model

from selfemo import __version__
from selfemo.config import DataConfig, StoreConfig, differing, load, to_toml
from selfemo.config.base import Positive, Section
from selfemo.counting import counted
from selfemo.data.splits import Half, drawn, held_out
from selfemo.errors import ConfigError, DataError, EngineError, StoreError
from selfemo.evaluation import metrics, overlap, predictions
from selfemo.evaluation.baselines import BASELINES, baseline
from selfemo.evaluation.baselines.base import Baseline, Reader, Task, digest
from selfemo.evaluation.jobs import (
    NAME,
    SCORES_FILE,
    SEED,
    claim,
    on_existing_split,
    predictions_of,
    say_unscored,
    scored,
    seed_folders,
)  # fmt: skip
from selfemo.evaluation.predictions import Prediction
from selfemo.evaluation.rendering import rounded
from selfemo.files import lock_folder, replacing_folder, write_json, write_text
from selfemo.method.types import Conversation, EmotionDistribution, LabelSet
from selfemo.progress import Reporter, StopRequest
from selfemo.runs.folder import CONFIG_FILE
from selfemo.runs.inputs import held_out_of, load_conversations
from selfemo.runs.store import STORE_FILE, PredictionRow, Store

SETTINGS_FILE = "settings.toml"
_MODEL, _TRAINING, _SHARED = "model", "training", "shared"
_CHOOSE_SHARE = 10
"""One in so many training conversations is for choices, where the data have no other held-out ones."""


class ScoringConfig(Section):
    resamples: Positive = 1000


class _Base(Section):
    """The settings of a baseline job; `baseline` is the recipe's own section."""

    data: DataConfig = DataConfig()
    evaluation: ScoringConfig = ScoringConfig()
    store: StoreConfig = StoreConfig()
    device: str = "auto"
    first_seed: Annotated[int, Field(ge=0)] = 0
    """Seeds are first_seed, first_seed + 1, and so on."""


@dataclass(frozen=True)
class Parts:
    """The conversations of a job: to train on, to choose on, to score; `told` says which these are."""

    train: list[Conversation]
    choose: list[Conversation]
    held: list[Conversation]
    told: str


def settings_class(name: str) -> type[_Base]:
    """The settings of a baseline's job (ConfigError: no such baseline)."""
    kind = baseline(name).kind
    return create_model(f"{name} settings", __base__=_Base, baseline=(kind, kind()))


def parts_of(conversations: Sequence[Conversation], data: DataConfig) -> Parts:
    """Divide the conversations as the protocol asks, of each data set on its own.

    Where test is scored, dev is for choices; where a half of dev is, its other half. Otherwise (all of dev is
    scored, or there is no dev) one in ten training conversations is for choices, and not trained on.

    Raises:
        DataError: nothing to train on, or to score.
    """
    held = held_out(conversations, data.eval_split, data.eval_conversations, 0, data.eval_half)
    train: list[Conversation] = []
    choose: list[Conversation] = []
    told = []
    for name in dict.fromkeys(c.dataset for c in conversations):
        mine = [c for c in conversations if c.dataset == name]
        training = [c for c in mine if c.split == "train"]
        chosen = [c for c in mine if c.split == "dev"] if data.eval_split == "test" else []
        how = "split dev"
        if data.eval_split == "dev" and data.eval_half != "all":
            other: Half = "tuning" if data.eval_half == "claim" else "claim"
            chosen = held_out(mine, "dev", 0, 0, other) if sum(c.split == "dev" for c in mine) > 1 else []
            how = f"the {other} half of dev"
        if not chosen and len(training) > 1:
            chosen = drawn(training, max(1, len(training) // _CHOOSE_SHARE), 0, "choose", name)
            ids = {c.id for c in chosen}
            training = [c for c in training if c.id not in ids]
            how = "a tenth of the training split"
        training = drawn(training, data.train_conversations, 0, "train", name)
        if not training:
            raise DataError(f"{name} has no conversation of split train to train a baseline on")
        train += training
        choose += chosen
        told.append(
            f"{name}: {counted(len(training), 'conversations')} to train on, {len(chosen)} to choose on "
            f"({how}), {sum(c.dataset == name for c in held)} to score ({data.evaluated_on})"
        )
    return Parts(train, choose, held, "; ".join(told))


def run_baseline(
    name: str,
    sources: Sequence[str],
    out: Path,
    seeds: int,
    files: Sequence[Path],
    overrides: Sequence[str],
    reporter: Reporter,
    *,
    keep: bool = False,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Train and score a baseline with some seeds; returns what OUT/scores.json holds.

    Args:
        out: a folder to keep it in, and to go on with if it was stopped or gets more seeds.
        keep: keep the trained models, of those that can be used again.

    Raises:
        ConfigError: no such baseline, or mistakes in its settings.
        DataError: a source cannot be read, or has nothing to train on or to score.
        StoreError: `out` holds another job.
        Stopped: `stop` was asked for; what is done is kept.
    """
    stop = stop or StopRequest()
    sets = [f"data.sources={json.dumps(list(sources))}", *overrides]
    try:
        config: Any = load(files, sets, settings_class(name))
    except ConfigError as e:
        raise ConfigError(f"{e}\n`selfemo baseline settings {name}` lists the settings of {name}") from None
    recipe: Baseline[Any] = baseline(name)(config.baseline)
    wanted = range(config.first_seed, config.first_seed + (seeds if recipe.seeded else 1))
    if not all(_is_done(out / f"{SEED}{n}", keep and recipe.keeps) for n in wanted):
        recipe.check()  # finished seeds need neither network nor weights
    data = held_out_of(config.data, reporter.say)
    if data.hold_out and not config.data.hold_out:
        reporter.say("no conversation names a split: a fifth is held out as split dev, which is scored")
    conversations = load_conversations(data, reporter.say)
    if not any(o.startswith("data.eval_split") for o in overrides):
        data = on_existing_split(data, conversations, reporter.say)
    halved = min(Counter(c.dataset for c in conversations if c.split == "dev").values(), default=0) > 1
    if data.eval_split == "dev" and halved and "eval_half" not in config.data.model_fields_set:
        data = data.model_copy(update={"eval_half": "claim"})
    config = config.model_copy(update={"data": data})
    parts = parts_of(conversations, data)
    recipe.check_data([*parts.train, *parts.choose, *parts.held])
    say_unscored(data, reporter.say)
    reporter.say(parts.told)
    if not recipe.seeded and seeds > 1:
        reporter.say(f"{name} has no random part: one seed stands for all")
    if keep and not recipe.keeps:
        reporter.say(f"--keep has no effect: models of {name} are not written to files")
        keep = False
    if (out / CONFIG_FILE).exists():
        raise StoreError(f"{out} is a run folder; give --out a folder of the baseline's own")
    if (out / STORE_FILE).exists():
        raise StoreError(f"{out} holds an evaluation; give --out a folder of the baseline's own")
    by_seed: dict[int, list[PredictionRow]] = {}
    with lock_folder(out):
        _check_kept(out, to_toml(config))
        write_text(out / SETTINGS_FILE, to_toml(config))
        more = [n for n, _ in seed_folders(out) if n not in wanted]
        for seed in more:
            reporter.say(f"seed {seed} is in {out} already, and is part of the mean")
        for seed in sorted([*wanted, *more]):
            stop.check()
            kept = keep and seed in wanted
            rows = _one_seed(name, recipe, config, parts, conversations, out, seed, reporter, kept, stop)
            by_seed[seed] = rows
        found = _whole(name, recipe, config, parts, by_seed, out)
        write_json(out / SCORES_FILE, found)
    return found


def _check_kept(out: Path, settings: str) -> None:
    """Refuse a folder that holds work of a job with other settings (StoreError)."""
    file = out / SETTINGS_FILE
    try:
        found = differing(file.read_text(encoding="utf-8"), settings) if file.exists() else []
    except ValueError as e:
        raise StoreError(f"{file}: cannot be read ({e}); give another --out") from None
    if found and _holds_work(out):
        raise StoreError(
            f"{out} holds a baseline with other settings ({'; '.join(found)}); give another --out, or the "
            "same settings to go on with it"
        )


def _holds_work(out: Path) -> bool:
    """Whether something is in a job's folder that cost time: a trained epoch, predictions."""
    if any(out.glob(f"{SEED}*/{_TRAINING}/*")) or any(out.glob(f"{_SHARED}/*/*")):
        return True
    for file in out.glob(f"{SEED}*/{STORE_FILE}"):
        with Store(file, read_only=True) as store:
            if store.predicted_datasets():
                return True
    return False


def _is_done(folder: Path, keep: bool) -> bool:
    """Whether a seed is finished, with its model if that is to be kept."""
    return (folder / SCORES_FILE).exists() and (not keep or (folder / _MODEL).exists())


def _one_seed(
    name: str,
    recipe: Baseline[Any],
    config: Any,
    parts: Parts,
    conversations: Sequence[Conversation],
    out: Path,
    seed: int,
    reporter: Reporter,
    keep: bool,
    stop: StopRequest,
) -> list[PredictionRow]:
    """Train with one seed and score it, or read what was done before."""
    folder = out / f"{SEED}{seed}"
    folder.mkdir(exist_ok=True)
    prompts = predictions.gold_prompts(parts.held)
    inputs = {
        "model": f"baseline {name}, seed {seed}",
        "data": f"{len(prompts)} turns ({digest(parts.held)}), trained on {digest(parts.train)}, chosen on "
        f"{digest(parts.choose)}",
        "settings": config.baseline.model_dump_json(),
    }
    with Store(folder / STORE_FILE, journal=config.store.journal_mode) as store:
        claim(store, folder, inputs, begun=any((folder / _TRAINING).glob("*")))
        if len(store.predicted_prompts(NAME)) < len(prompts) or (keep and not (folder / _MODEL).exists()):
            again = ", trained again since its model was not kept" if (folder / SCORES_FILE).exists() else ""
            reporter.say(f"{name}, seed {seed}{again}")
            task = Task(
                parts.train,
                parts.choose,
                seed,
                folder / _TRAINING,
                out / _SHARED,
                config.device,
                reporter,
                stop,
            )
            reader = recipe.train(task)
            if len(store.predicted_prompts(NAME)) < len(prompts):
                predictions.keep(store, NAME, read_all(reader, parts.held))
            if keep:
                with replacing_folder(folder / _MODEL, EngineError) as staging:
                    reader.save(staging)
        rows = store.predictions(NAME)
        about = {
            **_about(name, recipe, config, parts),
            "model": _title(name, recipe) + (f" (seed {seed})" if recipe.seeded else ""),
            "seed": seed,
        }
        about |= {f"evaluated_{k}": v for k, v in inputs.items()}
        scored(
            rows, about, parts.held, conversations, parts.train, folder, reporter,
            resamples=config.evaluation.resamples,
        )  # fmt: skip
        return rows


def read_all(reader: Reader, conversations: Sequence[Conversation]) -> list[Prediction]:
    """A trained baseline's prediction for each gold turn: the probability of each label.

    Raises:
        EngineError: a probability is not finite.
    """
    found = []
    for c, table in zip(conversations, reader.read(conversations), strict=True):
        for prompt in predictions.gold_prompts([c]) if any(t.emotion for t in c.turns) else []:
            d = _distribution(table[len(prompt.history) - 1], c.label_set, prompt.id)
            found.append(Prediction(prompt, d, None, believed=d))
    return found


def _distribution(row: np.ndarray, labels: LabelSet, where: str) -> EmotionDistribution:
    if not np.isfinite(row).all():
        raise EngineError(f"{where}: the baseline's probabilities are not finite; lower its learning rate")
    return EmotionDistribution(dict(zip(labels, map(float, row), strict=True)))


def _title(name: str, recipe: Baseline[Any]) -> str:
    """A baseline's name in tables, with its pretrained model and what it sees."""
    backbone = recipe.backbone.rstrip("/").rpartition("/")[2].removeprefix("builtin:")
    return ", ".join(part for part in (BASELINES[name].title, backbone, recipe.context) if part)


def _about(name: str, recipe: Baseline[Any], config: Any, parts: Parts) -> dict[str, Any]:
    return {
        "selfemo": __version__,
        "baseline": name,
        "sees_later": recipe.sees_later,
        "reads": recipe.reads,
        "trained_on": sorted({c.dataset for c in parts.train}),
        "train_conversations": config.data.train_conversations,
        "sources": list(config.data.sources),
        "split": config.data.evaluated_on,
        "eval_conversations": config.data.eval_conversations,
        "compared_with": None,
    }


def _whole(
    name: str,
    recipe: Baseline[Any],
    config: Any,
    parts: Parts,
    by_seed: Mapping[int, list[PredictionRow]],
    out: Path,
) -> dict[str, Any]:
    """OUT/scores.json: the mean over seeds, in the form of an evaluation's, with the seeds."""
    labels, resamples = predictions.label_sets(parts.held), config.evaluation.resamples
    seeds = list(by_seed)
    first = json.loads((out / f"{SEED}{seeds[0]}" / SCORES_FILE).read_text(encoding="utf-8"))
    of = f" (mean of {len(seeds)} seeds)" if len(seeds) > 1 else f" (seed {seeds[0]})"
    return rounded(  # type: ignore[no-any-return]
        {
            **_about(name, recipe, config, parts),
            "model": _title(name, recipe) + (of if recipe.seeded else ""),
            "seeds": seeds,
            "scores": mean_scores(list(by_seed.values()), labels, resamples=resamples),
            "constants": {
                d: {k: v for k, v in c.items() if k != "against"} for d, c in first["constants"].items()
            },
            "overlap": first["overlap"] and _clean(first["overlap"], by_seed, labels, resamples),
            "evaluated_model": f"baseline {name}",
            "evaluated_settings": config.baseline.model_dump_json(),
        }
    )


def _clean(
    first: Mapping[str, Any],
    by_seed: Mapping[int, list[PredictionRow]],
    labels: predictions.Labels,
    resamples: int,
) -> dict[str, Any]:
    """`overlap.evaluation_part` with the means over seeds in place of those of the first one."""
    gone = set(first["conversations"])
    rest = [list(overlap.clean_rows(rows, gone)) for rows in by_seed.values()]
    means = mean_scores(rest, labels, resamples=resamples) if first["scores"] else {}
    return {**first, "scores": {d: means[d] for d in first["scores"]}, "average": None}


def mean_scores(
    by_seed: Sequence[predictions.Rows], labels: predictions.Labels, *, resamples: int
) -> dict[str, dict[str, Any]]:
    """Scores as the mean over trainings, by data set and UNION.

    Returns: of each of MEASURES [value, low, high], resampled by conversation, the same ones for all seeds;
        "sd", their deviation over seeds (ddof 1; None of one seed); utterances, conversations, gold_share; in
        "calibration" the means of temperature and nll_tempered.
    """
    counted_by = [predictions.outcomes(rows, labels) for rows in by_seed]
    scores = [predictions.score(rows, labels, resamples=2) for rows in by_seed]
    found: dict[str, dict[str, Any]] = {}
    for d, first in scores[0].items():
        parts = [c[d] for c in counted_by]
        intervals = metrics.average_intervals(parts, resamples, of=[0] * len(parts))
        each = {m: [float(p.measures()[m]) for p in parts] for m in metrics.MEASURES}
        tempered = {
            k: float(np.mean([s[d].calibration[k] for s in scores])) for k in ("temperature", "nll_tempered")
        }
        found[d] = {
            "utterances": first.utterances,
            "conversations": first.conversations,
            "gold_share": first.gold_share,
            **{m: v.as_list() for m, v in intervals.items()},
            "sd": {m: float(np.std(v, ddof=1)) if len(v) > 1 else None for m, v in each.items()},
            "calibration": tempered,
        }
    return found


def seeds_of(folder: Path) -> list[tuple[int, list[PredictionRow]]]:
    """(seed, predictions) of a baseline's folder, or (0, predictions) of an evaluation's or a run's.

    Raises:
        StoreError: it holds none.
    """
    return [(n, predictions_of(f)) for n, f in seed_folders(folder)] or [(0, predictions_of(folder))]
