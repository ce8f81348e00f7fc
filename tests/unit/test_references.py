"""Model references: each kind is read, and a wrong one says what was looked for. No weights are involved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfemo.errors import EngineError
from selfemo.models import references
from selfemo.models.references import ModelReference, needs_conversion, resolve, run_of
from selfemo.runs.settings import find_checkpoint, settings_for
from tests.support.files import model_folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    for name in ("cold-start", "iteration-2-rl", "iteration-9", "iteration-10", "iteration-10-rl"):
        model_folder(folder / "checkpoints" / name)
    (folder / "config.toml").write_text('[model]\nid = "builtin:smollm2-135m"\n[prompt]\nmax_tokens = 77\n')
    return folder


def test_an_id_is_of_the_built_in_model_or_of_the_hub() -> None:
    found = ModelReference.parse("builtin:smollm2-135m")
    assert (found.kind, found.path, found.run) == ("builtin", "builtin:smollm2-135m", None)
    text = "owner/some-model"
    assert ModelReference.parse(text) == ModelReference(text, "hub", text)
    assert resolve(text) == text


def test_a_wrong_name_is_told_the_nearest_run_or_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(tmp_path / "runs" / "mild-cold")
    (tmp_path / "runs" / "20260101").mkdir()
    (tmp_path / "runs" / "20260101" / "config.toml").write_text("")
    (tmp_path / "runs" / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    for wrong in ("runs/mild-colt", "mild-cold", "rnus/mild-cold", "./runs/mildcold", "runs/mild-colt@start"):
        with pytest.raises(EngineError, match=r"; did you mean runs/mild-cold\?$"):
            ModelReference.parse(wrong).check()
    for wrong in ("run9", "runs/none", "builtin-smollm2"):
        with pytest.raises(EngineError, match=r"runs and models here: runs/20260101, runs/mild-cold$"):
            ModelReference.parse(wrong).check()


def test_a_hub_that_cannot_be_reached_is_said_at_once(tmp_path: Path) -> None:
    """Also where a folder of that owner is here: the id may be one of the hub all the same."""
    model_folder(tmp_path / "owner" / "same-model")
    code = (
        "from selfemo.models.references import ModelReference; import time; start = time.monotonic()\n"
        "try: ModelReference.parse('owner/some-model').check()\n"
        "except Exception as e: print(time.monotonic() - start < 4, e)"
    )
    closed = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}  # the discard port: nobody listens
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=closed,
                          cwd=tmp_path).stdout  # fmt: skip
    assert said.startswith("True owner/some-model: no such folder; as a hub id, it is not in the cache")
    assert "builtin:smollm2-135m needs no network; did you mean owner/same-model?" in said


def test_a_folder_and_a_file(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m@home")
    assert ModelReference.parse(str(folder)) == ModelReference(str(folder), "folder", str(folder))
    (tmp_path / "w.gguf").write_bytes(b"GGUF")
    found = ModelReference.parse(str(tmp_path / "w.gguf"))
    assert found.kind == "gguf" and needs_conversion(found.text)
    assert found.on_this_machine() == ("", "a GGUF file, converted at first use")


def test_a_run_is_its_last_iteration_and_10_comes_after_9(run: Path) -> None:
    found = ModelReference.parse(str(run))
    assert (found.kind, found.run, found.checkpoint) == ("checkpoint", run, "iteration-10")
    assert found.load_path() == str(run / "checkpoints" / "iteration-10")


def test_a_policy_before_its_refit_is_no_last_checkpoint(run: Path) -> None:
    for name in ("iteration-9", "iteration-10"):
        (run / "checkpoints" / name / "config.json").unlink()
    assert ModelReference.parse(str(run)).checkpoint == "cold-start"
    (run / "checkpoints" / "cold-start" / "config.json").unlink()
    with pytest.raises(EngineError, match="without a checkpoint yet"):
        ModelReference.parse(str(run))


def test_a_checkpoint_is_named_by_its_run_or_by_its_folder(run: Path) -> None:
    folder = run / "checkpoints" / "iteration-2-rl"
    for text in (f"{run}@iteration-2-rl", str(folder)):
        found = ModelReference.parse(text)
        assert (found.run, found.checkpoint, found.path) == (run, folder.name, str(folder))
        assert run_of(text) == run
    assert run_of("owner/some-model") is run_of("ann=http://host/v1,model=m") is None


def test_the_start_of_a_run_is_the_model_of_its_settings(run: Path) -> None:
    found = ModelReference.parse(f"{run}@start")
    assert (found.run, found.checkpoint) == (run, "start")
    with pytest.raises(EngineError, match=r"model\.id"):
        found.load_path()
    assert find_checkpoint(f"{run}@start") == "builtin:smollm2-135m"
    config, checkpoint = settings_for(f"{run}@start", ["data"], [], ["seed=3"])
    assert (checkpoint, config.prompt.max_tokens, config.seed) == ("builtin:smollm2-135m", 77, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("builtin:none", r"no built-in model 'builtin:none'; there is: builtin:smollm2-135m"),
        ("{tmp}/none", r"no model folder, run, GGUF file or hub id: there is no .*none/config\.json"),
        ("{tmp}", r"no config\.json, nor the config\.toml of a run"),
        ("{tmp}/x.gguf", "no such GGUF file"),
        ("{run}@iteration-3", "no checkpoint 'iteration-3'; there are: start, cold-start, iter"),
        ("{tmp}/my-rnu@iteration-9", r"my-rnu/config\.toml"),
        ("my-rnu@iteration-9", r"my-rnu/config\.toml"),
    ],
)
def test_a_wrong_reference_says_what_was_looked_for(run: Path, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        ModelReference.parse(text.format(tmp=tmp_path, run=run))


def test_altered_weights_are_refused(run: Path) -> None:
    folder = run / "checkpoints" / "iteration-9"
    (folder / "selfemo_checksums.json").write_text('{"model.safetensors": "0"}')
    with pytest.raises(EngineError, match=r"model\.safetensors: missing or altered"):
        ModelReference.parse(f"{run}@iteration-9").weights()


def test_special_tokens_are_those_that_a_gguf_file_names(tmp_path: Path) -> None:
    """Whatever transformers made of them: a version of it takes the beginning of a turn for its end."""
    from gguf import GGUFWriter
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["<none>", "<begin>", "<end>", "hello"]
    core = Tokenizer(models.WordLevel({w: k for k, w in enumerate(words)}, unk_token="<none>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<begin>", unk_token="<none>")
    assert tokenizer.eos_token_id == 1 and tokenizer.pad_token is None
    writer = GGUFWriter(tmp_path / "w.gguf", "llama")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    references._name_special_tokens(tokenizer, tmp_path / "w.gguf")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<begin>", "<end>", "<end>")
    assert tokenizer.eos_token_id == 2 and tokenizer.unk_token == "<none>", "what it does not name stays"
    again = tmp_path / "saved"
    tokenizer.save_pretrained(again)
    assert PreTrainedTokenizerFast.from_pretrained(again).eos_token == "<end>"
