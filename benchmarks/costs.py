"""The cost model of `selfemo.runs.costs` against measured points on one CPU core.

    python -m benchmarks.costs               measure and compare
    python -m benchmarks.costs --predict     compare again with what is in costs.json
    python -m benchmarks.costs --growth      the table of a billion turns

Each point runs in a process of its own, one thread, timed in CPU seconds, so that other work on the
machine counts for little. One constant is fitted, the FLOP/s, on the update of the first point; the
bandwidths are those of a plain copy and of a plain product with few rows. All else is predicted.
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
from typing import Any

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
    """Bytes per CPU second that a copy reads and writes, and of weights that a product with 4 rows reads."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    a = np.ones(64 * MIB, dtype=np.float64)
    b = np.empty_like(a)
    np.copyto(b, a)
    copy = 2 * a.nbytes / cpu_seconds(lambda: np.copyto(b, a), 5)
    weight, rows = torch.randn(49152, 576), torch.randn(4, 576)
    product = cpu_seconds(lambda: torch.nn.functional.linear(rows, weight), 7)
    return {"copy bytes/s": copy, "product bytes/s": weight.numel() * 4 / product}


def real_tokens() -> dict[str, Any]:
    """Token counts of a real round on the sample set against the formulas from its mean lengths."""
    import torch

    from selfemo.config import load
    from selfemo.method.prompts import conversation_prompts
    from selfemo.runs.costs import workload
    from selfemo.runs.inputs import load_conversations
    from selfemo.stages.flywheel import RlPlan, _update
    from selfemo.stages.selfplay import fit_all, play_turn
    from selfemo.training.engine import LocalEngine

    torch.set_num_threads(1)
    config = load(
        ["quickstart"],
        ["flywheel.prompts=8", "sampling.max_new_tokens=24", "flywheel.refit=none",
         "model.device=cpu", "model.dtype=fp32"],
    )  # fmt: skip
    engine = LocalEngine(config.model, temperature=config.sampling.temperature)
    train = [c for c in load_conversations(config.data) if c.split == "train"]
    prompts = [p for c in train[:20] for p in conversation_prompts(c, future=True)][::20][:8]
    fitted = fit_all(prompts, engine, config, {})
    start = time.process_time()
    turns = play_turn(engine, fitted, prompts, config, lam=0.0, key=("costs", 0))
    sampling = time.process_time() - start
    # An untouched model writes nothing that parses; random advantages let every group into the update.
    scored = [
        replace(
            t,
            group=replace(
                t.group,
                rollouts=tuple(replace(r, advantage=(-1.0) ** k) for k, r in enumerate(t.group.rollouts)),
            ),
        )
        for t in turns
    ]
    engine.begin_stage(config.grpo)
    start = time.process_time()
    measures = _update(engine, fitted, scored, config, RlPlan.of(config), 0, 1.0)
    update = time.process_time() - start
    lengths = [len(f.ids) for f in fitted]
    said = [len(r.sample.token_ids) for t in turns for r in t.group.rollouts]
    mean_p, mean_r = sum(lengths) / len(lengths), sum(said) / len(said)
    work = workload(config, mean_p, mean_r)
    return {
        "prompts": len(fitted), "group": work.group, "mean prompt": mean_p, "mean completion": mean_r,
        "generated": [sum(said), work.generated], "packed": [measures["packed_tokens"], work.packed],
        "sampling_s": sampling, "update_s": update,
    }  # fmt: skip


def real_store() -> dict[str, Any]:
    """Bytes of a store of real texts, and of its shards: the sample set's prompts, each with eight gold
    completions of other turns."""
    from selfemo.config import load
    from selfemo.method.prompts import conversation_prompts, format_completion, gold_completion, messages
    from selfemo.runs.costs import CHARACTERS, store_bytes
    from selfemo.runs.inputs import load_conversations
    from selfemo.runs.shards import export
    from selfemo.runs.store import STORE_FILE, Store

    conversations = load_conversations(load([]))
    prompts = [p for c in conversations for p in conversation_prompts(c, future=True)]
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
            store.add_prompts(prompts, "iteration-1-rl", 0)
            store.add_rollout_rows(rows)
        store.close()
        size = sum(f.stat().st_size for f in (folder / "run").iterdir())
        export(folder / "run", folder / "out")
        shards = sum(f.stat().st_size for f in (folder / "out").glob("*.parquet"))
    characters = sum(len(m["content"]) for p in prompts for m in messages(p)) / len(prompts)
    said = sum(len(r[5]) for r in rows) / len(rows)
    told = store_bytes(characters / CHARACTERS, said / CHARACTERS, 8)
    return {
        "rollouts": len(rows), "characters of a prompt": characters,
        "characters of a completion": said, "bytes a rollout": [size / len(rows), told],
        "bytes a rollout in shards": shards / len(rows), "share": shards / size,
    }  # fmt: skip


