"""Rows against TRL's trainers: policy update, a whole RL step (time and memory), SFT step.

Both sides: the same weights and tokens, float32, the same number of threads, no gradient checkpointing,
AdamW (fused), gradient norm clipped at 1. TRL's loop around the step (data loader, logging) is left out
of the policy update and is in the other rows.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Row, close, in_turn
from selfemo.config import Config, GrpoConfig, ModelConfig, SftConfig, load
from selfemo.method.types import Place
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.references import resolve
from selfemo.stages.selfplay import Turn, fit_all, sample_groups, score_group, take_turns
from selfemo.training.engine import LocalEngine
from selfemo.training.protocol import RlItem

G, REPLY, LR = 8, 96, 1e-6


SETTINGS: dict[str, Any] = {
    "device": "cpu", "dtype": "fp32", "peak_tflops": 0.0, "micro_tokens": 1 << 30,
}  # fmt: skip
"""Set by benchmarks.run: peak_tflops is the device's dense peak in that precision (for utilisation),
micro_tokens bounds our micro-batches."""


def engine(model: str) -> LocalEngine:
    return LocalEngine(ModelConfig(id=model, device=SETTINGS["device"], dtype=SETTINGS["dtype"]))


def update_tflop(e: LocalEngine, prompt: int, groups: int) -> float:
    """Floating point operations of one update that the packed groups need, in 10^12.

    6 per weight of the layers and distinct token, 6 per weight of the head and predicted token, 12 per
    score of the attention's lower triangle, head dimension and head (forward 4, backward 8).
    """
    core = e.policy.core
    layers = sum(p.numel() for n, p in core.named_parameters() if ".layers." in n)
    head = core.get_output_embeddings().weight.numel()
    tokens, replies = prompt + G * REPLY, G * REPLY
    scores = prompt**2 / 2 + G * (REPLY * prompt + REPLY**2 / 2)
    c = core.config
    attention = 12 * scores * c.hidden_size * c.num_hidden_layers
    return groups * float(6 * (layers * tokens + head * replies) + attention) / 1e12


def grpo_trainer(model: str, **settings: Any) -> Any:
    """TRL's trainer on the same weights; `settings` go over the shared ones."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = resolve(model)
    defaults: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "loss_type": "bnpo",
        "beta": 0.0,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "use_cpu": SETTINGS["device"] == "cpu",
        "bf16": SETTINGS["dtype"] == "bf16",
        "gradient_checkpointing": False,
        "num_generations": G,
        "per_device_train_batch_size": G,
        "max_completion_length": REPLY,
        "report_to": "none",
        "save_strategy": "no",
        "disable_dropout": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    rows = settings.pop("rows", [{"prompt": "a"}] * G)
    rewards = settings.pop("rewards", lambda completions, **_: [0.0] * len(completions))
    return trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
        reward_funcs=rewards,
        args=trl.GRPOConfig(**{**defaults, **settings}),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(source),
    )


def trl_update(t: Any, items: list[RlItem], micro: int) -> Callable[[], tuple[float, float]]:
    """One update by TRL's loss on completions of equal length: (loss, gradient norm)."""
    n = len(items)
    t.current_gradient_accumulation_steps = n // micro
    t.create_optimizer()
    replies = torch.tensor([i.completion_ids for i in items])
    prompts = torch.tensor([i.prompt_ids for i in items])
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": replies,
        "completion_mask": torch.ones_like(replies),
        "advantages": torch.tensor([i.advantage for i in items], dtype=torch.float32),
        "num_items_in_batch": torch.tensor(float(replies.numel())),
    }
    inputs = {k: v.to(t.accelerator.device) for k, v in inputs.items()}

    def update() -> tuple[float, float]:
        t.model.train()
        total = 0.0
        for k in range(0, n, micro):
            part = {n: v[k : k + micro] if v.dim() else v for n, v in inputs.items()}
            with t.accelerator.autocast():
                loss = t._compute_loss(t.model, part)
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(t.model.parameters(), 1.0)
        t.optimizer.step()
        t.optimizer.zero_grad()
        return total, float(norm)

    return update


