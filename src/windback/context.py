"""The customer of a request or a job: `bind` sets it once, and `client.track` reads it.

The middleware of an integration opens a scope for each request; `bound` opens one for a job or a script.
A scope is a mutable object in a ContextVar, so callers see what a function changes in it.
A plain value in the ContextVar would not be seen where a framework runs that function in another thread
with a copy of the context.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections import deque
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Awaitable, Callable, Deque, Dict, List, Mapping, Optional, Union

from .event.encode import build, encode_built

logger = logging.getLogger("windback")

#: Finds the customer when the first event of a scope is tracked; None: nobody is logged in.
Resolver = Callable[[], Union[str, Awaitable[Optional[str]], None]]
CustomerSource = Union[str, Resolver, None]
#: Counts an exception of a hook; see `Hooks.failed`.
OnError = Callable[[str, BaseException], object]

#: The longest that an asynchronous resolver may take (seconds).
RESOLVE_S = 5.0


class Customer:
    """An email address, or a function that finds it, which is called once, by the first event that needs it.

    An event that is tracked while the address is looked up is queued here, and sent when it is known. `email`
    is the value that `track` reads. It is None until the address is known, and for an anonymous request.
    """

    __slots__ = ("_awaitables", "_is_known", "_on_error", "_resolvers", "_waiting", "email")

    def __init__(self, customer: CustomerSource) -> None:
        if not callable(customer):  # most requests need only this
            self.email: Optional[str] = customer
            self._is_known = True
            return
        self.email = None
        self._is_known = False
        self._resolvers: List[Resolver] = [customer]
        self._awaitables: List[Awaitable[Optional[str]]] = []
        self._waiting: Deque[Callable[[Optional[str]], object]] = deque()
        self._on_error: Optional[OnError] = None

    def resolve(self, on_error: OnError) -> bool:
        """Look the address up unless that was done. Returns False while it is not known yet."""
        if self._is_known:
            return True
        try:
            resolver = self._resolvers.pop()  # by one thread only
        except IndexError:
            return self._is_known
        self._on_error = on_error
        found: object = None
        try:
            found = resolver()
            if inspect.isawaitable(found):
                self._awaitables.append(found)
                return False
        except Exception as error:  # noqa: BLE001 - a user's function; it must not reach the request
            on_error("customer", error)
        self._finish(found)
        return True

    def wait(self, send: Callable[[Optional[str]], object]) -> None:
        """Call *send* with the address, or None, once that is known."""
        self._waiting.append(send)
        if self._is_known:  # it became known just now
            self._send_waiting()

    async def settle(self) -> None:
        """Await the address, if it must be awaited, and send the events that wait for it."""
        try:
            awaitable = self._awaitables.pop()
        except IndexError:
            return
        from .event_loops import move_on_after

        found: object = None
        try:
            with move_on_after(RESOLVE_S) as limit:
                found = await awaitable
            if limit.cancelled_caught:
                self._report(TimeoutError(f"it took longer than {RESOLVE_S:g} s"))
        except Exception as error:  # noqa: BLE001 - a user's function; it must not reach the request
            self._report(error)
        finally:
            self._finish(found)

    def give_up(self, why: str) -> None:
        """Refuse the events that wait: nothing can await the address here."""
        for awaitable in self._awaitables:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            self._report(TypeError(why))
        self._awaitables.clear()
        self._finish(None)

    def _finish(self, found: object) -> None:
        # A user without an address may have an empty one.
        if isinstance(found, str) and "@" in found:
            self.email = found
        elif found is not None and found != "":
            self._report(TypeError(f"an email address or None was expected, not {_shown(found)}"))
        self._is_known = True
        self._send_waiting()

    def _send_waiting(self) -> None:
        while True:
            try:
                send = self._waiting.popleft()
            except IndexError:
                return
            send(self.email)

    def _report(self, error: BaseException) -> None:
        if self._on_error is not None:
            self._on_error("customer", error)


NOBODY = Customer(None)


class Scope:
    """The bindings of one request or job. `track` reads `customer.email` and `properties`.

    unsettled: the customers whose address must be awaited, of this scope and of those inside it. The
    outermost scope awaits them. client: that of the integration that opened the scope.
    """

    __slots__ = ("client", "customer", "properties", "unsettled")

    client: object
    customer: Customer
    #: Replaced, never changed: another thread may be reading it.
    properties: Dict[str, object]
    unsettled: Deque[Customer]

    def __init__(
        self, customer: CustomerSource = None, outer: Optional[Scope] = None, client: object = None
    ) -> None:
        if outer is None:
            self.client, self.customer = client, Customer(customer)
            self.properties, self.unsettled = {}, deque()
        else:
            self.client = client or outer.client
            self.customer = outer.customer if customer is None else Customer(customer)
            self.properties = outer.properties
            self.unsettled = outer.unsettled

    def bind(self, customer: CustomerSource, properties: Mapping[str, object]) -> None:
        """Add bindings; later values replace earlier ones."""
        if customer is not None:
            self.customer = Customer(customer)
        if properties:
            self.properties = {**self.properties, **properties}

    def clear(self) -> None:
        """Forget the customer and the properties."""
        self.customer = NOBODY
        self.properties = {}

    async def find_email(self, on_error: OnError) -> Optional[str]:
        """Return the customer's address. Look it up and await it first if necessary."""
        customer = self.customer
        if customer.email is None and not customer.resolve(on_error):
            await customer.settle()
        return customer.email

    async def settle(self) -> None:
        """Await the addresses that events wait for, and send these."""
        while self.unsettled:
            await self.unsettled.popleft().settle()

    def give_up(self, why: str) -> None:
        """Refuse the events whose customer nothing can await."""
        while self.unsettled:
            self.unsettled.popleft().give_up(why)


