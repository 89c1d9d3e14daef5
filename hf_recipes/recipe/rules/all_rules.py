"""What contradicts itself or has no effect: asked of a recipe by `check` and `run`. Light: nothing heavy is imported.

A fault is a run that cannot be right: upstream refuses it (late, after the model is loaded), or what was asked for does
not happen. A doubt may be meant. The rules stand in `rules/`, one function each, with what upstream does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.rules import data, evaluation, hub, model, optimizer, precision
from hf_recipes.recipe.rules.device import device_errors, device_questions, missing_packages

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe
    from hf_recipes.recipe.rules.rule import Rule

__all__ = ["ERRORS", "WARNINGS", "device_errors", "device_questions", "errors", "warnings"]

SUBJECTS = (model, data, precision, optimizer, evaluation, hub)
ERRORS: tuple[Rule, ...] = tuple(rule for subject in SUBJECTS for rule in subject.ERRORS)
WARNINGS: tuple[Rule, ...] = (*(rule for subject in SUBJECTS for rule in subject.WARNINGS), missing_packages)


def errors(recipe: Recipe) -> list[Diagnostic]:
    """What the file alone tells to be wrong, by line. The recipe has a known task and exactly one trainer."""
    return _asked(ERRORS, recipe)


def warnings(recipe: Recipe) -> list[Diagnostic]:
    """What may be meant, by line: shown, and nothing stops."""
    return _asked(WARNINGS, recipe)


def _asked(rules: Sequence[Rule], recipe: Recipe) -> list[Diagnostic]:
    found = dict.fromkeys(error for rule in rules for error in rule(recipe))
    return sorted(found, key=_line)


def _line(error: Diagnostic) -> tuple[str, int]:
    file, _, line = error.location.rpartition(":")
    return (file, int(line)) if re.fullmatch(r"\d+", line) else (error.location, 0)
