"""Completions of TRL to rollouts: what a trainer's batch holds, scored in whole groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from selfemo.config import GrpoConfig, RewardConfig
from selfemo.errors import ConfigError
from selfemo.method.lengths import Lengths
from selfemo.method.scoring import line_end, score_causally, score_completions
from selfemo.method.types import EmotionDistribution, LabelSet, RawCompletion, Rollout
from selfemo.models.policy import Policy
from selfemo.training.expression import UNPARSED, Reply, compared, reply_measures, with_lengths
from selfemo.training.whole_replies import Gain, tokens_of

COLUMNS = ("prompt", "prompt_id", "label_set", "labels", "target")
"""Columns of the data set: chat messages; a unique id; the label set's name and labels (K); the weight of
each label in y (K)."""


def text_policy(tokenizer: Any, core: Any = None) -> Policy:
    """The package's way from text to token ids and back, with a tokenizer alone."""
    return Policy(core, core, tokenizer, torch.device("cpu"))


def sample_of(policy: Policy, ids: Sequence[int]) -> RawCompletion:
    """A completion from its token ids; without an end token it is unfinished."""
    return RawCompletion(policy.decode(ids), finished=bool(ids) and ids[-1] in policy.end_ids)


def head_of(policy: Policy, ids: Sequence[int]) -> int:
    """The number of tokens up to the end of the E line; all, where it has none or does not end."""
    end = line_end(policy.decode(ids))
    return tokens_of(policy.decode, ids, end) if end else len(ids)


def score_row(
    labels: Sequence[str],
    target: Sequence[float],
    samples: Sequence[RawCompletion],
    reward: RewardConfig,
    grpo: GrpoConfig,
    lam: float,
    heads: Sequence[int] = (),
) -> tuple[Rollout, ...]:
    """Score the completions of one row of `trl.prompt_dataset` (ConfigError: its target is none).

    Args:
        labels, target: columns of the row.
        heads: `head_of` each; for causal credit.
    """
    try:
        label_set = LabelSet("trl", tuple(labels))
        wanted = EmotionDistribution(dict(zip(labels, target, strict=True)))
    except ValueError as e:
        raise ConfigError(
            f"columns 'labels' and 'target': {e} (labels {list(labels)}, target {list(target)})"
        ) from e
    settings: dict[str, Any] = {"primary": reward.primary, "secondary": reward.secondary}
    settings |= {"eps": grpo.eps, "ddof": grpo.ddof, "how": grpo.normalise}
    if grpo.credit == "causal":
        return score_causally(label_set, wanted, samples, heads, lam=lam, **settings)
    return score_completions(label_set, wanted, samples, lam=lam, **settings)


def parse_rate(rollouts: Sequence[Rollout]) -> float:
    """The share of completions that parse."""
    return sum(r.completion is not None for r in rollouts) / max(1, len(rollouts))


class Row(NamedTuple):
    """One completion, and the prompt and target of its group."""

    prompt_id: str
    prompt: str
    """Digest of the messages."""
    labels: tuple[str, ...]
    target: tuple[float, ...]
    raw: RawCompletion
    head: int = 0
    """Tokens up to the end of the E line; for causal credit."""
    reply: Reply | None = None
    """What its reply earned, where replies are rewarded."""
    lead: int = 0
    """Tokens before the R line, where replies are rewarded."""


def score_rows(
    rows: Sequence[Row], group_size: int, reward: RewardConfig, grpo: GrpoConfig, lam: float
) -> list[Rollout]:
    """Score whole groups whose rows have any order; the result has the order of `rows`.

    Raises: ConfigError: see `_groups`.
    """
    scored: dict[int, Rollout] = {}
    for group in _groups(rows, group_size):
        first = rows[group[0]]
        samples = [rows[i].raw for i in group]
        heads = [rows[i].head for i in group]
        rollouts = score_row(first.labels, first.target, samples, reward, grpo, lam, heads)
        scored.update(zip(group, rollouts, strict=True))
    return [scored[i] for i in range(len(rows))]


def reply_gains(
    rows: Sequence[Row], group_size: int, reward: RewardConfig, people: Lengths | None = None
) -> list[Gain | None]:
    """What the tokens of the reply of each row carry; None for one that does not parse, of which
    `scoring.score_causally` charges the tokens behind E already.

    R3, or what it is beyond that of the other emotions (`reward.contrast`), is compared over the completions
    of a group that parse (whole_replies.py).

    Args:
        rows: of which each has its `reply`.
        reward: `contrast`, `length_weight` and `expression_weight` are looked at.
        people: lengths of people's turns, for `length_weight`.

    Raises: ConfigError: see `_groups`.
    """
    gains: list[Gain | None] = [None] * len(rows)
    parsed = _parsed(rows, group_size)
    groups = with_lengths([list(replies.values()) for replies in parsed], people)
    for replies, group in zip(parsed, groups, strict=True):
        for i, reply in zip(replies, compared(group, reward.contrast, reward.length_weight), strict=True):
            gains[i] = Gain(rows[i].lead, reward.expression_weight * reply.advantage)
    return gains


_MEASURES = {
    **{n: n for n in ("expression", "expression_contrast", "expression_spread", "expressed")},
    **{n: n for n in ("reply_length_gain", "reply_tokens", "reply_distinct_2")},
    "expression_refused": "refused",
}


def gain_measures(rows: Sequence[Row], group_size: int, people: Lengths | None = None) -> dict[str, float]:
    """The measures of the replies of completions that parse, without those that no reply has.

    They are those of `expression.reply_measures`, whose "refused" is expression_refused here.

    Args:
        people: lengths of people's turns, for reply_length_gain.
    """
    parsed = [replies for replies in _parsed(rows, group_size) if replies]
    sets = [LabelSet("trl", rows[next(iter(replies))].labels) for replies in parsed]
    groups = with_lengths([list(replies.values()) for replies in parsed], people)
    found = reply_measures(list(zip(sets, groups, strict=True)))
    return {name: float(found[n]) for name, n in _MEASURES.items() if found.get(n) is not None}


def _parsed(rows: Sequence[Row], group_size: int) -> list[dict[int, Reply]]:
    """The replies of each group that belong to completions which parse, by row."""
    groups = [{i: r for i in group if (r := rows[i].reply)} for group in _groups(rows, group_size)]
    return [{i: r for i, r in replies.items() if r.fault != UNPARSED} for replies in groups]


def _groups(rows: Sequence[Row], group_size: int) -> Iterator[list[int]]:
    """The row numbers of each whole group. A prompt that was drawn several times gives as many groups,
    filled in order.

    Raises:
        ConfigError: the completions of a prompt id are not whole groups, or two prompts share an id.
    """
    places: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.prompt_id, []).append(i)
    for prompt_id, own in places.items():
        first = rows[own[0]]
        if any(rows[i][:4] != first[:4] for i in own):
            raise ConfigError(
                f"column 'prompt_id': {prompt_id!r} stands for different prompts or targets; "
                "give each prompt an id of its own"
            )
        if len(own) % group_size:
            raise ConfigError(
                f"{len(own)} completions of prompt {prompt_id!r} are not whole groups of "
                f"{group_size}; make the batch (per-device size x processes x steps_per_generation) "
                "a multiple of num_generations and leave the trainer's sampler as it is"
            )
        for start in range(0, len(own), group_size):
            yield own[start : start + group_size]
