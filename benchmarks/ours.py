"""Our side of the rows: one call of each kind of work, on given inputs and under given settings.

A row of `make bench` sets it against a peer, experiments/gpu/engine.py against itself under other settings.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from benchmarks.harness import Meter, counted
from selfemo.config import Config, SftConfig, load
from selfemo.evaluation.predictions import Prediction, gold_prompts, predict
from selfemo.method.prompts import Fitted, conversation_prompts, format_completion
from selfemo.method.types import Place, Prompt, RawCompletion
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.policy import head_size
from selfemo.runs.inputs import RunInputs, run_inputs
from selfemo.seeds import rng, shuffled_runs
from selfemo.stages.coldstart import gold_samples
from selfemo.stages.completions import fit_all, sample_groups
from selfemo.stages.flywheel import original_prompts
from selfemo.stages.rl import rl_items
from selfemo.stages.selfplay import Turn, score_group, take_turns
from selfemo.training import engine as engine_module
from selfemo.training.engine import LocalEngine, SftItem
from selfemo.training.protocol import RlItem, epoch_batches

G, REPLY, LR = 8, 96, 1e-6
LONGEST = 128
"""Most tokens of a reply of mixed length."""
_PROMPT = 1024
"""Most tokens of a prompt of a data set's own length."""
LINES = 48
"""Most tokens of a completion of which the E line is sampled alone."""

SETTINGS: dict[str, Any] = {
    "device": "cpu", "dtype": "fp32", "peak_tflops": 0.0, "micro_tokens": 1 << 30, "overrides": (),
}  # fmt: skip
"""Set by who runs the rows: peak_tflops is the device's dense peak in that precision (for utilisation),
micro_tokens bounds our micro-batches, and overrides (section.key=value) go over all that a row sets."""


@dataclass
class Done:
    """What one call did.

    Attributes:
        tokens: that it computed, or sampled.
        measures: numbers that two calls on the same inputs agree on but for rounding.
        lines: what it wrote or predicted, by prompt.
        completions: what it sampled.
        parts: seconds of its parts.
    """

    tokens: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    completions: list[RawCompletion] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)


Call = Callable[[int], Done]
"""Does the work on the inputs of that number; what was made before the call is no part of it."""


class Side:
    """Our engine on a model, with the GPU memory that it takes.

    Args:
        overrides: section.key=value, over SETTINGS and over what the work itself sets.

    Raises:
        ConfigError: the package does not know one of them.
    """

    def __init__(self, model: str, *overrides: str):
        self._own = [f"model.id={model}", f"model.device={SETTINGS['device']}",
                     f"model.dtype={SETTINGS['dtype']}"]  # fmt: skip
        self._over = [*SETTINGS["overrides"], *overrides]
        self.memory = Meter()
        self.engine = self.memory.run(lambda: LocalEngine(self.settings().model))

    def settings(self, *of_work: str) -> Config:
        return load([], [*self._own, *of_work, *self._over])


def engine(model: str) -> LocalEngine:
    return Side(model).engine


def micro_tokens(most: int) -> int:
    return min(most, int(SETTINGS["micro_tokens"]))


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
    width = c.num_attention_heads * head_size(c)
    attention = 12 * scores * width * c.num_hidden_layers
    return groups * float(6 * (layers * tokens + head * replies) + attention) / 1e12


