"""Which proxy leads to the API: one answer for the one host that a client talks to.

The environment decides, as for other programs: HTTPS_PROXY or HTTP_PROXY by the scheme of base_url, else
ALL_PROXY, and NO_PROXY; on macOS and Windows also the settings of the system. This machine is never reached
through a proxy.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Dict, List, NamedTuple, Optional, Set
from urllib.parse import urlsplit

from .. import log
from ..base_url import is_loopback

_IMPORTED_IN = os.getpid()
_SCHEMES = ("http", "https")
_SOCKS = ("socks5", "socks5h")

#: What the system's settings were when they were read before a fork; macOS kills a forked child that asks.
_settings: Optional[Dict[str, str]] = None
_problems_logged: Set[str] = set()


class Route(NamedTuple):
    """How the API is reached.

    proxy: its URL, maybe with a password; None: directly. why: what decided, without the password.
    problem: what could not be used, for one log line.
    """

    proxy: Optional[str]
    why: str
    problem: Optional[str] = None


def route_to(base_url: str) -> Route:
    """Return how to reach *base_url*, by the environment and the system's settings of this moment."""
    parts = urlsplit(base_url)
    host, port = parts.hostname or "", parts.port
    if is_loopback(host):
        return Route(None, f"{host} is this machine, which is never reached through a proxy")
    proxies = _proxies()
    name = parts.scheme if parts.scheme in proxies else "all"
    proxy = proxies.get(name)
    variable = f"{name.upper()}_PROXY"
    if not proxy:
        return Route(None, "no proxy is set")
    unread: List[str] = []
    bypass = next((entry for entry in _entries(proxies) if _matches(entry, host, port, unread)), None)
    problem = None if not unread else f"NO_PROXY has entries that cannot be read: {', '.join(unread)}"
    if bypass is not None:
        return Route(None, f"NO_PROXY has {bypass}", problem)
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    wrong = _wrong_with(proxy)
    if wrong is not None:
        return Route(None, f"{variable} {wrong}", f"{variable} {wrong}; connecting to {host} without a proxy")
    return Route(proxy, f"{variable} is {without_password(proxy)}", problem)


def usable_route(base_url: str) -> Route:
    """Return how to reach *base_url*; a problem with the settings is logged once."""
    route = route_to(base_url)
    if route.problem is not None and route.problem not in _problems_logged:
        _problems_logged.add(route.problem)
        log.later(logging.WARNING, "%s", route.problem)
    return route


def without_password(proxy: str) -> str:
    """Return a proxy's URL without user and password."""
    scheme, _, rest = proxy.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _proxies() -> Dict[str, str]:
    global _settings  # noqa: PLW0603 - of the process
    has_settings = sys.platform in ("darwin", "win32")
    if not has_settings and not any(name.lower().endswith("_proxy") for name in os.environ):
        return {}
    from urllib.request import getproxies, getproxies_environment  # loads slowly what is seldom needed

    if sys.platform == "darwin" and os.getpid() != _IMPORTED_IN:
        return getproxies_environment() or _settings or {}
    _settings = getproxies()
    return _settings


def _entries(proxies: Dict[str, str]) -> List[str]:
    return [entry.strip() for entry in proxies.get("no", "").split(",") if entry.strip()]


def _matches(entry: str, host: str, port: Optional[int], unread: List[str]) -> bool:
    """Return whether an entry of NO_PROXY is for *host*; add it to *unread* if it makes no sense."""
    if entry == "*":
        return True
    name = entry.partition("://")[2] or entry
    import ipaddress

    try:
        # A network, or an address, which may be one of IPv6 and full of colons.
        network = ipaddress.ip_network(name.strip("[]"), strict=False)
    except ValueError:
        pass
    else:
        try:
            return ipaddress.ip_address(host) in network
        except ValueError:
            return False
    try:
        parts = urlsplit(f"//{name}")
        wanted, wanted_port = parts.hostname, parts.port
    except ValueError:
        wanted, wanted_port = None, None
    if not wanted or "/" in name:
        unread.append(entry)
        return False
    wanted = wanted.lstrip("*").lstrip(".")
    is_same = host == wanted or host.endswith(f".{wanted}")
    return is_same and wanted_port in (None, port)


def _wrong_with(proxy: str) -> Optional[str]:  # noqa: PLR0911 - one for each reason
    """Return why a proxy can't be used, without its password; None: it can."""
    try:
        parts = urlsplit(proxy)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if not host:
        return "has no host"
    if parts.scheme in (*_SCHEMES, *_SOCKS) and not _is_read_by_httpx(proxy):
        return "has a host that is not valid"
    if parts.scheme in _SCHEMES:
        return None
    if parts.scheme in _SOCKS:
        from importlib.util import find_spec

        if find_spec("socksio") is not None:
            return None
        return "is a SOCKS proxy, which needs: pip install 'httpx[socks]'"
    return f"has the scheme {parts.scheme}, which is not supported"


def _is_read_by_httpx(proxy: str) -> bool:
    """Whether httpx takes it: it refuses hosts such as 0.300.0.0, neither a name nor an address."""
    import httpx

    try:
        httpx.Proxy(proxy)
    except (httpx.InvalidURL, ValueError):
        return False
    return True
