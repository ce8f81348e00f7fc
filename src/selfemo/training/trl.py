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
- the completions of one `prompt_id`, in any order, are a group; completions that TRL cut fail as truncated;
- with `expression="listener"` (SPEC section 10) each process has its own completions read, before they are
  gathered. TRL draws no several replies to one S: the replies of a group stand behind an S each, some of
  which are easier to show than others, so R3 differs by S, too, and not by what was said alone.
- `SelfGRPOConfig` refuses settings that would have no effect or change eq. 14; `exact_objective=False` allows
  other objectives, with the same advantages.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfemo.config import REFERENCE, GateConfig, ModelConfig, PromptConfig
from selfemo.errors import ConfigError, DataError, MissingExtraError
from selfemo.extras import install_command
from selfemo.method.lengths import lengths_of
from selfemo.method.prompts import Reasoning, conversation_prompts, fit, messages
from selfemo.method.self_grpo import lambda_at
from selfemo.method.types import Conversation, Prompt, Rollout
from selfemo.models.chat_template import mend
from selfemo.models.references import resolve
from selfemo.models.reply_readers import ReplyReader, open_reply_reader
from selfemo.training.expression import Reply, hear_replies
from selfemo.training.trl_config import SelfGRPOConfig
from selfemo.training.trl_rewards import (
    consensus_reward,
    exact_reward,
    expression_function,
    iou_reward,
    reward_function,
)
from selfemo.training.trl_rows import (
    COLUMNS,
    Row,
    gain_measures,
    head_of,
    parse_rate,
    reply_gains,
    sample_of,
    score_row,
    score_rows,
    text_policy,
)
from selfemo.training.whole_replies import REPLY_COLUMNS, Gain, lead_of, prompt_of, reply_columns

try:
    import torch
    from accelerate.utils import gather_object
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer
except ImportError as e:
    raise MissingExtraError(f"trl ({e})", install_command("trl", "peft")) from e

__all__ = [
    "COLUMNS",
    "REPLY_COLUMNS",
    "LambdaCallback",
    "Row",
    "SelfGRPOConfig",
    "SelfGRPOTrainer",
    "exact_reward",
    "expression_function",
    "iou_reward",
    "prompt_dataset",
    "reward_function",
    "score_rows",
]

log = logging.getLogger(__name__)


