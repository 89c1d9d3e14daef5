"""`check` and `upgrade`: what a recipe file alone shows. Imports neither torch nor transformers."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from hf_recipes.common.secrets import mask_secrets
from hf_recipes.data.first_rows import column_errors
from hf_recipes.data.splits import file_errors
from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.recipe.read import MOST_ERRORS, examine, in_order, readable_parts
from hf_recipes.recipe.rules import all_rules
from hf_recipes.recipe.yaml_reader import read_bytes


def check(path: str, overrides: Sequence[str] = (), *, strict: bool = False) -> tuple[list[str], int]:
    """The lines to print about one recipe, and the number of its errors. `strict`: each warning counts as one."""
    document = examine(path, overrides)
    faults, warnings, notes = list(document.errors), list(map(str, document.warnings)), []
    recipe = next(readable_parts(document), None)
    if recipe is not None:
        faults = in_order([*faults, *column_errors(recipe, document.broken)], document.files)
        if isinstance(recipe.get("dataset.path"), str):
            # The data may be elsewhere: the recipe may be for another machine.
            warnings += (f"{missing} (on this machine; `run` stops there)" for missing in file_errors(recipe))
        notes = all_rules.device_requirements(recipe)
    errors = list(map(str, faults))
    if strict:
        errors, warnings = errors + warnings, []
    more = [f"... and {len(errors) - MOST_ERRORS} more errors"] if len(errors) > MOST_ERRORS else []
    lines = [*document.translations, *(f"error: {each}" for each in errors[:MOST_ERRORS]), *more]
    lines += [f"warning: {each}" for each in warnings]
    if errors:
        counts = [_count(len(errors), "error"), *([_count(len(warnings), "warning")] if warnings else [])]
        return [*lines, f"{path}: {' and '.join(counts)}"], len(errors)
    lines += [f"note: {path}: {line}" for line in notes]
    return [*lines, f"{path}: ok"], 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def upgrade_file(path: str, *, dry_run: bool) -> tuple[list[str], str]:
    """Rewrite the file with today's keys, completely or not at all: (the translations, dry: the new text)."""
    from hf_recipes.recipe.upgrade import upgrade_text

    data = read_bytes(path)
    if isinstance(data, Diagnostic):
        raise RecipeError(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise RecipeError.at(path, "cannot be read as text (not UTF-8)", "save the file as UTF-8") from None
    new, lines = upgrade_text(text, path)
    lines = [mask_secrets(line) for line in lines]
    if dry_run:
        return lines, mask_secrets(new)
    if new != text:
        _replace(path, new)
    return lines or [f"{path}: nothing to upgrade"], ""


def _replace(path: str, text: str) -> None:
    """The file's new text, complete or not at all; a symbolic link stays one, and the file keeps its mode."""
    file = Path(os.path.realpath(path))
    draft = file.with_name(f"{file.name}.part")
    try:
        draft.write_bytes(text.encode("utf-8"))
        shutil.copymode(file, draft)
        os.replace(draft, file)
    except OSError as problem:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise RecipeError.at(path, f"cannot be written: {problem.strerror}", "check its folder's permissions") from None
