"""A recipe between its text and a `Recipe`: every step of reading takes one Document and returns one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hf_recipes.errors import Diagnostic

MOST_SUGGESTIONS = 50  # of a key that was meant, in one document: each is looked for among all keys


@dataclass(frozen=True, kw_only=True)
class Document:
    """Values with their locations, and everything that was reported about them so far.

    A value that is wrong is left out and its key is in `broken`, so that no later step reports what follows from
    it. A value may be None for a section that this document takes away from the one that it extends.
    """

    path: str = ""  # the file; "" for the arguments
    values: Any = None  # of a recipe: its sections by name; None if the text could not be read at all
    locations: Mapping[str, str] = field(default_factory=dict)  # "TrainingArguments.seed" -> "recipes/a.yaml:14"
    broken: frozenset[str] = frozenset()  # dotted keys
    errors: tuple[Diagnostic, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    translations: tuple[str, ...] = ()  # one line for each key that has a new name today
    renamed: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # location -> (old key, the new ones)
    files: tuple[str, ...] = ()  # the recipe's own file, then those that it extends, as far as they could be read
    complete: bool = True  # whether all of those files could be read

    def location(self, dotted: str) -> str:
        """Where a key stands, or its nearest ancestor, or the file."""
        return location_of(self.locations, dotted, self.path)

    def with_errors(self, errors: Iterable[Diagnostic], broken: Iterable[str] = ()) -> Document:
        return replace(self, errors=(*self.errors, *errors), broken=self.broken | frozenset(broken))


def location_of(locations: Mapping[str, str], dotted: str, path: str) -> str:
    """The location of a key, or of its nearest ancestor that has one, or `path`."""
    while dotted and dotted not in locations:
        dotted = dotted.rpartition(".")[0]
    return locations.get(dotted, path)


def under(dotted: str, root: str) -> bool:
    """Whether a dotted key is `root` or lies inside it."""
    return dotted == root or dotted.startswith(f"{root}.")
