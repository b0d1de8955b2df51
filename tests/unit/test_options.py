"""Each option is said once; signatures, docstrings and docs agree with that."""

from __future__ import annotations

import inspect
import re
import runpy
import textwrap
from pathlib import Path

import pytest

from windback import AsyncWindback, Windback
from windback.config import OPTIONS, Config
from windback.relay import BrokerRelay, Relay

ROOT = Path(__file__).resolve().parents[2]
#: Checked options whose argument has another type, such as text that becomes a Secret, or a default that is
#: filled in later.
FILLED_IN = {"debug", "api_key", "public_key", "base_url", "broker", "journal", "scrub", "enabled", "status"}
#: A relay has no callers, so it calls the same thing by another name.
OTHER_NAMES = {"concurrency": "max_in_flight"}


@pytest.mark.parametrize("client", [Windback, AsyncWindback])
def test_a_client_takes_all_options_with_their_defaults_and_types(client):
    taken = dict(inspect.signature(client.__init__).parameters)
    del taken["self"]
    assert sorted(taken) == sorted(OPTIONS)
    for name, parameter in taken.items():
        if name not in FILLED_IN:
            assert parameter.annotation == Config.__annotations__[name], name
        assert parameter.default == (None if name in FILLED_IN else OPTIONS[name].default), name


def arguments(docstring):
    """Return the section "Args" of a docstring: the text of each argument, on one line."""
    section = re.search(r"Args:\n(.*?)(?:\n\s*\n|\Z)", inspect.cleandoc(docstring), re.DOTALL)
    assert section is not None
    texts = re.split(r"^(?=\w+: )", textwrap.dedent(section.group(1)), flags=re.MULTILINE)
    pairs = [" ".join(text.split()).partition(": ") for text in texts if text.strip()]
    return {name: text for name, _, text in pairs}


def test_the_docstring_of_a_client_has_the_help_of_each_option():
    wanted = {
        name: said.help + (f" Environment: {said.environment}." if said.environment else "")
        for name, said in OPTIONS.items()
    }
    assert arguments(Windback.__init__.__doc__) == wanted


@pytest.mark.parametrize("relay", [Relay, BrokerRelay])
def test_a_relay_has_the_defaults_of_the_options_that_it_shares(relay):
    shared = {
        OTHER_NAMES.get(name, name): parameter.default
        for name, parameter in inspect.signature(relay.__init__).parameters.items()
    }
    same = {name: default for name, default in shared.items() if name in OPTIONS and name not in FILLED_IN}
    assert len(same) >= 6
    assert same == {name: OPTIONS[name].default for name in same}


def test_every_default_passes_its_own_check():
    for name, said in OPTIONS.items():
        if said.check is not None:
            assert said.check(name, said.default) == said.default


GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))


@pytest.mark.parametrize("page", sorted(GENERATE["PARTS"]))
def test_the_generated_parts_of_a_page_are_up_to_date(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert GENERATE["generated"](page) == text, "run: python docs/generate.py"


def test_a_site_has_the_markdown_of_each_page_and_a_list_of_them(tmp_path):
    GENERATE["write_texts"](tmp_path)
    listed = re.findall(
        r"^- \[.+\]\((.+)\)$", (tmp_path / "llms.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    docs = ROOT / "docs"
    assert sorted(listed) == sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))
    assert all((tmp_path / name).read_bytes() == (docs / name).read_bytes() for name in listed)
