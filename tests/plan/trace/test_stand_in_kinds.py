"""`run --smoke` and plan have rows for each kind of text classification, and for entities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hf_recipes.data.generated import generate_splits
from hf_recipes.errors import ModelError, PlanError
from hf_recipes.plan import trace_recipe
from hf_recipes.plan.trace.stand_in_rows import prepared_rows
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import bpe, prepare
from tests.support.tiny_recipes import GPT2, tiny


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


T5 = {"model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 500}
BART = {"model_type": "bart", "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 500}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
ALBERT = {"model_type": "albert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ALBERT |= {"intermediate_size": 128, "embedding_size": 32, "vocab_size": 500}


@pytest.mark.parametrize("config", [{**T5, "decoder_start_token_id": 0}, BART], ids=["t5", "bart"])
def test_an_encoder_decoder_classifier_is_planned(config: dict[str, Any]) -> None:
    found = trace_recipe(tiny("text-classification", config))
    assert found.allocated > 4 * 4 * found.parameters and not found.estimate  # weights, gradients, two states


def test_a_model_that_cannot_be_checkpointed_is_refused_at_its_line_as_run_would() -> None:
    recipe = tiny("text-classification", ALBERT, gradient_checkpointing=True)
    recipe = replace(recipe, locations={"TrainingArguments.gradient_checkpointing": "tiny.yaml:9"})
    with pytest.raises(ModelError) as refused:
        trace_recipe(recipe)
    assert str(refused.value) == (
        "tiny.yaml:9: transformers rejects it: AlbertForSequenceClassification does not support activation "
        "checkpointing; remove gradient_checkpointing"
    )


def test_an_error_of_upstream_without_words_is_reported_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_recipes.plan.trace import trace

    def fails(*_: object, real: bool = False, **__: object) -> None:
        if not real:  # the narrow copy of the model trains
            raise AssertionError

    monkeypatch.setattr(trace, "trace_here", fails)
    with pytest.raises(PlanError, match=r"an error of test_stand_in_kinds.py, line \d+; `hf-recipes run"):
        trace_recipe(tiny("causal-lm", GPT2))
