"""Rows against TRL's trainers: policy update, a whole RL step (time and memory), SFT step.

Both sides: the same weights and tokens, float32, the same number of threads, no gradient checkpointing,
AdamW (fused), gradient norm clipped at 1. TRL's loop around the step (data loader, logging) is left out
of the policy update and is in the other rows.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import ours as our
from benchmarks.harness import Meter, Row, close, finished, in_turn
from benchmarks.ours import LR, REPLY, SETTINGS, Done, G, Side
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.references import resolve
from selfemo.training.protocol import RlItem


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


def sampling_trainer(
    model: str, texts: Sequence[str], reward: Any, prompts: int, micro: int, repeats: int, **more: Any
) -> Any:
    """TRL's trainer that samples: a warm-up and `repeats` steps of `prompts` of the texts, in their order."""
    return grpo_trainer(
        model,
        rows=[{"prompt": x} for x in texts],
        rewards=reward,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=prompts * G // micro,
        max_steps=repeats + 1,
        shuffle_dataset=False,
        **more,
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


def policy_update(model: str, prompt: int, repeats: int, goal: float, micro: int = G, groups: int = 1) -> Row:
    """Forward, loss, backward and optimiser step on groups of given tokens.

    Args:
        micro: rows of TRL's micro-batches; all rows at once are fastest, where memory holds them.
    """
    side, memory = Side(model), Meter()
    items = our.random_groups(prompt, groups, our.vocabulary(side.engine))
    ours = our.update(side, items)
    theirs = memory.run(lambda: trl_update(grpo_trainer(model), items, micro))
    tolerance = 1e-3 if SETTINGS["dtype"] == "fp32" else 5e-2

    def check(a: Done, b: tuple[float, float]) -> None:
        for (what, mine), other in zip(a.measures.items(), b, strict=True):
            close(mine, other, what, tolerance)

    name = f"policy update, prompt {prompt:,} + {REPLY}, G {G}" + _of(groups)
    row = Row(name, "TRL GRPOTrainer", goal, checked=f"loss and gradient norm, {tolerance:g}")
    row.details = {
        "tokens ours": (prompt + G * REPLY) * groups,
        "tokens theirs": groups * G * (prompt + REPLY),
        "rows of TRL's micro-batch": micro,
        "parameters": sum(p.numel() for p in side.engine.policy.core.parameters()),
    }
    in_turn(row, lambda: ours(0), theirs, repeats, check, memory=(side.memory, memory))
    row.details |= utilisation(our.update_tflop(side.engine, prompt, groups), row.ours)
    return row


def utilisation(tflop: float, seconds: Sequence[float]) -> dict[str, Any]:
    """What an update of so many 10^12 operations reached, and its share of the peak where that is known."""
    found: dict[str, Any] = {"tflop": tflop, "tflops": [tflop / s for s in seconds]}
    if SETTINGS["peak_tflops"]:
        found["utilisation"] = [t / SETTINGS["peak_tflops"] for t in found["tflops"]]
    return found


def _of(groups: int) -> str:
    return f", {groups} groups" if groups > 1 else ""


def alternate(
    row: Row, ours: Callable[[int], Done], memory: tuple[Meter, Meter], prompts: tuple[int, int] = (1, 1)
) -> Any:
    """A callback of TRL's trainer that runs `ours(k)` after its step k and times both; step 0 is a warm-up.

    Args:
        memory: of ours and theirs.
        prompts: of one step of ours and of theirs; seconds are divided by them.
    """
    from transformers import TrainerCallback

    mine, other = memory

    class Alternate(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            other.start()
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, *more: Any, **kwargs: Any) -> None:
            finished()
            theirs, k = (time.perf_counter() - self.start) / prompts[1], state.global_step - 1
            other.stop()
            mine.start()
            start = time.perf_counter()
            ours(k)
            finished()
            spent = (time.perf_counter() - start) / prompts[0]
            mine.stop()
            if k:
                row.ours.append(spent)
                row.theirs.append(theirs)
            else:
                row.first = [spent, theirs]
            row.peak_gib = [mine.peak_gib, other.peak_gib]

    return Alternate()


def rl_step(model: str, data: str, repeats: int, micro: int = G, groups: int = 1, prompt: int = 400) -> Row:
    """Rollouts of some prompts, rewards, advantages, update: TRL's own loop against ours.

    Alternating single steps: TRL's trainer runs, and after each of its steps ours runs one.
    """
    from selfemo.method.parsing import parse
    from selfemo.method.rewards import weighted_iou
    from selfemo.method.types import Completion

    side, memory = Side(model), Meter()
    e = side.engine
    fitted = our.sample_prompts(data, prompt, (repeats + 1) * groups, e)
    step = our.rl_step(side, our.in_batches(fitted, groups), prompt)
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

    def ours(k: int) -> Done:
        done = step(k)
        tokens["ours"].append(done.tokens)
        return done

    t = memory.run(lambda: sampling_trainer(model, texts, reward, groups, micro, repeats))
    t.add_callback(alternate(row, ours, (side.memory, memory)))
    t.train()
    row.checked = "same prompts; completions are sampled anew, so token counts are given"
    row.details = {"completion tokens": tokens, "prompt tokens": [len(f.ids) for f in fitted]}
    return row


def memory(model: str, side: str, groups: int = 1, micro: int = G, prompt: int = 400) -> Row:
    """Peak memory of sampling and two updates in a process of its own: ours or theirs.

    Of a GPU what its allocator gave out at most, else the resident memory that came on top.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    items = our.random_groups(prompt, groups)
    prompts = [i.prompt_ids for i in items]
    if side == "ours":
        mine = Side(model)
        mine.engine.sampler.generate(
            [Request(p, G, 0) for p in prompts[::G]],
            SamplingSettings(max_new_tokens=REPLY, token_budget=65536),
        )
        update = our.update(mine, items)
        for _ in range(2):
            update(0)
    else:
        t = grpo_trainer(model)
        t._generate_single_turn([list(p) for p in prompts], None, {}, G)
        theirs = trl_update(t, items, micro)
        for _ in range(2):
            theirs()
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

    side, memory = Side(model), Meter()
    batches = our.sft_batches(data, repeats + 1, batch, side.engine)
    step = our.sft(side, batches)
    source = resolve(model)
    rows = [
        {
            "input_ids": [*i.prompt_ids, *i.completion_ids],
            "labels": [-100] * len(i.prompt_ids) + list(i.completion_ids),
        }
        for b in batches
        for i in b
    ]

    def trainer() -> Any:
        return trl.SFTTrainer(
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

    t = memory.run(trainer)
    t.create_optimizer()
    t.current_gradient_accumulation_steps = 1
    collated = [t.data_collator(rows[k : k + batch]) for k in range(0, len(rows), batch)]
    ours_at, theirs_at = iter(range(len(batches))), iter(range(len(batches)))

    def theirs() -> float:
        t.model.train()
        inputs = t._prepare_inputs(collated[next(theirs_at)])
        loss = t.compute_loss(t.model, dict(inputs))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(t.model.parameters(), 1.0)
        t.optimizer.step()
        t.optimizer.zero_grad()
        return float(loss)

    def check(a: Done, b: float) -> None:
        close(a.measures["loss"], b, "loss", tolerance)

    # The order of sums differs, and bf16 keeps 8 bits.
    tolerance = 1e-3 if SETTINGS["dtype"] == "fp32" else 5e-3
    name = f"SFT step, {batch} samples of mixed length"
    row = Row(name, "TRL SFTTrainer", 1.5, checked=f"loss, {tolerance:g}")
    row.details = {
        "tokens of a batch": [[len(r["input_ids"]) for r in rows][:batch]],
        "data": data.split(":")[0],
    }
    both = (side.memory, memory)
    return in_turn(row, lambda: step(next(ours_at)), theirs, repeats, check, memory=both)
