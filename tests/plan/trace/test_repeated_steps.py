"""The second optimizer step's micro-batches are repeated from the log of the first, to the byte, or computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hf_recipes.plan.trace import repeated_steps, trace
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_recipes import TRACING

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 500,
    "max_position_embeddings": 64,
}
BERT = {**LLAMA, "model_type": "bert"}
ADAPTER = {"r": 4, "target_modules": "all-linear"}
MIXTURE = {**LLAMA, "model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4}


def recipe(task: str, config: dict[str, Any], trainer: str, arguments: dict[str, Any], **sections: Any) -> Recipe:
    values = {"output_dir": "out", "per_device_train_batch_size": 2, "max_length": 32, **arguments}
    dataset: dict[str, Any] = {"path": "generated"}
    if trainer == "TrainingArguments":
        dataset["max_length"] = values.pop("max_length")
    model = {"config": config}
    return Recipe(
        path="a.yaml",
        sections={"task": task, "model": model, "dataset": dataset, trainer: values, **sections},
        locations={},
    )


# what is planned, and how many micro-batches of the second step are repeated
CASES = {
    "one micro-batch": (recipe("causal-lm", LLAMA, "TrainingArguments", {}), 1),
    "accumulation in bf16": (
        recipe("causal-lm", LLAMA, "TrainingArguments", {"gradient_accumulation_steps": 4, "bf16": True}),
        2,
    ),
    "LoRA of a chat with checkpointing": (
        recipe(
            "chat", LLAMA, "SFTConfig", {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
            LoraConfig=ADAPTER,
        ),
        2,
    ),
    "a classifier with padded rows": (
        recipe("text-classification", BERT, "TrainingArguments", {"gradient_accumulation_steps": 2}),
        2,
    ),
    "a mixture of experts": (
        recipe("causal-lm", MIXTURE, "TrainingArguments", {"gradient_accumulation_steps": 2}),
        2,
    ),
    # the scaler makes its scale in the first backward, which therefore is not as the later ones
    "fp16 with a loss scaler": (
        recipe("causal-lm", LLAMA, "TrainingArguments", {"gradient_accumulation_steps": 2, "fp16": True}),
        1,
    ),
    "the cache emptied in a step": (
        recipe("causal-lm", LLAMA, "TrainingArguments", {"torch_empty_cache_steps": 1}),
        0,
    ),
    # it steps in the backward, where its states begin
    "a layerwise optimizer": (
        recipe(
            "causal-lm", LLAMA, "TrainingArguments",
            {"optim": "galore_adamw_layerwise", "optim_target_modules": ["mlp"]},
        ),
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_repeated_is_what_would_be_computed_to_the_byte(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, repeats = CASES[case]
    made: list[repeated_steps.RepeatedSteps] = []
    real = repeated_steps.RepeatedSteps

    def counted(*arguments: Any) -> repeated_steps.RepeatedSteps:
        made.append(real(*arguments))
        return made[-1]

    monkeypatch.setattr(trace, "RepeatedSteps", counted)
    found = []
    with TRACING:
        for repeating in (True, False):
            monkeypatch.setattr(trace, "REPEATS", repeating)
            found.append(trace.trace_here(planned, capability=(8, 0)))
    assert [one.repeated for one in made] == [repeats, 0]
    once, twice = (replace(one, seconds=0.0) for one in found)
    assert once == twice and once.events
