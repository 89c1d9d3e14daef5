"""A recipe cut to what a trace needs: two steps, no files, no loaders, nothing reported. Recipe in, recipe out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hf_recipes.recipe import Recipe

MICRO_BATCHES = 2  # of one step: the peak of two is the peak of all
SET: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "load_best_model_at_end": False,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
}
# What has nothing to do with a step's memory, or would refuse to work without the card.
DROPPED = (
    "tf32",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
    "dataloader_prefetch_factor",
    "dataloader_persistent_workers",
    "resume_from_checkpoint",
    "metric_for_best_model",
    "greater_is_better",
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "logging_dir",
    "push_to_hub",
    "deepspeed",
    "fsdp",
    "fsdp_config",
    "accelerator_config",
    "auto_find_batch_size",
    "torch_empty_cache_steps",
    "train_sampling_strategy",
    "num_train_epochs",
    "project",
    "run_name",
    "fp16_full_eval",
    "bf16_full_eval",
    "batch_eval_metrics",
    "neftune_noise_alpha",
)


def shortened(recipe: Recipe, folder: str, micro_batch: int | None, steps: int) -> Recipe:
    """`recipe` for `steps` optimizer steps in `folder`; every word that decides a step's memory stays as it is."""
    words = {name: value for name, value in recipe.training.items() if name not in DROPPED}
    words |= SET | {"output_dir": folder, "max_steps": steps}
    words["gradient_accumulation_steps"] = min(accumulation_of(recipe), MICRO_BATCHES)
    if micro_batch is not None:
        words["per_device_train_batch_size"] = micro_batch
    if words.get("fp16") and not recipe.get("master_weights"):
        words["bf16"] = True  # what a CPU accepts; tracing.py makes it fp16 again
        words["fp16"] = False
    sections = {name: value for name, value in recipe.sections.items() if name not in ("EarlyStoppingCallback",)}
    sections.pop("sample_prompts", None)
    return replace(recipe, sections={**sections, recipe.trainer: words})


def accumulation_of(recipe: Recipe) -> int:
    return int(recipe.training.get("gradient_accumulation_steps") or 1)


def is_uniform(recipe: Recipe, rows: int) -> bool:
    """Whether every row of a batch of `rows` is full, so that no mask is made: a single row, blocks of text, packed
    rows whose documents nobody tells apart. A padding-free row holds several documents, and a mask between them."""
    training = recipe.training
    if recipe.trainer == "TrainingArguments":
        return rows == 1 or recipe.task == "causal-lm"
    if training.get("packing"):
        return training.get("packing_strategy") == "wrapped"
    return rows == 1 and not training.get("padding_free")


def is_padded(recipe: Recipe) -> bool:
    """Whether shorter rows of a batch are filled up with padding."""
    return not is_uniform(recipe, 2) and not recipe.training.get("packing") and not recipe.training.get("padding_free")
