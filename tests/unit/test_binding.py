"""Where a server may listen."""

from __future__ import annotations

import pytest

from selfemo.errors import ConfigError
from selfemo.serve.binding import check_binding


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.0.3", "::1"])
def test_this_machine_may_always_listen_to_itself(host: str) -> None:
    check_binding(host, protected=False, insecure=False, what="it")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.7", "128.0.0.1", "example.org", "localhost.example.org", ""]
)
def test_other_machines_come_in_with_a_token_or_by_will(host: str) -> None:
    with pytest.raises(ConfigError) as told:
        check_binding(host, protected=False, insecure=False, what="the page")
    assert str(told.value) == f"--host {host} lets other machines use the page, or give --insecure"
    check_binding(host, protected=True, insecure=False, what="the page")
    check_binding(host, protected=False, insecure=True, what="the page")
