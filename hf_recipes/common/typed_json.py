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
from collections.abc import Callable, Mapping, Sequence
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
        self.key, self.message = key, message

    def inside(self, key: str) -> TypedJsonError:
        """The same error of a value that is the value of `key`."""
        return TypedJsonError(_join(key, self.key), self.message)


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
    anything: Any = kind  # mypy does not know that a class is hashable
    try:
        found: T = _decoder_of(anything)(value, unknown)
    except TypedJsonError as problem:
        raise problem.inside(key) from None
    return found


# A type's decoder is made once: records have hundreds of values, and `hf-recipes runs` reads a thousand records. It
# takes a value and the list of unknown keys; the keys in its errors are relative to the value.
Decoder = Callable[[Any, "list[str] | None"], Any]


@functools.cache
def _decoder_of(kind: Any) -> Decoder:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return _decode_any
    if origin in (Union, types.UnionType):
        (one,) = (each for each in inner if each is not types.NoneType)
        decode = _decoder_of(one)
        return lambda value, unknown: None if value is None else decode(value, unknown)
    if origin is Mapping:
        return _mapping_decoder(inner[1])
    if origin is tuple:
        return _list_decoder(inner)
    if dataclasses.is_dataclass(kind):
        return _object_decoder(kind)
    return functools.partial(_decode_scalar, kind)


def _decode_any(value: Any, unknown: list[str] | None) -> Any:
    if isinstance(value, dict | list) and is_deeper(value, DEEPEST):
        raise TypedJsonError("", "is nested too deeply")
    return value


def _mapping_decoder(kind: Any) -> Decoder:
    decode, takes_null = _decoder_of(kind), kind is Any or types.NoneType in get_args(kind)

    def mapping(value: Any, unknown: list[str] | None) -> Any:
        if not isinstance(value, dict):
            raise TypedJsonError("", f"an object is expected, not {_shown(value)}")
        found = {}
        for name, one in value.items():
            if kind is Any and not isinstance(one, dict | list):
                found[name] = one
            elif one is not None:
                found[name] = _decode_inner(decode, one, name, unknown)
            elif takes_null:
                found[name] = None
        return found

    return mapping


def _list_decoder(kinds: tuple[Any, ...]) -> Decoder:
    decoders = [_decoder_of(kind) for kind in kinds if kind is not ...]

    def items(value: Any, unknown: list[str] | None) -> Any:
        if not isinstance(value, list | tuple):
            raise TypedJsonError("", f"a list is expected, not {_shown(value)}")
        each = decoders * len(value) if kinds[-1] is ... else decoders
        if len(each) != len(value):
            raise TypedJsonError("", f"a list of {len(each)} is expected, not of {len(value)}")
        return tuple(
            _decode_inner(decode, one, f"[{i}]", unknown)
            for i, (decode, one) in enumerate(zip(each, value, strict=True))
        )

    return items


def _object_decoder(kind: Any) -> Decoder:
    known = fields_of(kind)
    decoders = {name: (field, _decoder_of(inner)) for name, (field, inner, _) in known.items()}
    required = [(name, field) for name, (field, _, needed) in known.items() if needed]

    def instance(value: Any, unknown: list[str] | None) -> Any:
        if not isinstance(value, Mapping):
            raise TypedJsonError("", f"an object is expected, not {_shown(value)}")
        found: dict[str, Any] = {}
        for name, one in value.items():
            if name not in decoders:
                if unknown is not None:
                    unknown.append(str(name))
            elif one is not None:
                field, decode = decoders[name]
                found[field] = _decode_inner(decode, one, name, unknown)
        for name, field in required:
            if field not in found:
                raise TypedJsonError(name, "is missing")
        return kind(**found)

    return instance


def _decode_inner(decode: Decoder, value: Any, key: str, unknown: list[str] | None) -> Any:
    """The value of a key, whose name comes before those of its errors and unknown keys."""
    before = 0 if unknown is None else len(unknown)
    try:
        found = decode(value, unknown)
    except TypedJsonError as problem:
        raise problem.inside(key) from None
    if unknown is not None:
        unknown[before:] = [_join(key, name) for name in unknown[before:]]
    return found


def _join(key: str, inner: str) -> str:
    """A dotted name: "data" and "rows" is "data.rows", "sessions" and "[0].error" is "sessions[0].error"."""
    return f"{key}{'' if not key or not inner or inner.startswith('[') else '.'}{inner}"


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested in each other in more than `levels`. Not recursive."""
    found = [value]
    for _ in range(levels):
        found = [inner for one in found for inner in (one.values() if isinstance(one, dict) else one)
                 if isinstance(inner, dict | list)]  # fmt: skip
        if not found:
            return False
    return True


def _decode_scalar(kind: type, value: Any, unknown: list[str] | None) -> Any:
    if kind in (str, bool) and isinstance(value, kind):
        return value
    if issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            names = ", ".join(repr(one.value) for one in kind)
            raise TypedJsonError("", f"{_shown(value)} is none of {names}") from None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and (number or value in NOT_FINITE):
        with contextlib.suppress(OverflowError):  # an integer of hundreds of digits
            return float(value)
    if kind is int and number and (isinstance(value, int) or value.is_integer()) and abs(value) < MOST:
        return int(value)
    name = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}[kind.__name__]
    raise TypedJsonError("", f"{name} is expected, not {_shown(value)}")


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
