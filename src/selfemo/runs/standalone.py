"""The stages on their own: `selfemo sft`, `train`, `selfplay`, `coldstart soften`."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfemo.config import Config, load
from selfemo.data.splits import existing_split, held_out
from selfemo.errors import ConfigError, DataError, EngineError
from selfemo.files import lock_folder
from selfemo.method.prompts import conversation_prompts, format_emotions
from selfemo.method.types import EmotionDistribution, Prompt
from selfemo.models.generation import open_sampler
from selfemo.models.references import run_of
from selfemo.progress import Reporter, StopRequest
from selfemo.runs.dialogues import dialogues
from selfemo.runs.evolve import cold_start, rl
from selfemo.runs.folder import COLD, CONFIG_FILE, START, RunFolder, must_be_new, rolls_back
from selfemo.runs.inputs import check_reasoning, load_conversations, run_inputs
from selfemo.runs.overlap import note_overlap
from selfemo.runs.preflight import check_run, check_start
from selfemo.runs.settings import find_checkpoint, settings_for
from selfemo.runs.store import STORE_FILE, Store
from selfemo.seeds import rng
from selfemo.stages.coldstart import LEAST_OWN_WEIGHT, read_parquet, soften, write_parquet
from selfemo.stages.completions import fit_all
from selfemo.stages.flywheel import original_prompts
from selfemo.stages.selfplay import persona_book, play_episodes
from selfemo.training import open_trainer


def sft_alone(
    out: Path, config: Config | None, reporter: Reporter, stop: StopRequest | None = None
) -> dict[str, Any]:
    """Cold start into the model folder `out`; its samples and metrics go to OUT.run beside it.

    Args:
        config: None resumes what OUT.run holds.
    """
    if out.exists():
        raise EngineError(f"{out} exists already; give another --out")
    folder, inputs = out.with_name(out.name + ".run"), None
    if config is not None:
        config, inputs, _ = check_run(config, folder, reporter, iterations=0)
    with RunFolder(folder, config, reporter, stop) as run:
        _, training, overlap = inputs or run_inputs(run.config)
        note_overlap(run.path, overlap, reporter.say)
        trainer = open_trainer(run.config, run.path, run.stop)
        info = cold_start(run, trainer, training, overlap.not_trained_on)
        source = run.checkpoint(COLD)
        shutil.copytree(source, out)
        return info


def train_settings(model: str, config: Config) -> Config:
    """The settings of `train_alone`, with the model that it starts from as model.id.

    Raises: ConfigError: a setting that needs evaluations. EngineError: there is no such model.
    """
    if rolls_back(config):
        raise ConfigError(
            'flywheel.if_worse = "rollback": `selfemo train` evaluates nothing that could judge its '
            'stage; use `selfemo evolve`, or set if_worse = "go_on"'
        )
    return config.model_copy(update={"model": config.model.model_copy(update={"id": find_checkpoint(model)})})


def train_alone(
    model: str, out: Path, config: Config | None, reporter: Reporter, stop: StopRequest | None = None
) -> tuple[Path, dict[str, Any]]:
    """SELF-GRPO from a model; config None resumes the run in OUT.

    Returns: the trained model, OUT/checkpoints/iteration-1-rl, and the stage's record.
    """
    if config is not None:
        config, _ = check_start(train_settings(model, config), out, cold_start=False, say=reporter.say)
    with RunFolder(out, config, reporter, stop) as run:
        config, data = run.config, run.config.data
        conversations, training, overlap = run_inputs(config)
        note_overlap(run.path, overlap, reporter.say)
        originals = original_prompts(training, config.seed, config.flywheel.max_prompt_share)
        trainer = open_trainer(config, run.path, run.stop)
        tests = (data.eval_split, data.eval_conversations, 0, data.eval_half)
        # For a trainer that tests between its rounds.
        held = held_out(conversations, *tests) if trainer.whole_rounds else []
        name = rl(run, trainer, originals, training, held, START, 1)
        row = run.store.stage(name)
        assert row is not None
        return run.checkpoint(name), dict(json.loads(row["info"]))


def selfplay_alone(
    model: str,
    sources: Sequence[str],
    n: int,
    folder: Path,
    files: Sequence[Path],
    overrides: Sequence[str],
    reporter: Reporter,
) -> tuple[dict[str, int], list[str]]:
    """Play n episodes from held-out histories (of any split that the data have, where there are none).

    Returns: counts, and the longest dialogues.
    """
    config, checkpoint = settings_for(model, sources, files, overrides)
    conversations = load_conversations(config.data, reporter.say)
    held = held_out(conversations, existing_split(conversations, config.data.eval_split), 0, 0)
    prompts = [p for c in held for p in conversation_prompts(c)]
    order = rng(config.seed, "episodes").permutation(len(prompts))[:n]
    chosen, turns = [prompts[i] for i in order], config.selfplay.max_turns
    must_be_new(folder)
    sampler = open_sampler(checkpoint, config.model)
    with (
        lock_folder(folder),
        Store(folder / STORE_FILE, journal=config.store.journal_mode) as store,
        reporter.bar("self-play turns", turns) as advance,
    ):

        def on_turn(turn: int, live: int) -> None:
            # Where no episode goes on, the turns that are left are done with.
            advance(1 if live else turns - turn + 1, f"{live} go on" if live and turn < turns else "")

        counts = play_episodes(sampler, chosen, persona_book(conversations), config, store, on_turn=on_turn)
        return counts, dialogues(store, n)


def soften_alone(
    model: str,
    files: Sequence[Path],
    out: Path,
    own_weight: float,
    overrides: Sequence[str],
    reporter: Reporter,
) -> tuple[dict[str, int], Path | None, str]:
    """Samples that name what a model believes in beside their own emotion (`coldstart.soften`).

    Returns: counts of samples written, of those that name several emotions, and those of `fit_all`; the
        settings of the model's run, if it is of one; how the samples reason.

    Raises:
        ConfigError: own_weight is out of its range, or the samples do not reason as the model's run does.
        DataError: a file cannot be read, or an id occurs twice.
    """
    if not LEAST_OWN_WEIGHT <= own_weight <= 1:
        raise ConfigError(
            f"--own-weight {own_weight}: valid are {LEAST_OWN_WEIGHT} to 1; with less, an emotion that the "
            "model believes in could outweigh a sample's own"
        )
    samples = [s for f in files for s in read_parquet(f)]
    twice = [i for i, n in Counter(p.id for p, _ in samples).items() if n > 1]
    if twice:
        raise DataError(f"sample {twice[0]!r} occurs twice in {', '.join(map(str, files))}")
    checkpoint, run = find_checkpoint(model), run_of(model)
    config = load([run / CONFIG_FILE] if run else [], overrides)
    reasoning = config.prompt.reasoning
    check_reasoning(reasoning, [c for _, c in samples], ", ".join(map(str, files)))
    sampler = open_sampler(checkpoint, config.model)
    fits, counts = fit_all([p for p, _ in samples], sampler.encode, config.prompt.max_tokens, reasoning)
    fitted = {f.prompt.id: f for f in fits}
    samples = [(p, c) for p, c in samples if p.id in fitted]

    with reporter.bar("soften", 2 * len(samples)) as advance:

        def believed(places: Sequence[tuple[Prompt, str]]) -> list[EmotionDistribution]:
            found: dict[str, EmotionDistribution] = {}
            for labels in dict.fromkeys(p.label_set for p, _ in places):
                asked = [(p, written) for p, written in places if p.label_set == labels]
                for start in range(0, len(asked), sampler.chunk):
                    part = asked[start : start + sampler.chunk]
                    read = sampler.label_probabilities(
                        [(p.conversation_id, fitted[p.id].ids, written) for p, written in part], labels
                    )
                    found.update((p.id, d) for (p, _), d in zip(part, read, strict=True))
                    advance(len(part))
            return [found[p.id] for p, _ in places]

        softened = soften(samples, believed, own_weight)
    written = write_parquet(out, softened, reasoning, "softened")
    several = sum("," in format_emotions(c.emotion) for _, c in softened)
    told = {"samples": written, "several_emotions": several, **counts}
    return told, run and run / CONFIG_FILE, reasoning
