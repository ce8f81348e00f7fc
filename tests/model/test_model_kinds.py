"""Models as people have them: each kind works, or is one error at loading that says what to do."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from selfemo.errors import EngineError
from selfemo.method.prompts import format_completion, messages
from selfemo.models.chat_template import mend, probe, probe_answer, render
from selfemo.models.generation.local import LocalGenerator, LocalSampler
from selfemo.models.generation.own_format import OwnFormat
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.loading import load_policy
from selfemo.models.packing import pack
from selfemo.models.policy import Decoder, Policy
from selfemo.models.tokenizers import load_tokenizer
from selfemo.progress import NOTES
from selfemo.training.checkpoints import write_checkpoint
from tests.conftest import MELD
from tests.support.models import TEMPLATES, copy_of, edit, of_architecture, with_template, with_tokenizer

ASKED = messages(probe())
SYSTEM, USER = (m["content"] for m in ASKED)
TURN = "<|im_start|>{}\n{}<|im_end|>\n"
OPEN = "<|im_start|>assistant\n"
APART = TURN.format("system", SYSTEM) + TURN.format("user", USER) + OPEN
FIRST = TURN.format("user", f"{SYSTEM}\n\n{USER}") + OPEN


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What loading tells the user, but for the line that it begins."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not (line := record.getMessage()).startswith("loading the weights"):
                said.append(line)

    handler, level = Keep(), NOTES.level
    NOTES.addHandler(handler)
    NOTES.setLevel(logging.INFO)
    yield said
    NOTES.removeHandler(handler)
    NOTES.setLevel(level)


def load_(folder: Path, **kw: Any) -> Policy:
    return load_policy(str(folder), "cpu", **kw)


def text_of(policy: Any, chat: list[dict[str, str]] = ASKED) -> str:
    return str(policy.tokenizer.decode(policy.encode(chat), clean_up_tokenization_spaces=False))


# -- templates -------------------------------------------------------------------------------------


PROMPTS: dict[str, tuple[str, str]] = {
    "plain": (APART, ""),
    "refuses the system role": (FIRST, "takes no system message (TemplateError: No system, please)"),
    "alternates": (FIRST, "takes no system message (TemplateError: Roles must take turns"),
    "drops the system message": (FIRST, "the text of the system message is not in the prompt"),
    "knows enable_thinking": (f"{APART}<think>\n\n</think>\n\n", ""),
    "opens a thought": (f"{APART}<think>\n\n</think>\n\n", r"'\n</think>\n\n' ends it"),
    "opens a thought without a line end": (f"{APART}<think>\n\n</think>\n\n", r"'\n\n</think>\n\n' ends it"),
    "answers in a channel": (
        f"<|im_start|>system{SYSTEM}<|im_end|>\n<|im_start|>user{USER}<|im_end|>\n"
        "<|im_start|>assistant<|to|>all",
        "'<|to|>all' ends it",
    ),
    "writes the date": (f"Today is 26 Jul 2024.\n{APART}", 'it is always "26 Jul 2024" here'),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_prompt_by_each_kind_of_template(
    tiny_model: Path, tmp_path: Path, notes: list[str], kind: str
) -> None:
    """The user is told what is done, and a checkpoint needs nothing done any more."""
    folder = with_template(tiny_model, tmp_path / "m", TEMPLATES[kind])
    policy = load_(folder)
    prompt, said = PROMPTS[kind]
    assert text_of(policy) == prompt
    assert [said in n and n.startswith(f"{folder}: ") for n in notes] == ([True] if said else [])
    ids, places = policy.encode_completion(probe_answer())
    assert policy.decode(ids) == probe_answer() and ids[-1] == policy.end_id and len(places) == len(ids)
    notes.clear()
    write_checkpoint(policy.core, policy.tokenizer, tmp_path / "checkpoint")
    again = load_(tmp_path / "checkpoint")
    assert again.encode(ASKED) == policy.encode(ASKED) and not notes


def test_a_template_that_does_what_is_asked_stays_as_it_is(tiny_model: Path) -> None:
    policy = load_(tiny_model)
    assert policy.tokenizer.chat_template == (tiny_model / "chat_template.jinja").read_text()
    assert mend(policy.tokenizer).notes == () and not mend(policy.tokenizer).system_first


@pytest.mark.parametrize("kind", [k for k in PROMPTS if k != "knows enable_thinking"])
def test_an_answer_follows_the_prompt_where_the_template_puts_answers(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    """The whole chat by the template is prompt, completion, end token: nothing stands between them.

    Templates of thoughts leave the thought out of past turns; the prompt keeps an empty one.
    """
    reader = load_tokenizer(str(with_template(tiny_model, tmp_path / "m", TEMPLATES[kind])))
    answer = {"role": "assistant", "content": probe_answer()}
    whole = render(reader.tokenizer, [*ASKED, answer], prompt=False)
    end = reader.tokenizer.convert_ids_to_tokens(reader.end_id)
    without = text_of(reader).replace("<think>\n\n</think>\n\n", "")
    assert whole.startswith(f"{without}{probe_answer()}{end}")


def test_later_turns_keep_their_roles_where_the_system_text_stands_first(
    tiny_model: Path, tmp_path: Path
) -> None:
    reader = load_tokenizer(str(with_template(tiny_model, tmp_path / "m", TEMPLATES["alternates"])))
    chat = [*ASKED, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Once more."}]
    assert text_of(reader, chat) == (FIRST + "No.<|im_end|>\n" + TURN.format("user", "Once more.") + OPEN)
    alone = text_of(reader, chat[:1])
    assert alone == TURN.format("user", SYSTEM) + OPEN, "a system message alone is a user's"
    assert text_of(reader, chat[1:2]) == TURN.format("user", USER) + OPEN


def test_a_model_without_a_template_reads_plain_text(
    tiny_model: Path, tmp_path: Path, notes: list[str]
) -> None:
    policy = load_(with_template(tiny_model, tmp_path / "m", None))
    assert text_of(policy) == f"{SYSTEM}\n\n{USER}\n\n"
    assert len(notes) == 1 and "has no chat template (a base model?)" in notes[0]
    whole = render(policy.tokenizer, [*ASKED, {"role": "assistant", "content": "R: Hi"}], prompt=False)
    assert whole == f"{SYSTEM}\n\n{USER}\n\nR: Hi<|im_end|>\n\n"
    assert policy.end_id == policy.tokenizer.eos_token_id


def test_a_model_without_a_template_begins_as_its_tokenizer_begins_texts(
    tiny_model: Path, tmp_path: Path
) -> None:
    from tokenizers.processors import TemplateProcessing

    def begin(tokenizer: Any) -> None:
        tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", 0)]
        )
        tokenizer.chat_template = None

    folder = with_tokenizer(tiny_model, tmp_path / "m", begin)
    (folder / "chat_template.jinja").unlink()
    reader = load_tokenizer(str(folder))
    assert reader.tokenizer("a").input_ids[0] == 0, "the tokenizer puts it before a text"
    ids = reader.encode(ASKED)
    assert ids[0] == 0 and ids.count(0) == 1, "once, not twice"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in %}", "TemplateSyntaxError"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "text of the system message is not"),
        ("{{ raise_exception('Only tools') }}", "TemplateError: Only tools"),
    ],
)
def test_a_template_that_cannot_write_a_prompt_is_one_error(
    tiny_model: Path, tmp_path: Path, template: str, says: str
) -> None:
    folder = with_template(tiny_model, tmp_path / "m", template)
    with pytest.raises(EngineError, match=rf"its chat template cannot write .*{says}.*chat_template\.jinja"):
        load_(folder)


def test_of_several_named_templates_the_one_of_chats_is_taken(tiny_model: Path, tmp_path: Path) -> None:
    named = {"default": TEMPLATES["refuses the system role"], "tool_use": "{{ tools }}"}

    def several(tokenizer: Any) -> None:
        tokenizer.chat_template = named

    folder = with_tokenizer(tiny_model, tmp_path / "m", several)
    reader = load_tokenizer(str(folder))
    assert text_of(reader) == FIRST and reader.tokenizer.chat_template["tool_use"] == "{{ tools }}"


def test_every_template_that_trl_ships_is_read_or_refused() -> None:
    """Those of Cohere, DeepSeek, Gemma, GLM, GPT-OSS, Llama, Nemotron, Phi, Qwen, with thoughts or without.

    Refused are those that take parts of pictures alone.
    """
    trl = pytest.importorskip("trl")
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    found = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    refused = set()
    for file in found:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>"
        )
        tokenizer.chat_template = file.read_text()
        try:
            mend(tokenizer)
        except EngineError:
            refused.add(file.stem.removesuffix("_training"))
            continue
        prompt = render(tokenizer, ASKED)
        assert SYSTEM in prompt and USER in prompt, file.name
        for opened, closed in (("<think>", "</think>"), ("<|START_THINKING|>", "<|END_THINKING|>")):
            assert prompt.count(opened) == prompt.count(closed), file.name
        assert mend(tokenizer).notes == (), file.name
    assert refused <= {"idefics3", "llava_next", "smolvlm"}


def test_training_and_sampling_read_the_same_prompt(tiny_model: Path, tmp_path: Path) -> None:
    from selfemo.config import ModelConfig
    from selfemo.training.engine import LocalEngine

    folder = with_template(tiny_model, tmp_path / "m", TEMPLATES["refuses the system role"])
    engine = LocalEngine(ModelConfig(id=str(folder), device="cpu", dtype="fp32"))
    reader = load_tokenizer(str(folder))
    assert engine.policy.encode(ASKED) == LocalSampler(engine.policy).encode(ASKED) == reader.encode(ASKED)


# -- end tokens ------------------------------------------------------------------------------------


def add(*names: str, special: bool = True) -> Callable[[Any], None]:
    def change(tokenizer: Any) -> None:
        tokenizer.add_tokens(list(names), special_tokens=special)

    return change


def nothing(tokenizer: Any) -> None: ...


@pytest.fixture
def own_end(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose turns end by a token that neither tokenizer nor settings call an end token."""
    folder = with_tokenizer(tiny_model, tmp_path / "own-end", add("<|turn|>"), rows=401)
    (folder / "chat_template.jinja").write_text(TEMPLATES["ends turns by a token of its own"])
    return folder


