"""The cluster engine: verl (Ray, FSDP, vLLM) trains; this module tells it what and collects what it did.

No training loop of ours: prompts go to verl as Parquet, settings as Hydra overrides, the reward function,
advantage estimator and trainer hooks as `integrations/verl.py`. What comes back, step by step while verl
runs, are rollouts and metrics, which go into the run's store as those of the local engine do.

Self-play over turns happens between waves, which keeps eq. 7 exact: the next prompt is made from the best
rollout of a group, by the policy that sampled it, with the functions of the local engine. A stage is
selfplay.max_turns waves of RL rounds; each wave is one launch of verl, draws original prompts and what
earlier waves left, and goes on from the state that the wave before it saved.

Departures [ours]: prompts that self-play leaves are drawn in the next wave, not the next round; a stage
takes whole batches, so the rest of flywheel.prompts is left out; SFT drops the last, partial batch of an
epoch, as verl does. verl's loss also bounds the ratio of negative advantages by 3 (its dual clip).
This module imports nothing of verl.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from selfemo.config import Config, SftConfig
from selfemo.errors import ConfigError, DataError, EngineError, MissingExtraError
from selfemo.method.prompts import Fitted, fit, messages
from selfemo.method.self_grpo import lambda_at
from selfemo.method.types import EmotionDistribution, LabelSet, Prompt, Sample
from selfemo.models.loading import ChatTokenizer, resolve
from selfemo.progress import Reporter, StopRequest
from selfemo.runs.store import Store, write_text
from selfemo.stages.flywheel import PromptQueue, record_round, stage_counts
from selfemo.stages.gate import gate
from selfemo.stages.selfplay import PersonaOf, Turn, keep_fitted, score_group, select_best
from selfemo.training.checkpoints import seal_checkpoint

MODE = "self_grpo"
"""Name of the advantage estimator and of the trainer in verl's registries."""
PLUGIN = "selfemo.training.verl.plugin"
_SAME = 1e-3
"""verl holds rewards in float32; a larger difference of advantages is an error."""
_POLL = 1.0


# -- what is written for verl ---------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What the reward function must know of a prompt: its id, label set and target."""

    prompt: str
    labels: LabelSet
    target: EmotionDistribution

    def to_json(self) -> str:
        return json.dumps(
            {
                "prompt": self.prompt,
                "labels": [self.labels.name, list(self.labels.labels)],
                "target": dict(self.target),
            }
        )

    @staticmethod
    def from_json(text: str) -> Task:
        raw = json.loads(text)
        name, labels = raw["labels"]
        return Task(
            raw["prompt"], LabelSet(name, tuple(labels)), EmotionDistribution(raw["target"])
        )


def _chat(prompt: Prompt, reader: ChatTokenizer, config: Config) -> list[dict[str, str]]:
    """The messages that verl's chat template turns into the local engine's prompt ids."""
    return [
        {**m, "content": reader.defused(m["content"])}
        for m in messages(prompt, config.prompt.reasoning)
    ]


def prompt_rows(
    fitted: Sequence[Fitted], reader: ChatTokenizer, config: Config
) -> list[dict[str, Any]]:
    """Rows of verl's RL data sets.

    Raises:
        DataError: a prompt has no target.
    """
    rows = []
    for i, f in enumerate(fitted):
        if f.prompt.target is None:
            raise DataError(f"prompt {f.prompt.id} has no target emotion to score against")
        task = Task(f.prompt.id, f.prompt.label_set, f.prompt.target)
        rows.append(
            {
                "data_source": f.prompt.dataset,
                "prompt": _chat(f.prompt, reader, config),
                "ability": "emotion",
                "reward_model": {"style": "rule", "ground_truth": task.to_json()},
                "extra_info": {"index": i, "prompt": f.prompt.id},
            }
        )
    return rows


def sft_rows(
    samples: Sequence[tuple[Prompt, str]], reader: ChatTokenizer, config: Config
) -> list[dict[str, Any]]:
    """Rows of verl's supervised data sets: the chat with the completion as its last message."""
    return [
        {
            "messages": [
                *_chat(prompt, reader, config),
                {"role": "assistant", "content": reader.defused(completion)},
            ]
        }
        for prompt, completion in samples
    ]


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows beside and rename.

    Raises:
        EngineError: the disk is full, or the folder cannot be written.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", "pip install 'selfemo[verl]'") from None
    staging = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(rows)), staging)
        staging.replace(path)
    except OSError as e:
        staging.unlink(missing_ok=True)
        raise EngineError(f"{path}: cannot be written ({e.strerror or e})") from e


