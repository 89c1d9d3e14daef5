"""Which architecture a recipe names, and its config, as far as this machine's files and tables say it.

Imports neither torch nor transformers. The rules, `run --smoke` and `plan` ask here. Sources, in this order: the recipe
itself (`model.config` inline), the table of presets, a config.json on this machine, the table of published shapes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

# Folders that recipes/data/prepare.py makes -> the published shape of what they contain, so that a recipe can be
# checked and planned before.
PREPARED = {
    "runs/assets/minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "runs/assets/smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of the model without the Hub."""

    config: Mapping[str, Any] = field(default_factory=dict)  # upstream's config arguments; {} where nothing is known
    source: str = ""  # "as the recipe says", "of the preset", "of <name or file>"
    problem: str = ""  # why a config.json that is there says nothing

    @property
    def model_type(self) -> str:
        """ "gpt2", "llama", ...; "" where it is not known."""
        found = self.config.get("model_type")
        return found if isinstance(found, str) else ""


def model_facts(model: Mapping[str, Any]) -> ModelFacts:
    """The facts of a recipe's `model` section. A value of a wrong type counts as not given."""
    inline, preset = model.get("config"), model.get("preset")
    if isinstance(inline, Mapping):
        return ModelFacts(config=inline, source="as the recipe says")
    from hf_recipes.catalog.presets import PRESETS, SHAPES

    if isinstance(preset, str) and preset in PRESETS:
        return ModelFacts(config=PRESETS[preset].config, source="of the preset")
    name = inline or model.get("pretrained_model_name_or_path")
    if not isinstance(name, str):
        return ModelFacts()
    path = os.path.join(name, "config.json") if os.path.isdir(name) else name
    if os.path.isfile(path):
        return _read_config(path)
    name = PREPARED.get(name.rstrip("/"), name)
    return ModelFacts(config=SHAPES[name].config, source=f"of {name}") if name in SHAPES else ModelFacts()


def _read_config(path: str) -> ModelFacts:
    source = f"of {path}"
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        return ModelFacts(source=source, problem=f"{path} is not JSON ({error})")
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        return ModelFacts(source=source, problem=f"{path} has no model_type")
    return ModelFacts(config=found, source=source)


def known_config(recipe: Recipe) -> Mapping[str, Any]:
    """The model's config with the fields that the recipe sets; {} where nothing is known."""
    model = recipe.section("model")
    config = model_facts(model).config
    return {**config, **{key: value for key, value in model.items() if key in config}}


def is_hub_name(name: str) -> bool:
    """Whether the Hub could have a repository of this name (huggingface_hub's validate_repo_id)."""
    fits = re.fullmatch(r"(?:[\w.-]+/)?[\w.-]{1,96}", name, re.ASCII)
    return bool(fits) and not re.search(r"--|\.\.|\.git$|(^|/)[.-]|[.-](/|$)", name)


def is_path(name: str) -> bool:
    """Whether a name can only be a path: a Hub id is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.endswith((".json", "/")) or name.count("/") > 1 or "\\" in name
