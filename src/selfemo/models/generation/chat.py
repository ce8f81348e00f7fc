"""Models that answer chat questions, and the form in which the command line names them.

`NAME=URL,model=MODEL` is an OpenAI-compatible endpoint (endpoint.py), `local` or `NAME=local,model=ID`
the built-in model, a folder or a hub id on this machine (local_chat.py). More settings follow after
commas; `ExpertSpec` lists them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfemo.errors import ConfigError
from selfemo.extras import require
from selfemo.method.types import BUILTIN_MODEL
from selfemo.models.references import ModelReference

Messages = Sequence[Mapping[str, str]]
CLIENT = ("openai", "tenacity", "aiolimiter")
"""Distributions of the client that asks an endpoint."""


@dataclass(frozen=True)
class ChatRequest:
    """One question of a chat.

    Attributes:
        schema: JSON schema of the answer, for backends that can hold the model to it; with others the
            question itself has to ask for that form.
        seed: key of the random numbers, where the backend takes one.
        temperature: None takes the expert's.
    """

    messages: Messages
    schema: Mapping[str, Any]
    max_tokens: int
    seed: int = 0
    temperature: float | None = None


@dataclass(frozen=True)
class Answer:
    """The text that came back, and the tokens used."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class UnansweredError(Exception):
    """One question went without an answer: `unreachable` after all retries, or `refused`."""

    def __init__(self, kind: Literal["unreachable", "refused"], detail: str):
        super().__init__(detail)
        self.kind, self.detail = kind, detail


class Chat(Protocol):
    """A model that answers chat questions, up to `concurrency` at once."""

    name: str
    model: str
    concurrency: int

    async def ask(self, request: ChatRequest) -> Answer:
        """Answer one question.

        Raises:
            UnansweredError: this question got no answer; others may.
            EndpointError: no question will get one (wrong key, wrong URL, dead server).
        """

    async def close(self) -> None: ...


