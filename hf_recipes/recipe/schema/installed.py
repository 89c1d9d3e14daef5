"""Keys, types and choices of the installed upstream classes. Imports neither torch nor transformers.

`fields(section)` is what a section takes today, in this environment; `json_schema()` says the same to an editor. They
are read from the sources of the installed packages once, and then from this package's cache on disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

from hf_recipes.recipe.schema import disk_cache
from hf_recipes.recipe.schema.fields import Field
from hf_recipes.recipe.schema.packages import VERSIONED, package_folder, version

__all__ = ["Field", "builder_fields", "builders", "config_fields", "fields", "model_types", "version", "versions"]

PACKAGES = {  # section -> the package whose version decides what it takes
    "model": "transformers",
    "tokenizer": "transformers",
    "dataset": "datasets",
    "TrainingArguments": "transformers",
    "SFTConfig": "trl",
    "LoraConfig": "peft",
    "BitsAndBytesConfig": "transformers",
    "BpeTrainer": "tokenizers",
    "EarlyStoppingCallback": "transformers",
    "GenerationConfig": "transformers",
}


def versions() -> dict[str, str]:
    """Installed versions of the packages that a run rests on; those that are absent are left out."""
    found = {package: version(package) for package in VERSIONED}
    return {package: version for package, version in found.items() if version}


@cache
def fields(section: str) -> Mapping[str, Field]:
    """What a section takes, by name. Raises KeyError for a name that is no section, RecipeError without its package."""

    def read() -> dict[str, Field]:
        from hf_recipes.recipe.schema.read_upstream import read_section

        return read_section(section)

    if section not in PACKAGES:
        raise KeyError(section)
    return _fields(f"section-{section}", read)


def checkpointing_key(section: str) -> str:
    """activation_checkpointing, or its name before transformers 5.23."""
    return "activation_checkpointing" if "activation_checkpointing" in fields(section) else "gradient_checkpointing"


def builders() -> tuple[str, ...]:
    """Names that load_dataset takes as `path` for files of a format: json, csv, parquet, text, ..."""
    folder = os.path.join(package_folder("datasets"), "packaged_modules")
    return tuple(sorted(f.name for f in os.scandir(folder) if f.is_dir() and not f.name.startswith("_")))


@cache
def builder_fields(builder: str) -> Mapping[str, Field] | None:
    """Fields of a packaged builder's config (json, csv, text, ...), or None for a path that names no such builder."""
    if builder not in builders():
        return None

    def read() -> dict[str, Field]:
        from hf_recipes.recipe.schema.read_upstream import read_builder

        return read_builder(builder)

    return _fields(f"builder-{builder}", read)


@cache
def model_types() -> Mapping[str, str]:
    """model_type -> name of its config class, of the installed transformers."""

    def read() -> dict[str, str]:
        from hf_recipes.recipe.schema.read_upstream import read_model_types

        return read_model_types()

    return MappingProxyType(disk_cache.cached("model-types", read))


def config_class(model_type: str) -> str:
    """Name of the config class of a model_type; "" for an unknown one."""
    return model_types().get(model_type, "")


@cache
def common_config_fields() -> Mapping[str, Field]:
    """Fields that every model's config has: what is known of a config that lies on the Hub."""

    def read() -> dict[str, Field]:
        from hf_recipes.recipe.schema.read_upstream import read_common_config

        return read_common_config()

    return _fields("config", read)


@cache
def config_fields(model_type: str) -> Mapping[str, Field] | None:
    """Fields of a model's config and the aliases of its attribute_map; None for an unknown model_type."""
    name = config_class(model_type)
    if not name:
        return None

    def read() -> dict[str, Field]:
        from hf_recipes.recipe.schema.read_upstream import read_config

        return read_config(model_type, name)

    return _fields(f"config-{model_type}", read)


_CLASSES = {"model": "configuration_", "tokenizer": "tokenization_"}  # files of each model in transformers


@cache
def is_named_upstream(section: str, key: str) -> bool:
    """Whether a config or a tokenizer of any model of transformers has this name: what a Hub name may stand for."""
    beginning = _CLASSES.get(section)
    if beginning is None or not key.isidentifier():
        return False
    word = re.compile(rb"\b%s\b" % key.encode())
    models = os.path.join(package_folder("transformers"), "models")
    for folder in (entry.path for entry in os.scandir(models) if entry.is_dir()):
        for name in os.listdir(folder):
            if name.startswith(beginning) and name.endswith(".py"):
                with open(os.path.join(folder, name), "rb") as file:
                    if word.search(file.read()):
                        return True
    return False


def _fields(name: str, read: Callable[[], Mapping[str, Field]]) -> Mapping[str, Field]:
    rows = disk_cache.cached(name, lambda: [field.to_json() for field in read().values()])
    found = (Field.from_json(row) for row in rows)
    return MappingProxyType({field.name: field for field in found})
