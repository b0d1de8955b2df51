"""Who may ask: pages of the web can make a browser send requests to this machine, and must get nothing here.

A name that is not this machine's in `Host` means DNS rebinding, a foreign `Origin` a page from elsewhere.
The one thing that pages of other origins may use is the cancel flow, as the real API lets them; here those of
this machine.
"""

from __future__ import annotations

import ipaddress
from typing import Dict, Mapping, Optional
from urllib.parse import urlsplit

from .errors import ApiError
from .options import BASE_PATH, Options, is_loopback

_CANCEL_FLOW = BASE_PATH + "/cancel-flow/"

#: Host headers that are remembered as good ones.
_REMEMBERED = 1_000


class Guard:
    """Judges `Host`, `Origin` and content type."""

    def __init__(self, options: Options) -> None:
        self._hosts = {name.lower() for name in options.allow_hosts}
        if not ipaddress.ip_address(options.host).is_unspecified:
            self._hosts.add(options.host)
        self._origins = {origin.lower() for origin in options.allow_origins}
        self._good: Dict[str, bool] = {}

    def refusal(self, headers: Mapping[str, str], path: str) -> Optional[ApiError]:
        """Why a request must not be served; None when it may."""
        host = headers.get("host", "")
        if host not in self._good:
            name = _host_name(host).lower()
            if name not in self._hosts and not is_loopback(name):
                return ApiError(421, "MISDIRECTED", "this server answers to loopback names; see --allow-host")
            if len(self._good) < _REMEMBERED:
                self._good[host] = True
        origin = headers.get("origin")
        if origin is None or origin.lower() == f"http://{host}".lower() or self._is_shared(origin, path):
            return None
        return ApiError(
            403, "FORBIDDEN", "pages of another origin may use the cancel flow only; see --allow-origin"
        )

    def _is_shared(self, origin: str, path: str) -> bool:
        return origin.lower() in self._origins or (path.startswith(_CANCEL_FLOW) and _is_local(origin))

    def cors_headers(self, headers: Mapping[str, str], path: str) -> Dict[str, str]:
        """What a browser wants to read before it shows the answer to a page of another origin."""
        origin = headers.get("origin")
        if origin is None or not path.startswith(_CANCEL_FLOW) or not self._is_shared(origin, path):
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "retry-after, x-request-id",
            "vary": "origin",
        }

    def preflight(self, method: str, headers: Mapping[str, str], path: str) -> Optional[Dict[str, str]]:
        """The headers that answer a browser that asks first; None if this is not a preflight request."""
        shared = self.cors_headers(headers, path)
        if method != "OPTIONS" or not shared or "access-control-request-method" not in headers:
            return None
        return {
            **shared,
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": "authorization, content-type, idempotency-key, x-api-key",
            "access-control-max-age": "600",
        }


def is_json(headers: Mapping[str, str]) -> bool:
    """Whether a request declares its body as JSON, which no form of a web page can."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def _is_local(origin: str) -> bool:
    try:
        return is_loopback(urlsplit(origin).hostname or "")
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """A Host header without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
