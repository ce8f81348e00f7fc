"""The rule on where a server may listen, for `selfemo serve` and `selfemo chat --web` alike."""

from __future__ import annotations

import ipaddress

from selfemo.errors import ConfigError


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`: localhost, 127.0.0.0/8, ::1."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_binding(host: str, *, protected: bool, insecure: bool, what: str) -> None:
    """Refuse to listen where other machines could come in unasked.

    Args:
        protected: clients must send a token.
        insecure: the user wants it without one.
        what: what other machines could use, and how to protect it, for the message.

    Raises:
        ConfigError: other machines reach `host`, and it is neither protected nor wanted insecure.
    """
    if not (is_loopback(host) or protected or insecure):
        raise ConfigError(f"--host {host} lets other machines use {what}, or give --insecure")
