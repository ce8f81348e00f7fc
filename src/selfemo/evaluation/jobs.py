"""`selfemo evaluate`: a model or an endpoint on held-out conversations, in a folder that can be resumed.

    store.sqlite          predictions (and an endpoint's answers), committed as they are made
    predictions.parquet   one row an utterance
    scores.json           scores by data set and union, those of constant answers, the plain average, the
                          comparison, what was evaluated

The store keeps the model, data and settings of its evaluation; others are refused on resume.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfemo import __version__
from selfemo.config import Config, DataConfig, load
from selfemo.counting import counted
from selfemo.data.splits import existing_split, held_out
from selfemo.errors import ConfigError, StoreError
from selfemo.evaluation import overlap, predictions
from selfemo.evaluation.constants import against_constants, constant_scores, label_shares
from selfemo.evaluation.metrics import Interval
from selfemo.evaluation.rendering import rounded
from selfemo.files import lock_folder, write_json, write_rows
from selfemo.method.prompts import FORMAT_VERSION, messages
from selfemo.method.types import Conversation, Prompt
from selfemo.models.generation import open_sampler
from selfemo.models.generation.chat import ExpertSpec, endpoint_of
from selfemo.models.references import SCORES_FILE as SCORES_FILE
from selfemo.models.references import run_of
from selfemo.progress import Reporter, StopRequest
from selfemo.runs.folder import CONFIG_FILE, checkpoints, evaluation_name
from selfemo.runs.inputs import load_conversations, load_sources
from selfemo.runs.settings import settings_for
from selfemo.runs.store import STORE_FILE, PredictionRow, Store

NAME = "evaluate"
"""Name of the evaluation in the store of an evaluation folder."""
PREDICTIONS_FILE = "predictions.parquet"
SEED = "seed-"
"""Begins the names of the evaluation folders in a baseline's folder."""
_IDENTITY = "evaluation"
_OTHER = {"model": "of another model", "data": "of other data", "settings": "with other settings"}


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        about: model, data, split, settings, trained_on (data sets of the run that the model comes from).
        average: over data sets; None for one.
        comparison: by data set, this model minus the other; None where none was asked for.
        constants: what constant answers score, by data set (`constants.constant_scores`), each with the model
            "against" it (`constants.against_constants`).
        compared_constants: what they score on the prompts that are compared; empty without a comparison.
        overlap: with the training data (`overlap.evaluation_part`); None where these are not known.
    """

    about: dict[str, Any]
    scores: dict[str, predictions.Scores]
    average: dict[str, Interval] | None
    comparison: dict[str, predictions.Comparison] | None
    constants: dict[str, dict[str, Any]]
    compared_constants: dict[str, dict[str, Any]]
    overlap: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """As scores.json holds it, with the digits that scores carry (`rendering.rounded`)."""
        found: dict[str, Any] = rounded(
            {
                **self.about,
                "scores": {d: s.as_dict() for d, s in self.scores.items()},
                "average": self.average and {m: i.as_list() for m, i in self.average.items()},
                "comparison": self.comparison and {d: c.as_dict() for d, c in self.comparison.items()},
                "constants": self.constants,
                "compared_constants": self.compared_constants,
                "overlap": self.overlap,
            }
        )
        return found


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def model_digest(checkpoint: str) -> str:
    """A digest of a model folder's weights: of its checksums, else of the sizes and times of its files."""
    folder = Path(checkpoint)
    if not folder.exists():
        return _digest(checkpoint)
    if (sums := folder / "selfemo_checksums.json").exists():
        return _digest(json.loads(sums.read_text()))
    files = [folder] if folder.is_file() else sorted(folder.glob("*"))
    return _digest([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])


