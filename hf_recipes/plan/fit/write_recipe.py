"""The recommended recipe as a file: the user's own text with the changed keys set, every comment kept. Light."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_recipes.errors import RecipeError
from hf_recipes.recipe.yaml_editor import YamlText

WHERE = "argument '--write'"


def rewritten(source: str, target: str, words: Mapping[str, Any]) -> str:
    """The text of `source` with dotted `words` set; `extends` is made to hold from `target`'s folder."""
    text = YamlText(Path(source).read_text(encoding="utf-8"), source)
    found = text.with_values(words)
    parent = text.document.values.get("extends")
    if isinstance(parent, str):
        absolute = os.path.join(os.path.dirname(os.path.abspath(source)), parent)
        relative = os.path.relpath(absolute, os.path.dirname(os.path.abspath(target)))
        if relative != parent:
            found = found.with_values({"extends": relative})
    return found.text


def write(source: str, target: str, words: Mapping[str, Any]) -> str:
    """Writes it; returns the line that says so. Raises RecipeError for a target that is there or cannot be written."""
    if os.path.exists(target):
        raise RecipeError.at(WHERE, f"{target!r} exists", "name a new file")
    try:
        Path(target).write_text(rewritten(source, target, words), encoding="utf-8")
    except OSError as problem:
        raise RecipeError.at(
            WHERE, f"{target!r} cannot be written ({problem.strerror})", "choose another place"
        ) from None
    return f"  written: {target}"
