"""SELF-GRPO for people who train with TRL: data, reward functions, lambda, trainer.

    dataset = prompt_dataset(conversations, tokenizer, max_prompt_tokens=512)
    trainer = SelfGRPOTrainer(model, SelfGRPOConfig("out"), train_dataset=dataset)

TRL normalises the sum of its rewards, or normalises each and whitens the batch after summing; eq. 13 does
neither. So the trainer keeps TRL's generation, loss and logging and replaces TRL's advantages by those of
`scoring.score_completions`, which the local engine uses too. R2 needs whole groups, and a group may span
processes: completions are gathered, then scored in float64 on every process.

Decisions, all [ours]:
- t of lambda(t) is the optimiser step at which a batch of completions is sampled; the batch keeps its
  advantages for all steps that reuse it (`steps_per_generation`, `num_iterations`), as a round of the local
  engine does. T is the trainer's `max_steps`.
- with `credit="causal"` TRL still samples whole completions; their E lines are scored as the local engine
  scores them, advantages are per token (B, T), and tokens that carry no credit are left out of the loss;
- the completions of one `prompt_id`, in any order, are a group; completions that TRL cut fail as truncated.
- `SelfGRPOConfig` refuses settings that would have no effect or change eq. 14; `exact_objective=False` allows
  other objectives, with the same advantages.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfemo.config import GrpoConfig, RewardConfig
from selfemo.errors import ConfigError, DataError, MissingExtraError
from selfemo.extras import install_command
from selfemo.method.prompts import Reasoning, conversation_prompts, fit, messages
from selfemo.method.self_grpo import lambda_at
from selfemo.method.types import Conversation, Prompt, RawCompletion, Rollout
from selfemo.models.chat_template import mend
from selfemo.models.policy import Policy
from selfemo.models.references import resolve
from selfemo.training.trl_rows import Row, head_of, parse_rate, sample_of, score_row, score_rows

try:
    import torch
    from accelerate.utils import gather_object
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
except ImportError as e:
    raise MissingExtraError(f"trl ({e})", install_command("trl", "peft")) from e

log = logging.getLogger(__name__)

COLUMNS = ("prompt", "prompt_id", "label_set", "labels", "target")
"""Columns of the data set: chat messages; a unique id; the label set's name and labels (K); the weight of
each label in y (K)."""


def _text_policy(tokenizer: Any, core: Any = None) -> Policy:
    """The package's way from text to token ids and back, with a tokenizer alone."""
    return Policy(core, core, tokenizer, torch.device("cpu"))


def prompt_dataset(
    items: Iterable[Conversation | Prompt],
    tokenizer: Any,
    *,
    max_prompt_tokens: int | None = None,
    reasoning: Reasoning = "none",
) -> Dataset:
    """A `datasets.Dataset` with `COLUMNS`, one row for each prompt that has a target.

    Texts that the tokenizer would read as special tokens are defused, so content cannot speak as a role.
    Where its chat template takes no system message, that text stands in front of the user's, and a warning
    says so. TRL does not shorten prompts, so the oldest turns are dropped here until a prompt fits.

    Args:
        items: conversations (one prompt per turn with a gold emotion) or prompts.
        max_prompt_tokens: the longest prompt; one that cannot be shortened to it is left out and counted in a
            warning. None keeps all as they are.

    Raises:
        DataError: two prompts have one id, or no prompt is left.
        EngineError: the chat template cannot write the prompts of this package.
    """
    own = copy.copy(tokenizer)  # whose template may be mended; the caller's stays as it is
    mended, policy = mend(own), _text_policy(own)
    for note in mended.notes:
        log.warning("%s", note)
    prompts: list[Prompt] = []
    for item in items:
        prompts += [item] if isinstance(item, Prompt) else conversation_prompts(item)
    rows: dict[str, dict[str, Any]] = {}
    left_out = 0
    for prompt in prompts:
        shown: Prompt | None = prompt
        if max_prompt_tokens is not None:
            fitted = fit(prompt, policy.encode, max_prompt_tokens, reasoning)
            shown = fitted.prompt if fitted else None
        if shown is None or shown.target is None:
            left_out += 1
            continue
        if prompt.id in rows:
            raise DataError(f"two prompts have the id {prompt.id!r}; groups are told apart by it")
        rows[prompt.id] = {
            "prompt": mended.chat(
                [{**m, "content": policy.defused(m["content"])} for m in messages(shown, reasoning)]
            ),
            "prompt_id": prompt.id,
            "label_set": prompt.label_set.name,
            "labels": list(prompt.label_set.labels),
            "target": shown.target.vector(prompt.label_set),
        }
    if left_out:
        log.warning("%d prompts without a target or too long were left out", left_out)
    if not rows:
        raise DataError(
            f"no prompt is left: of {len(prompts)}, {left_out} had no target emotion or were longer "
            f"than max_prompt_tokens={max_prompt_tokens}"
        )
    return Dataset.from_list(list(rows.values()))


