r"""The address of the API: checked so that all libraries that read it read the same.

urllib, httpx and curl differ on what is odd, such as `https://a\@b`, `http://[::1]x`, `HTTP://` or `127.1`.
The key would go to the host that the last of them sees. So an address has one simple form, or is an error.
"""

from __future__ import annotations

import ipaddress
import re

from .errors import ConfigurationError
from .secrets import Secret, kind_of

WINDBACK = "https://api.windbackai.com"
PATH = "/api/v1"  # docs page "API Overview"
DEFAULT_BASE_URL = WINDBACK + PATH

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")
_LOOPBACK = re.compile(rf"127(?:\.{_OCTET}){{3}}")
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
#: What libraries may take for an IPv4 address: the last label is a number, also a hexadecimal one.
_LIKE_IPV4 = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?")
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[A-Za-z0-9._~!$&'()*+,;=:-]+)*)/*"
)
_CREDENTIALS = "must not contain credentials (…@host); pass the API key as api_key"


def base_url(value: object) -> str:
    """Return the address without a slash at its end. Raises ConfigurationError, which names the mistake."""
    if isinstance(value, Secret):
        raise ConfigurationError(f"base_url {_CREDENTIALS}")
    if not isinstance(value, str):
        raise ConfigurationError(f"base_url must be a string, not {kind_of(value)}")
    match = _URL.fullmatch(value)
    problem = _problem(value) if match is None else _problem_of_parts(match)
    if problem is not None:
        raise ConfigurationError(f"base_url {problem}")
    return value.rstrip("/")


def _problem(url: str) -> str:
    """Return why this does not have the form of an address."""
    if "@" in url:  # it is not repeated: there may be a password before it
        return _CREDENTIALS
    if "?" in url or "#" in url:
        return "must not have a query or a fragment; it ends with the path, such as /api/v1"
    if re.search(r"[^!-~]", url):
        return f"{url!r} contains a space or a non-ASCII character"
    if re.match(r"https?://", url, re.IGNORECASE) and not url.startswith(("http://", "https://")):
        scheme, _, rest = url.partition("://")
        return f"{url!r} must begin in lower case: {scheme.lower()}://{rest}"
    return f"{url!r} must look like {DEFAULT_BASE_URL!r}"


def _problem_of_parts(match: re.Match[str]) -> object:
    """Return what is wrong with the parts of something that looks like an address, or None."""
    url, host, port, path = match[0], match["host"], match["port"], match["path"]
    if not _is_host(host):
        return f"{url!r} has {host!r} for a host, which is neither a name nor an address"
    if port is not None and not 0 < int(port) < 65536:
        return f"{url!r} has the port {port}; ports go from 1 to 65535"
    if {".", ".."} & {*path.split("/")}:
        return f"{url!r} has '.' or '..' in its path; write the path that is meant"
    if match["scheme"] == "http" and not is_loopback(host.strip("[]").lower()):
        return f"{url!r} must use https: the key must not cross a network in clear text"
    if f"https://{host.lower()}" == WINDBACK and not path:
        return f"{url!r} lacks the path of the API; it is {DEFAULT_BASE_URL}"
    return None


def _is_host(host: str) -> bool:
    if "xn--" in host.lower():
        import idna  # httpx has it, and fails with each request to a name that it can't decode

        try:
            idna.decode(host)
        except (UnicodeError, IndexError):
            return False
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return False
        return True
    if _LIKE_IPV4.fullmatch(host):
        return _IPV4.fullmatch(host) is not None
    return len(host) < 254 and _NAME.fullmatch(host) is not None


def is_loopback(host: str) -> bool:
    """Whether *host* names this machine: "localhost", 127.0.0.0/8 or ::1."""
    return host in ("localhost", "::1") or _LOOPBACK.fullmatch(host) is not None
