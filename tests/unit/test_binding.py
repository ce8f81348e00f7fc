"""Where a server may listen without a password."""

from __future__ import annotations

import socket

import pytest

from selfemo.errors import ConfigError
from selfemo.serve.binding import check_binding, check_free, is_loopback

HERE = ("127.0.0.1", "127.1.2.3", "::1", "localhost")
ELSEWHERE = (
    "",
    "0.0.0.0",
    "::",
    "10.0.0.7",
    "::ffff:10.0.0.7",
    "example.org",
    "localhost.example.org",
    "127.1",
)


@pytest.mark.parametrize("host", HERE)
def test_this_machine_may_always_ask(host: str) -> None:
    assert is_loopback(host)
    check_binding(host, "", insecure=False)
    check_binding(host, None, insecure=False)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_others_need_a_token_or_leave(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match=r"SELFEMO_TOKEN.*--insecure"):
        check_binding(host, "", insecure=False)
    with pytest.raises(ConfigError, match=r"proxy.*--insecure") as e:  # a page has no tokens
        check_binding(host, None, insecure=False)
    assert "SELFEMO_TOKEN" not in str(e.value)
    check_binding(host, "secret", insecure=False)
    check_binding(host, "", insecure=True)
    check_binding(host, None, insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_in_use_is_said_before_a_model_is_loaded(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {port}: address already in use; give another --port"):
            check_free(host, port)
        check_free(host, 0)
    check_free(host, port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])  # RFC 5737, RFC 6761: of no machine
def test_an_address_of_another_machine_cannot_be_listened_at(host: str) -> None:
    with pytest.raises(ConfigError, match=f"--host {host} --port 80"):
        check_free(host, 8000)