def reward_function(primary: str = "iou", tokenizer: Any = None) -> Callable[..., list[float]]:
    """R1 in TRL's signature, for a plain `GRPOTrainer` over the rows of `prompt_dataset`.

    R1 needs one completion alone, so this works on any slice of a batch; R2 does not, see `SelfGRPOTrainer`.

    Args:
        tokenizer: with it, completions are decoded from their token ids, and one without an end token fails
            as truncated, as in `SelfGRPOTrainer`. Without it TRL's text counts as finished.
    """
    policy = None if tokenizer is None else _text_policy(tokenizer)
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
            if policy is not None and completion_ids is not None:
                sample = sample_of(policy, completion_ids[i])
            else:
                said = completion if isinstance(completion, str) else completion[-1]["content"]
                sample = RawCompletion(said or "")
            rollouts += score_row(names, weights, [sample], reward, grpo, 0.0)
        if log_metric is not None and rollouts:
            log_metric("parse_rate", parse_rate(rollouts))
        return [r.r1 for r in rollouts]

    score.__name__ = f"{primary}_reward"
    return score


iou_reward = reward_function("iou")
"""R1 of eqs. 8-10 as a TRL reward function."""

exact_reward = reward_function("exact")
"""The exact match of fig. 5a as a TRL reward function."""


def consensus_reward(**_: Any) -> list[float]:
    """A name for R2 in TRL's logs; the trainer computes R2 over whole groups and never calls this."""
    raise ConfigError("R2 needs whole groups of gathered completions; use SelfGRPOTrainer")


class LambdaCallback(TrainerCallback):
    """lambda(t) = lam_max t / T of eq. 13 over the optimiser steps of a TRL (or any) `Trainer`.

    `value` is lambda of the current step: 0 in the first, lam_max (T - 1) / T in the last. It follows the
    trainer's own counters, so a resumed run goes on where it was. The trainer logs it as `lambda`. For
    another schedule override `at` and pass an instance among the trainer's callbacks.
    """

    def __init__(self, lam_max: float = 1.0):
        self.lam_max, self.value = lam_max, 0.0

    def at(self, step: int, total: int) -> float:
        """lambda of optimiser step `step` (from 0) of `total`, in [0, 1]."""
        return lambda_at(step, total, self.lam_max)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.value = self.at(state.global_step, max(1, state.max_steps))

    on_train_begin = on_step_begin


