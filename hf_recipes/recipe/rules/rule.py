"""How a rule asks a recipe. A value of a wrong type counts as not given: the reader has reported it already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hf_recipes.errors import Diagnostic

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

Rule = Callable[["Recipe"], Iterator[Diagnostic]]


def upstream_default(recipe: Recipe, key: str) -> Any:
    """Upstream's default of the installed trainer arguments, None where it is no literal."""
    from hf_recipes.recipe.schema import installed

    field = installed.fields(recipe.trainer).get(key)
    return field.default if field is not None and field.has_default else None


def argument(recipe: Recipe, key: str) -> Any:
    """The trainer's argument `key`, else upstream's default of it."""
    return recipe.training[key] if key in recipe.training else upstream_default(recipe, key)


def is_true(recipe: Recipe, key: str) -> bool:
    return argument(recipe, key) is True


def is_given(recipe: Recipe, key: str) -> bool:
    """The trainer's section names it with something: not null, not false."""
    found = recipe.training.get(key)
    return found is not None and found is not False


def number_of(recipe: Recipe, key: str) -> float | None:
    """A finite number, or None."""
    found = argument(recipe, key)
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) and abs(found) < 1e300 else None


def text_of(recipe: Recipe, key: str) -> str:
    found = argument(recipe, key)
    return found if isinstance(found, str) else ""


def strings_in(found: Any) -> list[str]:
    """A string or a list of strings, as a list."""
    items = found if isinstance(found, list) else [found]
    return [item for item in items if isinstance(item, str)]


def report_argument(recipe: Recipe, key: str, what: str, fix: str = "") -> Diagnostic:
    """What is wrong with an argument of the trainer: the location is that of its key."""
    return Diagnostic(location=recipe.location(f"{recipe.trainer}.{key}"), message=what, fix=fix)


def report_key(recipe: Recipe, dotted: str, what: str, fix: str = "") -> Diagnostic:
    """What is wrong at a dotted key from the top."""
    return Diagnostic(location=recipe.location(dotted), message=what, fix=fix)


def has_section(recipe: Recipe, section: str) -> bool:
    """Whether the section is there, be it empty."""
    return recipe.sections.get(section) is not None
