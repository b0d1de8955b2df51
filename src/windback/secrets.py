"""Keys and passwords: objects that can't show them, and the files that keys are read from.

Error reporters show the local variables of every frame that an error passes. So no frame that raises contains
a key as text: it has a `Secret`, and text exists only inside the expression that calls `reveal`.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Dict, Iterable, List, Mapping, NamedTuple, NoReturn, Optional, Tuple, Union
from urllib.parse import parse_qsl, unquote, urlsplit

from .errors import ConfigurationError
from .wording import with_article

#: A key that was cut off is still found in a text if this much of its secret part is there.
_TRACE_CHARS = 8
#: Options of a client or a relay that are hidden as soon as they are read.
_SECRET_OPTIONS = frozenset(("api_key", "public_key", "broker", "secret"))
_KEY_PREFIX = re.compile(r"(?:sk|pub)_(?:(?:live|test)_)?")


class Secret:
    """A text that only `reveal` returns.

    No attribute contains the text: it is stored combined with random bytes. `repr`, `str`, `format` and the
    dictionary of a frame show at most the kind of key. It has no length and no items, its copies are the same
    object, and it refuses to be pickled.
    """

    __slots__ = ("_parts",)

    def __init__(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        pad = os.urandom(len(data))
        self._parts = pad, _xor(pad, data)

    def reveal(self) -> str:
        """Return the text. Call it where the text is used, and don't store it in a variable."""
        return _xor(*self._parts).decode("utf-8", "surrogatepass")

    @property
    def hint(self) -> str:
        """The part that may be shown: the kind of key."""
        return next((f"{kind}***" for kind in ("sk_", "pub_") if self.reveal().startswith(kind)), "***")

    def __repr__(self) -> str:
        return f"'{self.hint}'"

    def __str__(self) -> str:
        return self.hint

    def __format__(self, spec: str) -> str:
        return format(self.hint, spec)

    def __eq__(self, other: object) -> bool:
        return self.reveal() == other.reveal() if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self.reveal()))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a key or password can't be pickled; read it again in the other process")


def _xor(one: bytes, other: bytes) -> bytes:
    mixed = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return mixed.to_bytes(len(one), "big")


def hidden(value: object) -> object:
    """Return a text as a `Secret`. Of any other object that is not one already, only its type."""
    if value is None or isinstance(value, (Secret, BrokerAddress, type)):
        return value
    return Secret(value) if isinstance(value, str) else type(value)


def hidden_if_key(value: object) -> object:
    """Return a text that looks like a key, or like a URL with a password, as a `Secret`; else as it is."""
    is_secret = isinstance(value, str) and (
        _KEY_PREFIX.match(value.strip().lower()) or ("//" in value and "@" in value)
    )
    return Secret(value) if is_secret else value  # type: ignore[arg-type]


def hidden_option(name: str, value: object) -> object:
    """Return the value of the option *name*, hidden if it is a secret, or looks like a key."""
    if name == "api_keys":
        return hidden_keys(value)
    if isinstance(value, (list, tuple)):
        return [hidden_option(name, each) for each in value] if name == "secret" else value
    return hidden(value) if name in _SECRET_OPTIONS else hidden_if_key(value)


def hidden_keys(keys: object) -> object:
    """Return a mapping to keys with each one `hidden`. Of any other object, only its type."""
    if isinstance(keys, Mapping):
        return {name: hidden(key) for name, key in keys.items()}
    return keys if isinstance(keys, type) else keys and type(keys)  # a type was an object, and hidden before


def kind_of(value: object) -> str:
    """Return the type that *value* had before it was `hidden`, with its article: "a str", "an int"."""
    return with_article(value.__name__ if isinstance(value, type) else type(value).__name__)


def fingerprint(parts: Iterable[object]) -> str:
    """Return 12 hexadecimal digits that identify *parts*, secrets included, without revealing them."""
    import hashlib

    return hashlib.sha256(
        "\n".join(part.reveal() if isinstance(part, Secret) else str(part) for part in parts).encode(
            "utf-8", "surrogatepass"
        )
    ).hexdigest()[:12]


