"""How long the rows of a recipe's own data are: its splits, its tokenizer and its task's preparation, as the run's.

Runs in the tracing child. Only what lies on this machine is read: the child is offline.
"""

from __future__ import annotations

import time
from collections import Counter
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.device import Device
from hf_recipes.data.row_origins import naming_rows_of_files
from hf_recipes.data.splits import load_splits
from hf_recipes.errors import DataError
from hf_recipes.models.config import longest_input
from hf_recipes.models.tokenizer import build_tokenizer
from hf_recipes.plan.trace.meta_model import build_config
from hf_recipes.plan.trace.result import Lengths
from hf_recipes.recipe.defaults import choose, choose_length

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe


def read_row_lengths(recipe: Recipe) -> Lengths:
    """Raises RecipeError for data or a tokenizer that cannot be read here, upstream's error for what it refuses."""
    began = time.perf_counter()
    recipe, _ = choose(recipe, Device(kind="cpu", name="CPU", bf16=True))
    config = build_config(recipe)
    if recipe.get("dataset.streaming") is True:
        what = "the rows are streamed: their lengths are not known ahead"
        raise DataError.at(recipe.location("dataset.streaming"), what, "give a length: --length N")
    splits = load_splits(recipe)
    tokenizer = build_tokenizer(recipe, splits.train, _ignore_line)
    positions = longest_input(config)
    recipe, length, _ = choose_length(recipe, positions, tokenizer.model_max_length)
    with naming_rows_of_files(splits.origins):
        prepared = import_module(TASKS[recipe.task].module).prepare(splits, tokenizer, recipe, length, config)
    train, evaluated = _counts(prepared.train), _counts(prepared.evals["eval"])
    return Lengths(
        rows=sum(train.values()),
        eval_rows=sum(evaluated.values()),
        longest=max((*train, *evaluated)),
        tokens=sum(tokens * rows for tokens, rows in train.items()),
        cut=train.get(length, 0),
        rows_by_length=tuple(sorted(train.items())),
        seconds=time.perf_counter() - began,
    )


def _counts(rows: Any) -> Counter[int]:
    """Tokens -> rows. Arrow counts a list's values without making them."""
    import pyarrow.compute as compute

    column = rows.with_format("arrow")["input_ids"]
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    found: Counter[int] = Counter()
    for chunk in chunks:
        for pair in compute.value_counts(compute.list_value_length(chunk)).to_pylist():
            found[int(pair["values"])] += int(pair["counts"])
    return found


def _ignore_line(line: str) -> None:
    """The run prints what building a tokenizer reports."""
