"""Who may reach a server: one rule for `selfemo serve` and the page of `selfemo chat --web`."""

from __future__ import annotations

import ipaddress

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
