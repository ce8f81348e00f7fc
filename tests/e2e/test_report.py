"""The report in Chromium, of a real tiny run and of hand-made parts with long names: nothing is asked for,
nothing overflows or is cut, all is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfemo.evaluation.analysis import analyse
from selfemo.progress import Quiet
from selfemo.reports import figures
from selfemo.reports.page import Section, Table, inline_svg, render
from selfemo.reports.report import build
from tests.support.scores import scores

SECTIONS = (
    "result", "stages", "free", "run", "table1", "curves", "analysis", "expression", "ablation", "judge",
    "personas", "errors", "dialogues", "examples", "failures", "config", "again",
)  # fmt: skip


@pytest.fixture(scope="module")
def report(finished: Path) -> Path:
    page = finished.parent / "report.html"
    analyse(finished, 0, Quiet())
    build(finished, page)
    return page


WIDTHS = pytest.mark.parametrize("width", [1280, 390])
# Labels of a drawing that reach out of it, and the size of its smallest text in px.
CUT = """svg => { const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(t => { const r = t.getBoundingClientRect();
    return r.left < box.left - 1 || r.right > box.right + 1
      || r.top < box.top - 1 || r.bottom > box.bottom + 1;
  }).map(t => t.textContent); }"""
SMALLEST = """svg => { const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return Math.min(...[...svg.querySelectorAll("text")].map(
    t => parseFloat(getComputedStyle(t).fontSize) * scale)); }"""


@WIDTHS
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
    lead = page.locator("#lead dd")
    assert lead.count() == 3 and all(lead.nth(i).inner_text().endswith(".") for i in range(3))
    first_section = page.locator("section").first.bounding_box()
    assert lead.nth(2).bounding_box()["y"] < first_section["y"]
    for section in SECTIONS:
        assert page.locator(f"section#{section} h2").is_visible(), section
    drawings = page.locator("figure svg[role=img]")
    assert drawings.count() >= 8
    for i in range(drawings.count()):
        assert drawings.nth(i).get_attribute("aria-label")
        box = drawings.nth(i).bounding_box()
        assert box is not None and box["width"] > 250 and box["height"] > 100
        assert drawings.nth(i).evaluate(CUT) == []
        assert drawings.nth(i).evaluate(SMALLEST) >= 8
    assert page.locator("figure use, figure text").count() > 50, "the drawings have content"
    wide = page.locator("section#table1 .box")
    inner, outer = wide.evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert inner > outer, "a wide table scrolls in its own box"
    method, value = (wide.locator(f"tbody tr:first-child td:nth-child({k})") for k in (1, 4))
    before = method.bounding_box(), value.bounding_box()
    wide.evaluate("e => e.scrollLeft = e.scrollWidth")
    after = method.bounding_box(), value.bounding_box()
    assert after[0]["x"] == before[0]["x"] and after[1]["x"] < before[1]["x"] - 20
    assert "measured on" in method.inner_text() and "n=" in method.inner_text()
    back, text = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light = sum(map(int, back[4:-1].split(","))) > sum(map(int, text[4:-1].split(",")))
    assert light == (scheme == "light")
    page.get_by_role("link", name="Self-play dialogues").click()
    assert page.url.endswith("#dialogues")
    page.close()


def long_names(folder: Path) -> list[str]:
    """Drawings with names as long as people give them."""
    emotions = ["quiet resentment", "joy", "passive-aggressive contempt", "anger", "Verlegenheitsgefuehl"]
    arms = ["full", "without-secondary-reward-and-without-refit-and-gate", "price $5 against $9"]
    share = dict.fromkeys(emotions, 0.2)
    rounds = [
        {"iteration": 1 + k // 2, "r1": 0.2, "r1_original": 0.3, "r2": 0.1, "sampling_entropy": 1.5,
         "parse_rate": 0.9, "pass_rate": 0.8}
        for k in range(6)
    ]  # fmt: skip
    held = {"start": None, "cold-start": None}
    held |= {f"iteration-{i}{end}": None for i in range(1, 7) for end in ("-rl", "-refit", "")}
    by = {c: {"conversations-of-our-support-desk": scores(0.5, 0.2)} for c in held}
    for s in by.values():
        for found in s.values():
            found.predicted_share, found.gold_share = share, share
    names = figures.draw(folder, rounds, by)
    names += figures.reward_curves(folder, {d: dict.fromkeys(by, (0.5, 0.4)) for d in by["start"]}, [])
    records = [
        {"name": a, "scores": {"meld": {"accuracy": {"mean": 0.5}}},
         "runs": [{"seed": s, "scores": {"meld": {"accuracy": [0.4 + s / 5]}}} for s in (0, 1)]}
        for a in arms
    ]  # fmt: skip
    names.append(figures.arm_dots(folder, records))
    names.append(figures.arm_curves(folder, "R1", "mean", {a: [[0.5, 0.75], [0.25, 0.5]] for a in arms}))
    names.append(figures.judge_bars(folder, {a: {"wins": 1, "ties": 200, "losses": 1} for a in arms}))
    confusion = {"labels": emotions, "rows": [[1109, 2, 3, 4, 5, 6] for _ in emotions]}
    names.append(figures.confusion_map(folder, "confusion", confusion))
    at = [k / 10 for k in range(10)]
    bins = [{"lower": k, "upper": k + 0.1, "n": 1109, "weight": k + 0.1, "accuracy": 1 - k} for k in at]
    names.append(figures.reliability(folder, "reliability", {"bins": bins}))
    clusters = [(f"affectionate, self-deprecating, quick-tempered {n}", 20) for n in range(12)]
    points = [(str(n % 4), str(n // 4 + k / 50), clusters[n][0], "d") for n in range(12) for k in range(20)]
    names.append(figures.draw_map(folder, [*points, ("1.5", "1.5", "", "d")], clusters))
    return names


@pytest.fixture(scope="module")
def hand_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    drawn = [(name, inline_svg(folder / f"{name}.svg", name)) for name in long_names(folder)]
    wide = Table("Wide", ["a name that is long"] * 30, [["a-name-without-any-blank-" * 3, *["0.123"] * 29]])
    page = folder / "page.html"
    page.write_text(render("x" * 80, [("What ran", "x" * 300)], [Section("all", "All", [], [wide], drawn)]))
    return page


@WIDTHS
def test_long_names_are_not_cut(browser: Any, hand_made: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(hand_made.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawings = page.locator("figure svg[role=img]")
    assert drawings.count() == 12
    for i in range(drawings.count()):
        assert drawings.nth(i).evaluate(CUT) == [], drawings.nth(i).get_attribute("aria-label")
        assert drawings.nth(i).evaluate(SMALLEST) >= 8
        inner, outer = drawings.nth(i).evaluate("e => [e.parentNode.scrollWidth, e.parentNode.clientWidth]")
        assert inner <= outer, "a drawing fits its box"
    shown = page.locator('svg[aria-label="persona_map"]').text_content()
    assert all(f"{n + 1}: affectionate" in shown for n in range(12)), "all clusters of the map are named"
    page.close()


def test_drawings_are_readable_on_light_and_dark_pages(browser: Any, hand_made: Path) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme=scheme)
        page.goto(hand_made.as_uri())
        paper, text = page.locator('svg[aria-label="fig5_held_out"]').evaluate(
            """svg => [getComputedStyle(svg.querySelector("path")).fill,
                       getComputedStyle(svg.querySelector("text")).fill]"""
        )
        body = page.evaluate("[getComputedStyle(document.body).backgroundColor, "
                             "getComputedStyle(document.body).color]")  # fmt: skip
        assert [paper, text] == body
        seen[scheme] = paper
        page.close()
    assert seen["light"] != seen["dark"]
