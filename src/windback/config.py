"""Options and environment variables, checked once, then frozen."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Tuple, Union
from urllib.parse import urlsplit

from .errors import ConfigurationError
from .secrets import BrokerAddress, Secret, broker_address, fingerprint, hidden, key_pairs, kind_of, redact

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from .event.encode import BeforeSend
    from .stats import DeliveryReport

DEFAULT_BASE_URL = "https://api.windbackai.com/api/v1"  # docs page "API Overview"
OVERFLOWS = ("drop_newest", "drop_oldest", "block", "raise")
#: The API takes no more in one request (docs-tree page "Tracking API").
MAX_BATCH_SIZE = 100
#: What surrounds the events of a batch: {"events":[ and ]}, see batching.join.
BATCH_FRAME_BYTES = 13


#: A journal works with segments of 1 MiB, of which several are open or made ahead.
MIN_JOURNAL_BYTES = 8 * 1024 * 1024
#: An event must fit into a segment with room to spare, or most of each would be wasted.
MAX_JOURNAL_EVENT_BYTES = 512 * 1024


@dataclass(frozen=True)
class Config:
    """All options of a client. `resolve` makes one; `Windback` documents what each means."""

    api_key: Optional[Secret]
    project_slug: Optional[str]
    public_key: Optional[Secret]
    base_url: str
    journal: Optional[Path]
    max_journal_bytes: int
    fsync: Optional[str]
    broker: Optional[BrokerAddress]
    max_broker_entries: int
    timeout: float
    max_retries: int
    worker: Optional[str]
    max_queue_size: int
    max_queue_bytes: int
    max_event_bytes: int
    overflow: str
    block_timeout: float
    batch_size: int
    max_batch_bytes: int
    flush_interval: float
    max_in_flight: int
    compress: bool
    before_send: Optional[BeforeSend]
    on_delivery: Optional[Callable[[DeliveryReport], object]]
    shutdown_timeout: float
    handle_signals: bool
    http_client: Union[httpx.Client, httpx.AsyncClient, None]
    enabled: bool

    def with_options(self, timeout: Optional[float], max_retries: Optional[int]) -> Config:
        """Return a copy with the options of plain calls replaced. Raises ConfigurationError."""
        changes: Dict[str, float] = {}
        if timeout is not None:
            changes["timeout"] = positive("timeout", timeout)
        if max_retries is not None:
            changes["max_retries"] = _count("max_retries", max_retries, at_least=0)
        return replace(self, **changes)  # type: ignore[arg-type]  # the names are right above

    def slug(self) -> str:
        """Return the project slug, or raise ConfigurationError for a call that needs it."""
        if self.project_slug is None:
            message = "this call needs project_slug; pass it to the client or set WINDBACK_PROJECT_SLUG"
            raise ConfigurationError(message)
        return self.project_slug

    def check_key(self) -> None:
        """Raise ConfigurationError for a call that needs a key, if there is none."""
        if self.enabled and self.api_key is None:
            message = (
                "this call goes to the API and needs a key; with broker=… only track_event needs none: "
                "pass api_key='sk_…' or set WINDBACK_API_KEY"
            )
            raise ConfigurationError(message, code="MISSING_API_KEY")

    def redact(self, text: str) -> str:
        """Return *text* without the keys, should a server or a library have repeated them."""
        return redact(text, (self.api_key, self.public_key))


def resolve(*, is_async: bool, **options: object) -> Config:
    """Fill in the environment, check every option and freeze them. Raises ConfigurationError."""
    enabled = _boolean("enabled", options["enabled"])
    public_key = _given_key(options["public_key"], "WINDBACK_PUBLIC_KEY")
    slug = _given(options["project_slug"], "WINDBACK_PROJECT_SLUG")
    base_url = _given(options["base_url"], "WINDBACK_BASE_URL")
    broker = _broker(options, enabled=enabled)
    needs_key = enabled and broker is None
    config = Config(
        api_key=_secret_key(_given_key(options["api_key"], "WINDBACK_API_KEY"), is_needed=needs_key),
        project_slug=None if slug is None else _slug(slug),
        public_key=None if public_key is None else _key("public_key", public_key, "pub_", "sk_"),
        base_url=_base_url(DEFAULT_BASE_URL if base_url is None else base_url),
        journal=_journal(options, enabled=enabled),
        max_journal_bytes=_count(
            "max_journal_bytes", options["max_journal_bytes"], at_least=MIN_JOURNAL_BYTES
        ),
        fsync=_fsync(options, enabled=enabled),
        broker=broker,
        max_broker_entries=_count("max_broker_entries", options["max_broker_entries"]),
        timeout=positive("timeout", options["timeout"]),
        max_retries=_count("max_retries", options["max_retries"], at_least=0),
        worker=_worker(options, is_async=is_async),
        max_queue_size=_count("max_queue_size", options["max_queue_size"]),
        max_queue_bytes=_count("max_queue_bytes", options["max_queue_bytes"]),
        max_event_bytes=_count("max_event_bytes", options["max_event_bytes"]),
        overflow=_choice("overflow", options["overflow"], OVERFLOWS),
        block_timeout=positive("block_timeout", options["block_timeout"]),
        batch_size=_count("batch_size", options["batch_size"], at_most=MAX_BATCH_SIZE),
        max_batch_bytes=_count("max_batch_bytes", options["max_batch_bytes"]),
        flush_interval=positive("flush_interval", options["flush_interval"]),
        max_in_flight=_count("max_in_flight", options["max_in_flight"], at_most=64),
        compress=_boolean("compress", options["compress"]),
        before_send=_hook("before_send", options["before_send"]),  # type: ignore[arg-type]  # callable: checked
        on_delivery=_hook("on_delivery", options["on_delivery"]),
        shutdown_timeout=positive("shutdown_timeout", options["shutdown_timeout"], zero=True),
        handle_signals=_boolean("handle_signals", options["handle_signals"]),
        http_client=_http_client(options["http_client"], options["worker"], is_async=is_async),
        enabled=enabled,
    )
    _check_sizes(config)
    return config


#: What options are for who only sends what others wrote: most mean nothing there, the rest is as usual.
_OF_SENDERS: Mapping[str, object] = {
    "project_slug": None,
    "public_key": None,
    "max_journal_bytes": 1 << 62,
    "fsync": None,
    "broker": False,
    "max_broker_entries": 1 << 62,
    "worker": "thread",
    "max_queue_size": 1 << 62,
    "max_queue_bytes": 1 << 62,
    "max_event_bytes": 1,
    "overflow": "drop_newest",
    "block_timeout": 1.0,
    "before_send": None,
    "handle_signals": False,
    "http_client": None,
    "enabled": True,
    "api_key": None,
    "journal": None,
    "timeout": 10.0,
    "max_retries": 3,
    "batch_size": 100,
    "max_batch_bytes": 500_000,
    "flush_interval": 1.0,
    "max_in_flight": 4,
    "compress": False,
    "on_delivery": None,
    "shutdown_timeout": 5.0,
}


def resolve_for_sender(**options: object) -> Config:
    """Do the same for a relay, or the sender of an application."""
    return resolve(is_async=False, **{**_OF_SENDERS, **options})


def _check_sizes(config: Config) -> None:
    """The limits must fit into each other, or an accepted event could never be sent."""
    if config.journal is not None and config.max_event_bytes > MAX_JOURNAL_EVENT_BYTES:
        message = (
            f"max_event_bytes ({config.max_event_bytes:,}) must be at most {MAX_JOURNAL_EVENT_BYTES:,} "
            "with a journal"
        )
        raise ConfigurationError(message)
    if config.journal is not None and config.overflow == "drop_oldest":
        message = (
            "overflow='drop_oldest' can't be combined with a journal, which keeps what was accepted; "
            "choose 'drop_newest', 'block' or 'raise'"
        )
        raise ConfigurationError(message)
    if config.max_event_bytes + BATCH_FRAME_BYTES > config.max_batch_bytes:
        message = (
            f"max_event_bytes ({config.max_event_bytes:,}) and {BATCH_FRAME_BYTES} bytes around it must fit "
            f"into max_batch_bytes ({config.max_batch_bytes:,})"
        )
        raise ConfigurationError(message)
    if config.max_event_bytes > config.max_queue_bytes:
        message = (
            f"max_event_bytes ({config.max_event_bytes:,}) must fit into "
            f"max_queue_bytes ({config.max_queue_bytes:,})"
        )
        raise ConfigurationError(message)


def relay_keys(api_key: object, project_slug: object, api_keys: object) -> Dict[str, Secret]:
    """Return the keys of a relay by the slugs of their projects; see BrokerRelay. Raises ConfigurationError.

    What is given is `hidden` already. The environment counts only if no key is given.
    """
    pairs: List[Tuple[object, object]] = []
    if api_keys is not None and not isinstance(api_keys, Mapping):
        message = f"api_keys must map the slugs of projects to keys, and is {kind_of(api_keys)}"
        raise ConfigurationError(message)
    if api_keys is not None:
        pairs += api_keys.items()
    elif api_key is None:
        pairs += key_pairs(Secret(os.environ.get("WINDBACK_API_KEYS", "")), "WINDBACK_API_KEYS")
        api_key = hidden(os.environ.get("WINDBACK_API_KEY") or None)
    if api_key is not None:
        pairs.append((_given(project_slug, "WINDBACK_PROJECT_SLUG") or "", api_key))
    found: Dict[str, Secret] = {}
    for slug, key in pairs:
        if slug in found:
            message = f"two keys for {f'the project {slug!r}' if slug else 'events without a project'}"
            raise ConfigurationError(message)
        name = f"the key of {slug!r}" if slug else "api_key"
        found[_slug(slug) if slug else ""] = _key(name, key, "sk_", "pub_")
    if not found:
        message = (
            "no API key: pass api_key='sk_…' or api_keys={…}, or set WINDBACK_API_KEY or WINDBACK_API_KEYS"
        )
        raise ConfigurationError(message, code="MISSING_API_KEY")
    return found


def _given(value: object, variable: str) -> object:
    """An argument wins over its environment variable; an empty variable counts as unset."""
    return value if value is not None else os.environ.get(variable) or None


def _given_key(value: object, variable: str) -> object:
    return value if value is not None else hidden(os.environ.get(variable) or None)


def _secret_key(value: object, *, is_needed: bool) -> Optional[Secret]:
    if value is None:
        if not is_needed:
            return None
        message = "no API key: pass api_key='sk_…' or set WINDBACK_API_KEY"
        raise ConfigurationError(message, code="MISSING_API_KEY")
    return _key("api_key", value, "sk_", "pub_")


def _key(name: str, value: object, prefix: str, other: str) -> Secret:
    key = hidden(value)
    value = None
    if not isinstance(key, Secret):
        message = f"{name} must be a string that starts with {prefix}, not {kind_of(key)}"
        raise ConfigurationError(message)
    problem = _problem_of_key(name, key.reveal(), prefix, other)
    if problem is not None:
        raise ConfigurationError(problem)
    return key


def _problem_of_key(name: str, key: str, prefix: str, other: str) -> Optional[str]:
    """Say what is wrong with it, and no part of it: a mistyped key is most of a key. This frame has it."""
    if key.startswith(other):
        place = "public_key" if other == "pub_" else "api_key"
        kind = "public" if other == "pub_" else "secret"
        return f"{name} must start with {prefix}; this is a {kind} key ({other}…), which belongs into {place}"
    if not key.startswith(prefix) or len(key) == len(prefix):
        return f"{name} must start with {prefix} and have more after it; copy it whole from the dashboard"
    if not re.fullmatch(r"[!-~]+", key):
        return f"{name} holds a space, a line end or a character outside ASCII; copy it again"
    return None


def _slug(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*", value):
        message = (
            f"project_slug {value!r} must be letters, digits, '-', '_' or '.' alone: "
            "the last part of the project's address in the dashboard"
        )
        raise ConfigurationError(message)
    return value


def _base_url(value: object) -> str:
    if not isinstance(value, str):
        message = f"base_url must be a string, not {kind_of(value)}"
        raise ConfigurationError(message)
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        message = f"base_url is no URL: {error}"
        raise ConfigurationError(message) from None
    if parts.username is not None or parts.password is not None:
        message = "base_url must not hold credentials (…@host); the API key goes into api_key"
        raise ConfigurationError(message)
    if parts.query or parts.fragment:
        message = "base_url must not have a query or a fragment; it ends with the path, such as /api/v1"
        raise ConfigurationError(message)
    if not host or parts.scheme not in ("http", "https"):
        message = f"base_url {value!r} must look like {DEFAULT_BASE_URL!r}"
        raise ConfigurationError(message)
    if re.search(r"[^!-~]", value):
        message = f"base_url {value!r} holds a space or a character outside ASCII"
        raise ConfigurationError(message)
    if parts.scheme == "http" and not is_loopback(host):
        message = f"base_url {value!r} must use https: the key must not cross a network in clear text"
        raise ConfigurationError(message)
    return value.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether *host* names this machine: "localhost", 127.0.0.0/8 or ::1."""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def _journal(options: Mapping[str, object], *, enabled: bool) -> Optional[Path]:
    given = _given(options["journal"], "WINDBACK_JOURNAL")
    if not enabled or (given is None and options["worker"] != "process"):
        return None
    if os.name == "nt":
        message = "journal and worker='process' need flock, which Windows does not have; leave them out"
        raise ConfigurationError(message)
    if given is not None:
        return _directory("journal", given)
    return _shared_memory(options)