def random_groups(prompt: int, groups: int) -> list[RlItem]:
    """Groups of G completions that share nothing but their prompt, all of random tokens."""
    rng = np.random.default_rng(0)

    def draw(n: int) -> list[int]:
        return [int(x) for x in rng.integers(1000, 40000, n)]

    items = []
    for g in range(groups):
        ids = draw(prompt)
        items += [RlItem(ids, draw(REPLY), float(a), f"g{g}") for a in rng.normal(size=G)]
    return items


def policy_update(model: str, prompt: int, repeats: int, goal: float, micro: int = G, groups: int = 1) -> Row:
    """Forward, loss, backward and optimiser step on groups of given tokens.

    Args:
        micro: rows of TRL's micro-batches; all rows at once are fastest, where memory holds them.
    """
    items = random_groups(prompt, groups)
    e = engine(model)
    tokens = (prompt + G * REPLY) * groups
    config = GrpoConfig(lr=LR, kl_coef=0.0, micro_tokens=min(tokens, SETTINGS["micro_tokens"]))
    e.begin_stage(config)

    def ours() -> tuple[float, float]:
        (m,) = e.rl_round([items], config, [LR])
        return m["loss"], m["grad_norm"]

    theirs = trl_update(grpo_trainer(model), items, micro)
    tolerance = 1e-3 if SETTINGS["dtype"] == "fp32" else 5e-2

    def check(a: tuple[float, float], b: tuple[float, float]) -> None:
        close(a[0], b[0], "loss", tolerance)
        close(a[1], b[1], "gradient norm", tolerance)

    name = f"policy update, prompt {prompt:,} + {REPLY}, G {G}" + _of(groups)
    row = Row(name, "TRL GRPOTrainer", goal, checked=f"loss and gradient norm, {tolerance:g}")
    row.details = {
        "tokens ours": tokens,
        "tokens theirs": groups * G * (prompt + REPLY),
        "rows of TRL's micro-batch": micro,
        "parameters": sum(p.numel() for p in e.policy.core.parameters()),
    }
    in_turn(row, ours, theirs, repeats, check)
    tflop = update_tflop(e, prompt, groups)
    row.details["tflop"] = tflop
    row.details["tflops"] = [tflop / s for s in row.ours]
    if SETTINGS["peak_tflops"]:
        row.details["utilisation"] = [tflop / s / SETTINGS["peak_tflops"] for s in row.ours]
    return row


def _of(groups: int) -> str:
    return f", {groups} groups" if groups > 1 else ""


_JOINED = 12


def sample_prompts(data: str, tokens: int, n: int, e: LocalEngine) -> list[Any]:
    """n real prompts of about `tokens` tokens: the longest under it, each of another conversation.

    Where a data set's conversations are too short for that, consecutive ones are joined.
    """
    from dataclasses import replace

    from selfemo.method.prompts import conversation_prompts
    from selfemo.runs.inputs import load_conversations

    settings = [f'data.sources=["{data}"]', f"prompt.max_tokens={tokens}"]
    config = load([], settings)
    best: dict[str, Any] = {}

    def fits(prompts: list[Any]) -> list[Any]:
        return fit_all(prompts, e.sampler.encode, config.prompt.max_tokens, config.prompt.reasoning)[0]

    conversations = load_conversations(config.data)
    for c in conversations:
        for f in fits(conversation_prompts(c)):
            if len(f.ids) > len(best[c.id].ids if c.id in best else ()):
                best[c.id] = f
    found = sorted(best.values(), key=lambda f: -len(f.ids))[:n]
    for k in range(len(found)):
        if len(found[k].ids) >= 0.9 * tokens:
            continue
        joined = conversations[k * _JOINED : (k + 1) * _JOINED]
        whole = replace(
            joined[0],
            id=f"joined-{k}",
            turns=tuple(t for c in joined for t in c.turns),
            personas={name: p for c in joined for name, p in c.personas.items()},
        )
        # Its oldest turns are dropped until it fits.
        (found[k],) = fits(conversation_prompts(whole)[-1:])
    return found