if TYPE_CHECKING:
    ScopeToken = Token[Optional[Scope]]
else:  # on Python 3.8 a Token takes no type
    ScopeToken = Token

_current: ContextVar[Optional[Scope]] = ContextVar("windback.scope", default=None)

#: Return the scope of this request or job; None outside of any.
current = _current.get


def open_scope(scope: Scope) -> ScopeToken:
    """Make *scope* the current one. Returns a token for `close_scope`."""
    return _current.set(scope)


def close_scope(token: ScopeToken) -> None:
    """Return to the previous scope. Does nothing if that was in another context, which no longer exists."""
    try:
        _current.reset(token)
    except ValueError:
        logger.debug("a scope was closed in another context than the one that it was opened in")


def bind(*, customer_email: CustomerSource = None, **properties: object) -> bool:
    """Set the customer of the current request or job, and properties that all its events share.

    `client.track` reads them. Earlier bindings remain unless they are set again.

    Args:
        customer_email: The address; or a function without arguments that returns it, or None for nobody. The
            first event calls it, once. It may be async where a middleware of windback or
            `async with bound(...)` opened the scope.
        properties: Added to the properties of each event. Those of the call override them.

    Returns:
        Whether there is a scope: False outside of a request and of `bound`.

    Raises:
        InvalidEventError: The address or a property can't be sent.
    """
    _check(customer_email, properties)
    scope = _current.get()
    if scope is None:
        logger.debug(
            "windback.context.bind was called outside of a scope: nothing is bound; "
            "a middleware of windback opens one for each request, `bound` for a job"
        )
        return False
    scope.bind(customer_email, properties)
    return True


def bound(*, customer_email: CustomerSource = None, **properties: object) -> Bound:
    """Open a scope for a job or a script: a context manager for `with` and `async with`.

    Bindings from outside are valid inside. Bindings made inside are forgotten at the end.

    Args:
        customer_email: See `bind`.
        properties: See `bind`.

    Returns:
        A context manager, which can be used once.

    Raises:
        InvalidEventError: The address or a property can't be sent.
    """
    _check(customer_email, properties)
    return Bound(customer_email, properties)


def clear() -> None:
    """Forget the bindings of the current scope, as after a log-out. Does nothing outside of a scope."""
    scope = _current.get()
    if scope is not None:
        scope.clear()


class Bound:
    """A scope that is open while the `with` block runs; see `bound`."""

    def __init__(self, customer: CustomerSource, properties: Dict[str, object]) -> None:
        self._customer = customer
        self._properties = properties
        self._opened: List[ScopeToken] = []
        #: Set if it is the outermost one.
        self._outermost: Optional[Scope] = None

    def __enter__(self) -> None:
        outer = _current.get()
        scope = Scope(self._customer, outer)
        scope.bind(None, self._properties)
        if outer is None:
            self._outermost = scope
        self._opened.append(open_scope(scope))

    def __exit__(self, *_: object) -> None:
        close_scope(self._opened.pop())
        if self._outermost is not None:
            self._outermost.give_up("an async function needs `async with bound(...)`")

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        close_scope(self._opened.pop())
        if self._outermost is not None:
            await self._outermost.settle()


def _check(customer: object, properties: Mapping[str, object]) -> None:
    email = "@" if customer is None or callable(customer) else customer
    encode_built(build("bind", email, properties, None), sys.maxsize)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return "a text without an @"
    return repr(value) if isinstance(value, (int, float)) else f"a {type(value).__name__}"
