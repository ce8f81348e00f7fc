"""Chat templates: what is asked of a tokenizer's own, and what is done where it does something else.

Asked: a system and a user message are taken, and their texts are in the prompt; a completion begins where the
prompt ends, outside of any thought; a chat gives the same prompt on every day. What is missing is added to
the template itself, in Jinja, once, where a tokenizer is loaded. So all that reads the tokenizer has one
form: training, sampling, evaluation, serving, TRL, and whoever opens a checkpoint later. A template that
does what is asked stays as it is, to the byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfemo.errors import EngineError
from selfemo.method.prompts import format_completion, messages
from selfemo.method.types import Completion, EmotionDistribution, LabelSet, Persona, Prompt, Utterance

Chat = Sequence[Mapping[str, str]]

_SET_SYSTEM_FIRST = """\
{%- if messages and messages[0]['role'] == 'system' %}
{%- set answered = messages[1:] %}
{%- if answered and answered[0]['role'] == 'user' %}
{%- set first = messages[0]['content'] + '\\n\\n' + answered[0]['content'] %}
{%- set messages = [{'role': 'user', 'content': first}] + answered[1:] %}
{%- else %}
{%- set messages = [{'role': 'user', 'content': messages[0]['content']}] + answered %}
{%- endif %}
{%- endif %}
"""
_DAY = "26 Jul 2024"
_SET_DAY = "{%- macro strftime_now(form) %}" + _DAY + "{% endmacro %}\n"
"""The name of the function by which transformers gives a template today's date."""
_PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
)
_THOUGHTS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
}
"""What opens a thought in the prompts of reasoning models, and what closes it."""
_PROBE_LABELS = LabelSet("probe", ("anger", "joy", "neutral", "surprise"))


def probe(*, ascii_only: bool = False) -> Prompt:
    """A prompt with all that a prompt can have: scene, persona, several turns, scripts and an emoji."""
    name, text = ("Zoe", "It is here - at last!") if ascii_only else ("Zoë", "Это здесь — 终于! 🙂")
    said = {"Ann": "Did the letter come, or didn't it ?", name: text}
    turns = [Utterance(s, t, None) for s, t in (*said.items(), ("Ann", "Open it , then..."))]
    return Prompt(
        id="probe",
        dataset="probe",
        conversation_id="probe",
        label_set=_PROBE_LABELS,
        history=tuple(turns),
        answerer=name,
        persona=Persona(name, "Warm; hides worry behind jokes."),
        target=None,
        scenario="A kitchen, early (7:05).",
    )


def probe_answer(*, ascii_only: bool = False) -> str:
    """A completion in the format, to `probe`."""
    reply = "Well, 3 of us can't wait!" if ascii_only else "Grüße, 你好! 🙂 I can't wait."
    felt = EmotionDistribution({"joy": 0.7, "surprise": 0.3})
    return format_completion(Completion(felt, EmotionDistribution({"neutral": 1.0}), reply))


def render(tokenizer: Any, chat: Chat, *, prompt: bool = True) -> str:
    """The text of a chat by the tokenizer's template, up to where the assistant's completion starts.

    Args:
        prompt: False ends after the last message.
    """
    text = tokenizer.apply_chat_template(
        list(chat), tokenize=False, add_generation_prompt=prompt, enable_thinking=False
    )
    return str(text)


@dataclass(frozen=True)
class Mended:
    """What `mend` did.

    Attributes:
        notes: a line each, for the user.
        system_first: the template has no system role of its own, so the text stands in front of the first
            user message.
    """

    notes: tuple[str, ...] = ()
    system_first: bool = False

    def chat(self, chat: list[dict[str, str]]) -> list[dict[str, str]]:
        """A chat as a reader of the unmended template needs it."""
        if not self.system_first or len(chat) < 2 or (chat[0]["role"], chat[1]["role"]) != ("system", "user"):
            return chat
        return [{**chat[1], "content": f"{chat[0]['content']}\n\n{chat[1]['content']}"}, *chat[2:]]