def play(e: LocalEngine, fitted: list[Any], config: Config, place: Place) -> list[Turn]:
    """One turn of self-play for each prompt: sampled, scored with lambda 0, the best chosen and gated."""

    def sample(prompts: Any, n: int, seeds: Any, settings: Any) -> Any:
        asked = zip(prompts, seeds, strict=True)
        return e.sampler.generate([Request(f.ids, n, seed) for f, seed in asked], settings)

    sampled = sample_groups(sample, fitted, config, place)
    groups = [
        score_group(f.prompt, s, config.reward, config.grpo, 0.0)
        for f, s in zip(fitted, sampled, strict=True)
    ]
    return take_turns(sample, fitted, groups, config, place, 0.0, encode=e.sampler.encode_text)


def alternate(row: Row, ours: Callable[[int], None], prompts: tuple[int, int] = (1, 1)) -> Any:
    """A callback of TRL's trainer that runs `ours(k)` after its step k and times both; step 0 is a warm-up.

    Args:
        prompts: of one step of ours and of theirs; seconds are divided by them.
    """
    import time

    from transformers import TrainerCallback

    class Alternate(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, *more: Any, **kwargs: Any) -> None:
            spent, k = time.perf_counter() - self.start, state.global_step - 1
            start = time.perf_counter()
            ours(k)
            if k:
                row.theirs.append(spent / prompts[1])
                row.ours.append((time.perf_counter() - start) / prompts[0])

    return Alternate()


def rl_step(model: str, data: str, repeats: int, micro: int = G, groups: int = 1, prompt: int = 400) -> Row:
    """Rollouts of some prompts, rewards, advantages, update: TRL's own loop against ours.

    Alternating single steps: TRL's trainer runs, and after each of its steps ours runs one.
    """
    from selfemo.method.parsing import parse
    from selfemo.method.rewards import weighted_iou
    from selfemo.method.types import Completion

    e = engine(model)
    fitted = sample_prompts(data, prompt, (repeats + 1) * groups, e)
    config: Config = load(
        [],
        [
            f"sampling.max_new_tokens={REPLY}",
            f"sampling.group_size={G}",
            "grpo.kl_coef=0",
            f"sampling.token_budget={max(65536, groups * (prompt + G * REPLY))}",
            f"grpo.micro_tokens={min((prompt + G * REPLY) * groups, SETTINGS['micro_tokens'])}",
        ],
    )
    e.begin_stage(config.grpo)
    name = f"one RL step, prompt about {prompt} + at most {REPLY}, G {G}" + _of(groups)
    row = Row(name, "TRL GRPOTrainer", 3.5)
    texts = [e.policy.tokenizer.decode(f.ids) for f in fitted]
    by_text = {t: f.prompt for t, f in zip(texts, fitted, strict=True)}
    tokens: dict[str, list[int]] = {"ours": [], "theirs": []}

    def reward(prompts: list[str], completions: list[str], completion_ids: Any, **_: Any) -> Any:
        tokens["theirs"].append(sum(map(len, completion_ids)))
        scores = []
        for p, c in zip(prompts, completions, strict=True):
            target = by_text[p].target
            read = parse(c, by_text[p].label_set)
            scores.append(weighted_iou(read.emotion, target) if isinstance(read, Completion) else 0)
        return scores

    def ours(k: int) -> None:
        part = fitted[k * groups : (k + 1) * groups]
        turns = play(e, part, config, Place("bench", k))
        # An advantage of zero would spare us the update.
        items = [
            RlItem(f.ids, r.raw.token_ids, (-1.0) ** j, f.prompt.id)
            for f, turn in zip(part, turns, strict=True)
            for j, r in enumerate(turn.group.rollouts)
        ]
        tokens["ours"].append(sum(len(i.completion_ids) for i in items))
        e.rl_round([items], config.grpo, [LR])

    t = grpo_trainer(
        model,
        rows=[{"prompt": x} for x in texts],
        rewards=reward,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=groups * G // micro,
        max_steps=repeats + 1,
        shuffle_dataset=False,
    )
    t.add_callback(alternate(row, ours))
    t.train()
    row.checked = "same prompts; completions are sampled anew, so token counts are given"
    row.details = {"completion tokens": tokens, "prompt tokens": [len(f.ids) for f in fitted]}
    return row


