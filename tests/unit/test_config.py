"""Options are checked once, the environment fills in what is not given, and keys stay hidden."""

from __future__ import annotations

import dataclasses
import re
import traceback
from urllib.parse import urlsplit

import httpx
import pytest
from inside import config_of

from windback import AsyncWindback, ConfigurationError, Windback
from windback.base_url import DEFAULT_BASE_URL, is_loopback
from windback.config import resolve
from windback.secrets import Secret

KEY = "sk_test_1"
VARIABLES = ("WINDBACK_API_KEY", "WINDBACK_PROJECT_SLUG", "WINDBACK_PUBLIC_KEY", "WINDBACK_BASE_URL")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in (*VARIABLES, "WINDBACK_BROKER"):
        monkeypatch.delenv(name, raising=False)


def config(**options):
    return config_of(Windback(**{"api_key": KEY, **options}))


def test_the_environment_fills_in_what_is_not_given(monkeypatch):
    for name, value in zip(VARIABLES, ("sk_env", "shop", "pub_env", "https://eu.example.com/v1/")):
        monkeypatch.setenv(name, value)
    made = config_of(Windback())
    assert (made.api_key, made.project_slug, made.public_key, made.base_url) == (
        Secret("sk_env"),
        "shop",
        Secret("pub_env"),
        "https://eu.example.com/v1",
    )


def test_a_value_from_the_environment_shows_in_repr_unless_it_is_a_key(monkeypatch):
    for name, value in zip(VARIABLES, ("sk_env", "shop", "pub_env", "https://eu.example.com/v1")):
        monkeypatch.setenv(name, value)
    assert repr(Windback()) == "<Windback project_slug='shop' base_url='https://eu.example.com/v1'>"
    assert "env'" not in repr(config_of(Windback()))


def test_an_argument_wins_over_the_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "nonsense")
    made = config(project_slug="shop", public_key="pub_1", base_url="http://localhost:1/v1")
    assert (made.api_key, made.project_slug, made.public_key, made.base_url) == (
        Secret(KEY),
        "shop",
        Secret("pub_1"),
        "http://localhost:1/v1",
    )


