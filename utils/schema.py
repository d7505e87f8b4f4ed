"""A constructor's signature is the configuration schema: wrong keys and types are told with the nearest match."""

from __future__ import annotations

import collections.abc
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from utils.errors import UserError

Whole = Annotated[int, "no size"]  # a number that 0 has a meaning for, or that its maker checks more closely
_NOTHING = object()  # matches only annotations that YAML cannot express


def hint(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the nearest match, else the list of what is known."""
    names = sorted(known)
    lower = {name.lower(): name for name in names}
    close = [name for name in lower if len(word) > 2 and name.startswith(str(word).lower())]
    close = close or difflib.get_close_matches(str(word).lower(), list(lower), n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{lower[close[0]]}'?"
    return f" Known: {', '.join(names)}." if names else ""


def parameters(target: Callable) -> dict[str, inspect.Parameter]:
    """Named parameters of a class or function; a `**kwargs` is not a schema and does not count."""
    skipped = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: p for name, p in inspect.signature(target).parameters.items() if p.kind not in skipped}


def check_arguments(target: Callable, args: Mapping[str, Any], where: str, what: str, sizes: bool = False) -> None:
    """Raise UserError for the first key of `args` that `target` does not take or that has the wrong type.

    sizes: whole numbers are sizes of a network; none can be 0 unless its default is or it is annotated `Whole`.
    """
    known = parameters(target)
    hints = _type_hints(target)
    for key, value in args.items():
        if key not in known:
            raise UserError(f"{join(where, key)}: {what} has no such option.{hint(key, known)}")
        check_type(value, hints.get(key, Any), join(where, key))
        default, hint_of = known[key].default, hints.get(key, Any)
        if sizes and default != 0 and _is_size(hint_of):
            check_size(value, join(where, key))
        check_sign(value, default, join(where, key))


def check_sign(value: Any, default: Any, where: str) -> None:
    """Whole numbers are sizes and counts: below 0 only where the default is, too."""
    counts = type(value) is int and (default is inspect.Parameter.empty or (type(default) is int and default >= 0))
    if counts and value < 0:
        raise UserError(f"{where}: {value}; use 0 or more")


def check_size(value: Any, where: str) -> None:
    """A whole number or a list of them."""
    numbers = value if isinstance(value, list | tuple) else [value]
    if any(type(number) is int and number < 1 for number in numbers):
        raise UserError(f"{where}: {value}; use at least 1{' each' if numbers is value else ''}")


def check_required(target: Callable, given: Iterable[str], where: str, what: str) -> None:
    """Raise UserError naming the first parameter without a default that is not given."""
    given = set(given)
    for name, parameter in parameters(target).items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            raise UserError(f"{join(where, name)}: {what} needs this option")


def check_type(value: Any, expected: Any, where: str) -> None:
    """Check plain YAML values against an annotation; annotations that YAML cannot express are left alone."""
    if not _matches(value, expected):
        found = "null" if value is None else repr(value)
        raise UserError(f"{where}: expected {_describe(expected)}, found {found}")


def join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _type_hints(target: Callable) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:  # a name imported for type checkers only: no check rather than a wrong one
        return {}


def _is_size(expected: Any) -> bool:
    """Whether an annotation is `int`, or a list of or a choice with it."""
    if typing.get_origin(expected) in (Annotated, typing.Literal, dict):
        return False
    return expected is int or any(_is_size(option) for option in typing.get_args(expected))


def _matches(value: Any, expected: Any) -> bool:
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Annotated:
        return _matches(value, args[0])
    if expected is None or expected is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        plain = _plain(args)
        left_alone = len(plain) < len(args) and plain in ([], [type(None)])
        return left_alone or any(_matches(value, option) for option in plain)
    if origin is typing.Literal:
        return value in args
    if origin in (list, tuple, collections.abc.Sequence):
        return isinstance(value, list | tuple) and all(_matches(item, args[0]) for item in value if args)
    if origin in (dict, collections.abc.Mapping):
        return isinstance(value, Mapping)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected in (str, bool, list, tuple, dict):
        return isinstance(value, expected)
    return True


def _plain(options: Iterable[Any]) -> list:
    """The options that YAML can express: a rate may be a `float | Tensor`, but YAML has no tensors."""
    return [option for option in options if not _matches(_NOTHING, option)]


def _describe(expected: Any) -> str:
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Annotated:
        return _describe(args[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in _plain(args))
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(option) for option in args)
    if expected is type(None):
        return "null"
    if origin in (list, tuple, collections.abc.Sequence):
        return f"a list of {_describe(args[0]).partition(' ')[2]}s" if args else "a list"
    if origin in (dict, collections.abc.Mapping):
        return "a mapping"
    words = {float: "a number", int: "an integer", bool: "true or false", str: "a text"}
    words |= {list: "a list", dict: "a mapping"}
    return words.get(expected, getattr(expected, "__name__", str(expected)))
