"""The rows of a recipe as its run makes them, without a model: for `prepare` and `inspect`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.device import Device
from hf_recipes.data.row_checks import check_rows
from hf_recipes.data.row_origins import naming_rows_of_files
from hf_recipes.data.splits import load_splits
from hf_recipes.errors import DataError
from hf_recipes.models.config import build_config, longest_input
from hf_recipes.models.tokenizer import build_tokenizer
from hf_recipes.recipe.defaults import choose, choose_length

if TYPE_CHECKING:
    from hf_recipes.data.prepared import Prepared
    from hf_recipes.recipe.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RecipeRows:
    """`length`: tokens of the longest row that is made."""

    recipe: Recipe
    config: Any
    tokenizer: Any
    length: int
    prepared: Prepared


def refuse_stream(recipe: Recipe) -> None:
    """Raises DataError for rows that are read while the run trains: nothing of them is stored, or counted."""
    if recipe.get("dataset.streaming") is True:
        what = "dataset.streaming: true: the train split is read while the run trains"
        fix = "leave it out, here or as an argument: dataset.streaming=false"
        raise DataError.at(recipe.location("dataset.streaming"), what, fix)


def prepare_rows_of(recipe: Recipe, say: Callable[[str], None], *, check: bool = True) -> RecipeRows:
    """Raises RecipeError for whatever stops the run before its model is built. `check`: the rows too."""
    recipe, _ = choose(recipe, Device(kind="cpu", name="CPU", bf16=True))
    config = build_config(recipe)
    splits = load_splits(recipe)
    for line in splits.notes:
        say(line)
    tokenizer = build_tokenizer(recipe, splits.train, say)
    recipe, length, lines = choose_length(recipe, longest_input(config), tokenizer.model_max_length)
    for line in lines:
        say(line)
    with naming_rows_of_files(splits.origins):
        module = import_module(TASKS[recipe.task].module)
        prepared: Prepared = module.prepare(splits, tokenizer, recipe, length, config)
    for line in prepared.notes:
        say(line)
    if check:
        check_rows(recipe, prepared, tokenizer, say)
    return RecipeRows(recipe=recipe, config=config, tokenizer=tokenizer, length=length, prepared=prepared)
