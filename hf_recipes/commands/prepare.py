"""`hf-recipes prepare`: a recipe's rows made and stored ahead of its run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hf_recipes.commands.predict import quiet_upstream
from hf_recipes.common.text import format_bytes
from hf_recipes.errors import RecipeError

if TYPE_CHECKING:
    from hf_recipes.data.prepared import Prepared


def command(path: str, overrides: Sequence[str] = (), *, say: Callable[[str], None] = print) -> None:
    """Prints what was made of each split and where it lies. Raises RecipeError for what would stop the run."""
    from hf_recipes.data.splits import file_errors
    from hf_recipes.recipe.read import read_recipe

    recipe = read_recipe(path, overrides)
    errors = file_errors(recipe)
    if errors:
        raise RecipeError(errors)
    if not sys.stderr.isatty():
        quiet_upstream()
    from hf_recipes.pipeline.rows import prepare_rows_of, refuse_stream

    refuse_stream(recipe)
    rows = prepare_rows_of(recipe, say)
    for line in describe_rows(rows.prepared):
        say(line)


def describe_rows(prepared: Prepared) -> Iterator[str]:
    """A line a split: counts, size and folder."""
    for split, data in {"train": prepared.train, **prepared.evals}.items():
        stats = prepared.stats[split]
        counts = f"{stats.rows:,} rows, {stats.tokens:,} tokens, the longest row has {stats.longest:,}"
        if stats.documents is not None:
            counts = f"{stats.documents:,} documents, {counts}"
        yield f"{split:<8} {counts}{_place(data)}"


def _place(data: Any) -> str:
    files = {one["filename"] for one in data.cache_files}
    if not files:
        return ""
    size = sum(os.path.getsize(name) for name in files)
    return f"; {format_bytes(size)} in {os.path.dirname(sorted(files)[0])}"