def _broker(options: Mapping[str, object], *, enabled: bool) -> Optional[BrokerAddress]:
    # False: none, whatever the environment says. A relay has its own, and it is no sink.
    given = None if options["broker"] is False else _given_key(options["broker"], "WINDBACK_BROKER")
    if not enabled or given is None:
        return None
    if options["worker"] is None:
        message = (
            "worker=None leaves the sending to `windback relay --journal`; broker is for workers that send: "
            "leave one of them out"
        )
        raise ConfigurationError(message)
    return broker_address(given)


def _fsync(options: Mapping[str, object], *, enabled: bool) -> Optional[str]:
    fsync = options["fsync"]
    if fsync is None:
        return None
    chosen = _choice("fsync", fsync, ("interval", "batch", None))
    if enabled and _given(options["journal"], "WINDBACK_JOURNAL") is None:
        message = "fsync needs journal=…, a directory on a disk; what is in memory no power cut spares"
        raise ConfigurationError(message)
    return chosen


def _shared_memory(options: Mapping[str, object]) -> Path:
    """Return where journals live that need not outlive the machine.

    One place for each key and API, or broker, for what a dead process left is sent with the key of who adopts
    it.
    """
    import tempfile
    from pathlib import Path

    key = _given_key(options["api_key"], "WINDBACK_API_KEY")
    url = _given(options["base_url"], "WINDBACK_BASE_URL")
    broker = options["broker"] or (
        None if options["broker"] is False else _given_key(None, "WINDBACK_BROKER")
    )
    if isinstance(broker, BrokerAddress):
        broker = broker.url
    digest = fingerprint((key, url, broker) if broker else (key, url))
    memory = Path("/dev/shm")  # noqa: S108 - a directory in it is made for this user alone
    place = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    return place / f"windback-{os.getuid()}-{digest}"


