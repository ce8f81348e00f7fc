"""Settings of `trl.SelfGRPOTrainer`: TRL's, and those of SELF-GRPO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from selfemo.config import REFERENCE, GrpoConfig, RewardConfig
from selfemo.errors import ConfigError, MissingExtraError
from selfemo.extras import install_command

try:
    from trl import GRPOConfig
except ImportError as e:
    raise MissingExtraError(f"trl ({e})", install_command("trl", "peft")) from e


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
    expression: str = field(
        default="none", metadata={"help": "listener: R3 acts on the tokens of replies; needs causal credit"}
    )
    listener: str = field(
        default=REFERENCE,
        metadata={"help": "reference: the model as it was given; or a kept encoder, a model, an endpoint"},
    )
    contrast: bool = field(
        default=True, metadata={"help": "a reply earns what it tells of S beyond other emotions, not R3"}
    )
    length_weight: float = field(
        default=0.0, metadata={"help": "weight of how like people's turns replies are in length"}
    )
    expression_weight: float = field(default=1.0, metadata={"help": "weight of the advantages of replies"})
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
        if self.expression != "none" and self.credit != "causal":
            wrong.append(
                f"credit={self.credit!r}: expression={self.expression!r} acts on the tokens of replies, and "
                "this is one advantage for all tokens; use credit='causal'"
            )
        if wrong:
            raise ConfigError("SelfGRPOConfig:\n" + "\n".join(f"- {w}" for w in wrong))
        super().__post_init__()

    def settings(self) -> tuple[RewardConfig, GrpoConfig]:
        """The settings of rewards and advantages as sections of the local engine's configuration."""
        rewards: dict[str, Any] = {"primary": self.primary, "secondary": self.secondary}
        rewards |= {"expression": self.expression, "listener": self.listener}
        rewards |= {"contrast": self.contrast, "length_weight": self.length_weight}
        rewards |= {"expression_weight": self.expression_weight}
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
