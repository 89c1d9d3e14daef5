"""The documents of a recipe: the files along `extends` and the arguments, each cleaned, and their merge."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_recipes.common.secrets import SECRET_KEYS, find_secret, is_secret_name
from hf_recipes.common.text import a_kind_of, format_value, kind_of, nearest
from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.deprecated_keys import OLD_TOP
from hf_recipes.recipe.document import MOST_SUGGESTIONS, Document, under
from hf_recipes.recipe.foreign_keys import is_accelerate_file, meaning_of_key, preference_method, tool_of
from hf_recipes.recipe.schema.own_keys import SECTIONS, TOP, TRAINERS
from hf_recipes.recipe.yaml_reader import read_file, read_text

_HUB = "a Hub access token"
LONGEST_PATH = 4096  # bytes, on Linux
_GONE: Any = object()


def file_documents(path: str) -> list[Document]:
    """A file and what it extends, the farthest parent first. Where one could not be read, it is not `complete`."""
    documents: list[Document] = []
    chain: list[str] = []
    asked = ""  # where the file is asked for, if another one extends it
    while True:
        real = os.path.realpath(path) if "\0" not in path else path
        if real in chain:
            circle = Diagnostic(
                location=asked,
                message=f"extends {path}, which leads back to itself",
                fix="remove one of these `extends`",
            )
            return _cut_short(documents, circle)
        chain.append(real)
        document = read_file(path)
        if asked and document.values is None and not os.path.isfile(path):  # reported where it is asked for
            first = document.errors[0]
            missing = Diagnostic(location=asked, message=f"extends {path}: {first.message}", fix=first.fix)
            return _cut_short(documents, missing)
        if document.values is None and document.errors:
            return [replace(document, complete=False), *documents]
        if not isinstance(document.values, dict):
            what = f"is {a_kind_of(document.values)}, not a recipe"
            fix = "a recipe is a mapping that begins with 'task:'"
            document = document.with_errors([Diagnostic(location=path, message=what, fix=fix)])
            return [replace(document, values=None, complete=False), *documents]
        document = clean(document)
        documents.insert(0, document)
        extends = document.values.get("extends")
        if extends is None:
            return documents
        asked = document.locations["extends"]
        if not isinstance(extends, str) or not extends:
            what, fix = f"extends is {format_value(extends)} ({kind_of(extends)})", "it must be the path of one recipe"
            wrong = Diagnostic(location=asked, message=what, fix=f"{fix}, relative to this file")
            return _cut_short(documents, wrong)
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.path.expanduser(extends)))
        if len(os.fsencode(path)) > LONGEST_PATH:
            long = Diagnostic(location=asked, message="extends is longer than a path may be", fix="shorten it")
            return _cut_short(documents, long)


def _cut_short(documents: list[Document], error: Diagnostic) -> list[Document]:
    """The documents without the one that the first of them extends."""
    return [replace(documents[0].with_errors([error]), complete=False), *documents[1:]]


def clean(document: Document) -> Document:
    """Unknown sections, sections that are not mappings and secrets become errors and are taken out.

    A section with a value that could not be read is broken: what it must have is not asked of it.
    """
    kept: dict[str, Any] = {}
    errors: list[Diagnostic] = []
    broken = {dotted.partition(".")[0] for dotted in document.broken}
    for name, value in without_secrets(document, errors).items():
        where = document.locations.get(str(name), document.path)
        if name in SECTIONS and not (value is None or isinstance(value, dict)):
            what = f"{name} is {format_value(value)} ({kind_of(value)})"
            fix = f"it must be a mapping: the keyword arguments of {name}"
            errors.append(Diagnostic(location=where, message=what, fix=fix))
            broken.add(name)
        elif name in SECTIONS or name in TOP or name in OLD_TOP:
            kept[name] = copy.deepcopy(value)  # an alias in the file must not tie two sections together
        else:
            few = len(errors) < MOST_SUGGESTIONS
            what, fix = f"a recipe has no {format_value(name)}", _fix_of_section(str(name)) if few else ""
            what, fix = preference_method(str(name)) or (what, fix)
            errors.append(Diagnostic(location=where, message=what, fix=fix))
            broken |= set() if not few else {near for near in (nearest(str(name), [*SECTIONS, *TOP]),) if near}
            broken |= set(TRAINERS) if preference_method(str(name)) else set()
    if other := _other_file(document):
        errors.append(other)
        broken |= {"task", "model", "dataset", *TRAINERS}
    document = replace(document, values=kept, broken=frozenset(broken))
    return document.with_errors(errors)


def _other_file(document: Document) -> Diagnostic | None:
    """One error for a file that is none of this package's, so that what a recipe must have is not asked of it."""
    if not document.path:
        return None
    tool = tool_of(document.values)
    if tool:
        fix = f"`hf-recipes convert {document.path}` writes the recipe"
        return Diagnostic(location=document.path, message=f"is a file of {tool}, not a recipe", fix=fix)
    if is_accelerate_file(document.values):
        fix = "give it to `accelerate launch --config_file` or to `plan --config_file`"
        return Diagnostic(location=document.path, message="is an accelerate config file, not a recipe", fix=fix)
    return None


