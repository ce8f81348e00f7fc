"""The chat in a terminal without a screen, and its page in Chromium: type, send, watch, vote, export."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from selfemo import SelfEmo
from selfemo.cli import app
from selfemo.data import load
from selfemo.errors import ConfigError, DataError
from selfemo.serve.chat import terminal
from selfemo.serve.chat.session import Character, Session

PAIR = (Character("Mia", "warm"), Character("Bo", "dry"))
LOUD = "Hi <img src=x onerror=document.title=1> ${document.title=2} {{1}} [a](http://example.com/)"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> SelfEmo:
    return SelfEmo(tiny_model, max_tokens=72)


def typed(model: SelfEmo, monkeypatch: pytest.MonkeyPatch, text: str) -> tuple[Session, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    out = io.StringIO()
    session = terminal.chat(
        model, Session(PAIR[:1], "A kitchen."), Console(file=out, width=200, color_system=None)
    )
    return session, out.getvalue()


def test_a_talk_in_the_terminal(model: SelfEmo, monkeypatch, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    session, said = typed(
        model, monkeypatch,
        f"I lost my keys.\n/watch 2 Bo: dry\n/undo\n/export {file}\n/export {tmp_path}/talk.md\n/show\n",
    )  # fmt: skip
    assert [x.speaker for x in session.lines] == ["You", "Mia", "Bo"]
    assert "[You sounds " in said and "  3 Bo [feels " in said
    (found,) = load(str(file)).conversations
    assert len(found.turns) == 3 and found.personas["Bo"].description == "dry"
    assert (tmp_path / "talk.md").read_text().startswith("# A kitchen.")
    edited, _ = typed(model, monkeypatch, "One.\n/edit 1 Two.\n/scene Outside.\n/persona Ann: loud\n")
    assert edited.lines == () and edited.characters[0].name == "Ann" and edited.scene == "Outside."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/watch 3", "it takes two characters"),
        ("/watch 1 Bo: dry", "type a first line"),
        ("/edit x y", "x is not a number"),
        ("/edit 4 y", "there is no line 4"),
        ("/export", "name the file"),
        ("/export /nowhere/at/all.jsonl", "nothing to export"),
        ("/episodes", "comes from no run"),
        ("/persona : kind", "needs a name"),
        ("/dance", "there is no /dance"),
        ("/help", "Ctrl-D"),
        ("\x00", "nothing was said"),
    ],
)
def test_a_slip_in_the_terminal_is_told_and_ends_nothing(
    model: SelfEmo, monkeypatch, text: str, said: str
) -> None:
    session, out = typed(model, monkeypatch, f"{text}\nStill there?\n")
    assert said in out and session.lines[0].text == "Still there?"


# -- the page -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(model: SelfEmo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    pytest.importorskip("gradio", reason="gradio is not installed")
    from selfemo.serve.chat.web import build, launch

    votes = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    blocks = build(model, model, Session(PAIR, "A kitchen."), votes)
    address = launch(blocks, "127.0.0.1", 0)
    yield address, votes
    blocks.close()


def opened(browser: Any, address: str, width: int, scheme: str) -> tuple[Any, list[str]]:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("pageerror", lambda e: wrong.append(str(e)))
    tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    tab.on(
        "request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else wrong.append(r.url)
    )
    tab.goto(address)
    return tab, wrong


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_talk_and_export(browser, page, width: int, scheme: str, tmp_path: Path) -> None:
    tab, wrong = opened(browser, page[0], width, scheme)
    box = tab.get_by_label("Your line", exact=True)
    box.fill(LOUD)
    box.press("Enter")
    tab.locator(".se-line").first.wait_for()
    box.fill("And then")  # typed while the answer is on its way
    tab.locator(".se-line").nth(1).wait_for()
    tab.locator(".se-wrap circle").nth(1).wait_for()  # one read, one felt
    assert box.input_value() == "And then"
    first = tab.locator(".se-line").first
    assert LOUD in first.inner_text() and "read as" in first.inner_text()
    assert "feels" in tab.locator(".se-line").nth(1).inner_text()
    assert tab.title() == "SELF-EMO chat" and tab.locator(".se-log img, .se-log a").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    log = tab.get_by_role("log", name="Conversation").first
    assert log.get_attribute("aria-live") == "polite"
    tab.wait_for_timeout(500)
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Export as JSONL").first.click()
    download.value.save_as(tmp_path / "chat.jsonl")
    (found,) = load(str(tmp_path / "chat.jsonl")).conversations
    assert [u.speaker for u in found.turns] == ["You", "Mia"] and found.turns[0].emotion
    tab.get_by_role("button", name="Undo").click()
    tab.get_by_text("Nothing was said yet.").first.wait_for()
    assert wrong == []


@pytest.mark.slow
def test_watch_two_and_vote(browser, page) -> None:
    tab, wrong = opened(browser, page[0], 1280, "light")
    tab.get_by_role("tab", name="Watch two").click()
    tab.get_by_label("First line, said by the first one").fill("The train is late.")
    tab.get_by_role("button", name="Begin").click()
    shown = tab.get_by_role("tabpanel").locator(".se-line:visible")
    tab.get_by_text("The train is late.").first.wait_for()
    tab.get_by_role("button", name="Next turn").click()
    tab.locator(".se-wrap circle").nth(1).wait_for()  # the turn is over: one read, one felt
    assert "Bo" in shown.nth(1).inner_text()
    tab.get_by_label("New text").fill("The bus is late.")
    tab.get_by_role("button", name="Change it").click()
    tab.get_by_text("The bus is late.").first.wait_for()
    tab.wait_for_function("document.querySelectorAll('.se-line').length == 1")
    tab.get_by_role("tab", name="Compare").click()
    tab.get_by_label("Your line to both").fill("I got the job!")
    tab.get_by_role("button", name="Ask both").click()
    tab.get_by_text("Answer 2", exact=True).wait_for()
    body = tab.inner_text("body")
    assert str(page[1].parent) not in body and "Thank you" not in body  # blind until the vote
    tab.get_by_role("button", name="Answer 1 is better").click()
    tab.get_by_text("Thank you.").wait_for()
    (vote,) = map(json.loads, page[1].read_text().splitlines())
    assert vote["vote"] == "1" and vote["turns"] == [["You", "I got the job!"]]
    assert wrong == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--compare", "x"], "--compare needs --web"),
        (["--web", "--host", "0.0.0.0"], "--insecure"),
        (["--persona", "Bo: a", "--second", "Bo: b"], "different names"),
    ],
)
def test_what_the_command_refuses_before_it_loads_a_model(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["chat", "no-such-model", *options])
    assert isinstance(result.exception, ConfigError) and said in str(result.exception)


def test_a_port_that_is_taken(model: SelfEmo, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    import socket

    from selfemo.serve.chat.web import build, launch

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with pytest.raises(DataError, match="choose another --port"):
            launch(build(model, None, Session(PAIR), tmp_path / "v"), "127.0.0.1", s.getsockname()[1])
