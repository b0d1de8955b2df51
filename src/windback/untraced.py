"""Requests of background workers make no spans: each would be a trace of its own."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Callable, ContextManager, cast

_NOTHING: ContextManager[None] = nullcontext()


def untraced() -> ContextManager[None]:
    """Return a context in which OpenTelemetry's instrumentation of HTTP and Redis makes no spans.

    Nothing is imported: without the instrumentation, which loads that module, there are none.
    """
    utils = sys.modules.get("opentelemetry.instrumentation.utils")
    suppress = getattr(utils, "suppress_instrumentation", None)
    return _NOTHING if suppress is None else cast("Callable[[], ContextManager[None]]", suppress)()
