"""Faults on demand: a list of rules, and what they do to one request. No socket, no sleep; the gateway acts.

Rules are checked in order. A rule applies to a request if all its conditions match, its random choice hits
and it is not spent. Delays of all rules that apply add up; the first with another effect ends the search.
"""

from __future__ import annotations

import random
import re
from typing import (
    Callable,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Set,
    Tuple,
    Union,
    cast,
)

from .clock import iso
from .errors import ApiError, error_body, expired, not_found, over_limit, too_large, unsupported_encoding
from .labels import inbox_named
from .query import like

_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110, section 5.6.2
_WITH_STATUS = ("retry_after", "headers", "body", "content_type")


class Reply(NamedTuple):
    """Answer this and do not process the request."""

    status: int
    headers: Dict[str, str]
    body: bytes


class Cancellable(Protocol):
    """Somebody's waiting."""

    def cancel(self) -> object:
        """End it."""
        ...


class Drop(NamedTuple):
    """Close the connection without an answer, before the request is processed or after it."""

    after: bool


class Hang(NamedTuple):
    """Take the request and never answer."""


#: Every request looks at each rule.
MAX_RULES = 1_000


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


class Answer(NamedTuple):
    """Process the request and spoil the answer: "truncated" or "malformed", or *drip_s* long."""

    spoilt: str
    drip_s: float = 0.0


Effect = Union[Reply, Drop, Hang, Answer]


