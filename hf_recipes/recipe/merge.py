"""The layers of a recipe: the files along `extends` and the arguments, each cleaned, and their merge."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hf_recipes.common.text import HUB_TOKEN, kind_of, nearest, said
from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.deprecated_keys import OLD_TOP
from hf_recipes.recipe.schema.own_keys import SECRETS, SECTIONS, TOP
from hf_recipes.recipe.yaml_reader import read_file, read_text

_SECRET_MEND = "set HF_TOKEN instead"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One file, or the arguments together. `sections` may hold None for a section that this layer takes away."""

    path: str  # "" for the arguments
    sections: dict[str, Any]
    locations: dict[str, str]
    broken: frozenset[str] = field(default_factory=frozenset)  # sections that were meant, and cannot be judged


def file_layers(path: str, errors: list[Diagnostic]) -> tuple[list[Layer], bool]:
    """Layers of a file and of what it extends, the farthest parent first, and whether all of them could be read."""
    layers: list[Layer] = []
    chain: list[str] = []
    where = ""
    while True:
        real = os.path.realpath(path) if "\0" not in path else path
        if real in chain:
            errors.append(
                Diagnostic(location=where, message=f"extends {path}, which leads back to itself", fix="end the circle")
            )
            return layers, False
        chain.append(real)
        document = read_file(path)
        if (
            where and document.value is None and not os.path.isfile(path)
        ):  # told where it is asked for, not where it is not
            first = document.errors[0]
            errors.append(Diagnostic(location=where, message=f"extends {path}: {first.message}", fix=first.fix))
            return layers, False
        errors += document.errors
        if document.value is None and document.errors:
            return layers, False
        if not isinstance(document.value, dict):
            what = f"is a {kind_of(document.value)}, not a recipe"
            errors.append(Diagnostic(location=path, message=what, fix="a recipe is a mapping that begins with 'task:'"))
            return layers, False
        layer, extends = _cleaned(path, document.value, document.locations, errors)
        layer = replace(layer, broken=layer.broken | {dotted.partition(".")[0] for dotted in document.broken})
        layers.insert(0, layer)
        if extends is None:
            return layers, True
        where = document.locations["extends"]
        if not isinstance(extends, str) or not extends:
            what = f"extends is {said(extends)} ({kind_of(extends)})"
            errors.append(
                Diagnostic(location=where, message=what, fix="it must be the path of one recipe, relative to this file")
            )
            return layers, False
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.path.expanduser(extends)))


def _cleaned(
    path: str, values: dict[Any, Any], locations: dict[str, str], errors: list[Diagnostic]
) -> tuple[Layer, Any]:
    """(layer, what it extends): unknown sections, sections that are no mapping and secrets are faults and taken out."""
    kept: dict[str, Any] = {}
    broken: set[str] = set()
    for name, value in values.items():
        where = locations.get(str(name), path)
        if name in SECTIONS and not (value is None or isinstance(value, dict)):
            what = f"{name} is {said(value)} ({kind_of(value)})"
            errors.append(
                Diagnostic(location=where, message=what, fix=f"it must be a mapping: the keyword arguments of {name}")
            )
            broken.add(name)
        elif name in SECTIONS or name in TOP or name in OLD_TOP:
            kept[name] = copy.deepcopy(value)  # an alias in the file must not tie two sections together
            errors += _take_secrets(kept[name], name, locations, path)
        else:
            errors.append(
                Diagnostic(location=where, message=f"a recipe has no {said(name)}", fix=_mend_of_section(str(name)))
            )
            broken |= {near for near in (nearest(str(name), [*SECTIONS, *TOP]),) if near}
    return Layer(path=path, sections=kept, locations=locations, broken=frozenset(broken)), kept.get("extends")


def _mend_of_section(name: str) -> str:
    near = nearest(name, [*SECTIONS, *TOP])
    if near:
        return f"did you mean {near!r}?"
    from hf_recipes.recipe.validate import homes_of

    homes = homes_of(name)
    if homes:
        return f"it is a word of {' and of '.join(homes)}: write it there"
    return f"its sections are {', '.join(SECTIONS)}"


def _take_secrets(value: Any, dotted: str, locations: dict[str, str], path: str) -> list[Diagnostic]:
    """Tokens are refused before any message can show them, and taken out so that none is shown later."""
    found: list[Diagnostic] = []
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, dict):
        items = iter(list(value.items()))
    elif isinstance(value, list):
        items = iter(list(enumerate(value)))
    for key, inner in items:
        at = f"{dotted}.{key}"
        secret = isinstance(key, str) and key.lower() in SECRETS and inner is not None
        if secret or (isinstance(inner, str) and HUB_TOKEN.search(inner)):
            where = locations.get(at) or locations.get(dotted, path)
            found.append(Diagnostic(location=where, message=f"{at}: a token in a recipe is refused", fix=_SECRET_MEND))
            value[key] = None
            if isinstance(value, dict):
                del value[key]
        else:
            found += _take_secrets(inner, at, locations, path)
    return found