def test_completions_end_where_the_template_ends_a_turn(own_end: Path, tmp_path: Path) -> None:
    policy = load_(own_end)
    turn = policy.tokenizer.convert_tokens_to_ids("<|turn|>")
    assert policy.end_id == turn and policy.end_ids == {1, turn}
    assert policy.encode_completion("R: Hi")[0][-1] == turn
    with torch.no_grad():
        policy.core.get_input_embeddings().weight[turn] *= 1e3  # drawn at once, or never: half of the prompts
    requests = [Request(policy.encode([{"role": "user", "content": str(k)}]), 1, k) for k in range(8)]
    for decoder in ("branches", "slots"):
        policy.decoder = decoder
        found = [s for (s,) in LocalGenerator(policy, SamplingSettings(3)).generate(requests)]
        ended = [s for s in found if turn in s.token_ids]
        assert ended and all(s.finished and s.token_ids.index(turn) == len(s.token_ids) - 1 for s in ended)
        assert not any("<|turn|>" in s.text for s in found)
    write_checkpoint(policy.core, policy.tokenizer, tmp_path / "c")
    named = json.loads((tmp_path / "c" / "generation_config.json").read_text())["eos_token_id"]
    assert set(named) == {1, turn}, "whoever opens the checkpoint stops there too"


