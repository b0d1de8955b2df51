"""Everything this package raises.

    WindbackError                     .status .message .code .request_id .retry_after
     ├─ ConfigurationError            the client was set up wrongly (also a ValueError)
     ├─ ClosedError                   used after close()
     ├─ DisabledError                 a call that needs an answer, on a client with enabled=False
     ├─ QueueFullError                overflow="raise" and no room
     ├─ ValidationError               400, 413, 415, 422, or refused here before sending (also a ValueError)
     │   └─ InvalidEventError         an event that can't be sent; .path and .index locate it
     ├─ AuthenticationError           401
     ├─ SubscriptionExpiredError      402
     ├─ PermissionDeniedError         403
     ├─ NotFoundError                 404
     ├─ ConflictError                 409
     ├─ RateLimitError                429
     ├─ ServerError                   5xx
     ├─ WebhookError                  a webhook that is refused: signature, age or payload
     └─ WindbackConnectionError       no answer came
         └─ WindbackTimeoutError      none came in time

An error never holds the API key, and none is chained to an httpx exception: the frames of those hold
the request's headers, and so the key.
"""

from __future__ import annotations

import sys
from typing import Dict, Optional, Tuple, Type

#: Where the documentation is: docs/decisions/addresses.md.
DOCS = "https://docs.windbackai.com/python/"


class WindbackError(Exception):
    """Any failure of this package.

    Attributes:
        status: The HTTP status. None if there was no answer.
        message: What went wrong, in words.
        code: The API's error code, such as "INVALID_API_KEY" (docs page "Python SDK").
        request_id: The answer's X-Request-Id.
        retry_after: The seconds that the server asked the client to wait.
    """

    def __init__(
        self,
        message: str,
        *,
        status: Optional[int] = None,
        code: Optional[str] = None,
        request_id: Optional[str] = None,
        retry_after: Optional[float] = None,
    ) -> None:
        """Make an error.

        Args:
            message: What went wrong, in words.
            status: The HTTP status. None if there was no answer.
            code: The API's error code.
            request_id: The answer's X-Request-Id.
            retry_after: The seconds that the server asked the client to wait.
        """
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        if sys.version_info >= (3, 11):
            self.add_note(f"Cause and cure: {self.url}")

    @property
    def url(self) -> str:
        """The place in the documentation that has the cause and the cure of this error."""
        return f"{DOCS}errors.html#{(self.code or 'errors').lower()}"

    def __str__(self) -> str:
        head = " ".join(str(part) for part in (self.status, self.code) if part is not None)
        return f"{head}: {self.message}" if head else self.message

    def __reduce__(self) -> Tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and errors cross process pools.
        return _rebuild, (type(self), self.message), self.__dict__.copy()


def _rebuild(kind: Type[WindbackError], message: str) -> WindbackError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    return error


class ConfigurationError(WindbackError, ValueError):
    """The client was given an option or an environment variable that can't work."""


class ClosedError(WindbackError):
    """The client was used after close()."""


class DisabledError(WindbackError):
    """A call that needs the API's answer was made on a client with enabled=False."""


class QueueFullError(WindbackError):
    """The queue is full and overflow is "raise"."""


class ValidationError(WindbackError, ValueError):
    """The request is not valid: refused here before it was sent, or by the API (400, 413, 415, 422)."""


class InvalidEventError(ValidationError):
    """An event that can't be sent.

    Attributes:
        path: The field that is wrong, such as "properties.items[2].price".
        index: The event's position in the list given to track_events. None elsewhere.
    """

    path: str
    index: Optional[int]

    def __init__(self, message: str, *, path: str, index: Optional[int] = None) -> None:
        """Make an error.

        Args:
            message: What is wrong with the field.
            path: The field that is wrong, such as "properties.items[2].price".
            index: The event's position in the list given to track_events.
        """
        place = path if index is None else f"events[{index}].{path}" if path else f"events[{index}]"
        super().__init__(f"{place}: {message}", code="INVALID_EVENT")
        self.path = path
        self.index = index
        self.detail = message

    def at(self, index: int) -> InvalidEventError:
        """Return this error with the position of its event in a list.

        Args:
            index: The position, from 0.

        Returns:
            A new error.
        """
        return InvalidEventError(self.detail, path=self.path, index=index)


class AuthenticationError(WindbackError):
    """401: the API key is missing, wrong or revoked."""


class SubscriptionExpiredError(WindbackError):
    """402: the Windback subscription has expired (docs page "Churn Events")."""


class PermissionDeniedError(WindbackError):
    """403: the key is of the wrong kind or of another project."""


class NotFoundError(WindbackError):
    """404: it does not exist, or report_cancel_reason found no open churn event."""


class ConflictError(WindbackError):
    """409: the state of the object does not allow this."""


class RateLimitError(WindbackError):
    """429: too many requests, and the requested pause would have passed the deadline."""


class ServerError(WindbackError):
    """5xx: the API or a gateway in front of it failed, on every try."""


class WindbackConnectionError(WindbackError):
    """There was no answer: the connection was refused or reset, a name was not found, or TLS failed."""


class WebhookError(WindbackError):
    """A webhook that must not be trusted; see `windback.webhooks`.

    Attributes:
        code: "missing_signature", "bad_signature", "too_old", "too_large" or "bad_payload".
        status: The HTTP status to answer with: 401, 413 or 400.
    """


class WindbackTimeoutError(WindbackConnectionError):
    """There was no answer within the deadline."""


_BY_STATUS: Dict[int, Type[WindbackError]] = {
    400: ValidationError,
    401: AuthenticationError,
    402: SubscriptionExpiredError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: ValidationError,
    415: ValidationError,
    422: ValidationError,
    429: RateLimitError,
}


def error_class(status: int) -> Type[WindbackError]:
    """Return the class for an HTTP status that is not a success.

    Args:
        status: The HTTP status.

    Returns:
        The class of the error.
    """
    return _BY_STATUS.get(status, ServerError if status >= 500 else WindbackError)
