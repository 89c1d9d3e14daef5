"""What one key of a recipe takes: the `Field` and its `Limits`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

KINDS = ("bool", "int", "float", "str", "list", "dict")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A range that upstream does not check where it is written. `also` are values outside of it that have a meaning."""

    least: float | None = None  # at least
    most: float | None = None  # at most
    above: float | None = None
    below: float | None = None
    also: tuple[float, ...] = ()
    whole_above_one: bool = False  # a share of all steps below 1, a count from 1 on

    def hold(self, value: float) -> bool:
        """Whether a finite number lies inside."""
        if value in self.also:
            return True
        inside = (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        return inside and not (self.whole_above_one and value > 1 and value != int(value))

    def __str__(self) -> str:
        ends = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        text = " and ".join(f"{name} {end}" for name, end in ends if end is not None)
        text += ", and whole above 1" if self.whole_above_one else ""
        return text + "".join(f", or {v}" for v in self.also)


@dataclass(frozen=True, kw_only=True)
class Field:
    """One key of a section. An empty `kinds` takes anything; `choices` bind strings (and the strings in a list)."""

    name: str
    kinds: tuple[str, ...] = ()  # of KINDS; an int is welcome where a float is asked for, a bool is no number
    items: tuple[str, ...] = ()  # kinds of a list's items, where known
    choices: tuple[str, ...] = ()
    open_choices: str = ""  # a regular expression of further strings, where upstream takes more than a list
    default: Any = None
    has_default: bool = False  # whether upstream's default is a literal, and so known here
    help: str = ""
    optional: bool = False  # null is a value
    deprecated: bool = False
    limits: Limits | None = None
    ours: bool = False

    def to_json(self) -> dict[str, Any]:
        """What differs from an empty Field, as JSON values."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        found = {name: value for name, value in found.items() if name == "name" or value != _EMPTY[name]}
        if self.limits is not None:
            found["limits"] = vars(self.limits)
        return found

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Field:
        tuples: dict[str, Any] = {name: tuple(row[name]) for name in ("kinds", "items", "choices") if name in row}
        if "limits" in row:
            limits = row["limits"]
            tuples["limits"] = Limits(**{**limits, "also": tuple(limits["also"])})
        return cls(**{**row, **tuples})


_EMPTY = {one.name: one.default for one in fields(Field)}