def test_the_end_tokens_of_the_settings_count_too(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    edit(folder, "generation_config.json", eos_token_id=[1, 0])
    policy = load_(folder)
    assert policy.end_ids == {0, 1} and policy.end_id == 1


def no_end(tokenizer: Any) -> None:
    tokenizer.eos_token = tokenizer.pad_token = None


def test_without_an_end_token_the_template_names_one(
    tiny_model: Path, tmp_path: Path, notes: list[str]
) -> None:
    folder = with_tokenizer(tiny_model, tmp_path / "m", no_end)
    edit(folder, "config.json", eos_token_id=None)
    edit(folder, "generation_config.json", eos_token_id=None)
    policy = load_(folder)
    assert policy.end_ids == {1} and policy.tokenizer.eos_token == "<|im_end|>"
    assert len(notes) == 1 and "names no end token: <|im_end|> is taken" in notes[0]


def test_without_template_and_end_token_the_settings_name_one(tiny_model: Path, tmp_path: Path) -> None:
    folder = with_tokenizer(tiny_model, tmp_path / "m", no_end)
    (folder / "chat_template.jinja").unlink()
    assert load_(folder).end_ids == {1}
    for file in ("config.json", "generation_config.json"):
        edit(folder, file, eos_token_id=7)
    with pytest.raises(EngineError, match=r"names 7 as an end token .* which is the text '&'"):
        load_(folder)
    for file in ("config.json", "generation_config.json"):
        edit(folder, file, eos_token_id=None)
    (folder / "generation_config.json").write_text('{"eos_token_id": null}')
    with pytest.raises(
        EngineError, match=r"names no end token .*write eos_token into tokenizer_config\.json"
    ):
        load_(folder)


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "rows", "template", "says"),
    [
        (nothing, 300, None, r"has 400 tokens, its weights have rows for 300; .*Take the tokenizer that"),
        (add("🦉", special=False), None, None, "401 tokens, its weights have rows for 400; '🦉' has none"),
        (
            add("<|turn|>"),
            None,
            "ends turns by a token of its own",
            r"'<\|turn\|>' has none.*resize_token_emb",
        ),
    ],
    ids=["another tokenizer", "text can name it", "the template writes it"],
)
def test_tokens_without_rows_are_one_error(
    tiny_model: Path,
    tmp_path: Path,
    change: Callable[[Any], None],
    rows: int | None,
    template: str | None,
    says: str,
) -> None:
    folder = with_tokenizer(tiny_model, tmp_path / "m", change, rows)
    if template:
        (folder / "chat_template.jinja").write_text(TEMPLATES[template])
    with pytest.raises(EngineError, match=says):
        load_(folder)
    with pytest.raises(EngineError, match=says):
        load_tokenizer(str(folder))  # no weights are read for it


