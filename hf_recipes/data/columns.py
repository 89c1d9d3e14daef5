"""Columns of the data: which a recipe may read (no other column may stop a run), and all values of one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS

if TYPE_CHECKING:
    from datasets import Dataset

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


def values_of(rows: Dataset, column: str) -> list[Any]:
    """All values of a column, read a batch at a time: `rows[column]` reads row by row when it is walked through."""
    return [value for batch in rows.select_columns([column]).iter(1000) for value in batch[column]]
