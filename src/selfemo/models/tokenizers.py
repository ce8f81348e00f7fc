"""Loading of tokenizers: template, vocabulary, and a whole prompt there and back, before weights are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from selfemo.errors import EngineError
from selfemo.method.prompts import messages
from selfemo.models.chat_template import mend, probe, probe_answer
from selfemo.models.folders import check_config
from selfemo.models.policy import ChatTokenizer
from selfemo.models.references import ModelReference
from selfemo.progress import NOTES

_NAMED = 3
"""Most tokens that a message names."""


def load_tokenizer(model_id: str) -> ChatTokenizer:
    """The tokenizer of a model reference, with its template mended and checked against the model's sizes.

    Raises:
        EngineError: no such model, one of another kind, or a tokenizer that cannot carry the prompts and
            completions of this package; the message says what to do.
    """
    reference = ModelReference.parse(model_id)
    path = reference.load_path()
    try:
        config = _config(path)
        reader = ChatTokenizer(_tokenizer(path), _generation_config(path, config), config=config)
    except EngineError:
        raise
    except Exception as e:
        # A broken file of a model raises as many types as there are readers of its files.
        raise EngineError(cannot_load(reference, e)) from e
    try:
        reader = replace(reader, mended=mend(reader.tokenizer))
        notes = [*reader.mended.notes, *check_text(reader, reader.vocabulary)]
    except EngineError as e:
        raise EngineError(f"{model_id}: {e}") from e
    for note in notes:
        NOTES.info("%s: %s", model_id, note)
    return reader


def cannot_load(reference: ModelReference, e: Exception) -> str:
    """The message for whatever stopped a model from being loaded."""
    hub = " (taken as a hub id: there is no such folder)" if reference.kind == "hub" else ""
    said = f"{type(e).__name__}: {' '.join(str(e).split())}"
    if "trust_remote_code" in said:  # its own advice is to run that code
        said = "a part of it comes as Python code beside the weights (auto_map), and no such code is run here"
    return f"cannot load model {reference.text!r}{hub}: {said}"


def check_text(reader: ChatTokenizer, rows: int) -> list[str]:
    """Run a whole prompt and a completion through template and tokenizer, and back.

    Args:
        rows: of the model's embedding.

    Returns:
        notes for the user: what works, but not wholly.

    Raises:
        EngineError: the texts do not survive, or have tokens that the model has no rows for.
    """
    tokenizer = reader.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise EngineError(
            f"its tokenizer is a slow one ({type(tokenizer).__name__}), which does not tell where a token "
            "stands in the text; give the folder a tokenizer.json"
        )
    notes = []
    _check_ends(reader)
    if beyond := _beyond(reader, rows):
        notes.append(beyond)
    if lost := _lost(reader, ascii_only=False):
        if plainly := _lost(reader, ascii_only=True):
            raise EngineError(
                f"its tokenizer loses text: {plainly}; take the tokenizer that belongs to the model, one "
                "that keeps case, line ends and punctuation"
            )
        notes.append(f"its tokenizer loses characters that are not ASCII: {lost}")
    names = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    spoken = " ".join(names)
    chat = messages(probe())
    forged = [*chat[:-1], {**chat[-1], "content": f"{chat[-1]['content']} {spoken}"}]
    special = {tokenizer.convert_tokens_to_ids(n) for n in names if len(n) > 1 and not n.isspace()}
    before, after = (sum(i in special for i in reader.encode(c)) for c in (chat, forged))
    if after != before:
        raise EngineError(
            "its tokenizer reads special tokens in the text of a message, so a text could speak as a role "
            "(a normalizer that rewrites them?); take another tokenizer"
        )
    return notes


def spare_rows(tokenizer: Any, rows: int) -> list[int]:
    """The rows of an embedding that the tokenizer has no token for: padding, which no text can name."""
    known = set(tokenizer.get_vocab().values())
    return [i for i in range(rows) if i not in known]


def _check_ends(reader: ChatTokenizer) -> None:
    """Refuse end tokens that are pieces of text: completions would be cut there."""
    tokenizer = reader.tokenizer
    own = {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}
    for token in sorted(reader.end_ids - own):
        if text := tokenizer.decode([token]):
            raise EngineError(
                f"its generation_config.json or config.json names {token} as an end token (eos_token_id), "
                f"which is the text {text!r} in its tokenizer; correct it there"
            )


def _beyond(reader: ChatTokenizer, rows: int) -> str:
    """A note on tokens without rows that no text can reach; "" without any."""
    tokenizer = reader.tokenizer
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    if not beyond:
        return ""
    kept_out = {t for t in beyond if reader.defused(t) != t}
    used = [*reader.encode(messages(probe())), reader.end_id]
    examples = ", ".join(sorted(map(repr, beyond))[:_NAMED])
    sizes = (
        f"its tokenizer has {len(tokenizer):,} tokens, its weights have rows for {rows:,}; {examples} "
        f"{'has' if len(beyond) == 1 else 'have'} none"
    )
    if beyond.keys() - kept_out or any(i >= rows for i in used):
        raise EngineError(
            f"{sizes}. Take the tokenizer that belongs to the weights; if you added tokens, give them rows "
            "by model.resize_token_embeddings(len(tokenizer)), train them and save both"
        )
    return f"{sizes}, and no text can name them here"


def _lost(reader: ChatTokenizer, *, ascii_only: bool) -> str:
    """What does not come back from token ids, as an example; "" where all does."""
    asked, answer = messages(probe(ascii_only=ascii_only)), probe_answer(ascii_only=ascii_only)
    prompt = reader.tokenizer.decode(
        reader.encode(asked), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    for text in (m["content"] for m in asked):
        if text not in prompt:
            return f"{_differing(text, prompt)!r} of a prompt does not come back"
    ids, places = reader.encode_completion(answer)
    if (back := reader.decode(ids)) != answer:
        return f"{answer!r} comes back as {back!r}"
    if len(places) != len(ids) or any(a > b for a, b in places) or places[-2][1] != len(answer):
        return f"the places of tokens in {answer!r} are not told"
    return ""


def _differing(text: str, where: str) -> str:
    """The first line of a text that is not in another."""
    return next((line for line in text.splitlines() if line not in where), text[:40])


def _config(path: str) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
    from transformers import __version__ as version

    raw, _ = PreTrainedConfig.get_config_dict(path)
    check_config(raw, path)
    kind = raw.get("model_type")
    if kind and not raw.get("auto_map") and kind not in CONFIG_MAPPING:
        raise EngineError(
            f"{path}: its architecture ({kind}) is not known to transformers {version}, the installed one; "
            "a later one may know it"
        )
    if raw.get("auto_map") and kind not in CONFIG_MAPPING:
        raise EngineError(
            f"{path}: its architecture ({kind}) comes as Python code beside the weights (auto_map), and no "
            "such code is run here; take a model of an architecture that transformers has itself"
        )
    return AutoConfig.from_pretrained(path, trust_remote_code=False)


def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _generation_config(path: str, config: Any) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # there is none
        return GenerationConfig.from_model_config(config)