class Probe(Protocol):
    """What a rule asks of a request."""

    method: str
    inbox: Optional[str]
    body_bytes: int
    request_id: str

    @property
    def path(self) -> str:
        """Below the base path."""
        ...

    @property
    def is_gzip(self) -> bool:
        """Whether the body is compressed, by its header."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """The events in the body."""
        ...


class Decision(NamedTuple):
    """What happens to one request."""

    #: Seconds to wait, and for which rule.
    delays: List[Tuple[Rule, float]]
    effect: Optional[Effect]
    #: Whose effect it is; without one, the last that applied.
    rule: Optional[Rule]
    #: How the log names it, or "" when no rule applied.
    label: str


class Rule:
    """One rule with its random numbers and counters, from *spec*.

    Raises `ApiError` 400, which names *place* and field, for a rule that makes no sense. *now*: seconds of a
    steady clock, from which `until` counts.
    """

    def __init__(self, spec: object, place: str, number: int, now: float) -> None:
        fields = _object(spec, place)
        unknown = sorted(set(fields) - _KEYS)
        if unknown:
            raise _bad(f"{place}.{unknown[0]}", "is not known; known are " + ", ".join(sorted(_KEYS)))
        if "key" in fields:
            fields = {**fields, "key": inbox_named(_text(fields, "key", place) or "")}
        self.spec = fields
        self.id = f"fault_{number}"
        self.hits = 0
        self.last_request_id: Optional[str] = None
        #: Whether it is still in force; who waits because of it stops waiting then.
        self.in_force = True
        self.waiting: Set[Cancellable] = set()
        self.enabled = _flag(fields, "enabled", place, default=True)
        path = _text(fields, "path", place) or "/"
        if not path.startswith("/"):
            raise _bad(f"{place}.path", "must start with a slash")
        self._path = path
        method = _text(fields, "method", place)
        self._method = method.upper() if method else None
        self._inbox = cast("Optional[str]", fields.get("key"))
        name = _text(fields, "event", place)
        self._is_event = like(name, fold=False) if name else None
        _text(fields, "name", place)
        self._rate = _number(fields, "rate", place, 0, 1, default=1.0)
        self._times = _whole(fields, "times", place, 1)
        self._every = _whole(fields, "every", place, 1)
        self._matched = 0
        until_s = _number(fields, "until", place, 0, 86_400, default=0.0)
        self.ends_at = now + until_s if "until" in fields else None
        above = _number(fields, "above", place, 0.001, 1e6, default=1.0)
        self._within = Bucket(above, max(1.0, above)) if "above" in fields else None
        seed = fields.get("seed")
        if seed is not None and type(seed) is not int:
            raise _bad(f"{place}.seed", "must be a whole number")
        self._dice = random.Random(seed)
        self._latency_s = _number(fields, "latency", place, 0, 3600, default=0.0)
        self._jitter_s = _number(fields, "jitter", place, 0, 3600, default=0.0)
        self.effect = _effect(fields, place)
        if self.effect is None and not self._latency_s and not self._jitter_s:
            raise _bad(place, "needs an effect: latency, " + ", ".join(_EFFECTS))
        self._max_bytes = cast("Optional[int]", fields.get("max_bytes"))
        self._only_gzip = "refuse_gzip" in fields

    def applies(self, probe: Probe, now: float) -> bool:
        """Whether this rule hits the request. It counts and draws a random number, so call it once."""
        if not self.enabled or self.is_spent(now) or not self._matches(probe):
            return False
        self._matched += 1
        if self._every is not None and self._matched % self._every:
            return False
        if self._within is not None and self._within.take(now) is None:
            return False
        return self._rate >= 1 or self._dice.random() < self._rate

    def is_spent(self, now: float) -> bool:
        """Whether it has done all that it was to do."""
        return (self._times is not None and self.hits >= self._times) or (
            self.ends_at is not None and now >= self.ends_at
        )

    def _matches(self, probe: Probe) -> bool:
        return (
            probe.path.startswith(self._path)
            and self._method in (None, probe.method)
            and self._inbox in (None, probe.inbox)
            and not (self._only_gzip and not probe.is_gzip)
            and not (self._max_bytes is not None and probe.body_bytes <= self._max_bytes)
            and (self._is_event is None or any(map(self._is_event, probe.names)))
        )

    def strike(self, probe: Probe) -> float:
        """Count that it does something to a request; the seconds that it delays it by."""
        self.hits += 1
        self.last_request_id = probe.request_id
        if not self._jitter_s:
            return self._latency_s
        return max(0.0, self._latency_s + self._dice.uniform(-self._jitter_s, self._jitter_s))

    def end(self) -> None:
        """Not in force any more: who waits because of it goes on."""
        self.in_force = False
        for each in list(self.waiting):
            each.cancel()

    @property
    def delays(self) -> bool:
        """Whether it takes time."""
        return bool(self._latency_s or self._jitter_s)

    def describe(self, now: float, wall: float) -> Dict[str, object]:
        """The rule as it was given, and what it did; *now* and *wall*: the time of both clocks."""
        return {
            **self.spec,
            "id": self.id,
            "enabled": self.enabled,
            "hits": self.hits,
            "last_request_id": self.last_request_id,
            "ends_at": None if self.ends_at is None else iso(wall + self.ends_at - now),
            "spent": self.is_spent(now),
        }


class Faults:
    """The rules in force. The clock is the caller's: seconds of a steady one."""

    def __init__(self) -> None:
        self.rules: List[Rule] = []
        #: Goes up with every change and every hit.
        self.changes = 0
        self._number = 0

    def _made(self, spec: object, place: str, now: float) -> Rule:
        self._number += 1
        return Rule(spec, place, self._number, now)

    def replace(self, specs: object, now: float, inbox: Optional[str] = None) -> None:
        """Put new rules in force, or raise `ApiError` 400 and keep the old ones; of one *inbox*, if given."""
        if not isinstance(specs, list):
            raise _bad("faults", "must be a list of rules")
        listed = cast("List[object]", specs)
        if inbox is not None:
            listed = [
                {**cast("Dict[str, object]", spec), "key": inbox} if type(spec) is dict else spec
                for spec in listed
            ]
        if len(listed) > MAX_RULES:
            raise _bad("faults", f"there are at most {MAX_RULES:,} rules")
        rules = [self._made(spec, f"faults[{index}]", now) for index, spec in enumerate(listed)]
        self.clear(inbox)
        self.rules += rules

    def add(self, spec: object, now: float) -> Rule:
        """Put one more rule in force, or raise `ApiError` 400."""
        if len(self.rules) >= MAX_RULES:
            raise _bad("fault", f"there are {MAX_RULES:,} rules already; DELETE some first")
        rule = self._made(spec, "fault", now)
        self.rules.append(rule)
        self.changes += 1
        return rule

    def change(self, rule_id: str, changes: object, now: float) -> Rule:
        """Change some fields of a rule, which starts afresh but for its hits; None takes a field away."""
        old = self._get(rule_id)
        spec = {**old.spec, **_object(changes, "fault")}
        new = Rule({name: value for name, value in spec.items() if value is not None}, "fault", 0, now)
        new.id, new.hits, new.last_request_id = old.id, old.hits, old.last_request_id
        self.rules[self.rules.index(old)] = new
        self.changes += 1
        old.end()
        return new

    def remove(self, rule_id: str) -> None:
        """End one rule; raises `ApiError` 404."""
        rule = self._get(rule_id)
        self.rules.remove(rule)
        self.changes += 1
        rule.end()

    def clear(self, inbox: Optional[str] = None) -> None:
        """No faults from now on; those of one *inbox*, if given."""
        ended = [rule for rule in self.rules if inbox in (None, rule.spec.get("key"))]
        self.rules = [rule for rule in self.rules if rule not in ended]
        self.changes += 1
        for rule in ended:
            rule.end()

    def _get(self, rule_id: str) -> Rule:
        for rule in self.rules:
            if rule.id == rule_id:
                return rule
        raise not_found("fault rule")

    def describe(self, now: float, wall: float, inbox: Optional[str] = None) -> List[Dict[str, object]]:
        """All rules as JSON; without those that can hit only others than *inbox*, if given."""
        return [
            rule.describe(now, wall)
            for rule in self.rules
            if inbox is None or rule.spec.get("key") in (None, inbox)
        ]

    def decide(self, probe: Probe, now: float) -> Decision:
        """What happens to a request at *now*."""
        delays: List[Tuple[Rule, float]] = []
        labels: List[str] = []
        last: Optional[Rule] = None
        for rule in self.rules:
            if not rule.applies(probe, now):
                continue
            effect: Optional[Effect]
            if isinstance(rule.effect, Bucket):
                wait_s = rule.effect.take(now)
                effect = None if wait_s is None else _over_limit(wait_s)
                if effect is None and not rule.delays:
                    continue
            else:
                effect = rule.effect
            delay_s = rule.strike(probe)
            self.changes += 1
            last = rule
            if rule.delays:
                delays.append((rule, delay_s))
                labels.append("latency")
            if effect is not None:
                labels.append(_label(effect))
                return Decision(delays, effect, rule, "+".join(labels))
        return Decision(delays, None, last, "+".join(labels))


