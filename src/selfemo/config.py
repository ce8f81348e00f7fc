"""Settings: pydantic models and `load()`.

Defaults are the paper's where the paper has a value (table 12) and SPEC.md's otherwise; the shipped
TOML files (`configs/`, found by name) hold what differs. TOML files are merged left to right, then
`--set a.b=c`; every mistake is reported at once, with the file or override it came from and the nearest
valid key.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from selfemo.errors import ConfigError
from selfemo.method.prompts import Reasoning
from selfemo.method.rewards import PRIMARY, SECONDARY
from selfemo.method.types import BUILTIN_MODEL

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _one_of(registry: Mapping[str, object]) -> AfterValidator:
    def known(name: str) -> str:
        if name not in registry:
            raise ValueError(f"unknown; valid are {', '.join(registry)}")
        return name

    return AfterValidator(known)


class LoraConfig(_Section):
    """Low-rank adapters instead of full fine-tuning."""

    rank: Positive = 16
    alpha: PositiveFloat = 32
    dropout: Fraction = 0.0
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class ModelConfig(_Section):
    """Which weights, where, and in which precision the forward pass runs (masters stay float32)."""

    id: str = BUILTIN_MODEL
    device: str = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on devices that compute in it, fp32 on those that would emulate it."""
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 leaves torch's own choice."""


class DataConfig(_Section):
    """Conversations: "sample", a path (detected), or "meld:PATH", "emorynlp:PATH", and so on."""

    sources: Annotated[tuple[str, ...], Field(min_length=1)] = ("sample",)
    lenient: bool = False
    eval_split: Literal["dev", "test"] = "test"
    eval_conversations: Annotated[int, Field(ge=0)] = 0
    """Held-out conversations to evaluate on, drawn by the seed of the data; 0 takes all."""
    train_conversations: Annotated[int, Field(ge=0)] = 0
    personas: tuple[str, ...] = ()
    """Folders of `selfemo personas extract`; their profiles replace other descriptions."""


class PromptConfig(_Section):
    max_tokens: Positive = 4096
    reasoning: Reasoning = "none"


class SamplingConfig(_Section):
    """G completions a prompt. The policy that is trained is softmax(logits / temperature), the one that
    samples; top_p below 1 cuts its tail and makes the ratio of eq. 14 approximate."""

    group_size: Positive = 8
    max_new_tokens: Positive = 8192
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    token_budget: Positive = 65536
    """Cached tokens of one generation batch; bounds memory."""


class RewardConfig(_Section):
    """Names of rewards: R1 from `rewards.PRIMARY`, R2 from `rewards.SECONDARY`."""

    primary: Annotated[str, _one_of(PRIMARY)] = "iou"
    secondary: Annotated[str, _one_of(SECONDARY)] = "count"


class OptimConfig(_Section):
    """AdamW; the schedule runs over the steps of one stage."""

    lr: PositiveFloat = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Fraction = 0.0
    """Share of the steps that warm up linearly."""
    weight_decay: NonNegative = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    max_grad_norm: PositiveFloat = 1.0
    micro_tokens: Positive = 16384
    """Packed tokens of one micro-batch; the rest of a batch accumulates gradient."""


