"""The options of the server.

`windback dev` and `python -m windback.devserver` take the same command line. The former is made with another
library, which the latter has to do without: so options are declared once, to whatever takes declarations.
"""

from __future__ import annotations

import argparse
import ipaddress
from typing import Callable, NamedTuple, Optional, Protocol, Tuple
from urllib.parse import urlsplit

#: Where the API and the control plane live, and the list of events for a browser without scripts.
BASE_PATH = "/api/v1"
CONTROL_PATH = "/_dev"
PLAIN_PATH = "/plain"

#: How the one line on standard output starts; the base URL follows.
READY = "windback dev server on "

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8787

#: Ports after the default one that are tried when somebody has it.
MORE_PORTS = 20

#: The key that the banner and the page tell to use.
DEFAULT_KEY = "sk_test_local"

#: How much the inbox keeps: enough to look back on a day of work, and a page that shows all of it.
DEFAULT_KEEP_EVENTS, DEFAULT_KEEP_BYTES = 10_000, 200_000_000

#: A little above what a client sends by default (500,000), as a gateway's limit would be.
DEFAULT_MAX_BODY_BYTES = 1_000_000

#: Long enough to see a churn event `processing`; the API takes 5 to 15 s (Recovery page).
DEFAULT_GENERATE_S = 0.5

#: The documented retries of a webhook (page "Churn Risk Webhook Delivery").
DEFAULT_WEBHOOK_DELAYS_S = (10.0, 60.0, 300.0)

#: Always the same, so that a receiver can be set up once.
DEFAULT_WEBHOOK_SECRET = "whsec_local"  # noqa: S105 - it opens nothing

GZIP_CHOICES = ("accept", "415", "400")


class Options(NamedTuple):
    """Everything that can be chosen about a server."""

    host: str = DEFAULT_HOST
    #: 0 takes a free port, None the default one or, when somebody has that, one of the next.
    port: Optional[int] = None
    #: Names and addresses that a Host header may have, beside the loopback ones.
    allow_hosts: Tuple[str, ...] = ()
    #: Origins whose pages may do everything that the page of this server may.
    allow_origins: Tuple[str, ...] = ()
    #: A SQLite file; None keeps everything in memory.
    db: Optional[str] = None
    #: Above these the oldest events are evicted; None: never.
    keep_events: Optional[int] = None
    keep_bytes: Optional[int] = None
    #: Whether a batch with an event that the API would drop is refused with 400.
    strict: bool = False
    #: The keys that are taken; none given: any that starts with sk_ or pub_.
    keys: Tuple[str, ...] = ()
    #: Keys that are taken, of an account whose subscription has expired.
    expired_keys: Tuple[str, ...] = ()
    #: Whether the documented rate limits hold.
    rate_limits: bool = False
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    #: "accept", or the status that refuses a gzip body.
    gzip: str = "accept"
    #: Seconds that generating variants takes.
    generate_s: float = DEFAULT_GENERATE_S
    #: Whether emails can be sent; if not, sending is answered with the documented 500.
    email: bool = True
    #: Where webhooks are sent; None: nowhere.
    webhook_url: Optional[str] = None
    webhook_secret: str = DEFAULT_WEBHOOK_SECRET
    #: Seconds before each retry of a webhook.
    webhook_delays_s: Tuple[float, ...] = DEFAULT_WEBHOOK_DELAYS_S
    #: A file that is written once the server listens: what `GET /_dev/health` answers.
    ready_file: Optional[str] = None
    quiet: bool = False
    until_stdin_closes: bool = False


class TakesArguments(Protocol):
    """An `argparse.ArgumentParser`, or what understands these declarations as well."""

    @property
    def add_argument(self) -> Callable[..., object]:
        """Declare one, with names and dest, metavar, action, type, choices, default, help."""
        ...