def test_tokens_without_rows_that_no_text_can_name_do_no_harm(
    tiny_model: Path, tmp_path: Path, notes: list[str]
) -> None:
    policy = load_(with_tokenizer(tiny_model, tmp_path / "m", add("<|extra|>")))
    assert len(notes) == 1 and "'<|extra|>' has none, and no text can name them here" in notes[0]
    ids = policy.encode([{"role": "user", "content": "Say <|extra|> twice: <|extra|>"}])
    assert max(ids) < 400
    in_format(policy)


@pytest.mark.parametrize("decoder", ["branches", "slots"])
def test_rows_without_a_token_are_never_drawn(tiny_model: Path, tmp_path: Path, decoder: Decoder) -> None:
    """Not even where the model would rather draw them; log-probabilities and entropies are of the others."""
    policy = load_(with_tokenizer(tiny_model, tmp_path / "m", nothing, rows=448), decoder=decoder)
    assert policy.spare is not None and policy.spare.tolist() == list(range(400, 448))
    with torch.no_grad():
        policy.core.get_input_embeddings().weight[400:] = 9 * torch.randn(48, 48)
    request = Request(policy.encode(ASKED), 4, 5)
    for temperature in (0.0, 0.3, 1.0):
        (found,) = LocalGenerator(policy, SamplingSettings(20, temperature=temperature)).generate([request])
        assert all(i < 400 for s in found for i in s.token_ids)
        if temperature:
            continue
        ids = torch.tensor([[*request.prompt_ids, *found[0].token_ids]])
        logits = policy.core(ids).logits[0, len(request.prompt_ids) - 1 : -1, :400]
        logp = torch.log_softmax(logits.float(), -1)
        expected = logp.gather(-1, torch.tensor(found[0].token_ids)[:, None])[:, 0]
        assert found[0].logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        entropies = -(logp.exp() * logp).sum(-1)
        assert found[0].entropies == pytest.approx(entropies.tolist(), abs=1e-4)
    in_format(policy)


def in_format(policy: Policy) -> None:
    """Completions under the format parse (grammar.py), by whatever tokenizer."""
    request = Request(policy.encode(ASKED), 2, 3, constraints=OwnFormat(policy, MELD).limited(90))
    (found,) = LocalGenerator(policy, SamplingSettings(90)).generate([request])
    assert all(s.finished and s.text.startswith("E: ") and s.token_ids[-1] == policy.end_id for s in found)


