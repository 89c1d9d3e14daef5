"""A recipe of a task, for the tests of its rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe


@pytest.fixture
def make(write_recipe: Callable[..., str]) -> Callable[..., Recipe]:
    """Reads a recipe: its dataset section is on line 3, its trainer's section on line 4."""

    def recipe(
        task: str, dataset: str = "", section: str = "TrainingArguments", arguments: str = "", path: str = "json"
    ) -> Recipe:
        more = f", {dataset}" if dataset else ""
        training = f"output_dir: out{f', {arguments}' if arguments else ''}"
        return read_recipe(
            write_recipe(
                f"task: {task}\nmodel: {{config: {{model_type: gpt2}}}}\ndataset: {{path: {path}{more}}}\n"
                f"{section}: {{{training}}}\nBpeTrainer: {{vocab_size: 384}}\n"
            )
        )

    return recipe
