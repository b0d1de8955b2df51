"""`import windback` costs next to nothing and touches nothing; its names are loaded when they are used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import windback

HEAVY = {
    *("anyio", "asyncio", "click", "httpcore", "httpx", "redis", "rich", "ssl", "starlette", "tenacity"),
    *("trio", "typer", "uvicorn"),
}

IMPORT = "import windback"
CLIENT = """
import windback
client = windback.Windback("sk_test_1", "shop", base_url="http://127.0.0.1:9")
client.stats()
client.with_options(max_retries=0)
"""
#: The answer is a 200, to whatever comes.
FIRST_BATCH = """
import socket, threading
import windback

def answer():
    connection, _ = listener.accept()
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
    threading.Event().wait()

listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=answer, daemon=True).start()
url = "http://127.0.0.1:%d" % listener.getsockname()[1]
client = windback.Windback("sk_test_1", "shop", base_url=url)
client.track_event("signup", "jane@example.com")
assert client.flush().delivered == 1
"""
# What the probe must see, so that its silence about the two above means something.
CONTROL = """
import asyncio, signal, socket, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
socket.socket().close()
signal.signal(signal.SIGTERM, lambda *_: None)
"""

PROBE = """
import json, signal, sys, _thread
signals = sorted(signal.valid_signals() - {{signal.SIGKILL, signal.SIGSTOP}})
handlers = [signal.getsignal(number) for number in signals]
loaded, sockets = set(sys.modules), []
threads = _thread._count()
sys.addaudithook(lambda name, _: sockets.append(name) if name.startswith("socket.") else None)
{code}
print(json.dumps({{
    "modules": sorted(set(sys.modules) - loaded),
    "sockets": sockets,
    "threads": _thread._count() - threads,
    "signals": sum(signal.getsignal(number) != old for number, old in zip(signals, handlers)),
}}))
"""


def probe(code):
    """Run *code* in a fresh interpreter; return what it loaded, opened, started and registered."""
    script = PROBE.format(code=textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("code", [IMPORT, CLIENT], ids=["import", "client"])
def test_nothing_heavy_is_loaded_before_the_first_call(code):
    modules = probe(code)["modules"]
    assert "windback" in modules
    assert HEAVY.isdisjoint(modules)


def test_a_batch_of_a_thread_loads_neither_httpx_nor_an_event_loop():
    # A command that runs for a moment would wait for them longer than for everything else.
    modules = probe(FIRST_BATCH)["modules"]
    assert "h11" in modules
    assert (HEAVY - {"ssl"}).isdisjoint(modules)


@pytest.mark.parametrize("kind", ["", "async "], ids=["plain", "async"])
def test_a_serverless_handler_loads_what_it_sends_with_before_it_is_called(kind):
    modules = probe(
        f"from windback.serverless import flush_after\n@flush_after\n{kind}def handler(event, context): ..."
    )["modules"]
    assert ("windback.http.transport" if kind else "windback.http.lane") in modules
    assert ("httpx" in modules) == bool(kind)


@pytest.mark.parametrize("code", [IMPORT, CLIENT], ids=["import", "client"])
def test_no_thread_no_socket_and_no_signal_before_the_first_call(code):
    seen = probe(code)
    assert (seen["threads"], seen["sockets"], seen["signals"]) == (0, [], 0)


def test_the_probe_sees_modules_threads_sockets_and_signals():
    seen = probe(CONTROL)
    assert "asyncio" in seen["modules"]
    assert seen["threads"] == 1
    assert seen["sockets"] == ["socket.__new__"]
    assert seen["signals"] == 1


def test_importing_windback_loads_none_of_its_modules():
    modules = probe(IMPORT)["modules"]
    assert [name for name in modules if name.startswith("windback")] == ["windback"]


@pytest.mark.parametrize("name", windback.__all__)
def test_each_public_name_resolves_and_is_listed(name):
    assert getattr(windback, name) is not None
    assert name in dir(windback)


def test_public_names_are_listed_once_and_in_order():
    assert windback.__all__ == sorted(set(windback.__all__))


def test_dir_lists_names_that_are_not_loaded_yet():
    listed = probe('import windback; assert "Windback" in dir(windback)')["modules"]
    assert "windback.client" not in listed


def test_a_name_once_used_is_kept():
    code = """
    import windback
    assert "WindbackError" not in vars(windback)
    assert windback.WindbackError is vars(windback)["WindbackError"]
    """
    assert "windback.errors" in probe(code)["modules"]


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match=r"module 'windback' has no attribute 'Windbag'"):
        windback.Windbag  # noqa: B018
    with pytest.raises(ImportError, match="Windbag"):
        exec("from windback import Windbag")  # noqa: S102


def test_type_checkers_see_the_names_that_are_loaded():
    tree = ast.parse(Path(windback.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert isinstance(block.test, ast.Name)
    assert block.test.id == "TYPE_CHECKING"
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == windback._HOMES
    assert sorted([*seen, "__version__"]) == windback.__all__
