"""What contradicts itself or has no effect: checked by `check` and `run`. Imports neither torch nor transformers.

An error is a run that cannot be right: upstream refuses it (late, after the model is loaded), or what was asked for
does not happen. A warning may be intended. The rules stand in `rules/`, one function each, with what upstream does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.rules import classification, data, evaluation, hub, model, model_limits, optimizer, precision
from hf_recipes.recipe.rules.device import device_errors, device_requirements, missing_packages

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe
    from hf_recipes.recipe.rules.rule import Rule

__all__ = ["ERRORS", "WARNINGS", "device_errors", "device_requirements", "errors", "warnings"]

SUBJECTS = (model, model_limits, classification, data, precision, optimizer, evaluation, hub)
ERRORS: tuple[Rule, ...] = tuple(rule for subject in SUBJECTS for rule in subject.ERRORS)
WARNINGS: tuple[Rule, ...] = (*(rule for subject in SUBJECTS for rule in subject.WARNINGS), missing_packages)


def errors(recipe: Recipe) -> list[Diagnostic]:
    """What is wrong, by line, as far as the file alone shows. The recipe has a known task and exactly one trainer."""
    return _apply(ERRORS, recipe)


def warnings(recipe: Recipe) -> list[Diagnostic]:
    """What may be intended, by line: shown, and nothing stops."""
    return _apply(WARNINGS, recipe)


def _apply(rules: Sequence[Rule], recipe: Recipe) -> list[Diagnostic]:
    found = dict.fromkeys(error for rule in rules for error in rule(recipe))
    return sorted(found, key=_line)


def _line(error: Diagnostic) -> tuple[str, int]:
    file, _, line = error.location.rpartition(":")
    return (file, int(line)) if re.fullmatch(r"\d+", line) else (error.location, 0)
