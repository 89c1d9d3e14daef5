"""`--set` of the commands that are given a run: how a file is read, and how text is generated."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.errors import DataError, Diagnostic, RecipeError
from hf_recipes.inference.trained import Found

WHERE = "argument '--set'"
# In a fix: the key of `dataset` that reads a file right, and its value where the message knows it.
ADVICE = re.compile(
    r"\b(?:dataset\.)?(encoding|delimiter|quoting|field|\w+_column)\b(?:: (\"[^\"]*\"|[\w-]+))?", re.ASCII
)
READ_ELSEWHERE = ("path", "data_files", "data_dir", "split", "test_size", "streaming")  # --file and --data say it


def read_settings(overrides: Sequence[str], sections: Collection[str]) -> dict[str, dict[str, Any]]:
    """{section: {key: value}} of the command line, of these sections. Raises RecipeError for others, and for keys of
    `dataset` that its file does not have."""
    from hf_recipes.recipe.merge import arguments_document

    document = arguments_document(overrides)
    if document.errors:
        raise RecipeError(document.errors)
    values = document.values or {}
    for name in values:
        if name not in sections:
            what = f"{name} changes nothing here"
            raise RecipeError.at(WHERE, what, f"write {' or '.join(f'{one}.key=value' for one in sections)}")
    for key in values.get("dataset") or {}:
        if key in READ_ELSEWHERE:
            raise RecipeError.at(WHERE, f"dataset.{key} is not this command's to change", "name the file by its path")
    return {name: dict(value or {}) for name, value in values.items()}


def with_generation(found: Found, given: dict[str, Any], max_new_tokens: int | None) -> dict[str, Any]:
    """GenerationConfig's arguments. Raises RecipeError for a task that generates nothing."""
    given = dict(given) if max_new_tokens is None else {**given, "max_new_tokens": max_new_tokens}
    if given and not TASKS[found.task].generates:
        what = f"a model for {TASKS[found.task].title} generates no text"
        where = WHERE if set(given) != {"max_new_tokens"} else "argument '--max-new-tokens'"
        raise RecipeError.at(where, what, "leave it out")
    return given


@contextlib.contextmanager
def options_in_fixes() -> Iterator[None]:
    """Fixes that name a key of the recipe's data say how this command is given it."""
    try:
        yield
    except DataError as problem:
        raise DataError(map(_with_option, problem.errors), problem.beside) from problem


def _with_option(error: Diagnostic) -> Diagnostic:
    found = sorted(ADVICE.finditer(error.fix), key=lambda one: one[2] is None)  # those with a value first
    if not found:
        return error
    option = shlex.quote(f"dataset.{found[0][1]}={found[0][2] or 'NAME'}")
    return replace(error, fix=f"{error.fix}; to this command: --set {option}")