# -- settings -------------------------------------------------------------------------------------


def check_config(config: Config) -> None:
    """Refuse settings that verl cannot be told or would run otherwise.

    Raises:
        ConfigError: all of them at once, each with what to set.
    """
    c, g, s = config.cluster, config.grpo, config.sft
    gpus = c.nodes * c.gpus_per_node
    sequences = g.mini_batch * config.sampling.group_size
    faults = [
        text
        for wrong, text in (
            (
                config.model.lora is not None,
                'model.lora: full fine-tuning only with engine = "verl"; leave it out',
            ),
            (
                g.schedule != "constant" or g.warmup > 0,
                f"grpo.schedule = {g.schedule!r}, grpo.warmup = {g.warmup:g}: each wave is a launch of its "
                'own; set "constant" and 0',
            ),
            (
                s.schedule == "linear",
                'sft.schedule = "linear": verl has "constant" and "cosine"',
            ),
            (
                s.label_weight != 1,
                f"sft.label_weight = {s.label_weight:g}: verl's SFT loss is the plain token mean; set 1",
            ),
            (
                g.prompts_per_step % g.mini_batch != 0,
                f"grpo.prompts_per_step ({g.prompts_per_step}) is no multiple of grpo.mini_batch "
                f"({g.mini_batch})",
            ),
            (
                config.flywheel.prompts < g.prompts_per_step,
                f"flywheel.prompts ({config.flywheel.prompts}) is less than one batch, "
                f"grpo.prompts_per_step ({g.prompts_per_step})",
            ),
            (
                gpus % c.tensor_parallel != 0,
                f"cluster.tensor_parallel ({c.tensor_parallel}) does not divide the {gpus} GPUs "
                "(cluster.nodes x cluster.gpus_per_node)",
            ),
            (
                sequences % (gpus * c.micro_batch_per_gpu) != 0,
                f"the {sequences} sequences of a mini-batch (grpo.mini_batch x sampling.group_size) do not "
                f"part into micro-batches of {c.micro_batch_per_gpu} on {gpus} GPUs; lower "
                "cluster.micro_batch_per_gpu",
            ),
            (
                "rollback" in (config.guard.numbers, config.guard.kl, config.guard.collapse,
                               config.guard.hacking),
                'guard: "rollback" is of the local engine; use "warn" or "stop"',
            ),
        )
        if wrong
    ]  # fmt: skip
    if faults:
        raise ConfigError("\n".join(faults))


def hydra(key: str, value: Any) -> str:
    """One override in Hydra's grammar; strings are quoted where its grammar would read them as more."""

    def text(v: Any) -> str:
        if v is None:
            return "null"
        if isinstance(v, bool):
            return "true" if v else "false"
        if isinstance(v, int | float):
            return repr(v)
        if isinstance(v, Mapping):
            return "{" + ",".join(f"{k}:{text(x)}" for k, x in v.items()) + "}"
        if isinstance(v, Sequence) and not isinstance(v, str):
            return "[" + ",".join(map(text, v)) + "]"
        return (
            str(v)
            if re.fullmatch(r"[A-Za-z_/][\w./:-]*", str(v))
            else "'" + str(v).replace("\\", "\\\\").replace("'", "\\'") + "'"
        )

    return f"{key}={text(value)}"


def _cluster(config: Config, folder: Path) -> dict[str, Any]:
    c = config.cluster
    return {
        "trainer.nnodes": c.nodes,
        "trainer.n_gpus_per_node": c.gpus_per_node,
        "trainer.logger": ["console", "file"],
        "trainer.project_name": "selfemo",
        "trainer.experiment_name": folder.name,
        "trainer.default_local_dir": str(folder / "states"),
        "trainer.resume_mode": "auto",
        "hydra.run.dir": str(folder / "hydra"),
        "hydra.output_subdir": None,
    }


