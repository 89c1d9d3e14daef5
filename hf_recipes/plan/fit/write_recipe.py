"""The recommended recipe as a file: the user's own text with the changed keys set, with all comments.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_recipes.common.files import put_output
from hf_recipes.common.text import as_yaml
from hf_recipes.errors import PlanError, RecipeError
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.upgrade import upgrade_text
from hf_recipes.recipe.yaml_editor import YamlText

LOCATION = "argument '--write'"


def rewrite_text(source: str, target: str, values: Mapping[str, Any]) -> str:
    """The text of `source` with dotted `values` set; `extends` is made relative to `target`'s folder. Old keys become
    today's: `values` are of today's, and both would contradict each other."""
    given, _ = upgrade_text(Path(source).read_text(encoding="utf-8"), source)
    text = YamlText(given, source)
    found = text.with_values(values)
    parent = text.document.values.get("extends")
    if isinstance(parent, str):
        absolute = os.path.join(os.path.dirname(os.path.abspath(source)), parent)
        relative = os.path.relpath(absolute, os.path.dirname(os.path.abspath(target)))
        if relative != parent:
            found = found.with_values({"extends": relative})
    return found.text


def write_recipe(source: str, target: str, values: Mapping[str, Any]) -> str:
    """Writes it; returns the line that says so. Raises PlanError for a target that exists or cannot be written,
    and for a recipe that `check` would refuse."""
    if os.path.exists(target):  # since the command looked
        raise PlanError.at(LOCATION, f"{target!r} exists", "name a new file")
    try:
        put_output(target, rewrite_text(source, target, values))
    except OSError as problem:
        raise PlanError.at(
            LOCATION, f"{target!r} cannot be written ({problem.strerror})", "choose another path"
        ) from None
    try:
        read_recipe(target)
    except RecipeError as problem:  # such as an old key in a file that it extends
        os.unlink(target)
        keys = ", ".join(f"{key}: {as_yaml(value)}" for key, value in values.items())
        raise PlanError.at(LOCATION, f"{target!r} is not written: {problem.errors[0]}", f"found: {keys}") from None
    return f"  written: {target}"
