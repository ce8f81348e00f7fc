"""What `selfemo serve` refuses or warns of before it loads a model."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.errors import ConfigError, SelfEmoError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--allow-origin", "app.example.org"], "--allow-origin 'app.example.org' is no origin"),
        (["--allow-origin", "http://localhost:3000", "--allow-origin", "http://x/y"], "'http://x/y'"),
        (["--root-path", "emo"], "--root-path 'emo' is no path"),
        (["--root-path", "https://example.org/emo"], "--root-path 'https://example.org/emo' is no path"),
        (["--host", "0.0.0.0"], "--insecure"),
    ],
)
def test_wrong_options_are_refused(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["serve", "no-such-model", *options])
    assert isinstance(result.exception, ConfigError) and said in str(result.exception)


@pytest.mark.parametrize(("token", "advised"), [("", True), ("s3cret", False)])
def test_every_origin_comes_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, token: str, advised: bool
) -> None:
    pytest.importorskip("fastapi_offline", reason="pip install 'selfemo[serve]'")
    monkeypatch.setenv("SELFEMO_TOKEN", token)
    told = CliRunner().invoke(app, ["serve", "./no-such-model", "--port", "0", "--allow-origin", "*"])
    assert isinstance(told.exception, SelfEmoError), "the model is looked for after it"
    assert "every web page" in told.stderr and ("SELFEMO_TOKEN" in told.stderr) == advised
    named = ["serve", "./no-such-model", "--port", "0", "--allow-origin", "http://localhost:3000"]
    assert "web page" not in CliRunner().invoke(app, named).stderr
