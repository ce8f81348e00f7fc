"""Who may reach a server: one rule for `selfemo serve` and the page of `selfemo chat --web`."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from selfemo.errors import ConfigError


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
