"""The Python SDK of Windback.

`client` has the public classes. They turn arguments into bytes (`event`) or a request (`api`), queue
events (`queue`, `journal`) and send them (`delivery`, `http`), from this process or from another (`remote`,
`sender`, `relay`, `broker`). `process` notices a fork and the exit. `secrets` hides keys and passwords
from a `repr`, a log line and a traceback; `options` does so with what a constructor is given.

Deadlines: of a request in `http`, of its retries and of a flush or a close in `delivery` (in `remote` if
another process sends), of a drain in `relay`, of the exit in `process`.

Importing this package starts no thread, opens no socket and registers no signal handler. Each name is
loaded when it is first used, so `import windback` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import AsyncWindback, PreparedEvent, Windback
    from .default import get_client, set_client
    from .errors import (
        AuthenticationError,
        ClosedError,
        ConfigurationError,
        ConflictError,
        DisabledError,
        InvalidEventError,
        NotFoundError,
        PermissionDeniedError,
        QueueFullError,
        RateLimitError,
        ServerError,
        SubscriptionExpiredError,
        ValidationError,
        WebhookError,
        WindbackConnectionError,
        WindbackError,
        WindbackTimeoutError,
    )
    from .models import (
        CancelFlowResult,
        ChurnEvent,
        Offer,
        OfferAcceptance,
        RecoveryStats,
        RecoveryTemplate,
        TrackResult,
        Variant,
    )
    from .report import Report
    from .stats import DeliveryReport, FlushResult, Stats

__version__ = "0.3.0.dev0"

#: Each module and the names that are loaded from it.
_MODULES = {
    "client": "AsyncWindback PreparedEvent Windback",
    "default": "get_client set_client",
    "errors": """
        AuthenticationError ClosedError ConfigurationError ConflictError DisabledError InvalidEventError
        NotFoundError PermissionDeniedError QueueFullError RateLimitError ServerError SubscriptionExpiredError
        ValidationError WebhookError WindbackConnectionError WindbackError WindbackTimeoutError
    """,
    "models": """
        CancelFlowResult ChurnEvent Offer OfferAcceptance RecoveryStats RecoveryTemplate TrackResult Variant
    """,
    "report": "Report",
    "stats": "DeliveryReport FlushResult Stats",
}
_HOMES = {name: home for home, names in _MODULES.items() for name in names.split()}

__all__ = [
    "AsyncWindback",
    "AuthenticationError",
    "CancelFlowResult",
    "ChurnEvent",
    "ClosedError",
    "ConfigurationError",
    "ConflictError",
    "DeliveryReport",
    "DisabledError",
    "FlushResult",
    "InvalidEventError",
    "NotFoundError",
    "Offer",
    "OfferAcceptance",
    "PermissionDeniedError",
    "PreparedEvent",
    "QueueFullError",
    "RateLimitError",
    "RecoveryStats",
    "RecoveryTemplate",
    "Report",
    "ServerError",
    "Stats",
    "SubscriptionExpiredError",
    "TrackResult",
    "ValidationError",
    "Variant",
    "WebhookError",
    "Windback",
    "WindbackConnectionError",
    "WindbackError",
    "WindbackTimeoutError",
    "__version__",
    "get_client",
    "set_client",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value  # the next look-up finds it directly
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