@dataclass
class SelfGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig` with the settings of SELF-GRPO; defaults are the paper's where it has one.

    All of TRL's own settings stay: batch sizes, LoRA by the trainer's `peft_config`, vLLM by `use_vllm` and
    `vllm_mode`. The help texts below describe the added ones.

    Raises:
        ConfigError: lists every setting that has no effect here or breaks eq. 13 or 14.
    """

    lam_max: float = field(default=1.0, metadata={"help": "lambda_max of eq. 13; 0 is vanilla GRPO"})
    primary: str = field(default="iou", metadata={"help": "R1: a name of rewards.PRIMARY"})
    secondary: str = field(default="count", metadata={"help": "R2: count or weighted"})
    advantage_eps: float = field(default=1e-6, metadata={"help": "added to a group's standard deviation"})
    advantage_ddof: int = field(default=0, metadata={"help": "0: population, 1: sample standard deviation"})
    normalise: str = field(
        default="std", metadata={"help": "a group's rewards are divided by their std, their mean, or none"}
    )
    credit: str = field(
        default="completion",
        metadata={"help": "the tokens that R1 and R2 act on: completion (eq. 14), or causal: up to E's end"},
    )
    exact_objective: bool = field(default=True, metadata={"help": "refuse a loss other than eq. 14"})
    beta: float = field(default=0.001, metadata={"help": "coefficient of k3"})
    loss_type: str = field(default="dapo", metadata={"help": "dapo: TRL's token mean over a batch"})
    use_bias_correction_kl: bool = field(
        default=False, metadata={"help": "eq. 14 does not weigh the KL by the ratio"}
    )
    lr_scheduler_type: str = field(default="constant", metadata={"help": "as in table 12"})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default_factory=lambda: {"enable_thinking": False},
        metadata={"help": "reasoning has its own line in the format"},
    )

    def __post_init__(self) -> None:
        wrong = self._without_effect() + (self._other_objective() if self.exact_objective else [])
        try:
            self.settings()
        except ValueError as e:
            wrong.append(str(e))
        if wrong:
            raise ConfigError("SelfGRPOConfig:\n" + "\n".join(f"- {w}" for w in wrong))
        super().__post_init__()

    def settings(self) -> tuple[RewardConfig, GrpoConfig]:
        """The settings of rewards and advantages as sections of the local engine's configuration."""
        rewards = {"primary": self.primary, "secondary": self.secondary}
        advantages: dict[str, Any] = {
            "lam_max": self.lam_max,
            "eps": self.advantage_eps,
            "ddof": self.advantage_ddof,
        }
        advantages |= {"normalise": self.normalise, "credit": self.credit}
        return RewardConfig.model_validate(rewards), GrpoConfig.model_validate(advantages)

    def _without_effect(self) -> list[str]:
        refused = {
            "num_generations": (
                (self.num_generations or 0) < 2,
                "a group of one has no advantage; use 2 or more",
            ),
            "reward_weights": (
                self.reward_weights is not None,
                "R1 and R2 weigh 1 - lambda and lambda; set lam_max",
            ),
            "scale_rewards": (
                self.scale_rewards not in ("group", True),
                "eq. 13 normalises within the group; leave it out",
            ),
            "multi_objective_aggregation": (
                self.multi_objective_aggregation != "sum_then_normalize",
                "eq. 13 replaces it; leave it out",
            ),
            "remove_unused_columns": (self.remove_unused_columns, "it drops the targets; leave it out"),
        }
        return [f"{k}={getattr(self, k)!r}: {why}" for k, (wrong, why) in refused.items() if wrong]

    def _other_objective(self) -> list[str]:
        needed: dict[str, tuple[Any, ...]] = {
            "loss_type": ("dapo", "bnpo"),
            "importance_sampling_level": ("token",),
            "delta": (None,),
            "top_entropy_quantile": (1.0,),
            "off_policy_mask_threshold": (None,),
            "mask_truncated_completions": (False,),
            "use_adaptive_entropy": (False,),
        }
        if self.beta:
            needed["use_bias_correction_kl"] = (False,)
        return [
            f"{name}={getattr(self, name)!r}: not the objective of eq. 14; use {allowed[0]!r}"
            + "".join(f" or {a!r}" for a in allowed[1:])
            + ", or exact_objective=False"
            for name, allowed in needed.items()
            if getattr(self, name, allowed[0]) not in allowed
        ]


class SelfGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` whose advantages are exactly those of `self_grpo.advantages`.

    TRL's metrics keep their meaning: `rewards/iou_reward/mean` is R1, `rewards/consensus_reward/mean` R2,
    `reward` (1 - lambda) R1 + lambda R2. New ones are `lambda`, `parse_rate` and `silent_groups`, the share
    of groups whose advantages are all zero.

    Args:
        model: as in TRL, or an id that this package takes (`builtin:smollm2-135m`, a GGUF file).
        train_dataset, eval_dataset: rows of `prompt_dataset`.
        kwargs: further arguments of `GRPOTrainer`, `peft_config` among them.

    Raises:
        EngineError: the tokenizer's chat template cannot write the prompts.
        ConfigError: a plain `GRPOConfig`, other reward functions, a data set without `COLUMNS`, or several
            processes of which each would train alone.
    """

    _tag_names = ["trl", "self-grpo"]
    _name = "SELF-GRPO"
    _paper = {
        "title": "SELF-EMO: Emotional Self-Evolution from Recognition to Consistent Expression",
        "id": "2604.18003",
    }

    def __init__(
        self,
        model: Any,
        args: SelfGRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        callbacks: Sequence[Any] | None = None,
        **kwargs: Any,
    ):
        args = SelfGRPOConfig("selfgrpo") if args is None else args
        if not isinstance(args, SelfGRPOConfig):
            raise ConfigError(f"args is a {type(args).__name__}; pass a SelfGRPOConfig")
        owned = {"reward_funcs", "reward_processing_classes", "tools", "environment_factory"}
        if given := sorted(owned & kwargs.keys()):
            raise ConfigError(
                f"{', '.join(given)}: the rewards of SELF-GRPO are R1 and R2 (primary, secondary); "
                "for others use TRL's GRPOTrainer with reward_function()"
            )
        _check_columns("train_dataset", train_dataset)
        _check_columns("eval_dataset", eval_dataset)
        own = [c for c in callbacks or () if isinstance(c, LambdaCallback)]
        self.lambda_callback = own[0] if own else LambdaCallback(args.lam_max)
        self._reward, self._grpo = args.settings()
        self._advantages: torch.Tensor | None = None
        self._rollouts: Sequence[Rollout] = ()
        tokenizer = _mended_tokenizer(model, kwargs.get("processing_class"))
        if tokenizer is not None:
            kwargs.setdefault("processing_class", tokenizer)
        super().__init__(
            model=resolve(model) if isinstance(model, str) else model,
            reward_funcs=[reward_function(self._reward.primary), consensus_reward],
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=[*(callbacks or ()), *([] if own else [self.lambda_callback])],
            **kwargs,
        )
        self._take_ends()
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world != self.accelerator.num_processes:
            raise ConfigError(
                f"{world} processes were launched, but each would train alone; without a GPU set "
                "use_cpu=True in SelfGRPOConfig"
            )

    def _take_ends(self) -> None:
        """Let completions end where the chat template ends a turn, also where TRL knows no such token."""
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        ends = _text_policy(tokenizer, self.accelerator.unwrap_model(self.model)).end_ids
        known = getattr(self, "eos_token_ids", None)
        if known is None or ends <= set(known):  # an earlier TRL knows the tokenizer's alone
            return
        self.eos_token_ids = [*known, *sorted(ends - set(known))]
        if not self.use_vllm:
            self.generation_kwargs["eos_token_id"] = self.eos_token_ids
            self.generation_config.eos_token_id = self.eos_token_ids

    def _calculate_rewards(
        self,
        inputs: Sequence[dict[str, Any]],
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids_list: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        """(N, 2) R1 and R2 of the completions of all processes, in their order; keeps (N,) advantages."""
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        text = _text_policy(tokenizer, self.accelerator.unwrap_model(self.model))
        rows: list[Row] = gather_object(
            [
                Row(
                    row["prompt_id"],
                    hashlib.sha256(json.dumps(row["prompt"]).encode()).hexdigest(),
                    tuple(row["labels"]),
                    tuple(row["target"]),
                    sample_of(text, ids),
                    head_of(text, ids),
                )
                for row, ids in zip(inputs, completion_ids_list, strict=True)
            ]
        )
        mode = "train" if self.model.training else "eval"
        size = self.num_generations if mode == "train" else self.num_generations_eval
        lam = self.lambda_callback.value
        rollouts = score_rows(rows, size, self._reward, self._grpo, lam)
        device = self.accelerator.device
        self._advantages = torch.tensor([r.advantage for r in rollouts], dtype=torch.float32, device=device)
        self._rollouts = rollouts
        loud = {r.prompt_id for r, s in zip(rows, rollouts, strict=True) if s.advantage or s.rest}
        metrics = self._metrics[mode]
        metrics["lambda"].append(lam)
        metrics["parse_rate"].append(parse_rate(rollouts))
        metrics["silent_groups"].append(1 - len(loud) / len({r.prompt_id for r in rows}))
        self.reward_weights = torch.tensor([1 - lam, lam])
        return torch.tensor([[r.r1, r.r2] for r in rollouts], dtype=torch.float32, device=device)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        ours = self._advantages
        assert ours is not None, "TRL scored no completions"
        first = self.accelerator.process_index * len(inputs)
        batch["advantages"] = ours[first : first + len(inputs)]
        if self._grpo.credit == "causal":
            self._part_tokens(batch, self._rollouts[first : first + len(inputs)])
        logged = self._logs["advantages"]
        for _ in range(min(len(ours), len(logged))):
            logged.pop()
        logged.extend(ours.tolist())
        return batch

    def _part_tokens(self, batch: dict[str, Any], rollouts: Sequence[Rollout]) -> None:
        """Make the advantages of a batch (B, T), and mask tokens without credit out of its loss (SPEC 9)."""
        mask, whole = batch["completion_mask"], batch["advantages"]
        places = torch.arange(mask.shape[1], device=mask.device)
        heads, rests = (
            torch.tensor(v, dtype=whole.dtype, device=mask.device).unsqueeze(1)
            for v in ([float(r.head or 0) for r in rollouts], [r.rest for r in rollouts])
        )
        inside = places < heads
        batch["advantages"] = torch.where(inside, whole.unsqueeze(1), rests)
        credit = (inside | (rests != 0)).to(mask.dtype)
        batch["tool_mask"] = batch.get("tool_mask", 1) * credit
        counted = (mask * batch["tool_mask"]).sum()
        batch["num_items_in_batch"] = self.accelerator.gather(counted).sum()


def _mended_tokenizer(model: Any, given: Any) -> Any:
    """The tokenizer that a trainer takes, its chat template mended (`chat_template.mend`) with warnings.

    None where only TRL can find it: for a model object without a name.
    """
    if given is not None:
        own = getattr(given, "tokenizer", given)
    else:
        name = resolve(model) if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
        if not name:
            return None
        own = AutoTokenizer.from_pretrained(name, padding_side="left", truncation_side="left")
    for note in mend(own).notes:
        log.warning("%s", note)
    return given if given is not None else own


def _check_columns(name: str, dataset: Any) -> None:
    """Refuse a data set without `COLUMNS`; a stream without column names passes."""
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            _check_columns(f"{name}[{key!r}]", part)
        return
    columns = getattr(dataset, "column_names", None)
    if columns and (missing := [c for c in COLUMNS if c not in columns]):
        raise ConfigError(
            f"{name} has no column {', '.join(missing)}; make it with selfemo.training.trl.prompt_dataset"
        )
