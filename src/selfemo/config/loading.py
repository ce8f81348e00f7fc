"""Settings from files: TOML files are merged left to right, then `--set a.b=c`.

Every mistake is reported at once, with the file or override it came from and the nearest valid key.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, overload

from pydantic import BaseModel, ValidationError

from selfemo.config.sections import Config
from selfemo.errors import ConfigError

T = TypeVar("T", bound=BaseModel)


def _keys(section: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of each setting, and of each section, below one."""
    for name, known in section.model_fields.items():
        yield (*prefix, name)
        for kind in (known.annotation, *get_args(known.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, (*prefix, name))


def _nearest(path: tuple[str, ...], kind: type[BaseModel]) -> str:
    """The valid key of some settings most like a wrong one: in its own section, or else anywhere."""
    keys = list(_keys(kind))
    beside = [k[-1] for k in keys if k[:-1] == path[:-1]]
    if near := difflib.get_close_matches(path[-1], beside, n=1, cutoff=0.6):
        return ".".join([*path[:-1], near[0]])
    named = {k[-1]: ".".join(k) for k in reversed(keys)}
    elsewhere = difflib.get_close_matches(path[-1], named, n=1, cutoff=0.75)
    return named[elsewhere[0]] if elsewhere else ""


def _flatten(value: Any, prefix: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for k, v in value.items():
            yield from _flatten(v, (*prefix, k))
    elif prefix:  # an empty file has no setting
        yield prefix, value


def _insert(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a value in a tree of sections; an empty section is there then, but takes nothing away."""
    for part in path[:-1]:
        nested = tree.get(part)
        if not isinstance(nested, dict):
            nested = tree[part] = {}
        tree = nested
    if value != {} or not isinstance(tree.get(path[-1]), dict):
        tree[path[-1]] = value


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, separator, value = text.partition("=")
    path = [p.strip() for p in key.split(".")]
    if not separator or not all(path):
        raise ConfigError(f"--set {text}: write it as section.key=value, for example --set seed=3")
    try:
        return path, tomllib.loads(f"x = {value.strip()}")["x"]
    except tomllib.TOMLDecodeError:
        return path, value.strip()


def shipped() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    return {f.stem: f for f in sorted(Path(__file__).parent.with_name("configs").glob("*.toml"))}


def _find(name: Path | str) -> Path:
    """The file of that name, or else the shipped configuration."""
    path, known = Path(name), shipped()
    if path.exists() and not (path.is_dir() and str(name) in known):
        return path
    if str(name) in known:
        return known[str(name)]
    near = difflib.get_close_matches(path.stem, known, n=1)
    raise ConfigError(
        f"{name}: no such configuration file"
        + (f"; did you mean -c {near[0]}?" if near else ";")
        + f" shipped with the package: {', '.join(known)}"
    )


@overload
def load(files: Sequence[Path | str] = (), overrides: Sequence[str] = ()) -> Config: ...


@overload
def load(files: Sequence[Path | str], overrides: Sequence[str], kind: type[T]) -> T: ...


def load(
    files: Sequence[Path | str] = (), overrides: Sequence[str] = (), kind: type[BaseModel] = Config
) -> BaseModel:
    """Merge TOML files left to right, then overrides, over the defaults.

    Args:
        files: paths, or names of shipped configurations; a file goes before a name.
        overrides: `section.key=value`.
        kind: the settings: those of a run, or others.

    Raises:
        ConfigError: a missing or broken file, or all unknown keys and bad values, each with its origin.
    """
    tree: dict[str, Any] = {}
    origin: dict[tuple[str, ...], str] = {}
    for file in files:
        try:
            content = tomllib.loads(_find(file).read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
            raise ConfigError(f"{file}: cannot be read as TOML: {e}") from None
        for path, value in _flatten(content):
            _insert(tree, path, value)
            origin[path] = str(file)
    for text in overrides:
        key, value = _parse_override(text)
        _insert(tree, key, value)
        origin[tuple(key)] = f"--set {text}"
    try:
        return kind.model_validate(tree)
    except ValidationError as e:
        raise ConfigError(_explain(e, origin, kind)) from None


def _explain(error: ValidationError, origin: dict[tuple[str, ...], str], kind: type[BaseModel]) -> str:
    lines = []
    for item in error.errors():
        path = tuple(str(p) for p in item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        where = _origin(path, text, origin)
        if item["type"] == "extra_forbidden":
            near = _nearest(path, kind)
            text = "unknown key" + (f"; did you mean {near}?" if near else "")
        elif path and "input" in item and not isinstance(item["input"], dict):
            text = f"{text} (got {item['input']!r})"
        key = ".".join(path)
        lines.append(": ".join(part for part in (where, key, text) if part))
    return "\n".join(lines)


def _origin(path: tuple[str, ...], text: str, origin: Mapping[tuple[str, ...], str]) -> str:
    """The files or overrides that gave the settings at fault: of those in its section the ones that its text
    names, else the first; of a fault across sections those that its text names in full, if any."""
    inside = {p: o for p, o in origin.items() if p[: len(path)] == path or path[: len(p)] == p}
    names = {p: p[-1] if path else ".".join(p) for p in inside}
    named = [o for p, o in inside.items() if re.search(rf"(?<!\w){re.escape(names[p])}\b", text)]
    return ", ".join(dict.fromkeys(named)) or (next(iter(inside.values()), "") if path else "")


def differing(known: str, now: str) -> list[str]:
    """The settings in which two texts of `to_toml` differ, in words; "none" where one has it not."""
    there, here = (dict(_flatten(tomllib.loads(text))) for text in (known, now))
    keys = [k for k in {**there, **here} if there.get(k) != here.get(k)]
    shown = [tuple(json.dumps(v[k]) if k in v else "none" for v in (there, here)) for k in keys]
    return [f"{'.'.join(k)}: {a} there, {b} now" for k, (a, b) in zip(keys, shown, strict=True)]


def to_toml(config: BaseModel) -> str:
    """The resolved configuration as TOML that `load` reads back to an equal one."""
    return "\n\n".join(_tables("", config.model_dump(mode="json", exclude_none=True))) + "\n"


def _tables(name: str, section: dict[str, Any]) -> Iterator[str]:
    # JSON strings, numbers, booleans and arrays are also TOML; TOML has no null, which was left out.
    lines = [f"{k} = {json.dumps(v)}" for k, v in section.items() if not isinstance(v, dict)]
    yield "\n".join([f"[{name}]", *lines] if name else lines)
    for key, inner in section.items():
        if isinstance(inner, dict):
            yield from _tables(f"{name}.{key}" if name else key, inner)