# arguments ----------------------------------------------------------------------------------------------------------


def override_layer(overrides: Sequence[str], errors: list[Diagnostic]) -> Layer:
    """The layer of "Section.key=value" arguments, values as YAML 1.2; the last of two that set the same key wins."""
    values: dict[str, Any] = {}
    locations: dict[str, str] = {}
    broken: set[str] = set()
    for argument in overrides:
        dotted, equals, text = argument.partition("=")
        dotted = dotted.strip()
        last = dotted.rpartition(".")[2].lower()
        location = f"argument {argument!r}"
        if last in SECRETS or HUB_TOKEN.search(argument):
            errors.append(
                Diagnostic(
                    location=f"argument '{dotted}=...'", message="a token in a recipe is refused", fix=_SECRET_MEND
                )
            )
            continue
        wrong = _wrong_argument(argument, dotted, equals)
        if wrong:
            errors.append(Diagnostic(location=location, message=wrong[0], fix=wrong[1]))
            broken |= {near for near in (nearest(dotted.partition(".")[0], SECTIONS),) if near}
            continue
        document = read_text(text, lambda _, location=location: location, nothing=location)  # type: ignore[misc]
        empty = not text.strip() or text.lstrip().startswith("#")
        errors += [] if empty else document.errors
        if document.errors and not empty:
            continue
        _set(values, locations, dotted, None if empty else document.value, location)
    layer, _ = _cleaned("", values, locations, errors)
    return Layer(path="", sections=layer.sections, locations=locations, broken=layer.broken | broken)


def _wrong_argument(argument: str, dotted: str, equals: str) -> tuple[str, str] | None:
    section, dot, key = dotted.partition(".")
    if not equals:
        near = nearest(dotted, [*SECTIONS, *TOP], cutoff=0.75)
        meant = f"{dotted}=..." if section in SECTIONS or section in TOP else ""
        if argument.startswith("-"):
            return "this is no setting", "write options before the recipe, and settings as Section.key=value"
        said_so = (
            f"did you mean '{meant or near + '.key=...'}'?" if meant or near else "such as TrainingArguments.seed=1"
        )
        return "a setting is written Section.key=value", said_so
    if section == "extends":
        return "extends stands in a recipe, not in an argument", "give the recipe that extends the other one"
    if (section in SECTIONS and (not dot or key)) or ((section in TOP or section in OLD_TOP) and not dot):
        return None
    if section in TOP:
        return f"{section} has no keys", f"write {section}=value"
    if section in SECTIONS:
        return "the key after the dot is missing", f"write {section}.key=value"
    return f"a recipe has no {section!r}", _mend_of_section(section)


def _set(values: dict[str, Any], locations: dict[str, str], dotted: str, value: Any, location: str) -> None:
    *parents, last = dotted.split(".")
    target, at = values, ""
    for parent in parents:
        at = f"{at}.{parent}" if at else parent
        inner = target.get(parent)
        if not isinstance(inner, dict):
            inner = target[parent] = {}
        locations[at] = locations.get(at, location)
        target = inner
    target[last] = value
    for key in [k for k in locations if k.startswith(f"{dotted}.")]:
        del locations[key]
    locations[dotted] = location


# merge --------------------------------------------------------------------------------------------------------------


def merged(layers: Sequence[Layer], errors: list[Diagnostic]) -> tuple[dict[str, Any], dict[str, str], set[str]]:
    """(sections, places, broken) of the layers, the later winning: mappings merge, everything else replaces.

    A section that is null takes the section of the layers below it away; where there is none in a file, it is a fault,
    since YAML reads `LoraConfig:` with nothing behind it as null.
    """
    sections: dict[str, Any] = {}
    locations: dict[str, str] = {}
    broken: set[str] = set()
    for layer in layers:
        broken |= layer.broken
        for name, value in layer.sections.items():
            if name == "extends":
                continue
            if name in SECTIONS and value is None:
                if name not in sections and layer.path and name not in broken:
                    fix = f"write `{name}: {{}}` for upstream's defaults, or leave the section out"
                    errors.append(
                        Diagnostic(location=layer.locations.get(name, layer.path), message=f"{name} is empty", fix=fix)
                    )
                    broken.add(name)
                sections.pop(name, None)
                _forget(locations, name)
            else:
                _lay(sections, locations, name, value, layer.locations, name)
    return sections, locations, broken


def _forget(locations: dict[str, str], dotted: str) -> None:
    for key in [k for k in locations if k == dotted or k.startswith(f"{dotted}.")]:
        del locations[key]


def _lay(
    target: dict[Any, Any], locations: dict[str, str], key: Any, value: Any, above: dict[str, str], dotted: str
) -> None:
    old = target.get(key)
    if isinstance(old, dict) and isinstance(value, dict):
        for inner, deeper in value.items():
            _lay(old, locations, inner, deeper, above, f"{dotted}.{inner}")
        return
    _forget(locations, dotted)
    locations |= {k: where for k, where in above.items() if k == dotted or k.startswith(f"{dotted}.")}
    target[key] = copy.deepcopy(value)
