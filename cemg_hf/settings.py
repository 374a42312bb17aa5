"""Settings from YAML: strict, nested, and clear about what is wrong."""

from __future__ import annotations

import difflib
import os
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import CEMGError

T = TypeVar("T")


def from_mapping(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from a mapping, nested dataclasses included.

    Args:
        kind: the dataclass.
        values: its fields by name; fields left out keep their defaults.
        where: what to call the place in errors, for instance "beauty.yaml: finetune".

    Raises:
        CEMGError: an unknown key (with the nearest known one), a missing one, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise CEMGError(f"{where}: expected settings (key: value), got {values!r}")
    hints = get_type_hints(kind)
    known = {entry.name: entry for entry in fields(kind) if entry.init}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            raise CEMGError(f"{where}: unknown key '{key}'; {hint}")
    missing = [n for n, e in known.items() if n not in values and e.default is MISSING and e.default_factory is MISSING]
    if missing:
        raise CEMGError(f"{where}: key '{missing[0]}' is required")
    converted = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    try:
        return kind(**converted)
    except ValueError as error:
        raise CEMGError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, where)
            except CEMGError:
                continue
        return _convert(options[-1], value, where)
    if is_dataclass(hint):
        return from_mapping(hint, value, where)  # type: ignore[arg-type]
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise CEMGError(f"{where}: expected a list, got {value!r}")
        entries = [_convert(arguments[0], entry, f"{where}[{index}]") for index, entry in enumerate(value)]
        return tuple(entries) if origin is tuple else entries
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise CEMGError(f"{where}: expected settings (key: value), got {value!r}")
        return {key: _convert(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if hint is Any:
        return value
    if origin is not None and not isinstance(origin, type):  # Literal and the like
        if value not in arguments:
            raise CEMGError(f"{where}: expected one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        try:  # YAML 1.1 reads 1e-3 as a string
            return float(value)
        except ValueError:
            pass
    if isinstance(hint, type) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        read_as_bool = hint is str and isinstance(value, bool)
        remedy = "; YAML reads no, off, yes and on as booleans: put the word in quotes" if read_as_bool else ""
        raise CEMGError(f"{where}: expected {hint.__name__}, got {value!r}{remedy}")
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Mapping in a YAML file.

    Raises:
        CEMGError: no such file, broken YAML, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise CEMGError(f"{path}: no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise CEMGError(f"{path}: not a text file in UTF-8; give a YAML file") from error
    except yaml.YAMLError as error:
        raise CEMGError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise CEMGError(f"{path}: expected a mapping of settings")
    return content


def override(values: Mapping[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`values` with `a.b.c=value` assignments applied; values are read as YAML.

    Raises:
        CEMGError: an assignment without "=", or one that goes through a value that holds no keys.
    """
    changed = dict(values)
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign:
            raise CEMGError(f"--set {assignment}: expected section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise CEMGError(f"--set {assignment}: the value is not valid YAML: {' '.join(str(error).split())}") from error
        changed = assign(changed, path.strip(), value, f"--set {assignment}")
    return changed


def assign(values: Mapping[str, Any], path: str, value: Any, where: str) -> dict[str, Any]:
    """A copy of `values` in which the key at `path` ("a.b.c") has this value; sections on the way are made where they are missing.

    Raises:
        CEMGError: the path goes through a value that holds no keys.
    """
    changed = dict(values)
    *sections, key = path.split(".")
    place = changed
    for section in sections:
        inner = {} if place.get(section) is None else place[section]
        if not isinstance(inner, Mapping):
            raise CEMGError(f"{where}: '{section}' holds a value ({inner!r}), not settings")
        place[section] = dict(inner)
        place = place[section]
    place[key] = value
    return changed


def expand_path(value: str, argument: str) -> str:
    """`value` with `~` and environment variables filled in.

    Raises:
        CEMGError: a variable that is not set (names it).
    """
    expanded = os.path.expandvars(value)
    unset = re.search(r"\$(\w+|\{\w+\})", expanded)
    if unset:
        name = unset.group(1).strip("{}")
        raise CEMGError(f"{argument} = {value!r}: environment variable {name} is not set; export {name}=… or write the path out")
    return str(Path(expanded).expanduser()) if expanded.startswith("~") else expanded
