"""Step "expression": does a reward on the reply make it show S, for a reader that no arm has learned from?

One process, one seed. From one cold start, which writes whole completions, each arm has the same original
prompts in the same order:

    off         SELF-GRPO on E alone, with gold E lines, weighed against it as the quickstart has it, the S of
                the start (grpo.self_anchor) and a KL term
    on          the same, and replies to each S equally often, rewarded by an encoder that listens
                (--listener) and by how like people's turns they are in length (reward.length_weight)
    short       on, and replies may be as short as they like (no reward.length_weight)
    unanchored  on, and nothing keeps S
    plain       on, by R3 without its contrast with the other emotions (reward.contrast)
    reference   on, but the start listens
    sampled     on, with the policy's own S
    alone       on, and neither reward nor gold for E

An independent reader (--reader), another encoder than the listener, reads the replies: on the claim half of
dev, drawn by sampling with equal seeds for all arms, to the policy's own S and to a given one, and, in
training, those of each round (reward.reader), unless that would take too long (--unwatched).
Kappa and mutual information between S and what it finds are corrected for chance; those of the turns that
people really gave next stand beside. The arms' E is scored as in the other steps.

Each seed has a cold start of its own, or that of another one (--start-seed).

Encoders are folders of `selfemo baseline encoder --keep`, trained on the training split of the same data.

    python -m experiments.gpu.expression --seed 0 --data meld:PATH --data emorynlp:PATH --out OUT \
        --listener FOLDER --reader FOLDER
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.gpu.study import ANOTHER, Study, command_line, run_step

from selfemo.evaluation.analysis import analyse_checkpoint
from selfemo.evaluation.readers import (
    GIVEN,
    REAL,
    Reply,
    expression_by_data,
    read_replies,
    real_replies,
    weight_sums,
)
from selfemo.method.diversity import distinct, self_bleu
from selfemo.method.parsing import parse
from selfemo.method.types import Completion, EmotionDistribution, ParseFailure, Prompt
from selfemo.models.classifiers.reader import kept_settings
from selfemo.models.reply_readers import ReplyReader, open_reply_reader
from selfemo.stages.completions import fit_all
from selfemo.stages.selfplay import persona_book

SEEDS = (0, 1, 2)
ON = ("reward.expression=listener", "selfplay.self_emotion=balanced")
LONG = "reward.length_weight=1"
ARMS: Mapping[str, Sequence[str]] = {
    "off": (),
    "on": (*ON, LONG),
    "short": ON,
    "unanchored": (*ON, LONG, "grpo.self_anchor=0"),
    "plain": (*ON, LONG, "reward.contrast=false"),
    "reference": (*ON, LONG),
    "sampled": (*ON[:1], LONG),
    "alone": (*ON, LONG, "grpo.reward_weight=0", "grpo.gold_weight=0"),
}
"""In the order of what a lease is spent on first."""


KINDS = {"": "", "_given": GIVEN}
"""By the end of a record's keys how it is told: replies to the policy's own S, and to a given one."""


class Expression(Study):
    """A study whose replies a reader reads.

    Args:
        listener, reader: folders of kept encoders.
        watched: whether the reader reads the replies of each round.
    """

    def __init__(self, *rest: Any, listener: str, reader: str, watched: bool, **more: Any):
        self.listener, self.reader, self.watched = listener, reader, watched
        # A folder says where it lies, and not what it is.
        self.encoders = {"listener": _about(listener), "reader": _about(reader)}
        super().__init__(*rest, **more)
        config = self.config
        self.judge: ReplyReader = open_reply_reader(reader, config.model, config.prompt)
        self.keep("encoders", self.encoders)

    def _earlier(self, file: Path) -> dict[str, dict[str, Any]]:
        """As in `Study`; what the present reader has found stays (ValueError: another listener rewarded)."""
        runs, earlier = super()._earlier(file), json.loads(file.read_text(encoding="utf-8"))
        known = earlier.get("encoders", {})
        if known and known["listener"].get("weights") != self.encoders["listener"]["weights"]:
            raise ValueError(f"the runs of {file} were rewarded by another listener; {ANOTHER}")
        if known and known["reader"].get("weights") == self.encoders["reader"]["weights"]:
            self.results |= {k: earlier[k] for k in (REAL, "people") if k in earlier}
        return runs

    def read_people(self) -> None:
        """Have the turns that people really gave next read, where the present reader has not yet."""
        if REAL in self.results:
            return
        real = real_replies([c for c in self.dev_conversations if self.half(c.id) == "claim"])
        self.keep("people", talk(real))
        self.keep(REAL, self.judged(real)[0])
        self.tell(REAL, self.results[REAL], self.results["people"])

    def read_again(self) -> None:
        """Have the replies of earlier runs read where another reader has judged them."""
        asked, _ = fit_all(self.claim(), self.trainer.encode, self.config.prompt.max_tokens, "none")
        prompts = {f.prompt.id: f.prompt for f in asked}
        for run in self.results["runs"]:
            if run.get("read_by", self.encoders["reader"]["weights"]) == self.encoders["reader"]["weights"]:
                continue
            for kind in KINDS:
                replies = []
                for id_ in run[f"read{kind}"]:
                    said = parse(run[f"sampled{kind}"][id_], prompts[id_].label_set)
                    assert isinstance(said, Completion), "only what parsed was read"
                    replies.append(Reply.of(prompts[id_], said))
                run |= self.found(f"{run['run']}{KINDS[kind]}, read again", kind, replies)
            self.keep("runs", self.results["runs"])

    def claim(self) -> list[Prompt]:
        return [self.dev[i] for i in self.indices(half="claim")]

    def found(self, name: str, kind: str, replies: Sequence[Reply]) -> dict[str, Any]:
        """What the reader finds in replies, as keys of a run's record that end in `kind`."""
        (judged, tops), made = self.judged(replies), talk(replies)
        self.tell(name, judged, made)
        mark = {"read_by": self.encoders["reader"]["weights"]}
        return {f"judged{kind}": judged, f"read{kind}": tops, f"talk{kind}": made, **mark}

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
        own, given = Written(), Written()
        sampler, personas = self.trainer.engine.sampler, persona_book(self.dev_conversations)
        analysis = analyse_checkpoint(
            sampler, self.claim(), personas, self.config, on_written=own.keep, on_given=given.keep
        )
        record: dict[str, Any] = {"analysis": analysis}
        for kind, written in zip(KINDS, (own, given), strict=True):
            record[f"sampled{kind}"] = written.texts
            record |= self.found(f"{name}{KINDS[kind]}", kind, written.replies)
        return record

    def tell(self, name: str, judged: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        for dataset, found in judged.items():
            if "kappa" in found:
                kappa, low, high = found["kappa"]
                self.say(
                    f"{name}, {dataset}: kappa {kappa:.3f} [{low:.3f}, {high:.3f}], mutual information "
                    f"{found['mutual_information'][0]:.3f}, H(S) {found['declared']['entropy']:.2f}, "
                    f"{found['replies']} replies of {made[dataset]['words']:.1f} words"
                )


def _about(folder: str) -> dict[str, Any]:
    """What a kept encoder is: its settings, and the digest of its weights."""
    kept = kept_settings(Path(folder)).settings
    about = {**kept.model_dump(mode="json"), "encoder": Path(kept.encoder).name}
    return {**about, "weights": weight_sums(folder)}


def talk(replies: Sequence[Reply]) -> dict[str, dict[str, float | None]]:
    """How replies are made, by data set: words of a reply in the mean, the share of those of three or fewer,
    different pairs of words, self-BLEU."""
    said = dict[str, list[str]]()
    for r in replies:
        said.setdefault(r.prompt.dataset, []).append(r.text)
    found = dict[str, dict[str, float | None]]()
    for dataset, texts in said.items():
        lengths = [len(t.split()) for t in texts]
        found[dataset] = {
            "replies": len(texts),
            "words": fmean(lengths),
            "short": fmean(n <= 3 for n in lengths),
            "distinct_2": distinct(texts, 2),
            "self_bleu": self_bleu(texts),
        }
    return found


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
    study.read_people()
    study.read_again()
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
