"""The report of a real tiny run in Chromium: nothing is asked for, nothing overflows, all is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfemo.evaluation.analysis import analyse
from selfemo.progress import Quiet
from selfemo.reports.report import build

SECTIONS = (
    "result", "stages", "free", "run", "table1", "curves", "analysis", "ablation", "judge", "personas",
    "errors", "dialogues", "examples", "failures", "config", "again",
)  # fmt: skip


@pytest.fixture(scope="module")
def report(finished: Path) -> Path:
    page = finished.parent / "report.html"
    analyse(finished, 0, Quiet())
    build(finished, page)
    return page


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_in_chromium(browser: Any, report: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    page.goto(report.as_uri())
    assert said == []
    assert asked == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for section in SECTIONS:
        assert page.locator(f"section#{section} h2").is_visible(), section
    drawings = page.locator("figure svg[role=img]")
    assert drawings.count() >= 8
    for i in range(drawings.count()):
        assert drawings.nth(i).get_attribute("aria-label")
        box = drawings.nth(i).bounding_box()
        assert box is not None and box["width"] > 250 and box["height"] > 100
    assert page.locator("figure use, figure text").count() > 50, "the drawings have content"
    wide = page.locator("section#table1 .box")
    inner, outer = wide.evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert inner > outer, "a wide table scrolls in its own box"
    back, text = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light = sum(map(int, back[4:-1].split(","))) > sum(map(int, text[4:-1].split(",")))
    assert light == (scheme == "light")
    page.get_by_role("link", name="Self-play dialogues").click()
    assert page.url.endswith("#dialogues")
    page.close()
