"""Sliders answer at once: the connection sets TCP_NODELAY, and `tinydiff lessons` and the page for lectures use it."""

import importlib
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from tinydiff import cli

server = pytest.importorskip("tinydiff.server")


def test_a_connection_sets_nodelay_first(monkeypatch) -> None:
    done = []
    monkeypatch.setattr(server.ZMQChannelsWebsocketConnection, "connect", lambda self: done.append("connect"))

    class Here(server.Prompt):
        websocket_handler = SimpleNamespace(set_nodelay=done.append)

    Here.__new__(Here).connect()
    assert done == [True, "connect"]


@pytest.mark.parametrize("start", ["lessons", "app"])
def test_it_is_what_the_lessons_and_the_page_are_served_with(start, monkeypatch) -> None:
    class Started(BaseException):
        """Nothing is started: it would never end."""

    def record(command, **_) -> None:
        raise Started(command)

    monkeypatch.setattr(subprocess, "Popen", record)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.syspath_prepend(str(cli._find_lessons()))
    main = partial(cli.main, ["lessons"]) if start == "lessons" else partial(importlib.import_module("app").main, [])
    with pytest.raises(Started) as info:
        main()
    (command,) = info.value.args
    assert command[0] == sys.executable
    (option,) = [word for word in command if "kernel_websocket_connection_class=" in word]
    module, name = option.split("=")[1].rsplit(".", 1)
    assert getattr(importlib.import_module(module), name) is server.Prompt