def random_groups(prompt: int, groups: int, vocabulary: int = 40000) -> list[RlItem]:
    """Groups of G completions that share nothing but their prompt, all of random tokens."""
    drawn = np.random.default_rng(0)
    high = min(40000, vocabulary)

    def draw(n: int) -> list[int]:
        return [int(x) for x in drawn.integers(high // 40, high, n)]

    items = []
    for g in range(groups):
        ids = draw(prompt)
        items += [RlItem(ids, draw(REPLY), float(a), f"g{g}") for a in drawn.normal(size=G)]
    return items


def vocabulary(e: LocalEngine) -> int:
    return int(e.policy.core.get_input_embeddings().weight.shape[0])


def update(side: Side, items: Sequence[RlItem], rate: float = LR) -> Call:
    """Forward, loss, backward and optimiser step on given groups; a rate of 0 leaves the weights."""
    tokens = sum(len(i.prompt_ids) + len(i.completion_ids) for i in items)
    config = side.settings(
        "grpo.kl_coef=0", f"grpo.lr={LR}", f"grpo.micro_tokens={micro_tokens(tokens)}"
    ).grpo
    side.memory.run(lambda: side.engine.begin_stage(config))

    def call(k: int) -> Done:
        (m,) = side.engine.rl_round([items], config, [rate])
        return Done(int(m["packed_tokens"]), {"loss": m["loss"], "gradient norm": m["grad_norm"]})

    return call


def sft(side: Side, batches: Sequence[Sequence[SftItem]], rate: float = LR) -> Call:
    """One optimiser step on a batch of samples."""
    most = micro_tokens(len(batches[0]) * 256)
    config = side.settings(f"sft.lr={LR}", f"sft.micro_tokens={most}").sft
    side.memory.run(lambda: side.engine.begin_stage(config))

    def call(k: int) -> Done:
        m = side.engine.sft_step(batches[k % len(batches)], config, rate)
        return Done(int(m["packed_tokens"]), {"loss": m["loss"], "gradient norm": m["grad_norm"]})

    return call


def replies(side: Side, batches: Sequence[Sequence[Fitted]]) -> Call:
    """Groups of G sampled replies of mixed length."""
    longest = max(len(f.ids) for f in batches[0])
    budget = max(65536, len(batches[0]) * (longest + G * LONGEST))
    s = side.settings(f"sampling.max_new_tokens={LONGEST}", f"sampling.token_budget={budget}").sampling
    settings = SamplingSettings(s.max_new_tokens, s.temperature, s.top_p, token_budget=s.token_budget)

    def call(k: int) -> Done:
        requests = [Request(f.ids, G, k * 100 + j) for j, f in enumerate(batches[k % len(batches)])]
        done = [c for group in side.engine.sampler.generate(requests, settings) for c in group]
        return Done(sum(len(c.token_ids) for c in done), completions=done)

    return call


def greedy(side: Side, parts: Sequence[Sequence[Prompt]], batch: int = 16) -> Call:
    """Greedy emotion lines of held-out prompts."""
    config = side.settings(
        f"prompt.max_tokens={_PROMPT}", "evaluation.span=emotion", "evaluation.max_new_tokens=32",
        f"evaluation.token_budget={1024 * batch}",
    )  # fmt: skip

    def call(k: int) -> Done:
        found = predict(side.engine.sampler, parts[k % len(parts)], config.evaluation, config.prompt)
        return Done(lines=[p.text.split("\n")[0] for p in found])

    return call


def labels(side: Side, prompts: Sequence[Prompt]) -> Call:
    """The probability of each label for held-out prompts, without a completion."""
    config = side.settings(f"prompt.max_tokens={_PROMPT}", "evaluation.span=probabilities")

    def call(k: int) -> Done:
        found = predict(side.engine.sampler, prompts, config.evaluation, config.prompt)
        return Done(measures={"NLL of gold": _nll(found)}, lines=[p.text for p in found])

    return call


def _nll(found: Sequence[Prediction]) -> float:
    """Mean NLL of the gold labels, nats."""
    known = [(p.prompt.target, p.predicted) for p in found if p.prompt.target and p.predicted]
    losses = [-sum(w * np.log(max(told.get(e, 0.0), 1e-9)) for e, w in gold.items()) for gold, told in known]
    return float(np.mean(losses))


def gold_round(
    side: Side, rounds: Sequence[Sequence[Fitted]], rate: float = LR, *, made_up: bool = False
) -> Call:
    """A two-stage round of gold prompts: G E lines of each, their rewards, and one update on them.

    Parts: sampling, rewards, packing on the host (trees, masks and plans of the update's rows), and the rest
    of the update.

    Args:
        made_up: advantages of 1 and -1 in turn: nothing that random weights write has a reward, and groups
            without one are left out of the update.
    """
    config = side.settings(
        f"sampling.group_size={G}", f"sampling.max_new_tokens={LINES}", "grpo.credit=causal",
        "grpo.normalise=mean", "grpo.kl_coef=0", f"grpo.micro_tokens={micro_tokens(8192)}",
    )  # fmt: skip
    e = side.engine
    side.memory.run(lambda: e.begin_stage(config.grpo))

    def sample(asked: Any, n: int, seeds: Any, settings: Any) -> Any:
        pairs = zip(asked, seeds, strict=True)
        requests = [Request(f.ids, n, s, share=f.prompt.conversation_id) for f, s in pairs]
        return e.sampler.generate(requests, settings)

    def call(k: int) -> Done:
        at = [time.perf_counter()]
        prompts = rounds[k % len(rounds)]
        sampled = sample_groups(sample, prompts, config, Place("rate", k))
        at.append(time.perf_counter())
        items = []
        for f, s in zip(prompts, sampled, strict=True):
            group = score_group(f.prompt, s, config.reward, config.grpo, 0.0)
            items += rl_items(f, group, config.grpo, e.policy.plain_ids)
        if made_up:
            items = [replace(i, advantage=(-1.0) ** j) for j, i in enumerate(items)]
        at.append(time.perf_counter())
        names = [(engine_module, n) for n in ("group_by_key", "pack", "bins", "micro_batches")]
        with counted(*names, (e.policy, "rows")) as packing:
            (m,) = e.rl_round([items], config.grpo, [rate])
        at.append(time.perf_counter())
        sampling, rewards, updating = np.diff(at).tolist()
        parts = {"sampling": sampling, "rewards": rewards, "packing": packing(),
                 "update": updating - packing()}  # fmt: skip
        completions = [c for group in sampled for c in group]
        return Done(int(m["packed_tokens"]), completions=completions, parts=parts)

    return call


def rl_step(side: Side, steps: Sequence[Sequence[Fitted]], prompt: int, rate: float = LR) -> Call:
    """Whole completions of some prompts, rewards, advantages and an update; `tokens` are the sampled ones."""
    groups = len(steps[0])
    config = side.settings(
        f"sampling.max_new_tokens={REPLY}", f"sampling.group_size={G}", "grpo.kl_coef=0",
        f"sampling.token_budget={max(65536, groups * (prompt + G * REPLY))}",
        f"grpo.micro_tokens={micro_tokens((prompt + G * REPLY) * groups)}",
    )  # fmt: skip
    side.memory.run(lambda: side.engine.begin_stage(config.grpo))

    def call(k: int) -> Done:
        part = steps[k % len(steps)]
        turns = play(side.engine, part, config, Place("bench", k))
        # An advantage of zero would spare us the update.
        items = [
            RlItem(f.ids, r.raw.token_ids, (-1.0) ** j, f.prompt.id)
            for f, turn in zip(part, turns, strict=True)
            for j, r in enumerate(turn.group.rollouts)
        ]
        side.engine.rl_round([items], config.grpo, [rate])
        completions = [r.raw for turn in turns for r in turn.group.rollouts]
        return Done(sum(len(c.token_ids) for c in completions), completions=completions)

    return call


def play(e: LocalEngine, fitted: Sequence[Fitted], config: Config, place: Place) -> list[Turn]:
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


def apart(a: Side, b: Side, items: Sequence[RlItem] | Sequence[SftItem]) -> dict[str, float]:
    """How far two sides with equal weights are apart on given completions.

    The loss of an update does not tell: where sampler and trainer are one policy it is the mean advantage,
    whatever the model computes.

    Returns:
        "log-probability": mean |difference| of their tokens, nats; "gradient": the distance of the gradients,
        relative to their norm.
    """
    scores, gradients = [], []
    for side in (a, b):
        e, config = side.engine, side.settings("grpo.kl_coef=0").grpo
        micro = config.micro_tokens
        scores.append(torch.cat(e.logprobs(e.policy, items, micro)).double().cpu())
        if isinstance(items[0], SftItem):
            e.sft_backward(cast(Sequence[SftItem], items), micro)
        else:
            e.rl_backward(cast(Sequence[RlItem], items), config)
        gradients.append([p.grad for p in e.policy.model.parameters() if p.grad is not None])
    pairs = list(zip(*gradients, strict=True))
    far, norm = (
        float(torch.stack([x.double().norm() for x in xs]).norm())
        for xs in ([x - y for x, y in pairs], [y for _, y in pairs])
    )
    for side in (a, b):
        side.engine.policy.model.zero_grad(set_to_none=True)
    return {"log-probability": float((scores[0] - scores[1]).abs().mean()), "gradient": far / norm}


def mismatch(side: Side, prompts: Sequence[Fitted]) -> dict[str, float]:
    """How far sampler and trainer are apart on sampled completions, by the measures of a mini-batch
    (`rl_backward`), and the number of tokens."""
    done = replies(side, [prompts])(0).completions
    items = [
        RlItem(f.ids, c.token_ids, 1.0, f.prompt.id, sampled=c.logprobs)
        for k, f in enumerate(prompts)
        for c in done[k * G : (k + 1) * G]
        if c.token_ids
    ]
    config = side.settings("grpo.kl_coef=0", f"grpo.micro_tokens={micro_tokens(8192)}").grpo
    measures = side.engine.rl_backward(items, config)
    side.engine.policy.model.zero_grad(set_to_none=True)
    return {k: v for k, v in measures.items() if k.startswith("mismatch") or k == "tokens"}


_JOINED = 12


@functools.cache
def _inputs_of(data: str) -> RunInputs:
    """The conversations of a data source, read once."""
    return run_inputs(load([], [f'data.sources=["{data}"]']))


def sample_prompts(data: str, tokens: int, n: int, e: LocalEngine) -> list[Fitted]:
    """n real prompts of about `tokens` tokens: the longest under it, each of another conversation.

    Where a data set's conversations are too short for that, consecutive ones are joined; where it has fewer
    than n, they are taken again.
    """
    best: dict[str, Fitted] = {}

    def fits(prompts: list[Prompt]) -> list[Fitted]:
        return fit_all(prompts, e.sampler.encode, tokens, "none")[0]

    conversations = _inputs_of(data).conversations
    for c in conversations:
        # The last are the longest: their oldest turns are dropped until they fit.
        for f in fits(conversation_prompts(c)[-2:]):
            if len(f.ids) > len(best[c.id].ids if c.id in best else ()):
                best[c.id] = f
    found = sorted(best.values(), key=lambda f: -len(f.ids))[:n]
    for k in range(len(found)):
        if len(found[k].ids) >= 0.9 * tokens:
            continue
        joined = [conversations[(k * _JOINED + j) % len(conversations)] for j in range(_JOINED)]
        whole = replace(
            joined[0],
            id=f"joined-{k}",
            turns=tuple(t for c in joined for t in c.turns),
            personas={name: p for c in joined for name, p in c.personas.items()},
        )
        # Its oldest turns are dropped until it fits.
        (found[k],) = fits(conversation_prompts(whole)[-1:])
    return [found[k % len(found)] for k in range(n)]


def in_batches(prompts: Sequence[Fitted], size: int) -> list[Sequence[Fitted]]:
    return [prompts[k : k + size] for k in range(0, len(prompts), size)]


def gold_rounds(data: str, n: int, size: int, e: LocalEngine, window: int = 24) -> list[list[Fitted]]:
    """n rounds of gold prompts, in windows of turns of one conversation."""
    prompts = original_prompts(_inputs_of(data).training, 0, 1.0)
    order = shuffled_runs([p.conversation_id for p in prompts], window, rng(0, "rl rate"))
    chosen = [prompts[i] for i in order[: n * size]]
    fitted, _ = fit_all(chosen, e.sampler.encode, _PROMPT, "none")
    return [fitted[k : k + size] for k in range(0, len(fitted), size)][:n]


def held_out_prompts(data: str, n: int) -> list[Prompt]:
    """The first n gold prompts of the dev split."""
    return gold_prompts([c for c in _inputs_of(data).conversations if c.split == "dev"])[:n]


def sft_batches(data: str, n: int, batch: int, e: LocalEngine) -> list[list[SftItem]]:
    """n batches of gold samples of mixed length, neighbours of a conversation together."""
    samples = gold_samples(_inputs_of(data).training, max(400, n * batch), 0)
    fits, _ = fit_all([p for p, _ in samples], e.sampler.encode, _PROMPT, "none")
    fitted = {f.prompt.id: f for f in fits}
    items = [
        e.sft_item(fitted[p.id].ids, format_completion(c), p.conversation_id, 1.0)
        for p, c in samples
        if p.id in fitted
    ]
    drawn = epoch_batches([i.tree for i in items], batch, SftConfig().run_length, 0, 0)[:n]
    return [[items[i] for i in b] for b in drawn]
