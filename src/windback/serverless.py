"""Lambda, Cloud Functions, Azure Functions: deliver what a handler tracked before its answer leaves.

After the answer the process is frozen, so no worker runs until the next invocation.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from typing import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Dict,
    Generator,
    List,
    Mapping,
    Tuple,
    TypeVar,
    Union,
    cast,
    overload,
)
from weakref import WeakKeyDictionary

from . import clock
from .client import AsyncWindback, Windback
from .errors import ConfigurationError
from .options import naming_options
from .process import lifecycle
from .stats import FlushResult, Stats
from .wording import with_article

logger = logging.getLogger("windback")

_Items = Generator[object, object, object]
Function = TypeVar("Function", bound=Callable[..., object])

#: The longest flush (seconds) of a client whose last one delivered nothing: the wait for an outage is billed.
_OUTAGE_S = 0.1


@overload
def flush_after(client: Function) -> Function: ...


@overload
def flush_after(
    client: Union[Windback, AsyncWindback, None] = None, *, timeout: float = 2.0, margin: float = 0.5
) -> Callable[[Function], Function]: ...


@naming_options
def flush_after(
    client: Union[Windback, AsyncWindback, Function, None] = None,
    *,
    timeout: float = 2.0,
    margin: float = 0.5,
) -> Union[Function, Callable[[Function], Function]]:
    """Decorate a handler so that each invocation ends with a flush, also one that raises.

    Use it as `@flush_after`, or as `@flush_after(...)` with arguments. The handler may be a function, an
    async function or a generator, sync or async, with any arguments. Its result, its exceptions and its
    signature stay as they are. Events that are not delivered stay queued for the next invocation of this
    process, with one WARNING that has the reason. After a flush that delivered nothing, the next ones take at
    most 0.1 s, until something is delivered.

    Args:
        client: The client to flush, sync or async. None: all clients of this process.
        timeout: Seconds that the flush may take.
        margin: Seconds before the end of the invocation by which the flush is over. It counts where an
            argument of the handler has `get_remaining_time_in_millis`, as Lambda's context has.

    Returns:
        The decorated handler, or a decorator.

    Raises:
        ConfigurationError: A number is negative, or what is decorated is not a function.
    """
    for name, value in (("timeout", timeout), ("margin", margin)):
        if not _is_duration(value):
            raise ConfigurationError(f"{name} is a number of seconds and not negative, not {value!r}")
    if client is None or isinstance(client, (Windback, AsyncWindback)):
        return _After(client, timeout, margin).decorate
    return _After(None, timeout, margin).decorate(client)


class _After:
    """What one decorator was given."""

    def __init__(self, client: Union[Windback, AsyncWindback, None], timeout: float, margin: float) -> None:
        self._client = client
        self._timeout = timeout
        self._margin = margin

    def decorate(self, handler: Function) -> Function:
        """Return *handler* with a flush at its end, as a function of the same kind."""
        _check_function(handler)
        wrap = next((wrap for is_kind, wrap in self._kinds() if _is(is_kind, handler)), self._wrap_function)
        is_async = wrap in (self._wrap_coroutine, self._wrap_async_generator)
        _load(in_tasks=is_async or isinstance(self._client, AsyncWindback))
        return cast("Function", functools.wraps(handler)(wrap(handler)))

    def _kinds(self) -> List[Tuple[Callable[[object], bool], Callable[..., Callable[..., object]]]]:
        return [
            (inspect.iscoroutinefunction, self._wrap_coroutine),
            (inspect.isasyncgenfunction, self._wrap_async_generator),
            (inspect.isgeneratorfunction, self._wrap_generator),
        ]

    def _wrap_function(self, handler: Callable[..., object]) -> Callable[..., object]:
        def flushed(*args: object, **kwargs: object) -> object:
            waits = False
            try:
                result = handler(*args, **kwargs)
                # Another decorator may hide what kind of function it is.
                waits = inspect.iscoroutine(result) or inspect.isgenerator(result)
            finally:
                if not waits:
                    self._flush(args, kwargs)
            if inspect.iscoroutine(result):
                return self._await(result, args, kwargs)
            if inspect.isgenerator(result):
                return self._iterate(cast("_Items", result), args, kwargs)
            return result

        return flushed

    def _wrap_coroutine(self, handler: Callable[..., Awaitable[object]]) -> Callable[..., object]:
        async def flushed(*args: object, **kwargs: object) -> object:
            return await self._await(handler(*args, **kwargs), args, kwargs)

        return flushed

    def _wrap_generator(self, handler: Callable[..., _Items]) -> Callable[..., object]:
        def flushed(*args: object, **kwargs: object) -> _Items:
            return (yield from self._iterate(handler(*args, **kwargs), args, kwargs))

        return flushed

    def _wrap_async_generator(
        self, handler: Callable[..., AsyncGenerator[object, object]]
    ) -> Callable[..., object]:
        async def flushed(*args: object, **kwargs: object) -> AsyncGenerator[object, object]:
            items = handler(*args, **kwargs)
            try:
                item = await items.__anext__()
                while True:
                    try:
                        sent = yield item
                    except GeneratorExit:
                        await items.aclose()
                        raise
                    except BaseException as error:  # noqa: BLE001 - it is the handler's
                        item = await items.athrow(error)
                    else:
                        item = await items.asend(sent)
            except StopAsyncIteration:
                return
            finally:
                await self._flush_async(args, kwargs)

        return flushed

    async def _await(
        self, result: Awaitable[object], args: Tuple[object, ...], kwargs: Mapping[str, object]
    ) -> object:
        try:
            return await result
        finally:
            await self._flush_async(args, kwargs)

    def _iterate(
        self,
        items: _Items,
        args: Tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> _Items:
        try:
            return (yield from items)
        finally:
            self._flush(args, kwargs)

    # -- the flush -----------------------------------------------------------------------------

    def _flush(self, args: Tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        try:
            started_s = clock.now_s()
            waits = [
                (engine, limit_s, engine.flush_from_outside(started_s + limit_s))
                for engine, limit_s in self._limits(args, kwargs).items()
            ]
            for engine, limit_s, wait in waits:
                _judge(engine, limit_s, cast("FlushResult", wait()))
        except Exception:  # telemetry must not be what an invocation fails of
            logger.warning("the flush after the handler failed", exc_info=True)

    async def _flush_async(self, args: Tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        async def flush(engine: lifecycle.Engine, limit_s: float) -> None:
            _judge(engine, limit_s, await engine.flush_async(limit_s))

        try:
            limits = self._limits(args, kwargs)
            if limits:
                import anyio

                async with anyio.create_task_group() as tasks:
                    for engine, limit_s in limits.items():
                        tasks.start_soon(flush, engine, limit_s)
        except Exception:
            logger.warning("the flush after the handler failed", exc_info=True)

    def _limits(
        self, args: Tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Dict[lifecycle.Engine, float]:
        """Return the engines that have something to deliver, and for how many seconds each may be flushed."""
        lifecycle.notice_fork()
        engines = lifecycle.engines()
        if self._client is not None:
            engine = self._client._engine  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a part of the client, in effect
            if engine.refusals.is_closed:
                logger.warning("nothing was flushed after the handler: its client is closed")
            engines = [each for each in engines if each is engine]
        limit_s = min([self._timeout, *_remaining_s(args, kwargs, self._margin)])
        limits: Dict[lifecycle.Engine, float] = {}
        for each in engines:
            stats = each.stats()
            if stats.pending:
                is_failing = _failed.get(each) == _settled(stats)
                limits[each] = min(limit_s, _OUTAGE_S) if is_failing else limit_s
        return limits


def _is(is_kind: Callable[[object], bool], handler: object) -> bool:
    """Whether a function, or an object that is called like one, is of a kind."""
    return is_kind(handler) or is_kind(getattr(type(handler), "__call__", None))  # noqa: B004 - its kind is wanted


def _remaining_s(args: Tuple[object, ...], kwargs: Mapping[str, object], margin: float) -> List[float]:
    """Return the seconds until *margin* before the invocation ends, if an argument has that time."""
    for value in (*args, *kwargs.values()):
        try:
            left_ms: object = value.get_remaining_time_in_millis()  # type: ignore[attr-defined]  # Lambda's context
        except Exception:  # noqa: BLE001, S112 - an argument of any kind, which may raise anything
            continue
        if isinstance(left_ms, (int, float)):
            return [max(0.0, left_ms / 1000 - margin)]
    return []


#: Clients whose last flush delivered nothing, and how many events were settled then. A flush that had no time
#: is not a failure.
_failed: WeakKeyDictionary[lifecycle.Engine, int] = WeakKeyDictionary()


def _settled(stats: Stats) -> int:
    return stats.delivered + stats.rejected


def _judge(engine: lifecycle.Engine, limit_s: float, result: FlushResult) -> None:
    if result:
        return
    if limit_s > _OUTAGE_S and not result.delivered and not result.rejected:
        stats = engine.stats()
        if stats.in_flight or stats.problem:  # it was tried
            _failed[engine] = _settled(stats)
    waits = "1 event waits" if result.pending == 1 else f"{result.pending} events wait"
    logger.warning("%s for the next invocation of this process: %s", waits, result.problem)


def _load(*, in_tasks: bool) -> None:
    """Load what sends, as long as it costs least: at a cold start, before the first invocation."""
    importlib.import_module("windback.http.transport" if in_tasks else "windback.http.lane")


def _is_duration(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def _check_function(handler: object) -> None:
    if callable(handler) and not isinstance(handler, type):
        return
    given = with_article(type(handler).__name__)
    if isinstance(handler, type):
        given = f"the class {handler.__name__}"
    raise ConfigurationError(
        "flush_after decorates a function, and takes a Windback or an AsyncWindback as its client; "
        f"it was given {given}"
    )
