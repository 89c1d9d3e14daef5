"""How a rule asks a recipe. A value of a wrong type counts as not given: the reader has reported it already."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hf_recipes.errors import Diagnostic

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

Rule = Callable[["Recipe"], Iterator[Diagnostic]]


def default(recipe: Recipe, key: str) -> Any:
    """Upstream's default of the installed trainer arguments, None where it is no literal."""
    from hf_recipes.recipe.schema import installed

    field = installed.fields(recipe.trainer).get(key)
    return field.default if field is not None and field.has_default else None


def value(recipe: Recipe, key: str) -> Any:
    """What the trainer's section says of `key`, else upstream's default."""
    return recipe.training[key] if key in recipe.training else default(recipe, key)


def on(recipe: Recipe, key: str) -> bool:
    return value(recipe, key) is True


def given(recipe: Recipe, key: str) -> bool:
    """The trainer's section names it with something: not null, not false."""
    found = recipe.training.get(key)
    return found is not None and found is not False


def number(recipe: Recipe, key: str) -> float | None:
    """A finite number, or None."""
    found = value(recipe, key)
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) and abs(found) < 1e300 else None


def word(recipe: Recipe, key: str) -> str:
    found = value(recipe, key)
    return found if isinstance(found, str) else ""


def words(found: Any) -> list[str]:
    """A string or a list of strings, as a list."""
    items = found if isinstance(found, list) else [found]
    return [item for item in items if isinstance(item, str)]


def tell(recipe: Recipe, key: str, what: str, fix: str = "") -> Diagnostic:
    """A fault at a key of the trainer's section."""
    return Diagnostic(location=recipe.location(f"{recipe.trainer}.{key}"), message=what, fix=fix)


def tell_at(recipe: Recipe, dotted: str, what: str, fix: str = "") -> Diagnostic:
    """A fault at a dotted key from the top."""
    return Diagnostic(location=recipe.location(dotted), message=what, fix=fix)


def has(recipe: Recipe, section: str) -> bool:
    """Whether the section is there, be it empty."""
    return recipe.sections.get(section) is not None


def known_config(recipe: Recipe) -> Mapping[str, Any]:
    """The model's config as far as the file, a local config.json and our tables tell, with the recipe's fields."""
    from hf_recipes.catalog.presets import PRESETS, SHAPES

    model = recipe.section("model")
    held: Any = model.get("config")
    name = model.get("pretrained_model_name_or_path") or held
    if isinstance(model.get("preset"), str) and model["preset"] in PRESETS:
        held = PRESETS[model["preset"]].config
    elif isinstance(name, str):
        path = os.path.join(name, "config.json") if os.path.isdir(name) else name
        held = SHAPES[name].config if name in SHAPES else None
        if path.endswith(".json") and os.path.isfile(path):
            try:
                with open(path, encoding="utf-8") as file:
                    held = json.load(file)
            except (OSError, ValueError):
                held = None  # the reader says so
    return {**held, **{key: model[key] for key in model if key in held}} if isinstance(held, Mapping) else {}