def _label(effect: Effect) -> str:
    if isinstance(effect, Reply):
        return f"status {effect.status}"
    if isinstance(effect, Drop):
        return "drop after" if effect.after else "drop before"
    return effect.spoilt if isinstance(effect, Answer) else "hang"


def _over_limit(wait_s: float) -> Reply:
    return _refusal(over_limit(wait_s))


def _effect(fields: Mapping[str, object], place: str) -> Union[Effect, Bucket, None]:
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
    _true(fields, "hang", place)
    return Hang()


def _answer(fields: Mapping[str, object], place: str) -> Answer:
    if fields["answer"] not in ("truncated", "malformed"):
        raise _bad(f"{place}.answer", 'must be "truncated" or "malformed"')
    return Answer(str(fields["answer"]))


def _drip(fields: Mapping[str, object], place: str) -> Answer:
    return Answer("drip", _number(fields, "drip", place, 0, 3600, default=0.0))


def _expired(fields: Mapping[str, object], place: str) -> Reply:
    _true(fields, "expired", place)
    return _refusal(expired())


def _refuse_gzip(fields: Mapping[str, object], place: str) -> Reply:
    _true(fields, "refuse_gzip", place)
    return _refusal(unsupported_encoding("gzip"))


def _max_bytes(fields: Mapping[str, object], place: str) -> Reply:
    limit = _whole(fields, "max_bytes", place, 0)
    if limit is None:
        raise _bad(f"{place}.max_bytes", "must be a whole number, at least 0")
    return _refusal(too_large(limit))


def _redirect(fields: Mapping[str, object], place: str) -> Reply:
    return Reply(307, {"location": _header_value(fields["redirect"], f"{place}.redirect")}, b"")


def _true(fields: Mapping[str, object], name: str, place: str) -> None:
    if fields[name] is not True:
        raise _bad(f"{place}.{name}", "must be true")


def _refusal(error: ApiError) -> Reply:
    headers = {"content-type": "application/json", **error.headers}
    return Reply(error.status, headers, error_body(error.code, error.message))


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
            raise _bad(f"{place}.headers.{name}", "must be a header that can be set")
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


_EFFECTS: Dict[str, Callable[[Mapping[str, object], str], Union[Effect, Bucket]]] = {
    "status": _reply,
    "drop": _drop,
    "rate_limit": _bucket,
    "hang": _hang,
    "answer": _answer,
    "drip": _drip,
    "refuse_gzip": _refuse_gzip,
    "redirect": _redirect,
    "expired": _expired,
    "max_bytes": _max_bytes,
}
_KEYS = frozenset(
    {
        *("path", "method", "event", "key"),
        *("rate", "seed", "times", "every", "until", "above"),
        *("latency", "jitter", "name", "enabled"),
        *_WITH_STATUS,
        *_EFFECTS,
    }
)


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


def _flag(fields: Mapping[str, object], name: str, place: str, *, default: bool) -> bool:
    value = fields.get(name, default)
    if type(value) is not bool:
        raise _bad(f"{place}.{name}", "must be true or false")
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
