"""The settings of verl's RL and supervised trainers as Hydra overrides; imports nothing of verl."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfemo.config import Config, LoraConfig, SftConfig
from selfemo.errors import ConfigError
from selfemo.models.references import resolve
from selfemo.training.protocol import RlSpan
from selfemo.training.verl.listening import expression_settings

MODE = "self_grpo"
"""Name of the advantage estimator and of the trainer in verl's registries."""
PLUGIN = "selfemo.training.verl.plugin"
_MAX_RANK = 512
"""Of the adapters that vLLM samples with."""
_ENDS = re.compile("lm_head|embed")
"""Layers whose adapters vLLM leaves out in silence, where it does not know that the model may have them."""


def _adapter_faults(lora: LoraConfig | None) -> list[tuple[bool, str]]:
    if lora is None:
        return []
    ends = [] if isinstance(lora.targets, str) else [t for t in lora.targets if _ENDS.search(t)]
    return [
        (lora.rank > _MAX_RANK,
         f"model.lora.rank = {lora.rank}: vLLM takes up to {_MAX_RANK}"),
        (lora.alpha % 1 != 0,
         f"model.lora.alpha = {lora.alpha:g}: verl takes whole numbers"),
        (lora.dropout != 0,
         f"model.lora.dropout = {lora.dropout:g}: verl's adapters have none; set 0"),
        (bool(ends),
         f"model.lora.targets: {', '.join(ends)}: vLLM may sample without these adapters; leave out"),
    ]  # fmt: skip


def check_config(config: Config) -> None:
    """Refuse settings that verl lacks or treats differently (ConfigError: all of them, with what to set)."""
    c, g, s, guard = config.cluster, config.grpo, config.sft, config.guard
    gpus, model = c.nodes * c.gpus_per_node, config.model
    paths = {"model.attention": model.attention != "auto", "model.decoder": model.decoder != "auto",
             "model.compile": model.compile, "model.fp32_head": model.fp32_head}  # fmt: skip
    engine_only = [name for name, is_set in paths.items() if is_set]
    sequences = g.mini_batch * config.sampling.group_size
    cap = g.importance_cap if g.importance_cap == "auto" else f"{g.importance_cap:g}"
    faults = [
        text
        for wrong, text in (
            *_adapter_faults(config.model.lora),
            (bool(engine_only),
             f"{', '.join(engine_only)}: of the local engine; leave out (verl's own: cluster.overrides)"),
            (g.schedule != "constant" or g.warmup > 0,
             f"grpo.schedule = {g.schedule!r}, grpo.warmup = {g.warmup:g}: each wave is a separate launch; "
             'set "constant" and 0'),
            (s.schedule == "linear", 'sft.schedule = "linear": verl has "constant" and "cosine"'),
            (s.label_weight != 1,
             f"sft.label_weight = {s.label_weight:g}: verl's SFT loss is the plain token mean; set 1"),
            (s.label_samples != 0,
             f"sft.label_samples = {s.label_samples}: verl would teach that an E line ends it all; set 0"),
            (g.credit != "completion",
             f'grpo.credit = {g.credit!r}: verl samples whole completions; set "completion"'),
            (config.selfplay.self_emotion != "sampled",
             f'selfplay.self_emotion = {config.selfplay.self_emotion!r}: verl samples S with the reply; '
             'set "sampled"'),
            (config.gate.channel != 0,
             f"gate.channel = {config.gate.channel!r}: verl keeps no teacher beside the policy; set 0"),
            (config.selfplay.targets == "channel",
             'selfplay.targets = "channel": verl keeps no teacher beside the policy; set "declared"'),
            (config.reward.heard_by_reference,
             'reward.listener = "reference": verl keeps no teacher beside the policy; name the folder of a '
             "kept encoder, a model or an endpoint"),
            (config.reward.replies != 0,
             f"reward.replies = {config.reward.replies}: verl samples whole completions, each with its own "
             "reply; set 0"),
            (config.reward.length_weight != 0,
             f"reward.length_weight = {config.reward.length_weight:g}: verl's process does not know how long "
             "people's turns are in these conversations; set 0"),
            (config.selfplay.reply != "first",
             f'selfplay.reply = "{config.selfplay.reply}": verl samples whole completions, and E chooses the '
             'one that goes on; set "first"'),
            (g.normalise != "std",
             f'grpo.normalise = {g.normalise!r}: verl\'s advantages are divided by the deviation; set "std"'),
            (config.sampling.backend != "local",
             'sampling.backend = "vllm" is of the local engine; with verl set cluster.rollout = "vllm"'),
            (g.importance_cap not in (0, "auto"),
             f"grpo.importance_cap = {cap}: verl has algorithm.rollout_correction for it "
             "(cluster.overrides); set 0"),
            (g.reward_weight != 1,
             f"grpo.reward_weight = {g.reward_weight:g}: verl has no such weight; set 1"),
            (g.prompts_per_step % g.mini_batch != 0,
             f"grpo.prompts_per_step ({g.prompts_per_step}) is no multiple of grpo.mini_batch "
             f"({g.mini_batch})"),
            (config.flywheel.prompts < g.prompts_per_step,
             f"flywheel.prompts ({config.flywheel.prompts}) is less than one batch, "
             f"grpo.prompts_per_step ({g.prompts_per_step})"),
            (gpus % c.tensor_parallel != 0,
             f"cluster.tensor_parallel ({c.tensor_parallel}) does not divide the {gpus} GPUs "
             "(cluster.nodes x cluster.gpus_per_node)"),
            (sequences % (gpus * c.micro_batch_per_gpu) != 0,
             f"the {sequences} sequences of a mini-batch (grpo.mini_batch x sampling.group_size) do not "
             f"divide into micro-batches of {c.micro_batch_per_gpu} on {gpus} GPUs; lower "
             "cluster.micro_batch_per_gpu"),
            ("rollback" in (guard.numbers, guard.kl, guard.collapse, guard.hacking),
             'guard: "rollback" is of the local engine; use "warn" or "stop"'),
        )
        if wrong
    ]  # fmt: skip
    if faults:
        raise ConfigError("\n".join(faults))