class ExpertSpec(BaseModel):
    """Settings of one expert, as `--expert` gives them.

    Attributes:
        name: how records call it.
        url: base URL of the endpoint up to and with its version ("http://host:8000/v1"), or "local".
        model: the model's name at the endpoint, or a model id for a local one.
        key: NAME of the environment variable that holds the key (default: <NAME>_API_KEY). The key
            itself is never taken from the command line, stored or logged.
        concurrency: questions under way at once.
        rpm, tpm: requests and (estimated) tokens a minute that the endpoint allows; 0 for no limit.
        timeout: seconds for one answer.
        attempts: how often one question is sent before it counts as unreachable.
        temperature: of the answer's sampling.
        json: whether the endpoint can be held to JSON: "none" (in words only), "object" (JSON mode) or
            "schema" (structured output).
        tokenizer: a model reference whose tokenizer the model has: a vLLM server gets token ids then, and
            tells log-probabilities (vllm_server.py). "": any endpoint, which gets chats and gives text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = Field(min_length=1)
    url: str
    model: str = Field(min_length=1)
    key: str = ""
    concurrency: int = Field(default=16, ge=1, le=1024)
    rpm: float = Field(default=0, ge=0)
    tpm: float = Field(default=0, ge=0)
    timeout: float = Field(default=120, gt=0)
    attempts: int = Field(default=10, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    json_mode: Literal["none", "object", "schema"] = Field(default="none", alias="json")
    tokenizer: str = ""

    @property
    def local(self) -> bool:
        return self.url == "local"

    @property
    def key_variable(self) -> str:
        return self.key or "".join(c if c.isalnum() else "_" for c in self.name.upper()) + "_API_KEY"

    def read_key(self) -> str:
        """The key, or "none" for an endpoint without one (ConfigError: a named variable is not set)."""
        value = os.environ.get(self.key_variable, "")
        if not value and self.key:
            raise ConfigError(
                f"--expert {self.name}: the environment variable {self.key} is not set; export it, or "
                "leave key= out for an endpoint that needs none"
            )
        return value or "none"

    def check(self) -> None:
        """Whether it can be asked, in a second: no weights are loaded and nothing is sent.

        Raises:
            MissingExtraError: the client libraries, or what reads the local weights, are not installed.
            ConfigError: the environment variable of its key is named and not set.
            EngineError: there is no such local model.
        """
        if self.local:
            ModelReference.parse(self.model).check()
        else:
            require("asking an endpoint", *CLIENT)
            self.read_key()
            if self.tokenizer:
                ModelReference.parse(self.tokenizer).check()


_ENDPOINT = re.compile(r"[^=/\\]+=https?://")


def names_endpoint(text: str) -> bool:
    """True for a model given as an endpoint, `NAME=URL,...`."""
    return _ENDPOINT.match(text) is not None


def endpoint_of(model: str) -> ExpertSpec | None:
    """The endpoint that `NAME=URL,model=...` names, greedy by default; None for another model.

    Raises: ConfigError: a mistake in it. For the rest see `ExpertSpec.check`.
    """
    if not names_endpoint(model):
        return None
    spec = parse_expert(model)
    if spec.json_mode != "none":
        raise ConfigError(
            f"{spec.name}: json={spec.json_mode} would keep the model from the format that is evaluated, "
            "which is lines and not JSON; leave json= out"
        )
    if "temperature" not in spec.model_fields_set:
        spec = spec.model_copy(update={"temperature": 0.0})
    spec.check()
    return spec


_FORM = "NAME=URL,model=MODEL (then key=ENVIRONMENT_VARIABLE, concurrency=, rpm=, ...), or local"


def parse_expert(text: str) -> ExpertSpec:
    """Read one `--expert` (ConfigError: not of that form; the message never repeats a key)."""
    head, *rest = [part.strip() for part in text.split(",")]
    name, _, url = head.partition("=")
    if name == "local" and not url:
        url = "local"
    if not name or not url:
        raise ConfigError(f"--expert {head}: write it as {_FORM}")

    def wrong(reason: str) -> ConfigError:
        return ConfigError(f"--expert {name}: {reason}")

    settings = [part.partition("=") for part in rest]
    if not all(key and sign for key, sign, _ in settings):
        raise wrong(f"a setting must read key=value; the form is {_FORM}")
    fields = {key.strip(): value.strip() for key, _, value in settings}
    if url == "local":
        fields.setdefault("model", BUILTIN_MODEL)
    else:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise wrong(f"{parts.hostname or url!r} is no http(s) URL; {_FORM}")
        if parts.username or parts.password:
            raise wrong(
                "the URL carries a user name or password; put the key into an environment variable and name "
                "that by key="
            )
    if "key" in fields and not fields["key"].replace("_", "").isalnum():
        raise wrong("key= takes the NAME of an environment variable, not the key itself")
    for own in ("name", "url"):
        if own in fields:
            raise wrong(f"{own} is given before the first comma; {_FORM}")
    try:
        return ExpertSpec.model_validate({"name": name, "url": url, **fields})
    except ValidationError as e:
        valid = [f.alias or k for k, f in ExpertSpec.model_fields.items() if k not in ("name", "url")]
        said = {"extra_forbidden": f"unknown setting; valid are {', '.join(valid)}", "missing": "is missing"}
        faults = [f"{'.'.join(map(str, i['loc']))}: {said.get(i['type'], i['msg'])}" for i in e.errors()]
        raise wrong("; ".join(faults)) from None


def parse_experts(texts: Sequence[str]) -> list[ExpertSpec]:
    """Read all `--expert`s (ConfigError: one is malformed, or two have one name)."""
    specs = [parse_expert(t) for t in texts]
    names = [s.name for s in specs]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise ConfigError(f"--expert {twice}: two experts have this name; records tell them apart by it")
    return specs
