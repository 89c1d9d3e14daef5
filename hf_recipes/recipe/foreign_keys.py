"""Keys that belong to another tool, another section or an older version: what to write instead.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_recipes.catalog.other_tools import LENGTH, PREFERENCE_METHODS, TOOLS, TRAINER, Key
from hf_recipes.recipe.deprecated_keys import UPGRADES
from hf_recipes.recipe.schema.own_keys import SECTIONS, TRAINERS

# Keys that only files of this tool have, at their top.
MARKS = {
    "axolotl": ("base_model", "micro_batch_size", "sequence_len", "pretraining_dataset"),
    "LLaMA-Factory": ("finetuning_type", "cutoff_len", "stage", "dataset_dir", "template"),
    "TRL": ("model_name_or_path", "dataset_name", "dataset_mixture", "dataset_mixer"),
}
ACCELERATE = ("compute_environment", "distributed_type", "num_machines")


def tool_of(values: Mapping[Any, Any]) -> str:
    """The tool that a file with these keys at its top is for; "" for a recipe and for what is not known."""
    if "task" in values or any(isinstance(values.get(name), Mapping) for name in SECTIONS):
        return ""
    return next((tool for tool, marks in MARKS.items() if any(mark in values for mark in marks)), "")


def is_accelerate_file(values: Mapping[Any, Any]) -> bool:
    """Whether this is what `accelerate config` writes."""
    return any(key in values for key in ACCELERATE)


def preference_method(name: str) -> tuple[str, str] | None:
    """(what is wrong, how to fix it) for a section or task of a method that learns from preferences or rewards."""
    plain = name.lower().replace("-", "").replace("_", "")
    found = next((config for config in PREFERENCE_METHODS if plain in (config.lower(), config.lower()[:-6])), "")
    if not found:
        return None
    command = PREFERENCE_METHODS[found]
    what = f"{name}: methods that learn from preferences or rewards are not offered here"
    return what, f"TRL has them: {command} --config FILE" if command else "TRL has it, below trl.experimental"


def meaning_of_key(section: str, key: str) -> tuple[str, str]:
    """(its dotted key here, how to write it) for an unknown key of `section` ("" is the top of the recipe).

    ("", "") where no tool and no older version has it; the first alone is "" for what has no counterpart.
    """
    for table in TOOLS.values():
        found = table.get(key)
        if found is not None:
            return _meaning(section, found)
    for row in UPGRADES:
        if row.old == key and section not in row.sections and row.sections[0] and row.new:
            return _meaning(section, Key(new=_dotted(row.new[0], row.sections[0])))
    return "", ""


def _dotted(new: str, section: str) -> str:
    if not new.startswith("."):
        return new
    return f"{TRAINER if section in TRAINERS else section}{new}"


def _meaning(section: str, found: Key) -> tuple[str, str]:
    if found.needless:
        return "", f"leave it out: {found.needless}"
    if found.lost:
        return "", f"it has no counterpart here: {found.lost}"
    home, _, key = found.new.partition(".")
    if found.new == LENGTH and section not in ("", "SFTConfig"):
        home = "dataset" if section == "TrainingArguments" else "SFTConfig"
    elif home == TRAINER:
        home = section if section in TRAINERS else "SFTConfig"
    if not key:
        return home, "write its keys here" if home == section else f"its settings are the section {home}"
    return f"{home}.{key}", f"write {key}" if home == section else f"write {key} in {home}"