def mend(tokenizer: Any) -> Mended:
    """Make a tokenizer's chat template do what is asked of one (see above); again it changes nothing.

    Raises:
        EngineError: the template cannot render a prompt of this package; the message has its own words.
    """
    notes: list[str] = []
    asked = messages(probe())
    own = _template(tokenizer)
    if own is None:
        begins = "{{ bos_token }}" if _begins_with_bos(tokenizer) else ""
        _put(tokenizer, begins + _PLAIN)
        notes.append(
            "its tokenizer has no chat template (a base model?): prompts are plain text, the system text, "
            "a blank line, the user's text, a blank line"
        )
    elif "strftime_now(" in own and _SET_DAY not in own:
        _put(tokenizer, _SET_DAY + own)
        notes.append(
            f'its chat template writes today\'s date into prompts: it is always "{_DAY}" here, so that a '
            "run can be repeated"
        )
    if getattr(tokenizer, "eos_token", None) is None and (end := turn_end(tokenizer)) is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        notes.append(
            f"its tokenizer names no end token: {tokenizer.eos_token} is taken, which its chat template "
            "writes behind an answer"
        )
    system_first = False
    if wrong := _fault(tokenizer, asked):
        before = _template(tokenizer) or ""
        _put(tokenizer, _SET_SYSTEM_FIRST + before)
        if _fault(tokenizer, asked):
            _put(tokenizer, before)
            raise EngineError(
                f"its chat template cannot write a prompt of a system and a user message: {wrong}; give the "
                "folder a chat_template.jinja that can"
            )
        system_first = True
        notes.append(
            f"its chat template takes no system message ({wrong}): the system text stands in front of the "
            "first user message"
        )
    if between := _to_answer(tokenizer, asked):
        before = (_template(tokenizer) or "").removesuffix("\n")
        written = between.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        _put(tokenizer, f"{before}{{% if add_generation_prompt %}}{{{{ '{written}' }}}}{{% endif %}}")
        notes.append(f"its chat template leaves a prompt open for thoughts or a channel: {between!r} ends it")
    return Mended(tuple(notes), system_first)


def turn_end(tokenizer: Any) -> int | None:
    """The id of the special token that the template writes behind an assistant's text; None without one."""
    answer = probe_answer()
    try:
        whole = render(tokenizer, [*_user_alone(), {"role": "assistant", "content": answer}], prompt=False)
    except Exception:  # a template has exceptions of its own; then the end token is the tokenizer's
        return None
    _, found, behind = whole.rpartition(answer)
    mark = special(tokenizer).match(behind.lstrip()) if found else None
    return None if mark is None else int(tokenizer.convert_tokens_to_ids(mark[0]))


def special(tokenizer: Any) -> re.Pattern[str]:
    """The texts that a tokenizer reads as one of its special or added tokens."""
    names = {t.content for t in tokenizer.added_tokens_decoder.values()}
    # One of a single character, or of white space, is no mark that a role could start with.
    marks = sorted((n for n in names if len(n) > 1 and not n.isspace()), key=len)
    return re.compile("|".join(map(re.escape, reversed(marks))) or r"(?!)")


def _user_alone() -> Chat:
    return messages(probe())[-1:]


def _template(tokenizer: Any) -> str | None:
    """The tokenizer's own template; of several with names, the one of plain chats."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):
        return own.get("default")
    return own or None


def _put(tokenizer: Any, template: str) -> None:
    own = getattr(tokenizer, "chat_template", None)
    tokenizer.chat_template = {**own, "default": template} if isinstance(own, dict) else template


def _begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts its begin token before a text, as the model learnt to see one."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _fault(tokenizer: Any, chat: Chat) -> str:
    """What is wrong with the prompt of a chat, in a few words; "" where nothing is."""
    try:
        text = render(tokenizer, chat)
    except Exception as e:  # a template has exceptions of its own, a wrong one any of Python's
        said = " ".join(str(e).split())
        return f"{type(e).__name__}: {said[:200]}"
    lost = [m["role"] for m in chat if m["content"] not in text]
    return f"the text of the {lost[0]} message is not in the prompt" if lost else ""


def _to_answer(tokenizer: Any, chat: Chat) -> str:
    """What is missing at the end of a prompt so that an answer in the format can follow; "" mostly."""
    prompt = render(tokenizer, chat)
    open_thoughts = [
        close
        for mark, close in _THOUGHTS.items()
        if prompt.rfind(mark) > max(prompt.rfind(close), prompt.rfind(chat[-1]["content"]))
    ]
    if open_thoughts:
        return f"{'' if prompt.endswith(chr(10)) else chr(10)}\n{open_thoughts[0]}\n\n"
    answer = probe_answer()
    try:
        whole = render(tokenizer, [*chat, {"role": "assistant", "content": answer}], prompt=False)
    except Exception:  # one that takes no answers has nothing to say about where they begin
        return ""
    between, found, _ = whole.removeprefix(prompt).rpartition(answer)
    # White space is left to the model: tokens of an answer are the same with and without it.
    return between if found and whole.startswith(prompt) and not between.isspace() else ""