def without_frames(error: BaseException) -> BaseException:
    """Return *error* without its frames and context, to be raised again.

    For an interrupt or a cancellation inside a library, whose frames contain the data that it was sending.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def redact(text: str, secrets: Iterable[Optional[Secret]]) -> str:
    """Return *text* with each secret replaced by its hint, in any case and also where a part is missing."""
    for secret in secrets:
        if secret is not None:
            text = _redact_one(text, secret.reveal(), secret.hint)
    return text


def _redact_one(text: str, secret: str, shown: str) -> str:
    """Replace every run of characters of *text* that reveals *secret*. This frame has it as text."""
    if not secret:
        return text
    lower, wanted = _folded(text), _folded(secret)
    match = _KEY_PREFIX.match(wanted)
    start = match.end() if match else 0
    spans: List[Tuple[int, int]] = []
    # From the start of the secret: a key after its prefix counts from the first character on.
    shortest = start + 1 if start else min(len(wanted), _TRACE_CHARS)
    at = lower.find(wanted[:shortest])
    while at >= 0:
        end = at + shortest
        while end < len(lower) and end - at < len(wanted) and lower[end] == wanted[end - at]:
            end += 1
        spans.append((at, end))
        at = lower.find(wanted[:shortest], end)
    # From anywhere in it.
    traces = {wanted[place : place + _TRACE_CHARS] for place in range(start, len(wanted) - _TRACE_CHARS + 1)}
    if traces:
        spans += [
            (place, place + _TRACE_CHARS)
            for place in range(len(lower) - _TRACE_CHARS + 1)
            if lower[place : place + _TRACE_CHARS] in traces
        ]
    return _replace(text, spans, shown)


def _folded(text: str) -> str:
    """Return *text* in lower case, each character in its place."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(each.lower()[0] for each in text)


def _replace(text: str, spans: List[Tuple[int, int]], shown: str) -> str:
    """Replace *spans*, of which some overlap."""
    parts: List[str] = []
    done = 0
    for start, end in sorted(spans):
        if start >= done:
            parts += text[done:start], shown
        done = max(done, end)
    return "".join(parts) + text[done:]


# -- the address of a broker -------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class BrokerAddress:
    """The URL of a broker, in its parts. Every part that may be secret is a `Secret`.

    nodes: the hosts and ports that connections are made to. service: the name of the master for Sentinels.
    tls: options of redis-py that start with ssl_. url: all of it.
    """

    url: Secret
    scheme: str
    nodes: Tuple[Tuple[str, int], ...]
    path: str
    user: Optional[Secret]
    password: Optional[Secret]
    sentinel_user: Optional[Secret]
    sentinel_password: Optional[Secret]
    tls: Mapping[str, Union[str, Secret]]

    @property
    def is_sentinel(self) -> bool:
        """Whether `nodes` are Sentinels, which provide the address of the master of `service`."""
        return self.scheme.endswith("+sentinel")

    @property
    def is_cluster(self) -> bool:
        """Whether `nodes` are some of a Redis Cluster."""
        return self.scheme.endswith("+cluster")

    @property
    def is_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.scheme.startswith("rediss")

    @property
    def is_verified(self) -> bool:
        """Whether certificates must match the names of `nodes`; an option of the URL can turn this off."""
        return self.is_tls and not {"ssl_cert_reqs", "ssl_check_hostname"} & set(self.tls)

    @property
    def service(self) -> str:
        """The name that the Sentinels have for the master."""
        return self.path.partition("/")[0]

    @property
    def database(self) -> int:
        """The number of the database; a cluster has only 0."""
        number = self.path.partition("/")[2] if self.is_sentinel else self.path
        return int(number or 0)

    @property
    def place(self) -> str:
        """The part that may be shown: no user, no password."""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        return f"{self.scheme}://{hosts}/{self.path or 0}"

    def __repr__(self) -> str:
        return repr(self.place)

    def __str__(self) -> str:
        return self.place

    def redact(self, text: str) -> str:
        """Return *text* without the passwords, in case a library repeated them."""
        text = text.replace(self.url.reveal(), self.place)
        secrets = [self.password, self.sentinel_password]
        secrets += [value for value in self.tls.values() if isinstance(value, Secret)]
        return redact(text, [*secrets, *map(_quoted, filter(None, secrets))])


