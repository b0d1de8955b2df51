"""Errors carry what a caller acts on, and survive pickling and copying."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle

import pytest

import windback
from windback import errors
from windback.errors import InvalidEventError, WindbackError, error_class

KINDS = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, WindbackError)]
FIELDS = {"status": 429, "code": "RATE_LIMITED", "request_id": "req_1", "retry_after": 2.5}


def pickled(error, *, protocol):
    return pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own


def make(kind):
    if kind is InvalidEventError:
        return kind("is empty", path="event", index=3)
    return kind("slow down", **FIELDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "again",
    [
        functools.partial(pickled, protocol=0),
        functools.partial(pickled, protocol=4),
        copy.copy,
        copy.deepcopy,
    ],
    ids=["pickle 0", "pickle 4", "copy", "deepcopy"],
)
def test_an_error_survives(kind, again):
    error = make(kind)
    other = again(error)
    assert type(other) is kind
    assert other is not error
    assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_public_and_caught_by_the_root(kind):
    assert getattr(windback, kind.__name__) is kind
    with pytest.raises(WindbackError):
        raise make(kind)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, windback.ValidationError),
        (401, windback.AuthenticationError),
        (402, windback.SubscriptionExpiredError),
        (403, windback.PermissionDeniedError),
        (404, windback.NotFoundError),
        (409, windback.ConflictError),
        (413, windback.ValidationError),
        (415, windback.ValidationError),
        (422, windback.ValidationError),
        (429, windback.RateLimitError),
        (500, windback.ServerError),
        (503, windback.ServerError),
        (599, windback.ServerError),
        (418, WindbackError),
        (302, WindbackError),
    ],
)
def test_a_status_has_its_class(status, kind):
    assert error_class(status) is kind


def test_the_text_starts_with_status_and_code_where_there_are_any():
    assert str(WindbackError("no")) == "no"
    assert str(WindbackError("no", status=401)) == "401: no"
    assert str(WindbackError("no", status=401, code="INVALID_API_KEY")) == "401 INVALID_API_KEY: no"
    assert str(WindbackError("no", code="INVALID_API_KEY")) == "INVALID_API_KEY: no"


def test_an_error_has_the_documented_attributes():
    error = make(windback.RateLimitError)
    assert (error.status, error.message, error.code) == (429, "slow down", "RATE_LIMITED")
    assert (error.request_id, error.retry_after) == ("req_1", 2.5)
    bare = WindbackError("no")
    assert (bare.status, bare.code, bare.request_id, bare.retry_after) == (None, None, None, None)


def test_an_invalid_event_reports_where():
    error = InvalidEventError("is empty", path="event")
    assert (str(error), error.path, error.index) == ("INVALID_EVENT: event: is empty", "event", None)
    third = error.at(2)
    assert (str(third), third.path, third.index) == ("INVALID_EVENT: events[2].event: is empty", "event", 2)
    whole = InvalidEventError("is no mapping", path="").at(4)
    assert str(whole) == "INVALID_EVENT: events[4]: is no mapping"


@pytest.mark.parametrize("kind", [windback.ConfigurationError, windback.ValidationError, InvalidEventError])
def test_what_is_a_bad_value_is_a_value_error(kind):
    assert issubclass(kind, ValueError)


def test_a_timeout_is_a_connection_error():
    assert issubclass(windback.WindbackTimeoutError, windback.WindbackConnectionError)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_tree_in_the_docstring_names_every_error(kind):
    assert f"{kind.__name__} " in errors.__doc__
