"""Faults on demand: a list of rules, and what they do to one request. No socket, no sleep; the gateway acts.

Rules are asked in their order. A rule applies to a request when path and method match, its dice say so and it
has `times` left. Latencies of all rules that apply add up; the first rule with another effect ends the
search.
"""

from __future__ import annotations

import random
import re
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Union, cast

from .errors import ApiError, error_body, over_limit

_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110, section 5.6.2
_WITH_STATUS = ("retry_after", "headers", "body", "content_type")


class Reply(NamedTuple):
    """Answer this and do not process the request."""

    status: int
    headers: Dict[str, str]
    body: bytes


class Drop(NamedTuple):
    """Close the connection without an answer, before the request is processed or after it."""

    after: bool


class Hang(NamedTuple):
    """Take the request and never answer."""


class Bucket:
    """A token bucket: *rate* tokens a second, at most *burst* of them, full at the start."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at: Optional[float] = None

    def take(self, now: float) -> Optional[float]:
        """Take a token and answer None, or answer the seconds until the next one."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return None
        return (1 - self._tokens) / self._rate


class Decision(NamedTuple):
    """What happens to one request."""

    latency_s: float
    effect: Union[Reply, Drop, Hang, None]
    #: How the log names it, or "" when no rule applied.
    label: str


class Rule:
    """One rule with its dice and counters, from *spec*.

    Raises `ApiError` 400, which names *place* and field, for a rule that makes no sense.
    """

    def __init__(self, spec: object, place: str) -> None:
        fields = _object(spec, place)
        unknown = sorted(set(fields) - _KEYS)
        if unknown:
            raise _bad(f"{place}.{unknown[0]}", "is not known; known are " + ", ".join(sorted(_KEYS)))
        self.spec = fields
        self.fired = 0
        path = _text(fields, "path", place) or "/"
        if not path.startswith("/"):
            raise _bad(f"{place}.path", "must start with a slash")
        self.path = path
        method = _text(fields, "method", place)
        self.method = method.upper() if method else None
        self.rate = _number(fields, "rate", place, 0, 1, default=1.0)
        self.times = _whole(fields, "times", place, 1)
        seed = fields.get("seed")
        if seed is not None and type(seed) is not int:
            raise _bad(f"{place}.seed", "must be a whole number")
        self._dice = random.Random(seed)
        self.latency_s = _number(fields, "latency", place, 0, 3600, default=0.0)
        self.effect = _effect(fields, place)
        if self.effect is None and not self.latency_s:
            raise _bad(place, "needs an effect: latency, " + ", ".join(_EFFECTS))

    def applies(self, method: str, path: str) -> bool:
        """Whether this rule wants the request; rolls the dice, so ask once."""
        if self.times is not None and self.fired >= self.times:
            return False
        if not path.startswith(self.path) or self.method not in (None, method):
            return False
        return self.rate >= 1 or self._dice.random() < self.rate

    def describe(self) -> Dict[str, object]:
        """The rule as it was given, and how often it did something."""
        return {**self.spec, "fired": self.fired}


class Faults:
    """The rules in force."""

    def __init__(self) -> None:
        self.rules: List[Rule] = []

    def replace(self, specs: object) -> None:
        """Put new rules in force, or raise `ApiError` 400 and keep the old ones."""
        if not isinstance(specs, list):
            raise _bad("faults", "must be a list of rules")
        listed = cast("List[object]", specs)
        self.rules = [Rule(spec, f"faults[{index}]") for index, spec in enumerate(listed)]

    def clear(self) -> None:
        """No faults from now on."""
        self.rules = []

    def decide(self, method: str, path: str, now: float) -> Decision:
        """What happens to a request for *path* (below the base path) at *now*, seconds of a steady clock."""
        latency_s = 0.0
        labels: List[str] = []
        for rule in self.rules:
            if not rule.applies(method, path):
                continue
            effect: Union[Reply, Drop, Hang, None]
            if isinstance(rule.effect, Bucket):
                wait_s = rule.effect.take(now)
                effect = None if wait_s is None else _over_limit(wait_s)
                if effect is None and not rule.latency_s:
                    continue
            else:
                effect = rule.effect
            rule.fired += 1
            latency_s += rule.latency_s
            if rule.latency_s:
                labels.append("latency")
            if effect is not None:
                labels.append(_label(effect))
                return Decision(latency_s, effect, "+".join(labels))
        return Decision(latency_s, None, "+".join(labels))


def _label(effect: Union[Reply, Drop, Hang]) -> str:
    if isinstance(effect, Reply):
        return f"status {effect.status}"
    if isinstance(effect, Drop):
        return "drop after" if effect.after else "drop before"
    return "hang"


