"""global_batch_size: the accumulation follows from the launch, and what no launch can keep is refused by `check`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hf_recipes.checkpoints import compatibility
from hf_recipes.common.device import Device
from hf_recipes.errors import RecipeError
from hf_recipes.pipeline import launch_checks
from hf_recipes.plan.fit.write_recipe import rewrite_text
from hf_recipes.recipe.defaults import choose
from hf_recipes.recipe.global_batch import accumulation_of, with_accumulation, without_derived
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import dump_recipe
from hf_recipes.recipe.smoke import shrink

RANK_0 = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "1"}  # what a launcher sets, too

Write = Callable[..., str]
RECIPE = """\
task: causal-lm
model: {preset: gpt-tiny}
BpeTrainer: {vocab_size: 384}
dataset: {path: text, data_files: none.txt}
global_batch_size: 64
TrainingArguments:
  per_device_train_batch_size: 8
  learning_rate: 1e-3
"""
STEPS = "  gradient_accumulation_steps: 4\n"


def _errors(write_recipe: Write, text: str) -> list[str]:
    try:
        read_recipe(write_recipe(text))
    except RecipeError as error:
        return [str(one) for one in error.errors]
    return []


@pytest.mark.parametrize(("processes", "steps"), [(1, 8), (2, 4), (8, 1)])
def test_the_accumulation_follows_from_the_number_of_processes_with_the_arithmetic(write_recipe, processes, steps):
    device = Device(kind="cpu", name="a CPU", bf16=True, processes=processes)
    recipe, lines = choose(read_recipe(write_recipe(RECIPE)), device)
    assert recipe.training["gradient_accumulation_steps"] == steps
    reason = f"global_batch_size: 64 = 8 per device x {processes} x {steps}"
    assert f"TrainingArguments.gradient_accumulation_steps: {steps} ({reason})" in lines


def test_upstreams_default_of_rows_per_device_counts(write_recipe):
    recipe = read_recipe(write_recipe(RECIPE.replace("  per_device_train_batch_size: 8\n", "")))
    assert accumulation_of(recipe, 2) == 4


def test_the_recipe_that_a_run_writes_can_be_started_on_any_number_of_processes(write_recipe):
    written = dump_recipe(with_accumulation(read_recipe(write_recipe(RECIPE)), 2))
    assert "gradient_accumulation_steps" not in written and "global_batch_size: 64" in written
    assert accumulation_of(read_recipe(write_recipe(written)), 4) == 2


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            RECIPE.replace("64", "60"),
            "recipe.yaml:5: global_batch_size: 60 is no multiple of 8 per device; write 56 or 64, or "
            "per_device_train_batch_size: 6",
        ),
        (
            RECIPE.replace("64", "5"),
            "recipe.yaml:5: global_batch_size: 5 is no multiple of 8 per device; write 8, or "
            "per_device_train_batch_size: 5",
        ),
        (
            RECIPE + STEPS.replace("4", "3"),
            "recipe.yaml:9: global_batch_size is 64, and 8 per device x 3 accumulation = 24; remove "
            "gradient_accumulation_steps: global_batch_size decides it",
        ),
        (RECIPE.replace("64", "0"), "recipe.yaml:5: global_batch_size is 0; it must be at least 1"),
        (
            RECIPE.replace("64", "true"),
            "recipe.yaml:5: global_batch_size is true (boolean); it must be an integer",
        ),
        (
            RECIPE + "  accelerator_config: {split_batches: true}\n",
            "recipe.yaml:9: split_batches: true divides per_device_train_batch_size over the processes, and "
            "global_batch_size counts it on each; leave split_batches out, or global_batch_size",
        ),
        (
            RECIPE + "  optim: galore_adamw_layerwise\n  optim_target_modules: all-linear\n",
            "recipe.yaml:5: optim: galore_adamw_layerwise steps inside backward, and global_batch_size may ask for "
            "accumulation; state per_device_train_batch_size alone",
        ),
    ],
)
def test_what_no_launch_could_keep_is_an_error_with_its_line(write_recipe, text, error):
    assert error in _errors(write_recipe, text)


def test_both_keys_are_right_on_one_number_of_processes_which_check_names_and_a_launch_checks(write_recipe):
    recipe = read_recipe(write_recipe(RECIPE + STEPS))
    assert [str(one) for one in recipe.warnings if "fits a launch" in str(one)] == [
        "recipe.yaml:9: global_batch_size: 64 with gradient_accumulation_steps: 4 fits a launch of 2 processes only; "
        "remove gradient_accumulation_steps: global_batch_size decides it"
    ]
    two = {"WORLD_SIZE": "2", "MASTER_ADDR": "x", **RANK_0}
    assert launch_checks.find_environment_errors(recipe, two) == []
    assert [str(one) for one in launch_checks.find_environment_errors(recipe, {})] == [
        "recipe.yaml:9: global_batch_size is 64, and 8 per device x 1 process x 4 accumulation = 32; remove "
        "gradient_accumulation_steps: global_batch_size decides it"
    ]


def test_a_number_of_processes_that_does_not_divide_it_is_refused_at_the_launch(write_recipe):
    recipe = read_recipe(write_recipe(RECIPE))
    three = launch_checks.find_environment_errors(recipe, {"WORLD_SIZE": "3", "MASTER_ADDR": "x", **RANK_0})
    assert [str(one) for one in three] == [
        "recipe.yaml:5: global_batch_size: 64 is no multiple of 8 per device x 3 processes = 24; write 48 or 72"
    ]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "x", **RANK_0, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    assert launch_checks.find_environment_errors(recipe, shared) == []  # the derived one


def test_a_smoke_run_accumulates_as_much_as_a_smoke_run_may_on_any_launch(write_recipe):
    small, lines = shrink(read_recipe(write_recipe(RECIPE)))
    assert "gradient_accumulation_steps: 2" in lines and "without global_batch_size" in lines
    assert "global_batch_size" not in small.sections


def test_what_plan_recommends_leaves_the_accumulation_to_the_global_batch(write_recipe, folder):
    path = write_recipe(RECIPE)
    values = {"TrainingArguments.per_device_train_batch_size": 4, "TrainingArguments.gradient_accumulation_steps": 8}
    kept = without_derived(with_accumulation(read_recipe(path), 2), values)
    assert kept == {"TrainingArguments.per_device_train_batch_size": 4}
    (folder / "new.yaml").write_text(rewrite_text(path, "new.yaml", kept))
    assert accumulation_of(read_recipe("new.yaml"), 2) == 8
    own = read_recipe(write_recipe(RECIPE + STEPS))  # the user's own number has to follow
    assert without_derived(with_accumulation(own, 2), values) == values


def test_a_derived_accumulation_is_the_same_recipe_and_another_global_batch_is_another(write_recipe):
    def described(processes: int, text: str = RECIPE) -> dict:
        recipe = with_accumulation(read_recipe(write_recipe(text)), processes)
        return compatibility.describe_recipe(recipe.sections, recipe.trainer, recipe.training)

    assert compatibility.compare_recipes(described(1), described(2)) == []
    other = compatibility.compare_recipes(described(1), described(2, RECIPE.replace("64", "32")))
    assert [(str(one), one.kind) for one in other] == [("global_batch_size was 64, is 32", "matters")]
    plain = RECIPE.replace("global_batch_size: 64\n", "")
    same = described(1, plain + STEPS.replace("4", "8"))
    assert compatibility.compare_recipes(same, described(1)) == []  # written in another way
    fewer = compatibility.compare_recipes(same, described(2))
    assert [str(one) for one in fewer] == ["TrainingArguments.gradient_accumulation_steps was 8, is 4"]
