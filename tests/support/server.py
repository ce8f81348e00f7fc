"""The HTTP server of `selfemo serve` in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from selfemo.serve.selfemo import SelfEmo

uvicorn = pytest.importorskip("uvicorn", reason="pip install 'selfemo[serve]'")
server = pytest.importorskip("selfemo.serve.server")


@contextmanager
def serving(app: Any, **config: Any) -> Iterator[str]:
    """The address of an application that runs in a thread; `config` is uvicorn's."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    running_server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, **config))
    thread = threading.Thread(target=running_server.run, daemon=True)
    thread.start()
    while not running_server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running_server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def running(model: SelfEmo, name: str = "tiny", **settings: Any) -> Iterator[str]:
    with serving(server.create_app(model, name=name, **settings), log_level="warning") as url:
        yield url