def memory(model: str, side: str, groups: int = 1, micro: int = G, prompt: int = 400) -> Row:
    """Peak memory of sampling and two updates in a process of its own: ours or theirs.

    Of a GPU what its allocator gave out at most, else the resident memory that came on top.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    items = random_groups(prompt, groups)
    prompts = [i.prompt_ids for i in items]
    if side == "ours":
        e = engine(model)
        micro_tokens = min((prompt + G * REPLY) * groups, SETTINGS["micro_tokens"])
        config = GrpoConfig(lr=LR, kl_coef=0.0, micro_tokens=micro_tokens)
        e.sampler.generate(
            [Request(p, G, 0) for p in prompts[::G]],
            SamplingSettings(max_new_tokens=REPLY, token_budget=65536),
        )
        e.begin_stage(config)
        for _ in range(2):
            e.rl_round([items], config, [LR])
    else:
        t = grpo_trainer(model)
        t._generate_single_turn([list(p) for p in prompts], None, {}, G)
        update = trl_update(t, items, micro)
        for _ in range(2):
            update()
    if SETTINGS["device"] == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return Row(side, "", None, "GiB", [peak])


def sft_step(model: str, data: str, repeats: int, batch: int = 8) -> Row:
    """One optimiser step on gold samples of mixed length, neighbours of a conversation together."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from selfemo.method.prompts import format_completion
    from selfemo.runs.inputs import run_inputs
    from selfemo.stages.coldstart import gold_samples
    from selfemo.training.protocol import epoch_batches

    e = engine(model)
    config = load([], [f'data.sources=["{data}"]', "prompt.max_tokens=1024"])
    samples = gold_samples(run_inputs(config)[1], 400, 0)
    prompts = [p for p, _ in samples]
    fits, _ = fit_all(prompts, e.sampler.encode, config.prompt.max_tokens, config.prompt.reasoning)
    fitted = {f.prompt.id: f for f in fits}
    items = [
        e.sft_item(fitted[p.id].ids, format_completion(c), p.conversation_id, 1.0)
        for p, c in samples
        if p.id in fitted
    ]
    sft = SftConfig(lr=LR, batch_size=batch, micro_tokens=min(batch * 256, SETTINGS["micro_tokens"]))
    batches = epoch_batches([i.tree for i in items], batch, sft.run_length, 0, 0)[: repeats + 1]
    e.begin_stage(sft)
    source = resolve(model)
    rows = [
        {
            "input_ids": [*i.prompt_ids, *i.completion_ids],
            "labels": [-100] * len(i.prompt_ids) + list(i.completion_ids),
        }
        for b in batches
        for i in (items[k] for k in b)
    ]
    t = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
        args=trl.SFTConfig(
            output_dir=str(Path(tempfile.mkdtemp())),
            per_device_train_batch_size=batch,
            learning_rate=LR,
            optim="adamw_torch_fused",
            use_cpu=SETTINGS["device"] == "cpu",
            bf16=SETTINGS["dtype"] == "bf16",
            gradient_checkpointing=False,
            max_length=None,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(source),
    )
    t.create_optimizer()
    t.current_gradient_accumulation_steps = 1
    collated = [t.data_collator(rows[k : k + batch]) for k in range(0, len(rows), batch)]
    ours_at, theirs_at = iter(range(len(batches))), iter(range(len(batches)))

    def ours() -> float:
        chosen = [items[k] for k in batches[next(ours_at)]]
        return e.sft_step(chosen, sft, LR)["loss"]

    def theirs() -> float:
        t.model.train()
        inputs = t._prepare_inputs(collated[next(theirs_at)])
        loss = t.compute_loss(t.model, dict(inputs))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(t.model.parameters(), 1.0)
        t.optimizer.step()
        t.optimizer.zero_grad()
        return float(loss)

    name = f"SFT step, {batch} samples of mixed length"
    row = Row(name, "TRL SFTTrainer", 1.5, checked="loss, 1e-3")
    row.details = {
        "tokens of a batch": [[len(r["input_ids"]) for r in rows][:batch]],
        "data": data.split(":")[0],
    }
    return in_turn(row, ours, theirs, repeats, lambda a, b: close(a, b, "loss"))
