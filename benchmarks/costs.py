"""The cost model of `selfemo.runs.costs` against measured points on one CPU core.

    python -m benchmarks.costs               measure and compare
    python -m benchmarks.costs --predict     compare again with what is in costs.json
    python -m benchmarks.costs --growth      the table of a billion turns

Each point runs in a process of its own, one thread, timed in CPU seconds, so that other work on the
machine counts for little. One constant is fitted, the FLOP/s, on the update of the first point; the
bandwidth is that of a plain product with few rows. All else is predicted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfemo.config import Config
    from selfemo.runs.costs import Machine, ModelShape, Part

HERE = Path(__file__).parent
MIB = 2**20

# model, prompt tokens, completion tokens, G, groups of one update
POINTS: dict[str, dict[str, Any]] = {
    "135M, P 300, R 48, G 4": {"model": "builtin", "p": 300, "r": 48, "g": 4, "n": 1},
    "135M, P 900, R 32, G 8": {"model": "builtin", "p": 900, "r": 32, "g": 8, "n": 1},
    "135M, P 200, R 96, G 8": {"model": "builtin", "p": 200, "r": 96, "g": 8, "n": 1},
    "135M, P 300, R 48, G 4, KL": {
        "model": "builtin", "p": 300, "r": 48, "g": 4, "n": 1, "kl": 0.001,
    },
    "41M, P 300, R 48, G 8, two prompts": {"model": "small", "p": 300, "r": 48, "g": 8, "n": 2},
    "41M in bf16, P 128, R 24, G 4": {
        "model": "small", "p": 128, "r": 24, "g": 4, "n": 1, "dtype": "bf16",
    },
}  # fmt: skip
"""bf16 is emulated on a CPU without it: that point is for memory alone."""


def peak_mib() -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def resident_mib() -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def small_model(folder: Path) -> str:
    """A randomly initialised Llama of 41 million parameters with the built-in tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from selfemo.method.types import BUILTIN_MODEL
    from selfemo.models.references import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve(BUILTIN_MODEL))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=1280, vocab_size=49152, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _dimensions(config: Any) -> dict[str, Any]:
    """A model's configuration without where it lay."""
    return {k: v for k, v in config.to_dict().items() if not k.endswith("name_or_path")}


