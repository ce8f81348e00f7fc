"""SELF-GRPO as a plugin of verl: advantage estimator, reward function, reward manager, trainer.

verl imports this module in each of its processes (VERL_USE_EXTERNAL_MODULES); settings.py sets that variable
and the settings below. The training loop, the workers and the losses are verl's.

    algorithm.adv_estimator = self_grpo      eq. 13, by self_grpo.py
    trainer.v1.trainer_mode = self_grpo      verl's synchronous trainer, with R2 and lambda(t)
    reward.reward_manager.name = selfemo     reads a completion as Policy.decode does
    algorithm.self_grpo                      before, rounds, lam_max, lam, secondary, eps, ddof, stop_file,
                                             expression (where replies are rewarded)

R2 (eqs. 11, 12) needs the whole group, but an estimator of verl gets only rewards by token. So R1 is put on
the last token of a completion, as verl does, and R2 on its first; a completion of one token cannot parse and
has neither. R3 needs a listener, which is opened once, in the trainer's process: it hears the replies of a
step all together, and what they learn is added behind the estimator, on the tokens from the R line on.
Written for verl 0.9.1, whose trainer this extends.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from omegaconf import OmegaConf, open_dict
from tensordict import TensorDict
from transformers import GenerationConfig
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from selfemo.files import write_text
from selfemo.method.parsing import parse
from selfemo.method.rewards import exact_match, primary_reward
from selfemo.method.rewards import secondary_rewards as group_rewards
from selfemo.method.self_grpo import advantages, lambda_at
from selfemo.method.types import Completion, EmotionDistribution, RawCompletion
from selfemo.models.policy import ChatTokenizer
from selfemo.training.engine import mismatch
from selfemo.training.expression import reply_measures
from selfemo.training.verl.exchange import Task, dump_line
from selfemo.training.verl.listening import Listening
from selfemo.training.verl.settings import MODE


class StopTraining(Exception):
    """Raised when the stop file is there and the state after the last step is saved."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    primary: str = "iou",
    **_: Any,
) -> dict[str, Any]:
    """R1 of one completion (eqs. 8-10), in the form of verl's custom reward functions.

    Args:
        solution_str: the completion without its end token.
        ground_truth: a `Task` as JSON.
        extra_info: `finished` is false where the completion was cut off at the length limit.
        primary: "iou" or "exact".

    Returns:
        score (R1), acc (top emotion right), parsed, failure (kind or ""), emotions (JSON or ""), text,
        finished.
    """
    task = Task.from_json(ground_truth)
    finished = bool((extra_info or {}).get("finished", True))
    parsed = parse(solution_str, task.labels, finished=finished)
    predicted, failure = (parsed.emotion, "") if isinstance(parsed, Completion) else (None, parsed.kind.value)
    return {
        "score": primary_reward(predicted, task.target, task.labels, primary),
        "acc": exact_match(predicted, task.target, task.labels),
        "parsed": float(predicted is not None),
        "failure": failure,
        "emotions": "" if predicted is None else json.dumps(dict(predicted)),
        "text": solution_str,
        "finished": float(finished),
    }


@register("selfemo")
class EmotionRewardManager(RewardManagerBase):
    """Decodes a completion as the local engine does and tells the reward function whether it is finished.

    verl's own manager drops special tokens, so it sees neither a cut-off nor a role marker.
    """

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **_: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        self.reader = _reader(config.actor_rollout_ref.model.path, tokenizer)

    async def run_single(self, data: Any) -> dict[str, Any]:
        item = data[-1]
        padded = item.batch["responses"]
        ids = padded[: int(item.batch["attention_mask"][-padded.shape[-1] :].sum())].tolist()
        result = self.compute_score(
            data_source=item.non_tensor_batch["data_source"],
            solution_str=self.reader.decode(ids),
            ground_truth=item.non_tensor_batch["reward_model"]["ground_truth"],
            extra_info={"finished": bool(ids) and ids[-1] in self.reader.end_ids},
        )
        return {"reward_score": result["score"], "reward_extra_info": result}


