"""How a rule asks a recipe. A value of a wrong type counts as not given: the reader has reported it already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hf_recipes.errors import Fault

if TYPE_CHECKING:
    from hf_recipes.recipe import Recipe

Rule = Callable[["Recipe"], Iterator[Fault]]


def default(recipe: Recipe, key: str) -> Any:
    """Upstream's default of the installed trainer arguments, None where it is no literal."""
    from hf_recipes import schema

    field = schema.fields(recipe.trainer).get(key)
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
    found = value(recipe, key)
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) else None


def word(recipe: Recipe, key: str) -> str:
    found = value(recipe, key)
    return found if isinstance(found, str) else ""


def words(found: Any) -> list[str]:
    """A string or a list of strings, as a list."""
    items = found if isinstance(found, list) else [found]
    return [item for item in items if isinstance(item, str)]


def tell(recipe: Recipe, key: str, what: str, mend: str = "") -> Fault:
    """A fault at a key of the trainer's section."""
    return Fault(where=recipe.place(f"{recipe.trainer}.{key}"), what=what, mend=mend)


def tell_at(recipe: Recipe, dotted: str, what: str, mend: str = "") -> Fault:
    """A fault at a dotted key from the top."""
    return Fault(where=recipe.place(dotted), what=what, mend=mend)


def has(recipe: Recipe, section: str) -> bool:
    """Whether the section is there, be it empty."""
    return recipe.sections.get(section) is not None
