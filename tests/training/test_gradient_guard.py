"""A gradient that is not finite while the loss is: the run stops, skips or goes back as for a loss of NaN."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from hf_recipes.pipeline.run import run
from tests.training.test_step_guard import classes, record, refused  # noqa: F401


@pytest.fixture
def poisoned_gradient(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """The gradient of training forward number `at` is multiplied by `factor`; the loss stays as it is."""

    def set_up(at: int, factor: float) -> None:
        forward, calls = BertForSequenceClassification.forward, []

        @functools.wraps(forward)
        def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = forward(self, *args, **kwargs)
            if self.training and torch.is_grad_enabled():
                calls.append(1)
                if len(calls) == at:
                    output.logits.register_hook(lambda gradient: gradient * factor)
            return output

        monkeypatch.setattr(BertForSequenceClassification, "forward", poisoned)

    return set_up


def test_an_infinite_gradient_of_a_finite_loss_stops_before_the_weights_are_touched(
    classes: str,  # noqa: F811
    poisoned_gradient: Callable[[int, float], None],
) -> None:
    poisoned_gradient(6, float("inf"))
    message = refused(classes)
    assert message.startswith("recipe.yaml:9: step 6: the loss is 0.")
    assert "its gradient norm nan" in message or "its gradient norm inf" in message
    assert "saved in checkpoint-5)" in message
    assert (record()["status"], record()["steps"]) == ("failed", 5)
    from safetensors.torch import load_file

    weights = load_file("out/checkpoint-5/model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


def test_a_step_whose_gradient_is_nan_is_skipped_where_the_recipe_says_so(
    classes: str,  # noqa: F811
    poisoned_gradient: Callable[[int, float], None],
) -> None:
    poisoned_gradient(3, float("nan"))
    run(classes, ["on_nonfinite=skip"])
    assert record()["guards"] == {"skipped_steps": [3], "rolled_back": 0}
    assert record()["status"] == "finished" and Path("out/model.safetensors").is_file()
