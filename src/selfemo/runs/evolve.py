"""Algorithm 1 in one run folder that can be resumed (`selfemo evolve`): the stages in order.

    evaluate-start -> cold-start -> evaluate-cold-start
        -> [iteration-i-rl -> evaluate-iteration-i-rl -> iteration-i-refit -> evaluate-iteration-i] x N

Each stage that changes weights is scored by itself, so that what RL adds is told from what the refit adds,
which sees replayed gold data. Where there is no refit, the iteration's model is the RL policy: it is scored
once, and the stage evaluate-iteration-i takes the scores over and says so. Stages that end worse can be
rolled back (flywheel.if_worse; rollback.py has the order of stages then).

The store records each stage with its checkpoint. An interrupted stage goes back to its last saved state (or
its start) and continues from there. All random choices depend only on the seed and the place, so a resumed
run equals an uninterrupted one. The caller gives the function that scores a checkpoint.

Departures from the paper [ours]: flywheel.refit = "policy" trains the RL policy further instead of the
base model (step (b) of algorithm 1); "none" keeps the RL policy as the iteration's model;
flywheel.refit_on = "replay" trains it on samples of the cold start alone, as a control.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfemo.config import Config, SftConfig
from selfemo.counting import counted
from selfemo.data.splits import held_out
from selfemo.errors import DataError
from selfemo.method.prompts import conversation_prompts
from selfemo.method.types import Completion, Conversation, EmotionDistribution, Place, Prompt
from selfemo.models.sampler import Sampler
from selfemo.progress import Reporter, StopRequest
from selfemo.runs.folder import (
    COLD,
    COPY_OF,
    NO_REFIT,
    START,
    RunFolder,
    evaluation_name,
    policy_name,
    refit_name,
    rolls_back,
    stage_names,
)
from selfemo.runs.inputs import (
    RunInputs,
    cold_start_samples,
    count_seen,
    labels_taught,
    more_labels,
    run_inputs,
    seen_samples,
)
from selfemo.runs.overlap import note_overlap
from selfemo.runs.preflight import check_start
from selfemo.runs.rollback import Compare, Judge, check_settings, keep_refit, keep_rl, rolled_back_refits
from selfemo.runs.store import SampleRow, Store
from selfemo.runs.training_state import TrainingState, train
from selfemo.runs.words import expression_line
from selfemo.seeds import rng
from selfemo.stages.completions import fit_all
from selfemo.stages.flywheel import add_sample, cap_emotions, labels_record, original_prompts, replay_alone
from selfemo.stages.gate import CHANNEL_DISAGREES, CHANNEL_TOO_LONG, PASS
from selfemo.stages.rl import rl_plan, rl_stage
from selfemo.stages.selfplay import persona_book
from selfemo.stages.unlabelled import unlabelled_prompts
from selfemo.training import open_trainer
from selfemo.training.protocol import RlSpan, Trainer, finite_means

Sample = tuple[SampleRow, Prompt]
"""A sample of the store with its prompt."""
Evaluate = Callable[
    [Sampler, Sequence[Conversation], Store, str, Config, Callable[[int], None]], dict[str, Any]
]
"""Called with (sampler, conversations, store, name, config, on_done): puts predictions of the conversations
into the store for the stage `name`, calls on_done with the number of utterances after each part, and returns
the stage's record: scores by data set, and where there is something to say a text as "note".
`evaluation.predictions.evaluate_checkpoint` is one."""


def evolve(
    path: Path,
    config: Config | None,
    evaluate: Evaluate,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
    overrides: Sequence[str] = (),
    compare: Compare | None = None,
    inputs: RunInputs | None = None,
) -> RunFolder:
    """Run or resume algorithm 1 in `path`; returns the finished, still open run.

    Args:
        config: of a new run; None resumes the run in the folder.
        overrides: settings to change in a resumed run.
        compare: judges stages; needed where flywheel.if_worse = "rollback".
        inputs: of a new run, where `preflight.check_start` has given them.

    Raises:
        Stopped: `stop` was asked for; finished work is saved, and the run can be resumed.
    """
    stop = stop or StopRequest()
    if config is not None:
        if rolls_back(config):
            check_settings(config)
        if inputs is None:  # what cannot be used must fail before a folder is made
            config, inputs = check_start(config, path)
    run = RunFolder(path, config, reporter, stop, overrides)
    try:
        run.redo_damaged()
        run.announced = stage_names(run.config)
        trainer = open_trainer(run.config, path, stop)
        conversations, training, overlap = inputs or run_inputs(run.config)
        note_overlap(path, overlap, run.reporter.say)
        data, fly = run.config.data, run.config.flywheel
        held = held_out(conversations, data.eval_split, data.eval_conversations, 0, data.eval_half)
        originals = original_prompts(training, run.config.seed, fly.max_prompt_share)
        judge = None
        if rolls_back(run.config) and fly.iterations:
            if compare is None:
                raise ValueError('flywheel.if_worse = "rollback" needs `compare`')
            judge = Judge(run, conversations, held, compare)

        evaluate_checkpoint(run, trainer, held, START, evaluate)
        cold_start(run, trainer, training, overlap.not_trained_on)
        evaluate_checkpoint(run, trainer, held, COLD, evaluate)
        if judge:
            judge.begin()
        checkpoint = COLD
        for i in range(1, fly.iterations + 1):
            after_rl = rl(run, trainer, originals, training, held, checkpoint, i, fly.iterations)
            evaluate_policy(run, trainer, held, i, evaluate)
            kept = keep_rl(run, judge, after_rl, checkpoint, i) if judge else after_rl
            checkpoint = refitted = refit(run, trainer, kept, i)
            if judge:
                if refitted not in run.copied():
                    evaluate_checkpoint(run, trainer, held, refitted, evaluate)
                checkpoint = keep_refit(run, judge, kept, f"iteration-{i}")
            same = run.copied().get(checkpoint, "")
            evaluate_checkpoint(run, trainer, held, checkpoint, evaluate, same)
            if not run.config.save.keep_stage_checkpoints:
                run.remove_checkpoint(after_rl)
                if refitted != checkpoint:
                    run.remove_checkpoint(refitted)
        trainer.release()
    except BaseException:
        run.close()
        raise
    return run


def evaluate_checkpoint(
    run: RunFolder,
    trainer: Trainer,
    held: Sequence[Conversation],
    checkpoint: str,
    evaluate: Evaluate,
    same: str = "",
) -> None:
    """The stage that evaluates a checkpoint on the held-out conversations.

    Args:
        same: a checkpoint with the same weights: if it was evaluated, its scores are taken over.
    """
    name = evaluation_name(checkpoint)

    def work() -> dict[str, Any]:
        if same and run.evaluated(same):
            return run.take_over_scores(same, checkpoint)
        sampler = trainer.sampler(run.weights(checkpoint))
        total = sum(t.emotion is not None for c in held for t in c.turns)
        with run.reporter.bar(name, total) as advance:

            def on_done(n: int) -> None:
                advance(n)
                run.stop.check()

            record = evaluate(sampler, held, run.store, name, run.config, on_done)
        if note := record.get("note"):
            run.reporter.say(f"{name}: {note}")
        return record

    run.stage(name, work)


def evaluate_policy(
    run: RunFolder, trainer: Trainer, held: Sequence[Conversation], iteration: int, evaluate: Evaluate
) -> None:
    """The stage that evaluates an iteration's policy after RL, before its refit.

    A run of an earlier version may be past the refit without it: the policy is scored then if its weights
    were kept, and else left out, which is said.
    """
    checkpoint = f"iteration-{iteration}"
    after_rl = policy_name(checkpoint)
    same = checkpoint if run.copied().get(checkpoint) == after_rl else ""
    kept = run.checkpoint(after_rl).exists()
    if not (kept or run.evaluated(after_rl) or (same and run.evaluated(same))):
        run.reporter.say(f"{after_rl} was never scored, and its weights were not kept; left out")
        return
    evaluate_checkpoint(run, trainer, held, after_rl, evaluate, same)


def cold_start(
    run: RunFolder, trainer: Trainer, training: Sequence[Conversation], not_trained_on: Collection[str] = ()
) -> dict[str, Any]:
    """The supervised cold start, into the checkpoint COLD; returns the stage's record.

    Args:
        not_trained_on: ids of conversations whose samples in sft.samples are left out.
    """
    config, sft = run.config, run.config.sft

    def attempt(state: TrainingState) -> dict[str, Any]:
        seen, reasoning = seen_samples(training, config), config.prompt.reasoning
        whole, source, left_out = cold_start_samples(
            training, sft, reasoning, config.seed, not_trained_on, seen
        )
        again = count_seen(whole, seen)
        if sft.seen:
            run.reporter.say(f"{COLD}: {again} of {len(whole)} samples are of the model's earlier cold start")
        labels = more_labels(training, sft, whole, config.seed)
        samples: list[tuple[Prompt, Completion | EmotionDistribution, str]] = [
            *((p, c, source) for p, c in whole),
            *((p, e, "label") for p, e in labels),
        ]
        state.open(lambda: trainer.begin_sft(COLD, run.weights(START), sft))
        with run.store.transaction():
            run.store.add_prompts([p for p, _, _ in samples], Place(COLD))
            for p, answer, where in samples:
                add_sample(run.store, p, answer, 1.0, Place(COLD), where)
        info = _fit(run, state, sft, sft.epochs, replay=1.0, iteration=0)
        trainer.save(run.checkpoint(COLD))
        if left_out:
            info["left_out_as_overlap"] = left_out
        info |= {"seen_before": again} if sft.seen else {}
        return info | {"duplicates": len(samples) - run.store.samples_of_stage(COLD)}

    return run.stage(COLD, lambda: train(run, trainer, COLD, attempt), COLD)


def _fit(
    run: RunFolder, state: TrainingState, sft: SftConfig, epochs: int, replay: float, iteration: int
) -> dict[str, Any]:
    """Train on the SFT set in the store: all of `iteration`'s samples, a share `replay` of the others.

    With flywheel.refit_on = "replay" a refit trains on as many samples of the cold start instead.
    """
    config, stage, trainer = run.config, state.stage, state.trainer
    undone = rolled_back_refits(run.store)
    stored = run.store.samples()
    everything = [(row, p) for row, p in stored if row["iteration"] not in undone]
    chosen = [
        (row, prompt)
        for row, prompt in everything
        if row["iteration"] == iteration
        or replay >= 1
        or rng(config.seed, stage, "replay", row["id"]).random() < replay
    ]
    told: dict[str, int] = {}
    if iteration and config.flywheel.refit_on == "replay":
        chosen, told = _replayed(run, state, chosen, everything)
    if undone:
        told = {**told, "left_out_as_rolled_back": len(stored) - len(everything)}
    fitted, counts = fit_all(
        [p for _, p in chosen], trainer.encode, config.prompt.max_tokens, config.prompt.reasoning
    )
    by_id = {f.prompt.id: f for f in fitted}
    samples = [(by_id[p.id], row["completion"]) for row, p in chosen if p.id in by_id]
    if not samples:
        raise DataError(
            f"none of the {len(chosen)} samples fits prompt.max_tokens = {config.prompt.max_tokens}; raise it"
        )
    total = trainer.sft_steps(samples, sft, epochs)
    with run.reporter.bar(stage, total) as advance:
        advance(state.step)
        for step in trainer.sft(
            samples, sft, epochs=epochs, seed=config.seed, first=state.step, scale=state.scale
        ):
            record: dict[str, Any] = finite_means([step.measures])
            state.look(step.index, record)
            with run.store.transaction():
                run.store.add_metrics(Place(stage, step.index), record)
            loss = record.get("loss")
            advance(1, "no finite loss" if loss is None else f"loss {loss:.3f}")
            state.after(trainer, step.index + 1, total)
    return {"samples": len(samples), "steps": total, **told, **counts}


def _replayed(
    run: RunFolder, state: TrainingState, chosen: Sequence[Sample], everything: Sequence[Sample]
) -> tuple[list[Sample], dict[str, int]]:
    """As many samples of the cold start as there are in `chosen`, for a refit without self-play.

    Prompts over the length limit count for nothing, so that the optimiser steps are as many as on `chosen`.

    Returns:
        the samples, and counts: `replayed` different ones; `in_place_of_selfplay`; `repeated`, how many of
        them occur before in the list.
    """
    config, stage = run.config, state.stage
    limit, reasoning = config.prompt.max_tokens, config.prompt.reasoning
    fits, _ = fit_all([p for _, p in everything], state.trainer.encode, limit, reasoning)
    inside = {f.prompt.id for f in fits}
    known = {r["id"]: (r, p) for r, p in everything if p.id in inside and r["source"] != "selfplay"}
    wanted = [r["id"] for r, p in chosen if p.id in inside]
    drawn = [i for i in wanted if i in known]
    others = sorted(known.keys() - set(drawn))
    if not known:
        raise DataError(
            f'flywheel.refit_on = "replay": no sample of the cold start fits prompt.max_tokens = {limit}; '
            "raise it"
        )
    ids = replay_alone(len(wanted), drawn, others, rng(config.seed, stage, "replay alone"))
    counts = {
        "replayed": len(set(ids)),
        "in_place_of_selfplay": len(wanted) - len(drawn),
        "repeated": len(ids) - len(set(ids)),
    }
    if n := counts["repeated"]:
        run.reporter.say(f"{stage}: {n} of {len(ids)} samples are repeated, since the cold start has no more")
    return [known[i] for i in ids], counts


def _round_note(record: Mapping[str, Any]) -> str:
    """What a round of RL was like, beside its bar."""
    if "r1" not in record:
        return ""
    note = f"R1 {record['r1']:.3f} parsed {record['parse_rate']:.0%}"
    r3 = record.get("expression")
    return note if r3 is None else f"{note} R3 {r3:+.2f}"


def _remarks(counts: Mapping[str, int], config: Config) -> list[str]:
    """What a user should know of the prompts and replies of an RL stage, from the counts of `rl_stage`."""
    found = []
    if old := counts.get("too_old"):
        limit = f"selfplay.max_age = {config.selfplay.max_age}"
        found.append(f"{counted(old, 'prompts')} of self-play passed {limit} unanswered")
    if own := counts.get("targets_own"):
        of = f"of {own + counts['targets_shuffled']} prompts of self-play {own} kept their own target"
        found.append(f"{of}, since no other of their label set passed in their round")
    if refused := counts.get(CHANNEL_DISAGREES, 0):
        of = f"in {refused} of {refused + counts.get(PASS, 0)} replies that were read"
        found.append(f"{of} the teacher did not hear the declared emotion (gate.channel)")
    if long := counts.get(CHANNEL_TOO_LONG, 0) + counts.get("targets_unheard", 0):
        found.append(f"{counted(long, 'replies')} too long for the teacher to read")
    if read := counts.get("targets_heard"):
        other = f"{counts['targets_other_top']} of {read} next prompts"
        found.append(f"the target of {other} has another top emotion than the declared S")
    return found


def rl(
    run: RunFolder,
    trainer: Trainer,
    originals: Sequence[Prompt],
    training: Sequence[Conversation],
    held: Sequence[Conversation],
    start: str,
    iteration: int,
    iterations: int = 1,
) -> str:
    """Step (a) of algorithm 1; returns the checkpoint's name.

    Args:
        training: the conversations whose personas self-play keeps.
        held: conversations that an engine may test on between its rounds.
        iterations: those of the run: lambda(t) is counted over their RL stages (`grpo.lam_span`).
    """
    name, config = policy_name(f"iteration-{iteration}"), run.config
    span = RlSpan.of(config.grpo, iteration, iterations)

    def attempt(state: TrainingState, drawn: Sequence[Prompt]) -> dict[str, Any]:
        tests = [p for c in held for p in conversation_prompts(c)]
        state.open(lambda: trainer.begin_rl(name, run.weights(start), config.grpo, tests, span))
        # Left out here, not when drawn: the order of draws counts the prompts that were sampled.
        limit = config.prompt.max_tokens
        fits, _ = fit_all(drawn, trainer.encode, limit, config.prompt.reasoning)
        inside = {f.prompt.id for f in fits}
        if not inside:
            raise DataError(
                f"none of the {len(drawn)} training prompts fits prompt.max_tokens = {limit}; raise the limit"
            )
        taught = labels_taught(run.store, training, config) if config.flywheel.new_labels else set()
        usable = [p for p in drawn if p.id in inside and p.id not in taught]
        if not usable:
            usable = [p for p in drawn if p.id in inside]
            run.reporter.say(
                f"{name}: SFT samples have taught all {len(usable)} labels, so RL draws those again; lower "
                "sft.max_samples or sft.label_samples to keep new ones for it"
            )
        plan, first = rl_plan(config, trainer), min(state.step, state.kept)
        with run.reporter.bar(name, plan.rounds) as advance:
            advance(first)

            def on_round(record: dict[str, Any]) -> None:
                advance(1, _round_note(record))

            place, personas = Place(name, first, iteration), persona_book(training)
            counts = rl_stage(trainer, usable, personas, config, run.store, place, span, state, on_round)
        trainer.save(run.checkpoint(name))
        for remark in _remarks(counts, config):
            run.reporter.say(f"{name}: {remark}")
        if left_out := len(drawn) - len(inside):
            counts["originals_too_long"] = left_out
        if taught:
            counts["originals_taught"] = len(inside) - len(usable)
        if trainer.whole_rounds and (rest := plan.prompts % plan.prompts_per_round):
            counts["prompts_of_no_whole_batch"] = rest
        if config.expresses:
            run.reporter.say(f"{name}: {expression_line(run.store.stage_metrics(name))}")
        return counts | labels_record(run.store.labels_drawn(name))

    def work() -> dict[str, Any]:
        more, read = _unlabelled(run, trainer, training, start, name)
        info = train(run, trainer, name, lambda state: attempt(state, [*originals, *more]))
        return info | ({"unlabelled": dict(read)} if read else {})

    run.stage(name, work, name)
    return name


def _unlabelled(
    run: RunFolder, trainer: Trainer, training: Sequence[Conversation], start: str, stage: str
) -> tuple[list[Prompt], Counter[str]]:
    """`unlabelled_prompts` with the stage's start as the teacher; none where flywheel.unlabelled says so."""
    if run.config.flywheel.unlabelled == "leave":
        return [], Counter()
    total = sum(t.emotion is None for c in training for t in c.turns)
    with run.reporter.bar(f"{stage}, turns without a gold emotion", total) as advance:

        def on_done(n: int) -> None:
            advance(n)
            run.stop.check()

        teacher = trainer.sampler(run.weights(start))
        return unlabelled_prompts(teacher, training, run.config.prompt, stage, on_done)


