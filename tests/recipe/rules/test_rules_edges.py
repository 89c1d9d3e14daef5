"""What planted faults in the rules showed: one question each."""

from __future__ import annotations

from hf_recipes.common.device import Device
from hf_recipes.recipe.rules import all_rules
from tests.support.rule_recipes import recipe_of


def test_float16_weights_of_a_gemma_are_refused(ask) -> None:
    errors, _ = ask(model="{pretrained_model_name_or_path: google/gemma-3-270m, dtype: float16}")
    assert any("model.dtype: float16 with a Gemma" in error for error in errors)


def test_pushing_always_has_no_effect(ask) -> None:
    _, warnings = ask("hub_always_push: true")
    assert any("hub_always_push has no effect" in warning for warning in warnings)


def test_logging_steps_count_under_their_strategy_or_as_eval_steps(ask) -> None:
    for training, expected in (("", True), ("eval_strategy: steps\n", False)):
        _, warnings = ask(f"{training}logging_strategy: epoch\nlogging_steps: 5")
        assert any("logging_steps has no effect: logging_strategy is epoch" in one for one in warnings) is expected


def test_optimizers_of_other_machines_are_refused() -> None:
    for optim, kind in (("adamw_torch_xla", "a TPU"), ("adamw_torch_npu_fused", "an NPU")):
        recipe = recipe_of({"TrainingArguments": {"optim": optim}})
        errors = [error.message for error in all_rules.device_errors(recipe, Device(kind="cpu", name="a CPU"))]
        assert f"optim: {optim} is for {kind}" in errors


def test_master_weights_train_in_fp16_on_a_cpu_too() -> None:
    for master, lines in ((False, 1), (True, 0)):
        recipe = recipe_of({"master_weights": master, "TrainingArguments": {"fp16": True}})
        assert sum(line.startswith("fp16 ") for line in all_rules.device_requirements(recipe)) == lines