def test_an_empty_variable_counts_as_unset(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    made = config()
    assert (made.project_slug, made.public_key, made.base_url) == (None, None, DEFAULT_BASE_URL)
    with pytest.raises(ConfigurationError, match="WINDBACK_API_KEY"):
        Windback()


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().timeout = 1.0


def test_the_worker_of_an_async_client_is_a_task_unless_told_otherwise():
    assert config().worker == "thread"
    assert config_of(AsyncWindback(KEY)).worker == "task"
    assert config_of(AsyncWindback(KEY, worker="thread")).worker == "thread"


def test_a_disabled_client_needs_no_key():
    assert config_of(Windback(enabled=False)).api_key is None


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/v1",
        "http://localhost:8787/api/v1",
        "http://127.0.0.1:1",
        "http://127.3.2.1",
        "http://[::1]:8787/api/v1",
        "http://LocalHost/v1",
    ],
)
def test_a_base_url_with_https_or_on_this_machine_is_taken(url):
    assert config(base_url=url + "/").base_url == url


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("127.0.0.1.example.com", False),
        ("127.999.999.999", False),
        ("127.0.0.256", False),
        ("127.1", False),
        ("127.0.0.01", False),
        ("127.0.0.\u0661", False),
        ("0.0.0.0", False),  # noqa: S104 - not listened on
        ("::1%eth0", False),
        ("localhost.example.com", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_other_hosts(host, here):
    assert is_loopback(host) is here


@pytest.mark.parametrize("slug", ["shop", "my-shop", "my_shop.eu", "S1~x", "-x"])
def test_a_slug_of_plain_characters_is_taken(slug):
    assert config(project_slug=slug).slug() == slug


def test_a_call_that_needs_a_slug_reports_it():
    with pytest.raises(
        ConfigurationError, match="this call needs project_slug; pass it to the client or set"
    ):
        config().slug()


def test_redact_takes_both_keys_out_of_a_text():
    made = config(api_key="sk_live_a", public_key="pub_live_b")
    assert made.redact("sk_live_a and pub_live_b, sk_live_a") == "sk_*** and pub_***, sk_***"
    assert made.redact("nothing") == "nothing"


@pytest.mark.parametrize(
    ("url", "nodes", "place"),
    [
        ("redis://localhost", [("localhost", 6379)], "redis://localhost:6379/0"),
        ("rediss://u:s3cr%40t@redis.internal:80/5", [("redis.internal", 80)], "rediss://redis.internal:80/5"),
        ("redis://:s3cr%40t@[::1]/1?ssl_ca_certs=x", [("::1", 6379)], "redis://[::1]:6379/1"),
        (
            "redis+sentinel://:s3cr%40t@a,[::1]:7/main/2?sentinel_password=s3cr%40t",
            [("a", 26379), ("::1", 7)],
            "redis+sentinel://a:26379,[::1]:7/main/2",
        ),
        ("redis+cluster://:s3cr%40t@a,b:7", [("a", 6379), ("b", 7)], "redis+cluster://a:6379,b:7/0"),
    ],
)
def test_a_broker_is_shown_without_its_password(url, nodes, place):
    made = config(broker=url)
    assert made.broker is not None
    assert (made.broker.url, list(made.broker.nodes), made.broker.place) == (Secret(url), nodes, place)
    said = f"{url} s3cr%40t s3cr@t" if "s3cr" in url else url
    assert "s3cr" not in repr(made) + made.broker.redact(said)
    assert place in repr(made)


@pytest.mark.parametrize(
    ("url", "nodes"),
    [
        ("redis+sentinel://:p%40@a,[::1]:7/main/2", [("a", 26379), ("::1", 7)]),
        ("rediss+cluster://u:p@[::1],[fe80::2]:7,c", [("::1", 6379), ("fe80::2", 7), ("c", 6379)]),
    ],
)
def test_the_hosts_of_a_broker_need_no_urlsplit_that_takes_several(url, nodes, monkeypatch):
    """Newer Pythons refuse a bracket behind another host; this does what they do."""

    def strict(text, *arguments):
        host = text.partition("//")[2].partition("/")[0].rpartition("@")[2]
        if "[" in host and not re.fullmatch(r"\[[^]]*](:.*)?", host):
            raise ValueError("Invalid IPv6 URL")
        return urlsplit(text, *arguments)

    monkeypatch.setattr("windback.secrets.urlsplit", strict)
    made = config(broker=url)
    assert made.broker is not None
    assert list(made.broker.nodes) == nodes


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (5, "broker must be a URL such as redis://localhost:6379/0, not an int"),
        ("s3cret", r"that starts with redis:// or rediss://, or with redis\+sentinel://"),
        ("http://:s3cret@h", "rediss.*, not http://"),
        ("redis+other://:s3cret@h/0", r"rediss\+cluster://, not redis\+other://"),
        ("redis+cluster://:s3cret@h/1", r"must look like redis\+cluster://"),
        ("redis+sentinel://:s3cret@h", r"must look like redis\+sentinel://"),
        ("redis+sentinel://:s3cret@h,/main", "must look like"),
        ("redis+sentinel://:s3cret@h/main/x", "must look like"),
        ("redis+sentinel://:s3cret@h/main?password=s3cret", "only options that start with"),
        ("redis://:s3cret@h,h/0", "must look like"),
        ("redis://", "must look like"),
        ("redis://:s3cret@h:port", "must look like"),
        ("redis://:s3cret@h/name", "must look like"),
        ("redis://:s3cret#@h/0", "must look like"),
        ("redis://:s3cret @h/0", "must look like"),
        ("redis://:s3cret@[h/0", "must look like"),
        ("redis://:s3cret@h?db=1", "only options that start with"),
    ],
)
@pytest.mark.parametrize("place", ["argument", "environment"])
def test_a_broker_that_can_not_work_is_told_without_its_password(url, message, place, monkeypatch):
    options = {"broker": url}
    if place == "environment" and isinstance(url, str):
        monkeypatch.setenv("WINDBACK_BROKER", url)
        options = {}
    with pytest.raises(ConfigurationError, match=message) as caught:
        config(**options)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    frames = [frame for frame in shown.stack if "/windback/" in frame.filename]
    assert frames
    assert "s3cret" not in str(caught.value) + str([frame.locals for frame in frames])