def _fix_of_section(name: str) -> str:
    """Where an unknown key of the top belongs, or which one was meant."""
    from hf_recipes.recipe.schema.installed import fields
    from hf_recipes.recipe.validate import sections_with

    homes, (_, meant) = sections_with(name), meaning_of_key("", name)
    if homes:
        return f"it is a key of {' and of '.join(homes)}: write it there"
    if meant:
        return meant
    near = nearest(name, [*SECTIONS, *TOP], cutoff=0.75)
    if near:
        return f"did you mean {near!r}?"
    for section in SECTIONS:
        near = nearest(name, fields(section), cutoff=0.8)
        if near:
            return f"did you mean {near!r} of {section}?"
    near = nearest(name, [*SECTIONS, *TOP])
    return f"did you mean {near!r}?" if near else f"its sections are {', '.join(SECTIONS)}"


def without_secrets(document: Document, errors: list[Diagnostic]) -> dict[Any, Any]:
    """The values without tokens, keys and passwords, and an error for each: before any message could show one."""

    def refuse(dotted: str, kind: str) -> Any:
        what, fix = _refusal(kind)
        errors.append(Diagnostic(location=document.location(dotted), message=f"{dotted}: {what}", fix=fix))
        return _GONE

    def clean_value(value: Any, dotted: str) -> Any:
        if isinstance(value, dict):
            items = {key: clean_item(key, inner, dotted) for key, inner in value.items()}
            return {key: inner for key, inner in items.items() if inner is not _GONE}
        if isinstance(value, list):
            found = [clean_value(inner, f"{dotted}.{n}") for n, inner in enumerate(value)]
            return [inner for inner in found if inner is not _GONE]
        kind = find_secret(value) if isinstance(value, str) else ""
        return refuse(dotted, kind) if kind else value

    def clean_item(key: Any, value: Any, dotted: str) -> Any:
        name = str(key)
        inside = f"{dotted}.{name}" if dotted else name
        if kind := find_secret(name):
            return refuse(dotted or "a key", kind)
        if value is not None and (name.lower() in SECRET_KEYS or (isinstance(value, str) and is_secret_name(name))):
            return refuse(inside, _HUB if name.lower() in SECRET_KEYS else "a key or password")
        return clean_value(value, inside)

    return clean_value(document.values, "")


def _refusal(kind: str) -> tuple[str, str]:
    """(what is wrong, how to fix it) for a secret, which no message shows."""
    if kind == _HUB:
        return "a token in a recipe is refused", "set HF_TOKEN instead"
    return f"{kind} in a recipe is refused", "set it in the environment instead: upstream reads it there"


# arguments ----------------------------------------------------------------------------------------------------------


