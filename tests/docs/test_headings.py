"""What the code names has a place in the docs, and the docs name nothing that the code does not have."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import httpx
import pytest
import typer
from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider
from prometheus_client import CollectorRegistry

from windback import AsyncWindback, Windback, errors
from windback.api.answer import Answer
from windback.cli.app import app
from windback.config import OPTIONS
from windback.delivery.verdict import judge
from windback.opentelemetry import instrument
from windback.prometheus import register
from windback.relay import Relay
from windback.relay.health import answering
from windback.stats import Stats

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SOURCES = [
    path.read_text(encoding="utf-8")
    for path in (ROOT / "src" / "windback").rglob("*.py")
    if "devserver" not in path.parts
]
#: Codes that come from the API, so no line of the source has them.
OF_THE_API = {"INVALID_API_KEY", "SUBSCRIPTION_EXPIRED"}


def page(name):
    return (DOCS / name).read_text(encoding="utf-8")


def headings(name, level=3):
    return re.findall(rf"^{'#' * level} (.+)$", page(name), re.MULTILINE)


def verdicts():
    """Return the reasons of rejected events that have a name of their own."""
    reasons = {judge(Answer(status), events=1, gzipped=False).reason for status in range(400, 500)}
    return {reason for reason in reasons if not reason.startswith("status_")}


def webhook_codes():
    """Return the codes of a WebhookError, which its docstring lists."""
    return set(re.findall(r'"([a-z_]+)"', errors.WebhookError.__doc__ or ""))


def test_each_code_and_each_reason_has_a_heading_and_each_heading_is_one():
    codes = {code for text in SOURCES for code in re.findall(r'code="([A-Z_]+)"', text)} | OF_THE_API
    reasons = set(re.findall(r'"([a-z_]+)"', (Stats.__doc__ or "").split("delivered:")[0]))
    reasons |= {"queue_full", "closed", "journal_removed", "status_N"} | verdicts()
    assert {"QUEUE_FULL", "MISSING_API_KEY"} <= codes
    assert {"no_customer", "scrub_error"} <= reasons
    assert sorted(headings("errors.md")) == sorted(codes | webhook_codes() | reasons)


def test_each_error_has_a_row_with_a_cause_and_a_cure():
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.WindbackError)
    }
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", page("errors.md"), re.MULTILINE)
    assert sorted(rows) == sorted(classes - {"WindbackError"})


def commands(command, path):
    children = getattr(command, "commands", None)
    if not children:
        return {" ".join(path)}
    return set().union(*(commands(child, [*path, name]) for name, child in children.items()))


def test_each_command_has_a_heading_and_each_heading_is_a_command():
    named = {
        heading.strip("`").replace("windback ", "", 1)
        for name in ("cli.md", "journal-cli.md")
        for heading in headings(name, 2)
        if heading.strip("`").startswith("windback ")
    }
    assert named == commands(typer.main.get_command(app), [])


def test_each_environment_variable_is_in_the_reference_and_is_read():
    read = {name for text in SOURCES for name in re.findall(r'"(WINDBACK_[A-Z_]+)"', text)}
    section = page("reference.md").partition("## Environment variables\n")[2].partition("\n## ")[0]
    assert {said.environment for said in OPTIONS.values() if said.environment} <= read
    assert set(re.findall(r"^\| `(WINDBACK_[A-Z_]+)` \|", section, re.MULTILINE)) == read


@pytest.mark.parametrize("field", [name for name in Stats.__dataclass_fields__ if not name.startswith("_")])
def test_each_counter_is_in_the_reference(field):
    section = page("reference.md").partition("## Numbers\n")[2].partition("\n## ")[0]
    assert re.search(rf"^\| `{field}` \|", section, re.MULTILINE), field


def test_each_option_has_a_row_and_each_row_is_an_option():
    table = page("reference.md").partition("<!-- options -->\n")[2].partition("<!-- /options -->")[0]
    rows = re.findall(r"^\| `(\w+)` \| .+ \| .+ \|$", table, re.MULTILINE)
    for kind in (Windback, AsyncWindback):
        assert rows == [name for name in inspect.signature(kind).parameters if name != "self"]


def names_in(name, prefix):
    """Return the names of metrics in the tables of a page; `…_x` stands for the prefix before it."""
    rows = "\n".join(re.findall(r"^\| .+$", page(name), re.MULTILINE))
    return set(re.findall(rf"`({re.escape(prefix)}[a-z_.]+)(?:{{reason}})?`", rows))


def test_each_metric_of_a_client_has_a_row_and_each_row_is_a_metric():
    registry = CollectorRegistry()
    with Windback("sk_test_local", base_url="http://127.0.0.1:9") as client:
        register(client, registry)
        found = {
            family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()
        }
    assert names_in("monitoring.md", "windback_client_") == found


def test_each_metric_of_a_relay_has_a_row_and_each_row_is_a_metric(tmp_path):
    relay = Relay(tmp_path, "sk_test_local", base_url="http://127.0.0.1:9")
    with answering(relay, "127.0.0.1", 0) as url:
        text = httpx.get(f"{url}/metrics").text
    kinds = dict(re.findall(r"^# TYPE (windback_relay_\w+) (\w+)$", text, re.MULTILINE))
    assert {"windback_relay_read_events_total", "windback_relay_held_up"} <= set(kinds)
    assert names_in("journal-cli.md", "windback_relay_") == set(kinds)
    health = (ROOT / "src" / "windback" / "relay" / "health.py").read_text(encoding="utf-8")
    assert names_in("journal-cli.md", "windback_broker_") == set(
        re.findall(r'"(windback_broker_\w+)"', health)
    )


def test_each_metric_of_opentelemetry_has_a_row_and_each_row_is_a_metric():
    made = set()

    class Meter(NoOpMeter):
        """Notes which instruments are made."""

        def create_histogram(self, name, *rest, **more):
            made.add(name)
            return super().create_histogram(name, *rest, **more)

        def create_observable_counter(self, name, *rest, **more):
            made.add(name)
            return super().create_observable_counter(name, *rest, **more)

        def create_observable_up_down_counter(self, name, *rest, **more):
            made.add(name)
            return super().create_observable_up_down_counter(name, *rest, **more)

        def create_observable_gauge(self, name, *rest, **more):
            made.add(name)
            return super().create_observable_gauge(name, *rest, **more)

    class Provider(NoOpMeterProvider):
        def get_meter(self, name, *_, **__):
            return Meter(name)

    with Windback("sk_test_local", base_url="http://127.0.0.1:9") as client:
        instrument(client, meter_provider=Provider())
    assert names_in("monitoring.md", "windback.client.") == {
        name for name in made if name.startswith("windback.client.")
    }


@pytest.mark.parametrize("name", ["windback.relay.read"])
def test_what_only_a_relay_has_is_named(name):
    assert f"`{name}`" in page("monitoring.md")


def test_each_option_of_each_command_has_a_help():
    def walk(command, path):
        for child_name, child in getattr(command, "commands", {}).items():
            yield from walk(child, f"{path} {child_name}")
        for parameter in command.params:
            yield f"{path} {parameter.name}", getattr(parameter, "help", None) or ""

    found = dict(walk(typer.main.get_command(app), "windback"))
    assert "windback send email" in found
    assert [name for name, text in found.items() if not text] == []