class SftConfig(OptimConfig):
    lr: PositiveFloat = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Fraction = 0.05
    batch_size: Positive = 64
    """Samples of one optimiser step."""
    run_length: Positive = 8
    """Samples of one conversation that stay together in a step: longer runs share more of their prefix,
    shorter ones mix more conversations."""
    epochs: Annotated[int, Field(ge=0)] = 3
    """Passes over the samples; 0: the model had its cold start before (refits still see its samples)."""
    max_samples: Annotated[int, Field(ge=0)] = 0
    """Cold-start samples to take; 0 takes all."""
    max_emotion_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Most of max_samples with one emotion as E: if half the data are neutral, a small model learns to say
    nothing else."""
    seen: Annotated[int, Field(ge=0)] = 0
    """Cold-start samples that the model has learned from before: others are taken first. Which they are is
    read from the model's run (model.id, or MODEL.run beside it); where that is not at hand, they are the
    first of these settings. 0 for none."""
    samples: str = ""
    """A Parquet file of `selfemo coldstart generate`; empty takes the gold data."""
    label_weight: PositiveFloat = 1.0
    """Loss weight of the tokens of the E line (1 is the plain token mean)."""

    @model_validator(mode="after")
    def _share_of_something(self) -> SftConfig:
        if self.max_emotion_share < 1 and not self.max_samples:
            raise ValueError(
                "max_emotion_share below 1 is a share of max_samples, which is 0 (all); set max_samples"
            )
        return self


class GrpoConfig(OptimConfig):
    """SELF-GRPO (SPEC section 3). lam_max = 0 is vanilla GRPO."""

    prompts_per_step: Positive = 64
    """train_batch_size of table 12: prompts sampled between two rounds of updates."""
    mini_batch: Positive = 32
    """Prompts of one optimiser step (ppo_mini_batch_size)."""
    lam_max: Fraction = 1.0
    lam_span: Literal["run", "stage"] = "run"
    """What lambda(t) rises over: all RL stages of a run, or each of them anew from 0 (the paper has one)."""
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    kl_coef: NonNegative = 0.001
    entropy_coef: NonNegative = 0.0
    eps: NonNegative = 1e-6
    ddof: Literal[0, 1] = 0


class GateConfig(_Section):
    """Conditions on the best rollout of a group (SPEC section 5, step 3)."""

    tau: Fraction = 0.5
    """Least R1; against a mixed target the right top emotion is enough."""
    min_reply_chars: Positive = 2
    max_reply_chars: Positive = 600


class SelfPlayConfig(_Section):
    max_turns: Positive = 4
    """Turns of one episode, the first (real history) included."""
    synthetic_share: Fraction = 8 / 23
    """Share of synthetic prompts in the buffer; the paper mixes 15k original with 8k synthetic."""
    max_age: Annotated[int, Field(ge=0)] = 0
    """RL rounds, counted over the run, after which a synthetic prompt is drawn no more; 0 for no limit. The
    newest are drawn first, so old ones matter where few replies pass the gate. In rounds, since each round
    moves the policy that wrote them. With verl a prompt waits for the next wave: a limit below the rounds of
    a wave leaves its first rounds out."""


class FlywheelConfig(_Section):
    iterations: Annotated[int, Field(ge=0)] = 1
    """Rounds of self-play, SELF-GRPO and refit; 0 ends with the cold start (SFT alone)."""
    prompts: Positive = 23000
    """Prompts of one iteration's RL stage, original and synthetic together."""
    max_prompt_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Most original prompts of a data set with one gold emotion, as a share; 1 draws from all. If half the
    data are neutral, the reward of a group pays for saying neutral."""
    refit: Literal["base", "policy", "none"] = "base"
    """The model that step (b) of algorithm 1 trains again: the base model (paper), the RL policy (far
    cheaper), or none: the RL policy stays as it is."""
    max_emotion_share: Fraction = 0.5
    """Cap on the share of any one emotion among the self-play samples that join the SFT set."""
    replay: Fraction = 1.0
    """Share of the earlier SFT set that a refit sees again (1 with refit = "base")."""
    refit_epochs: Positive = 3
    refit_lr: PositiveFloat | None = None
    """Learning rate of a refit; without it, the cold start's."""

    @model_validator(mode="after")
    def _whole_set_from_base(self) -> FlywheelConfig:
        if self.refit == "base" and self.replay < 1:
            raise ValueError(
                'replay below 1 with refit = "base" would train the base model without its cold '
                'start; use refit = "policy" or replay = 1'
            )
        return self


class EvalConfig(_Section):
    span: Literal["all", "emotion", "probabilities"] = "emotion"
    """"emotion" stops after the E line and scores it alone; "all" writes whole completions;
    "probabilities" writes nothing: the prediction is the probability of each label after "E:", so that an
    untrained model has a score, mean R1 moves with each change and calibration is of probabilities."""
    max_new_tokens: Positive = 512
    no_repeat_ngram: Annotated[int, Field(ge=0)] = 0
    """Greedy completions repeat no n-gram of so many tokens within a line; 0 for no such limit."""
    resamples: Positive = 1000
    token_budget: Positive = 65536


GuardAction = Literal["warn", "stop", "rollback"]