def predicted(point: dict[str, Any], seen: dict[str, Any], machine: Any) -> dict[str, Any]:
    from selfemo.config import load
    from selfemo.runs.costs import decoding, memory, shape_from, stages, workload

    p, r, g, n = (point[k] for k in "prgn")
    dtype, kl = point.get("dtype", "fp32"), float(point.get("kl", 0.0))
    config = load([], [
        f"sampling.group_size={g}", f"sampling.max_new_tokens={r}", f"flywheel.prompts={n}",
        f"grpo.prompts_per_step={n}", f"grpo.mini_batch={n}", f"grpo.kl_coef={kl}",
        f"grpo.micro_tokens={p + g * r}", f'model.dtype="{dtype}"', 'flywheel.refit="none"',
    ])  # fmt: skip
    shape = shape_from(seen["config"], "point")
    assert shape.parameters == seen["parameters"]
    work = workload(config, p, r)
    how = decoding(shape, config, work, machine, "local")
    by_name = {s.name: s for s in stages(shape, work, machine, how)}
    update = by_name["update"].seconds
    if "reference" in by_name:
        update += by_name["reference"].seconds
    need = memory(shape, config, work, machine, "local")
    cache = n * (p + g * r) * how.kv
    need = replace(need, cache=cache, runtime=seen["runtime_mib"] * MIB)
    flops = sum(s.flops for k, s in by_name.items() if k in ("update", "reference"))
    return {
        "generated": work.generated, "packed": work.packed, "update_tflop": flops / 1e12,
        "prefill_s": by_name["prefill"].seconds, "decode_s": by_name["decode"].seconds,
        "decode bound": by_name["decode"].bound, "update_s": update,
        "sampling_mib": (need.sampling - need.optimiser - need.reference) / MIB,
        "training_mib": need.training / MIB,
    }  # fmt: skip


def growth() -> str:
    """The table of docs/scaling.md: one iteration on 8 H100 in the paper's settings, P 600, R 300."""
    from selfemo.config import load
    from selfemo.runs.costs import KNOWN, MACHINES, PARQUET_SHARE, decoding, stages, store_bytes, workload

    lines = []
    for prompts in (23_000, 1_000_000, 100_000_000, 1_000_000_000):
        config = load([], [f"flywheel.prompts={prompts}"])
        machine = replace(MACHINES["h100"], count=8)
        work = workload(config, 600, 300, engine="verl")
        stored = work.completions * store_bytes(600, 300, 8)
        cells = [f"{prompts:,}", f"{work.completions:,}", f"{work.generated:.2g}"]
        for name in ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B"):
            shape = KNOWN[name]
            how = decoding(shape, config, work, machine, "verl", 8)
            parts = stages(shape, work, machine, how)
            hours = 8 * sum(s.seconds for s in parts) / 3600
            cells += [f"{sum(s.flops for s in parts):.2g}", f"{hours:,.3g}"]
        sizes = (stored, stored * PARQUET_SHARE, 62 * prompts / 2, prompts / 2)
        cells += [f"{x / 1e9:,.3g} GB" for x in sizes]
        lines.append("| " + " | ".join(cells) + " |")
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
    from selfemo.config import load
    from selfemo.runs.costs import MACHINES, decoding, find_shape, stages, workload

    rates = measured["machine"]
    machine = replace(
        MACHINES["cpu-core"],
        bandwidth=rates["copy bytes/s"],
        reading=rates["product bytes/s"] / rates["copy bytes/s"],
    )
    first = next(iter(POINTS))
    moved = predicted(POINTS[first], measured[first], replace(machine, flops=1e30))["update_s"]
    flops = predicted(POINTS[first], measured[first], machine)["update_tflop"] * 1e12
    machine = replace(machine, flops=flops / (measured[first]["update_s"] - moved))
    points = {}
    for name, point in POINTS.items():
        seen, told = measured[name], predicted(point, measured[name], machine)
        points[name] = {
            key: [seen[key], told[key]]
            for key in ("packed", "prefill_s", "decode_s", "update_s", "sampling_mib", "training_mib")
            if not (point.get("dtype") and key.endswith("_s"))
        }
    real = measured["real round"]
    config = load(["quickstart"], ["flywheel.prompts=8", "flywheel.refit=none",
                  "sampling.max_new_tokens=24", "model.dtype=fp32"])  # fmt: skip
    shape = find_shape(config.model.id)
    work = workload(config, real["mean prompt"], real["mean completion"])
    how = decoding(shape, config, work, machine, "local")
    seconds = {s.name: s.seconds for s in stages(shape, work, machine, how)}
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
