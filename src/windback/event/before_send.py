"""before_send: a user's function between an event and its bytes. It must not hurt the application."""

from __future__ import annotations

import logging
from typing import Callable, Dict, List, Mapping, Optional

from ..errors import InvalidEventError
from .encode import BeforeSend, Properties, Timestamp, build, check_fields, dict_of, encode_built

logger = logging.getLogger("windback")

#: After so many dropped events, if no event was ever returned, there is one warning.
_FIRST_DROPS = 10


class HookedEncoder:
    """Encodes like `event.encode`, with before_send in between; returns None for an event it refused.

    A hook that raises, or returns an event that can't be sent, refuses the event: the hook may be there to
    remove something, so sending the event as it was could give away what it should have kept.
    """

    def __init__(
        self,
        before_send: BeforeSend,
        refuse: Callable[[str], object],
        count_error: Callable[[str, BaseException], object],
    ) -> None:
        self._before_send = before_send
        self._refuse = refuse
        self._count_error = count_error
        #: An item for each event that may be dropped before a WARNING; empty after an event was returned.
        self._drops_left: List[None] = [None] * _FIRST_DROPS

    def encode(
        self,
        event: str,
        customer_email: str,
        properties: Optional[Properties],
        timestamp: Optional[Timestamp],
        max_event_bytes: int,
    ) -> Optional[bytes]:
        """Return the event's bytes, or None. Raises InvalidEventError if the caller's event can't be sent."""
        built = build(event, customer_email, properties, timestamp)
        try:
            wanted = self._before_send(_copied(built, max_event_bytes))
            if wanted is None:
                self._refuse("before_send")
                self._look_for_return()
                return None
            self._drops_left.clear()
            return encode_built(_rebuild(wanted), max_event_bytes)
        except Exception as error:  # noqa: BLE001 - whatever the hook raises must not reach the app
            encode_built(built, max_event_bytes)  # was it the caller's event that can't be encoded?
            self._refuse("before_send_error")
            self._count_error("before_send", error)
            return None

    def _look_for_return(self) -> None:
        """Warn once about a hook that has returned no event yet, and seems to lack a `return`.

        That is certain if it has no `return` with a value. Else it may drop these events on purpose, so it is
        logged only after some.
        """
        left = len(self._drops_left)
        if left == 0:
            return
        if left == _FIRST_DROPS and _lacks_return(self._before_send):
            self._drops_left.clear()
            reason = "has no `return event`, so it drops every event"
        elif left == 1:
            self._drops_left.clear()
            reason = f"dropped each of the first {_FIRST_DROPS} events; is a `return event` missing in it?"
        else:
            self._drops_left.pop()
            return
        logger.warning("before_send %s (counted in stats().refused['before_send'])", reason)


def _lacks_return(hook: object) -> bool:
    """Whether the source of *hook* has no `return` with a value; False where it can't be read."""
    import ast
    import inspect
    import textwrap

    code = getattr(hook, "__code__", None) or getattr(type(hook).__call__, "__code__", None)
    if code is None or code.co_name == "<lambda>":
        return False
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(code))).body
    except (OSError, TypeError, ValueError, SyntaxError):  # made by `exec`, or changed on disk
        return False
    if not isinstance(function, ast.FunctionDef):
        return False
    nodes: List[ast.AST] = list(function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            continue  # its returns are its own
        if isinstance(node, (ast.Yield, ast.YieldFrom)) or (
            isinstance(node, ast.Return) and node.value is not None
        ):
            return False
        nodes += ast.iter_child_nodes(node)
    return True


def _copied(built: Dict[str, object], most: int) -> Dict[str, object]:
    """Return a copy that the hook may change at any depth. most: how many properties there may be."""
    copy = dict(built)
    properties = built.get("properties")
    if isinstance(properties, Mapping):
        found = dict(properties) if isinstance(properties, dict) else dict_of(properties, most + 1)
        copy["properties"] = _copy_of(found, {})
    return copy


def _copy_of(value: object, copies: Dict[int, object]) -> object:
    """Copy dicts, lists, tuples and sets; other objects are shared. copies: by the id of what was copied."""
    if type(value) not in (dict, list, tuple, set):
        return value
    known = copies.get(id(value))
    if known is not None:
        return known  # an object that is in it twice, or in itself
    if isinstance(value, dict):
        made: Dict[object, object] = {}
        copies[id(value)] = made
        made.update((name, _copy_of(item, copies)) for name, item in value.items())
        return made
    if isinstance(value, list):
        items: List[object] = []
        copies[id(value)] = items
        items.extend(_copy_of(item, copies) for item in value)
        return items
    if isinstance(value, tuple):
        return copies.setdefault(id(value), tuple([_copy_of(item, copies) for item in value]))
    return copies.setdefault(id(value), set(value))  # type: ignore[call-overload]


def _rebuild(wanted: object) -> Dict[str, object]:
    if not isinstance(wanted, Mapping):
        raise InvalidEventError(
            f"before_send must return an event or None, not a {type(wanted).__name__}", path=""
        )
    fields = check_fields(wanted)
    return build(
        fields.get("event"), fields.get("customer_email"), fields.get("properties"), fields.get("timestamp")
    )