def test_a_broker_without_its_extra_names_what_to_install(monkeypatch):
    monkeypatch.setattr("windback.secrets.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'windback\[redis\]'"):
        config(broker="redis://localhost")


def test_with_a_broker_no_key_is_needed_but_for_calls_to_the_api(monkeypatch):
    monkeypatch.setenv("WINDBACK_BROKER", "redis://localhost")
    made = config_of(Windback())
    assert (made.api_key, str(made.broker)) == (None, "redis://localhost:6379/0")
    with pytest.raises(ConfigurationError, match="needs a key") as caught:
        made.check_key()
    assert caught.value.code == "MISSING_API_KEY"
    config().check_key()
    assert config_of(Windback(enabled=False)).broker is None


def test_with_options_changes_a_copy_and_checks_it():
    made = config()
    other = made.with_options(timeout=2, max_retries=0)
    assert (other.timeout, other.max_retries) == (2.0, 0)
    assert (made.timeout, made.max_retries) == (10.0, 3)
    assert made.with_options(None, None) == made
    with pytest.raises(ConfigurationError, match="timeout must be more than 0 seconds"):
        made.with_options(0, None)
    with pytest.raises(ConfigurationError, match="max_retries must be at least 0"):
        made.with_options(None, -1)


BAD = {
    "timeout zero": ({"timeout": 0}, "timeout must be more than 0 seconds and finite, not 0"),
    "timeout negative": ({"timeout": -1.0}, "timeout must be more than 0"),
    "timeout NaN": ({"timeout": float("nan")}, "timeout must be more than 0 seconds and finite, not nan"),
    "timeout infinite": (
        {"timeout": float("inf")},
        "timeout must be more than 0 seconds and finite, not inf",
    ),
    "timeout text": ({"timeout": "10"}, "timeout must be a number of seconds, not '10'"),
    "timeout boolean": ({"timeout": True}, "timeout must be a number of seconds, not True"),
    "retries negative": ({"max_retries": -1}, "max_retries must be at least 0, not -1"),
    "retries fractional": ({"max_retries": 1.5}, "max_retries must be a whole number, not 1.5"),
    "queue of none": ({"max_queue_size": 0}, "max_queue_size must be at least 1, not 0"),
    "batch of none": ({"batch_size": 0}, "batch_size must be between 1 and 100, not 0"),
    "batch over the API's limit": ({"batch_size": 101}, "batch_size must be between 1 and 100, not 101"),
    "batch size boolean": ({"batch_size": True}, "batch_size must be a whole number, not True"),
    "in flight none": ({"max_in_flight": 0}, "max_in_flight must be between 1 and 64, not 0"),
    "in flight too many": ({"max_in_flight": 65}, "max_in_flight must be between 1 and 64, not 65"),
    "interval zero": ({"flush_interval": 0}, "flush_interval must be more than 0"),
    "shutdown negative": ({"shutdown_timeout": -0.1}, "shutdown_timeout must be at least 0"),
    "compress text": ({"compress": "gzip"}, "compress must be True or False, not 'gzip'"),
    "enabled number": ({"enabled": 1}, "enabled must be True or False, not 1"),
    "hook no function": ({"before_send": "f"}, "before_send must be a function, not 'f'"),
    "other hook no function": ({"on_delivery": 1}, "on_delivery must be a function, not 1"),
    "unknown worker": (
        {"worker": "fiber"},
        "worker must be one of 'auto', 'thread', 'process', None, not 'fiber'",
    ),
    "a broker and nobody who hands over": (
        {"broker": "redis://localhost", "worker": None, "journal": "here"},
        "worker=None leaves the sending to `windback relay --journal`",
    ),
    "no room in a broker": ({"max_broker_entries": 0}, "max_broker_entries must be at least 1"),
    "event larger than a batch": (
        {"max_event_bytes": 500_000},
        r"max_event_bytes \(500,000\) and 13 bytes around it must fit into max_batch_bytes \(500,000\)",
    ),
    "event larger than the queue": (
        {"max_queue_bytes": 1_000},
        r"max_event_bytes \(65,536\) must fit into max_queue_bytes \(1,000\)",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_an_option_that_cannot_work_is_named(options, message):
    with pytest.raises(ConfigurationError, match=message):
        config(**options)


def test_a_configuration_error_is_a_value_error_too():
    with pytest.raises(ValueError, match="timeout"):
        config(timeout=0)


def test_an_http_client_of_the_other_kind_is_refused():
    with pytest.raises(ConfigurationError, match=r"must be an httpx\.AsyncClient, not a Client"):
        with httpx.Client() as http_client:
            AsyncWindback(KEY, http_client=http_client)
    with pytest.raises(ConfigurationError, match=r"must be an httpx\.Client, not an int"):
        config(http_client=3)


def test_resolve_takes_every_option_of_a_client():
    made = config()
    again = resolve(is_async=False, **{name: getattr(made, name) for name in made.__dataclass_fields__})
    assert again == made


@pytest.mark.parametrize("text", ["0", "false", "no", "off", "FALSE", " Off "])
def test_a_variable_switches_clients_off_and_no_key_is_needed(monkeypatch, text):
    monkeypatch.setenv("WINDBACK_ENABLED", text)
    client = Windback()
    assert not config_of(client).enabled
    assert client.track_event("login", "jane@example.com") is False
    assert dict(client.stats().refused) == {"disabled": 1}
    assert not config_of(AsyncWindback()).enabled
    with pytest.raises(ConfigurationError, match="no API key"):
        Windback(enabled=True)


@pytest.mark.parametrize("text", ["1", "true", "yes", "on", "On", "", " "])
def test_a_variable_leaves_clients_on(monkeypatch, text):
    monkeypatch.setenv("WINDBACK_ENABLED", text)
    assert config_of(Windback("sk_test_1")).enabled
    assert not config_of(Windback(enabled=False)).enabled


@pytest.mark.parametrize("text", ["2", "nein", "disabled", "none", "-"])
def test_a_variable_with_neither_value_is_named(monkeypatch, text):
    monkeypatch.setenv("WINDBACK_ENABLED", text)
    with pytest.raises(ConfigurationError, match=f"WINDBACK_ENABLED must be 1, .* or off, not '{text}'"):
        Windback("sk_test_1")


def test_the_error_for_a_missing_key_names_the_switch(monkeypatch):
    with pytest.raises(ConfigurationError, match="WINDBACK_ENABLED=0"):
        Windback()


def test_a_key_and_a_slug_that_are_swapped_are_told_without_the_key():
    for given in (("my-project", "sk_live_SECRET"), (None, "pub_SECRET")):
        with pytest.raises(ConfigurationError, match="were api_key and project_slug swapped") as caught:
            Windback(*given)
        assert "SECRET" not in "".join(traceback.format_exception(caught.type, caught.value, None))


def test_the_address_of_windback_without_its_path_is_reported():
    with pytest.raises(ConfigurationError, match=f"lacks the path of the API; it is {DEFAULT_BASE_URL}"):
        config(base_url="https://api.windbackai.com/")
    assert config(base_url="https://proxy.example.com").base_url == "https://proxy.example.com"
