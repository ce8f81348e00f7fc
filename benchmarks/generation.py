"""Rows on sampling: rollouts against TRL's transformers path, evaluation against batched `generate`."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import ours as our
from benchmarks.harness import Meter, Row, in_turn
from benchmarks.ours import LONGEST, SETTINGS, G, Side
from benchmarks.training import grpo_trainer
from selfemo.config import load


def rollouts(model: str, data: str, prompt: int, repeats: int, groups: int = 4) -> Row:
    """Groups of G sampled replies of mixed length, per generated token.

    Both sample at temperature 1 from the same weights and stop at the end token, so lengths are alike
    and not equal; the time is therefore divided by the tokens that were generated.
    """
    side, memory = Side(model), Meter()
    t = memory.run(lambda: grpo_trainer(model, max_completion_length=LONGEST))
    fitted = our.sample_prompts(data, prompt, (repeats + 1) * groups, side.engine)
    batches = our.in_batches(fitted, groups)
    replies = our.replies(side, batches)
    at = {"ours": -1, "theirs": -1}
    lengths: dict[str, list[int]] = {"ours": [], "theirs": []}

    def ours() -> None:
        at["ours"] += 1
        lengths["ours"] += [len(c.token_ids) for c in replies(at["ours"]).completions]

    def theirs() -> None:
        at["theirs"] += 1
        ids = [list(f.ids) for f in batches[at["theirs"] % len(batches)] for _ in range(G)]
        t.model.eval()
        done, _ = t._generate_single_turn(ids, None, {}, G)
        lengths["theirs"] += [len(c) for c in done]

    row = Row(
        f"rollouts, {groups} prompts of about {prompt:,}, G {G}, replies of mixed length",
        "TRL, transformers path",
        3.0,
        unit="s per 1,000 tokens",
    )
    in_turn(row, ours, theirs, repeats, memory=(side.memory, memory))
    n = G * groups
    for k in range(repeats):
        part = slice((k + 1) * n, (k + 2) * n)
        row.ours[k] *= 1000 / sum(lengths["ours"][part])
        row.theirs[k] *= 1000 / sum(lengths["theirs"][part])
    row.details = {
        "prompt tokens": [len(f.ids) for f in fitted],
        "reply tokens": {k: v[n:] for k, v in lengths.items()},
        "data": data.split(":")[0],
        "model": model.rsplit("/", 1)[-1],
    }
    return row


def evaluation(
    model: str, data: str, prompts: int, batch: int = 16, parts: int = 5, least: float | None = None
) -> Row:
    """Greedy recognition of held-out prompts; a pair is one part of them.

    The peer is the loop that one writes first: batches in order, padded on the left, `generate` with a
    stop string after the emotion line. Predicted lines are asserted to be equal.

    Args:
        least: share of equal lines that is asked for; rounding decides between labels that tie. None: 0.97,
            in bf16, where it decides between more of them, 0.8.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, StopStringCriteria

    from selfemo.models.references import resolve
    from selfemo.stages.completions import fit_all

    side, memory = Side(model), Meter()
    e = side.engine
    asked = our.held_out_prompts(data, prompts)
    size = -(-len(asked) // parts)
    source = resolve(model)
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    memory.run(lambda: plain.to(e.policy.device).eval())
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    prompt = load([], ["prompt.max_tokens=1024"]).prompt
    fits, _ = fit_all(asked, e.sampler.encode, prompt.max_tokens, prompt.reasoning)
    fitted = {f.prompt.id: f.ids for f in fits}
    slices = [asked[k : k + size] for k in range(0, len(asked), size)]
    lines = our.greedy(side, slices, batch)
    at = {"ours": -1, "theirs": 0}

    def ours() -> list[str]:
        at["ours"] += 1
        return lines(at["ours"]).lines

    @torch.no_grad()
    def theirs() -> list[str]:
        part = slices[at["theirs"]]
        at["theirs"] += 1
        lines: list[str] = []
        for k in range(0, len(part), batch):
            rows = tokenizer.pad(
                {"input_ids": [list(fitted[p.id]) for p in part[k : k + batch]]}, return_tensors="pt"
            ).to(e.policy.device)
            stop: Any = StopStringCriteria(tokenizer, ["\n"])
            with e.policy.autocast():
                out = plain.generate(**rows, max_new_tokens=32, do_sample=False, stopping_criteria=[stop])
            new = out[:, rows["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(new, skip_special_tokens=True)
            lines += [x.split("\n")[0] for x in texts]
        return lines

    agree: list[float] = []
    if least is None:
        least = 0.97 if SETTINGS["dtype"] == "fp32" else 0.8

    def check(a: list[str], b: list[str]) -> None:
        agree.append(sum(x == y for x, y in zip(a, b, strict=True)) / len(a))
        if agree[-1] < least:
            raise AssertionError(f"predicted lines agree in {agree[-1]:.1%} only")

    row = Row(f"greedy evaluation of {len(asked)} dev prompts", f"batched generate, {batch} a batch", 4.0)
    in_turn(row, ours, theirs, len(slices), check, warm=False, memory=(side.memory, memory))
    row.checked = f"predicted lines equal: {min(agree):.1%} at least (rounding breaks ties)"
    row.details = {"data": data.split(":")[0], "model": model.rsplit("/", 1)[-1]}
    return row