def identity(
    model: str, spec: ExpertSpec | None, prompts: Sequence[Prompt], config: Config
) -> dict[str, str]:
    """The inputs that must match on resume, each as a short text."""
    reasoning = config.prompt.reasoning
    asked = hashlib.sha256()
    for p in prompts:
        content = [p.id, p.dataset, messages(p, reasoning), dict(p.target or {})]
        asked.update(json.dumps(content, sort_keys=True).encode())
    evaluation = config.evaluation
    settings = (
        f"format {FORMAT_VERSION}, max_tokens {config.prompt.max_tokens}, reasoning {reasoning}, span "
        f"{evaluation.span}, max_new_tokens {evaluation.max_new_tokens}, "
    )
    if spec is not None:
        named, more = f"{spec.model} at {spec.url}", f"temperature {spec.temperature}"
        if spec.tokenizer:
            more = f"by tokens of {spec.tokenizer}, no_repeat_ngram {evaluation.no_repeat_ngram}"
    else:
        named = f"{Path(model).name if Path(model).exists() else model} ({model_digest(model)})"
        more = f"dtype {config.model.dtype}, no_repeat_ngram {evaluation.no_repeat_ngram}"
        if config.model.backend != "local":
            more += f", by {config.model.backend}"
    if (spec is None or spec.tokenizer) and not evaluation.beliefs:
        more += ", without beliefs"
    data = f"{len(prompts)} prompts ({asked.hexdigest()[:16]})"
    return {"model": named, "data": data, "settings": settings + more}


def claim(store: Store, folder: Path, inputs: Mapping[str, str], *, begun: bool = False) -> None:
    """Note the inputs of an evaluation in its store; raises StoreError where it holds another evaluation.

    Args:
        begun: whether the folder holds work besides predictions, such as a trained epoch. Without work,
            another evaluation may take the folder over.
    """
    begun = begun or bool(store.predicted_datasets())
    if begun and (found := store.identity(_IDENTITY)) is not None:
        known = json.loads(found)
        for key, value in inputs.items():
            if known.get(key) != value:
                raise StoreError(
                    f"{folder} holds an evaluation {_OTHER[key]}: {known.get(key)} there, {value} now. Give "
                    "another --out, or the same command as before to go on with it"
                )
        return
    if store.predicted_datasets():
        raise StoreError(f"{folder} holds predictions of an unknown evaluation; give another --out")
    store.set_identity(_IDENTITY, json.dumps(inputs), replace=True)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    if (out / CONFIG_FILE).exists():
        raise StoreError(f"{out} is a run folder; give --out a folder of the evaluation's own")
    if is_baseline(out):
        raise StoreError(
            f"{out} is a folder of `selfemo baseline`; give --out a folder of the evaluation's own"
        )
    with lock_folder(out):
        yield out


def settings_of(
    model: str, sources: Sequence[str], files: Sequence[Path], overrides: Sequence[str]
) -> tuple[Config, str]:
    """The configuration to evaluate a model or endpoint with, and its checkpoint (an endpoint: its name)."""
    if endpoint_of(model) is None:
        return settings_for(model, sources, files, overrides)
    return load(files, [f"data.sources={json.dumps(list(sources))}", *overrides]), model


def on_existing_split(
    data: DataConfig, conversations: Sequence[Conversation], say: Callable[[str], None]
) -> DataConfig:
    """The settings with the other held-out split where the data lack their own, which is said."""
    wanted = data.eval_split
    there = existing_split([c for c in conversations if c.split != "train"], wanted)
    if there == wanted:
        return data
    say(f"the data have no split {wanted}: {there} is evaluated (--split names one)")
    return data.model_copy(update={"eval_split": there})


def say_unscored(data: DataConfig, say: Callable[[str], None]) -> None:
    """Name the sources, of several, that have no conversation of the evaluated split."""
    if len(data.sources) < 2:
        return
    for source, part in zip(data.sources, load_sources(data)[0], strict=True):
        if not any(c.split == data.eval_split for c in part):
            there = ", ".join(dict.fromkeys(c.split for c in part))
            say(f"{source}: not scored, since it has no split {data.eval_split} (there are: {there})")


