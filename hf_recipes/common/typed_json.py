"""JSON to frozen dataclasses and back. Imports neither torch nor transformers.

A key is the field's name; a field that would be a Python keyword has a trailing underscore (`class_` is "class"). A
number that is not finite is the text "nan", "inf" or "-inf", since JSON has none. A null gives the field's default, as
an absent key does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

NOT_FINITE = ("nan", "inf", "-inf")
MOST = 2**63  # whole numbers of a record are smaller
DEEPEST = 100  # levels of a value of any type: far less than what Python's own functions take
T = TypeVar("T")


class TypedJsonError(ValueError):
    """A value that its type does not allow; `key` is its dotted name."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key


@functools.cache
def fields_of(kind: Any) -> dict[str, tuple[str, Any, bool]]:
    """JSON key -> (field name, type, whether it must be there) of a dataclass, in order."""
    hints = get_type_hints(kind)
    found = {}
    for one in dataclasses.fields(kind):
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        found[one.name.rstrip("_")] = one.name, hints[one.name], required
    return found


def from_json(kind: type[T], value: Any, key: str = "", unknown: list[str] | None = None) -> T:
    """`value` as an instance of the dataclass `kind`. Keys that it does not have are appended to `unknown`. Raises
    TypedJsonError."""
    if not isinstance(value, Mapping):
        raise TypedJsonError(key, f"an object is expected, not {_shown(value)}")
    anything: Any = kind  # mypy does not know that a class is hashable
    known = fields_of(anything)
    found: dict[str, Any] = {}
    for name, inner in value.items():
        dotted = f"{key}.{name}" if key else str(name)
        if name not in known:
            if unknown is not None:
                unknown.append(dotted)
        elif inner is not None:
            found[known[name][0]] = _decode(known[name][1], inner, dotted, unknown)
    for name, (field, _, required) in known.items():
        if required and field not in found:
            raise TypedJsonError(f"{key}.{name}" if key else name, "is missing")
    return kind(**found)


def _decode(kind: Any, value: Any, key: str, unknown: list[str] | None) -> Any:
    if kind is Any:
        if isinstance(value, dict | list) and is_deeper(value, DEEPEST):
            raise TypedJsonError(key, "is nested too deeply")
        return value
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in inner:
            return None
        (kind,) = (one for one in inner if one is not types.NoneType)
        return _decode(kind, value, key, unknown)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise TypedJsonError(key, f"an object is expected, not {_shown(value)}")
        there = value.items() if _takes_null(inner[1]) else ((k, v) for k, v in value.items() if v is not None)
        return {name: _decode(inner[1], one, f"{key}.{name}", unknown) for name, one in there}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypedJsonError(key, f"a list is expected, not {_shown(value)}")
        kinds = [inner[0]] * len(value) if inner[-1] is ... else list(inner)
        if len(kinds) != len(value):
            raise TypedJsonError(key, f"a list of {len(kinds)} is expected, not of {len(value)}")
        return tuple(_decode(*pair, f"{key}[{i}]", unknown) for i, pair in enumerate(zip(kinds, value, strict=True)))
    if dataclasses.is_dataclass(kind):
        return from_json(kind, value, key, unknown)  # type: ignore[arg-type]
    return _decode_scalar(kind, value, key)


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested in each other in more than `levels`. Not recursive."""
    found = [value]
    for _ in range(levels):
        found = [inner for one in found for inner in (one.values() if isinstance(one, dict) else one)
                 if isinstance(inner, dict | list)]  # fmt: skip
        if not found:
            return False
    return True


def _takes_null(kind: Any) -> bool:
    return kind is Any or types.NoneType in get_args(kind)


def _decode_scalar(kind: type, value: Any, key: str) -> Any:
    if issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            names = ", ".join(repr(one.value) for one in kind)
            raise TypedJsonError(key, f"{_shown(value)} is none of {names}") from None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and (number or value in NOT_FINITE):
        with contextlib.suppress(OverflowError):  # an integer of hundreds of digits
            return float(value)
    if kind is int and number and (isinstance(value, int) or value.is_integer()) and abs(value) < MOST:
        return int(value)
    if kind in (str, bool) and isinstance(value, kind):
        return value
    name = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}[kind.__name__]
    raise TypedJsonError(key, f"{name} is expected, not {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def to_json(value: Any) -> Any:
    """JSON's own types; what has none of them becomes its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: to_json(getattr(value, name)) for key, (name, _, _) in fields_of(type(value)).items()}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Sequence | set):
        return [to_json(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, int):
        return value
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return to_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)