def rl_overrides(
    config: Config,
    model: str,
    folder: Path,
    *,
    train: Path,
    held: Path,
    last_step: int,
    rounds: int,
) -> list[str]:
    """What `verl.trainer.main_ppo` is told: SPEC section 6 (table 12) where the settings are the paper's.

    Args:
        model: folder or hub id that the stage starts from; also the reference of the KL term.
        folder: the stage's work folder.
        train: prompts of the wave.
        held: prompts to test on.
        last_step: where the wave ends, in RL rounds of the stage.
        rounds: of the whole stage: T of lambda(t).
    """
    c, g, s = config.cluster, config.grpo, config.sampling
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    micro = c.micro_batch_per_gpu
    settings = {
        "data.train_files": str(train),
        "data.val_files": str(held),
        "data.train_batch_size": g.prompts_per_step,
        "data.max_prompt_length": config.prompt.max_tokens,
        "data.max_response_length": s.max_new_tokens,
        "data.shuffle": False,  # drawn in order: what a wave draws is the store's to know
        "data.validation_shuffle": False,
        "data.truncation": "error",
        "data.filter_overlong_prompts": False,
        "data.trust_remote_code": False,
        "+data.apply_chat_template_kwargs.enable_thinking": False,
        "actor_rollout_ref.model.path": model,
        "actor_rollout_ref.model.trust_remote_code": False,
        "actor_rollout_ref.model.enable_gradient_checkpointing": True,
        f"{actor}.ppo_mini_batch_size": g.mini_batch,
        f"{actor}.ppo_micro_batch_size_per_gpu": micro,
        f"{actor}.use_dynamic_bsz": False,
        f"{actor}.clip_ratio": g.clip_low,
        f"{actor}.clip_ratio_low": g.clip_low,
        f"{actor}.clip_ratio_high": g.clip_high,
        f"{actor}.loss_agg_mode": "token-mean",
        f"{actor}.use_kl_loss": g.kl_coef > 0,
        f"{actor}.kl_loss_coef": g.kl_coef,
        f"{actor}.kl_loss_type": "low_var_kl",
        f"{actor}.entropy_coeff": g.entropy_coef,
        f"{actor}.grad_clip": g.max_grad_norm,
        f"{actor}.optim.clip_grad": g.max_grad_norm,
        f"{actor}.optim.lr": g.lr,
        f"{actor}.optim.lr_scheduler_type": "constant",
        f"{actor}.optim.weight_decay": g.weight_decay,
        f"{actor}.optim.betas": list(g.betas),
        f"{actor}.data_loader_seed": config.seed,
        f"{actor}.fsdp_config.param_offload": c.offload_policy,
        f"{actor}.fsdp_config.optimizer_offload": c.offload_policy,
        f"{actor}.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        f"{actor}.checkpoint.load_contents": ["model", "optimizer", "extra"],
        "actor_rollout_ref.ref.fsdp_config.param_offload": c.offload_reference,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": micro,
        f"{rollout}.name": c.rollout,
        f"{rollout}.n": s.group_size,
        f"{rollout}.temperature": s.temperature,
        f"{rollout}.top_p": s.top_p,
        f"{rollout}.seed": config.seed,
        f"{rollout}.tensor_model_parallel_size": c.tensor_parallel,
        f"{rollout}.gpu_memory_utilization": c.gpu_memory_utilization,
        f"{rollout}.max_num_batched_tokens": c.max_batched_tokens,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": micro,
        f"{rollout}.val_kwargs.n": 1,
        f"{rollout}.val_kwargs.temperature": 0,
        f"{rollout}.val_kwargs.do_sample": False,
        "algorithm.adv_estimator": MODE,
        "algorithm.use_kl_in_reward": False,
        f"+algorithm.{MODE}.rounds": rounds,
        f"+algorithm.{MODE}.lam_max": g.lam_max,
        f"+algorithm.{MODE}.lam": 0.0,
        f"+algorithm.{MODE}.secondary": config.reward.secondary,
        f"+algorithm.{MODE}.eps": g.eps,
        f"+algorithm.{MODE}.ddof": g.ddof,
        f"+algorithm.{MODE}.stop_file": str(folder / "stop"),
        "reward.num_workers": c.reward_workers,
        "reward.reward_manager.name": "selfemo",
        "reward.custom_reward_function.path": f"pkg://{PLUGIN}",
        "reward.custom_reward_function.name": "compute_score",
        "+reward.custom_reward_function.reward_kwargs.primary": config.reward.primary,
        "trainer.use_v1": True,
        "trainer.v1.trainer_mode": MODE,
        "trainer.critic_warmup": 0,
        "trainer.val_before_train": False,
        "trainer.test_freq": c.test_every or -1,
        "trainer.save_freq": c.save_every,
        "trainer.max_actor_ckpt_to_keep": config.save.keep_states,
        # A wave ends by its steps; the number of passes only has to be large enough.
        "trainer.total_epochs": 1_000_000,
        "trainer.total_training_steps": last_step,
        "trainer.rollout_data_dir": str(folder / "rollouts"),
        **_cluster(config, folder),
    }
    for name, value in _environment(folder).items():
        settings[f"+ray_kwargs.ray_init.runtime_env.env_vars.{name}"] = value
    return [*(hydra(k, v) for k, v in settings.items()), *c.overrides]


