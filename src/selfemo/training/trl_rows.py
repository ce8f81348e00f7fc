"""Completions of TRL to rollouts: what a trainer's batch holds, scored in whole groups."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

from selfemo.config import GrpoConfig, RewardConfig
from selfemo.errors import ConfigError
from selfemo.method.scoring import line_end, score_causally, score_completions
from selfemo.method.types import EmotionDistribution, LabelSet, RawCompletion, Rollout
from selfemo.models.policy import Policy


def sample_of(policy: Policy, ids: Sequence[int]) -> RawCompletion:
    """A completion from its token ids; without an end token it is unfinished."""
    return RawCompletion(policy.decode(ids), finished=bool(ids) and ids[-1] in policy.end_ids)


def head_of(policy: Policy, ids: Sequence[int]) -> int:
    """The number of tokens up to the end of the E line; all, where it has none or does not end."""
    end = line_end(policy.decode(ids))
    if not end:
        return len(ids)
    return bisect_left(range(len(ids)), end, key=lambda n: len(policy.decode(ids[:n])))


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


def score_rows(
    rows: Sequence[Row], group_size: int, reward: RewardConfig, grpo: GrpoConfig, lam: float
) -> list[Rollout]:
    """Score whole groups whose rows have any order; the result has the order of `rows`.

    A prompt that was drawn several times gives as many groups, filled in order.

    Raises:
        ConfigError: the completions of a prompt id are not whole groups, or two prompts share an id.
    """
    places: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.prompt_id, []).append(i)
    scored: dict[int, Rollout] = {}
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
            group = own[start : start + group_size]
            samples = [rows[i].raw for i in group]
            heads = [rows[i].head for i in group]
            rollouts = score_row(first.labels, first.target, samples, reward, grpo, lam, heads)
            scored.update(zip(group, rollouts, strict=True))
    return [scored[i] for i in range(len(rows))]
