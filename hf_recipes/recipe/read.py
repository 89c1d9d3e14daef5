"""A recipe file to a `Recipe`, or every error at once. Every step takes a Document and returns one:

    files along `extends`, arguments --clean--> --upgrade each--> merge --> validate --> required --> rules --> Recipe

Only the standard library and ruamel.yaml are imported: `hf-recipes check` answers without torch.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_recipes.common.shipped import is_ours, place_files
from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.recipe.document import Document
from hf_recipes.recipe.merge import arguments_document, clean, file_documents, merge
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.recipe.schema.own_keys import DATASET, SOURCES, TOP, TRAINERS
from hf_recipes.recipe.yaml_reader import read_text

MOST_ERRORS = 200  # that are listed


def read_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge, translate and validate a recipe. `overrides` are "Section.key=value" arguments, which win.

    Raises RecipeError with every error of the file, of what it extends and of the overrides, in the order of the lines;
    translations and warnings go with them. Nothing heavy is imported and nothing is written.
    """
    document = examine(path, overrides)
    if document.errors:
        beside = (*document.translations, *(f"warning: {each}" for each in document.warnings))
        raise RecipeError(_first(document.errors, path), beside)
    return _recipe_of(document)


def _with_shipped_files(sections: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that came with the package finds the data that came with it, in any working directory."""
    kept = {"data_files", "chat_template_path"}
    return {
        name: {key: place_files(value) if key in kept else value for key, value in part.items()}
        if isinstance(part, Mapping)
        else part
        for name, part in sections.items()
    }


def examine(path: str, overrides: Sequence[str] = ()) -> Document:
    """Everything that is found in a recipe, right or wrong: `errors` and `warnings` in the order of the lines."""
    document = _resolve(path, [*file_documents(path), arguments_document(overrides)])
    errors, warnings = (
        tuple(in_order(_with_old_keys(found, document.renamed), document.files))
        for found in (document.errors, document.warnings)
    )
    values = _with_shipped_files(document.values) if document.values and is_ours(path) else document.values
    return replace(document, values=values, errors=errors, warnings=warnings)


def examine_text(text: str, path: str) -> Document:
    """The same of a recipe's text that is in no file; locations are "path:line"."""
    document = replace(read_text(text, lambda line: f"{path}:{line}", path), path=path)
    document = _resolve(path, [clean(document)])
    return replace(document, errors=tuple(in_order(document.errors, document.files)))


def _with_old_keys(found: Iterable[Diagnostic], renamed: Mapping[str, tuple[str, str]]) -> Iterator[Diagnostic]:
    """A message about a key that was translated names the key that the file has, too."""
    for each in found:
        old, news = renamed.get(each.location, ("", ""))
        words = set(re.findall(r"\w+", each.message))
        if old and old not in words and words & set(news.split()):
            each = replace(each, message=f"{each.message} (written as {old})")
        yield each


def _first(errors: Sequence[Diagnostic], path: str) -> list[Diagnostic]:
    """A data file that is read as a recipe has thousands."""
    more = len(errors) - MOST_ERRORS
    if more <= 0:
        return list(errors)
    rest = Diagnostic(location=path, message=f"{more} more errors like these", fix="is this a recipe?")
    return [*errors[:MOST_ERRORS], rest]


def _resolve(path: str, documents: Sequence[Document]) -> Document:
    """All the steps. What is wrong is in the errors, and what stays then only serves the next step."""
    from hf_recipes.recipe.required import validate_required
    from hf_recipes.recipe.upgrade import upgrade_document
    from hf_recipes.recipe.validate import validate_sections

    document = merge(path, [upgrade_document(each) for each in documents])
    if all(each.values is None for each in documents if each.path):
        return document
    document = validate_sections(_without_nulls(document))
    if document.complete:
        document = _with_output_dir(validate_required(document))
        errors, warnings = _rule_findings(document)
        document = replace(document.with_errors(errors), warnings=(*document.warnings, *warnings))
    return document


def _recipe_of(document: Document) -> Recipe:
    return Recipe(
        path=document.path,
        sections=document.values,
        locations=document.locations,
        translations=document.translations,
        warnings=document.warnings,
    )


def _without_nulls(document: Document) -> Document:
    """Null for a key of this package, or for the model's source, only takes a parent's value away."""
    sections = dict(document.values)
    inside: dict[str, Iterable[str]] = {"model": SOURCES, "dataset": DATASET}
    for name, keys in inside.items():
        if isinstance(sections.get(name), dict):
            sections[name] = _without(sections[name], keys)
    return replace(document, values=_without(sections, TOP))


def _without(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    nulls = {key for key in keys if values.get(key) is None}
    return {key: value for key, value in values.items() if key not in nulls}


def _with_output_dir(document: Document) -> Document:
    """A folder of the recipe's own name: upstream's default "trainer_output" would be shared by all recipes."""
    sections = dict(document.values)
    for trainer in (name for name in TRAINERS if isinstance(sections.get(name), dict)):
        if sections[trainer].get("output_dir") is None:
            folder = f"runs/{os.path.splitext(os.path.basename(document.path))[0]}"
            sections[trainer] = {**sections[trainer], "output_dir": folder}
    return replace(document, values=sections)


def _rule_findings(document: Document) -> tuple[list[Diagnostic], list[Diagnostic]]:
    """(errors, warnings) that the rules find in the part of a recipe that is not broken: nothing that only follows from
    another error. Of two trainers each is checked by itself, so that one error does not hide the others."""
    from hf_recipes.recipe.rules.all_rules import errors, warnings

    names = {dotted.rpartition(".")[2] for dotted in document.broken if dotted not in TRAINERS}
    found: tuple[list[Diagnostic], list[Diagnostic]] = [], []
    for recipe in readable_parts(document):
        for several, look in zip(found, (errors, warnings), strict=True):
            several += [
                each for each in look(recipe) if not names & set(re.findall(r"\w+", f"{each.message} {each.fix}"))
            ]
    return found


def readable_parts(document: Document) -> Iterator[Recipe]:
    """What is not broken of a document, as a Recipe for each trainer that it has: the recipe itself if it is right.

    A task that is misspelled is taken as the nearest one; without any there is no recipe.
    """
    from hf_recipes.catalog.tasks import TASKS
    from hf_recipes.common.text import nearest

    sections = copy.deepcopy(dict(document.values or {}))
    task = sections.get("task")
    sections["task"] = task if isinstance(task, str) and task in TASKS else nearest(str(task), TASKS)
    if not sections["task"]:
        return
    for dotted in document.broken - {"task"}:
        holder: Any = sections
        *parents, last = dotted.split(".")
        for parent in parents:
            holder = holder.get(parent) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and not (last in TRAINERS and not parents):
            holder.pop(last, None)
    for trainer in (name for name in TRAINERS if isinstance(sections.get(name), dict)):
        single = {name: value for name, value in sections.items() if name == trainer or name not in TRAINERS}
        yield _recipe_of(replace(document, values=single))


def in_order(errors: Iterable[Diagnostic], files: Sequence[str]) -> list[Diagnostic]:
    """Without repeats, by line: the recipe's own first, then those of what it extends, then the arguments."""

    def key(error: Diagnostic) -> tuple[int, int]:
        if error.location.startswith("argument "):
            return len(files) + 1, 0
        match = re.fullmatch(r"(.*):(\d+)", error.location, re.S)
        file, line = (match[1], int(match[2])) if match else (error.location, 0)
        return files.index(file) if file in files else len(files), line

    return sorted(dict.fromkeys(errors), key=key)
