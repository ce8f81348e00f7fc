"""Tiny real models and data that several test files share."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Tests run side by side (pytest -n 2), and their models are too small for a second thread to pay; processes
# that they start inherit it. Before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from selfemo.method.types import LABEL_SETS, Conversation, EmotionDistribution, Persona, Prompt, Utterance
from selfemo.models import devices
from tests.support.signals import hear_ctrl_c

if TYPE_CHECKING:
    from selfemo.models.policy import Attention

# The first example may load torch; on a busy machine any example may take long. CI draws the same examples
# each time, so that its verdict is on the change; everybody else's runs go on searching.
settings.register_profile("selfemo", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("selfemo")
hear_ctrl_c()


@pytest.fixture(autouse=True, scope="session")
def auto_is_fp32() -> Iterator[None]:
    """Most tests compare more closely than bf16 computes, and CPUs differ; those of bf16 ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "cpu_flags", lambda: frozenset())
        yield


MELD = LABEL_SETS["meld"]
SERVER = Path(__file__).parent / "support" / "expert_server.py"


def dist(**weights: float) -> EmotionDistribution:
    return EmotionDistribution(weights)


def make_prompt(
    prompt_id: str = "c/1",
    target: EmotionDistribution | None = None,
    history: tuple[Utterance, ...] | None = None,
) -> Prompt:
    turns = history or (
        Utterance("Ann", "Did you hear that noise?", dist(fear=1)),
        Utterance("Bo", "It was only the cat, I promise.", dist(neutral=1)),
    )
    answerer = next((u.speaker for u in turns if u.speaker != turns[-1].speaker), "Ann")
    return Prompt(
        id=prompt_id,
        dataset="toy",
        conversation_id=prompt_id.split("/")[0],
        label_set=MELD,
        history=turns,
        answerer=answerer,
        persona=Persona(answerer, "Easily frightened, talks fast, laughs it off afterwards."),
        target=target or turns[-1].emotion or dist(joy=1),
        scenario="Two flatmates at night.",
    )


def toy_conversations(n: int = 8, split: str = "train") -> list[Conversation]:
    """Conversations whose emotion is plain from one word, for tests that train."""
    words = {
        "joy": "Hooray, we won it!", "anger": "Stop it right now!", "sadness": "I miss her so.",
        "fear": "Someone is at the door.", "neutral": "The bus leaves at nine.",
    }  # fmt: skip
    items = list(words.items())
    conversations = []
    for k in range(n):
        turns = tuple(
            Utterance(("Ann", "Bo")[i % 2], items[(k + i) % 5][1], dist(**{items[(k + i) % 5][0]: 1}))
            for i in range(5)
        )
        conversations.append(
            Conversation(
                f"toy{split}{k}",
                "toy",
                split,
                turns,
                MELD,
                "A room.",
                {s: Persona(s, "Plain.") for s in ("Ann", "Bo")},
            )
        )
    return conversations


def build_tiny_model(folder: Path, hidden_size: int = 48, *, tied: bool = True) -> Path:
    """A randomly initialised two-layer Llama with grouped heads and a tokenizer trained here."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from selfemo.method.prompts import messages

    corpus = [m["content"] for c in toy_conversations() for m in messages(make_prompt())]
    corpus += [t.text for c in toy_conversations() for t in c.turns]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=tied,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, conversations: Iterable[Conversation]) -> None:
    with path.open("w") as f:
        for c in conversations:
            turns = [{"speaker": t.speaker, "text": t.text, "emotion": dict(t.emotion)} for t in c.turns]
            personas = {s: p.description for s, p in c.personas.items()}
            record = {"id": c.id, "split": c.split, "scene": c.scenario, "personas": personas,
                      "turns": turns}  # fmt: skip
            f.write(json.dumps(record) + "\n")


Built = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Fill a folder of a name once for all processes of `pytest -n`.

    What more than reads it takes a copy: another process may be reading too.
    """
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        home = home.parent

    def built(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = home / "shared" / name, home / "shared" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with (folder.parent / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed in it
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return built


@pytest.fixture(scope="session")
def tiny_model(built_once: Built) -> Path:
    return built_once("tiny", build_tiny_model)


@pytest.fixture(params=["tree", "dense", "flex"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Attention:
    """Each attention path: that of a CPU, and those of other devices forced on it.

    For a policy that is loaded already: `engine.policy.attention = attention`.
    """
    if request.param == "flex":
        monkeypatch.setattr("selfemo.models.flex.LEAST_TOKENS", 0)
    return request.param


@pytest.fixture(scope="session")
def data(built_once: Built) -> Path:
    """Ten conversations to train on, three held out."""
    everything = [*toy_conversations(10), *toy_conversations(3, "test")]
    return built_once("toy", lambda f: write_jsonl(f / "toy.jsonl", everything)) / "toy.jsonl"


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path, data: Path, built_once: Built, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that was never interrupted; beside it, what it was at the beginning of each stage."""
    from selfemo.evaluation.summary import finish
    from selfemo.reports.figures import draw
    from tests.support.runs import STAGES, photographed, settings

    def fill(home: Path) -> None:
        run = photographed(home, settings(tiny_model, data, "save.every_steps=1"))
        finish(run, draw)
        run.close()
        assert {p.name for p in home.iterdir()} == {"whole", *STAGES}

    runs = tmp_path_factory.mktemp("runs") / "runs"
    return Path(shutil.copytree(built_once("finished", fill), runs)) / "whole"


@pytest.fixture(scope="module")
def short(tiny_model: Path, data: Path, built_once: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shorter run, also with what it was at the beginning of each stage beside it."""
    from tests.support.runs import SHORT, photographed, settings

    config = settings(tiny_model, data, *SHORT)
    built = built_once("short", lambda home: photographed(home, config).close())
    return Path(shutil.copytree(built, tmp_path_factory.mktemp("short") / "runs")) / "whole"


@pytest.fixture
def expert(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts servers in processes of their own; returns the base URL of each."""
    running: list[subprocess.Popen[str]] = []

    def start(**options: object) -> str:
        flags = [str(x) for k, v in options.items() for x in (f"--{k}", v)]
        process = subprocess.Popen([sys.executable, str(SERVER), *flags], stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        return f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"

    yield start
    for process in running:
        process.kill()
        process.wait()
