"""Rows of unequal length are padded with labels that no loss counts."""

from __future__ import annotations

from collections.abc import Callable

from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import TEXTS, bpe, prepare


def test_padding_of_language_model_rows_is_ignored_by_the_loss(make: Callable[..., Recipe]) -> None:
    found = prepare(make("causal-lm"), [{"text": text} for text in TEXTS], bpe(), length=16)
    rows = [found.evals["eval"][i] for i in (0, len(found.evals["eval"]) - 1)]  # a whole block, and the rest
    short = len(rows[1]["input_ids"])
    assert short < len(rows[0]["input_ids"]) == 16
    batch = found.collator(rows)
    assert batch["labels"][1].tolist() == [*rows[1]["labels"], *[-100] * (16 - short)]
