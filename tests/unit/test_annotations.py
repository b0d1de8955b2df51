"""Frameworks evaluate annotations, for dependency injection among others: all public ones can be."""

from __future__ import annotations

import importlib
import inspect
import typing

import pytest

import windback

MODULES = [
    "windback",
    "windback.aws_lambda",
    "windback.context",
    "windback.devserver",
    "windback.relay",
    "windback.serverless",
]


def public_functions():
    for name in [*MODULES, "windback.testing"]:
        module = importlib.import_module(name)
        for attribute in getattr(module, "__all__", [each for each in dir(module) if each[0] != "_"]):
            value = getattr(module, attribute)
            yield f"{name}.{attribute}", value
            if inspect.isclass(value) and value.__module__.startswith("windback"):
                for method, member in inspect.getmembers(value):
                    found = member.fget if isinstance(member, property) else member
                    yield f"{name}.{attribute}.{method}", getattr(found, "__func__", found)


FUNCTIONS = {
    name: value
    for name, value in public_functions()
    if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith("windback")
}


def test_the_list_has_what_people_use():
    assert {"windback.Windback.__init__", "windback.Windback.__exit__", "windback.get_client"} <= {*FUNCTIONS}
    assert len(FUNCTIONS) > 200


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_annotations_can_be_evaluated(function):
    typing.get_type_hints(function)


def test_a_client_can_be_injected_by_its_constructor():
    hints = typing.get_type_hints(windback.Windback.__init__)
    assert hints["timeout"] is float
    assert typing.get_type_hints(windback.get_client) == {"return": windback.Windback}
