"""Clients in a browser, and a server below the path of a proxy: CORS, hosts, /docs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfemo.serve.selfemo import SelfEmo
from tests.support.proxy import proxied
from tests.support.server import running

httpx = pytest.importorskip("httpx2")

PAGE, OTHER = "https://app.example.org", "https://app.example.org.evil.example"
CHAT = {"messages": [{"role": "user", "content": "Who rang?"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> SelfEmo:
    return SelfEmo(tiny_model, max_tokens=96, overrides=["prompt.max_tokens=500"])


@pytest.fixture(scope="module")
def guarded(model: SelfEmo) -> Iterator[str]:
    with running(model, token="s3cret", origins=[PAGE, "http://localhost:3000"]) as address:
        yield address


def cors(answer: Any) -> dict[str, str]:
    return {k: v for k, v in answer.headers.items() if k.startswith("access-control-")}


def preflight(url: str, origin: str, path: str = "/v1/chat/completions", method: str = "POST") -> Any:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        "Access-Control-Request-Private-Network": "true",  # a browser may, for a page from the internet
    }
    return httpx.options(url + path, headers=asked)


def test_a_page_of_an_allowed_origin_may_ask_with_the_token(guarded: str) -> None:
    for origin in (PAGE, "http://localhost:3000"):
        before = preflight(guarded, origin)
        assert before.status_code == 200, "a browser sends no token with it"
        assert cors(before)["access-control-allow-origin"] == origin
        allowed = cors(before)["access-control-allow-headers"].replace(" ", "").split(",")
        assert {"authorization", "content-type", "x-stainless-lang"} <= set(allowed)
        assert "POST" in cors(before)["access-control-allow-methods"]
        assert cors(before)["access-control-allow-private-network"] == "true"
        headers = {"Origin": origin, "Authorization": "Bearer s3cret"}
        for stream in (False, True):
            body = {**CHAT, "stream": stream}
            answer = httpx.post(guarded + "/v1/chat/completions", json=body, headers=headers, timeout=60)
            assert answer.status_code == 200
            assert cors(answer)["access-control-allow-origin"] == origin
            assert "Origin" in answer.headers["vary"]
            assert "access-control-allow-credentials" not in answer.headers
        assert preflight(guarded, origin, "/v1/models", "GET").status_code == 200


def test_a_page_can_read_what_went_wrong(
    guarded: str, model: SelfEmo, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"Authorization": "Bearer s3cret"}
    wrong = [
        ("/v1/chat/completions", CHAT, {}, 401),
        ("/v1/chat/completions", {**CHAT, "n": 2}, key, 400),
        ("/v1/emotions", {"turns": []}, key, 422),
        ("/v1/nothing", {}, key, 404),
        ("/v1/models", {}, key, 405),
        ("/v1/emotions", {"scene": "x" * 300_000}, key, 413),
    ]
    for path, body, headers, status in wrong:
        answer = httpx.post(guarded + path, json=body, headers={"Origin": PAGE, **headers}, timeout=60)
        assert answer.status_code == status and answer.json()["error"]["message"]
        assert cors(answer)["access-control-allow-origin"] == PAGE, path

    def broken(*_: Any) -> Any:
        raise RuntimeError("secret details")

    monkeypatch.setattr(model, "prepare", broken)
    fault = httpx.post(guarded + "/v1/chat/completions", json=CHAT, headers={"Origin": PAGE, **key})
    assert fault.status_code == 500 and fault.json()["error"]["code"] == "internal"
    assert cors(fault)["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("origin", [OTHER, "http://app.example.org", f"{PAGE}:8443", "null", ""])
def test_any_other_origin_gets_no_header(guarded: str, origin: str) -> None:
    before = preflight(guarded, origin)
    assert before.status_code == 405 and not cors(before)
    headers = {"Origin": origin, "Authorization": "Bearer s3cret"}
    answer = httpx.post(guarded + "/v1/chat/completions", json=CHAT, headers=headers, timeout=60)
    assert answer.status_code == 200 and not cors(answer), "a browser lets its page read nothing"


def test_without_the_option_no_page_gets_a_header(model: SelfEmo) -> None:
    with running(model) as url:
        assert not cors(preflight(url, PAGE)) and preflight(url, PAGE).status_code == 405
        assert not cors(httpx.get(url + "/v1/models", headers={"Origin": PAGE}))


def test_every_origin_is_allowed_by_a_star(model: SelfEmo) -> None:
    with running(model, origins=["*"]) as url:
        assert cors(preflight(url, OTHER))["access-control-allow-origin"] == "*"
        assert (
            cors(httpx.get(url + "/v1/models", headers={"Origin": PAGE}))["access-control-allow-origin"]
            == "*"
        )


@pytest.mark.parametrize("origins", [[PAGE], ["*"]])
def test_a_name_that_is_made_to_resolve_here_stays_refused(model: SelfEmo, origins: list[str]) -> None:
    """DNS rebinding: the page and the server have one origin for the browser; the host tells them apart."""
    with running(model, local_only=True, origins=origins) as url:
        for origin in (None, "http://evil.example", PAGE):
            headers = {"Host": "evil.example", **({"Origin": origin} if origin else {})}
            answer = httpx.post(url + "/v1/chat/completions", json=CHAT, headers=headers)
            assert answer.status_code == 400 and answer.json()["error"]["code"] == "wrong_host"
            assert "SELFEMO_TOKEN" in answer.json()["error"]["message"]
        assert httpx.get(url + "/v1/models", headers={"Origin": PAGE}).status_code == 200


@pytest.mark.parametrize("strip", [True, False])
def test_below_the_path_of_a_proxy(model: SelfEmo, strip: bool) -> None:
    with (
        running(model, root_path="/deep/emo", local_only=True) as behind,
        proxied(behind, "/deep/emo", strip=strip) as url,
    ):
        assert httpx.post(url + "/v1/chat/completions", json=CHAT, timeout=60).status_code == 200
        for start in ("", "/"):
            page = httpx.get(url + start, follow_redirects=True)
            assert page.status_code == 200 and str(page.url) == url + "/docs"
        origin = url.removesuffix("/deep/emo")
        named = [part.split(q)[0] for q in "\"'" for part in page.text.split(q + "/")[1:]]
        assert any(n.endswith("swagger-ui-bundle.js") for n in named)
        for path in named:
            if path != "docs/oauth2-redirect":  # of a login that this page does not have
                assert path.startswith("deep/emo/")
                assert httpx.get(f"{origin}/{path}").status_code == 200, path
        assert httpx.get(url + "/openapi.json").json()["servers"] == [{"url": "/deep/emo"}]
        lost = httpx.get(url + "/v1/nothing").json()["error"]["message"]
        assert lost.startswith("GET /v1/nothing: there is no such path")
        invalid = httpx.post(url + "/v1/chat/completions", json={})
        assert invalid.status_code == 400 and invalid.json()["error"]["code"] == "invalid"
        assert 'path="/v1/chat/completions",status="200"' in httpx.get(url + "/metrics").text
        streamed = httpx.post(url + "/v1/chat/completions", json={**CHAT, "stream": True}, timeout=60).text
        assert json.loads(streamed.split("\n\n")[0].removeprefix("data: ")) and streamed.endswith(
            "[DONE]\n\n"
        )
        assert httpx.post(behind + "/v1/chat/completions", json=CHAT, timeout=60).status_code == 200


def test_a_proxys_own_host_is_refused_with_what_to_do(model: SelfEmo) -> None:
    with running(model, local_only=True) as url:
        answer = httpx.get(url + "/v1/models", headers={"Host": "emo.example.org"})
        message = answer.json()["error"]["message"]
        assert answer.status_code == 400
        assert "SELFEMO_TOKEN" in message and "proxy" in message and "Host: 127.0.0.1" in message
    with running(model, token="t") as url:
        headers = {"Host": "emo.example.org", "Authorization": "Bearer t"}
        assert httpx.get(url + "/v1/models", headers=headers).status_code == 200
