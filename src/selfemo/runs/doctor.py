"""`selfemo doctor`: whether a configuration can run on this machine, and what an iteration costs (costs.py).

Nothing is downloaded, converted or trained.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from packaging.requirements import Requirement

from selfemo.config import ClusterConfig, Config
from selfemo.data import load as load_data
from selfemo.data.splits import held_out
from selfemo.errors import ConfigError, SelfEmoError
from selfemo.extras import install_command, stated, version_of
from selfemo.method.prompts import (
    conversation_prompts,
    format_completion,
    format_recognition,
    gold_completion,
    messages,
)
from selfemo.method.types import Conversation
from selfemo.models.devices import Devices, devices
from selfemo.runs import costs
from selfemo.runs.inputs import run_inputs, with_hold_out
from selfemo.runs.settings import check_reply_reader, named_readers

State = Literal["ok", "optional", "warning", "missing"]
_SAMPLED = 500
"""Prompts that lengths are averaged over."""
CHARACTERS = 3.0
"""Characters per token. Measured: 2.8 to 3.4 with the built-in tokenizer (benchmarks/costs.py)."""
_THOUGHT = {"none": 0, "brief": 40, "full": 150}
"""Tokens of reasoning before the emotions. Assumed."""


@dataclass(frozen=True)
class Finding:
    """One check; `get` says how to get what is missing."""

    state: State
    what: str
    found: str
    get: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The result of `selfemo doctor`; `estimate` is empty where the model's sizes are not known."""

    findings: tuple[Finding, ...]
    estimate: dict[str, Any]

    @property
    def healthy(self) -> bool:
        return all(f.state != "missing" for f in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {"healthy": self.healthy, **asdict(self)}


def _if(fits: bool, what: str, found: str, get: str, otherwise: State = "missing") -> Finding:
    """A finding that is ok if `fits`; else `get` says what to do."""
    return Finding("ok", what, found) if fits else Finding(otherwise, what, found, get)


def wanted_extras(config: Config, engine: str) -> dict[str, str]:
    """The extras that the settings use, each with the setting that does."""
    from selfemo.models.references import needs_conversion

    by_vllm = {"sampling.backend": config.sampling.backend, "model.backend": config.model.backend}
    used = {
        "builtin": (needs_conversion(config.model.id), f"model.id = {config.model.id}"),
        "lora": (config.model.lora is not None, "model.lora"),
        "parquet": (config.sft.samples, "sft.samples"),
        "verl": (engine == "verl", 'engine = "verl"'),
        "vllm": ("vllm" in by_vllm.values(), " and ".join(k for k, v in by_vllm.items() if v == "vllm")),
    }
    return {extra: setting for extra, (is_used, setting) in used.items() if is_used}


OPTIONAL = {
    "chat": "selfemo chat --web",
    "serve": "selfemo serve",
    "parquet": "selfemo store, coldstart, evaluate's predictions.parquet",
    "experts": "endpoints, personas cluster",
    "lora": "model.lora",
    "trl": "examples/trl_selfgrpo.py",
}
"""What each extra that a run itself does not need is for."""


def _required(extra: str) -> Iterator[Requirement]:
    """What the package requires for an extra, besides what it requires anyway; "" for the latter."""
    for wanted in stated():
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        if extra and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            continue
        yield wanted


def check_optional(used: Collection[str]) -> Iterator[Finding]:
    """The extras that the settings do not use: whether they are there, and how to get them."""
    for extra, purpose in OPTIONAL.items():
        names = [r.name for r in _required(extra)]
        if extra in used or not names:
            continue
        absent = [name for name in names if not version_of(name)]
        told = f"{', '.join(absent) or 'all'} {'not ' * bool(absent)}installed; for {purpose}"
        get = install_command(*absent) if absent else ""
        yield Finding("optional" if absent else "ok", f"extra {extra}", told, get)


def check_packages(extras: dict[str, str]) -> Iterator[Finding]:
    """Compare installed versions with what the package requires, by itself and for some extras."""
    from packaging.specifiers import SpecifierSet

    try:
        about = metadata.metadata("selfemo")
    except metadata.PackageNotFoundError:
        told = "runs from its source, so its requirements are not known here"
        yield Finding("warning", "selfemo", told, "pip install -e .")
        return
    python, asked = platform.python_version(), about["Requires-Python"] or ""
    fits = python in SpecifierSet(asked)
    yield _if(fits, "python", f"{python} (asked for: {asked})", f"install Python {asked}")
    have = about.get_all("Provides-Extra") or []
    for extra in ("", *extras):
        why = f", for {extras[extra]}" if extra else ""
        if extra and extra not in have:
            told = f"this version of selfemo does not have it{why}"
            yield Finding("missing", f"extra {extra}", told, "pip install -e . (in an up-to-date clone)")
        for wanted in _required(extra):
            found = version_of(wanted.name)
            command = install_command(wanted.name)
            if not found:
                yield Finding("missing", wanted.name, f"not installed{why}", command)
            elif not wanted.specifier.contains(found, prereleases=True):
                told = f"{found}, asked for {wanted.specifier}{why}"
                yield Finding("missing", wanted.name, told, command)
            else:
                yield Finding("ok", wanted.name, found)


def _ram() -> tuple[float, float]:
    """Bytes of memory: all, and available."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = float(os.sysconf("SC_PHYS_PAGES") * page)
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return total, float(line.split()[1]) * 1024
    except OSError:
        pass
    return total, float(os.sysconf("SC_AVPHYS_PAGES") * page)


def _gib(x: float) -> str:
    return f"{x / costs.GIB:.1f} GiB"


def check_devices(config: Config, engine: str, found: Devices) -> Iterator[Finding]:
    """CPU and GPUs; for verl also its packages, else whether model.device is there."""
    threads, (total, free) = config.model.threads or found.threads, _ram()
    told = f"{os.cpu_count()} cores, {threads} threads, {_gib(free)} of {_gib(total)} free"
    yield Finding("ok", "CPU", told)
    for gpu in found.gpus:
        how = "it does not compute in bf16: model.dtype = fp32"
        yield _if(gpu.bf16, "GPU", f"{gpu.name}, {_gib(gpu.memory)}", how, "warning")
    if engine == "verl":
        yield from _check_node(config.cluster, len(found.gpus))
        return
    asked = config.model.device
    if asked.startswith("cuda") and not found.gpus:
        yield Finding("missing", "model.device", f"{asked}, and torch {found.torch} sees no GPU",
                      "set model.device = cpu, or install a torch with CUDA and its driver")  # fmt: skip
    on_cpu = not found.gpus or asked == "cpu"
    if on_cpu and "vllm" in (config.sampling.backend, config.model.backend):
        version = version_of("vllm")
        yield _if("+cpu" in version, "vLLM on a CPU", version or "not installed",
                  "a GPU takes `pip install vllm`, a CPU vLLM's build for it (docs/vllm.md)")  # fmt: skip
    if on_cpu and str(config.model.dtype) == "bf16" and not found.cpu_bf16:
        what = "tens of times slower, with model.compile" if config.model.compile else "no faster than fp32"
        yield Finding("warning", "model.dtype", f"bf16, for which this CPU has no instructions ({what})",
                      "set model.dtype = fp32, unless memory is short")  # fmt: skip
    if on_cpu and config.model.attention == "flex":
        yield Finding("warning", "model.attention", "flex, which computes masked blocks too on a CPU",
                      "set model.attention = auto")  # fmt: skip


def _check_node(cluster: ClusterConfig, found: int) -> Iterator[Finding]:
    told = f"{found}, cluster.gpus_per_node = {cluster.gpus_per_node}"
    how = "run it on a node that has them, or set cluster.gpus_per_node"
    otherwise: State = "warning" if cluster.address else "missing"
    yield _if(found >= cluster.gpus_per_node, "GPUs of this node", told, how, otherwise)
    if cluster.gpus_per_node * cluster.nodes % cluster.tensor_parallel:
        told = f"{cluster.tensor_parallel} does not divide {cluster.nodes} x {cluster.gpus_per_node} GPUs"
        yield Finding("missing", "cluster.tensor_parallel", told, "set a divisor")
    for name in ("verl", "ray", cluster.rollout):
        how = f"pip install {name}, in the versions that docs/cluster.md names"
        version = version_of(name)
        yield _if(bool(version), name, version or "not installed", how)


def check_disk(folder: Path, need: float) -> Finding:
    """Compare the free space in the run's folder with what the run will write."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return Finding("missing", "disk", f"{place} cannot be written", "name another folder: --out")
    free = shutil.disk_usage(place).free
    told = f"{_gib(free)} free at {place}, the run needs about {_gib(need)}"
    how = "free some, name another folder (--out), or save less: save.keep_stage_checkpoints = false"
    return _if(free >= need, "disk", told, how)


def _try(what: str, how: str, work: Callable[[], str]) -> Finding:
    """A check that fails with a typed error; the error's message is the finding."""
    try:
        return Finding("ok", what, work())
    except SelfEmoError as e:
        return Finding("missing", what, " ".join(str(e).split()), how)


def check_data(config: Config) -> tuple[list[Finding], list[Conversation]]:
    """Check each source, then the conversations to train and evaluate on, which are returned."""
    kept: list[Conversation] = []
    shared: list[Finding] = []

    def source(spec: str) -> str:
        counts = load_data(spec, lenient=config.data.lenient).report.conversations
        return ", ".join(f"{n} {split}" for split, n in counts.items()) + " conversations"

    mend = "mend or name the data: selfemo data check"
    findings = [_try(f"data {spec}", mend, partial(source, spec)) for spec in config.data.sources]

    def together() -> str:
        conversations, train, overlap = run_inputs(config)
        data = config.data
        held = held_out(conversations, data.eval_split, data.eval_conversations, 0, data.eval_half)
        kept.extend([*train, *(c for c in held if c not in train)])
        if line := overlap.line():
            leave_out = "to leave them out: --set data.exclude_overlap=train, or =eval"
            shared.append(_if(not overlap.overlapping, "overlap", line, leave_out, "warning"))
        return f"{len(train)} to train on, {len(held)} to evaluate on"

    if all(f.state == "ok" for f in findings):
        findings += [_try("conversations", "see data.* in the configuration", together), *shared]
    if config.sft.samples:
        how = "make them: selfemo coldstart generate, selfemo store select"
        findings.append(_if(Path(config.sft.samples).exists(), "sft.samples", config.sft.samples, how))
    return findings, kept


def check_readers(config: Config, conversations: Sequence[Conversation]) -> list[Finding]:
    """Whether the listener and the reader of replies can be had, where a run has them."""
    labels, found = list(dict.fromkeys(c.label_set for c in conversations)), []
    for key, reference in named_readers(config).items():
        try:
            note = check_reply_reader(key, reference, labels, rewards=True)
            how = f"its scores: selfemo baseline table {Path(reference).parent.parent}"
            found.append(_if(not note, key, note.removeprefix(f"{key} = ") or reference, how, "warning"))
        except SelfEmoError as e:
            found.append(
                Finding("missing", key, str(e).removeprefix(f"{key}: "), f"or give {key} another value")
            )
    return found


def check_engine(config: Config, engine: str) -> list[Finding]:
    """What an engine refuses of the settings, as it would before it trains."""
    if engine != "verl":
        return []
    from selfemo.training.verl.settings import check_config

    try:
        check_config(config)
    except ConfigError as e:
        return [Finding("missing", "verl's trainers", line) for line in str(e).splitlines()]
    return []


def check_model(model_id: str) -> tuple[Finding, str]:
    """Whether the weights are on this machine and undamaged; and their folder, "" before there is one."""
    from selfemo.models.references import ModelReference

    try:
        place, told = ModelReference.parse(model_id).on_this_machine()
    except SelfEmoError as e:
        text = " ".join(str(e).split())
        how = text.rpartition("run: ")[2] if "run: " in text else "give model.id another value"
        return Finding("missing", "model", f"{model_id}: {text}", how), ""
    if place or told:
        return Finding("ok", "model", f"{model_id}: {told or 'complete'}"), place
    how = f"with a network it is fetched at first use; before: hf download {model_id}"
    return Finding("warning", "model", f"{model_id}: not in the cache of this machine", how), ""


def lengths(conversations: Sequence[Conversation], config: Config) -> costs.Lengths:
    """Mean tokens of prompts and of gold completions, from characters; counts for refit and evaluation."""
    train = [c for c in conversations if c.split == "train"]
    whole: list[int] = []
    own: list[int] = []  # characters of a prompt after those that it shares with the one before
    for c in train[:: max(1, len(train) // _SAMPLED)]:
        before = ""
        for p in conversation_prompts(c):
            text = "".join(m["content"] for m in messages(p, config.prompt.reasoning))
            whole.append(len(text))
            if before:
                same = (a == b for a, b in zip(before, text, strict=False))
                own.append(len(text) - next((i for i, s in enumerate(same) if not s), 0))
            before = text
    gold = [g for c in train for i in range(len(c.turns)) if (g := gold_completion(c, i))]
    said = [len(format_completion(g)) for g in gold[:: max(1, len(gold) // _SAMPLED)]]
    # A refit sees the samples that pass the gate (assumed: of every second prompt), and replays others.
    cold = min(len(gold), config.sft.max_samples or len(gold))
    prompt = min(fmean(whole or [0]) / CHARACTERS, config.prompt.max_tokens)
    completion = fmean(said or [0]) / CHARACTERS + _THOUGHT[config.prompt.reasoning] + 1
    named = [len(format_recognition(g.emotion)) for g in gold[:: max(1, len(gold) // _SAMPLED)]]
    emotion = fmean(named or [0]) / CHARACTERS + _THOUGHT[config.prompt.reasoning]
    labelled = sum(t.emotion is not None for c in train for t in c.turns)
    asked = config.sft.label_samples
    labels = min(labelled - cold, labelled if asked < 0 else asked)
    return costs.Lengths(
        prompt,
        min(completion, config.sampling.max_new_tokens),
        min(fmean(own or [0]) / CHARACTERS, prompt),
        int(config.flywheel.prompts // 2 + config.flywheel.replay * cold),
        sum(len(c.turns) for c in conversations if c.split == config.data.eval_split),
        min(emotion, config.sampling.max_new_tokens),
        int(config.flywheel.replay * labels),
        labelled / len(train) if train else 0.0,
        cold,
        labels,
    )


def pick_machine(name: str, engine: str, found: Devices, count: int, config: Config) -> costs.Machine:
    """The machine to estimate for: the named one, else this one (ConfigError: the name is not known)."""
    if name:
        if name not in costs.MACHINES:
            raise ConfigError(f"--machine {name}: known are {', '.join(costs.MACHINES)}")
        machine = costs.MACHINES[name]
    elif found.gpus:
        gpu = found.gpus[0]
        plain = gpu.name.lower().replace(" ", "")
        machine = next((m for m in costs.MACHINES.values() if m.name in plain), costs.MACHINES["a100"])
        machine = replace(machine, name=gpu.name, memory=gpu.memory)
    else:
        machine = costs.MACHINES["h100" if engine == "verl" else "cpu-core"]
    if engine == "verl":
        return replace(machine, count=count or config.cluster.nodes * config.cluster.gpus_per_node)
    if machine.name == "cpu-core":
        threads = config.model.threads or found.threads
        return replace(machine, count=count or threads, memory=_ram()[1])
    return replace(machine, count=1)


def disk(shape: costs.ModelShape, config: Config, sizes: costs.Lengths) -> dict[str, float]:
    """Bytes of a finished run: checkpoints in float32, states of a stage, the store with its backup.

    The store holds a rollout's text 1.6 times and 220 bytes, a prompt's 1.3 times and 420 bytes: measured.
    """
    count, save, rl = config.flywheel.iterations, config.save, costs.rl_costs(config, sizes)
    prompt = 420 + 1.3 * CHARACTERS * sizes.prompt
    said = config.sampling.group_size * (220 + 1.6 * CHARACTERS * rl.tokens) + 1.6 * CHARACTERS * rl.rest
    said += rl.replies * (220 + 1.6 * CHARACTERS * rl.rest)
    stored = config.flywheel.prompts * (said + prompt)
    return {
        "checkpoints": 4.0 * shape.parameters * (1 + count * (1 + save.keep_stage_checkpoints)),
        "states": 12.0 * shape.parameters * (save.keep_states + 1),
        "store": 2.0 * count * stored,
    }


def estimate(
    config: Config,
    shape: costs.ModelShape,
    sizes: costs.Lengths,
    machine: costs.Machine,
    engine: costs.EngineName,
) -> dict[str, Any]:
    """Tokens, hours, memory and disk of one iteration, and the hours of what a run does before the first."""
    parts = costs.parts(shape, config, sizes, machine, engine)
    before = costs.parts_before(shape, config, sizes, machine, engine)
    phases = costs.memory(shape, config, sizes, machine, engine)
    peak = max(phases.values(), key=lambda phase: sum(phase.values()))
    return {
        "model": config.model.id,
        "parameters": shape.parameters,
        "machine": f"{machine.count} x {machine.name}",
        "prompt_tokens": round(sizes.prompt),
        "completion_tokens": round(sizes.completion),
        "prompts": config.flywheel.prompts,
        "rollouts": config.flywheel.prompts * config.sampling.group_size,
        "hours": sum(p.hours for p in parts),
        "stages": [{"name": p.name, "tokens": round(p.tokens), "hours": p.hours} for p in parts],
        "before": [{"name": p.name, "tokens": round(p.tokens), "hours": p.hours} for p in before],
        "hours_before": sum(p.hours for p in before),
        "memory_gib": {k: v / costs.GIB for k, v in peak.items() if v},
        "peak_gib": sum(peak.values()) / costs.GIB,
        "disk_gib": {k: v / costs.GIB for k, v in disk(shape, config, sizes).items()},
    }


def diagnose(
    config: Config,
    folder: Path,
    *,
    engine: str = "",
    count: int = 0,
    machine: str = "",
    prompt_tokens: float = 0,
    completion_tokens: float = 0,
) -> Diagnosis:
    """Check a configuration on this machine and estimate one iteration.

    Args:
        folder: where the run would go.
        engine: local or verl; "" takes the configuration's.
        count: GPUs (verl) or cores; 0 takes the configuration's, or those of this machine.
        machine: a name in costs.MACHINES to estimate for; "" takes this machine.
        prompt_tokens, completion_tokens: means; 0 takes those of the data.

    Raises: ConfigError: the engine or machine is not known.
    """
    with contextlib.suppress(SelfEmoError):  # check_data says what is wrong
        config = with_hold_out(config)
    engine = engine or config.engine
    if engine not in ("local", "verl"):
        raise ConfigError(f"--engine {engine}: valid are local, verl")
    found = devices()
    extras = wanted_extras(config, engine)
    findings = [*check_packages(extras), *check_optional(extras), *check_devices(config, engine, found)]
    data, conversations = check_data(config)
    weights, place = check_model(config.model.id)
    findings += [*data, weights, *check_readers(config, conversations), *check_engine(config, engine)]
    sizes = lengths(conversations, config)
    prompt = prompt_tokens or sizes.prompt
    sizes = sizes._replace(
        prompt=prompt, completion=completion_tokens or sizes.completion, own=min(sizes.own, prompt)
    )
    chosen = pick_machine(machine, engine, found, count, config)
    try:
        known = config.model.id in costs.KNOWN
        shape = costs.find_shape(config.model.id if known else place or config.model.id)
    except SelfEmoError as e:
        return Diagnosis((*findings, Finding("warning", "estimate", str(e))), {})
    if not prompt:
        how = "--prompt-tokens and --completion-tokens"
        return Diagnosis((*findings, Finding("warning", "estimate", "no data to take lengths from", how)), {})
    told = estimate(config, shape, sizes, chosen, "verl" if engine == "verl" else "local")
    peak = told["peak_gib"] * costs.GIB
    if chosen.memory:
        need = f"about {_gib(peak)} of {_gib(chosen.memory)} by {chosen.name}"
        how = (
            "smaller grpo.micro_tokens or sampling.token_budget, model.gradient_checkpointing, "
            "model.lora, or more GPUs"
        )
        findings.append(_if(peak <= chosen.memory, "memory", need, how))
    findings.append(check_disk(folder, sum(told["disk_gib"].values()) * costs.GIB))
    return Diagnosis(tuple(findings), told)


def estimate_rows(told: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The parts as a table: of an iteration, and what comes before the first; short ones in minutes."""
    unit, times, form = ("hours", 1, ",.2f") if told["hours"] >= 1 else ("minutes", 60, ".1f")

    def rows(parts: list[dict[str, Any]], where: str = "") -> list[list[str]]:
        return [[f"{where}{s['name']}", f"{s['tokens']:,}", f"{times * s['hours']:{form}}"] for s in parts]

    whole = ["all", "", f"{times * told['hours']:{form}}"]
    return ["one iteration", "tokens", unit], [
        *rows(told["stages"]), whole, *rows(told["before"], "once before: "),
    ]  # fmt: skip