def hydra(key: str, value: Any) -> str:
    """One override in Hydra's grammar; strings are quoted where they would mean something else there."""

    def text(v: Any) -> str:
        if v is None or isinstance(v, bool | int | float):
            return json.dumps(v)
        if isinstance(v, Mapping):
            return "{" + ",".join(f"{k}:{text(x)}" for k, x in v.items()) + "}"
        if isinstance(v, Sequence) and not isinstance(v, str):
            return "[" + ",".join(map(text, v)) + "]"
        if re.fullmatch(r"[A-Za-z_/][\w./:-]*", str(v)):
            return str(v)
        return "'" + str(v).replace("\\", "\\\\").replace("'", "\\'") + "'"

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


def _model(config: Config, section: str) -> dict[str, Any]:
    """What the RL and the supervised trainer know of a model alike, in their own sections."""
    settings: dict[str, Any] = {
        f"{section}.trust_remote_code": False,
        f"{section}.enable_gradient_checkpointing": True,
    }
    if lora := config.model.lora:
        targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
        settings |= {
            f"{section}.lora_rank": lora.rank,
            f"{section}.lora_alpha": int(lora.alpha),
            f"{section}.target_modules": targets,
        }
    return settings


def _actor(config: Config) -> dict[str, Any]:
    c, g, actor = config.cluster, config.grpo, "actor_rollout_ref.actor"
    return {
        f"{actor}.ppo_mini_batch_size": g.mini_batch,
        f"{actor}.ppo_micro_batch_size_per_gpu": c.micro_batch_per_gpu,
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
        f"{actor}.shuffle": True,  # a round is drawn with the prompts of self-play first
        f"{actor}.fsdp_config.param_offload": c.offload_policy,
        f"{actor}.fsdp_config.optimizer_offload": c.offload_policy,
        f"{actor}.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        f"{actor}.checkpoint.load_contents": ["model", "optimizer", "extra"],
    }


def _rollout(config: Config) -> dict[str, Any]:
    c, s, rollout = config.cluster, config.sampling, "actor_rollout_ref.rollout"
    return {
        f"{rollout}.name": c.rollout,
        f"{rollout}.n": s.group_size,
        f"{rollout}.temperature": s.temperature,
        f"{rollout}.top_p": s.top_p,
        f"{rollout}.seed": config.seed,
        f"{rollout}.tensor_model_parallel_size": c.tensor_parallel,
        f"{rollout}.gpu_memory_utilization": c.gpu_memory_utilization,
        f"{rollout}.max_num_batched_tokens": c.max_batched_tokens,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": c.micro_batch_per_gpu,
        f"{rollout}.val_kwargs.n": 1,
        f"{rollout}.val_kwargs.temperature": 0,
        f"{rollout}.val_kwargs.do_sample": False,
        # Below adapters nothing changes: vLLM reads it itself, and gets the adapters alone from the trainer.
        **({f"{rollout}.load_format": "safetensors"} if config.model.lora else {}),
    }