def test_the_format_ends_by_the_end_of_the_turn(own_end: Path) -> None:
    in_format(load_(own_end))


# -- tokenizers ------------------------------------------------------------------------------------


def rebuilt(tokenizer: Any, **parts: Any) -> Any:
    """The tokenizer with other parts: a normalizer, say."""
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


def blanks_first(tokenizer: Any) -> Any:
    """One in the manner of Llama 2 and Mistral, which puts a blank before every text."""
    import string

    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<|im_end|>", "<|im_start|>"]
    letters = [c for c in string.printable if not c.isspace()]
    pieces = [*special, *(f"<0x{b:02X}>" for b in range(256)), *letters, "▁", "jo", "joy", "▁joy"]
    core = Tokenizer(
        models.BPE(
            {piece: k for k, piece in enumerate(pieces)},
            [("j", "o"), ("jo", "y"), ("▁", "joy")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(s, special=True) for s in special])
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<|im_end|>")
    made.chat_template = tokenizer.chat_template
    return made


def test_a_tokenizer_that_puts_blanks_before_texts(
    tiny_model: Path, tmp_path: Path, notes: list[str]
) -> None:
    """A completion made of parts has the ids of the whole: no blank stands before its S line."""
    policy = load_(with_tokenizer(tiny_model, tmp_path / "m", blanks_first))
    assert not notes
    head, rest = "E: joy 7, fear 3\n", "S: neutral\nR: Öh, 2 of us?"
    ids = [*policy.line_ids(head), *policy.line_ids(rest)]
    assert policy.decode(ids) == head + rest
    assert policy.encode_completion(head + rest)[0] == [*ids, policy.end_id]
    in_format(policy)


def test_other_tokenizers_encode_parts_as_they_stand(tiny_model: Path) -> None:
    policy = load_(tiny_model)
    for part in ("E: joy\n", "S: fear\nR:", " Hi"):
        assert policy.line_ids(part) == policy.plain_ids(part)


def test_a_tokenizer_that_loses_what_the_format_needs_is_one_error(tiny_model: Path, tmp_path: Path) -> None:
    from tokenizers import normalizers

    for name, normalizer in {"case": normalizers.Lowercase(), "ends": normalizers.Replace("\n", " ")}.items():
        folder = with_tokenizer(tiny_model, tmp_path / name, partial(rebuilt, normalizer=normalizer))
        with pytest.raises(EngineError, match=r"its tokenizer loses text: .*keeps case, line ends"):
            load_(folder)


def test_a_tokenizer_without_other_scripts_is_told(
    tiny_model: Path, tmp_path: Path, notes: list[str]
) -> None:
    from tokenizers import normalizers

    drop = partial(rebuilt, normalizer=normalizers.Replace("🙂", ""))
    load_(with_tokenizer(tiny_model, tmp_path / "m", drop))
    assert len(notes) == 1 and "its tokenizer loses characters that are not ASCII" in notes[0]


def test_a_tokenizer_that_makes_special_tokens_of_text_is_one_error(tiny_model: Path, tmp_path: Path) -> None:
    """`defused` parts a token's name by a blank, and this normalizer takes the blank away again."""
    from tokenizers import AddedToken, normalizers

    def change(tokenizer: Any) -> Any:
        tokenizer.add_tokens([AddedToken("<|own|>", special=True, normalized=True)])
        return rebuilt(tokenizer, normalizer=normalizers.Replace("< |own|>", "<|own|>"))

    with pytest.raises(EngineError, match="reads special tokens in the text of a message"):
        load_(with_tokenizer(tiny_model, tmp_path / "m", change, rows=401))


def test_a_slow_tokenizer_is_one_error(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    edit(folder, "config.json", model_type="ctrl", architectures=["CTRLLMHeadModel"])
    edit(folder, "tokenizer_config.json", tokenizer_class="CTRLTokenizer")
    (folder / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match=r"slow one \(CTRLTokenizer\).*give the folder a tokenizer\.json"):
        load_(folder)


# -- weights and architectures ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"intermediate_size": 128}, r"6 of its weights do not have the shapes .*\(48, 96\) in the file"),
        ({"num_hidden_layers": 3}, r"9 of the weights that its config\.json asks for are in no file"),
        ({"tie_word_embeddings": False}, r"in no file, such as lm_head\.weight; they would be random"),
        (
            {"model_type": "newest", "architectures": ["NewestForCausalLM"]},
            r"\(newest\) is not known to transf",
        ),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}},
            r"architecture \(own\) comes as Python code .* no such code is run here",
        ),
        ({"model_type": None}, "cannot load model"),
        ({"num_attention_heads": 5}, "cannot load model"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_one_error(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    edit(folder, "config.json", **changes, layer_types=None)
    with pytest.raises(EngineError, match=says):
        load_(folder)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_weights_without_a_place_are_told(tiny_model: Path, tmp_path: Path, notes: list[str]) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    edit(folder, "config.json", num_hidden_layers=1, layer_types=None)
    load_(folder)
    assert len(notes) == 1 and "9 of its weights are not used, such as model.layers.1." in notes[0]


def test_a_tokenizer_of_ones_own_code_is_one_error(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    own = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    edit(folder, "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)
    with pytest.raises(EngineError, match=r"Python code beside the weights .* no such code is run here"):
        load_(folder)


@pytest.mark.parametrize(
    "name",
    ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "SmolLM3", "Phi", "Phi3", "Olmo", "Olmo2", "Granite",
     "GPT2", "OPT", "Mixtral"],
)  # fmt: skip
def test_the_architectures_that_docs_name_are_loaded(tiny_model: Path, tmp_path: Path, name: str) -> None:
    kind = f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    policy = load_(of_architecture(tiny_model, tmp_path / "m", name))  # packed and plain rows agree
    assert type(policy.core).__name__ == kind


@pytest.mark.parametrize("name", ["Bloom", "Mamba", "Gemma2", "GptOss", "Mpt", "Bert"])
def test_an_architecture_that_packing_does_not_fit_is_one_error(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(EngineError, match=r"full causal attention \(Llama, Qwen2") as e:
        load_(of_architecture(tiny_model, tmp_path / "m", name))
    assert "\n" not in str(e.value)


def test_a_window_shorter_than_the_context_is_told(
    tiny_model: Path, tmp_path: Path, notes: list[str]
) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = json.loads((tiny_model / "config.json").read_text())
    config = MistralConfig(
        **{k: sizes[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
        num_attention_heads=4, num_key_value_heads=2, sliding_window=64, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path / "m")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / file, tmp_path / "m")
    load_(tmp_path / "m")
    assert len(notes) == 1 and "some of its layers look back 64 tokens" in notes[0]


def test_a_prompt_beyond_a_table_of_positions_is_one_error(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 400, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 200}
    GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=1, bos_token_id=None)).save_pretrained(tmp_path / "m")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / file, tmp_path / "m")
    policy = load_(tmp_path / "m")
    for prompt, new in ((192, 8), (193, 8), (201, 0)):
        generator = LocalGenerator(policy, SamplingSettings(new))
        if prompt + new <= 200:
            generator.generate([Request([5] * prompt, 1, 0)])
            continue
        with pytest.raises(EngineError, match=f"may have {prompt + new} tokens, .* positions for 200; lower"):
            generator.generate([Request([5] * prompt, 1, 0)])
    with pytest.raises(EngineError, match="positions for 200"):
        policy.rows([pack([[5] * 201])])


def test_other_weights_bring_their_tokenizer_and_its_spare_rows(tiny_model: Path, tmp_path: Path) -> None:
    wide = with_tokenizer(tiny_model, tmp_path / "wide", nothing, rows=448)
    full = with_tokenizer(tiny_model, tmp_path / "full", add(*(f"<{k}>" for k in range(48))), rows=448)
    sampler = LocalSampler(load_(full))
    assert sampler.policy.spare is None
    sampler.load(str(wide))
    assert sampler.policy.spare is not None and len(sampler.policy.spare) == 48


def test_the_completion_of_the_probe_is_one_of_the_format() -> None:
    from selfemo.method.parsing import parse
    from selfemo.method.types import Completion

    for ascii_only in (True, False):
        read = parse(probe_answer(ascii_only=ascii_only), probe().label_set)
        assert isinstance(read, Completion) and format_completion(read) == probe_answer(ascii_only=ascii_only)
    assert all(ord(c) < 128 for m in messages(probe(ascii_only=True)) for c in m["content"])
