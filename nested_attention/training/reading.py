"""Configuration files: YAML (or JSON) → frozen dataclasses, with errors that name the file and the field."""

from __future__ import annotations

import difflib
import types
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..errors import NestedAttentionError

Config = TypeVar("Config")

Place = NewType("Place", str)
"""A folder, or a repository's name on the model hub."""

_NAMES: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path",
    Place: "a folder, or a name on the model hub",
}  # fmt: skip


def read_config(path: Path, kind: type[Config]) -> Config:
    """The configuration in a file. Relative paths in it are relative to the file's folder.

    kind: a frozen dataclass of numbers, text, paths, tuples, literals and other such dataclasses. Raises
    NestedAttentionError, naming file and field, for a file that cannot be read, a field that does not exist,
    one that is missing, and a value of another type or out of range.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NestedAttentionError(f"there is no configuration file {path}; check the name") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise NestedAttentionError(f"{path} cannot be read as YAML: {reason}") from error
    try:
        return _built(kind, values, "", path.resolve().parent)
    except NestedAttentionError as error:
        raise NestedAttentionError(f"{path}: {error}") from error


def _built(kind: Any, values: Any, where: str, folder: Path) -> Any:
    """A dataclass from a mapping. where: the dotted path to it, with a dot at the end."""
    label = where.rstrip(".") or "the file"
    if not isinstance(values, dict):
        raise NestedAttentionError(f"{label} holds {_found(values)}; expected fields, as in `name: value`")
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            raise NestedAttentionError(
                f"{where}{name} is no field of this configuration"
                + (
                    f"; did you mean {where}{close[0]}?"
                    if close
                    else f"; expected some of {', '.join(known)}"
                )
            )
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for name, field in known.items():
        if name in values:
            given[name] = _converted(hints[name], values[name], where + name, folder)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise NestedAttentionError(f"{where}{name} is missing; expected {_wanted(hints[name])}")
    try:
        return kind(**given)
    except NestedAttentionError as error:  # what the dataclass itself refuses
        raise NestedAttentionError(f"{where}{error}") from error


def _converted(hint: Any, value: Any, where: str, folder: Path) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        (hint,) = [option for option in options if option is not type(None)]
        return _converted(hint, value, where, folder)
    if origin is Literal and value in options:
        return value
    if origin is tuple and isinstance(value, list):
        if options[-1] is not Ellipsis and len(value) != len(options):
            raise NestedAttentionError(f"{where} has {len(value)} entries; expected {len(options)}")
        each = [options[0] if options[-1] is Ellipsis else options[i] for i in range(len(value))]
        pairs = enumerate(zip(each, value, strict=True))
        return tuple(_converted(one, entry, f"{where}[{i}]", folder) for i, (one, entry) in pairs)
    if is_dataclass(hint):
        return _built(hint, value, f"{where}.", folder)
    if hint is Path and isinstance(value, str) and value:
        return folder / Path(value).expanduser()
    if hint is Place and isinstance(value, str) and value:
        beside = folder / Path(value).expanduser()
        return str(beside) if beside.exists() else value
    if hint is float and not isinstance(value, bool):
        try:  # YAML reads 1e-4, which has no point, as text
            return float(value)
        except (TypeError, ValueError):
            pass
    elif hint in (int, bool, str) and type(value) is hint:
        return value
    raise NestedAttentionError(f"{where} is {_found(value)}; expected {_wanted(hint)}")


def at_least(settings: object, least: float, *names: str) -> None:
    """Raises NestedAttentionError for a field of a configuration, of those named, that is below `least`."""
    for name in names:
        value = getattr(settings, name)
        if value < least:
            raise NestedAttentionError(f"{name} is {value}; expected at least {least}")


def _found(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:80]


def _wanted(hint: Any) -> str:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_wanted(option) for option in options if option is not type(None)) + ", or null"
    if origin is Literal:
        return "one of " + ", ".join(map(repr, options))
    if origin is tuple:
        return f"a list, each {_wanted(options[0])}"
    return _NAMES.get(hint, "fields, as in `name: value`")
