"""A model folder's files, looked at before anything heavy is loaded: each kind of mistake is one error."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from selfemo.errors import EngineError
from selfemo.models.references import ModelReference, resolve
from tests.support.files import model_folder
from tests.support.models import edit

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 269060552\n"


def safetensors(path: Path, tensors: dict[str, int], extra: int = 0) -> None:
    """A file whose head names tensors of so many bytes; `extra` bytes follow or, below 0, are missing."""
    head, end = {}, 0
    for name, size in tensors.items():
        head[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    written = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(written)) + written + bytes(end + extra))


def shards(folder: Path, *names: str) -> None:
    (folder / "model.safetensors").unlink()
    placed = {f"w{k}": name for k, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


def config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder, "config.json", **changes)


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def rename(name: str, to: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / to)


def adapter(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base-model"}')
    safetensors(folder / "adapter_model.safetensors", {"lora": 8})


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "adapter": (adapter, r"adapter \(LoRA\) over some/base-model.*merge_and_unload.*give MERGED"),
    "adapter beside weights": (write("adapter_config.json", "{}"), "is an adapter"),
    "pickle": (
        rename("model.safetensors", "pytorch_model.bin"),
        r"pickled weights are not loaded \(pytorch_model\.bin\).*save_pretrained\('NEW'\)",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"holds no \*\.safetensors weights$"),
    "pointer for weights": (
        write("model.safetensors", POINTER),
        r"safetensors: a pointer of Git LFS.*lfs pull",
    ),
    "pointer for the tokenizer": (write("tokenizer.json", POINTER), r"tokenizer\.json: a pointer of Git LFS"),
    "pointer for the config": (write("config.json", POINTER), r"config\.json: a pointer of Git LFS"),
    "empty weights": (write("model.safetensors", ""), "no whole safetensors file"),
    "noise for weights": (write("model.safetensors", "x" * 99), r"safetensors file \(its head is cut\)"),
    "cut weights": (
        lambda f: safetensors(f / "model.safetensors", {"a": 900, "b": 100}, extra=-7),
        r"is cut: 1,[0-9]{3} bytes of 1,[0-9]{3}; fetch it again",
    ),
    "one shard gone": (
        lambda f: (shards(f, "a.safetensors", "b.safetensors"), safetensors(f / "a.safetensors", {"w0": 3})),
        r"b\.safetensors of 2 files of weights missing",
    ),
    "many shards gone": (
        lambda f: (
            shards(f, *(f"{k}.safetensors" for k in range(6))),
            safetensors(f / "5.safetensors", {"w5": 3}),
        ),
        r"0\.safetensors, 1\.safetensors, 2\.safetensors and 2 more of 6 files",
    ),
    "an index of something else": (
        write("model.safetensors.index.json", "[]"),
        r"index\.json is no JSON object",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.*copy these two files"),
    "config cut": (write("config.json", '{"model_type":'), r"config\.json is no whole JSON"),
    "generation settings cut": (write("generation_config.json", "{"), r"generation_config\.json is no whole"),
    "gptq": (config(quantization_config={"quant_method": "gptq"}), r"quantised \(gptq\).*GGUF"),
    "quantised by name alone": (config(quantization_config="own"), r"quantised \(own\)"),
    "encoder": (config(architectures=["BertForMaskedLM"]), "BertForMaskedLM does not write text"),
    "classifier": (config(architectures=["LlamaForSequenceClassification"]), "does not write text"),
    "encoder and decoder": (
        config(architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True),
        "T5ForConditionalGeneration is an encoder with a decoder",
    ),
    "pictures": (
        config(architectures=["LlavaForConditionalGeneration"], vision_config={"depth": 2}),
        "also takes pictures or sound",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_folder_is_one_error_that_says_what_to_do(tmp_path: Path, kind: str) -> None:
    folder = model_folder(tmp_path / "m")
    spoil, says = KINDS[kind]
    ModelReference.parse(str(folder)).check()
    spoil(folder)
    for step in (lambda: ModelReference.parse(str(folder)).check(), lambda: resolve(str(folder))):
        with pytest.raises(EngineError, match=says) as e:
            step()
        assert str(folder) in str(e.value)


def test_whole_folders_pass(tmp_path: Path) -> None:
    one = model_folder(tmp_path / "one")
    safetensors(one / "model.safetensors", {"a": 5, "b": 0})
    many = model_folder(tmp_path / "many")
    shards(many, "a.safetensors", "b.safetensors")
    for name in "ab":
        safetensors(many / f"{name}.safetensors", {name: 3})
    sentencepiece = model_folder(tmp_path / "pieces")
    (sentencepiece / "tokenizer.json").rename(sentencepiece / "tokenizer.model")
    headless = model_folder(tmp_path / "headless")
    edit(headless, "config.json", architectures=["LlamaModel"])
    for folder in (one, many, sentencepiece, headless):
        ModelReference.parse(str(folder)).check()


def test_a_wrong_folder_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "model.safetensors").write_text(POINTER)
    code = (
        "import sys; from selfemo.runs.settings import find_checkpoint\n"
        f"try: find_checkpoint({str(folder)!r})\n"
        "except Exception as e: print(e)\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "a pointer of Git LFS" in said and said.endswith("[]\n")


@pytest.mark.parametrize(
    ("text", "says"), [(POINTER, "a pointer of Git LFS"), ("<html>", "no GGUF file"), ("", "no GGUF file")]
)
def test_a_gguf_file_begins_as_one(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "w.gguf").write_text(text)
    with pytest.raises(EngineError, match=says):
        ModelReference.parse(str(tmp_path / "w.gguf")).check()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter (LoRA), not a whole model"),
        (["README.md", "m.Q4.gguf"], "it has no config.json, but GGUF files: fetch one and give its path"),
        (["config.json", "pytorch_model.bin"], "pickled weights are not loaded"),
        (["config.json", "model.safetensors"], "all is well"),
    ],
)
def test_the_files_of_a_hub_id_are_looked_at_by_name(tmp_path: Path, files: list[str], says: str) -> None:
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {"id": "owner/model", "siblings": [{"rfilename": f} for f in files]}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_: object) -> None: ...

    hub = HTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=hub.serve_forever, daemon=True).start()
    code = (
        "from selfemo.models.references import ModelReference\n"
        "try: ModelReference.parse('owner/model').check(); print('all is well')\n"
        "except Exception as e: print(e)"
    )
    here = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    try:
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=here, cwd=tmp_path
        )
    finally:
        hub.shutdown()
        hub.server_close()
    assert says in said.stdout, said.stderr
