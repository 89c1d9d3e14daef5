"""Which columns of the data a recipe may read: no other column may stop a run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hf_recipes.catalog.tasks import TASKS

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

CHAT = (
    *("conversations", "tools", "system", "chat_template_kwargs", "history"),
    *("instruction", "input", "context", "output", "response"),
)


def needed_columns(recipe: Recipe) -> set[str]:
    """Names of columns, whether the data has them or not."""
    found = set(TASKS[recipe.task].columns.values()) | (set(CHAT) if recipe.task == "chat" else set())
    for key, value in recipe.section("dataset").items():
        if key.endswith("_column"):
            found |= set(value if isinstance(value, list) else [str(value)])
        elif key.endswith("_template"):
            found |= set(re.findall(r"\w+", str(value)))
    return found
