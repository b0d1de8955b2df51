"""Options and environment variables, checked once, then frozen."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, replace
from typing import (
    TYPE_CHECKING,
    Callable,
    Dict,
    Iterable,
    Iterator,
    Literal,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from .base_url import DEFAULT_BASE_URL
from .base_url import base_url as checked_base_url
from .directories import directory, in_memory
from .errors import ConfigurationError
from .http_client import AsyncHttpClient, SyncHttpClient, check_http_client
from .options import (
    boolean,
    checked,
    choice,
    count,
    functions,
    hook,
    option,
    options_of,
    seconds,
    seconds_or_0,
    switched,
)
from .secrets import (
    BrokerAddress,
    Secret,
    broker_address,
    checked_key,
    fingerprint,
    hidden_if_key,
    hidden_option,
    redact,
)
from .wording import nearest

logger = logging.getLogger("windback")

if TYPE_CHECKING:
    from pathlib import Path

    from .event.encode import BeforeSend
    from .event.scrubbing import Scrubber
    from .stats import DeliveryReport

Overflow = Literal["drop_newest", "drop_oldest", "block", "raise"]
Worker = Literal["auto", "task", "thread", "process"]
Fsync = Literal["interval", "batch"]
OVERFLOWS: Tuple[Overflow, ...] = ("drop_newest", "drop_oldest", "block", "raise")
WORKERS: Tuple[Optional[Worker], ...] = ("auto", "task", "thread", "process", None)
FSYNCS: Tuple[Optional[Fsync], ...] = ("interval", "batch", None)
#: The API's limit for one request (docs-tree page "Tracking API").
MAX_BATCH_SIZE = 100
#: The bytes around the events of a batch: {"events":[ and ]}, see batching.join.
BATCH_FRAME_BYTES = 13


#: A journal works with segments of 1 MiB, and several are open or made ahead.
MIN_JOURNAL_BYTES = 8 * 1024 * 1024
#: The path of a socket has at most 104 bytes on some systems, and its name in the directory takes 24 of them.
MAX_STATUS_PATH_BYTES = 80
#: An event must fit into a segment with room to spare, or most of each segment would be wasted.
MAX_JOURNAL_EVENT_BYTES = 512 * 1024


@dataclass(frozen=True)
class Config:
    """All options of a client, checked. `resolve` makes one."""

    api_key: Optional[Secret] = option(
        default=None,
        about='The secret key, "sk_…". Required, except with `broker` or `enabled=False`.',
        environment="WINDBACK_API_KEY",
    )
    project_slug: Optional[str] = option(
        default=None,
        about=(
            "The project's slug. Every call needs it except `track_event`, `track_events` and the cancel "
            "flow."
        ),
        environment="WINDBACK_PROJECT_SLUG",
        is_for_sender=True,
    )
    public_key: Optional[Secret] = option(
        default=None,
        about='The public key, "pub_…". The cancel flow uses it if it is set.',
        environment="WINDBACK_PUBLIC_KEY",
    )
    base_url: str = option(
        default=DEFAULT_BASE_URL,
        about="The URL of the API. Must be https; http is allowed on this machine only.",
        environment="WINDBACK_BASE_URL",
        is_for_sender=True,
    )
    journal: Optional[Path] = option(
        default=None,
        about=(
            "A directory on a local disk. An accepted event is in it before `track_event` returns, and "
            "survives `kill -9`; the next process that uses the directory delivers it."
        ),
        environment="WINDBACK_JOURNAL",
    )
    max_journal_bytes: int = option(
        default=256 * 1024 * 1024,
        about="Bytes that all processes together may store in the journal; then the queue is full.",
        check=count(at_least=MIN_JOURNAL_BYTES),
        is_for_sender=True,
    )
    fsync: Optional[Fsync] = option(
        default=None,
        about=(
            "How much of the journal a power cut may lose. None: what the kernel did not write yet, about "
            '30 s of events. "interval": the last second. "batch": the events of one write to disk. A '
            "thread syncs; `track_event` does not wait for it."
        ),
        is_for_sender=True,
    )
    broker: Optional[BrokerAddress] = option(
        default=None,
        about=(
            'The URL of a Redis, "redis://host:6379/0", or rediss://, redis+sentinel://, '
            "redis+cluster://. The worker hands batches to Redis and `windback relay --broker` delivers "
            "them; an event counts as delivered when Redis has it."
        ),
        environment="WINDBACK_BROKER",
    )
    max_broker_entries: int = option(
        default=50_000,
        about="Batches that may wait in Redis; more wait in the application.",
        check=count(),
        is_for_sender=True,
    )
    timeout: float = option(
        default=10.0,
        about=(
            "Seconds. For a plain call: one deadline over all its retries. For a batch in the background: "
            "the limit of one try."
        ),
        check=seconds,
        is_for_sender=True,
    )
    max_retries: int = option(
        default=3,
        about="Retries after a temporary failure.",
        check=count(at_least=0),
        is_for_sender=True,
    )
    worker: Optional[Worker] = option(
        default="auto",
        about=(
            'Where events are sent. "thread", or for `AsyncWindback` also "task"; "auto" is "task" if '
            'async, else "thread". "process": a sender process, which outlives this one until everything is '
            "delivered. None: not from here; `windback relay` sends what is in the journal."
        ),
    )
    max_queue_size: int = option(
        default=100_000,
        about="Events that may wait. May be exceeded by one event per calling thread.",
        check=count(),
    )
    max_queue_bytes: int = option(
        default=64 * 1024 * 1024,
        about="Bytes of events in memory, including those in requests.",
        check=count(),
    )
    max_event_bytes: int = option(
        default=65_536,
        about="Bytes of one event as JSON.",
        check=count(),
    )
    overflow: Overflow = option(
        default="drop_newest",
        about=(
            'What `track_event` does when the queue is full. "drop_newest": return False. "drop_oldest": '
            'discard the oldest event. "block": wait up to `block_timeout`. "raise": raise '
            "QueueFullError."
        ),
        check=choice(OVERFLOWS),
    )
    block_timeout: float = option(
        default=1.0,
        about='Seconds that overflow="block" waits before it returns False.',
        check=seconds,
    )
    batch_size: int = option(
        default=100,
        about="Events in one request; 100 is the API's limit.",
        check=count(at_most=MAX_BATCH_SIZE),
        is_for_sender=True,
    )
    max_batch_bytes: int = option(
        default=500_000,
        about="Bytes of one request's body.",
        check=count(),
        is_for_sender=True,
    )
    flush_interval: float = option(
        default=1.0,
        about="Seconds that an event may wait for others to share its request.",
        check=seconds,
        is_for_sender=True,
    )
    max_in_flight: int = option(
        default=4,
        about="Requests that may run at the same time.",
        check=count(at_most=64),
        is_for_sender=True,
    )
    compress: bool = option(
        default=False,
        about="Compress batches with gzip until the API refuses it.",
        check=boolean,
        is_for_sender=True,
    )
    before_send: Optional[BeforeSend] = option(
        default=None,
        about=(
            "A function that gets each event as a dict. Return the event, changed or not, to send it; "
            "return None to drop it. If it raises, the event is not sent."
        ),
        check=hook,
    )
    scrub: Optional[Sequence[Scrubber]] = option(
        default=None,
        about=(
            "A function `(text, place) -> text` that removes private data from every text that is sent, by "
            "track_event and by plain calls; or a list of them, such as `windback.scrub.STANDARD`. If one "
            'raises, "[scrubbed]" is sent instead of the text.'
        ),
        check=functions,
    )
    on_delivery: Optional[Callable[[DeliveryReport], object]] = option(
        default=None,
        about=(
            "A function that gets a DeliveryReport for each batch that was delivered, rejected or "
            "dropped. The worker calls it; its errors are counted and logged."
        ),
        check=hook,
    )
    shutdown_timeout: float = option(
        default=5.0,
        about="Seconds that `close()` and the end of the process may take to deliver the remaining events.",
        check=seconds_or_0,
        is_for_sender=True,
    )
    handle_signals: bool = option(
        default=False,
        about=(
            "On SIGTERM and SIGINT, deliver the queue first, for up to `shutdown_timeout`, while the "
            "application keeps running; then the earlier handler runs. A second signal is not delayed. An "
            "application whose event loop handles signals still gets them. Main thread only: elsewhere it "
            "logs a WARNING, and the next `stats()` in the main thread sets the handlers."
        ),
        check=boolean,
    )
    http_client: Union[SyncHttpClient, AsyncHttpClient, None] = option(
        default=None,
        about="An httpx or httpx2 client of your own, for proxies or certificates. You close it.",
    )
    enabled: bool = option(
        default=True,
        about="False: check events, then refuse them; send nothing, and need no key.",
        environment="WINDBACK_ENABLED",
        check=boolean,
    )
    debug: bool = option(
        default=False,
        about=(
            'Log what happens to each event, at level DEBUG of the logger "windback"; on stderr if the '
            "application has set up no logging."
        ),
        environment="WINDBACK_DEBUG",
        check=boolean,
    )
    status: Optional[Path] = option(
        default=None,
        about=(
            "A directory for a socket on which this process tells `windback status` about its queue. Only "
            "this user can open it; a thread waits at it. None: no socket."
        ),
        environment="WINDBACK_STATUS",
    )

    def with_options(self, timeout: Optional[float], max_retries: Optional[int]) -> Config:
        """Return a copy with the options of plain calls replaced. Raises ConfigurationError."""
        changes: Dict[str, float] = {}
        if timeout is not None:
            changes["timeout"] = seconds("timeout", timeout)
        if max_retries is not None:
            changes["max_retries"] = count(at_least=0)("max_retries", max_retries)
        return replace(self, **changes)  # type: ignore[arg-type]  # the names are right above

    def slug(self) -> str:
        """Return the project slug, or raise ConfigurationError for a call that needs it."""
        if self.project_slug is None:
            raise ConfigurationError(
                "this call needs project_slug; pass it to the client or set WINDBACK_PROJECT_SLUG"
            )
        return self.project_slug

    def check_key(self) -> None:
        """Raise ConfigurationError for a call that needs a key, if there is none."""
        if self.enabled and self.api_key is None:
            raise ConfigurationError(
                "this call goes to the API and needs a key; with broker=… only track_event needs none: "
                "pass api_key='sk_…' or set WINDBACK_API_KEY",
                code="MISSING_API_KEY",
            )

    def redact(self, text: str) -> str:
        """Return *text* without the keys, in case a server or a library repeated them."""
        return redact(text, (self.api_key, self.public_key))


#: All options, by name.
OPTIONS = options_of(Config)
#: How each variable and setting begins.
PREFIX = "WINDBACK_"
#: Variables of the environment that others than a client read.
_OTHER_VARIABLES = ("WINDBACK_API_KEYS", "WINDBACK_WEBHOOK_SECRET")
#: What is None unless it is given, so that its variable counts.
_UNSET: Mapping[str, object] = {"base_url": None, "debug": None, "enabled": None}
#: The options of a client that a relay and a sender process don't have, because they have no callers.
_WITHOUT_CALLERS: Mapping[str, object] = {
    "broker": False,
    "debug": False,
    "enabled": True,
    "status": False,
    "worker": "thread",
    "max_event_bytes": 1,
    "max_journal_bytes": 1 << 62,
    "max_broker_entries": 1 << 62,
    "max_queue_size": 1 << 62,
    "max_queue_bytes": 1 << 62,
}


def unread(given: Iterable[str], read: Iterable[str], place_of_options: str) -> Iterator[str]:
    """Yield a message about each name WINDBACK_… that looks like a setting, and that nothing reads.

    given, read: the names. place_of_options: where the arguments of the client are written instead.
    """
    known = [name[len(PREFIX) :] for name in read]
    for name in given:
        key = name[len(PREFIX) :]
        if not name.startswith(PREFIX) or key in known:
            continue
        if key.lower() in OPTIONS:
            yield f"nothing reads {name}; write {key.lower()} {place_of_options}"
        else:
            hint = nearest(key, known, PREFIX)
            if hint:  # other names with this prefix are not our business
                yield f"nothing reads {name}{hint}"


def unread_variables() -> Iterator[str]:
    """Yield a message about each variable of the environment that is misspelt."""
    read = [each.environment for each in OPTIONS.values() if each.environment]
    return unread(sorted(os.environ), [*read, *_OTHER_VARIABLES], "as an argument of Windback")


def resolve(*, is_async: bool, needs_key: object = True, **given: object) -> Config:
    """Fill in the environment, check every option and freeze them. Raises ConfigurationError.

    needs_key: without it, a client that has no key is one with enabled=False.
    """
    options = {**{name: said.default for name, said in OPTIONS.items()}, **_UNSET, **given}
    options["debug"] = switched(OPTIONS["debug"], options["debug"])
    enabled = options["enabled"] = switched(OPTIONS["enabled"], options["enabled"]) and (
        bool(needs_key) or any(given_option(options, name) is not None for name in ("api_key", "broker"))
    )
    values = checked(OPTIONS, options)
    broker = _broker(options, enabled=enabled)
    slug, base_url = given_option(options, "project_slug"), given_option(options, "base_url")
    slug = None if slug is None else checked_slug(slug)  # first: it may be a key, swapped with the slug
    public_key = given_option(options, "public_key")
    values.update(
        broker=broker,
        api_key=_secret_key(given_option(options, "api_key"), is_needed=enabled and broker is None),
        project_slug=slug,
        public_key=None if public_key is None else checked_key("public_key", public_key, "pub_", "sk_"),
        base_url=checked_base_url(DEFAULT_BASE_URL if base_url is None else base_url),
        journal=_journal(options, enabled=enabled),
        fsync=_fsync(options, enabled=enabled),
        status=_status(options),
        worker=_worker(options, is_async=is_async),
        http_client=_http_client(options["http_client"], options["worker"], is_async=is_async),
    )
    config = Config(**values)  # type: ignore[arg-type]  # each was checked above
    if enabled and config.worker == "process" and config.journal is None:
        config = replace(config, worker="task" if is_async else "thread")
    _check_sizes(config)
    return config


def resolve_for_sender(**given: object) -> Config:
    """Do the same for a relay or a sender process."""
    return resolve(is_async=False, **{**_WITHOUT_CALLERS, **given})


def _check_sizes(config: Config) -> None:
    """Check that the limits fit into each other: otherwise an accepted event could never be sent."""
    if config.journal is not None and config.max_event_bytes > MAX_JOURNAL_EVENT_BYTES:
        raise ConfigurationError(
            f"max_event_bytes ({config.max_event_bytes:,}) must be at most {MAX_JOURNAL_EVENT_BYTES:,} "
            "with a journal"
        )
    if config.journal is not None and config.overflow == "drop_oldest":
        raise ConfigurationError(
            "overflow='drop_oldest' can't be combined with a journal, which keeps accepted events; "
            "choose 'drop_newest', 'block' or 'raise'"
        )
    if config.max_event_bytes + BATCH_FRAME_BYTES > config.max_batch_bytes:
        raise ConfigurationError(
            f"max_event_bytes ({config.max_event_bytes:,}) and {BATCH_FRAME_BYTES} bytes around it must fit "
            f"into max_batch_bytes ({config.max_batch_bytes:,})"
        )
    if config.max_event_bytes > config.max_queue_bytes:
        raise ConfigurationError(
            f"max_event_bytes ({config.max_event_bytes:,}) must fit into "
            f"max_queue_bytes ({config.max_queue_bytes:,})"
        )


def given_option(options: Mapping[str, object], name: str) -> object:
    """Return an argument, else its environment variable; an empty variable counts as unset."""
    value, variable = options[name], OPTIONS[name].environment
    if value is not None or variable is None:
        return value
    text = os.environ.get(variable) or None
    return hidden_option(name, text)


def _secret_key(value: object, *, is_needed: bool) -> Optional[Secret]:
    if value is None:
        if not is_needed:
            return None
        misspelt = "".join(f"; {each}" for each in unread_variables())
        raise ConfigurationError(
            "no API key: pass api_key='sk_…' or set WINDBACK_API_KEY; "
            f"to send nothing, as in CI, set WINDBACK_ENABLED=0{misspelt}",
            code="MISSING_API_KEY",
        )
    return checked_key("api_key", value, "sk_", "pub_")


def checked_slug(value: object) -> str:
    """Return the slug of a project. Raises ConfigurationError, which shows no key."""
    if isinstance(hidden_if_key(value), Secret):
        value = None  # the message and this frame show no key
        raise ConfigurationError(
            "project_slug is a key (sk_… or pub_…): were api_key and project_slug swapped?"
        )
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*", value):
        raise ConfigurationError(
            f"project_slug {value!r} must be letters, digits, '-', '_' or '.' only: "
            "the last part of the project's address in the dashboard"
        )
    return value


def _journal(options: Mapping[str, object], *, enabled: bool) -> Optional[Path]:
    given = given_option(options, "journal")
    if not enabled or (given is None and options["worker"] != "process"):
        return None
    if os.name == "nt":
        raise ConfigurationError(
            "journal and worker='process' need flock, which Windows does not have; leave them out"
        )
    if given is not None:
        return directory("journal", given)
    return _shared_memory(options)


def _broker(options: Mapping[str, object], *, enabled: bool) -> Optional[BrokerAddress]:
    # False: no broker, whatever the environment contains. A relay has its own broker, which is not its sink.
    given = None if options["broker"] is False else given_option(options, "broker")
    if not enabled or given is None:
        return None
    if options["worker"] is None:
        raise ConfigurationError(
            "worker=None leaves the sending to `windback relay --journal`, and broker needs a worker: "
            "leave out one of them"
        )
    return broker_address(given)


def _fsync(options: Mapping[str, object], *, enabled: bool) -> Optional[str]:
    fsync = options["fsync"]
    if fsync is None:
        return None
    chosen = choice(FSYNCS)("fsync", fsync)
    if enabled and given_option(options, "journal") is None:
        raise ConfigurationError("fsync works only with journal=DIRECTORY")
    return chosen


def _status(options: Mapping[str, object]) -> Optional[Path]:
    # False: a relay, and a sender process, have no callers who ask for it.
    given = None if options["status"] is False else given_option(options, "status")
    if given is None:
        return None
    if os.name == "nt":
        raise ConfigurationError(
            "status needs a unix socket, which Python does not have on Windows; leave it out"
        )
    folder = directory("status", given)
    if len(os.fsencode(folder)) > MAX_STATUS_PATH_BYTES:
        raise ConfigurationError(
            f"status must be a path of at most {MAX_STATUS_PATH_BYTES} bytes, because the system limits the "
            f"paths of sockets; {str(folder)!r} is longer"
        )
    return folder


def _shared_memory(options: Mapping[str, object]) -> Optional[Path]:
    """Return where journals are that need not survive a reboot; None if no such directory can be used.

    Each pair of key and API, or broker, has its own: a process that adopts the events of an exited one sends
    them with its own key.
    """
    key = given_option(options, "api_key")
    url = given_option(options, "base_url")
    broker = None if options["broker"] is False else given_option(options, "broker")
    if isinstance(broker, BrokerAddress):
        broker = broker.url
    return in_memory(fingerprint((key, url, broker) if broker else (key, url)))


def _worker(options: Mapping[str, object], *, is_async: bool) -> Optional[str]:
    worker = options["worker"]
    if worker is not None:
        choices = tuple(each for each in WORKERS if is_async or each != "task")
        chosen = choice(choices)("worker", worker)
        return ("task" if is_async else "thread") if chosen == "auto" else chosen
    if options["enabled"] and given_option(options, "journal") is None:
        raise ConfigurationError(
            "worker=None needs journal=DIRECTORY, where `windback relay` finds the events"
        )
    if options["on_delivery"] is not None:
        raise ConfigurationError(
            "on_delivery is never called with worker=None, because a relay delivers; "
            "pass it to windback.relay.Relay, or choose another worker"
        )
    return None


def _http_client(value: object, worker: object, *, is_async: bool) -> object:
    if value is None:
        return None
    check_http_client(value, is_async=is_async)
    if worker == "process" or (is_async and worker == "thread"):
        kind = "connections" if worker == "process" else "sync client"
        raise ConfigurationError(
            f"http_client can't be used by worker={worker!r}, which needs its own {kind}"
        )
    return value