class GuardConfig(_Section):
    """The alarms of a training stage, and what each of them does (guards.py)."""

    numbers: GuardAction = "stop"
    kl: GuardAction = "stop"
    collapse: GuardAction = "warn"
    hacking: GuardAction = "warn"
    max_kl: PositiveFloat = 10.0
    """Nats per token; a healthy run stays far below 1."""
    min_entropy: NonNegative = 0.02
    """Nats per sampled token; 0 for no such limit."""
    max_emotion_share: Fraction = 0.98
    """1 for no such limit."""
    window: Annotated[int, Field(ge=2)] = 10
    """Rounds that collapse and hacking are measured over."""
    hacking_change: PositiveFloat = 0.05
    max_rollbacks: Annotated[int, Field(ge=0)] = 3
    """Rollbacks of one stage; the next alarm stops it."""


class SaveConfig(_Section):
    every_steps: Annotated[int, Field(ge=0)] = 0
    """RL rounds or SFT steps between two resumable states inside a stage; 0 saves them at stage ends
    and where a run is asked to stop."""
    keep_states: Positive = 2
    """States of the running stage that are kept: if the last one is damaged, the stage resumes from the one
    before. Each holds weights and optimiser, three times the trained parameters."""
    keep_stage_checkpoints: bool = True
    """Keep the policy after RL (iteration-i-rl) when the iteration's own model is evaluated."""


class ClusterConfig(_Section):
    """Settings for verl alone (engine = "verl"); defaults are table 12's."""

    nodes: Positive = 1
    gpus_per_node: Positive = 8
    address: str = ""
    """Address of a running Ray cluster ("auto": the one of this node); empty starts one on this node."""
    rollout: Literal["vllm", "sglang"] = "vllm"
    tensor_parallel: Positive = 8
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_batched_tokens: Positive = 12400
    micro_batch_per_gpu: Positive = 16
    """Sequences of one micro-batch on a GPU."""
    offload_reference: bool = True
    offload_policy: bool = False
    """Keep the policy's weights and optimiser in CPU memory while completions are sampled."""
    test_every: Annotated[int, Field(ge=0)] = 10
    """RL rounds between two tests on held-out prompts; 0 for none."""
    save_every: Positive = 480
    """RL rounds between two states that a stage can resume from; each wave ends with one more."""
    reward_workers: Positive = 8
    """Processes of verl that score completions."""
    overrides: tuple[str, ...] = ()
    """Further Hydra overrides of verl's RL configuration; the last word."""
    sft_overrides: tuple[str, ...] = ()
    """The same of its SFT configuration."""


