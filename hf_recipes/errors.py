"""The one error that users see: what, where (file:line), the mend; many at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong (or, as a doubt, may be): where it stands, what it is, how to mend it."""

    where: str  # "recipes/a.yaml:14", "argument 'TrainingArguments.seed=x'", or a path
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.mend}" if self.mend else "")


class RecipeError(Exception):
    """Every fault found, in the order in which a reader meets them. Shown without a traceback; exit code 2."""

    def __init__(self, faults: Iterable[Fault] | Fault):
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))


def fault(where: str, what: str, mend: str = "") -> RecipeError:
    """Shorthand for an error of one fault: `raise fault(place, what, mend)`."""
    return RecipeError(Fault(where=where, what=what, mend=mend))