def _directory(name: str, value: object) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        message = f"{name} must be the path of a directory, not {value!r}"
        raise ConfigurationError(message)
    from pathlib import Path

    path = Path(os.fsdecode(value)).absolute()  # a program may change its working directory later
    if path.exists() and not path.is_dir():
        message = f"{name} {str(path)!r} is no directory"
        raise ConfigurationError(message)
    return path


def _worker(options: Mapping[str, object], *, is_async: bool) -> Optional[str]:
    worker = options["worker"]
    if worker is not None:
        choices = ("auto", *(("task",) if is_async else ()), "thread", "process", None)
        chosen = _choice("worker", worker, choices)
        return ("task" if is_async else "thread") if chosen == "auto" else chosen
    if options["enabled"] and _given(options["journal"], "WINDBACK_JOURNAL") is None:
        message = "worker=None needs journal=…, a directory in which `windback relay` finds the events"
        raise ConfigurationError(message)
    if options["on_delivery"] is not None:
        message = (
            "on_delivery is never called with worker=None, as a relay delivers; "
            "give it to windback.relay.Relay, or choose another worker"
        )
        raise ConfigurationError(message)
    return None


def positive(name: str, value: object, *, zero: bool = False) -> float:
    """Check an option that is a time. Raises ConfigurationError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        message = f"{name} must be a number of seconds, not {value!r}"
        raise ConfigurationError(message)
    if not (value >= 0 if zero else value > 0) or value > 1e9:
        message = (
            f"{name} must be {'at least 0' if zero else 'more than 0'} seconds and finite, not {value!r}"
        )
        raise ConfigurationError(message)
    return float(value)


def _count(name: str, value: object, *, at_least: int = 1, at_most: Optional[int] = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        message = f"{name} must be a whole number, not {value!r}"
        raise ConfigurationError(message)
    if value < at_least or (at_most is not None and value > at_most):
        bounds = f"at least {at_least}" if at_most is None else f"between {at_least} and {at_most}"
        message = f"{name} must be {bounds}, not {value}"
        raise ConfigurationError(message)
    return value


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        message = f"{name} must be True or False, not {value!r}"
        raise ConfigurationError(message)
    return value


def _choice(name: str, value: object, choices: tuple[Optional[str], ...]) -> str:
    if value not in choices:
        message = f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}"
        raise ConfigurationError(message)
    return str(value)


def _hook(name: str, value: object) -> Optional[Callable[..., object]]:
    if value is not None and not callable(value):
        message = f"{name} must be a function, not {value!r}"
        raise ConfigurationError(message)
    return value


def _http_client(
    value: object, worker: object, *, is_async: bool
) -> Union[httpx.Client, httpx.AsyncClient, None]:
    if value is None:
        return None
    import httpx  # whoever passes a client has it loaded

    wanted = httpx.AsyncClient if is_async else httpx.Client
    if not isinstance(value, wanted):
        message = f"http_client must be an httpx.{wanted.__name__}, not {kind_of(value)}"
        raise ConfigurationError(message)
    if worker == "process" or (is_async and worker == "thread"):
        kind = "connections" if worker == "process" else "a sync client"
        message = f"http_client can't serve worker={worker!r}, which needs {kind} of its own; leave one out"
        raise ConfigurationError(message)
    return value
