"""The settings of a run: one pydantic model a section, those of rewards, guards, cluster and what is kept in
files of their own.

Defaults are the paper's where the paper has a value (table 12) and SPEC.md's otherwise; the shipped TOML
files (`configs/`) hold what differs.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfemo.config.base import Fraction, NonNegative, Positive, PositiveFloat
from selfemo.config.base import Section as _Section
from selfemo.config.cluster import ClusterConfig
from selfemo.config.guards import GuardConfig
from selfemo.config.kept import SaveConfig, StoreConfig
from selfemo.config.rewards import RewardConfig
from selfemo.method.prompts import Reasoning
from selfemo.method.self_grpo import Normalise
from selfemo.method.types import BUILTIN_MODEL


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
    """auto: bf16 where that is faster (GPUs that compute in it, CPUs with AMX or ARM's bf16), else fp32."""
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 leaves torch's own choice."""
    attention: Literal["auto", "tree", "dense", "flex"] = "auto"
    """Over packed rows. tree: no masked block is computed, run by run; dense: one kernel over a dense mask;
    flex: FlexAttention, one kernel that skips masked blocks of 128 x 128. auto: tree on a CPU, else dense."""
    decoder: Literal["auto", "branches", "slots"] = "auto"
    """Of completions without constraints. branches: equal copies are computed once, with the host in each
    step; slots: each copy for itself, with the host every eighth step, on CUDA as a graph. auto: branches."""
    compile: bool = False
    """Compile each decoder layer by torch.compile: a minute or more at the first use, kept on disk."""
    fp32_head: bool = False
    """Compute logits in fp32 where the rest of the forward pass is bf16."""
    backend: Literal["local", "vllm"] = "local"
    """What runs a model that is asked and not trained (evaluate, predict, serve, chat, selfplay): this
    package, or vLLM in the same process. What samples in RL is sampling.backend."""


class DataConfig(_Section):
    """Conversations: "sample", a path (detected), or "meld:PATH", "emorynlp:PATH", and so on."""

    sources: tuple[str, ...] = ("sample",)
    lenient: bool = False
    eval_split: Literal["dev", "test"] = "test"
    eval_conversations: Annotated[int, Field(ge=0)] = 0
    """Held-out conversations to evaluate on, drawn by the seed of the data; 0 takes all."""
    eval_half: Literal["all", "tuning", "claim"] = "all"
    """Half of eval_split, parted once for all seeds: one half of dev is to tune on, the other for claims."""
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the conversations without a split of their own that is dev, the rest train (0: all test)."""
    train_conversations: Annotated[int, Field(ge=0)] = 0
    personas: tuple[str, ...] = ()
    """Folders of `selfemo personas extract`; their profiles replace other descriptions."""
    exclude_overlap: Literal["no", "train", "eval"] = "no"
    """Conversations of the training split and of eval_split that share utterances of six words or more
    (data/overlap.py): "no" leaves out none, as published scores do, and scores without the overlap stand
    beside; "train" does not train on them; "eval" does not evaluate on them."""

    @property
    def evaluated_on(self) -> str:
        """The split to evaluate on, with its half where it is one: "dev", "dev, claim half"."""
        return self.eval_split if self.eval_half == "all" else f"{self.eval_split}, {self.eval_half} half"


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
    """Cached tokens of one generation batch; bounds memory. With vLLM the tokens of its cache."""
    backend: Literal["local", "vllm"] = "local"
    """What samples in RL with the local engine. local: the policy itself (shared prefixes, one device); vllm:
    vLLM in the same process, which is given the policy's weights before each round. All else (evaluation, the
    teacher, R3's listener) stays with the policy."""

    @model_validator(mode="after")
    def _whole_distribution(self) -> SamplingConfig:
        if self.backend == "vllm" and self.top_p < 1:
            raise ValueError(
                f'top_p = {self.top_p:g} with backend = "vllm": vLLM tells the probabilities of what top_p '
                "left, and importance weights by those are biased; set top_p = 1"
            )
        return self


class AdamConfig(_Section):
    """AdamW; the schedule runs over the steps of one stage."""

    lr: PositiveFloat = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Fraction = 0.0
    """Share of the steps that warm up linearly."""
    weight_decay: NonNegative = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    max_grad_norm: PositiveFloat = 1.0


class OptimConfig(AdamConfig):
    """AdamW on packed rows."""

    micro_tokens: Positive = 16384
    """Packed tokens of one micro-batch; the rest of a batch accumulates gradient."""


class FitConfig(AdamConfig):
    """Training of a classifier, of which the epoch with the best score on held-out turns is kept."""

    lr: PositiveFloat = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    epochs: Positive = 5
    batch_size: Positive = 32
    """Turns of one optimiser step (give or take, where whole conversations are taken)."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Epochs without a better score after which training ends; 0 trains all epochs."""


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
    label_samples: Annotated[int, Field(ge=-1)] = 0
    """Labelled turns besides them that teach E alone, since no answer of another speaker with a label follows
    or max_samples is reached; -1 takes all that are left."""
    label_order: Literal["mixed", "last"] = "mixed"
    """When label_samples are trained on: among the whole samples, or after them. The tokens of S and reply
    carry most of a mixed step's gradient, so that few mixed steps teach the format and hardly any E."""
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

    @model_validator(mode="after")
    def _something_to_order(self) -> SftConfig:
        if self.label_order == "last" and not self.label_samples:
            raise ValueError(
                'label_order = "last" with label_samples = 0: there are no E lines to train on last; set '
                'label_samples (-1 takes all), or label_order = "mixed"'
            )
        return self


class GrpoConfig(OptimConfig):
    """SELF-GRPO (SPEC section 3). lam_max = 0 is vanilla GRPO."""

    prompts_per_step: Positive = 64
    """train_batch_size of table 12: prompts sampled between two rounds of updates."""
    mini_batch: Positive = 32
    """Prompts of one optimiser step (ppo_mini_batch_size)."""
    lam_max: Fraction = 1.0
    normalise: Normalise = "std"
    """What a group's centred rewards are divided by: their deviation (GRPO), their mean (MaxRL, which does
    not favour what is likely already), or nothing."""
    credit: Literal["completion", "causal"] = "completion"
    """The tokens that R1 and R2 act on: all (eq. 14), or, since both depend on E alone, those up to the end
    of the E line. Then E lines alone are sampled, and S and the reply for the best of them."""
    reward_weight: NonNegative = 1.0
    """Weight of the advantages. 0 with a gold_weight is cross-entropy on the labels that RL would see."""
    gold_weight: NonNegative = 0.0
    """Advantage of the gold E line of each original prompt, which joins its completions [ours]: an anchor of
    cross-entropy on the label that R1 is measured against. Needs causal credit."""
    self_anchor: NonNegative = 0.0
    """Weight of cross-entropy on an S line that the policy of the stage's start draws behind the best E line,
    and, where no reward acts on replies, on its reply [ours]: S stays by persona and context as it was, where
    RL on E alone makes it neutral, and replies stay replies. Needs causal credit."""
    lam_span: Literal["run", "stage"] = "run"
    """What lambda(t) rises over: all RL stages of a run, or each of them anew from 0 (the paper has one)."""
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    importance_cap: Literal["auto"] | NonNegative = "auto"
    """Truncated importance sampling [ours]: a token's gradient is weighted by min(p_trainer / p_sampler,
    cap), both of the weights that sampled it, which takes out what bf16 or other kernels make of them. 0: no
    such weight. auto: 2 with sampling.backend = "vllm", whose kernels are not the trainer's, else 0."""
    kl_coef: NonNegative = 0.001
    entropy_coef: NonNegative = 0.0
    eps: NonNegative = 1e-6
    ddof: Literal[0, 1] = 0


class GateConfig(_Section):
    """Conditions on the best rollout of a group (SPEC section 5, step 3)."""

    tau: Fraction = 0.5
    """Least R1; against a mixed target the right top emotion is enough."""
    channel: Literal["top"] | Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    """What the teacher, the policy of the stage's start, must hear in a reply (E x channel; `selfemo analyse
    --channel` says whether it hears well). "top": the top emotion of the declared S, above
    all others; a number: that emotion with at least this probability, which lets rare emotions pass where
    the teacher's first guess is another; 0: nothing, and no reply is read."""
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
    targets: Literal["declared", "shuffled", "channel"] = "declared"
    """The target of a next prompt. "declared": the S that was declared (eq. 7). "shuffled", a control: the S
    of another episode of the same round and label set. Then the labels are as frequent as before and say
    nothing of the reply. The only episode of its label set in a round keeps its own S, which is counted and
    told. "channel": what the teacher of gate.channel hears in the reply, a whole distribution; a reply that
    is too long to be read keeps its S, which is counted and told."""

    self_emotion: Literal["sampled", "balanced"] = "sampled"
    """S of the best rollout: the policy's own, or given to it, each label of the set as often in a round as
    the others (give or take one), so that rare emotions are played at all. A given S and the reply behind it
    are trained on by no reward but R3, which acts on the reply; a refit on them teaches that each S is as
    frequent. Needs causal credit, whose replies are sampled by themselves, and so the local engine."""
    reply: Literal["first", "best"] = "first"
    """Of the replies that reward.expression compares the one that goes on, to the gate, the next prompt and a
    refit: the first that breaks no rule, as the policy would say it; or the one in which the listener finds S
    best, so that S is a better label of it, as that listener hears it."""

    @model_validator(mode="after")
    def _something_to_shuffle(self) -> SelfPlayConfig:
        if self.targets != "declared" and (self.max_turns == 1 or self.synthetic_share == 0):
            done = "shuffled" if self.targets == "shuffled" else "heard"
            raise ValueError(
                f'targets = "{self.targets}" with max_turns = 1 or synthetic_share = 0: there are no next '
                f'prompts whose targets could be {done}; use targets = "declared"'
            )
        return self


class FlywheelConfig(_Section):
    iterations: Annotated[int, Field(ge=0)] = 1
    """Rounds of self-play, SELF-GRPO and refit; 0 ends with the cold start (SFT alone)."""
    prompts: Positive = 23000
    """Prompts of one iteration's RL stage, original and synthetic together."""
    window: Positive = 1
    """Most original prompts of one conversation, in their order, that are drawn together: they are one prefix
    tree, so that each costs a third of the tokens or less."""
    new_labels: bool = False
    """Draw original prompts only from turns whose label no SFT sample has taught, of this run or, with
    sft.seen, of the model's earlier cold start. Where none is left, from all turns, which is told."""
    max_prompt_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Most original prompts of a data set with one gold emotion, as a share; 1 draws from all. If half the
    data are neutral, the reward of a group pays for saying neutral."""
    unlabelled: Literal["leave", "channel"] = "leave"
    """Training turns without a gold emotion: not drawn, or original prompts whose target is E x channel by
    the policy of the stage's start (stages/unlabelled.py). `selfemo analyse --channel` comes first."""
    refit: Literal["base", "policy", "none"] = "base"
    """The model that step (b) of algorithm 1 trains again: the base model (paper), the RL policy (far
    cheaper), or none: the RL policy stays as it is."""
    max_emotion_share: Fraction = 0.5
    """Cap on the share of any one emotion among the self-play samples that join the SFT set."""
    replay: Fraction = 1.0
    """Share of the earlier SFT set that a refit sees again (1 with refit = "base")."""
    refit_on: Literal["all", "replay"] = "all"
    """The samples of a refit: those of self-play and the replayed ones, or, as a control, replayed samples of
    the cold start alone. They are as many as with "all", for the same number of optimiser steps: those that
    "all" would replay, then others of the cold start, and again the same where it has no more."""
    refit_epochs: Positive = 3
    refit_lr: PositiveFloat | None = None
    """Learning rate of a refit; without it, the cold start's."""
    if_worse: Literal["go_on", "rollback"] = "go_on"
    """What follows an RL stage or a refit that raises NLL at T, of beliefs on held-out conversations, by more
    than worse_margin: the run goes on from its weights, or they are rolled back and it goes on from those
    before (runs/rollback.py). Judged on the tuning half of dev, whatever data.eval_half evaluates."""
    worse_margin: NonNegative = 0.01
    """Nats, of the mean over data sets: half of dev tells no smaller rise from noise. 0: any rise."""

    @model_validator(mode="after")
    def _whole_set_from_base(self) -> FlywheelConfig:
        if self.refit == "base" and self.replay < 1:
            raise ValueError(
                'replay below 1 with refit = "base" would train the base model without its cold '
                'start; use refit = "policy" or replay = 1'
            )
        return self

    @model_validator(mode="after")
    def _something_to_replay(self) -> FlywheelConfig:
        if self.refit_on == "replay" and self.refit == "none":
            raise ValueError(
                'refit_on = "replay" with refit = "none": there is no refit whose samples it could choose; '
                'use refit = "policy" or "base"'
            )
        if self.refit_on == "replay" and self.replay == 0:
            raise ValueError(
                'refit_on = "replay" with replay = 0: the refit would have no samples; raise replay'
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
    beliefs: bool = True
    """Also keep the probability of each label after "E:", whatever the span: one forward pass more. T and NLL
    at T are then of what the model believes, not of the one to three labels that it writes. Taken where the
    model is at hand (not over an endpoint) and prompt.reasoning is "none"."""


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
    store: StoreConfig = StoreConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with its completion, where that is drawn in parts, too (SPEC section 9)."""
        return self.prompt.max_tokens + 2 * self.sampling.max_new_tokens

    @property
    def replies(self) -> bool:
        """Whether anything uses the replies of RL: next prompts, the samples of a refit, or R3."""
        return self.selfplay.max_turns > 1 or self.flywheel.refit != "none" or self.expresses

    @property
    def expresses(self) -> bool:
        """Whether replies are rewarded for the emotion that they show."""
        return self.reward.expression != "none"

    @property
    def reads_replies(self) -> bool:
        """Whether a teacher reads the replies of self-play."""
        return bool(self.gate.channel) or self.selfplay.targets == "channel"

    @model_validator(mode="after")
    def _something_to_read(self) -> Config:
        if self.gate.channel and not self.replies:
            raise ValueError(
                f"gate.channel = {self.gate.channel!r} with selfplay.max_turns = 1 and flywheel.refit = "
                '"none": nothing uses a reply, so that none is judged; set gate.channel = 0'
            )
        if self.reads_replies and self.prompt.reasoning != "none":
            raise ValueError(
                'gate.channel and selfplay.targets = "channel" read labels right behind the prompt, and '
                f"prompt.reasoning = {self.prompt.reasoning!r} has the model reason first; set gate.channel "
                '= 0 and selfplay.targets = "declared"'
            )
        return self

    @model_validator(mode="after")
    def _replies_to_reward(self) -> Config:
        if not self.expresses:
            if self.selfplay.reply == "best":
                raise ValueError(
                    'selfplay.reply = "best" with reward.expression = "none": nobody says which reply is '
                    'best; set reward.expression = "listener"'
                )
            return self
        if self.grpo.credit != "causal" and self.engine != "verl":  # verl hears those of whole completions
            raise ValueError(
                'reward.expression = "listener" draws several replies behind one E line and one S, and '
                f'grpo.credit = "{self.grpo.credit}" samples whole completions; set grpo.credit = "causal"'
            )
        if self.reward.heard_by_reference and self.prompt.reasoning != "none":
            raise ValueError(
                'reward.listener = "reference" reads labels right behind the prompt, and prompt.reasoning = '
                f'"{self.prompt.reasoning}" has the model reason first; name another listener'
            )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> Config:
        if self.grpo.mini_batch > self.grpo.prompts_per_step:
            raise ValueError(
                f"grpo.mini_batch ({self.grpo.mini_batch}) is larger than grpo.prompts_per_step "
                f"({self.grpo.prompts_per_step}); a mini-batch is a part of the sampled prompts"
            )
        if self.grpo.gold_weight and self.grpo.credit != "causal":
            raise ValueError(
                'grpo.gold_weight adds gold E lines, which needs grpo.credit = "causal" (E lines alone)'
            )
        if self.grpo.self_anchor and self.grpo.credit != "causal":
            raise ValueError(
                'grpo.self_anchor draws S behind an E line alone, which needs grpo.credit = "causal"'
            )
        if self.grpo.gold_weight and self.prompt.reasoning != "none":
            raise ValueError(
                "grpo.gold_weight teaches the gold E line right behind the prompt, and prompt.reasoning = "
                f"{self.prompt.reasoning!r} has the model reason first; set gold_weight = 0 or reasoning = "
                '"none"'
            )
        if self.selfplay.targets == "shuffled" and min(self.grpo.prompts_per_step, self.flywheel.prompts) < 2:
            raise ValueError(
                'selfplay.targets = "shuffled" needs two episodes in a round, and grpo.prompts_per_step or '
                "flywheel.prompts is 1; raise it"
            )
        if self.selfplay.self_emotion == "balanced":
            if self.grpo.credit != "causal" and self.engine != "verl":  # which refuses it by itself
                raise ValueError(
                    'selfplay.self_emotion = "balanced" gives S before the reply is sampled, and grpo.credit '
                    f'= {self.grpo.credit!r} samples whole completions at once; set grpo.credit = "causal"'
                )
            if not self.replies:
                raise ValueError(
                    'selfplay.self_emotion = "balanced" with selfplay.max_turns = 1 and flywheel.refit = '
                    '"none": no reply is sampled, so that there is no S to balance; use "sampled"'
                )
        expressed = self.expresses and self.reward.expression_weight
        if not (self.grpo.reward_weight or self.grpo.gold_weight or expressed):
            more = ", and so is reward.expression_weight" if self.expresses else ""
            raise ValueError(
                f"grpo.reward_weight and grpo.gold_weight are both 0{more}: RL would learn nothing"
            )
        if self.sampling.group_size < 2:
            raise ValueError(
                "sampling.group_size is 1: a group of one has no advantage and would teach nothing; "
                "use 2 or more (the paper: 8)"
            )
        if self.flywheel.unlabelled == "channel" and self.prompt.reasoning != "none":
            raise ValueError(
                'flywheel.unlabelled = "channel" reads labels right behind the prompt, and prompt.reasoning '
                f'= {self.prompt.reasoning!r} has the model reason first; use unlabelled = "leave"'
            )
        if self.evaluation.span == "probabilities" and self.prompt.reasoning != "none":
            raise ValueError(
                f'evaluation.span = "probabilities" reads the place after "E:" with nothing before it, and '
                f"prompt.reasoning = {self.prompt.reasoning!r} has the model reason first; use span "
                '"emotion" or "all"'
            )
        return self
