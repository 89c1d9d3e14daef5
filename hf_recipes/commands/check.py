"""`check` and `upgrade`: what a recipe file alone shows. Imports neither torch nor transformers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hf_recipes.errors import RecipeError
from hf_recipes.recipe.read import read_recipe


def check(path: str, overrides: Sequence[str] = ()) -> tuple[list[str], int]:
    """The lines to print about one recipe, and the number of its errors."""
    from hf_recipes.data.splits import file_errors
    from hf_recipes.recipe.rules import all_rules

    try:
        recipe = read_recipe(path, overrides)
    except RecipeError as error:
        lines = [f"error: {each}" for each in error.errors]
        return [*lines, f"{path}: {_count(len(lines), 'error')}"], len(lines)
    lines = [*recipe.translations]
    lines += [f"warning: {each}" for each in recipe.warnings]
    # The data may be elsewhere: the recipe may be for another machine.
    lines += [f"warning: {missing} (on this machine; `run` stops there)" for missing in file_errors(recipe)]
    lines += [f"note: {path}: {line}" for line in all_rules.device_requirements(recipe)]
    return [*lines, f"{path}: ok"], 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def upgrade_file(path: str, *, dry_run: bool) -> list[str]:
    """Rewrite the file with today's keys, completely or not at all: the translations (dry: and the new text)."""
    from hf_recipes.recipe.upgrade import upgrade_text

    try:
        text = Path(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise RecipeError.at(
            path, f"cannot be read as text ({getattr(problem, 'strerror', None) or 'not UTF-8'})"
        ) from None
    new, lines = upgrade_text(text, path)
    if dry_run:
        return [*lines, new]
    if new != text:
        draft = Path(f"{path}.part")
        draft.write_bytes(new.encode("utf-8"))
        os.replace(draft, path)
    return lines or [f"{path}: nothing to upgrade"]
