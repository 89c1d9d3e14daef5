"""A recipe cut to what a trace needs: two steps, no files, no loaders, nothing reported. Recipe in, recipe out."""

from __future__ import annotations

from dataclasses import replace

from hf_recipes.errors import RecipeError
from hf_recipes.plan.trace.field_effects import find_refusals, has_stand_in, traced_arguments
from hf_recipes.recipe.global_batch import KEY, accumulation_of
from hf_recipes.recipe.recipe import Recipe

MICRO_BATCHES = 2  # of one step: the peak of two is the peak of all


def shorten_recipe(recipe: Recipe, folder: str, micro_batch: int | None, steps: int) -> Recipe:
    """`recipe` for `steps` optimizer steps in `folder`; every argument that decides a step's memory is unchanged
    (field_effects.py). Raises RecipeError for arguments that plan cannot follow."""
    refused = find_refusals(recipe)
    if refused:
        raise RecipeError(refused)
    arguments = traced_arguments(recipe) | {"output_dir": folder, "max_steps": steps}
    arguments["gradient_accumulation_steps"] = min(accumulation_of(recipe), MICRO_BATCHES)
    if has_stand_in(str(arguments.get("optim", ""))):  # trace.py gives it an optimizer
        arguments |= {"optim": "adamw_torch", "optim_args": None, "optim_target_modules": None}
    if micro_batch is not None:
        arguments["per_device_train_batch_size"] = micro_batch
    if arguments.get("fp16") and not recipe.get("master_weights"):
        arguments["bf16"] = True  # what a CPU accepts; trace.py makes it fp16 again
        arguments["fp16"] = False
    sections = {name: value for name, value in recipe.sections.items() if name not in ("EarlyStoppingCallback",)}
    sections.pop("sample_prompts", None)
    sections.pop(KEY, None)  # its accumulation is in the arguments
    return replace(recipe, sections={**sections, recipe.trainer: arguments})


def is_uniform(recipe: Recipe, rows: int) -> bool:
    """Whether every row of a batch of `rows` is full, so that no mask is made: a single row, blocks of text, packed
    rows whose documents share one mask. A padding-free row has several documents, and a mask between them."""
    training = recipe.training
    if recipe.trainer == "TrainingArguments":
        return rows == 1 or recipe.task == "causal-lm"
    if training.get("packing"):
        return training.get("packing_strategy") == "wrapped"
    return rows == 1 and not training.get("padding_free")


def is_padded(recipe: Recipe) -> bool:
    """Whether shorter rows of a batch are filled up with padding."""
    return not is_uniform(recipe, 2) and not recipe.training.get("packing") and not recipe.training.get("padding_free")