def _estimator(config: Config, folder: Path, rounds: int, span: RlSpan) -> dict[str, Any]:
    """SELF-GRPO's own settings, which plugin.py reads."""
    g = config.grpo
    return {
        "algorithm.adv_estimator": MODE,
        "algorithm.use_kl_in_reward": False,
        f"+algorithm.{MODE}.before": span.stage * rounds,
        f"+algorithm.{MODE}.rounds": span.stages * rounds,
        f"+algorithm.{MODE}.lam_max": g.lam_max,
        f"+algorithm.{MODE}.lam": 0.0,
        f"+algorithm.{MODE}.secondary": config.reward.secondary,
        f"+algorithm.{MODE}.eps": g.eps,
        f"+algorithm.{MODE}.ddof": g.ddof,
        f"+algorithm.{MODE}.stop_file": str(folder / "stop"),
        **({f"+algorithm.{MODE}.expression": heard} if (heard := expression_settings(config)) else {}),
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
    span: RlSpan,
) -> list[str]:
    """Overrides of `verl.trainer.main_ppo`; the paper's settings give SPEC section 6 (table 12).

    Args:
        model: folder or hub id that the stage starts from; also the reference of the KL term.
        train, held: prompts of the wave, and prompts to test on.
        last_step: the RL round of the stage after which the wave ends.
        rounds: RL rounds of the stage.
        span: the stages that lambda(t) is counted over.
    """
    c, g, s = config.cluster, config.grpo, config.sampling
    settings = {
        "data.train_files": str(train),
        "data.val_files": str(held),
        "data.train_batch_size": g.prompts_per_step,
        "data.max_prompt_length": config.prompt.max_tokens,
        "data.max_response_length": s.max_new_tokens,
        "data.shuffle": False,  # the store keeps which prompts a wave draws, in order
        "data.validation_shuffle": False,
        "data.truncation": "error",
        "data.filter_overlong_prompts": False,
        "data.trust_remote_code": False,
        "+data.apply_chat_template_kwargs.enable_thinking": False,
        "actor_rollout_ref.model.path": model,
        **_model(config, "actor_rollout_ref.model"),
        **_actor(config),
        "actor_rollout_ref.ref.fsdp_config.param_offload": c.offload_reference,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": c.micro_batch_per_gpu,
        **_rollout(config),
        **_estimator(config, folder, rounds, span),
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
        # A wave ends by its steps; the number of epochs only has to be large enough.
        "trainer.total_epochs": 1_000_000,
        "trainer.total_training_steps": last_step,
        "trainer.rollout_data_dir": str(folder / "rollouts"),
        **_cluster(config, folder),
    }
    for name, value in environment(folder).items():
        settings[f"+ray_kwargs.ray_init.runtime_env.env_vars.{name}"] = value
    return [*(hydra(k, v) for k, v in settings.items()), *c.overrides]


def sft_overrides(
    config: Config, model: str, folder: Path, *, train: Path, sft: SftConfig, epochs: int
) -> list[str]:
    """Overrides of `verl.trainer.sft_trainer_ray`."""
    settings = {
        "data.train_files": str(train),
        "data.train_batch_size": sft.batch_size,
        "data.use_dynamic_bsz": True,
        "data.max_token_len_per_gpu": sft.micro_tokens,
        "data.max_length": config.prompt.max_tokens + config.sampling.max_new_tokens,
        "data.truncation": "error",
        # Some models' templates close the last message differently from earlier ones.
        "data.ignore_input_ids_mismatch": True,
        "+data.apply_chat_template_kwargs.enable_thinking": False,
        "model.path": model,
        **_model(config, "model"),
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


def environment(folder: Path) -> dict[str, str]:
    """Environment variables for each process of verl; external modules that the user set stay in them."""
    asked = os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",")
    return {
        "VERL_USE_EXTERNAL_MODULES": ",".join(dict.fromkeys([*filter(None, asked), PLUGIN])),
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
    }


def rl_command(overrides: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]


def sft_command(overrides: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "verl.trainer.sft_trainer_ray", *overrides]


def weights_path(model: str) -> str:
    """The model as verl loads it: the absolute path of a folder, or a hub id."""
    found = resolve(model)
    return str(Path(found).resolve()) if Path(found).exists() else found
