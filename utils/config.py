"""YAML configuration: `_base_` at any level, deep merge, `${ENV}`, overrides, and where each value came from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from utils.errors import UserError, first_line
from utils.schema import hint

BASE, DELETE = "_base_", "_delete_"
ENV = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
Origins = dict[str, str]  # dotted key -> "file:line" or "command line"


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads 1e-3 as a number, as everybody means it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> tuple[EasyDict, Origins]:
    """Read a YAML file with everything it inherits, apply `a.b=value` overrides; returns values and their origins."""
    origins: Origins = {}
    config = _drop_markers(_load_file(Path(path), origins, "", ()))
    for override in overrides:
        _apply_override(config, override, origins)
    return EasyDict(config), origins


def parse_yaml(text: str, what: str) -> Any:
    """One YAML document on its own, without inheritance."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{what}: not valid YAML: {_first_line(error)}") from error


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge; lists replace. Naming another component (`name:` differs) drops the options of the old one."""
    renamed = "name" in base and "name" in update and base["name"] != update["name"]
    if renamed or update.get(DELETE):
        return {key: value for key, value in update.items() if key != DELETE}
    merged = dict(base)
    for key, value in update.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def dump_config(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=120)


def describe_config(config: Mapping[str, Any], origins: Origins) -> str:
    """The resolved configuration, one value a line, with the place that set it."""
    lines = [(f"{key}: {_scalar(value)}", _origin(key, origins)) for key, value in flatten(to_plain(config))]
    width = min(72, max((len(text) for text, _ in lines), default=0))
    return "\n".join(f"{text:<{width}}  # {origin}" for text, origin in lines)


def to_plain(value: Any) -> Any:
    """Plain dictionaries and lists, as YAML and checkpoints want them."""
    if isinstance(value, Mapping):
        return {key: to_plain(value[key]) for key in value}  # a key named `items` hides the method of an EasyDict
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _load_file(path: Path, origins: Origins, prefix: str, opened: tuple[Path, ...]) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(f"{path}: is a folder; a configuration is one file")
    if not path.is_file():
        near = hint(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        named = f" (`_base_` of {_short(opened[-1])})" if opened else ""
        raise UserError(f"{path}{named}: no such configuration file.{near}")
    path = path.resolve()
    if path in opened:
        raise UserError(f"{path}: `_base_` goes in a circle")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {_first_line(error)}") from error
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}: expected `key: value` lines at the top level")
    return _mapping(node, path, origins, prefix, (*opened, path))


def _mapping(node: yaml.MappingNode, path: Path, origins: Origins, prefix: str, opened: tuple[Path, ...]) -> dict:
    """A YAML mapping as a dictionary, merged over its `_base_` files."""
    own: dict[str, Any] = {}
    own_origins: Origins = {}
    bases: list[str] = []
    for key_node, value_node in node.value:
        key, line = key_node.value, f"{_short(path)}:{key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise UserError(f"{line}: a key must be a plain word")
        dotted = f"{prefix}.{key}" if prefix else key
        if key in own:
            raise UserError(f"{line}: key '{dotted}' stands twice")
        if key == BASE:
            bases = _base_list(_value(value_node, path, {}, dotted, opened), line)
            continue
        own_origins[dotted] = line
        own[key] = _value(value_node, path, own_origins, dotted, opened)
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, _load_file(_find_base(base, path), origins, prefix, opened))
    origins.update(own_origins)
    # inside a file without a base the marker must survive until it meets the mapping it replaces
    return merge(merged, own) if bases else own


def _value(node: yaml.Node, path: Path, origins: Origins, dotted: str, opened: tuple[Path, ...]) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, origins, dotted, opened)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, path, origins, f"{dotted}.{i}", opened) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    loader, where = _Loader(""), f"{_short(path)}:{node.start_mark.line + 1}: {dotted}"
    text, tag = _expand(node.value, where), node.tag
    if text != node.value and node.style is None:  # unquoted: read as if the variable's value stood there
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    try:
        return loader.construct_object(yaml.ScalarNode(tag, text, node.start_mark))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: {_first_line(error)}") from error


def _expand(text: str, where: str) -> str:
    """Replace ${NAME} and ${NAME:-default} by environment variables."""

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name not in os.environ and default is None:
            raise UserError(f"{where}: environment variable {name} is not set; export it or write ${{{name}:-default}}")
        return os.environ.get(name, default or "")

    return ENV.sub(replace, text)


def _base_list(value: Any, line: str) -> list[str]:
    bases = value if isinstance(value, list) else [value]
    if not all(isinstance(base, str) for base in bases):
        raise UserError(f"{line}: `_base_` takes a file name or a list of file names")
    return bases


def _find_base(base: str, path: Path) -> Path:
    """Relative to the file that names it; else, as older configurations write it, relative to the current folder."""
    beside = path.parent / base
    return beside if beside.is_file() or not Path(base).is_file() else Path(base)


def _drop_markers(config: dict[str, Any]) -> dict[str, Any]:
    """Remove the `_delete_` markers that met nothing to replace."""
    kept = {key: value for key, value in config.items() if key != DELETE}
    return {key: _drop_markers(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _apply_override(config: dict[str, Any], override: str, origins: Origins) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override '{override}': write it as section.option=value")
    try:
        parsed = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"override '{override}': not valid YAML: {_first_line(error)}") from error
    value = None if parsed is None else _value(parsed, Path("command line"), {}, key, ())
    *parents, last = key.split(".")
    node: Any = config
    for depth, parent in enumerate(parents):
        node = _step_into(node, parent, ".".join(parents[: depth + 1]))
    if isinstance(node, list):
        node[_list_index(node, last, key)] = value
    elif isinstance(value, Mapping) and isinstance(node.get(last), Mapping):
        node[last] = merge(node[last], value)
    elif last == "name" and node.get("name") not in (None, value):
        node.clear()  # another component: the options of the old one do not belong to it
        node["name"] = value
    else:
        node[last] = value
    for below in [name for name in origins if name.startswith(f"{key}.")]:
        del origins[below]
    origins[key] = "command line"


def _step_into(node: Any, key: str, dotted: str) -> Any:
    if isinstance(node, list):
        return node[_list_index(node, key, dotted)]
    child = node.setdefault(key, {})
    if not isinstance(child, dict | list):
        raise UserError(f"override {dotted}: holds {child!r}, so nothing can be set below it")
    return child


def _list_index(items: list, key: str, dotted: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise UserError(f"override {dotted}: is a list of {len(items)}; use an index below {len(items)}")
    return int(key)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        dotted = f"{prefix}.{key}" if prefix else str(key)
        nested = isinstance(item, dict) or (isinstance(item, list) and any(isinstance(i, dict) for i in item))
        if nested and item:
            yield from flatten(item, dotted)
        else:
            yield dotted, item


def _origin(key: str, origins: Origins) -> str:
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return "default"


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return place + (getattr(error, "problem", None) or first_line(error))
