"""Where a server may listen without a password."""

from __future__ import annotations

import pytest

from selfemo.errors import ConfigError
from selfemo.serve.binding import check_binding, is_loopback

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
