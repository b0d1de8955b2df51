"""Imports go one way, and what is pure stays pure.

Read from the source by `ast`, so that an import inside a function counts as much as one at the top.
Only what stands under `if TYPE_CHECKING:` does not count: it never runs.
"""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

import windback

PACKAGE = Path(windback.__file__).parent

# From the top down. A package imports from those below its own, and inside itself where that makes no circle.
# A name stands for the module or for the whole package of that name.
LAYERS = [
    ["__main__"],
    ["aws_lambda"],
    [
        "asgi",
        "cli",
        "django",
        "fastapi",
        "flask",
        "opentelemetry",
        "prometheus",
        "serverless",
        "sqlalchemy",
        "testing",
    ],
    ["observed", "webhooks"],
    ["default"],
    ["client"],
    ["context"],
    ["sender"],
    ["relay"],
    ["remote"],
    ["delivery"],
    ["broker", "debugging", "http"],
    ["event_loops", "process"],
    ["queue"],
    ["journal"],
    ["report"],
    ["stats"],
    ["api"],
    ["scrub"],
    ["event", "models"],
    ["config"],
    ["http_client"],
    ["base_url", "directories", "options", "secrets"],
    ["outage", "turns"],
    ["clock", "descriptor", "errors", "isolation", "log", "steps", "text", "untraced", "wording"],
]
PLACES = {name: place for place, layer in enumerate(LAYERS) for name in layer}
# The server is a program of its own that happens to come along: it shares nothing with the client it tests.
APART = "devserver"

PURE = [
    *("api.answer", "api.endpoints", "config", "delivery.gate", "delivery.retry", "delivery.track_events"),
    *(
        "delivery.verdict",
        "base_url",
        "directories",
        "errors",
        "http_client",
        "secrets",
        "event.batch",
        "event.encode",
        "event.before_send",
        "event.scrubbing",
        "models",
        "options",
        "outage",
        "wording",
    ),
    *("broker.layout", "journal.format", "report", "stats", "text"),
]
# Whatever waits, starts something or reaches the network.
IMPURE = {
    *(
        "_thread",
        "anyio",
        "asyncio",
        "concurrent",
        "h11",
        "httpcore",
        "httpx",
        "multiprocessing",
        "queue",
        "sched",
    ),
    *("selectors", "signal", "socket", "ssl", "subprocess", "tenacity", "threading", "trio"),
}
# Imported only by who has it at hand: an integration by who has the framework; `http_client=` is an httpx
# client, a trio worker runs under trio, and
# a plugin under pytest. Or done without: who has no redis-py has no broker, who has no prometheus-client no
# metrics.
LOADED_ALREADY = {
    *(("config", ":httpx"), ("event_loops", ":trio"), ("testing.plugin", ":pytest")),
    *(("broker.connection", ":redis"), ("relay.health", ":prometheus_client")),
    *(("prometheus", ":prometheus_client"), ("opentelemetry", ":opentelemetry")),
    # httpx is built on httpcore, which is built on h11, and on certifi: it is never there without them.
    *(("http.streams", ":httpcore"), ("http.transport", ":httpcore"), ("http.lane", ":h11")),
    ("http.certificates", ":certifi"),
    ("base_url", ":idna"),
    # FastAPI is built on Starlette, and Flask on Werkzeug.
    *(("fastapi", ":fastapi"), ("fastapi", ":starlette"), ("fastapi", ":typing_extensions")),
    *(
        ("flask", ":flask"),
        ("flask", ":werkzeug"),
        ("flask", ":flask_login"),
        ("django.middleware", ":asgiref"),
    ),
    *(
        (f"django{name}", ":django")
        for name in (
            "",
            ".apps",
            ".checks",
            ".command",
            ".conf",
            ".middleware",
            ".test",
            ".testing",
            ".tracking",
            ".webhooks",
        )
    ),
    ("django.management.commands.windback_check", ":django"),
    ("sqlalchemy", ":sqlalchemy"),
}
MAKERS = {
    *("Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore", "Thread", "Timer"),
    *("LockType", "allocate_lock", "start_new_thread"),
}
# Who may make threads and locks, so that fork and exit can reach each of them.
THREADED = {"delivery", "event_loops", "http", "journal", "process", "queue", "relay", "sender", "turns"}