def _quoted(secret: Secret) -> Secret:
    """Return it as it is written in a URL."""
    from urllib.parse import quote

    return Secret(quote(secret.reveal(), safe=""))


_BROKER_SCHEMES = [start + end for start in ("redis", "rediss") for end in ("", "+sentinel", "+cluster")]


def broker_address(value: object) -> BrokerAddress:
    """Split the URL of a broker into its parts. It should be `hidden` before. Raises ConfigurationError."""
    if isinstance(value, BrokerAddress):
        return value
    url = hidden(value)
    value = None
    if not isinstance(url, Secret):
        raise ConfigurationError(f"broker must be a URL such as redis://localhost:6379/0, not {kind_of(url)}")
    problem = _problem_of_broker(url.reveal())
    if problem is not None:
        raise ConfigurationError(problem)
    if find_spec("redis") is None:
        raise ConfigurationError("broker needs redis-py: pip install 'windback[redis]'", code="MISSING_EXTRA")
    return _parsed(url)


def _problem_of_broker(url: str) -> Optional[str]:
    """Describe what is wrong with a URL, without parts that may be a password. This frame has it as text."""
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in _BROKER_SCHEMES:
        shown = f", not {scheme}://" if re.fullmatch(r"[a-z][a-z+]{0,30}", scheme) else ""
        return (
            "broker must be a URL that starts with redis:// or rediss://, or with redis+sentinel://, "
            f"rediss+sentinel://, redis+cluster:// or rediss+cluster://{shown}"
        )
    is_sentinel, is_cluster = scheme.endswith("+sentinel"), scheme.endswith("+cluster")
    query = path = ""
    hosts: List[str] = []
    with suppress(ValueError):
        parts = _parts_of(url)
        path, query = parts.path, parts.query
        hosts = [host for host, _ in _nodes(parts.hosts, 1)]
    wanted = r"[^/]+(/[0-9]{1,9})?" if is_sentinel else r"0?" if is_cluster else r"[0-9]{0,9}"
    is_whole = all(hosts) and (hosts if is_sentinel or is_cluster else len(hosts) == 1)
    if not is_whole or not re.fullmatch(wanted, path) or re.search(r"[^!-~]|[#\\]", url):
        example = "redis://user:password@host:6379/0"
        if is_sentinel:
            example = "redis+sentinel://user:password@host:26379,host:26379/name-of-the-master/0"
        elif is_cluster:
            example = "redis+cluster://user:password@host:6379,host:6379/0"
        return (
            f"broker must look like {example}, with the number of a database at its end or nothing, "
            "and with special characters in the password as %xx"
        )
    allowed = ("ssl_", "sentinel_username", "sentinel_password") if is_sentinel else ("ssl_",)
    if any(not name.startswith(allowed) for name, _ in parse_qsl(query, keep_blank_values=True)):
        return f"broker supports only options that start with {' or '.join(allowed)} after its '?'"
    return None


class _Parts(NamedTuple):
    """The parts of a broker's URL, as they are written in it."""

    scheme: str
    user: str
    password: str
    #: "host:port" or "host", one or several.
    hosts: List[str]
    path: str
    query: str


