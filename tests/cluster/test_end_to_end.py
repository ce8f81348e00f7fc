"""verl's own trainers on a CPU: RL with self-play, and the cold start, from data to checkpoint.

All of it is real: verl's PPO and SFT trainers, FSDP workers, TransferQueue, replay buffer, agent loop, reward
loop and vLLM, our plugin in all of them, states and weights. cpu.py and cpu_vllm.py tell them what a CPU is.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfemo.config import Config, load
from selfemo.models.references import verify_checkpoint
from selfemo.progress import Quiet
from selfemo.runs.standalone import sft_alone, train_alone
from selfemo.runs.store import Store
from selfemo.training.verl.adapters import merge_adapters
from tests.conftest import build_tiny_model, toy_conversations, write_jsonl
from tests.support.encoders import build_encoder, kept
from tests.support.runs import SETTINGS

pytest.importorskip("vllm", reason="verl with vLLM has an environment of its own: make test-cluster-whole")
pytestmark = [pytest.mark.slow, pytest.mark.whole, pytest.mark.timeout(1800)]

VLLM, ENGINE = "actor_rollout_ref.rollout", "+actor_rollout_ref.rollout.engine_kwargs.vllm"
ON_A_CPU = [
    f"{VLLM}.dtype=float32", f"{VLLM}.enforce_eager=true", f"{VLLM}.free_cache_engine=false",
    f"+{VLLM}.enable_sleep_mode=false", f"{VLLM}.max_model_len=512", f"{VLLM}.max_num_seqs=32",
    f"{VLLM}.checkpoint_engine.update_weights_bucket_megabytes=16",
    f"{ENGINE}.kv_cache_memory_bytes={1 << 28}",
    f"{ENGINE}.worker_extension_cls=tests.cluster.cpu_vllm.Worker",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
    "+actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype=fp32",
    "trainer.device=cpu", "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.ref.strategy=fsdp2", "actor_rollout_ref.model.use_remove_padding=false",
    "+actor_rollout_ref.model.override_config.attn_implementation=eager",
    "actor_rollout_ref.rollout.agent.num_workers=1", "data.dataloader_num_workers=0",
    "actor_rollout_ref.actor.use_torch_compile=false",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=false",
    "actor_rollout_ref.ref.fsdp_config.use_torch_compile=false",
    "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM=cpu", "ray_kwargs.ray_init.num_cpus=32",
    "+ray_kwargs.ray_init.num_gpus=1", "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
]  # fmt: skip
SFT_ON_A_CPU = [
    "trainer.device=cpu", "engine.strategy=fsdp2", "model.use_remove_padding=false",
    "+model.override_config.attn_implementation=eager", "engine.use_torch_compile=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with toy data, an untrained tiny model, and one that the local engine taught the format."""
    folder = tmp_path_factory.mktemp("cluster")
    build_tiny_model(folder / "tiny", hidden_size=128)  # vLLM on a CPU has no heads of 12
    write_jsonl(folder / "toy.jsonl", [*toy_conversations(10), *toy_conversations(3, "test")])
    # Not taught for so long that all of a group say the same.
    cold = settings(folder, "engine=local", "sft.label_weight=2", "sft.epochs=20")
    sft_alone(folder / "cold", cold, Quiet())
    return folder


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).parents[2])
    for name, value in {
        "VERL_PLATFORM": "cpu", "PYTHONPATH": root, "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        "VERL_USE_EXTERNAL_MODULES": "tests.cluster.cpu",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.fixture
def ray_address(on_a_cpu: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster that runs already, as on several nodes; it says that it has a GPU."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray wants a token on each node
    ray = Path(sys.executable).with_name("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = ["start", "--head", f"--port={port}", "--num-cpus=32", "--num-gpus=1"]
    subprocess.run([ray, *start, "--include-dashboard=false"], check=True, timeout=120)
    yield f"127.0.0.1:{port}"
    subprocess.run([ray, "stop", "--force"], check=True, timeout=120)


def settings(folder: Path, *more: str) -> Config:
    own = [f'model.id="{folder}/tiny"', f'data.sources=["{folder}/toy.jsonl"]', "model.threads=1"]
    cluster = [
        "engine=verl", "sft.label_weight=1", "sft.schedule=constant", "grpo.prompts_per_step=6",
        "grpo.mini_batch=6", "grpo.kl_coef=0.001", "flywheel.prompts=18", "selfplay.max_turns=2",
        "selfplay.synthetic_share=0.34", "cluster.gpus_per_node=1", "cluster.tensor_parallel=1",
        "cluster.micro_batch_per_gpu=4", "cluster.reward_workers=1", "cluster.test_every=2",
        "cluster.offload_reference=false", f"cluster.overrides={json.dumps(ON_A_CPU)}",
        f"cluster.sft_overrides={json.dumps(SFT_ON_A_CPU)}",
    ]  # fmt: skip
    return load([], [*SETTINGS.split(), *own, *cluster, *more])


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def apart(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """The largest difference of log-probabilities over all tokens of all completions, in nats."""
    pairs = [p for a, b in zip(ours, theirs, strict=True) for p in zip(a, b, strict=True)]
    assert len(pairs) > 24
    return max(abs(a - b) for a, b in pairs)


def read_by(folder: Path, told: dict[str, list]) -> list[list[float]]:
    """The log-probabilities of a step's completions under the weights of a folder."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt, reply in zip(told["prompts"], told["responses"], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1)[range(len(reply)), reply].tolist())
    return found


# Rates at which one update changes what is likely, so that old weights would show.
@pytest.mark.parametrize(
    "more", [("grpo.lr=1e-3",), ("grpo.lr=1e-2", "model.lora={rank=8}")], ids=["full", "lora"]
)
def test_self_grpo_with_self_play(
    work: Path, on_a_cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    run, notes = tmp_path / "run", tmp_path / "notes"
    monkeypatch.setenv("SELFEMO_TEST_LOGPROBS", str(notes))
    config = settings(work, *more)
    _, counts = train_alone(str(work / "cold"), run, config, Quiet())
    told = [json.loads((notes / f"{step}.json").read_text()) for step in (1, 2, 3)]
    far = [[apart(t["rollout_log_probs"], t[by]) for by in ("old_log_probs", "ref_log_prob")] for t in told]
    assert all(from_trainer < 1e-3 for from_trainer, _ in far), "vLLM has the trainer's weights in each round"
    assert far[0][1] < 1e-3 and all(from_start > 0.05 for _, from_start in far[1:]), "and they change"
    states = run / "cluster" / "iteration-1-rl" / "states"
    first = Path(shutil.copytree(states / "global_step_1" / "actor" / "huggingface", tmp_path / "first"))
    if lora := config.model.lora:
        merge_adapters(first, lora.alpha / lora.rank)
    assert apart(told[1]["rollout_log_probs"], read_by(first, told[1])) < 1e-3, "what is kept is what sampled"
    assert sum(counts.get(k, 0) for k in ("pass", "low_reward", "unparsed")) > 0
    checkpoint = run / "checkpoints" / "iteration-1-rl"
    verify_checkpoint(checkpoint)
    before, after = weights(work / "cold"), weights(checkpoint)
    assert before.keys() == after.keys()
    assert any((before[k] != after[k]).any() for k in before), "the policy was trained"
    with Store(run / "store.sqlite") as store:
        # Two waves, of one round and of two; the second draws what the first left (eq. 7).
        groups = store.rows("SELECT step, count(*) AS n FROM rollouts WHERE member = 0 GROUP BY step")
        assert [(r["step"], r["n"]) for r in groups] == [(0, 6), (1, 6), (2, 6)]
        passed = store.rows("SELECT * FROM rollouts WHERE gate = 'pass' AND step = 0")
        left = store.rows("SELECT * FROM prompts WHERE parent IS NOT NULL AND step = 0")
        assert len(left) == len(passed) > 0
        for row in left:
            said = json.loads(row["history"])[-1]
            assert any(
                (p["prompt"], p["reply"], json.loads(p["self_emotion"]))
                == (row["parent"], said[1], json.loads(row["target"]))
                for p in passed
            )
        assert store.drawn_synthetic("iteration-1-rl") == min(len(left), round(0.34 * 18))
        rounds = [m for m in store.metrics() if m["stage"] == "iteration-1-rl"]
        assert [m["lambda"] for m in rounds] == pytest.approx([0, 0.5 / 3, 1 / 3])
        assert all(m["grad_norm"] > 0 and "kl" in m and m["r1"] >= 0 for m in rounds)
        assert rounds[0]["kl"] == pytest.approx(0, abs=1e-3), "the reference is where the stage starts"
        assert all(m["mismatch"] < 1e-4 and m["mismatch_clipped"] == 0 for m in rounds)
        assert any("test" in m for m in rounds)
        spread = store.rows("SELECT count(*) AS n FROM rollouts WHERE advantage != 0")
        assert spread[0]["n"] > 0


def test_replies_are_rewarded(work: Path, on_a_cpu: None) -> None:
    """The listener is opened in verl's trainer process; each round is checked for our own advantages."""
    listener = kept(work / "listener", build_encoder(work / "encoder"))
    more = ["reward.expression=listener", f'reward.listener="{listener}"', "flywheel.prompts=12",
            "selfplay.synthetic_share=0", "cluster.test_every=0"]  # fmt: skip
    _, counts = train_alone(str(work / "cold"), work / "heard", settings(work, *more), Quiet())
    verify_checkpoint(work / "heard" / "checkpoints" / "iteration-1-rl")
    with Store(work / "heard" / "store.sqlite") as store:
        heard = store.rows("SELECT * FROM replies")
        said = store.rows("SELECT count(*) AS n FROM rollouts WHERE reply IS NOT NULL")
        assert len(heard) == said[0]["n"] == counts["replies_compared"] > 0
        assert any(r["heard"] for r in heard) and any(r["advantage"] for r in heard)
        rounds = [m for m in store.metrics() if m["stage"] == "iteration-1-rl"]
        assert len(rounds) == 2 and all("replies_flat" in m and m["reply_entropy"] > 0 for m in rounds)


@pytest.mark.parametrize("adapters", [(), ("sft.lr=2e-2", "model.lora={rank=8}")], ids=["full", "lora"])
def test_the_cold_start_on_a_running_cluster(
    work: Path, ray_address: str, tmp_path: Path, adapters: tuple[str, ...]
) -> None:
    more = ["sft.epochs=4", "sft.lr=2e-3", f'cluster.address="{ray_address}"', *adapters]
    info = sft_alone(tmp_path / "taught", settings(work, *more), Quiet())
    assert info["steps"] == 4 * (info["samples"] // 8) > 0
    before, after = weights(work / "tiny"), weights(tmp_path / "taught")
    assert before.keys() == after.keys()
    changed = {k for k in before if (before[k] != after[k].float()).any()}
    assert changed == {k for k in before if "_proj" in k or not adapters}
    with Store(tmp_path / "taught.run" / "store.sqlite") as store:
        losses = [m["loss"] for m in store.metrics() if m["stage"] == "cold-start"]
        assert len(losses) == info["steps"] and losses[-1] < losses[0] - 0.5
