"""Who may reach a server: one rule for `selfemo serve` and the page of `selfemo chat --web`."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Iterable

from selfemo.errors import ConfigError

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
_USUAL_PORTS = {"http": 80, "https": 443}
"""Ports that browsers leave out of an origin."""
_OWN_PATHS = ("/v1", "/docs", "/docs-files", "/healthz", "/metrics", "/openapi.json")
"""Of `selfemo serve`: below one, a proxy that takes its path off cannot be told from one that leaves it."""
_ROOT_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+/?|/")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; a name other than localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_binding(host: str, token: str | None, insecure: bool) -> None:
    """Refuse to listen where other machines could ask without a password (ConfigError).

    The token is what clients must send: "" if none is set, None for a server without tokens.
    """
    if is_loopback(host) or token or insecure:
        return
    advice = "set a token in the environment variable SELFEMO_TOKEN (clients send it as a bearer token)"
    if token is None:
        advice = "the page asks for no password: put a proxy with one before it"
    raise ConfigError(f"--host {host} lets other machines ask; {advice}, or give --insecure")


def check_origins(given: Iterable[str]) -> list[str]:
    """Origins of web pages, as browsers send them; "*" stands for all (ConfigError: one is none)."""
    return [origin if origin == "*" else _origin(origin) for origin in given]


def _origin(given: str) -> str:
    match = _ORIGIN.fullmatch(given.strip().lower())
    if match is None or int(match["port"] or 1) not in range(1, 65536):
        raise ConfigError(
            f"--allow-origin {given!r} is no origin: write SCHEME://HOST or SCHEME://HOST:PORT, without a "
            "path, as in https://app.example.org or http://localhost:3000, or * for all"
        )
    scheme, host, port = match["scheme"], match["host"], match["port"]
    plain = not port or int(port) == _USUAL_PORTS.get(scheme)
    return f"{scheme}://{host}" if plain else f"{scheme}://{host}:{int(port)}"


def check_root_path(given: str, *, or_address: bool = False) -> str:
    """A path below which a proxy serves, without a slash at its end (ConfigError: it is none).

    Args:
        or_address: take the whole address too, such as https://example.org/emo.
    """
    path = given
    address = re.fullmatch(r"(https?://[^/]*)(.*)", given, re.IGNORECASE) if or_address else None
    if address and _ORIGIN.fullmatch(address[1].lower()):
        path = address[2]
    if path and not _ROOT_PATH.fullmatch(path):
        other = ", or an address such as https://example.org/emo" if or_address else ""
        raise ConfigError(
            f"--root-path {given!r} is no path: it begins with / and has no blank, query or .., as in "
            f"/emo{other}"
        )
    if (own := next((p for p in _OWN_PATHS if f"{path}/".startswith(f"{p}/")), "")) and not or_address:
        raise ConfigError(f"--root-path {given}: {own} is a path of the server itself; take another")
    return given.rstrip("/")


def check_free(host: str, port: int) -> None:
    """Refuse an address that cannot be listened at, before a model is loaded for it (ConfigError).

    Port 0 stands for any free one.
    """
    at = f"--host {host} --port {port}"
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(f"{at}: no address of this name is known") from None
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                s.bind(address)
        except OSError as e:
            # Other errors, as of IPv6 where it is off, leave the other addresses of the name.
            if len(addresses) == 1 or e.errno in (errno.EADDRINUSE, errno.EACCES):
                told = os.strerror(e.errno or 0).lower()
                raise ConfigError(f"{at}: {told}; give another --port, or 0 for a free one") from None
