"""One value against its `Field`: what is wrong with it and how to fix it. Knows no files and no sections."""

from __future__ import annotations

import math
import re
from typing import Any

from hf_recipes.common.text import format_value, kind_of, nearest
from hf_recipes.recipe.schema.fields import Field

_ARTICLES = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "list": "a list",
    "dict": "a mapping",
}
_PLURALS = {
    "bool": "booleans",
    "int": "integers",
    "float": "numbers",
    "str": "strings",
    "list": "lists",
    "dict": "mappings",
}
LARGEST = 2**63  # an integer beyond it fits into no tensor and no counter of upstream


def _fits(value: Any, kinds: tuple[str, ...]) -> bool:
    kind = {"NoneType": "null"}.get(type(value).__name__, type(value).__name__)
    return not kinds or kind in kinds or (kind == "int" and "float" in kinds)


def wanted(field: Field) -> str:
    """What a field takes: "an integer or a list of strings"."""
    kinds = [k for k in field.kinds if not (k == "int" and "float" in field.kinds)]
    items = " or ".join(_PLURALS.get(k, k) for k in field.items if not (k == "int" and "float" in field.items))
    kinds_text = [_ARTICLES[k] + (f" of {items}" if k == "list" and items else "") for k in kinds]
    if field.choices and not field.open_choices and len(field.choices) <= 12 and "str" in kinds:
        kinds_text[kinds.index("str")] = "one of " + ", ".join(repr(c) for c in field.choices)
    return " or ".join(kinds_text)


def problem(field: Field, value: Any) -> tuple[str, str] | None:
    """(what the value is, how to fix it) or None if the field takes it. The caller puts the field's name before `what`.

    A quoted number is a string, and 2.0 is a float: upstream would take both unchecked and fail, or not, hours later.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {format_value(value)}", "it must be a finite number"
    if value is None:
        if field.optional or not field.kinds:
            return None
        return "is null", f"it must be {wanted(field)}; leave the key out for upstream's default"
    if not _fits(value, field.kinds):
        return f"is {format_value(value)} ({kind_of(value)})", _type_fix(field, value)
    if isinstance(value, str):
        bad = _choice(field, value)
        return (
            (bad[0], _type_fix(field, value))
            if bad and _is_number(value) and {"int", "float"} & {*field.kinds}
            else bad
        )
    if isinstance(value, list):
        return _list(field, value)
    if isinstance(value, int) and abs(value) >= LARGEST:
        return f"is {format_value(value)}", "it must fit into 64 bits"
    if isinstance(value, int | float) and not isinstance(value, bool) and field.limits and not field.limits.hold(value):
        return f"is {format_value(value)}", f"it must be {field.limits}"
    return None


def _list(field: Field, value: list[Any]) -> tuple[str, str] | None:
    for n, item in enumerate(value):
        if isinstance(item, float) and not math.isfinite(item):
            return f"holds {format_value(item)} as item {n + 1}", "it must be a finite number"
        if field.items and not _fits(item, field.items):
            return f"holds {format_value(item)} ({kind_of(item)}) as item {n + 1}", f"it must be {wanted(field)}"
        if isinstance(item, str) and (bad := _choice(field, item)):
            return bad[0].replace("is ", "holds ", 1), bad[1]
    return None


def _choice(field: Field, value: str) -> tuple[str, str] | None:
    if not field.choices or value in field.choices:
        return None
    if field.open_choices and re.fullmatch(field.open_choices, value):
        return None
    near = nearest(value, field.choices)
    if near:
        return f"is {format_value(value)}", f"did you mean {near!r}?"
    if len(field.choices) <= 16:
        return f"is {format_value(value)}", "it must be one of " + ", ".join(repr(c) for c in field.choices)
    return f"is {format_value(value)}", f"it must be one of {len(field.choices)} values: see `hf-recipes schema`"


def _type_fix(field: Field, value: Any) -> str:
    """How to fix a wrong type: the same value rightly written where that is plain, else what the field takes."""
    if isinstance(value, list) and len(value) == 1 and _fits(value[0], field.kinds):
        return f"write {format_value(value[0])} without the brackets"
    if isinstance(value, str):
        bare = _unquoted(value)
        if bare is not None and _fits(bare, field.kinds):
            return (
                f"write {value.strip()} without quotes" if not isinstance(bare, bool) else f"write {format_value(bare)}"
            )
    if isinstance(value, float) and value == int(value) and abs(value) < LARGEST and "int" in field.kinds:
        return f"write {int(value)}"
    if "str" in field.kinds and isinstance(value, int | float) and not isinstance(value, bool) and not field.choices:
        return f"it must be {wanted(field)}: quote it"
    example = ""
    if field.has_default and field.default not in (None, "", [], {}) and _fits(field.default, field.kinds):
        example = f", such as {format_value(field.default)}" if not isinstance(field.default, bool) else ""
    return f"it must be {wanted(field)}{example}"


def _is_number(text: str) -> bool:
    bare = _unquoted(text)
    return bare is not None and not isinstance(bare, bool)


def _unquoted(text: str) -> Any:
    """The number or truth value that a quoted string would be without its quotes, or None."""
    bare = text.strip()
    if bare.lower() in ("true", "yes", "on", "false", "no", "off"):
        return bare.lower() in ("true", "yes", "on")
    if re.fullmatch(r"[-+]?\d+", bare):
        return int(bare) if len(bare) < 20 else None
    if re.fullmatch(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?", bare):
        return float(bare)
    return None
