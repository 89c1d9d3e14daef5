"""Classifiers: the kind of problem, thresholds, weights, pairs of texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.rules.rule import Rule, number_of, report_argument, report_key, strings_in

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe


def problem_type_of_the_task(recipe: Recipe) -> Iterator[Diagnostic]:
    """transformers' models of other tasks never read it."""
    if recipe.get("model.problem_type") is not None and recipe.task != "text-classification":
        what = f"model.problem_type has no effect: task {recipe.task} has one kind of problem"
        yield report_key(recipe, "model.problem_type", what, "leave it out, or write task: text-classification")


def _kind(recipe: Recipe) -> str:
    from hf_recipes.catalog.tasks import task_of

    return task_of(recipe).scored_as


def threshold_of_one_label(recipe: Recipe) -> Iterator[Diagnostic]:
    """One class is the most probable one; a score is a number."""
    if recipe.get("threshold") is not None and _kind(recipe) != "multi-label-classification":
        what = "threshold has no effect: it decides which of several labels a text has"
        yield report_key(
            recipe, "threshold", what, "write model.problem_type: multi_label_classification, or leave it out"
        )


def weights_of_classes(recipe: Recipe) -> Iterator[Diagnostic]:
    """torch's losses take a weight for each class; language models and scores have no classes."""
    given = recipe.get("class_weights")
    if given is None:
        return
    if not _kind(recipe).endswith("classification"):
        what = f"class_weights has no effect: {_kind(recipe)} has no classes"
        yield report_key(recipe, "class_weights", what, "leave it out")
    for weight in given if isinstance(given, list) else []:
        if isinstance(weight, int | float) and weight < 0:
            yield report_key(recipe, "class_weights", f"class_weights has {weight}", "a weight is 0 or more")


def smoothing_of_scores(recipe: Recipe) -> Iterator[Diagnostic]:
    """Label smoothing spreads a class's probability over the others: only cross-entropy has it."""
    if _kind(recipe) in ("multi-label-classification", "text-regression") and number_of(
        recipe, "label_smoothing_factor"
    ):
        what = (
            f"label_smoothing_factor has no effect: {recipe.get('model.problem_type')} is not trained by cross-entropy"
        )
        yield report_argument(recipe, "label_smoothing_factor", what, "leave it out")


def one_column_of_text(recipe: Recipe) -> Iterator[Diagnostic]:
    """A list of two columns is how other tools write a pair of texts."""
    given = recipe.get("dataset.text_column")
    if not isinstance(given, list):
        return
    names = strings_in(given)
    what = f"dataset.text_column names {len(given)} columns; it must be one"
    fix = f"write text_column: {names[0]}" if names else "write the name of the text's column"
    if recipe.task == "text-classification" and len(names) == 2:
        fix += f", and text_pair_column: {names[1]} for pairs of texts"
    yield report_key(recipe, "dataset.text_column", what, fix)


def format_of_the_file(recipe: Recipe) -> Iterator[Diagnostic]:
    """CoNLL files are read line by line, and their rows are tagged words."""
    if recipe.get("dataset.format") is None:
        return
    if recipe.task != "token-classification":
        what = f"dataset.format: conll holds tagged words, which task {recipe.task} does not read"
        yield report_key(recipe, "dataset.format", what, "leave it out, or write task: token-classification")
    elif recipe.get("dataset.path") != "text" and not recipe.is_generated:
        what = f"dataset.format: conll is read with path: text, not {recipe.get('dataset.path')!r}"
        yield report_key(recipe, "dataset.format", what, "write path: text, or leave format out")


ERRORS: tuple[Rule, ...] = (
    problem_type_of_the_task,
    threshold_of_one_label,
    weights_of_classes,
    smoothing_of_scores,
    one_column_of_text,
    format_of_the_file,
)
WARNINGS: tuple[Rule, ...] = ()
