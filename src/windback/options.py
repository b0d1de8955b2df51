"""Every option, declared once: its type, default, check, help text and environment variable.

`config.Config` declares the options with `option()`. The client, the relays, the sender process, the command
line and the reference table read them from there. A test compares the signatures, which type checkers and
editors read from the source.

Pure. Imports: `errors`, `secrets`, `wording`.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field, fields, replace
from itertools import chain, repeat
from types import FunctionType
from typing import Callable, Dict, List, Mapping, Optional, Protocol, Sequence, Tuple, Type, TypeVar, cast

from .errors import ConfigurationError
from .secrets import hidden_option
from .wording import nearest

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., object])
Check = Callable[[str, object], object]

_KEY = "option"


class PathLike(Protocol):
    """os.PathLike[str], which Python 3.8 can't evaluate in an annotation."""

    def __fspath__(self) -> str:
        """Return the path."""
        ...


@dataclass(frozen=True)
class Option:
    """The description of one option.

    Attributes:
        environment: The variable that is read when the value is None.
        check: Returns the checked value or raises ConfigurationError. None if the check needs other options.
        is_for_sender: Whether the sender process gets it.
    """

    name: str
    default: object
    help: str
    environment: Optional[str] = None
    check: Optional[Check] = None
    is_for_sender: bool = False


def option(
    *,
    default: T,
    about: str,
    environment: Optional[str] = None,
    check: Optional[Check] = None,
    is_for_sender: bool = False,
) -> T:
    """Declare an option as a field of a dataclass."""
    said = Option("", default, about, environment, check, is_for_sender)
    made: T = field(default=default, metadata={_KEY: said})
    return made


def options_of(kind: Type[object]) -> Dict[str, Option]:
    """Return the options that a dataclass declares, by name, in order."""
    found = {}
    for each in fields(kind):  # type: ignore[arg-type]  # a dataclass
        said: Optional[Option] = each.metadata.get(_KEY)
        if said is not None:
            found[each.name] = replace(said, name=each.name)
    return found


def checked(options: Mapping[str, Option], values: Mapping[str, object]) -> Dict[str, object]:
    """Return the values of all options that can be checked separately. Raises ConfigurationError."""
    return {name: said.check(name, values[name]) for name, said in options.items() if said.check is not None}


def seconds(name: str, value: object, *, zero: bool = False) -> float:
    """Check a duration."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"{name} must be a number of seconds, not {value!r}")
    if not (value >= 0 if zero else value > 0) or value > 1e9:
        raise ConfigurationError(
            f"{name} must be {'at least 0' if zero else 'more than 0'} seconds and finite, not {value!r}"
        )
    return float(value)


def seconds_or_0(name: str, value: object) -> float:
    """Check a duration that may be 0."""
    return seconds(name, value, zero=True)


def count(at_least: int = 1, at_most: Optional[int] = None) -> Callable[[str, object], int]:
    """Return the check of a whole number within bounds."""

    def check(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigurationError(f"{name} must be a whole number, not {value!r}")
        if value < at_least or (at_most is not None and value > at_most):
            bounds = f"at least {at_least}" if at_most is None else f"between {at_least} and {at_most}"
            raise ConfigurationError(f"{name} must be {bounds}, not {value}")
        return value

    return check


def boolean(name: str, value: object) -> bool:
    """Check a switch."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {value!r}")
    return value


#: The values of an environment variable for a switch, in upper or lower case.
_SWITCHES = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def switched(said: Option, value: object) -> bool:
    """Return a switch. None stands for its environment variable, or else the default."""
    text = os.environ.get(said.environment or "", "").strip()
    if value is not None or not text:
        return boolean(said.name, said.default if value is None else value)
    found = _SWITCHES.get(text.lower())
    if found is None:
        raise ConfigurationError(
            f"{said.environment} must be 1, true, yes or on, or 0, false, no or off, not {text!r}"
        )
    return found


def choice(choices: Sequence[Optional[str]]) -> Callable[[str, object], str]:
    """Return the check of a choice."""

    def check(name: str, value: object) -> str:
        if value not in choices:
            raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
        return str(value)

    return check


def functions(name: str, value: object) -> Optional[Tuple[Callable[..., object], ...]]:
    """Check a function, or a list of functions, of the caller's."""
    if value is None:
        return None
    given: List[object] = list(value) if isinstance(value, (list, tuple)) else [value]
    found = [each for each in given if callable(each)]
    if len(found) < len(given):
        raise ConfigurationError(f"{name} must be a function or a list of functions, not {value!r}")
    return tuple(found)


def hook(name: str, value: object) -> Optional[Callable[..., object]]:
    """Check a function given by the caller."""
    if value is not None and not callable(value):
        raise ConfigurationError(f"{name} must be a function, not {value!r}")
    return value


def naming_options(function: Function) -> Function:
    """Decorate what takes options: its error for one that does not exist names the most similar one."""
    code = cast("FunctionType", function).__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    is_init = function.__name__ == "__init__"

    @functools.wraps(function)
    def checked_call(*args: object, **given: object) -> object:
        # What the function raises is shown with the local variables of this frame.
        args = tuple(hidden_option(name, value) for name, value in zip(chain(names, repeat("")), args))
        given = {name: hidden_option(name, value) for name, value in given.items()}
        unknown = next((name for name in given if name not in names), None)
        if unknown is not None:
            called = type(args[0]).__name__ if is_init else function.__name__
            args, given = (), {}  # what this would be for is not known, and it may contain a key
            raise TypeError(f"{called}() has no argument {unknown!r}{nearest(unknown, names)}")
        return function(*args, **given)

    return cast("Function", checked_call)
