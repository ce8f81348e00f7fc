"""Step "expression": does a reward on the reply make it show S, for a reader that no arm has learned from?

One process, one seed. From one cold start, which writes whole completions, each arm has the same original
prompts in the same order:

    off        SELF-GRPO on E alone, as the other steps have it
    encoder    the same, and replies to each S equally often, rewarded by an encoder that listens (--listener)
    anchored   encoder with a tenth of E's weight, and the policy keeps the S of its start (grpo.self_anchor)
    plain      encoder, by R3 without its contrast with the other emotions (reward.contrast)
    reference  encoder, but the start listens
    sampled    encoder, with the policy's own S
    alone      encoder, and nothing for E

An independent reader (--reader), another encoder than the listener, reads the replies: on the claim half of
dev, drawn by sampling with equal seeds for all arms, to the policy's own S and to a given one, and, in
training, those of each round (reward.reader), unless that would take too long (--unwatched).
Kappa and mutual information between S and what it finds are corrected for chance; those of the turns that
people really gave next are its ceiling. The arms' E is scored as in the other steps.

Each seed has a cold start of its own, or that of another one (--start-seed).

Encoders are folders of `selfemo baseline encoder --keep`, trained on the training split of the same data.

    python -m experiments.gpu.expression --seed 0 --data meld:PATH --data emorynlp:PATH --out OUT \
        --listener FOLDER --reader FOLDER
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.gpu.study import Study, command_line, run_step

from selfemo.evaluation.analysis import analyse_checkpoint
from selfemo.evaluation.readers import GIVEN, REAL, Reply, expression_by_data, read_replies, real_replies
from selfemo.method.types import Completion, EmotionDistribution, ParseFailure, Prompt
from selfemo.models.classifiers.reader import kept_settings
from selfemo.models.reply_readers import ReplyReader, open_reply_reader
from selfemo.stages.selfplay import persona_book

SEEDS = (0, 1, 2)
ON = ("reward.expression=listener", "selfplay.self_emotion=balanced")
ARMS: Mapping[str, Sequence[str]] = {
    "off": (),
    "encoder": ON,
    "anchored": (*ON, "grpo.self_anchor=1", "grpo.reward_weight=0.1"),
    "plain": (*ON, "reward.contrast=false"),
    "reference": ON,
    "sampled": ON[:1],
    "alone": (*ON, "grpo.reward_weight=0"),
}
"""In the order of what a lease is spent on first."""


class Expression(Study):
    """A study whose replies a reader reads.

    Args:
        listener, reader: folders of kept encoders.
        watched: whether the reader reads the replies of each round.
    """

    def __init__(self, *rest: Any, listener: str, reader: str, watched: bool, **more: Any):
        super().__init__(*rest, **more)
        self.listener, self.reader, self.watched = listener, reader, watched
        config = self.config
        self.judge: ReplyReader = open_reply_reader(reader, config.model, config.prompt)
        kept = {n: kept_settings(Path(f)).settings for n, f in (("listener", listener), ("reader", reader))}
        # A folder says where it lies, and not what it is.
        self.keep(
            "encoders",
            {n: {**k.model_dump(mode="json"), "encoder": Path(k.encoder).name} for n, k in kept.items()},
        )

    def judged(self, replies: Sequence[Reply]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the reader finds in some replies, by data set, with intervals by conversation; and of each
        prompt the conversation, and the top emotion of S and of what it found, None where that is nothing."""
        found = read_replies(self.judge, replies, lambda n: None)
        tops = {
            r.prompt.id: [
                r.prompt.conversation_id,
                r.declared.top(r.prompt.label_set),
                EmotionDistribution(q).top(r.prompt.label_set) if (q := found[r.prompt.id]) else None,
            ]
            for r in replies
        }
        return expression_by_data(replies, found, {}, self.config.evaluation.resamples), tops

    def details(self, name: str) -> dict[str, Any]:
        """Completions of the claim half by sampling, their analysis, and what the reader finds in them: as
        they are, and behind the same E lines to an S that is given."""
        if REAL not in self.results:
            claim = [c for c in self.dev_conversations if self.half(c.id) == "claim"]
            self.keep(REAL, self.judged(real_replies(claim))[0])
            self.tell(REAL, self.results[REAL])
        claim = [self.dev[i] for i in self.indices(half="claim")]
        own, given = Written(), Written()
        sampler, personas = self.trainer.engine.sampler, persona_book(self.dev_conversations)
        analysis = analyse_checkpoint(
            sampler, claim, personas, self.config, on_written=own.keep, on_given=given.keep
        )
        record: dict[str, Any] = {"analysis": analysis}
        for kind, written in (("", own), ("_given", given)):
            judged, tops = self.judged(written.replies)
            self.tell(f"{name}{GIVEN if kind else ''}", judged)
            record |= {f"judged{kind}": judged, f"read{kind}": tops, f"sampled{kind}": written.texts}
        return record

    def tell(self, name: str, judged: Mapping[str, Any]) -> None:
        for dataset, found in judged.items():
            if "kappa" in found:
                kappa, low, high = found["kappa"]
                self.say(
                    f"{name}, {dataset}: kappa {kappa:.3f} [{low:.3f}, {high:.3f}], mutual information "
                    f"{found['mutual_information'][0]:.3f}, H(S) {found['declared']['entropy']:.2f}, "
                    f"{found['replies']} replies"
                )


class Written:
    """Completions as they were written, by the id of the prompt, and the replies of those that parsed."""

    def __init__(self) -> None:
        self.texts, self.replies = dict[str, str](), list[Reply]()

    def keep(self, prompt: Prompt, text: str, parsed: Completion | ParseFailure) -> None:
        self.texts[prompt.id] = text
        if isinstance(parsed, Completion):
            self.replies.append(Reply.of(prompt, parsed))


def run(study: Study, seed: int) -> None:
    """The start, and each arm once."""
    assert isinstance(study, Expression)
    start, config = study.cold_start(), study.config
    for arm, settings in ARMS.items():
        more = [f'reward.reader="{study.reader}"'] if settings and study.watched else []
        if settings and arm != "reference":
            more.append(f'reward.listener="{study.listener}"')
        study.arm(start, arm, config.grpo.lr, seed, [*settings, *more])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__, ARMS)
    parser.add_argument("--seed", type=int, choices=SEEDS, required=True, help="of the arms")
    parser.add_argument("--start-seed", type=int, help="of the cold start; that of the arms where left out")
    parser.add_argument("--listener", required=True, help="folder of a kept encoder, which rewards")
    parser.add_argument("--reader", required=True, help="folder of another one, which judges")
    parser.add_argument("--unwatched", action="store_true", help="it reads no replies of the rounds")
    args = parser.parse_args(arguments)
    made = partial(Expression, listener=args.listener, reader=args.reader, watched=not args.unwatched)
    start = args.seed if args.start_seed is None else args.start_seed
    run_step(args, "expression.toml", partial(run, seed=args.seed), made, overrides=[f"seed={start}"])


if __name__ == "__main__":
    main()
