"""Windback and AsyncWindback are written by hand and do the same: only `async` and `await` differ."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from windback import client

TREE = ast.parse(Path(client.__file__).read_text(encoding="utf-8"))
#: Only their signatures are the same: a task can wait for a customer's address, and can be cancelled.
DIFFERENT = {"track", "__exit__", "__aexit__"}


class WithoutAwait(ast.NodeTransformer):
    def visit_Await(self, node):
        return self.visit(node.value)


def methods(name):
    """Return signature and body of each method, as text, without docstring and what marks it as async."""
    (found,) = (node for node in TREE.body if isinstance(node, ast.ClassDef) and node.name == name)
    for method in found.body:
        if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
            plain = WithoutAwait().visit(method)
            body = plain.body[ast.get_docstring(plain) is not None :]
            parts = [plain.args, plain.returns or ast.Pass(), *(() if method.name in DIFFERENT else body)]
            texts = [method.name, *map(ast.dump, parts)]
            # Each event loop has connections of its own.
            texts = [text.replace("attr='loops'", "attr='connections'") for text in texts]
            yield [re.sub(r"_async\b|Async|(?<=__)a(?=enter|exit)", "", text) for text in texts]


TWINS = list(zip(methods("Windback"), methods("AsyncWindback")))


@pytest.mark.parametrize(("one", "other"), TWINS, ids=[one[0] for one, _ in TWINS])
def test_they_do_the_same(one, other):
    assert one == other


def test_they_have_the_same_methods():
    assert len(list(methods("Windback"))) == len(list(methods("AsyncWindback"))) == len(TWINS) > 25
