"""FastAPI: the middleware, and `Track`, a dependency that tracks for the customer of the request.

from windback.fastapi import Track, WindbackMiddleware

app.add_middleware(WindbackMiddleware)

@app.get("/export")
def export(track: Track):
    track("export", {"rows": 3})
"""

from __future__ import annotations

import logging
from typing import Set

from .asgi import KEY, Tracker, WindbackMiddleware

try:
    from fastapi import Depends
    from fastapi.requests import HTTPConnection
    from typing_extensions import Annotated
except ImportError as error:
    message = 'windback.fastapi needs FastAPI: pip install "windback[fastapi]"'
    raise ImportError(message) from error

__all__ = ["Track", "Tracker", "WindbackMiddleware", "get_tracker"]

logger = logging.getLogger("windback")

_warned: Set[str] = set()


async def get_tracker(connection: HTTPConnection) -> Tracker:
    """Return what `Track` gives to an endpoint; the key for `app.dependency_overrides`."""
    if KEY not in connection.scope and not _warned:
        _warned.add(KEY)
        logger.warning(
            "Track is used without app.add_middleware(WindbackMiddleware): no event has a customer, "
            "and none is sent"
        )
    return _TRACKER


#: It has no state: the scope of the request has.
_TRACKER = Tracker()

#: Annotate an argument of an endpoint or of a dependency with it, and call that as `Windback.track`.
Track = Annotated[Tracker, Depends(get_tracker)]
