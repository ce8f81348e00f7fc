"""Models that a real vLLM on a CPU runs: heads of 32, which is its least, tied and untied."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from selfemo.models.generation.requests import Request
from selfemo.models.policy import Policy
from selfemo.runs.standalone import sft_alone
from tests.conftest import Built, build_tiny_model
from tests.support.runs import Silent, settings

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def tied(built_once: Built) -> Path:
    return built_once("vllm-tied", lambda f: build_tiny_model(f, 128))


@pytest.fixture(scope="session")
def untied(built_once: Built) -> Path:
    return built_once("vllm-untied", lambda f: build_tiny_model(f, 128, tied=False))


@pytest.fixture(scope="session")
def taught(untied: Path, data: Path, built_once: Built) -> Path:
    """The untied model after a cold start: it writes the format, and is not too sure to differ in a group."""
    config = settings(untied, data, "sft.epochs=26", "model.threads=1")
    return built_once("vllm-taught", lambda f: sft_alone(f / "model", config, Silent())) / "model"


def asked(policy: Policy, n: int = 3) -> list[Request]:
    """`n` completions of two short chats."""
    chats = ["Ann: Hooray, we won it!\nBo: And nobody told me?", "Cy: The bus leaves at nine."]
    return [Request(policy.encode([{"role": "user", "content": c}]), n, 5 + k) for k, c in enumerate(chats)]
