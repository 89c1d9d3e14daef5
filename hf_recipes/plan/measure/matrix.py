"""The matrix of the lab: recipes at their real shapes and the changes that are tried on them. Data only."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.errors import RecipeError
from hf_recipes.plan.trace.field_effects import traced_arguments
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.recipe.schema.installed import checkpointing_key

GPU_SIZES_GIB = (8, 16, 24, 40)  # sizes that a fraction of the GPU stands for
AS_IT_IS = "as it is"
# What is tried on the recipes beside their own settings: name -> dotted values.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    AS_IT_IS: {},
    "eager": {"model.attn_implementation": "eager"},
    "checkpointing": {"{section}.{checkpointing}": True},
    "no checkpointing": {"{section}.{checkpointing}": False},
    "fp32": {"{section}.bf16": False, "{section}.fp16": False, "model.dtype": "float32"},
    "fp16": {"{section}.bf16": False, "{section}.fp16": True, "model.dtype": "float32"},
    "bf16": {"{section}.bf16": True, "{section}.fp16": False},
    "pure bf16": {"{section}.bf16": False, "{section}.fp16": False, "model.dtype": "bfloat16"},
    "adamw_bnb_8bit": {"{section}.optim": "adamw_bnb_8bit"},
    "adafactor": {"{section}.optim": "adafactor"},
    "LoRA": {"LoraConfig.r": 16, "LoraConfig.target_modules": "all-linear"},
    "QLoRA": {
        "LoraConfig.r": 16,
        "LoraConfig.target_modules": "all-linear",
        "BitsAndBytesConfig.load_in_4bit": True,
        "BitsAndBytesConfig.bnb_4bit_quant_type": "nf4",
        "BitsAndBytesConfig.bnb_4bit_use_double_quant": True,
        "BitsAndBytesConfig.bnb_4bit_compute_dtype": "bfloat16",
    },
}
ENCODER_VARIANTS: Mapping[str, Mapping[str, Any]] = {  # of the classification tasks alone
    "DeBERTa": {"model.pretrained_model_name_or_path": "microsoft/deberta-v3-base"},
}
SFT_VARIANTS: Mapping[str, Mapping[str, Any]] = {  # of chat recipes alone: the head's loss with and without logits
    "plain logits": {"SFTConfig.loss_type": "nll"},
    "fused head": {"SFTConfig.loss_type": "chunked_nll"},
}
MULTIPLES = (2, 4, 8, 16)  # of the recipe's rows of one device: where a GPU's memory ends
OF_THE_SCHEDULE = (
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "warmup_ratio",
    "lr_scheduler_type",
    "logging_steps",
)
# A tiny matrix, for a machine without a GPU: the same path from end to end.
TINY = {
    "task": "causal-lm",
    "model": {
        "config": {
            "model_type": "llama",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "vocab_size": 500,
            "max_position_embeddings": 64,
        }
    },
    "dataset": {"path": "generated", "max_length": 32},
    "TrainingArguments": {"output_dir": "runs/lab", "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2},
}
TINY_VARIANTS = (AS_IT_IS, "checkpointing", "LoRA")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement. `gib`: the size that a fraction of the GPU stands for; None: all of it (or a CPU)."""

    name: str  # of its record
    recipe: Recipe
    variant: str
    gib: int | None


def list_cells(folder: str, *, cpu: bool) -> list[Cell]:
    """Every cell: each recipe as it is on the full GPU and on each smaller one, then its variants and multiples of
    its micro-batch, in rounds of each variant once, so that a call that ends early has tried some of everything. What
    another cell has tried already (recipes that differ in their rows or schedule alone) is left out."""
    if cpu:
        tiny = Recipe(path="tiny", sections=TINY, locations={})
        return [_cell(tiny, variant, VARIANTS[variant], None) for variant in TINY_VARIANTS]
    recipes = []
    for path in sorted(Path(folder).glob("*.yaml")):
        try:
            recipes.append(read_recipe(str(path)))
        except RecipeError:
            continue  # not a recipe, or one that this version refuses: `check` shows why
    tried: list[tuple[Recipe, str, Mapping[str, Any]]] = [(recipe, AS_IT_IS, {}) for recipe in recipes]
    others = [(recipe, variant, values) for recipe in recipes for variant, values in _changes(recipe)]
    others = _in_rounds(others)
    found, seen = [], set[str]()
    for recipe, variant, values in [*tried, *others]:
        full_size = _cell(recipe, variant, values, None)
        if _measurement_key(full_size.recipe) in seen:
            continue
        seen.add(_measurement_key(full_size.recipe))
        found += [] if variant.startswith("micro-batch") else [full_size]
        if not values or variant.startswith("micro-batch"):
            found += [_cell(recipe, variant, values, gib) for gib in GPU_SIZES_GIB]
    return found


def _in_rounds(
    settings: list[tuple[Recipe, str, Mapping[str, Any]]],
) -> list[tuple[Recipe, str, Mapping[str, Any]]]:
    """Each variant once, on recipes in an order shuffled with a fixed seed, then each of them again."""
    random.Random(0).shuffle(settings)
    seen = Counter[str]()
    rounds = []
    for setting in settings:
        rounds.append((seen[setting[1]], setting))
        seen[setting[1]] += 1
    return [setting for _, setting in sorted(rounds, key=lambda one: one[0])]


def _changes(recipe: Recipe) -> list[tuple[str, Mapping[str, Any]]]:
    found = [*VARIANTS.items()][1:]
    if recipe.trainer == "SFTConfig":
        found += SFT_VARIANTS.items()
    if not TASKS[recipe.task].generates:
        found += ENCODER_VARIANTS.items()
    rows = int(recipe.training.get("per_device_train_batch_size") or 8)
    name = "{section}.per_device_train_batch_size"
    return [*found, *((f"micro-batch x{times}", {name: rows * times}) for times in MULTIPLES)]


def _cell(recipe: Recipe, variant: str, values: Mapping[str, Any], gib: int | None) -> Cell:
    names = {"section": recipe.trainer, "checkpointing": checkpointing_key(recipe.trainer)}
    values = {name.format(**names): value for name, value in values.items()}
    stem = Path(recipe.path).stem
    size = f"--{gib}gib" if gib else ""
    name = re.sub(r"[^a-z0-9-]+", "-", f"{stem}--{variant}{size}".lower())
    return Cell(name=name, recipe=recipe.with_values(values, "the lab"), variant=variant, gib=gib)


def _measurement_key(recipe: Recipe) -> str:
    """The values that a measurement can depend on."""
    names = ("task", "model", "LoraConfig", "BitsAndBytesConfig", "BpeTrainer")
    values: dict[str, Any] = {name: recipe.sections[name] for name in names if name in recipe.sections}
    values["training"] = {
        name: value for name, value in traced_arguments(recipe).items() if name not in OF_THE_SCHEDULE
    }
    values["length"] = recipe.get("dataset.max_length")
    return json.dumps(values, sort_keys=True, default=str)