def arguments_document(overrides: Sequence[str]) -> Document:
    """The "Section.key=value" arguments, values as YAML 1.2; the last of two that set the same key wins."""
    values: dict[str, Any] = {}
    locations: dict[str, str] = {}
    errors: list[Diagnostic] = []
    broken: set[str] = set()
    for argument in overrides:
        dotted, equals, text = argument.partition("=")
        dotted = dotted.strip()
        location = f"argument {argument!r}"
        kind = find_secret(argument)
        if kind or is_secret_name(dotted.rpartition(".")[2]):
            shown = "..." if find_secret(dotted) else f"{dotted}=..."
            what, fix = _refusal(kind or _HUB)
            errors.append(Diagnostic(location=f"argument '{shown}'", message=what, fix=fix))
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
        _set(values, locations, dotted, None if empty else document.values, location)
    cleaned = clean(Document(values=values, locations=locations))
    return replace(cleaned, errors=(*errors, *cleaned.errors), broken=cleaned.broken | broken)


def _wrong_argument(argument: str, dotted: str, equals: str) -> tuple[str, str] | None:
    """(what is wrong, how to fix it), or None."""
    section, dot, key = dotted.partition(".")
    if not equals:
        near = nearest(dotted, [*SECTIONS, *TOP], cutoff=0.75)
        meant = f"{dotted}=..." if section in SECTIONS or section in TOP else ""
        if argument.startswith("-"):
            return "this is no setting", "write options before the recipe, and settings as Section.key=value"
        fix = f"did you mean '{meant or near + '.key=...'}'?" if meant or near else "such as TrainingArguments.seed=1"
        return "a setting is written Section.key=value", fix
    if section == "extends":
        return "extends belongs in a recipe, not in an argument", "give the recipe that extends the other one"
    if (section in SECTIONS and (not dot or key)) or ((section in TOP or section in OLD_TOP) and not dot):
        return None
    if section in TOP:
        return f"{section} has no keys", f"write {section}=value"
    if section in SECTIONS:
        return "the key after the dot is missing", f"write {section}.key=value"
    return f"a recipe has no {section!r}", _fix_of_section(section)


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
    _forget(locations, dotted)
    locations[dotted] = location


# merge --------------------------------------------------------------------------------------------------------------


def merge(path: str, documents: Sequence[Document]) -> Document:
    """One document of several, the later winning: mappings merge, everything else replaces.

    A section that is null takes the section of the documents below it away; where there is none in a file, it is an
    error, since YAML reads `LoraConfig:` with nothing behind it as null.
    """
    sections: dict[str, Any] = {}
    locations: dict[str, str] = {}
    broken: set[str] = set()
    empty: list[Diagnostic] = []
    for document in documents:
        broken |= document.broken
        for name, value in (document.values or {}).items():
            if name == "extends":
                continue
            if name in SECTIONS and value is None:
                if name not in sections and document.path and name not in broken:
                    fix = f"write `{name}: {{}}` for upstream's defaults, or leave the section out"
                    empty.append(Diagnostic(location=document.location(name), message=f"{name} is empty", fix=fix))
                    broken.add(name)
                sections.pop(name, None)
                _forget(locations, name)
            else:
                _lay(sections, locations, name, value, document.locations, name)
    files = [document.path for document in documents if document.path and document.values is not None]
    return Document(
        path=path,
        values=sections,
        locations=locations,
        broken=frozenset(broken),
        errors=(*(error for document in documents for error in document.errors), *empty),
        translations=tuple(dict.fromkeys(line for document in documents for line in document.translations)),
        renamed={where: keys for document in documents for where, keys in document.renamed.items()},
        files=tuple(dict.fromkeys([path, *reversed(files)])),
        complete=all(document.complete for document in documents),
    )


def _forget(locations: dict[str, str], dotted: str) -> None:
    for key in [key for key in locations if under(key, dotted)]:
        del locations[key]


def _lay(
    target: dict[Any, Any], locations: dict[str, str], key: Any, value: Any, above: Mapping[str, str], dotted: str
) -> None:
    """Lay `value` over `target[key]`; `above` are the locations inside `value`."""
    old = target.get(key)
    if isinstance(old, dict) and isinstance(value, dict):
        for inner, deeper in value.items():
            _lay(old, locations, inner, deeper, above, f"{dotted}.{inner}")
        return
    if isinstance(old, dict | list) or isinstance(value, dict | list):
        _forget(locations, dotted)
        locations |= {key: where for key, where in above.items() if under(key, dotted)}
    elif dotted in above:
        locations[dotted] = above[dotted]
    target[key] = copy.deepcopy(value)
