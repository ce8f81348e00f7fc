"""R1 and R3 as reward functions of a plain `GRPOTrainer` of TRL, over the rows of `trl.prompt_dataset`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from selfemo.config import GateConfig, GrpoConfig, ModelConfig, PromptConfig, RewardConfig
from selfemo.errors import ConfigError
from selfemo.method.expression import or_nothing
from selfemo.method.parsing import parse
from selfemo.method.types import Completion, Prompt, RawCompletion, Rollout
from selfemo.models.policy import Policy
from selfemo.models.reply_readers import ReplyReader, open_reply_reader
from selfemo.training.expression import UNPARSED, UNREAD, hear_replies
from selfemo.training.trl_rows import COLUMNS, parse_rate, sample_of, score_row, text_policy
from selfemo.training.whole_replies import REPLY_COLUMNS, prompt_of


def reward_function(primary: str = "iou", tokenizer: Any = None) -> Callable[..., list[float]]:
    """R1 in TRL's signature, for a plain `GRPOTrainer` over the rows of `prompt_dataset`.

    R1 needs one completion alone, so this works on any slice of a batch; R2 does not, see
    `trl.SelfGRPOTrainer`.

    Args:
        tokenizer: with it, completions are decoded from their token ids, and one without an end token fails
            as truncated, as in `trl.SelfGRPOTrainer`. Without it TRL's text counts as finished.
    """
    policy = None if tokenizer is None else text_policy(tokenizer)
    reward, grpo = RewardConfig(primary=primary), GrpoConfig()

    def score(
        completions: Sequence[Any],
        target: Sequence[Sequence[float]] | None = None,
        labels: Sequence[Sequence[str]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        if target is None or labels is None:
            raise ConfigError(
                "the data set has no columns 'target' and 'labels'; make it with "
                "selfemo.training.trl.prompt_dataset"
            )
        rollouts: list[Rollout] = []
        for i, (completion, weights, names) in enumerate(zip(completions, target, labels, strict=True)):
            sample = _sample(policy, completion, completion_ids, i)
            rollouts += score_row(names, weights, [sample], reward, grpo, 0.0)
        if log_metric is not None and rollouts:
            log_metric("parse_rate", parse_rate(rollouts))
        return [r.r1 for r in rollouts]

    score.__name__ = f"{primary}_reward"
    return score


def _sample(
    policy: Policy | None, completion: Any, ids: Sequence[Sequence[int]] | None, i: int
) -> RawCompletion:
    """Completion `i` of a call of TRL: from its token ids where it can be, else from its text."""
    if policy is not None and ids is not None:
        return sample_of(policy, ids[i])
    said = completion if isinstance(completion, str) else completion[-1]["content"]
    return RawCompletion(said or "")


def expression_function(
    reader: ReplyReader | str, tokenizer: Any = None, gate: GateConfig | None = None
) -> Callable[..., list[float]]:
    """R3 in TRL's signature, for a plain `GRPOTrainer` over the rows of `prompt_dataset` (SPEC section 10).

    All completions of a call are read together, equal replies to one prompt once. A completion that
    does not parse, is refused by `replies.reply_fault` or names an emotion gets one nat less than the worst
    other of the call, and than 0 (`expression.reply_advantages` says why); one that cannot be read gets 0.
    TRL normalises what this gives over a group and applies it to all tokens of a completion, those of E and S
    too; see `trl.SelfGRPOTrainer` for the tokens of the reply alone.

    Logged besides: `expression`, mean R3 of the completions that earn it, and `expression_refused`, the share
    of those that parse and break a rule.

    Args:
        reader: reads the replies; or a reference, see `open_reply_reader`, whose model is put on the current
            device of the process: make the configuration of the trainer first, which chooses it.
        tokenizer: as in `reward_function`.
        gate: the lengths of a reply that may earn.
    """
    policy = None if tokenizer is None else text_policy(tokenizer)
    listener = open_reply_reader(reader, ModelConfig(), PromptConfig()) if isinstance(reader, str) else reader
    needed, limits = (*COLUMNS[1:4], *REPLY_COLUMNS), gate or GateConfig()

    def score(
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        if missing := [c for c in needed if columns.get(c) is None]:
            raise ConfigError(
                f"the data set has no column {', '.join(missing)}; make it with "
                "selfemo.training.trl.prompt_dataset"
            )
        spoken: list[tuple[Prompt, RawCompletion, Completion | None]] = []
        for i, completion in enumerate(completions):
            prompt = prompt_of({c: columns[c][i] for c in needed})
            sample = _sample(policy, completion, completion_ids, i)
            parsed = parse(sample.text, prompt.label_set, finished=sample.finished)
            spoken.append((prompt, sample, parsed if isinstance(parsed, Completion) else None))
        replies = hear_replies(spoken, listener, limits)
        if log_metric is not None:
            earned = [r.reward for r in replies if r.reward is not None]
            said = [r for r in replies if r.fault != UNPARSED]
            if earned:
                log_metric("expression", fmean(earned))
            if said:
                unread = sum(r.fault == UNREAD for r in said)
                log_metric("expression_refused", 1 - (len(earned) + unread) / len(said))
        return or_nothing([0.0 if r.fault == UNREAD else r.reward for r in replies])

    score.__name__ = "expression_reward"
    return score


iou_reward = reward_function("iou")
"""R1 of eqs. 8-10 as a TRL reward function."""

exact_reward = reward_function("exact")
"""The exact match of fig. 5a as a TRL reward function."""


def consensus_reward(**_: Any) -> list[float]:
    """A name for R2 in TRL's logs; the trainer computes R2 over whole groups and never calls this."""
    raise ConfigError("R2 needs whole groups of gathered completions; use SelfGRPOTrainer")
