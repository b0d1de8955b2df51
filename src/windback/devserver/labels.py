"""What is shown in place of an API key: enough to tell two apart, and nothing that opens anything."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Dict, Mapping

#: What shows of a key in a list of headers is its kind alone.
MASK = "***"

#: Headers that may carry a secret, in lower case.
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key"})

_kind = re.compile(r"(?:sk|pub)_(?:(?:test|live)_)?").match
_is_label = re.compile(r"(?:(?:sk|pub)_(?:(?:test|live)_)?)?\*\*\*[0-9a-f]{8}").fullmatch
_anything_like_a_key = re.compile(r"\b(sk|pub)_(?!\*)[A-Za-z0-9_.~+/=-]+").sub


@lru_cache(maxsize=4096)
def label(key: str) -> str:
    """The name of a key's inbox, such as ``sk_test_***1b2c3d4e``: its kind, and digits of its SHA-256."""
    kind = _kind(key)
    return (kind.group() if kind else "") + MASK + hashlib.sha256(key.encode()).hexdigest()[:8]


def inbox_named(text: str) -> str:
    """The name of an inbox that a caller gave by that name or by the key itself."""
    return text if _is_label(text) else label(text)


def api_key(headers: Mapping[str, str]) -> str:
    """The key that a request came with, "" without one."""
    key = headers.get("x-api-key", "")
    if key:
        return key
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def mask_headers(headers: Mapping[str, str]) -> Dict[str, str]:
    """*headers* without what must not be shown."""
    return {
        name: _mask_secret(value) if name in _SECRET_HEADERS else value for name, value in headers.items()
    }


def mask_text(text: str) -> str:
    """*text* with everything in it that looks like an API key cut to its kind."""
    return _anything_like_a_key(rf"\1_{MASK}", text)


def _mask_secret(value: str) -> str:
    scheme, space, rest = value.partition(" ")
    if space and scheme.lower() in ("bearer", "basic"):
        return f"{scheme} {_mask_secret(rest)}"
    kind, mark, _ = value.partition("_")
    return (kind + mark if kind in ("sk", "pub") else "") + MASK
