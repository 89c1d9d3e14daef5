"""The matrix of the lab: recipes at their real shapes and the changes that are tried on them. Data only. Light."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_recipes.errors import RecipeError
from hf_recipes.recipe import Recipe, read_recipe

CARDS_GIB = (8, 16, 24, 40)  # sizes that a fraction of the card stands for
# What is tried on the recipes beside their own settings: name -> dotted words.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "eager": {"model.attn_implementation": "eager"},
    "checkpointing": {"{section}.activation_checkpointing": True},
    "no checkpointing": {"{section}.activation_checkpointing": False},
    "fp32": {"{section}.bf16": False, "{section}.fp16": False, "model.dtype": "float32"},
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
# A tiny matrix, for a machine without a card: the same path from end to end.
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
TINY_VARIANTS = ("as it is", "checkpointing", "LoRA")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement. `gib`: the card that a fraction stands for; None: the whole one (or a CPU)."""

    name: str  # of its file, too
    recipe: Recipe
    variant: str
    gib: int | None


def cells(folder: str, *, cpu: bool) -> list[Cell]:
    """Every cell: recipes x variants on the whole card, the recipes as they are on each smaller one."""
    if cpu:
        tiny = Recipe(path="tiny", sections=TINY, places={})
        return [_cell(tiny, variant, None) for variant in TINY_VARIANTS]
    found = []
    for path in sorted(Path(folder).glob("*.yaml")):
        try:
            recipe = read_recipe(str(path))
        except RecipeError:
            continue  # not a recipe, or one that this version refuses: `check` says so
        found += [_cell(recipe, variant, None) for variant in VARIANTS]
        found += [_cell(recipe, "as it is", gib) for gib in CARDS_GIB]
    return found


def _cell(recipe: Recipe, variant: str, gib: int | None) -> Cell:
    words = {name.format(section=recipe.trainer): value for name, value in VARIANTS[variant].items()}
    stem = Path(recipe.path).stem
    size = f"--{gib}gib" if gib else ""
    name = re.sub(r"[^a-z0-9-]+", "-", f"{stem}--{variant}{size}".lower())
    return Cell(name=name, recipe=recipe.with_values(words, "the lab"), variant=variant, gib=gib)
