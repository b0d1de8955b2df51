"""The files of the page, as they lie in the package, and the headers that keep a page honest."""

from __future__ import annotations

import pkgutil
import re
from typing import Dict, List, Optional

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .errors import not_found

#: Where the files are served, and in which folder of this package they lie.
PATH, _FOLDER = "/page", "page"

#: No script, style, picture or connection but our own: no text of an event can run or make a request.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}

_TYPES = {
    "css": "text/css",
    "html": "text/html",
    "ico": "image/x-icon",
    "js": "text/javascript",
    "json": "application/json",
    "png": "image/png",
    "svg": "image/svg+xml",
    "webmanifest": "application/manifest+json",
    "woff2": "font/woff2",
}

# No dots but the one before the kind of file, so no name leads out of the folder.
_name = re.compile(r"(?:[A-Za-z0-9_-]+/)*[A-Za-z0-9_-]+\.([a-z0-9]+)").fullmatch


def read(name: str) -> Optional[bytes]:
    """The content of a file of the page; None when there is none of this name."""
    if _name(name) is None:
        return None
    try:
        return pkgutil.get_data(__package__ or __name__, f"{_FOLDER}/{name}")
    except OSError:
        return None


def answer(name: str, content: bytes) -> Response:
    """*content* with the headers for the kind of file of *name*."""
    headers: Dict[str, str] = dict(HEADERS)
    media_type = _TYPES.get(name.rpartition(".")[2], "application/octet-stream")
    return Response(content, headers=headers, media_type=media_type)


async def _show(request: Request) -> Response:
    name = request.path_params["name"]
    content = read(name)
    if content is None:
        raise not_found("page")
    return answer(name, content)


def routes() -> List[Route]:
    """All files."""
    return [Route(PATH + "/{name:path}", _show)]
