"""The errors as a library user catches them: each class says which kind of thing to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes import errors
from hf_recipes.commands.restart import supervise
from hf_recipes.commands.verify import verify
from hf_recipes.common.run_lock import hold_folder
from hf_recipes.data.splits import load_splits
from hf_recipes.errors import RecipeError
from hf_recipes.evaluation.scores import read_scores
from hf_recipes.hub.push import push
from hf_recipes.models.config import build_config
from hf_recipes.models.tokenizer import build_tokenizer
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe

RECIPE = """\
task: text-classification
model: {pretrained_model_name_or_path: ./nowhere}
dataset: {path: json, data_files: nothing.jsonl}
TrainingArguments: {output_dir: out}
"""


@pytest.fixture
def recipe(write_recipe: Callable[..., str]) -> Recipe:
    return read_recipe(write_recipe(RECIPE))


def raised(work: Callable[[], object]) -> type[RecipeError]:
    with pytest.raises(RecipeError) as caught:
        work()
    assert caught.value.errors
    return type(caught.value)


def test_a_wrong_recipe_is_a_recipe_error_and_none_of_the_others(recipe: Recipe) -> None:
    assert raised(lambda: read_recipe(recipe.path, ["TrainingArguments.max_step=1"])) is RecipeError


def test_missing_data_is_a_data_error(recipe: Recipe) -> None:
    assert raised(lambda: load_splits(recipe)) is errors.DataError


def test_a_missing_model_or_tokenizer_is_a_model_error(recipe: Recipe) -> None:
    assert raised(lambda: build_config(recipe)) is errors.ModelError
    assert raised(lambda: build_tokenizer(recipe, None, print)) is errors.ModelError


def test_an_output_folder_that_cannot_be_written_is_an_output_dir_error(folder: Path) -> None:
    (folder / "out").write_text("a file")
    assert raised(lambda: hold_folder(Path("out"), "recipe.yaml:4").__enter__()) is errors.OutputDirError


def test_scores_that_cannot_be_read_are_a_record_error(folder: Path) -> None:
    assert raised(lambda: read_scores("scores.parquet")) is errors.RecordError


def test_a_folder_without_checkpoints_is_a_checkpoint_error(folder: Path) -> None:
    assert raised(lambda: verify(".")) is errors.CheckpointError


def test_a_launch_that_cannot_work_is_a_launch_error(recipe: Recipe) -> None:
    assert raised(lambda: supervise(recipe.path, [], [], 1, environment={"WORLD_SIZE": "2"})) is errors.LaunchError


def test_a_run_that_cannot_be_pushed_is_a_hub_error(folder: Path) -> None:
    assert raised(lambda: push(folder / "nothing", repo_id="user/name")) is errors.HubError


def test_every_error_is_a_recipe_error_and_is_exported() -> None:
    classes = {
        name: one for name, one in vars(errors).items() if isinstance(one, type) and one.__module__ == errors.__name__
    }
    assert set(classes) == set(errors.__all__)
    assert {name for name, one in classes.items() if not issubclass(one, RecipeError)} == {"Diagnostic"}
    assert all(name.endswith("Error") for name in classes if name != "Diagnostic")