def prompt_dataset(
    items: Iterable[Conversation | Prompt],
    tokenizer: Any,
    *,
    max_prompt_tokens: int | None = None,
    reasoning: Reasoning = "none",
) -> Dataset:
    """A `datasets.Dataset` with `COLUMNS` and `REPLY_COLUMNS`, one row for each prompt that has a target.

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
    mended, policy = mend(own), text_policy(own)
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
            **reply_columns(shown),
        }
    if left_out:
        log.warning("%d prompts without a target or too long were left out", left_out)
    if not rows:
        raise DataError(
            f"no prompt is left: of {len(prompts)}, {left_out} had no target emotion or were longer "
            f"than max_prompt_tokens={max_prompt_tokens}"
        )
    return Dataset.from_list(list(rows.values()))


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


class SelfGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` whose advantages are exactly those of `self_grpo.advantages`.

    TRL's metrics keep their meaning: `rewards/iou_reward/mean` is R1, `rewards/consensus_reward/mean` R2,
    `reward` (1 - lambda) R1 + lambda R2. New ones are `lambda`, `parse_rate` and `silent_groups`, the share
    of groups whose advantages are all zero; where replies are rewarded, those of `trl_rows.gain_measures`.

    Args:
        model: as in TRL, or an id that this package takes (`builtin:smollm2-135m`, a GGUF file).
        train_dataset, eval_dataset: rows of `prompt_dataset`.
        reply_reader: the listener, in place of the one that `args.listener` names.
        kwargs: further arguments of `GRPOTrainer`, `peft_config` among them.

    Raises:
        EngineError: the tokenizer's chat template cannot write the prompts, or there is no such listener.
        ConfigError: a plain `GRPOConfig`, other reward functions, a data set without `COLUMNS` (and
            `REPLY_COLUMNS`, where replies are rewarded), a listener that cannot be, or several processes of
            which each would train alone.
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
        *,
        reply_reader: ReplyReader | None = None,
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
        expresses = args.expression != "none"
        columns = (*COLUMNS, *REPLY_COLUMNS) if expresses else COLUMNS
        _check_columns("train_dataset", train_dataset, columns)
        _check_columns("eval_dataset", eval_dataset, columns)
        if reply_reader is not None and not expresses:
            raise ConfigError(
                "reply_reader: nobody would listen; set expression='listener' in SelfGRPOConfig"
            )
        self._reward, self._grpo = args.settings()
        if self._reward.heard_by_reference and reply_reader is None:
            _check_reference(model, train_dataset)
        own = [c for c in callbacks or () if isinstance(c, LambdaCallback)]
        self.lambda_callback = own[0] if own else LambdaCallback(args.lam_max)
        self._advantages: torch.Tensor | None = None
        self._rollouts: Sequence[Rollout] = ()
        self._gains: Sequence[Gain | None] = ()
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
        # The last turn of each prompt, of which every other one has a part.
        asked = train_dataset if self._reward.length_weight else None
        self._people = lengths_of(row["history"][-1][1] for row in asked) if asked is not None else None
        self._listener = reply_reader
        if expresses and reply_reader is None:
            name = model if self._reward.heard_by_reference else args.listener
            there = ModelConfig(device=str(self.accelerator.device), dtype="bf16" if args.bf16 else "fp32")
            self._listener = open_reply_reader(name, there, PromptConfig())
        if self._listener is not None and train_dataset is not None:
            # Once before the first step, so that one that cannot tell says so now.
            self._listener.expect([prompt_of(next(iter(train_dataset)))])

    def _take_ends(self) -> None:
        """Let completions end where the chat template ends a turn, also where TRL knows no such token."""
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        ends = text_policy(tokenizer, self.accelerator.unwrap_model(self.model)).end_ids
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
        text = text_policy(tokenizer, self.accelerator.unwrap_model(self.model))
        own = [
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
        if self._listener is not None:
            replies = self._hear(self._listener, inputs, own)
            own = [
                row._replace(reply=reply, lead=lead_of(text.decode, ids))
                for row, reply, ids in zip(own, replies, completion_ids_list, strict=True)
            ]
        rows: list[Row] = gather_object(own)
        mode = "train" if self.model.training else "eval"
        size = self.num_generations if mode == "train" else self.num_generations_eval
        lam = self.lambda_callback.value
        rollouts = score_rows(rows, size, self._reward, self._grpo, lam)
        device = self.accelerator.device
        self._advantages = torch.tensor([r.advantage for r in rollouts], dtype=torch.float32, device=device)
        self._rollouts = rollouts
        weighed = self._reward.expression_weight > 0
        nothing: list[Gain | None] = [None] * len(rows)
        self._gains = reply_gains(rows, size, self._reward, self._people) if weighed else nothing
        loud = {
            row.prompt_id
            for row, rollout, gain in zip(rows, rollouts, self._gains, strict=True)
            if rollout.advantage or rollout.rest or (gain and gain.advantage)
        }
        metrics = self._metrics[mode]
        for name, value in gain_measures(rows, size, self._people).items():
            metrics[name].append(value)
        metrics["lambda"].append(lam)
        metrics["parse_rate"].append(parse_rate(rollouts))
        metrics["silent_groups"].append(1 - len(loud) / len({r.prompt_id for r in rows}))
        self.reward_weights = torch.tensor([1 - lam, lam])
        return torch.tensor([[r.r1, r.r2] for r in rollouts], dtype=torch.float32, device=device)

    def _hear(
        self, listener: ReplyReader, inputs: Sequence[Mapping[str, Any]], rows: Sequence[Row]
    ) -> list[Reply]:
        """What the replies of this process's completions earn; those parse that do in `score_rows`."""
        spoken = []
        for row, own in zip(inputs, rows, strict=True):
            alone = score_row(own.labels, own.target, [own.raw], self._reward, self._grpo, 0.0, [own.head])
            spoken.append((prompt_of(row), own.raw, alone[0].completion))
        return hear_replies(spoken, listener, GateConfig())

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        ours = self._advantages
        assert ours is not None, "TRL scored no completions"
        first = self.accelerator.process_index * len(inputs)
        batch["advantages"] = ours[first : first + len(inputs)]
        if self._grpo.credit == "causal":
            mine = slice(first, first + len(inputs))
            self._part_tokens(batch, self._rollouts[mine], self._gains[mine])
        logged = self._logs["advantages"]
        for _ in range(min(len(ours), len(logged))):
            logged.pop()
        logged.extend(ours.tolist())
        return batch

    def _part_tokens(
        self, batch: dict[str, Any], rollouts: Sequence[Rollout], gains: Sequence[Gain | None]
    ) -> None:
        """Make the advantages of a batch (B, T), and mask tokens without credit out of its loss (SPEC 9).

        The tokens of a reply that was rewarded count whatever it earned, as in the local engine.
        """
        mask, whole = batch["completion_mask"], batch["advantages"]
        width = mask.shape[1]
        places = torch.arange(width, device=mask.device)
        heads, rests, leads, earned = (
            torch.tensor(v, dtype=whole.dtype, device=mask.device).unsqueeze(1)
            for v in (
                [float(r.head or 0) for r in rollouts],
                [r.rest for r in rollouts],
                [float(g.lead if g else width) for g in gains],
                [g.advantage if g else 0.0 for g in gains],
            )
        )
        inside, said = places < heads, places >= leads
        batch["advantages"] = torch.where(said, earned, torch.where(inside, whole.unsqueeze(1), rests))
        credit = (inside | said | (rests != 0)).to(mask.dtype)
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


def _check_columns(name: str, dataset: Any, needed: Sequence[str]) -> None:
    """Refuse a data set without some columns; a stream without column names passes."""
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            _check_columns(f"{name}[{key!r}]", part, needed)
        return
    columns = getattr(dataset, "column_names", None)
    if columns and (missing := [c for c in needed if c not in columns]):
        raise ConfigError(
            f"{name} has no column {', '.join(missing)}; make it with selfemo.training.trl.prompt_dataset"
        )


def _check_reference(model: Any, dataset: Any) -> None:
    """Refuse a model that cannot be loaded once more, and one that reasons before it answers."""
    if not isinstance(model, str):
        raise ConfigError(
            f"listener={REFERENCE!r}: the model is loaded once more, and a {type(model).__name__} has no "
            "folder or id; pass the model's folder or id, or name another listener"
        )
    row = {} if dataset is None else next(iter(dataset))
    if row and "\nT: " in row["prompt"][0]["content"].partition("\nE: ")[0]:
        raise ConfigError(
            f"listener={REFERENCE!r} reads labels right behind the prompt, and the rows have the model "
            "reason first (prompt_dataset(reasoning=...)); name another listener"
        )