def refit(run: RunFolder, trainer: Trainer, start: str, iteration: int) -> str:
    """Step (b) of algorithm 1; returns the checkpoint's name.

    Args:
        start: the policy after RL, or, where that was rolled back, the checkpoint before it.
    """
    fly, name = run.config.flywheel, f"iteration-{iteration}"
    stage, judged = refit_name(name), rolls_back(run.config)
    checkpoint = stage if judged else name  # what is judged gets its name when it is kept

    def work() -> dict[str, Any]:
        info: dict[str, Any] = cap_emotions(run.store, iteration, fly.max_emotion_share)
        if fly.refit == "none" or not info["used"]:
            run.copy_checkpoint(start, checkpoint)
            return info | (
                {"refit": f"none: {start} is kept", COPY_OF: start} if judged else {"refit": NO_REFIT}
            )
        if fly.refit_on == "replay":
            info |= {"used": 0, "left_out": info["used"]}
        base = START if fly.refit == "base" else start
        sft = run.config.sft
        if fly.refit_lr is not None:
            sft = sft.model_copy(update={"lr": fly.refit_lr})

        def attempt(state: TrainingState) -> dict[str, Any]:
            state.open(lambda: trainer.begin_sft(stage, run.weights(base), sft))
            done = _fit(run, state, sft, fly.refit_epochs, fly.replay, iteration)
            trainer.save(run.checkpoint(checkpoint))
            return done

        return info | train(run, trainer, stage, attempt)

    run.stage(stage, work, checkpoint)
    return checkpoint
