"""The frozen `Recipe` that everything else reads, and a `Recipe` back to text. recipe/read.py makes one of a file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.document import location_of
from hf_recipes.recipe.schema.own_keys import SECTIONS, TRAINERS

CHOSEN = "chosen: "  # how the location of a value that was chosen for the user begins
GENERATED = "hf_recipes.smoke:"  # a dataset.path that begins so has no file: its rows are generated (run --smoke)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one run is asked to do. `sections` holds plain dicts, lists and scalars, and no object of upstream."""

    path: str  # as the user gave it
    sections: Mapping[str, Any]  # arguments and `extends` merged, old keys translated
    locations: Mapping[str, str]  # "TrainingArguments.seed" -> "recipes/a.yaml:14" or "argument '...seed=1'"
    translations: tuple[str, ...] = ()  # one visible line for each old key
    warnings: tuple[Diagnostic, ...] = ()  # what may be wrong; shown, and nothing stops

    @property
    def task(self) -> str:
        return str(self.sections["task"])

    @property
    def trainer(self) -> str:
        """ "TrainingArguments" or "SFTConfig"."""
        return next(t for t in TRAINERS if t in self.sections)

    @property
    def training(self) -> Mapping[str, Any]:
        """The section of the trainer."""
        return self.section(self.trainer)

    @property
    def max_length_key(self) -> str:
        """Where the length of a row is written: SFTConfig has its own max_length, else it is the dataset's."""
        return "SFTConfig.max_length" if self.trainer == "SFTConfig" else "dataset.max_length"

    @property
    def has_derived_accumulation(self) -> bool:
        """Whether the accumulation follows from global_batch_size: another launch derives another."""
        found = self.locations.get(f"{self.trainer}.gradient_accumulation_steps", "")
        return self.sections.get("global_batch_size") is not None and found.startswith(CHOSEN)

    @property
    def is_generated(self) -> bool:
        """Whether the rows are generated (`run --smoke`) and not read from files."""
        return str(self.get("dataset.path", "")).startswith(GENERATED)

    def section(self, name: str) -> Mapping[str, Any]:
        """A section, {} if the recipe has none."""
        found = self.sections.get(name)
        return found if isinstance(found, Mapping) else {}

    def get(self, dotted: str, default: Any = None) -> Any:
        """The value of a dotted key ("TrainingArguments.seed"), or `default` where the recipe says nothing."""
        found: Any = self.sections
        while dotted:
            if not isinstance(found, Mapping):
                return default
            if dotted in found:  # a key may hold dots itself: LoraConfig.rank_pattern
                return found[dotted]
            key, _, dotted = dotted.partition(".")
            if key not in found:
                return default
            found = found[key]
        return found

    def location(self, dotted: str) -> str:
        """Where a key stands, or its nearest ancestor, or the file."""
        return location_of(self.locations, dotted, self.path)

    def with_values(self, values: Mapping[str, Any], location: str) -> Recipe:
        """A new recipe with dotted keys set, each at `location`. The values are not validated."""
        sections, locations = copy.deepcopy(dict(self.sections)), dict(self.locations)
        for dotted, value in values.items():
            *parents, last = dotted.split(".")
            target = sections
            for parent in parents:
                inner = target.get(parent)
                if not isinstance(inner, dict):
                    inner = target[parent] = {}
                target = inner
            target[last] = copy.deepcopy(value)
            locations = {key: where for key, where in locations.items() if not key.startswith(f"{dotted}.")}
            locations[dotted] = location
        return replace(self, sections=sections, locations=locations)

    def without_key(self, dotted: str) -> Recipe:
        """A new recipe without this key of a section; where it stood is remembered."""
        section, _, key = dotted.partition(".")
        kept = {name: value for name, value in self.section(section).items() if name != key}
        return replace(self, sections={**self.sections, section: kept})


def dump_recipe(recipe: Recipe) -> str:
    """YAML 1.2 that reads back to equal sections: every key, in the recipe's order, without comments or anchors; not
    the accumulation that global_batch_size decides at each launch."""
    import io

    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True, plug_ins=[])
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 120
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.representer.ignore_aliases = lambda *_: True
    text = io.StringIO()
    sections = dict(recipe.sections)
    if recipe.has_derived_accumulation:  # another number of processes derives another
        kept = {key: value for key, value in recipe.training.items() if key != "gradient_accumulation_steps"}
        sections[recipe.trainer] = kept
    first = ["task", *(n for n in recipe.sections if n not in SECTIONS and n != "task")]
    order = [n for n in dict.fromkeys([*first, *recipe.sections]) if n in recipe.sections]
    yaml.dump({name: sections[name] for name in order}, text)
    return text.getvalue()
