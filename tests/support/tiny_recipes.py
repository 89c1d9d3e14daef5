"""Tiny recipes that the tests of plan trace, on meta tensors and on real ones."""

from __future__ import annotations

from typing import Any

from hf_recipes.recipe.recipe import Recipe

LENGTH = 32
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 500}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 500,
    "max_position_embeddings": 64,
}
BERT = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 500,
}
GEMMA = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "num_hidden_layers": 3,
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
    **words: Any,
) -> Recipe:
    """A recipe of four rows of 32 tokens; `words` go into the trainer's section."""
    words = {"output_dir": "runs/tiny", "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, **words}
    dataset: dict[str, Any] = {"path": "generated"}
    if sft:
        words.setdefault("max_length", LENGTH)
    else:
        dataset["max_length"] = LENGTH
    named = {
        "task": task,
        "model": {"config": config, **(model or {})},
        "dataset": dataset,
        "SFTConfig" if sft else "TrainingArguments": words,
        **(sections or {}),
    }
    return Recipe(path="tiny.yaml", sections=named, locations={})
