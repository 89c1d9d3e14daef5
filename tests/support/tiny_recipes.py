"""Tiny recipes that the tests of plan trace, on meta tensors and on real ones."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hf_recipes.plan.trace import worker
from hf_recipes.recipe.recipe import Recipe

LENGTH = 32
CHILD = worker._ask
TRACING = threading.Lock()  # a trace patches torch: one at a time in a process
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 500}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 500,
    "max_position_embeddings": 64,
}
BERT = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 500,
}
GEMMA = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 500,
    "sliding_window": 16,
}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_MOE = {**LLAMA, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def tiny(
    task: str,
    config: dict[str, Any],
    *,
    sft: bool = False,
    model: dict[str, Any] | None = None,
    sections: dict[str, Any] | None = None,
    **arguments: Any,
) -> Recipe:
    """A recipe of four rows of 32 tokens; `arguments` go into the trainer's section."""
    arguments = {
        "output_dir": "runs/tiny",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        **arguments,
    }
    dataset: dict[str, Any] = {"path": "generated"}
    if sft:
        arguments.setdefault("max_length", LENGTH)
    else:
        dataset["max_length"] = LENGTH
    named = {
        "task": task,
        "model": {"config": config, **(model or {})},
        "dataset": dataset,
        "SFTConfig" if sft else "TrainingArguments": arguments,
        **(sections or {}),
    }
    return Recipe(path="tiny.yaml", sections=named, locations={})


@pytest.fixture(scope="module", autouse=True)
def traces_in_this_process() -> Iterator[None]:
    """Tracing without its child, whose imports take seconds in every process of tests; one trace at a time, since each
    patches torch. tests/plan/trace/test_trace.py and a test of tests/commands/test_plan.py have the child itself."""
    from hf_recipes.plan.trace import trace  # noqa: F401  (imported before what is there is frozen)

    gc.collect()
    gc.freeze()  # accelerate's collections, two a trace, do not walk what was imported

    def ask(request: dict[str, Any], seat: int) -> dict[str, Any]:
        with TRACING:
            sent = json.loads(json.dumps({**request, "folder": os.getcwd()}))
            answer: dict[str, Any] = json.loads(json.dumps(worker._answer(sent)))
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_ask", ask)
        yield


@pytest.fixture
def real_child(traces_in_this_process: None) -> Iterator[None]:
    """Tracing in a child, as users have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_ask", CHILD)
        yield
    worker.close()


def wait_for_traces() -> None:
    """Until traces that were begun ahead in this process are over: they patch torch meanwhile."""
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join()
