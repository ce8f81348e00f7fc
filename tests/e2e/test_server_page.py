"""The server's page /docs in a real Chromium that reaches no other host."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from selfemo.serve.selfemo import SelfEmo
from tests.support.proxy import proxied

support = pytest.importorskip("tests.support.server", reason="pip install 'selfemo[serve]'")
pytestmark = pytest.mark.slow


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
