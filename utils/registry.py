"""Names in YAML to classes and functions. Entries are written down in one table and imported when first built."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from utils.errors import UserError, first_line
from utils.schema import check_arguments, check_required, hint, join


class Registry:
    """`REGISTRY.build({"name": "PointMAE", "depth": 12})` calls the entry with the remaining keys.

    entries: name -> "module:attribute", imported on use, so that a broken optional dependency hurts only what needs it.
    parts: option -> registry that builds it: `mask: {name: block}` becomes a mask sampler before the model is built.
    sizes: the entries are networks, whose sizes are at least 1 (see `check_arguments`).
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, str | Callable],
        parts: Mapping[str, Registry] | None = None,
        sizes: bool = False,
    ):
        self.kind, self.sizes = kind, sizes
        self.parts = dict(parts or {})
        self._entries: dict[str, str | Callable] = dict(entries)

    def names(self) -> list[str]:
        return sorted(self._entries)

    def add(self, name: str, entry: str | Callable) -> None:
        """Register your own class or function, from outside."""
        if name in self._entries:
            raise UserError(f"{self.kind} '{name}' is registered already")
        self._entries[name] = entry

    def get(self, name: str, where: str = "") -> Callable:
        """The class or function behind a name."""
        if name not in self.names():
            raise UserError(f"{join(where, 'name')}: unknown {self.kind} '{name}'.{hint(name, self._entries)}")
        entry = self._entries[name]
        if isinstance(entry, str):
            module, attribute = entry.split(":")
            entry = getattr(importlib.import_module(module), attribute)
        return entry

    def check(self, cfg: Mapping[str, Any], where: str = "", given: tuple[str, ...] = ()) -> None:
        """Raise UserError unless `cfg` names an entry and gives it only options it takes, all it needs among them.

        given: arguments that the program itself will pass to `build`, or fill in where a part needs them.
        """
        name, args = _split(cfg, where or self.kind)
        target, what = self.get(name, where), f"{self.kind} '{name}'"
        for key, registry in self.parts.items():
            if isinstance(args.get(key), Mapping | str):
                registry.check(_named(args.pop(key)), join(where, key), given)
                given = (*given, key)
            elif isinstance(args.get(key), int | float | list):
                raise UserError(f"{join(where, key)}: expected a {registry.kind} by name, found {args[key]!r}")
        check_arguments(target, args, where, what, self.sizes)
        check_required(target, (*args, *given), where, what)

    def build(self, cfg: Mapping[str, Any], where: str = "", **extra: Any) -> Any:
        """Check, then call the entry; a ValueError it raises is told with the place in the configuration."""
        self.check(cfg, where, tuple(extra))
        name, args = _split(cfg, where)
        for key, registry in self.parts.items():
            if isinstance(args.get(key), Mapping | str):
                args[key] = registry.build(_named(args[key]), join(where, key))
        try:
            return self.get(name, where)(**args, **extra)
        except ValueError as error:
            raise UserError(f"{where}: {first_line(error)}" if where else first_line(error)) from error
        except ZeroDivisionError as error:
            raise UserError(f"{join(where, 'name')}: '{name}' cannot be built with a size of 0") from error


class Recipes(Registry):
    """For what is made many times, in sizes that only its maker knows: `build` checks the configuration and returns a
    function of the arguments named in `later`, which are no configuration keys."""

    def __init__(self, kind: str, entries: Mapping[str, str | Callable], later: tuple[str, ...], sizes: bool = False):
        super().__init__(kind, entries, sizes=sizes)
        self.later = later

    def check(self, cfg: Mapping[str, Any], where: str = "", given: tuple[str, ...] = ()) -> None:
        for key in self.later:
            if key in cfg:
                raise UserError(f"{join(where, key)}: follows from the model; leave it out")
        super().check(cfg, where, (*given, *self.later))

    def build(self, cfg: Mapping[str, Any], where: str = "", **extra: Any) -> Any:
        self.check(cfg, where, tuple(extra))
        name, args = _split(cfg, where)
        return functools.partial(self.get(name, where), **args, **extra)


def _named(cfg: Mapping[str, Any] | str) -> Mapping[str, Any]:
    """`mask: block` is short for `mask: {name: block}`."""
    return {"name": cfg} if isinstance(cfg, str) else cfg


def _split(cfg: Any, where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(cfg, Mapping):
        raise UserError(f"{where}: expected a mapping with a 'name', found {'null' if cfg is None else repr(cfg)}")
    args = dict(cfg)
    name = args.pop("name", None)
    if name is None:
        raise UserError(f"{join(where, 'name')}: missing; say which one to build")
    return name, args