class Import(NamedTuple):
    source: str
    target: str
    line: int

    def __str__(self):
        return f"{self.source} imports {self.target} (line {self.line})"


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def running_nodes(node):
    """Yield *node* and all below it, but not what stands under `if TYPE_CHECKING:`."""
    yield node
    skipped = []
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        skipped = node.body
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            yield from running_nodes(child)


def imports(name, source, *, is_package=False, modules=MODULES):
    """Return the imports that *source*, of the module *name*, can run.

    Modules of windback are named from its root ("queue.base"; the root itself is ""), all others by
    their top name with a colon before it (":httpx").
    """
    found = []
    for node in running_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["windback", *name.split(".")] if name else ["windback"]
                up = node.level - 1 if is_package else node.level
                base = ".".join([*parts[: len(parts) - up], *([base] if base else [])])
            # `from . import batching` names a module, `from .batching import Limits` a thing in one.
            targets = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}"[len("windback.") :] in modules else base
                for alias in node.names
            ]
        else:
            continue
        for target in dict.fromkeys(targets):
            top, _, rest = target.partition(".")
            found.append(Import(name, rest if top == "windback" else f":{top}", node.lineno))
    return found


IMPORTS = [
    found
    for name, path in sorted(MODULES.items())
    for found in imports(name, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
]
INSIDE = [found for found in IMPORTS if not found.target.startswith(":")]


def top(name):
    return name.partition(".")[0]


def is_standard(name):
    spec = find_spec(name)
    return spec is not None and "site-packages" not in (spec.origin or "")


def rank(name):
    return PLACES[top(name)]


def circle(edges):
    """Return the names on one circle of *edges*, or an empty list."""
    done = set()

    def visit(name, trail):
        if name in trail:
            return trail[trail.index(name) :]
        if name in done:
            return []
        for target in sorted(edges.get(name, ())):
            found = visit(target, [*trail, name])
            if found:
                return found
        done.add(name)
        return []

    return next((found for found in (visit(name, []) for name in sorted(edges)) if found), [])


def test_each_module_has_its_place():
    assert {top(name) for name in MODULES} == {*PLACES, APART, ""}


def test_imports_go_down():
    upward = [
        str(found)
        for found in INSIDE
        if not {top(found.source), top(found.target)} & {"", APART}
        and rank(found.source) > rank(found.target)
    ]
    assert upward == []


def test_no_two_packages_import_each_other():
    """Packages in one layer may import one another in one direction only."""
    edges = {(top(found.source), top(found.target)) for found in INSIDE}
    assert [pair for pair in sorted(edges) if pair[0] < pair[1] and pair[::-1] in edges] == []


def test_imports_make_no_circle():
    edges = {}
    for found in INSIDE:
        edges.setdefault(found.source, set()).add(found.target)
    assert circle(edges) == []


#: The packages that users import from, and the command.
USERS = {"cli", "django", "testing", "webhooks", APART}


@pytest.mark.parametrize("name", sorted({top(name) for name in PACKAGES} - {"", *USERS}))
def test_a_package_says_which_others_it_imports(name):
    """The docstring is what a reader sees first."""
    docstring = ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8"))) or ""
    said = set(re.findall(r"`(\w+)`", docstring.partition("Imports: ")[2]))
    targets = {top(found.target) for found in INSIDE if top(found.source) == name} - {name}
    assert "Imports: " in docstring
    assert targets & PACKAGES - {""} <= said <= targets


def test_the_root_loads_its_names_when_they_are_used():
    assert [str(found) for found in INSIDE if not found.source] == []


def test_nothing_but_the_command_line_and_what_is_for_tests_knows_the_server():
    known = {top(found.source) for found in INSIDE if top(found.target) == APART}
    assert known <= {APART, "cli", "testing"}
    allowed = {APART, "isolation"}  # how a process is started is one decision
    assert [
        str(found) for found in INSIDE if top(found.source) == APART and top(found.target) not in allowed
    ] == []


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_reaches_neither_network_nor_thread(name):
    reached = [
        str(found)
        for found in IMPORTS
        if found.source == name and found.target[1:] in IMPURE and found[:2] not in LOADED_ALREADY
    ]
    assert reached == []


def test_pure_modules_import_only_pure_modules():
    assert [
        str(found)
        for found in INSIDE
        if found.source in PURE and found.target not in {"", *PURE} and found.target not in PACKAGES
    ] == []


def makes_thread_or_lock(source):
    return any(
        (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in {"_thread", "threading"}
            and node.attr in MAKERS
        )
        or (isinstance(node, ast.ImportFrom) and node.module in {"_thread", "threading"})
        for node in running_nodes(ast.parse(source))
    )


def test_threads_and_locks_are_made_where_fork_and_exit_reach_them():
    makers = {
        top(name) for name, path in MODULES.items() if makes_thread_or_lock(path.read_text(encoding="utf-8"))
    }
    assert "delivery" in makers
    assert makers - {APART} <= THREADED


@pytest.mark.parametrize(
    ("source", "makes"),
    [
        ("import threading\nthreading.Thread()", True),
        ("import _thread\ndef f():\n return _thread.allocate_lock()", True),
        ("from threading import Lock", True),
        ("import threading\nthreading.local()", False),
        ("if TYPE_CHECKING:\n from threading import Lock", False),
    ],
)
def test_a_thread_or_lock_is_seen_where_it_is_made(source, makes):
    assert makes_thread_or_lock(source) is makes


@pytest.mark.parametrize("hook", ["atexit.register(", "os.register_at_fork("])
def test_one_module_hears_of_fork_and_exit(hook):
    assert [name for name, path in MODULES.items() if hook in path.read_text(encoding="utf-8")] == [
        "process.lifecycle"
    ]


@pytest.mark.parametrize(
    "call",
    [
        "time.monotonic",
        "time.perf_counter",
        "time.sleep",
        "anyio.sleep(",
        "anyio.move_on_after",
        "anyio.fail_after",
    ],
)
def test_one_module_has_the_clock(call):
    """Any other would stand still where a test library freezes time."""
    users = {name for name, path in MODULES.items() if call in path.read_text(encoding="utf-8")}
    allowed = {"clock", "event_loops"}
    assert {name for name in users if top(name) != APART} <= allowed


def test_base_install_is_enough_for_all_but_the_server_and_the_commands():
    base = {"anyio", "httpx", "orjson", "tenacity"}
    foreign = {
        found.target[1:]
        for found in IMPORTS
        if found.target[:1] == ":"
        and top(found.source) not in {APART, "cli"}
        and found[:2] not in LOADED_ALREADY
    }
    assert base <= foreign
    assert {name for name in foreign - base if not is_standard(name)} == set()


@pytest.mark.parametrize(
    ("name", "is_package", "source", "target"),
    [
        pytest.param("event", False, "from .errors import X", "errors", id="sibling"),
        pytest.param("event", False, "from . import errors", "errors", id="sibling as a module"),
        pytest.param("event", False, "from . import __version__", "", id="root"),
        pytest.param("event", False, "def f():\n import windback.errors", "errors", id="in a function"),
        pytest.param("queue.memory", False, "from ..errors import X", "errors", id="parent"),
        pytest.param("queue.memory", False, "from .base import X", "queue.base", id="in a package"),
        pytest.param("queue", True, "from .base import X", "queue.base", id="from a package"),
        pytest.param("queue", True, "from ..errors import X", "errors", id="from a package to its parent"),
        pytest.param("event", False, "import httpx._types", ":httpx", id="foreign"),
        pytest.param("event", False, "if TYPE_CHECKING:\n 1\nelse:\n import httpx", ":httpx", id="else"),
        pytest.param("event", False, "if TYPE_CHECKING:\n    import httpx", None, id="for type checkers"),
    ],
)
def test_an_import_is_read_as_python_reads_it(name, is_package, source, target):
    modules = {"", "errors", "event", "queue", "queue.base", "queue.memory"}
    found = imports(name, source, is_package=is_package, modules=modules)
    assert [each.target for each in found] == ([] if target is None else [target])


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []
