"""The loss of each kind of classifier is torch's, weighted as scikit-learn weighs, whatever the accumulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_recipes.data.labels import weigh_classes
from hf_recipes.errors import RecipeError
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.training.classification_loss import classification_loss

LOGITS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def recipe_of(weights: object) -> Recipe:
    sections = {"task": "text-classification", "class_weights": weights}
    return Recipe(path="recipe.yaml", sections=sections, locations={})


def test_balanced_weights_are_scikit_learns_and_weigh_the_loss() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = torch.tensor([0] * 7 + [1] * 4 + [2])
    weights, lines = weigh_classes(recipe_of("balanced"), {"a": 7, "b": 4, "c": 1}, 12)
    assert weights == pytest.approx(
        compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=labels.numpy()).tolist()
    )
    assert lines == ("class_weights: a 0.5714, b 1, c 4 (in the training loss; evaluations are not weighted)",)
    each = torch.nn.functional.cross_entropy(LOGITS, labels, weight=torch.tensor(weights), reduction="none")
    loss = classification_loss("text-classification", class_weights=weights)
    assert torch.allclose(loss({"logits": LOGITS}, labels), each.sum() / 12)
    halves = [loss({"logits": LOGITS[part]}, labels[part], 12) for part in (slice(0, 5), slice(5, 12))]
    assert torch.allclose(sum(halves), each.sum() / 12)  # of two micro-batches


def test_several_labels_and_scores_have_torchs_losses() -> None:
    several = (LOGITS > 0.5).float()
    counts = {name: int(count) for name, count in zip("abc", several.sum(0), strict=True)}
    weights, _ = weigh_classes(recipe_of("balanced"), counts, 12, several=True)
    assert weights == pytest.approx([(12 - count) / count for count in counts.values()])
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, several, pos_weight=torch.tensor(weights))
    loss = classification_loss("multi-label-classification", class_weights=weights)
    assert torch.allclose(loss({"logits": LOGITS}, several), wanted)
    scores = torch.arange(12.0)
    found = classification_loss("text-regression")({"logits": LOGITS[:, :1]}, scores)
    assert torch.allclose(found, torch.nn.functional.mse_loss(LOGITS[:, 0], scores))


def test_a_list_of_another_length_names_the_labels_in_their_order() -> None:
    with pytest.raises(RecipeError) as raised:
        weigh_classes(recipe_of([1, 2]), {"a": 1, "b": 1, "c": 1}, 3)
    assert str(raised.value) == (
        "recipe.yaml: class_weights has 2 numbers for 3 labels; give one for each, in this order: a, b, c"
    )
    assert weigh_classes(recipe_of(None), {"a": 1}, 1) == (None, ())
