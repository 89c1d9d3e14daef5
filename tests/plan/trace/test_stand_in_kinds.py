"""`run --smoke` and plan have rows for each kind of text classification, and for entities."""

from __future__ import annotations

from typing import Any

import pytest

from hf_recipes.data.generated import generate_splits
from hf_recipes.plan.trace.stand_in_rows import prepared_rows
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import bpe, prepare


def recipe_of(task: str, model: dict[str, Any], dataset: dict[str, Any]) -> Recipe:
    sections = {"task": task, "model": model, "dataset": {"path": "hf_recipes.smoke:x", **dataset}}
    return Recipe(path="recipe.yaml", sections={**sections, "TrainingArguments": {}}, locations={})


@pytest.mark.parametrize(
    ("kind", "dataset", "labels"),
    [
        ("single_label_classification", {"text_pair_column": "b"}, (0, 1)),
        ("multi_label_classification", {}, ([1.0, 0.0], [0.0, 1.0])),
        ("regression", {}, (0.0, 0.5)),
    ],
)
def test_generated_and_stand_in_rows_fit_the_problem(kind: str, dataset: dict, labels: tuple) -> None:
    recipe = recipe_of("text-classification", {"problem_type": kind}, dataset)
    splits = generate_splits(recipe)
    found = prepare(recipe, splits.train, bpe(), held_out=splits.validation)
    assert tuple(found.train["labels"][:2]) == labels
    stand_in = prepared_rows(recipe, bpe(), 8, 4, 3, False, False)
    assert stand_in.config["problem_type"] == kind
    width = {"single_label_classification": 3, "multi_label_classification": 3, "regression": 1}[kind]
    first = stand_in.train["labels"][0]
    assert (stand_in.config["num_labels"], type(first)) == (width, type(labels[0]))
    assert not isinstance(first, list) or len(first) == width


def test_generated_rows_of_entities_are_read_as_entities() -> None:
    recipe = recipe_of("token-classification", {}, {"entities_column": "spans"})
    splits = generate_splits(recipe)
    assert prepare(recipe, splits.train, bpe(), held_out=splits.validation).label_names == ("O", "B-X")