def cpu_seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def measure(point: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch

    from selfemo.config import GrpoConfig, ModelConfig
    from selfemo.method.types import BUILTIN_MODEL
    from selfemo.models.generation.requests import Request, SamplingSettings
    from selfemo.training.engine import LocalEngine
    from selfemo.training.protocol import RlItem

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        small = point["model"] == "small"
        model = small_model(Path(folder)) if small else BUILTIN_MODEL
        dtype = point.get("dtype", "fp32")
        e = LocalEngine(ModelConfig(id=model, device="cpu", dtype=dtype, threads=1))
    runtime = resident_mib() - 4 * sum(x.numel() for x in e.policy.core.parameters()) / MIB
    rng = np.random.default_rng(0)
    p, r, g, n = (point[k] for k in "prgn")

    def draw(k: int) -> list[int]:
        return [int(x) for x in rng.integers(1000, 40000, k)]

    prompts = [draw(p) for _ in range(n)]
    requests = [Request(ids, g, i) for i, ids in enumerate(prompts)]

    def sample(length: int) -> int:
        settings = SamplingSettings(length, 1.0, 1.0, token_budget=65536)
        made = e.sampler.generate(requests, settings)
        return sum(len(s.token_ids) for group in made for s in group)

    sample(2)
    reset_peak()
    one = cpu_seconds(lambda: sample(1))
    tokens: list[int] = []
    whole = cpu_seconds(lambda: tokens.append(sample(r)))
    sampling = peak_mib()
    kl = float(point.get("kl", 0.0))
    config = GrpoConfig(lr=1e-6, kl_coef=kl, micro_tokens=p + g * r)
    items = [
        RlItem(ids, draw(r), float(a), f"{i}") for i, ids in enumerate(prompts) for a in rng.normal(size=g)
    ]
    e.begin_stage(config)
    if kl:
        e.set_reference()
    packed = e.rl_round([items], config, [1e-6])[0]["packed_tokens"]
    reset_peak()
    update = cpu_seconds(lambda: e.rl_round([items], config, [1e-6]))
    core = e.policy.core
    return {
        "parameters": sum(x.numel() for x in core.parameters()), "config": _dimensions(core.config),
        "runtime_mib": runtime, "generated": tokens[-1], "packed": packed,
        "prefill_s": one, "decode_s": whole - one, "update_s": update,
        "sampling_mib": sampling, "training_mib": peak_mib(),
    }  # fmt: skip


def machine_rates() -> dict[str, float]:
    """Bytes of weights per CPU second that a product with 4 rows reads."""
    import torch

    torch.set_num_threads(1)
    weight, rows = torch.randn(49152, 576), torch.randn(4, 576)
    product = cpu_seconds(lambda: torch.nn.functional.linear(rows, weight), 7)
    return {"product bytes/s": weight.numel() * 4 / product}


def real_tokens() -> dict[str, Any]:
    """Token counts of a real round on the sample set against the formulas from its mean lengths."""
    import torch

    from benchmarks.ours import play
    from selfemo.method.prompts import conversation_prompts
    from selfemo.method.types import Place
    from selfemo.runs.costs import MACHINES, find_shape
    from selfemo.runs.inputs import load_conversations
    from selfemo.stages.completions import fit_all
    from selfemo.training.engine import LocalEngine
    from selfemo.training.protocol import RlItem

    torch.set_num_threads(1)
    config = real_config()
    engine = LocalEngine(config.model, temperature=config.sampling.temperature)
    train = [c for c in load_conversations(config.data) if c.split == "train"]
    prompts = [p for c in train[:20] for p in conversation_prompts(c)][::20][:8]
    fitted, _ = fit_all(prompts, engine.sampler.encode, config.prompt.max_tokens, config.prompt.reasoning)
    start = time.process_time()
    turns = play(engine, fitted, config, Place("costs", 0))
    sampling = time.process_time() - start
    # An untouched model writes nothing that parses; made-up advantages let every group into the update.
    items = [
        RlItem(f.ids, r.raw.token_ids, (-1.0) ** k, f.prompt.id)
        for f, t in zip(fitted, turns, strict=True)
        for k, r in enumerate(t.group.rollouts)
    ]
    engine.begin_stage(config.grpo)
    start = time.process_time()
    steps = engine.rl_round([items], config.grpo, [config.grpo.lr])
    update = time.process_time() - start
    lengths = [len(f.ids) for f in fitted]
    said = [len(r.raw.token_ids) for t in turns for r in t.group.rollouts]
    mean_p, mean_r = sum(lengths) / len(lengths), sum(said) / len(said)
    told = told_parts(find_shape(config.model.id), config, mean_p, mean_r, MACHINES["cpu-core"])
    return {
        "prompts": len(fitted), "group": config.sampling.group_size, "mean prompt": mean_p,
        "mean completion": mean_r, "generated": [sum(said), told["decode"].tokens],
        "packed": [steps[0]["packed_tokens"], told["update"].tokens],
        "sampling_s": sampling, "update_s": update,
    }  # fmt: skip


def real_config() -> Config:
    from selfemo.config import load

    return load(
        [],
        ['data.sources=["sample"]', "prompt.max_tokens=512", "sampling.temperature=0.8",
         "sampling.token_budget=8192", "grpo.kl_coef=0", "grpo.micro_tokens=768", "flywheel.prompts=8",
         "grpo.prompts_per_step=8", "grpo.mini_batch=8", "sampling.max_new_tokens=24",
         "flywheel.refit=none", "model.device=cpu", "model.dtype=fp32"],
    )  # fmt: skip


def told_parts(shape: ModelShape, config: Config, p: float, r: float, machine: Machine) -> dict[str, Part]:
    """The parts of an iteration on this machine, by name."""
    from selfemo.runs.costs import Lengths, parts

    return {part.name: part for part in parts(shape, config, Lengths(p, r), machine, "local")}


def real_store() -> dict[str, Any]:
    """Bytes of a store of real texts, and of its shards: the sample set's prompts, each with eight gold
    completions of other turns."""
    from benchmarks.harness import add_rollouts
    from selfemo.config import load
    from selfemo.method.prompts import conversation_prompts, format_completion, gold_completion, messages
    from selfemo.method.types import Place
    from selfemo.runs.inputs import load_conversations
    from selfemo.runs.shards import export
    from selfemo.runs.store import STORE_FILE, Store

    conversations = load_conversations(load([]).data)
    prompts = [p for c in conversations for p in conversation_prompts(c)]
    gold = [g for c in conversations for i in range(len(c.turns)) if (g := gold_completion(c, i))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run").mkdir()
        store = Store(folder / "run" / STORE_FILE)
        rows = []
        for i, p in enumerate(prompts):
            for k in range(8):
                g = gold[(31 * i + 7 * k) % len(gold)]
                emotion, own = (json.dumps(dict(d)) for d in (g.emotion, g.self_emotion))
                rows.append(
                    ("iteration-1-rl", i // 64, 1, p.id, k, format_completion(g), 30, None, emotion, own,
                     g.reply, 0.123456789 * k, k % 4 / 3, 0.1 * k, -1.23456 - 0.01 * i,
                     1.23456 + 0.01 * i, int(k == 0), "pass" if k == 0 else None)
                )  # fmt: skip
        with store.transaction():
            store.add_prompts(prompts, Place("iteration-1-rl"))
            add_rollouts(store, rows)
        store.close()
        size = sum(f.stat().st_size for f in (folder / "run").iterdir())
        export(folder / "run", folder / "out")
        shards = sum(f.stat().st_size for f in (folder / "out").glob("*.parquet"))
    characters = sum(len(m["content"]) for p in prompts for m in messages(p)) / len(prompts)
    said = sum(len(r[5]) for r in rows) / len(rows)
    return {
        "rollouts": len(rows), "characters of a prompt": characters,
        "characters of a completion": said, "bytes a rollout": size / len(rows),
        "bytes a rollout in shards": shards / len(rows), "share": shards / size,
    }  # fmt: skip


def predicted(point: dict[str, Any], seen: dict[str, Any], machine: Machine) -> dict[str, Any]:
    from selfemo.config import load
    from selfemo.runs.costs import Lengths, memory, shape_from

    p, r, g, n = (point[k] for k in "prgn")
    dtype, kl = point.get("dtype", "fp32"), float(point.get("kl", 0.0))
    config = load([], [
        f"sampling.group_size={g}", f"sampling.max_new_tokens={r}", f"flywheel.prompts={n}",
        f"grpo.prompts_per_step={n}", f"grpo.mini_batch={n}", f"grpo.kl_coef={kl}",
        f"grpo.micro_tokens={p + g * r}", f'model.dtype="{dtype}"', 'flywheel.refit="none"',
        f"sampling.token_budget={n * (p + g * r)}",
    ])  # fmt: skip
    shape = shape_from(seen["config"])
    assert shape.parameters == seen["parameters"]
    told = told_parts(shape, config, p, r, machine)
    need = memory(shape, config, Lengths(p, r), machine, "local")
    runtime = seen["runtime_mib"] * MIB
    sampling = {k: v for k, v in need["sampling"].items() if k not in ("optimiser", "reference", "runtime")}
    training = {k: v for k, v in need["training"].items() if k != "runtime"}
    return {
        "generated": told["decode"].tokens, "packed": told["update"].tokens,
        "prefill_s": 3600 * told["prefill"].hours, "decode_s": 3600 * told["decode"].hours,
        "update_s": 3600 * (told["update"].hours + told["log-probabilities"].hours),
        "sampling_mib": (sum(sampling.values()) + runtime) / MIB,
        "training_mib": (sum(training.values()) + runtime) / MIB,
    }  # fmt: skip


def growth() -> str:
    """The rows of docs/scaling.md: one iteration on 8 H100 in the paper's settings, P 600, R 300."""
    from selfemo.config import load
    from selfemo.runs.costs import KNOWN, MACHINES, Lengths, parts
    from selfemo.runs.doctor import disk

    machine, lines = replace(MACHINES["h100"], count=8), []
    for prompts in (23_000, 1_000_000, 100_000_000, 1_000_000_000):
        config = load([], [f"flywheel.prompts={prompts}"])
        lengths = Lengths(600, 300, refit=prompts // 2)
        rollouts = prompts * config.sampling.group_size
        cells = [f"{prompts:,}", f"{rollouts:,}", f"{rollouts * lengths.completion:.2g}"]
        for name in ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B"):
            hours = sum(p.hours for p in parts(KNOWN[name], config, lengths, machine, "verl"))
            cells.append(f"{machine.count * hours:,.3g}")
        # A store and its backup, over all iterations.
        stored = disk(KNOWN[name], config, lengths)["store"] / 2 / config.flywheel.iterations
        lines.append("| " + " | ".join([*cells, f"{stored / 1e9:,.3g} GB"]) + " |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:] == ["--growth"]:
        print(growth())
        return
    if len(sys.argv) > 1 and sys.argv[1] != "--predict":
        job = json.loads(sys.argv[1])
        rates = "rates" in job
        print(json.dumps(machine_rates() if rates else measure(job) if job else real_tokens()))
        return

    path = HERE / "costs.json"
    if sys.argv[1:] == []:

        def run(job: dict[str, Any]) -> dict[str, Any]:
            command = [sys.executable, "-m", "benchmarks.costs", json.dumps(job)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            return dict(json.loads(done.stdout.splitlines()[-1]))

        measured = {"machine": run({"rates": True}), "store": real_store(), "real round": run({})}
        for name, point in POINTS.items():
            measured[name] = run(point)
            print(name, json.dumps({k: v for k, v in measured[name].items() if k != "config"}))
            sys.stdout.flush()
        path.write_text(json.dumps({"measured": measured}, indent=1) + "\n")
    results = json.loads(path.read_text())
    results.update(compared(results["measured"]))
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def compared(measured: dict[str, Any]) -> dict[str, Any]:
    """Predictions for what was measured, with the machine's FLOP/s from the first update."""
    from selfemo.runs.costs import MACHINES, find_shape

    machine = replace(MACHINES["cpu-core"], bandwidth=measured["machine"]["product bytes/s"])
    first = next(iter(POINTS))
    told = predicted(POINTS[first], measured[first], machine)["update_s"]
    machine = replace(machine, flops=machine.flops * told / measured[first]["update_s"])
    points = {}
    for name, point in POINTS.items():
        seen, told = measured[name], predicted(point, measured[name], machine)
        points[name] = {
            key: [seen[key], told[key]]
            for key in ("packed", "prefill_s", "decode_s", "update_s", "sampling_mib", "training_mib")
            if not (point.get("dtype") and key.endswith("_s"))
        }
    real, config = measured["real round"], real_config()
    shape = find_shape(config.model.id)
    told = told_parts(shape, config, real["mean prompt"], real["mean completion"], machine)
    seconds = {name: 3600 * part.hours for name, part in told.items()}
    points["a real round, sample set, 8 prompts"] = {
        "packed": real["packed"],
        "prefill and decode": [real["sampling_s"], seconds["prefill"] + seconds["decode"]],
        "update_s": [real["update_s"], seconds["update"]],
    }
    return {"flop/s": machine.flops, "compared": points}


def table(results: dict[str, Any]) -> str:
    """Predicted / measured, for docs/scaling.md."""
    names = {
        "packed": "packed tokens", "prefill_s": "prefill, s", "decode_s": "decode, s",
        "prefill and decode": "prefill and decode, s", "update_s": "update, s",
        "sampling_mib": "peak in sampling, MiB", "training_mib": "peak in the update, MiB",
    }  # fmt: skip
    lines = ["| point | quantity | measured | predicted | ratio |", "| --- | --- | --- | --- | --- |"]
    for point, values in results["compared"].items():
        for key, (seen, told) in values.items():
            ratio = f"{told / seen:.2f}"
            lines.append(f"| {point} | {names[key]} | {seen:,.4g} | {told:,.4g} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