def sft_overrides(
    config: Config, model: str, folder: Path, *, train: Path, sft: SftConfig, epochs: int
) -> list[str]:
    """What `verl.trainer.sft_trainer_ray` is told."""
    settings = {
        "data.train_files": str(train),
        "data.train_batch_size": sft.batch_size,
        "data.use_dynamic_bsz": True,
        "data.max_token_len_per_gpu": sft.micro_tokens,
        "data.max_length": config.prompt.max_tokens + config.sampling.max_new_tokens,
        "data.truncation": "error",
        # The template of some models closes a last message otherwise than one in between.
        "data.ignore_input_ids_mismatch": True,
        "+data.apply_chat_template_kwargs.enable_thinking": False,
        "model.path": model,
        "model.trust_remote_code": False,
        "model.enable_gradient_checkpointing": True,
        "optim.lr": sft.lr,
        "optim.lr_scheduler_type": sft.schedule,
        "optim.lr_warmup_steps_ratio": sft.warmup,
        "optim.weight_decay": sft.weight_decay,
        "optim.betas": list(sft.betas),
        "optim.clip_grad": sft.max_grad_norm,
        "checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        "checkpoint.load_contents": ["model", "optimizer", "extra"],
        "trainer.total_epochs": epochs,
        "trainer.seed": config.seed,
        "trainer.save_freq": config.cluster.save_every,
        "trainer.max_ckpt_to_keep": config.save.keep_states,
        **_cluster(config, folder),
    }
    return [*(hydra(k, v) for k, v in settings.items()), *config.cluster.sft_overrides]


def _environment(folder: Path) -> dict[str, str]:
    """What each process of verl must find in its environment; modules of the user's own stay in it."""
    asked = os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",")
    return {
        "VERL_USE_EXTERNAL_MODULES": ",".join(dict.fromkeys([*filter(None, asked), PLUGIN])),
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
    }


def rl_command(overrides: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]


def sft_command(overrides: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "verl.trainer.sft_trainer_ray", *overrides]


# -- waves ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wave:
    """RL rounds [first, last) of a stage."""

    index: int
    first: int
    last: int