def _once(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Without those that come again: a run's own data may be what is evaluated."""
    found = {(c.dataset, c.id, tuple(t.text for t in c.turns)): c for c in conversations}
    return list(found.values())


def evaluate_model(
    model: str,
    sources: Sequence[str],
    out: Path | None,
    files: Sequence[Path],
    overrides: Sequence[str],
    reporter: Reporter,
    *,
    other: Path | None = None,
    train_data: Sequence[str] = (),
    stop: StopRequest | None = None,
) -> Evaluation:
    """Score a model on the held-out split of some sources.

    Args:
        model: a run folder, model folder, id, or an endpoint as `NAME=URL,model=...`.
        out: the folder to keep it in, and to go on with if it was stopped.
        other: an evaluation folder or a run to compare with on the same prompts.
        train_data: sources that the model was trained on, besides those of its run.

    Raises:
        ConfigError: an endpoint is asked for probabilities.
        DataError: a source cannot be read, or one of `train_data` has no training split.
        StoreError: `out` holds another evaluation; `other` holds none.
        Stopped: `stop` was asked for; what is done is kept in `out`.
    """
    stop = stop or StopRequest()
    spec = endpoint_of(model)
    config, checkpoint = settings_of(model, sources, files, overrides)
    if spec is not None and config.model.backend != "local":
        raise ConfigError(
            f"{spec.name}: --backend {config.model.backend} is of a model on this machine; leave it out"
        )
    if spec is not None and not spec.tokenizer and config.evaluation.span == "probabilities":
        raise ConfigError(
            f'{spec.name}: evaluation.span = "probabilities" needs the weights of the model, and an '
            'endpoint gives text alone; use span "emotion" or "all", or name the tokenizer of a vLLM server '
            "by tokenizer="
        )
    conversations = load_conversations(config.data, reporter.say)
    if not any(o.startswith("data.eval_split") for o in overrides):
        config = config.model_copy(
            update={"data": on_existing_split(config.data, conversations, reporter.say)}
        )
    data, resamples = config.data, config.evaluation.resamples
    held = held_out(conversations, data.eval_split, data.eval_conversations, 0, data.eval_half)
    say_unscored(data, reporter.say)
    if data.hold_out:
        mine = counted(sum(c.split == data.eval_split for c in conversations), "conversations")
        reporter.say(f"of {len(conversations)} conversations those that the run held out are scored: {mine}")
    trained = overlap.training_data(None if spec else model, train_data, data.lenient, reporter.say)
    prompts = predictions.gold_prompts(held)
    compared = None if other is None else predictions_of(other)
    inputs = identity(checkpoint, spec, prompts, config)
    mode = config.store.journal_mode
    with _folder(out) as folder, Store(folder / STORE_FILE, journal=mode) as store:
        claim(store, folder, inputs)
        stop.check()
        _predict(store, spec, checkpoint, held, config, reporter, stop)
        about = {
            "selfemo": __version__,
            "model": model if spec is None else f"{spec.name} ({spec.model})",
            "trained_on": [] if spec is not None else trained_on(checkpoint),
            "sources": list(sources),
            "split": data.evaluated_on,
            "eval_conversations": data.eval_conversations,
            "compared_with": None if other is None else str(other),
            **{f"evaluated_{k}": v for k, v in inputs.items()},
        }
        known = _once([*conversations, *trained])
        return scored(
            store.predictions(NAME), about, held, known, trained, out, reporter, compared=compared,
            resamples=resamples,
        )  # fmt: skip


def scored(
    rows: predictions.Rows,
    about: dict[str, Any],
    held: Sequence[Conversation],
    known: Sequence[Conversation],
    trained: Sequence[Conversation],
    out: Path | None,
    reporter: Reporter,
    *,
    compared: predictions.Rows | None = None,
    resamples: int,
) -> Evaluation:
    """The scores of stored predictions with all that stands beside them; written into `out` if there is one.

    Args:
        about: of `Evaluation`.
        held: the conversations that were predicted.
        known: conversations whose training split gives the constant answers.
        trained: those that the model was trained on, for the overlap; empty where they are not known.
        compared: the predictions of another system.
    """
    labels = predictions.label_sets(held)
    shares = label_shares(known, rows, labels)
    against = against_constants(rows, labels, shares)
    constants = constant_scores(rows, labels, shares, resamples=resamples)
    theirs = {r["prompt"] for r in compared or ()}
    common = [r for r in rows if r["prompt"] in theirs]
    result = Evaluation(
        about,
        predictions.score(rows, labels, resamples=resamples),
        predictions.average(rows, labels, resamples=resamples),
        None if compared is None else predictions.compare(compared, rows, labels),
        {d: {**c, "against": against[d]} for d, c in constants.items()},
        constant_scores(common, labels, shares, resamples=resamples),
        overlap.evaluation_part(held, trained, rows, labels, resamples=resamples),
    )
    if out is not None:
        write_json(out / SCORES_FILE, result.as_dict())
        _write_parquet(rows, labels, out / PREDICTIONS_FILE, reporter)
    return result


def _predict(
    store: Store,
    spec: ExpertSpec | None,
    checkpoint: str,
    held: Sequence[Conversation],
    config: Config,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Make the predictions that are missing in the store."""
    prompts = {p.id for p in predictions.gold_prompts(held)}
    evaluation, prompt = config.evaluation, config.prompt
    sampler = None
    by_tokens = spec is None or bool(spec.tokenizer)
    if by_tokens and not prompts <= store.predicted_prompts(NAME):  # else no model has to be loaded
        sampler = open_sampler(checkpoint, config.model)  # before the bar: it is no part of the rate
    with reporter.bar("evaluate", len(prompts)) as advance:
        if spec is not None and not by_tokens:  # it ends its open questions before it stops
            predictions.evaluate_endpoint(spec, held, store, NAME, evaluation, prompt, advance, stop=stop)
        elif sampler is not None:

            def on_done(n: int) -> None:
                advance(n)
                stop.check()

            if note := predictions.evaluate(sampler, held, store, NAME, evaluation, prompt, on_done):
                reporter.say(note)


def trained_on(checkpoint: str) -> list[str]:
    """The data sets that the run of a checkpoint trained on; empty where the checkpoint is of no run."""
    run = run_of(checkpoint)
    if run is None or not (run / STORE_FILE).exists():
        return []
    with Store(run / STORE_FILE, read_only=True) as store:
        return sorted(store.label_sets())


def is_baseline(folder: Path) -> bool:
    """Whether a folder is of `selfemo baseline`, finished or not."""
    return any(f.is_dir() for f in folder.glob(f"{SEED}*"))


def seed_folders(folder: Path) -> list[tuple[int, Path]]:
    """(seed, folder) of the finished evaluations in a baseline's folder; none of another folder."""
    found = (f for f in folder.glob(f"{SEED}*") if (f / SCORES_FILE).exists())
    return sorted((int(f.name.removeprefix(SEED)), f) for f in found if f.name.removeprefix(SEED).isdigit())


def predictions_of(folder: Path) -> list[PredictionRow]:
    """The stored predictions of an evaluation folder, or of a run's last evaluated checkpoint.

    Raises:
        StoreError: it holds none.
    """
    if not (folder / STORE_FILE).exists():
        if inside := seed_folders(folder):
            raise StoreError(
                f"{folder} is a folder of `selfemo baseline`; name that of one of its seeds, "
                f"such as {inside[0][1]}"
            )
        raise StoreError(
            f"{folder} is neither a folder of `selfemo evaluate --out` nor a run; evaluate the other model "
            "with --out first and compare with that folder"
        )
    with Store(folder / STORE_FILE, read_only=True) as store:
        names = [NAME]
        if (folder / CONFIG_FILE).exists():
            names = [evaluation_name(c) for c in reversed(checkpoints(load([folder / CONFIG_FILE])))]
        for name in names:
            if rows := store.predictions(name):
                return rows
    raise StoreError(f"{folder} holds no predictions yet")


def _write_parquet(
    rows: predictions.Rows, labels: predictions.Labels, path: Path, reporter: Reporter
) -> None:
    """One row an utterance; the top emotion is FAILED where there is none."""
    written = [
        {
            "prompt": r["prompt"],
            "dataset": r["dataset"],
            "conversation": r["conversation"],
            "turn": int(r["prompt"].rpartition("/")[2]),
            "gold": gold,
            "predicted": predicted,
            "gold_distribution": r["gold"],
            "predicted_distribution": r["predicted"],
            "believed_distribution": r["believed"],
            "failure": r["failure"],
            "r1": r["r1"],
            "text": r["text"],
        }
        for r in rows
        for gold, predicted in [predictions.tops(r, labels)]
    ]
    write_rows(path, written, ("dataset", "conversation", "turn"), reporter.say)
