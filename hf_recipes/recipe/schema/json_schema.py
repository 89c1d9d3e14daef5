"""The JSON Schema of a recipe, for editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_recipes.catalog.other_tools import TOOLS
from hf_recipes.recipe.deprecated_keys import UPGRADES
from hf_recipes.recipe.foreign_keys import meaning_of_key
from hf_recipes.recipe.schema.fields import Field
from hf_recipes.recipe.schema.installed import fields, versions
from hf_recipes.recipe.schema.own_keys import OPEN_SECTIONS, SECTION_HELP, SECTIONS, TOP, TRAINERS


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe for the installed versions: an editor completes keys and marks errors.

    Open sections take further keys, as upstream's functions do; closed ones do not.
    """
    installed = versions()
    packages = ", ".join(f"{p} {installed[p]}" for p in ("transformers", "trl", "peft", "datasets") if p in installed)
    sections = {
        name: {
            "type": ["object", "null"],  # null takes a section of the recipe that `extends` names away
            "description": SECTION_HELP[name],
            "properties": _properties(name),
            "additionalProperties": name in OPEN_SECTIONS,
        }
        for name in SECTIONS
    }
    from hf_recipes.catalog.metrics import GENERATED, METRICS
    from hf_recipes.catalog.tasks import TASKS

    top = {field.name: _property(field) for field in TOP.values()}
    top["task"]["enum"] = list(TASKS)
    for branch in top["metrics"]["anyOf"]:
        if branch["type"] == "array":
            named = {"type": "string", "enum": [*METRICS, *GENERATED]}
            module = {"type": "string", "pattern": r"/|\.py$"}  # catalog/metrics.py: names_a_module
            branch["items"] = {"anyOf": [named, module]}
    top |= _deprecated("", top)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"hf_recipes recipe ({packages})",
        "type": "object",
        "properties": {**top, **sections},
        "additionalProperties": False,
        "not": {"required": list(TRAINERS)},
    }


def _properties(section: str) -> dict[str, Any]:
    known = {field.name: _property(field) for field in fields(section).values()}
    return {**_refused(section), **known, **_deprecated(section, known)}


def _deprecated(section: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Properties for the keys of older versions, which `check` translates: accepted, and struck out by an editor.

    An old value of a key of today is accepted beside today's values.
    """
    found: dict[str, Any] = {}
    for row in (row for row in UPGRADES if section in row.sections):
        if row.old in known and row.values:
            found[row.old] = {
                "anyOf": [found.get(row.old, known[row.old]), {"enum": list(row.values), "deprecated": True}]
            }
        elif row.old not in known:
            new = ", ".join(name.removeprefix(".") for name in row.new)
            found[row.old] = {"deprecated": True, "description": f"{row.when}: {new or 'leave it out'}"}
    return found


def _refused(section: str) -> dict[str, Any]:
    """Properties for keys of other tools, which an open section would take: an editor marks them, as `check` does."""
    if section not in OPEN_SECTIONS:
        return {}
    found: dict[str, Any] = {}
    for key in {key: None for table in TOOLS.values() for key in table}:
        target, fix = meaning_of_key(section, key)
        if target.partition(".")[0] == section and target != f"{section}.{key}":
            found[key] = {"not": {}, "description": fix}
    return found


_JSON_TYPES = {
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "str": "string",
    "list": "array",
    "dict": "object",
}


def _property(field: Field) -> dict[str, Any]:
    found: dict[str, Any] = {}
    strings: dict[str, Any] = {"type": "string"}
    if field.choices and not field.open_choices:
        strings["enum"] = list(field.choices)
    elif field.choices:
        strings["anyOf"] = [{"enum": list(field.choices)}, {"pattern": f"^({field.open_choices})$"}]
    branches: list[dict[str, Any]] = []
    for kind in field.kinds:
        branch: dict[str, Any] = strings if kind == "str" else {"type": _JSON_TYPES[kind]}
        if kind in ("int", "float") and field.limits is not None:
            branch |= _range(field)
        if kind == "list" and field.items:
            inside = [
                strings if item == "str" else {"type": _JSON_TYPES[item]} for item in field.items if item in _JSON_TYPES
            ]
            branch["items"] = inside[0] if len(inside) == 1 else {"anyOf": inside}
        branches.append(branch)
    if field.kinds and field.optional:
        branches.append({"type": "null"})
    if len(branches) == 1:
        found |= branches[0]
    elif branches:
        found["anyOf"] = branches
    if field.help:
        found["description"] = field.help
    if field.has_default and field.default is not None:
        found["default"] = field.default
    if field.deprecated:
        found["deprecated"] = True
    return found


def _range(field: Field) -> dict[str, Any]:
    limits = field.limits
    assert limits is not None
    bounds = {
        "minimum": limits.least,
        "maximum": limits.most,
        "exclusiveMinimum": limits.above,
        "exclusiveMaximum": limits.below,
    }
    bound = {name: value for name, value in bounds.items() if value is not None}
    return {"anyOf": [bound, {"enum": list(limits.also)}]} if limits.also else bound