def _parts_of(url: str) -> _Parts:
    """Split the URL of a broker. Its hosts are split before `urlsplit` sees one, which refuses several."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    place, _, path = rest.partition("/")
    credentials, _, hosts = place.rpartition("@")
    user, _, password = credentials.partition(":")
    return _Parts(scheme, user, password, hosts.split(","), path.strip("/"), query)


def _nodes(hosts: List[str], default_port: int) -> List[Tuple[str, int]]:
    """Return each host with its port. Raises ValueError."""
    parts = [urlsplit(f"//{each}") for each in hosts]
    return [(part.hostname or "", default_port if part.port is None else part.port) for part in parts]


def _parsed(url: Secret) -> BrokerAddress:
    """Split a URL that was checked. This frame has parts of it as text, and nothing in it raises."""
    parts = _parts_of(url.reveal())
    query = dict(parse_qsl(parts.query))
    tls: Dict[str, Union[str, Secret]] = {
        name: Secret(value) if "password" in name else value
        for name, value in query.items()
        if name.startswith("ssl_")
    }
    return BrokerAddress(
        url=url,
        scheme=parts.scheme,
        nodes=tuple(_nodes(parts.hosts, 26379 if parts.scheme.endswith("+sentinel") else 6379)),
        path=parts.path,
        user=Secret(unquote(parts.user)) if parts.user else None,
        password=Secret(unquote(parts.password)) if parts.password else None,
        sentinel_user=Secret(query["sentinel_username"]) if query.get("sentinel_username") else None,
        sentinel_password=Secret(query["sentinel_password"]) if query.get("sentinel_password") else None,
        tls=tls,
    )


# -- files and lists of keys -------------------------------------------------------------------


def key_pairs(text: Secret, where: str) -> List[Tuple[str, Secret]]:
    """Read slug=key,slug=key, or one per line, with # before a comment. Raises ConfigurationError."""
    pairs, wrong = _pairs_of(text.reveal())
    if wrong:
        raise ConfigurationError(
            f"{where} must be slug=sk_…, separated by commas or line ends; number {wrong} can't be read"
        )
    return pairs


def _pairs_of(text: str) -> Tuple[List[Tuple[str, Secret]], int]:
    """Do that, or return the number of the wrong one. This frame has the keys as text."""
    pairs: List[Tuple[str, Secret]] = []
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    parts = [part.strip() for line in lines for part in line.split(",") if part.strip()]
    for number, part in enumerate(parts, 1):
        slug, equals, key = part.partition("=")
        if not equals or not key.strip():
            return [], number
        pairs.append((slug.strip(), Secret(key.strip())))
    return pairs, 0


def read_keys(path: str) -> Mapping[str, Secret]:
    """Read a file of keys that only its owner may read. Raises ConfigurationError."""
    text, problem = _text_of(path)
    if problem is not None:
        raise ConfigurationError(problem)
    pairs = key_pairs(text, repr(path))
    found = dict(pairs)
    if not found or len(found) < len(pairs):
        raise ConfigurationError(f"{path!r} contains {'two keys for one project' if found else 'no key'}")
    return found


def _text_of(path: str) -> Tuple[Secret, Optional[str]]:
    """Return the text of a file of keys, or why it can't be used.

    Nothing may raise here: a UnicodeDecodeError, for example, contains the text.
    """
    nothing = Secret("")
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib takes long to load
            status = os.fstat(file.fileno())
            # systemd lets a service read its credentials by an ACL, which appears as bits of a group: root.
            closed_to = 0o007 if status.st_gid == 0 else 0o077
            if os.name != "nt" and status.st_mode & closed_to:
                return nothing, f"{path!r} contains keys and is readable by other users: chmod 600 {path}"
            return Secret(file.read()), None
    except UnicodeDecodeError:
        return nothing, f"can't read keys from {path!r}: it is not text"
    except OSError as error:
        return nothing, f"can't read keys from {path!r}: {error.strerror}"


def checked_key(name: str, value: object, prefix: str, other: str) -> Secret:
    """Return a key that starts with *prefix*, hidden. Raises ConfigurationError, without any part of it."""
    key = hidden(value)
    value = None
    if not isinstance(key, Secret):
        raise ConfigurationError(f"{name} must be a string that starts with {prefix}, not {kind_of(key)}")
    problem = _problem_of_key(name, key.reveal(), prefix, other)
    if problem is not None:
        raise ConfigurationError(problem)
    return key


def _problem_of_key(name: str, key: str, prefix: str, other: str) -> Optional[str]:
    """Describe what is wrong with a key without any part of it. A mistyped key is most of a key.

    This frame has the key as text, so nothing may raise here.
    """
    if key.startswith(other):
        place = "public_key" if other == "pub_" else "api_key"
        kind = "public" if other == "pub_" else "secret"
        return f"{name} must start with {prefix}; this is a {kind} key ({other}…): pass it as {place}"
    if not key.startswith(prefix) or len(key) == len(prefix):
        return f"{name} must start with {prefix} and have more after it; copy all of it from the dashboard"
    if not re.fullmatch(r"[!-~]+", key):
        return f"{name} contains a space, a line end or a non-ASCII character; copy it again"
    return None