def _over_limit(wait_s: float) -> Reply:
    error = over_limit(wait_s)
    headers = {"content-type": "application/json", **error.headers}
    return Reply(error.status, headers, error_body(error.code, error.message))


def _effect(fields: Mapping[str, object], place: str) -> Union[Reply, Drop, Hang, Bucket, None]:
    given = [name for name in _EFFECTS if name in fields]
    if len(given) > 1:
        raise _bad(place, "has more than one effect: " + ", ".join(given))
    lonely = [name for name in _WITH_STATUS if name in fields and "status" not in fields]
    if lonely:
        raise _bad(f"{place}.{lonely[0]}", "needs a status")
    return _EFFECTS[given[0]](fields, place) if given else None


def _drop(fields: Mapping[str, object], place: str) -> Drop:
    if fields["drop"] not in ("before", "after"):
        raise _bad(f"{place}.drop", 'must be "before" or "after"')
    return Drop(after=fields["drop"] == "after")


def _hang(fields: Mapping[str, object], place: str) -> Hang:
    if fields["hang"] is not True:
        raise _bad(f"{place}.hang", "must be true")
    return Hang()


def _bucket(fields: Mapping[str, object], place: str) -> Bucket:
    limit = _object(fields["rate_limit"], f"{place}.rate_limit")
    if set(limit) != {"rate", "burst"}:
        raise _bad(f"{place}.rate_limit", "needs rate (a second) and burst, and nothing else")
    return Bucket(
        _number(limit, "rate", f"{place}.rate_limit", 0.001, 1e6, default=1.0),
        _number(limit, "burst", f"{place}.rate_limit", 1, 1e6, default=1.0),
    )


def _reply(fields: Mapping[str, object], place: str) -> Reply:
    status = _whole(fields, "status", place, 200)
    if status is None or status > 599:
        raise _bad(f"{place}.status", "must be a whole number from 200 to 599")
    body = _text(fields, "body", place)
    headers = {"content-type": "application/json" if body is None else "text/plain; charset=utf-8"}
    for name, value in _object(fields.get("headers", {}), f"{place}.headers").items():
        # The length is what the body has; another one would break the connection in some random way.
        if not _token(name) or name.lower() in ("content-length", "transfer-encoding"):
            raise _bad(f"{place}.headers.{name}", "is no header that can be set")
        headers[name.lower()] = _header_value(value, f"{place}.headers.{name}")
    if "content_type" in fields:
        headers["content-type"] = _header_value(fields["content_type"], f"{place}.content_type")
    if "retry_after" in fields:
        retry_after = fields["retry_after"]
        seconds = str(retry_after) if type(retry_after) in (int, float) else retry_after
        headers["retry-after"] = _header_value(seconds, f"{place}.retry_after")
    if body is None:
        return Reply(status, headers, error_body("FAULT", f"fault: status {status}"))
    return Reply(status, headers, body.encode())


def _header_value(value: object, place: str) -> str:
    if type(value) is not str or not value.isascii() or not value.isprintable():
        raise _bad(place, "must be printable ASCII text")
    return value


_EFFECTS: Dict[str, Callable[[Mapping[str, object], str], Union[Reply, Drop, Hang, Bucket]]] = {
    "status": _reply,
    "drop": _drop,
    "rate_limit": _bucket,
    "hang": _hang,
}
_KEYS = frozenset({"path", "method", "rate", "seed", "times", "latency", *_WITH_STATUS, *_EFFECTS})


def _bad(place: str, problem: str) -> ApiError:
    return ApiError(400, "INVALID_FAULT", f"{place}: {problem}")


def _object(value: object, place: str) -> Dict[str, object]:
    if not isinstance(value, dict):
        raise _bad(place, "must be an object")
    return cast("Dict[str, object]", value)


def _text(fields: Mapping[str, object], name: str, place: str) -> Optional[str]:
    value = fields.get(name)
    if value is not None and type(value) is not str:
        raise _bad(f"{place}.{name}", "must be a string")
    return value


def _number(
    fields: Mapping[str, object], name: str, place: str, low: float, high: float, *, default: float
) -> float:
    value = fields.get(name, default)
    if (type(value) is not int and type(value) is not float) or not low <= value <= high:
        raise _bad(f"{place}.{name}", f"must be a number from {low:g} to {high:g}")
    return float(value)


def _whole(fields: Mapping[str, object], name: str, place: str, low: int) -> Optional[int]:
    value = fields.get(name)
    if value is not None and (type(value) is not int or value < low):
        raise _bad(f"{place}.{name}", f"must be a whole number, at least {low}")
    return value