def waves(config: Config) -> list[Wave]:
    """The waves of a stage: rounds of whole batches, as evenly as they part into selfplay.max_turns."""
    rounds = config.flywheel.prompts // config.grpo.prompts_per_step
    n = config.selfplay.max_turns if config.selfplay.synthetic_share > 0 else 1
    ends = [rounds * k // n for k in range(n + 1)]
    parts = [(a, b) for a, b in pairwise(ends) if b > a]
    return [Wave(i, a, b) for i, (a, b) in enumerate(parts)]


def plan(config: Config, model: str, folder: Path) -> dict[str, Any]:
    """What an RL stage would launch, without doing it.

    Args:
        model: what it would start from.
        folder: the run's.

    Returns:
        waves, each with its steps, prompts and command; totals of prompts, completions, steps.

    Raises:
        ConfigError: verl cannot run these settings.
    """
    check_config(config)
    stage = folder.resolve() / "cluster" / "iteration-1-rl"
    parts = waves(config)
    size = config.grpo.prompts_per_step
    prompts = parts[-1].last * size
    return {
        "waves": [
            {
                "steps": [w.first + 1, w.last],
                "prompts": (w.last - w.first) * size,
                "synthetic_at_most": _synthetic(config, w.last)
                - (_synthetic(config, w.first) if w.index > 1 else 0)
                if w.index
                else 0,
                "command": _wave_command(config, model, stage, w),
            }
            for w in parts
        ],
        "prompts": prompts,
        "completions": prompts * config.sampling.group_size,
        "rounds": parts[-1].last,
        "optimiser_steps": parts[-1].last * (size // config.grpo.mini_batch),
        "gpus": config.cluster.nodes * config.cluster.gpus_per_node,
    }


def _wave_command(config: Config, model: str, folder: Path, wave: Wave) -> list[str]:
    """The launch of a wave of the stage in `folder`."""
    return rl_command(
        rl_overrides(
            config,
            _path(model),
            folder,
            train=_wave_files(folder, wave)[0],
            held=folder / "held.parquet",
            last_step=wave.last,
            rounds=waves(config)[-1].last,
        )
    )


def _synthetic(config: Config, rounds: int) -> int:
    """How many prompts of self-play the first rounds of a stage may hold. The first wave has none, so
    the later ones take its share too."""
    share = config.selfplay.synthetic_share
    return round(share * config.grpo.prompts_per_step * rounds)


# -- what verl wrote ------------------------------------------------------------------------------


_DUMPED = {
    "group", "member", "prompt", "text", "finished", "token_ids", "logprob", "entropy", "r1", "advantage",
}  # fmt: skip


def dump_line(**fields: Any) -> str:
    """One completion in the file of a step, as the trainer in verl writes it."""
    return json.dumps(fields) + "\n"


def read_dump(path: Path) -> list[list[dict[str, Any]]]:
    """The completions of one step by group, members in order; groups in the order of their first line.

    Raises:
        EngineError: the file is not what verl was told to write.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            groups.setdefault(row["group"], []).append(row)
            if missing := _DUMPED - row.keys():
                raise KeyError(*sorted(missing))
        except (ValueError, TypeError, KeyError) as e:
            raise EngineError(
                f"{path}:{n}: no completion as verl was told to write it ({e!r})"
            ) from e
    return [sorted(g, key=lambda r: r["member"]) for g in groups.values()]


def read_metrics(path: Path) -> dict[int, dict[str, Any]]:
    """verl's metrics by step; a last line that is being written is left for later."""
    if not path.exists():
        return {}
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            found.setdefault(int(record["step"]), {}).update(record["data"])
    return found


_MEASURES = {
    "loss": "actor/pg_loss",
    "kl": "actor/kl_loss",
    "clip_fraction": "actor/pg_clipfrac",
    "grad_norm": "actor/grad_norm",
    "lr": "actor/lr",
    "entropy": "actor/entropy",
    "seconds": "timing_s/step",
    "tokens_per_second_per_gpu": "perf/throughput",
    "mfu": "perf/mfu/actor",
    "memory_gib": "perf/max_memory_allocated_gb",
}


def measures_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The measures of one step under this project's names; tests on held-out prompts as `test`."""
    named = {ours: metrics[theirs] for ours, theirs in _MEASURES.items() if theirs in metrics}
    tests = {
        k.split("/", 1)[1]: v for k, v in metrics.items() if k.startswith(("val-core/", "val-aux/"))
    }
    return named | ({"test": tests} if tests else {})


def turns_of(
    groups: Sequence[Sequence[Mapping[str, Any]]],
    prompts: Mapping[str, Prompt],
    config: Config,
    lam: float,
    where: Path,
) -> list[Turn]:
    """Scored groups of one step, by the functions of the local engine.

    Raises:
        EngineError: verl trained with other advantages than these, or on a prompt it was not given.
    """
    turns = []
    for rows in groups:
        prompt = prompts.get(rows[0]["prompt"])
        if prompt is None:
            raise EngineError(f"{where}: prompt {rows[0]['prompt']!r} is none of this step's")
        samples = [
            Sample(
                r["text"],
                tuple(r["token_ids"]),
                (r["logprob"],),
                (r["entropy"],),
                r["finished"],
            )
            for r in rows
        ]
        group = score_group(prompt, samples, config.reward, config.grpo, lam)
        ours = np.array([r.advantage for r in group.rollouts])
        theirs = np.array([r["advantage"] for r in rows])
        if not np.allclose(ours, theirs, atol=_SAME):
            raise EngineError(
                f"{where}: prompt {prompt.id}: verl trained with advantages {theirs.round(4).tolist()}, "
                f"SELF-GRPO gives {ours.round(4).tolist()}; is {PLUGIN} of this version on all nodes?"
            )
        best = select_best(group, lam)
        turns.append(Turn(group, best, gate(prompt, group.rollouts[best], config.gate)))
    return turns


# -- the engine -----------------------------------------------------------------------------------


class FitBatch:
    """Prompts inside the length limit, or None, by the tokenizer of the configured model."""

    def __init__(self, config: Config):
        self.config = config
        self._reader: ChatTokenizer | None = None

    @property
    def reader(self) -> ChatTokenizer:
        if self._reader is None:
            self._reader = ChatTokenizer.load(self.config.model.id)
        return self._reader

    def __call__(self, prompts: Sequence[Prompt]) -> list[Fitted | None]:
        limit, reasoning = self.config.prompt.max_tokens, self.config.prompt.reasoning
        return [fit(p, self.reader.encode, limit, reasoning) for p in prompts]


class VerlEngine:
    """Runs training stages on a cluster for one run.

    Args:
        config: resolved and checked (`check_config`).
        store: the run's.
        folder: the run's; everything of verl goes to cluster/STAGE in it.
        launch: starts a command (replaced by tests of what follows a launch).
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        folder: Path,
        reporter: Reporter,
        stop: StopRequest,
        launch: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
    ):
        check_config(config)
        self.config, self.store, self.reporter, self.stop = config, store, reporter, stop
        self.folder, self.launch = folder.resolve(), launch
        self.fit_batch = FitBatch(config)

    @property
    def reader(self) -> ChatTokenizer:
        return self.fit_batch.reader

    def fit(self, prompts: Sequence[Prompt], counts: dict[str, int]) -> list[Fitted]:
        """The prompts that fit the length limit, by the configured tokenizer; `counts` says what was done."""
        return keep_fitted(self.fit_batch(prompts), counts)

    def stage_folder(self, stage: str) -> Path:
        return self.folder / "cluster" / stage

    def done(self, stage: str) -> int:
        """The last step of a stage whose state verl has written whole, or 0."""
        tracker = self.stage_folder(stage) / "states" / "latest_checkpointed_iteration.txt"
        try:
            return int(tracker.read_text())
        except (OSError, ValueError):
            return 0

    # -- supervised -------------------------------------------------------------------------------

    def sft(
        self,
        samples: Sequence[tuple[Prompt, str]],
        model: str,
        stage: str,
        sft: SftConfig,
        epochs: int,
        target: Path,
    ) -> dict[str, Any]:
        """Train `model` on (prompt, completion) samples; the result becomes the checkpoint `target`.

        Prompts over the length limit are shortened or left out, and counted.
        """
        counts: dict[str, int] = {}
        fitted = {f.prompt.id: f.prompt for f in self.fit([p for p, _ in samples], counts)}
        usable = [(fitted[p.id], text) for p, text in samples if p.id in fitted]
        batches = len(usable) // sft.batch_size
        if not batches:
            raise DataError(
                f"{stage}: {len(usable)} samples fit prompt.max_tokens, fewer than one batch of "
                f"sft.batch_size = {sft.batch_size}"
            )
        folder = self.stage_folder(stage)
        train = folder / "samples.parquet"
        write_parquet(train, sft_rows(usable, self.reader, self.config))
        overrides = sft_overrides(
            self.config, _path(model), folder, train=train, sft=sft, epochs=epochs
        )
        total = batches * epochs
        with self.reporter.bar(stage, total) as advance:
            shown = 0

            def follow() -> None:
                nonlocal shown
                done = {
                    s: m for s, m in read_metrics(folder / "metrics.jsonl").items() if s > shown
                }
                for step, m in sorted(done.items()):
                    record = {"loss": m.get("train/loss"), "grad_norm": m.get("train/grad_norm"),
                              "lr": m.get("train/lr")}  # fmt: skip
                    with self.store.transaction():
                        self.store.add_metrics(stage, step - 1, record)
                    advance(step - shown, f"loss {record['loss']}")
                    shown = step
                if self.stop.asked:
                    # SFT of verl has no hook to save in between: it goes on from its last state.
                    self.stop.check()

            shown = self.done(stage)
            advance(shown)
            self._run(sft_command(overrides), folder, follow)
        self._export(folder, total, ".", target)
        return {"samples": len(usable), "steps": total, **counts}

    # -- reinforcement ----------------------------------------------------------------------------

    def rl(
        self,
        originals: Sequence[Prompt],
        held: Sequence[Prompt],
        persona_of: PersonaOf,
        model: str,
        stage: str,
        iteration: int,
        target: Path,
        watch: Callable[[int, dict[str, Any]], None] | None = None,
        after: Callable[[int], None] | None = None,
    ) -> dict[str, int]:
        """SELF-GRPO with self-play from `model`; the policy becomes the checkpoint `target`.

        Args:
            held: prompts that verl tests on every cluster.test_every rounds.
            watch: called with each round's metrics before they are stored.
            after: called with the rounds done when one is stored; may raise, which stops verl.

        Returns:
            Counts over the whole stage, as `flywheel.rl_stage`'s.
        """
        folder, parts = self.stage_folder(stage), waves(self.config)
        tests = self.fit([p for p in held if p.target], {})
        if not tests:
            raise DataError(f"{stage}: no held-out prompt fits prompt.max_tokens; raise it")
        write_parquet(folder / "held.parquet", prompt_rows(tests, self.reader, self.config))
        _end_orphan(folder / "process")
        done, stored = self._rewind(stage, folder, parts)
        with self.reporter.bar(stage, parts[-1].last) as advance:
            advance(stored)
            for wave in parts:
                if stored >= wave.last:
                    continue
                rows = self._draw(wave, originals, stage)
                collect = _Collector(
                    self, stage, iteration, folder, wave, rows, persona_of, watch, stored
                )

                def follow(collect: _Collector = collect) -> None:
                    for round_, record in collect.ready():
                        advance(1, f"R1 {record['r1']:.3f} parsed {record['parse_rate']:.0%}")
                        if after:
                            after(round_ + 1)

                follow()  # what a launch did whose end nobody saw
                if done < wave.last:
                    self.stop.check()
                    if done == wave.first:
                        # Here the place in the data of the wave before means nothing.
                        for place in (folder / "states" / f"global_step_{done}").glob("data*.pt"):
                            place.unlink()
                    self._run(_wave_command(self.config, model, folder, wave), folder, follow)
                if collect.next != wave.last:
                    raise EngineError(
                        f"{folder}: verl ended, and step {collect.next + 1} of {wave.last} left no rollouts; "
                        f"see {folder / 'verl.log'}"
                    )
                done = stored = wave.last
        self._export(folder, parts[-1].last, "actor", target)
        counts = stage_counts(self.store, stage)
        if rest := self.config.flywheel.prompts % self.config.grpo.prompts_per_step:
            counts["prompts_of_no_whole_batch"] = rest
        return counts

    def _rewind(self, stage: str, folder: Path, parts: Sequence[Wave]) -> tuple[int, int]:
        """Forget what lies behind verl's last state; the rounds of that state, and those in the store."""
        done = self.done(stage)
        self.store.rewind(stage, done)
        for dump in (folder / "rollouts").glob("*.jsonl"):
            if int(dump.stem) > done:
                dump.unlink()
        for wave in parts:
            if wave.first > done:  # drawn from what is forgotten now
                for file in _wave_files(folder, wave):
                    file.unlink(missing_ok=True)
        (folder / "stop").unlink(missing_ok=True)
        last = self.store.last_step(stage)
        return done, 0 if last is None else last + 1

    def _draw(self, wave: Wave, originals: Sequence[Prompt], stage: str) -> list[list[Prompt]]:
        """The prompts of each round of a wave, with their whole history; as they were drawn before, if so."""
        table, listed = _wave_files(self.stage_folder(stage), wave)
        size = self.config.grpo.prompts_per_step
        if listed.exists() and table.exists():
            known = {p.id: p for p in originals}
            ids = json.loads(listed.read_text())
            drawn = [known.get(i) or self.store.prompt(i) for i in ids]
        else:
            queue = PromptQueue(originals, self.store, self.config)
            need = size * (wave.last - wave.first)
            left = _synthetic(self.config, wave.last) - self.store.drawn_synthetic(stage)
            fitted: list[Fitted] = []
            drawn = []
            while len(fitted) < need:
                synthetic = left - sum(p.lineage.synthetic for p in drawn)
                batch = queue.draw(need - len(fitted), max(0, synthetic))
                fits = self.fit(batch, {})
                if not fits:
                    raise DataError(
                        f"no prompt fits prompt.max_tokens = {self.config.prompt.max_tokens}; raise it"
                    )
                inside = {f.prompt.id for f in fits}
                with self.store.transaction():
                    self.store.skip(p.id for p in batch if p.id not in inside)
                fitted += fits
                drawn += [p for p in batch if p.id in inside]
            write_parquet(table, prompt_rows(fitted, self.reader, self.config))
            write_text(listed, json.dumps([p.id for p in drawn]))
        return [drawn[i : i + size] for i in range(0, len(drawn), size)]

    # -- processes --------------------------------------------------------------------------------

    def _run(self, command: Sequence[str], folder: Path, follow: Callable[[], None]) -> None:
        """Run a command of verl to its end; `follow` is called about once a second and at its end.

        Raises:
            EngineError: it failed; the message has the end of its log.
            Stopped: a stop was asked for.
        """
        folder.mkdir(parents=True, exist_ok=True)
        _end_orphan(folder / "process")
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        write_text(folder / "command.json", json.dumps(list(command), indent=1))
        environment = {
            **os.environ, **_environment(folder), "PYTHONUNBUFFERED": "1", "HYDRA_FULL_ERROR": "1",
        }  # fmt: skip
        if self.config.cluster.address:
            environment["RAY_ADDRESS"] = self.config.cluster.address
        with (folder / "verl.log").open("ab") as log:
            process = self.launch(
                list(command),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            write_text(folder / "process", str(process.pid))
            with _ended(process):
                while process.poll() is None:
                    follow()
                    if self.stop.asked:
                        (folder / "stop").touch()
                    time.sleep(_POLL)
                follow()
        (folder / "stop").unlink(missing_ok=True)
        self.stop.check()
        if process.returncode:
            self._failed(process.returncode, folder)

    def _failed(self, code: int, folder: Path) -> NoReturn:
        path = folder / "verl.log"
        with path.open(encoding="utf-8", errors="replace") as f:
            tail = "".join(deque(f, 25))
        raise EngineError(
            f"verl ended with code {code}; what it did up to its last state is kept. The end of {path}:\n"
            f"{tail.rstrip()}"
        )

    def _export(self, folder: Path, step: int, inside: str, target: Path) -> None:
        """Make the weights that verl wrote after `step` the checkpoint `target`.

        Raises:
            EngineError: they are not there, or cannot be copied.
        """
        source = folder / "states" / f"global_step_{step}" / inside / "huggingface"
        if not any(source.glob("*.safetensors")):
            raise EngineError(
                f"{source}: verl left no safetensors weights here; see {folder / 'verl.log'}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(f".{target.name}-copy")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            shutil.copytree(source, staging)
            seal_checkpoint(staging, target)
        except OSError as e:
            raise EngineError(
                f"{target}: the checkpoint could not be written ({e}); free some disk space and resume"
            ) from e
        finally:
            shutil.rmtree(staging, ignore_errors=True)


class _Collector:
    """Takes the rounds of a wave into the store as verl finishes them."""

    def __init__(
        self,
        engine: VerlEngine,
        stage: str,
        iteration: int,
        folder: Path,
        wave: Wave,
        rows: Sequence[Sequence[Prompt]],
        persona_of: PersonaOf,
        watch: Callable[[int, dict[str, Any]], None] | None,
        done: int,
    ):
        self.engine, self.stage, self.iteration, self.folder = engine, stage, iteration, folder
        self.wave, self.rows, self.persona_of, self.watch = wave, rows, persona_of, watch
        self.next = max(done, wave.first)

    def ready(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(round, metrics) of each round that is whole now and was not taken before."""
        config, total = self.engine.config, waves(self.engine.config)[-1].last
        metrics = read_metrics(self.folder / "metrics.jsonl")
        while self.next < self.wave.last:
            step = self.next + 1  # verl counts steps from 1
            dump = self.folder / "rollouts" / f"{step}.jsonl"
            if not dump.exists() or step not in metrics:
                return
            round_ = self.next
            drawn = self.rows[round_ - self.wave.first]
            lam = lambda_at(round_, total, config.grpo.lam_max)
            turns = turns_of(read_dump(dump), {p.id: p for p in drawn}, config, lam, dump)
            record = record_round(
                self.engine.store,
                drawn,
                turns,
                self.persona_of,
                config,
                stage=self.stage,
                round_=round_,
                iteration=self.iteration,
                lam=lam,
                measures=measures_of(metrics[step]),
                lengths={},
                watch=self.watch,
            )
            self.next += 1
            yield round_, record


def _wave_files(folder: Path, wave: Wave) -> tuple[Path, Path]:
    return folder / f"wave-{wave.index}.parquet", folder / f"wave-{wave.index}.json"


def _path(model: str) -> str:
    """What verl loads: a folder by its whole path, or a hub id."""
    found = resolve(model)
    return str(Path(found).resolve()) if Path(found).exists() else found


def _end_orphan(note: Path) -> None:
    """End the verl of a launch whose starter was killed; two on one folder would spoil its states."""
    try:
        pid = int(note.read_text())
        of_verl = b"verl.trainer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if of_verl:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    note.unlink(missing_ok=True)


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process and its children where the block is left by an exception."""
    try:
        yield
    except BaseException:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
                break
        raise
