"""Where a server may listen without a password."""

from __future__ import annotations

import socket

import pytest

from selfemo.errors import ConfigError
from selfemo.serve.binding import check_binding, check_free, check_origins, check_root_path, is_loopback

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


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://app.example.org", "https://app.example.org"),
        ("HTTPS://App.Example.org:443", "https://app.example.org"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("https://x.example:80", "https://x.example:80"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("*", "*"),
    ],
)
def test_origins_are_kept_as_browsers_send_them(given: str, sent: str) -> None:
    assert check_origins([given]) == [sent]


@pytest.mark.parametrize(
    "given",
    [
        "", "app.example.org", "localhost:3000", "https://app.example.org/", "https://app.example.org/page",
        "https://", "https://*.example.org", "https://u:p@x.example", "https://x.example:0",
        "https://x.example:99999", "https://x.example:", "null", "https://x.example?q", "https://é.example",
        "https://a.example https://b.example", "http://[::1", "https://x.example x",
    ],
)  # fmt: skip
def test_what_is_no_origin_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="--allow-origin") as e:
        check_origins(["http://localhost:3000", given])
    assert repr(given) in str(e.value) and "SCHEME://HOST:PORT" in str(e.value)


def test_a_root_path_is_no_path_of_the_server() -> None:
    for given, own in (("/v1", "/v1"), ("/v1/emo/", "/v1"), ("/docs", "/docs"), ("/metrics/x", "/metrics")):
        with pytest.raises(ConfigError, match=f"{own} is a path of the server itself"):
            check_root_path(given)
        assert check_root_path(given, or_address=True) == given.rstrip("/"), "a page has no such paths"
    assert check_root_path("/v1x") == "/v1x" and check_root_path("/emo/v1") == "/emo/v1"


def test_a_root_path_is_a_path_or_for_a_page_an_address() -> None:
    for given, kept in (("", ""), ("/", ""), ("/emo", "/emo"), ("/a/b-c/", "/a/b-c"), ("/~x/%20", "/~x/%20")):
        assert check_root_path(given) == check_root_path(given, or_address=True) == kept
    wrong = [
        "emo",
        "emo/",
        "//",
        "//emo",
        "/a//b",
        "/a b",
        "/a?b",
        "/a#b",
        "/..",
        "/a/../b",
        "/./a",
        "/é",
        "ftp://x/y",
    ]
    for given in wrong:
        for or_address in (False, True):
            with pytest.raises(ConfigError, match=r"--root-path .* is no path"):
                check_root_path(given, or_address=or_address)
    for given in ("https://example.org", "http://127.0.0.1:8080/emo", "HTTPS://example.org/a/b/"):
        assert check_root_path(given, or_address=True) == given.rstrip("/")
        with pytest.raises(ConfigError, match=r"as in /emo$"):
            check_root_path(given)
    for given in (
        "https://",
        "https:///emo",
        "https://example.org//emo",
        "https://u@x/emo",
        "http://x:y/emo",
    ):
        with pytest.raises(ConfigError, match=r"or an address such as https://example.org/emo"):
            check_root_path(given, or_address=True)
