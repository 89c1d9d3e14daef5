"""An architecture that cannot do the task is refused for that reason, before any weight is loaded."""

from __future__ import annotations

import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.models.config import build_config
from hf_recipes.recipe.recipe import Recipe


def recipe_of(task: str, **config: object) -> Recipe:
    return Recipe(path="recipe.yaml", sections={"task": task, "model": {"config": config}}, locations={})


@pytest.mark.parametrize(
    ("task", "kind", "expected"),
    [
        (
            "causal-lm", "bert",
            "a bert model is an encoder: it sees the tokens that task causal-lm has it predict; take a decoder, such "
            "as llama, qwen3 or gpt2, or another task",
        ),
        (
            "chat", "distilbert",
            "a distilbert model (an encoder) cannot do task chat: transformers has no AutoModelForCausalLM of it; it "
            "can do text-classification, token-classification; or take another architecture",
        ),
        (
            "causal-lm", "t5",
            "a t5 model (an encoder-decoder) cannot do task causal-lm: transformers has no AutoModelForCausalLM of it; "
            "it can do text-classification, token-classification; or take another architecture",
        ),
        (
            "token-classification", "bart",
            "a bart model (an encoder-decoder) cannot do task token-classification: transformers has no "
            "AutoModelForTokenClassification of it; it can do causal-lm, text-classification; or take another "
            "architecture",
        ),
        (
            "text-classification", "rwkv",
            "a rwkv model (a decoder) cannot do task text-classification: transformers has no "
            "AutoModelForSequenceClassification of it; it can do causal-lm; or take another architecture",
        ),
    ],
)  # fmt: skip
def test_an_architecture_that_cannot_do_the_task_is_refused_for_that_reason(
    task: str, kind: str, expected: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        build_config(recipe_of(task, model_type=kind))
    assert str(raised.value) == f"recipe.yaml: {expected}"


@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("causal-lm", {"model_type": "gpt2"}),
        ("causal-lm", {"model_type": "bert", "is_decoder": True}),
        ("text-classification", {"model_type": "llama"}),
        ("text-classification", {"model_type": "t5"}),
        ("token-classification", {"model_type": "roberta"}),
    ],
)
def test_one_that_can_is_not(task: str, config: dict) -> None:
    assert build_config(recipe_of(task, **config)).model_type == config["model_type"]
