"""The server's page /docs, and pages of other origins, in a real Chromium that reaches no other host."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from selfemo.serve.selfemo import SelfEmo
from tests.support.proxy import proxied

support = pytest.importorskip("tests.support.server", reason="pip install 'selfemo[serve]'")
pytestmark = pytest.mark.slow


class _EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@pytest.mark.parametrize("root_path", ["", "/emo"])
def test_the_page_shows_and_asks_all_operations_without_the_internet(
    browser: Any, tiny_model: Path, root_path: str
) -> None:
    """Also below the path of a proxy."""
    model = SelfEmo(tiny_model, max_tokens=96, overrides=["prompt.max_tokens=500"])
    with (
        support.running(model, token="s3cret", local_only=True, root_path=root_path) as behind,
        proxied(behind, root_path) if root_path else nullcontext(behind) as url,
    ):
        elsewhere: list[str] = []
        errors: list[str] = []

        def own_host_alone(route: Any) -> None:
            if urlsplit(route.request.url).netloc == urlsplit(url).netloc:
                route.continue_()
            else:
                elsewhere.append(route.request.url)
                route.abort()

        page = browser.new_page()
        page.route("**/*", own_host_alone)
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(url + "/")  # leads to /docs
        page.wait_for_selector(".opblock")
        assert page.url.startswith(f"{url}/docs")
        shown = page.locator(".opblock-summary-path").evaluate_all("all => all.map(e => e.dataset.path)")
        assert sorted(shown) == [
            "/healthz", "/metrics", "/v1/chat/completions", "/v1/emotions", "/v1/models",
            "/v1/models/{model}", "/v1/respond",
        ]  # fmt: skip

        def answer_to_the_example() -> str:
            page.get_by_role("button", name="Execute", exact=True).click()
            page.wait_for_selector(".live-responses-table .response-col_status")
            return str(page.locator(".live-responses-table").inner_text())

        page.locator(".opblock-summary-path[data-path='/v1/emotions']").click()
        page.get_by_role("button", name="Try it out").click()
        assert "no_token" in answer_to_the_example()
        page.locator(".auth-wrapper .authorize").first.click()
        page.locator(".auth-container input").fill("s3cret")
        page.locator(".auth-btn-wrapper .authorize").click()
        page.locator(".auth-btn-wrapper .btn-done").click()
        page.get_by_role("button", name="Clear", exact=True).click()
        answer = answer_to_the_example()
        assert '"model": "tiny"' in answer and '"speaker": "Bo"' in answer
        assert not elsewhere and not errors
        page.close()


def test_a_page_of_another_origin_asks_where_it_is_allowed(browser: Any, tiny_model: Path) -> None:
    """A stream with the token, in a browser that holds to CORS; an origin that is not named reads nothing."""
    model = SelfEmo(tiny_model, max_tokens=96, overrides=["prompt.max_tokens=500"])
    with ThreadingHTTPServer(("127.0.0.1", 0), _EmptyPage) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        named = f"http://localhost:{pages.server_port}"
        with support.running(model, token="s3cret", origins=[named]) as url:

            def asked(origin: str, token: str) -> str:
                page = browser.new_page()
                page.goto(origin)
                told = page.evaluate(
                    """async ([url, token]) => {
                      const headers = {Authorization: `Bearer ${token}`, "Content-Type": "application/json"};
                      const messages = [{role: "user", content: "Who rang?"}];
                      const body = JSON.stringify({messages, stream: true});
                      try {
                        const answer = await fetch(url, {method: "POST", headers, body});
                        return await answer.text();
                      } catch (e) { return String(e); }
                    }""",
                    [f"{url}/v1/chat/completions", token],
                )
                page.close()
                return str(told)

            assert asked(named, "s3cret").endswith("data: [DONE]\n\n")
            assert '"wrong_token"' in asked(named, "other")
            assert "Failed to fetch" in asked(named.replace("localhost", "127.0.0.1"), "s3cret")
        pages.shutdown()