def add_arguments(parser: TakesArguments) -> None:
    """Give *parser* the options of the server."""
    parser.add_argument(
        "--host",
        type=_address,
        default=DEFAULT_HOST,
        help="where to listen; other than loopback only with --allow-host (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=_port,
        help=f"0 takes a free one (default: {DEFAULT_PORT}, or one of the next when somebody has it)",
    )
    parser.add_argument(
        "--allow-host",
        dest="allow_hosts",
        metavar="NAME",
        action="append",
        type=_host_name,
        default=[],
        help="take requests to this name or address, too (LAN, Docker); may be given again",
    )
    parser.add_argument(
        "--allow-origin",
        dest="allow_origins",
        metavar="ORIGIN",
        action="append",
        type=_origin,
        default=[],
        help="take requests of pages from here, such as http://192.168.1.5:3000; may be given again",
    )
    parser.add_argument(
        "--db", metavar="PATH", help="keep everything in this SQLite file (default: in memory)"
    )
    parser.add_argument(
        "--keep-events",
        metavar="N",
        type=_cap,
        default=DEFAULT_KEEP_EVENTS,
        help="keep the newest N events; 0 keeps all (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-bytes",
        metavar="SIZE",
        type=_cap_bytes,
        default=DEFAULT_KEEP_BYTES,
        help="the same by size, such as 50MB; 0 keeps all (default: 200MB)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="400 for a batch with an event that the API would ignore (default: 200, as the API)",
    )
    parser.add_argument(
        "--key",
        dest="keys",
        metavar="KEY",
        action="append",
        type=_key,
        default=[],
        help="take only this API key; may be given again (default: any that starts with sk_ or pub_)",
    )
    parser.add_argument(
        "--expired-key",
        dest="expired_keys",
        metavar="KEY",
        action="append",
        type=_key,
        default=[],
        help="the subscription of this API key has expired: 402, and 202 from the cancel flow",
    )
    parser.add_argument(
        "--rate-limits",
        action="store_true",
        help="429 above the documented limits: 10 per second after a burst of 30, cancel flow 10 in 15 s",
    )
    parser.add_argument(
        "--max-body-bytes",
        metavar="N",
        type=_positive,
        default=DEFAULT_MAX_BODY_BYTES,
        help="answer 413 above this, before and after decompression (default: %(default)s)",
    )
    parser.add_argument(
        "--gzip",
        choices=GZIP_CHOICES,
        default="accept",
        help="take compressed bodies or refuse them with this status (default: %(default)s)",
    )
    parser.add_argument(
        "--generate-seconds",
        metavar="S",
        type=_seconds,
        default=DEFAULT_GENERATE_S,
        help="how long generating variants takes (default: %(default)s; the API takes 5 to 15)",
    )
    parser.add_argument(
        "--no-email",
        dest="email",
        action="store_false",
        help="no email can be sent: sending a variant is answered with 500",
    )
    parser.add_argument(
        "--webhook-url", metavar="URL", type=_url, help="send signed webhooks there (POST /_dev/webhooks)"
    )
    parser.add_argument(
        "--webhook-secret",
        metavar="SECRET",
        default=DEFAULT_WEBHOOK_SECRET,
        help="what they are signed with (default: %(default)s)",
    )
    parser.add_argument(
        "--webhook-delays",
        metavar="S,S,S",
        type=_delays,
        default=DEFAULT_WEBHOOK_DELAYS_S,
        help="seconds before each retry (default: 10,60,300)",
    )
    parser.add_argument(
        "--ready-file", metavar="PATH", help="write where it listens into this file, as JSON, once it does"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print the first line only, and none for each request"
    )
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="stop when standard input ends (for a parent process)",
    )


def from_arguments(arguments: argparse.Namespace) -> Options:
    """The options in what *parser* made of a command line."""
    return Options(
        host=arguments.host,
        port=arguments.port,
        allow_hosts=tuple(arguments.allow_hosts),
        allow_origins=tuple(arguments.allow_origins),
        db=arguments.db,
        keep_events=arguments.keep_events or None,
        keep_bytes=arguments.keep_bytes or None,
        strict=arguments.strict,
        keys=tuple(arguments.keys),
        expired_keys=tuple(arguments.expired_keys),
        rate_limits=arguments.rate_limits,
        max_body_bytes=arguments.max_body_bytes,
        gzip=arguments.gzip,
        generate_s=arguments.generate_seconds,
        email=arguments.email,
        webhook_url=arguments.webhook_url,
        webhook_secret=arguments.webhook_secret,
        webhook_delays_s=tuple(arguments.webhook_delays),
        ready_file=arguments.ready_file,
        quiet=arguments.quiet,
        until_stdin_closes=arguments.until_stdin_closes,
    )


def is_loopback(name: str) -> bool:
    """Whether *name* is localhost or an address of the loopback network."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def problem(options: Options) -> Optional[str]:
    """What does not go together in *options*, or None."""
    if not is_loopback(options.host) and not options.allow_hosts:
        return (
            f"--host {options.host} is not a loopback address: anyone who reaches it could use the server;"
            " say with --allow-host under which names it may be asked"
        )
    return None


def _address(text: str) -> str:
    name = DEFAULT_HOST if text.lower() == "localhost" else text
    try:
        ipaddress.ip_address(name)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a loopback address, nor any other") from None
    return name


def _host_name(text: str) -> str:
    if not text or any(mark in text for mark in "/@ ") or "*" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name or address of a host")
    name = text[1:].partition("]")[0] if text.startswith("[") else text
    return name.lower()


def _origin(text: str) -> str:
    parts = urlsplit(_url(text))
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise argparse.ArgumentTypeError(f"{text!r} is not an origin, such as http://192.168.1.5:3000")
    return f"{parts.scheme}://{parts.netloc}".lower()


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _cap(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _cap_bytes(text: str) -> int:
    for unit, factor in (("kb", 10**3), ("mb", 10**6), ("gb", 10**9)):
        if text.lower().endswith(unit):
            return _cap(text[: -len(unit)].strip()) * factor
    return _cap(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return seconds


def _delays(text: str) -> Tuple[float, ...]:
    return tuple(_seconds(part) for part in text.split(",")) if text else ()


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port
        is_url = False
    if not is_url:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL that starts with http:// or https://")
    return text


def _key(text: str) -> str:
    if not text.startswith(("sk_", "pub_")):
        raise argparse.ArgumentTypeError("an API key starts with sk_ or pub_")
    return text