def _reader(model: str, tokenizer: Any) -> ChatTokenizer:
    """The tokenizer of a model with its end tokens."""
    try:
        generation = GenerationConfig.from_pretrained(model)
    except OSError:
        generation = None
    return ChatTokenizer(tokenizer, generation)


def put_rewards(r1: Any, r2: Any, mask: torch.Tensor) -> torch.Tensor:
    """(b, s) rewards by token: R1 on the last token of each completion, R2 on its first.

    `r1` and `r2` are (b,); `mask` (b, s) is 1 on the tokens of the completions, which begin at the left.
    """
    first, last, several = _ends(mask)
    rewards = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    rows = torch.arange(len(mask), device=mask.device)
    r1, r2 = (torch.as_tensor(r, dtype=torch.float32, device=mask.device) for r in (r1, r2))
    rewards[rows, last] = r1
    rewards[rows[several], first[several]] = r2[several]
    return rewards


def get_rewards(rewards: torch.Tensor, mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(b,) R1 and (b,) R2 of rewards by token; the inverse of `put_rewards`."""
    first, last, several = _ends(mask)
    rows = torch.arange(len(mask), device=mask.device)
    present = mask.sum(-1) > 0
    r1 = torch.where(present, rewards[rows, last], 0.0)
    r2 = torch.where(several, rewards[rows, first], 0.0)
    return r1.cpu().numpy().astype(np.float64), r2.cpu().numpy().astype(np.float64)


def _ends(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(b,) first and last token of each completion, and whether it has several."""
    n, first = mask.long().sum(-1), mask.long().argmax(-1)
    return first, (first + n - 1).clamp(min=0), n > 1


def _groups(keys: Iterable[Any]) -> list[list[int]]:
    """The rows of each group, from the group of each row; the rows of a group need not be adjacent."""
    rows: dict[Any, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows[key].append(row)
    return list(rows.values())


@register_adv_est(MODE)
def self_grpo_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A of eq. 13 on each token of its completion, as verl calls estimators.

    Args:
        token_level_rewards: (b, s), made by `put_rewards`; response_mask: (b, s).
        index: (b,) group of each row.
        config: verl's `algorithm` section; `self_grpo` in it holds lam, eps and ddof.

    Returns: advantages (b, s) and the same as returns.
    """
    own = (config.get("self_grpo") if config is not None else None) or {}
    r1, r2 = get_rewards(token_level_rewards, response_mask)
    lam, eps, ddof = float(own.get("lam", 0.0)), float(own.get("eps", 1e-6)), int(own.get("ddof", 0))
    result = np.zeros(len(r1))
    for rows in _groups(index):
        result[rows] = advantages(r1[rows], r2[rows], lam, eps=eps, ddof=ddof)
    flat = torch.as_tensor(result, dtype=torch.float32, device=response_mask.device)
    on_tokens = flat[:, None] * response_mask
    return on_tokens, on_tokens


def secondary_rewards(infos: list[Any], groups: list[Any], tasks: list[Task], kind: str) -> list[float]:
    """(b,) R2 of each completion within its group (eqs. 11, 12).

    Args:
        infos, groups, tasks: `compute_score`'s result, the group and the task of each completion.
        kind: "count" or "weighted".
    """
    result = [0.0] * len(infos)
    for rows in _groups(groups):
        predicted = [
            EmotionDistribution(json.loads(infos[i]["emotions"])) if infos[i]["emotions"] else None
            for i in rows
        ]
        values = group_rewards(predicted, tasks[rows[0]].labels, kind)
        for i, value in zip(rows, values, strict=True):
            result[i] = value
    return result


@register_trainer(MODE)
class SelfGrpoTrainer(PPOTrainerSync):
    """verl's synchronous trainer with R2 in the rewards, lambda(t) in the estimator, R3 behind it and whole
    dumps."""

    listening: Listening | None = None
    """Who hears replies; None where they are not rewarded."""
    _notes: dict[str, dict[str, Any]]
    """What was heard of a reply (`Listening.notes`), by the key of its completion, until it is written."""

    def __init__(self, config: Any) -> None:
        # The base class knows only its own mode.
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)

    def on_train_begin(self) -> None:
        super().on_train_begin()
        if heard := self._own.get("expression"):
            decode = _reader(self.config.actor_rollout_ref.model.path, self.tokenizer).decode
            self.listening = Listening(OmegaConf.to_container(heard, resolve=True), decode)

    @property
    def _own(self) -> Any:
        return self.config.algorithm.self_grpo

    def on_step_begin(self) -> None:
        super().on_step_begin()
        if self._own.stop_file and Path(self._own.stop_file).exists():
            self.global_steps -= 1  # the last step that was taken
            self._save_checkpoint()
            self._shutdown_dump_executor()
            raise StopTraining(f"stopped after step {self.global_steps}, which is saved")

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """verl's method, and how far vLLM's log-probabilities are from those that it computes."""
        batch = super()._compute_old_log_prob(batch, metrics)
        if self.config.actor_rollout_ref.rollout.calculate_log_probs:
            metrics |= self._mismatch(batch)
        return batch

    def _mismatch(self, batch: Any) -> dict[str, float]:
        fields = ["responses", "old_log_probs", "rollout_log_probs"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        rows = zip(batch.tags, *(data[f].unbind() for f in fields), strict=True)
        apart = [
            (trainer[: len(ids)] - sampler[: len(ids)]).float()
            for tag, ids, trainer, sampler in rows
            if not tag.get("is_padding", False)
        ]
        actor = self.config.actor_rollout_ref.actor
        told = mismatch(apart, actor.clip_ratio_low, actor.clip_ratio_high)
        return {f"self_grpo/{name}": value for name, value in told.items()}

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """verl's method on rewards with R2; afterwards they are R1 alone again, as verl's metrics expect."""
        own = self._own
        lam = lambda_at(own.before + self.global_steps - 1, own.rounds, own.lam_max)
        with open_dict(self.config.algorithm):
            own.lam = lam
        fields = ["rm_scores", "response_mask", "extra_fields", "reward_model"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        scores = data["rm_scores"].unbind()
        real = [i for i, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        infos, tasks = _infos(data), _tasks(data)
        groups = [key.rsplit("_", 2)[0] for key in batch.keys]
        r2 = np.zeros(len(batch.keys))
        r2[real] = secondary_rewards(
            [infos[i] for i in real], [groups[i] for i in real], [tasks[i] for i in real], own.secondary
        )
        both = [
            put_rewards(s.sum()[None], r2[i : i + 1], torch.ones(1, len(s), dtype=torch.long))[0]
            for i, s in enumerate(scores)
        ]
        self._put(batch, rm_scores=both)
        batch = super()._compute_advantage(batch, metrics)
        self._put(batch, rm_scores=scores)
        if self.listening:
            rows = [[real[k] for k in group] for group in _groups(groups[i] for i in real)]
            self._reward_replies(self.listening, batch, rows, infos, tasks, metrics)
        metrics["self_grpo/lambda"] = lam
        metrics["self_grpo/r1"] = float(np.mean([infos[i]["score"] for i in real]))
        metrics["self_grpo/r2"] = float(r2[real].mean())
        metrics["self_grpo/parsed"] = float(np.mean([infos[i]["parsed"] for i in real]))
        return batch

    def _reward_replies(
        self,
        listening: Listening,
        batch: Any,
        groups: list[list[int]],
        infos: list[dict[str, Any]],
        tasks: list[Task],
        metrics: dict[str, Any],
    ) -> None:
        """Add what the replies of a step learn to the advantages of their tokens.

        Args:
            groups: the rows of each.
        """
        fields = ["responses", "advantages", "returns"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        ids = data["responses"].unbind()
        values = {f: [v.clone() for v in data[f].unbind()] for f in fields[1:]}
        asked = [
            (tasks[rows[0]].heard_prompt(), [_said(ids[i].tolist(), infos[i], tasks[i]) for i in rows])
            for rows in groups
        ]
        heard = listening.hear(asked)
        self._notes = {}
        for rows, (prompt, _), own in zip(groups, asked, heard, strict=True):
            for member, gain in own.gains(listening.config.reward.expression_weight).items():
                for rewarded in values.values():
                    rewarded[rows[member]][gain.lead :] += gain.advantage
            notes = listening.notes(prompt.id, own)
            self._notes |= {batch.keys[rows[member]]: note for member, note in notes.items()}
        self._put(batch, **values)
        told = reply_measures(
            [(prompt.label_set, own.replies) for (prompt, _), own in zip(asked, heard, strict=True)]
        )
        for name in ("expression", "expression_contrast", "expressed", "refused"):
            if told.get(name) is not None:
                metrics[f"self_grpo/{name}"] = told[name]

    @staticmethod
    def _put(batch: Any, **fields: Any) -> None:
        """Put tensors of the completions' lengths into the fields of a batch."""
        nested = {f: torch.nested.as_nested_tensor(list(v), layout=torch.jagged) for f, v in fields.items()}
        tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict(nested, batch_size=len(batch.keys)),
        )

    def _log_rollout_data(self, batch: Any, timing_raw: Any, rollout_data_dir: str) -> None:
        """Write each completion of the step to one file, which appears whole."""
        fields = ["responses", "old_log_probs", "entropy", "advantages", "extra_fields", "reward_model"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        ids, logprobs, entropies, gains = (data[f].unbind() for f in fields[:4])
        infos, tasks = _infos(data), _tasks(data)
        lines = []
        for i, (key, tag) in enumerate(zip(batch.keys, batch.tags, strict=True)):
            if tag.get("is_padding", False):
                continue
            group, member, _ = key.rsplit("_", 2)
            n, more = len(ids[i]), dict[str, Any]()
            if self.listening:
                more["entropies"] = [round(e, 6) for e in entropies[i][:n].tolist()]
                if note := self._notes.get(key):
                    lead = min(note["lead"], n - 1)  # all of them stand before an R line without tokens
                    more["reply"] = note | {"advantage": float(gains[i][lead:n].mean())}
            lines.append(
                dump_line(
                    group=group,
                    member=int(member),
                    prompt=tasks[i].prompt,
                    text=infos[i]["text"],
                    finished=bool(infos[i]["finished"]),
                    token_ids=ids[i].tolist(),
                    logprob=float(logprobs[i][:n].mean()) if n else 0.0,
                    entropy=float(entropies[i][:n].mean()) if n else 0.0,
                    r1=float(infos[i]["score"]),
                    advantage=float(gains[i][0]) if n else 0.0,
                    **more,
                )
            )
        folder = Path(rollout_data_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{self.global_steps}.jsonl", "".join(lines))


def _said(ids: list[int], info: dict[str, Any], task: Task) -> tuple[RawCompletion, Completion | None]:
    """A completion, and what it says where it parses."""
    finished = bool(info["finished"])
    said = parse(info["text"], task.labels, finished=finished)
    raw = RawCompletion(info["text"], tuple(ids), finished=finished)
    return raw, said if isinstance(said, Completion) else None


def _infos(data: Any) -> list[dict[str, Any]]:
    # The container of values that are no tensors depends on the backend; all can be iterated.
    return [fields["reward_extra_info"] for fields in data["extra_fields"]]


def _tasks(data: Any) -> list[Task]:
    return [Task.from_json(r["ground_truth"]) for r in data["reward_model"]]
