"""What contradicts itself or has no effect: asked of a recipe by `check` and `run`. Light: nothing heavy is imported.

A fault is a run that cannot be right: upstream refuses it (late, after the model is loaded), or what was asked for does
not happen. A doubt may be meant. The rules stand in `rules/`, one function each, with what upstream does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_recipes.errors import Fault
from hf_recipes.recipe.rules import data, evaluation, hub, model, optimizer, precision
from hf_recipes.recipe.rules.device import device_faults, device_questions, missing_packages

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe
    from hf_recipes.recipe.rules.rule import Rule

__all__ = ["DOUBTS", "FAULTS", "device_faults", "device_questions", "doubts", "faults"]

SUBJECTS = (model, data, precision, optimizer, evaluation, hub)
FAULTS: tuple[Rule, ...] = tuple(rule for subject in SUBJECTS for rule in subject.FAULTS)
DOUBTS: tuple[Rule, ...] = (*(rule for subject in SUBJECTS for rule in subject.DOUBTS), missing_packages)


def faults(recipe: Recipe) -> list[Fault]:
    """What the file alone tells to be wrong, by line. The recipe has a known task and exactly one trainer."""
    return _asked(FAULTS, recipe)


def doubts(recipe: Recipe) -> list[Fault]:
    """What may be meant, by line: shown, and nothing stops."""
    return _asked(DOUBTS, recipe)


def _asked(rules: Sequence[Rule], recipe: Recipe) -> list[Fault]:
    found = dict.fromkeys(fault for rule in rules for fault in rule(recipe))
    return sorted(found, key=_line)


def _line(fault: Fault) -> tuple[str, int]:
    file, _, line = fault.where.rpartition(":")
    return (file, int(line)) if re.fullmatch(r"\d+", line) else (fault.where, 0)
