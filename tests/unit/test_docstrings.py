"""Each public function documents its parameters, result and exceptions, so that an editor can show them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import windback

ROOT = Path(windback.__file__).parent
#: The modules that users import from.
PUBLIC = [
    *("asgi", "client", "context", "default", "errors", "fastapi", "models", "prometheus", "serverless"),
    *("stats", "webhooks/__init__", "relay/broker", "relay/forwarder", "relay/journal"),
    *("testing/captured", "testing/cases", "testing/local"),
]
#: Protocol methods of unittest and pytest, whose parameters everyone knows.
WELL_KNOWN = {"setUp", "setUpClass", "tearDown", "tearDownClass"}
SECTION = re.compile(r"^(Args|Returns|Raises|Yields):$", re.MULTILINE)


def public_functions():
    """Yield the place, the class or None, and the function, for each public function and method."""
    for name in PUBLIC:
        tree = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
                yield f"{name}.{node.name}", None, node
            elif isinstance(node, ast.ClassDef) and (not node.name.startswith("_") or node.name == "_Client"):
                for method in node.body:
                    if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
                        yield f"{name}.{node.name}.{method.name}", node, method


#: What the package calls itself: integrations, the plugin, and the two clients.
INTERNAL = re.compile(
    r"asgi\.Tracker\.__init__|client\.PreparedEvent\.__init__|context\.(Customer|Scope|Bound)\..*"
    r"|context\.(open_scope|close_scope|merged)|default\.(check_settings|client_or_none|client_from|nearest)"
    r"|stats\.(AtomicCounter\..*|nonzero|sum_of_.*)|relay/forwarder\.PolledQueue\..*"
    r"|relay/forwarder\.Forwarder\.(__init__|check_may_wait)|relay/journal\.JournalSender\.__init__"
    r"|testing/local\.Inbox\.__init__"
)


def is_checked(name, method):
    if INTERNAL.fullmatch(name) or any("overload" in ast.dump(each) for each in method.decorator_list):
        return False
    return method.name == "__init__" or not (method.name.startswith("_") or method.name in WELL_KNOWN)


FUNCTIONS = [each for each in public_functions() if is_checked(each[0], each[2])]


def sections(doc):
    """Return the text of each section by its name; "" is the text before them."""
    parts = SECTION.split(doc)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))}


def entries(section):
    """Return the names that a section describes."""
    return re.findall(r"^    (\*{0,2}\w+):", section, re.MULTILINE)


def parameters(function):
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args)]
    names += [f"*{given.vararg.arg}"] if given.vararg else []
    names += [each.arg for each in given.kwonlyargs]
    names += [f"**{given.kwarg.arg}"] if given.kwarg else []
    return [name for name in names if name not in ("self", "cls")]


def docstring(owner, function):
    """Return the docstring that an editor shows for a call."""
    own = ast.get_docstring(function)
    if own is None and function.name == "__init__":
        own = ast.get_docstring(owner)
    return own or ""


@pytest.mark.parametrize(
    ("owner", "function"), [each[1:] for each in FUNCTIONS], ids=[each[0] for each in FUNCTIONS]
)
def test_parameters_results_and_exceptions_have_their_sections(owner, function):
    doc = docstring(owner, function)
    found = sections(doc)
    assert sorted(name.lstrip("*") for name in entries(found.get("Args", ""))) == sorted(
        name.lstrip("*") for name in parameters(function)
    )
    decorators = {each.id for each in function.decorator_list if isinstance(each, ast.Name)}
    returns = function.returns
    is_none = returns is None or (isinstance(returns, ast.Constant) and returns.value is None)
    if not is_none and "property" not in decorators:
        assert "Returns" in found or "Yields" in found
    assert not re.search(r"\bRaises? [A-Z]\w+Error", found[""])
    assert "Raises" not in found or entries(found["Raises"])


def test_the_list_covers_what_people_call():
    names = {name for name, _, _ in FUNCTIONS}
    assert {"client._Client.__init__", "client.Windback.track_event", "webhooks/__init__.parse"} <= names
    assert len(names) > 120


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_refers_to_its_module_instead_of_a_description(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            assert not (ast.get_docstring(node) or "").startswith("See the module"), node.name


def test_both_clients_have_the_same_docstrings():
    tree = ast.parse((ROOT / "client.py").read_text(encoding="utf-8"))
    docs = {
        node.name: {
            method.name: ast.get_docstring(method)
            for method in node.body
            if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) and not method.name.startswith("_")
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in ("Windback", "AsyncWindback")
    }
    different = {"track_event", "list_churn_events"}  # what blocks, and how to iterate
    assert docs["Windback"].keys() == docs["AsyncWindback"].keys()
    for name, text in docs["Windback"].items():
        assert name in different or text == docs["AsyncWindback"][name], name
