"""The body of `/v1/chat/completions`: each field is obeyed, ignored or refused by name (docs/serve.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

from selfemo.method.prompts import clean
from selfemo.serve.routes import BestOf, Name, Seed, Temperature, TokenLimit
from selfemo.serve.transport import Problem

IGNORED = frozenset({
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "reasoning_effort", "safety_identifier", "service_tier", "store", "user", "verbosity",
})  # fmt: skip
"""Fields that ask for nothing in the answer."""
_TOOLS = "the model calls no tools"
_DRAWS = "tokens are drawn by temperature and top_p alone"
_SCORES = "log-probabilities of tokens are not told; the emotions' probabilities are in the field selfemo"
REFUSED = {
    "audio": "the answer is text",
    "frequency_penalty": _DRAWS,
    "function_call": _TOOLS,
    "functions": _TOOLS,
    "logit_bias": _DRAWS,
    "logprobs": _SCORES,
    "modalities": "the answer is text",
    "moderation": "nothing is moderated here",
    "n": "one answer is given for a request; ask again with another seed",
    "prediction": "an answer is always written anew",
    "presence_penalty": _DRAWS,
    "response_format": "the reply is a line of speech, for which no JSON is promised",
    "tool_choice": _TOOLS,
    "tools": _TOOLS,
    "top_logprobs": _SCORES,
    "web_search_options": "the model searches nothing",
}
"""OpenAI's fields that ask for what this server cannot do, each with the reason."""
_NOTHING_ASKED: dict[str, tuple[Any, ...]] = {
    "function_call": ("none", "auto"), "modalities": (["text"],), "n": (1,), "repetition_penalty": (1,),
    "response_format": ({"type": "text"},), "tool_choice": ("none", "auto"), "top_k": (-1,),
}  # fmt: skip
"""Values of fields that ask for nothing, beside null, false, 0 and what is empty."""
_ASKS_BY_BEING_THERE = frozenset({"web_search_options"})
"""Fields that ask for something even with an empty object."""
_MESSAGES: list[JsonValue] = [
    {"role": "system", "content": "You are Bo, who laughs about what frightens him."},
    {"role": "user", "content": "Who is at the door?"},
]


class ContentPart(BaseModel):
    """A part of a message; other types than these two are refused by name."""

    type: str
    text: str | None = None
    refusal: str | None = None


def _parts(given: Any) -> Any:
    """The content of a message as parts; a text is one part."""
    if isinstance(given, str):
        return [{"type": "text", "text": given}]
    if given is None or isinstance(given, list):
        return given
    raise PydanticCustomError("content", "Input should be a text, a list of parts, or null")


def _stops(given: Any) -> Any:
    if given is None or isinstance(given, list):
        return given
    if isinstance(given, str):
        return [given]
    raise PydanticCustomError("stop", "Input should be a text or a list of up to 4 texts")


Content = Annotated[
    list[ContentPart] | None, BeforeValidator(_parts, json_schema_input_type=str | list[ContentPart] | None)
]
Stop = Annotated[
    Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] | None,
    BeforeValidator(_stops, json_schema_input_type=str | list[str] | None),
]


class CalledTool(BaseModel):
    name: Name | None = None


class ToolCall(BaseModel):
    id: str | None = None
    function: CalledTool | None = None
    custom: CalledTool | None = None


class ChatMessage(BaseModel):
    """A message; one without text is left out. Further fields of a message are ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    refusal: str | None = None
    name: Name | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatCompletionBody(BaseModel):
    """OpenAI's request. System messages are the persona.

    Fields that are not named here are refused, unless they ask for nothing in the answer.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"messages": _MESSAGES}]})
    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    seed: Seed | None = None
    stop: Stop = None
    best_of: BestOf | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def check_fields(body: ChatCompletionBody) -> None:
    """Refuse a field that asks for what this server does not do (Problem: 400, it names the field)."""
    for name, value in (body.model_extra or {}).items():
        if name in IGNORED or _asks_nothing(name, value):
            continue
        if reason := REFUSED.get(name):
            raise Problem(400, "unsupported", f"{name} is not supported: {reason}", param=name)
        raise _unknown(name)
    for name, value in ((body.stream_options and body.stream_options.model_extra) or {}).items():
        if value:
            raise _unknown(f"stream_options.{name}")


def _unknown(name: str) -> Problem:
    name = name[:100]
    return Problem(
        400, "unsupported", f"{name} is not supported: this server does not know it; leave it out", param=name
    )


def _asks_nothing(name: str, value: Any) -> bool:
    if name in _ASKS_BY_BEING_THERE:
        return value is None
    return not value or value in _NOTHING_ASKED.get(name, ())


@dataclass(frozen=True, slots=True)
class Talk:
    """The messages of a request as a conversation: (speaker, text) turns, and the character who answers."""

    turns: list[tuple[str, str]]
    persona: str
    speaker: str


def talk_of(messages: Iterable[ChatMessage]) -> Talk:
    """The conversation of a request's messages (Problem: 400, a part that is no text, or nobody to answer).

    Messages without text are left out. The result of a tool is a turn by the tool's name; where nobody
    spoke after it, it stands before the last line of a user, which is what the character hears.
    """
    persona: list[str] = []
    turns: list[tuple[str, str]] = []
    roles: list[str] = []
    speaker, tools = "Assistant", dict[str, str]()
    for n, message in enumerate(messages):
        name, text = clean(message.name or ""), _text(n, message)
        tools.update(_called(message.tool_calls or ()))
        if message.role == "assistant":
            name = speaker = name or "Assistant"
        elif message.role in ("tool", "function"):
            name = name or tools.get(message.tool_call_id or "") or "Tool"
        if not clean(text):
            continue
        if message.role in ("system", "developer"):
            persona.append(text)
            continue
        turns.append((name or "User", text))
        roles.append(message.role)
    if not turns:
        told = "there is nothing to answer: no message of a user or tool has text"
        raise Problem(400, "bad_question", told, param="messages")
    if roles[-1] == "assistant":
        told = "the last message must be from the user: the assistant spoke last, and does not answer itself"
        raise Problem(400, "bad_question", told, param="messages")
    if "user" in roles:
        last = len(roles) - 1 - roles[::-1].index("user")
        turns.append(turns.pop(last))
    return Talk(turns, "\n".join(persona), speaker)


def _text(n: int, message: ChatMessage) -> str:
    """The text of message `n`; a refusal is what the assistant said."""
    texts: list[str] = []
    for k, part in enumerate(message.content or ()):
        if part.type not in ("text", "refusal"):
            told = f"parts of the type {part.type[:40]!r} are not supported: the model reads text alone"
            raise Problem(400, "unsupported", told, param=f"messages.{n}.content.{k}")
        text = part.text if part.type == "text" else part.refusal
        if text is None:
            place = f"messages.{n}.content.{k}.{part.type}"
            raise Problem(400, "invalid", f"{place}: a part of this type needs this field", param=place)
        texts.append(text)
    return "\n".join(texts) if any(texts) else message.refusal or ""


def _called(calls: Iterable[ToolCall]) -> Iterator[tuple[str, str]]:
    """The (id, name) of called tools."""
    for call in calls:
        tool = call.function or call.custom
        if tool is not None and call.id and (name := clean(tool.name or "")):
            yield call.id, name