class Config(_Section):
    """All settings of a run."""

    seed: Annotated[int, Field(ge=0)] = 0
    engine: str = "local"
    """Name of the trainer (`training.TRAINERS`): local (one device) or verl (a cluster of GPUs)."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    sampling: SamplingConfig = SamplingConfig()
    reward: RewardConfig = RewardConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()
    gate: GateConfig = GateConfig()
    selfplay: SelfPlayConfig = SelfPlayConfig()
    flywheel: FlywheelConfig = FlywheelConfig()
    evaluation: EvalConfig = EvalConfig()
    guard: GuardConfig = GuardConfig()
    save: SaveConfig = SaveConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _batches_fit(self) -> Config:
        if self.grpo.mini_batch > self.grpo.prompts_per_step:
            raise ValueError(
                f"grpo.mini_batch ({self.grpo.mini_batch}) is larger than grpo.prompts_per_step "
                f"({self.grpo.prompts_per_step}); a mini-batch is a part of the sampled prompts"
            )
        if self.sampling.group_size < 2:
            raise ValueError(
                "sampling.group_size is 1: a group of one has no advantage and would teach nothing; "
                "use 2 or more (the paper: 8)"
            )
        if self.evaluation.span == "probabilities" and self.prompt.reasoning != "none":
            raise ValueError(
                f'evaluation.span = "probabilities" reads the place after "E:" with nothing before it, and '
                f"prompt.reasoning = {self.prompt.reasoning!r} has the model reason first; use span "
                '"emotion" or "all"'
            )
        return self


def _keys(section: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of each setting, and of each section, below one."""
    for name, known in section.model_fields.items():
        yield (*prefix, name)
        for kind in (known.annotation, *get_args(known.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, (*prefix, name))


def _nearest(path: tuple[str, ...]) -> str:
    """The valid key most like a wrong one: in its own section, or else anywhere."""
    keys = list(_keys(Config))
    beside = [k[-1] for k in keys if k[:-1] == path[:-1]]
    if near := difflib.get_close_matches(path[-1], beside, n=1, cutoff=0.5):
        return ".".join([*path[:-1], near[0]])
    whole = difflib.get_close_matches(".".join(path), map(".".join, keys), n=1, cutoff=0.4)
    return whole[0] if whole else ""


def _flatten(value: Any, prefix: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for k, v in value.items():
            yield from _flatten(v, (*prefix, k))
    else:
        yield prefix, value


def _insert(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        nested = tree.get(part)
        if not isinstance(nested, dict):
            nested = tree[part] = {}
        tree = nested
    tree[path[-1]] = value


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, separator, value = text.partition("=")
    path = [p.strip() for p in key.split(".")]
    if not separator or not all(path):
        raise ConfigError(f"--set {text}: write it as section.key=value, for example --set seed=3")
    try:
        return path, tomllib.loads(f"x = {value.strip()}")["x"]
    except tomllib.TOMLDecodeError:
        return path, value.strip()


def shipped() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    return {f.stem: f for f in sorted(Path(__file__).with_name("configs").glob("*.toml"))}


def _find(name: Path | str) -> Path:
    """The file of that name, or else the shipped configuration."""
    path, known = Path(name), shipped()
    if path.exists() and not (path.is_dir() and str(name) in known):
        return path
    if str(name) in known:
        return known[str(name)]
    near = difflib.get_close_matches(path.stem, known, n=1)
    raise ConfigError(
        f"{name}: no such configuration file"
        + (f"; did you mean -c {near[0]}?" if near else ";")
        + f" shipped with the package: {', '.join(known)}"
    )


def load(files: Sequence[Path | str] = (), overrides: Sequence[str] = ()) -> Config:
    """Merge TOML files left to right, then overrides, over the defaults.

    Args:
        files: paths, or names of shipped configurations; a file goes before a name.
        overrides: `section.key=value`.

    Raises:
        ConfigError: a missing or broken file, or all unknown keys and bad values, each with its origin.
    """
    tree: dict[str, Any] = {}
    origin: dict[tuple[str, ...], str] = {}
    for file in files:
        try:
            content = tomllib.loads(_find(file).read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
            raise ConfigError(f"{file}: cannot be read as TOML: {e}") from None
        for path, value in _flatten(content):
            _insert(tree, path, value)
            origin[path] = str(file)
    for text in overrides:
        key, value = _parse_override(text)
        _insert(tree, key, value)
        origin[tuple(key)] = f"--set {text}"
    try:
        return Config.model_validate(tree)
    except ValidationError as e:
        raise ConfigError(_explain(e, origin)) from None


def _explain(error: ValidationError, origin: dict[tuple[str, ...], str]) -> str:
    lines = []
    for item in error.errors():
        path = tuple(str(p) for p in item["loc"])
        where = next((o for p, o in origin.items() if p[: len(path)] == path or path[: len(p)] == p), "")
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            near = _nearest(path)
            text = "unknown key" + (f"; did you mean {near}?" if near else "")
        elif path and "input" in item and not isinstance(item["input"], dict):
            text = f"{text} (got {item['input']!r})"
        key = ".".join(path)
        lines.append(": ".join(part for part in (where, key, text) if part))
    return "\n".join(lines)


def to_toml(config: Config) -> str:
    """The resolved configuration as TOML that `load` reads back to an equal one."""
    return "\n\n".join(_tables("", config.model_dump(mode="json", exclude_none=True))) + "\n"


def _tables(name: str, section: dict[str, Any]) -> Iterator[str]:
    # JSON strings, numbers, booleans and arrays are also TOML; TOML has no null, which was left out.
    lines = [f"{k} = {json.dumps(v)}" for k, v in section.items() if not isinstance(v, dict)]
    yield "\n".join([f"[{name}]", *lines] if name else lines)
    for key, inner in section.items():
        if isinstance(inner, dict):
            yield from _tables(f"{name}.{key}" if name else key, inner)
