"""Which parts of a model FSDP2 spreads each by itself. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Any


def choose_blocks(plugin: Any, model: Any) -> None:
    """The model's own blocks, where the accelerate file names none, but for one that holds the input embedding.

    accelerate (1.15, fsdp2_prepare_model) spreads the embedding once more by itself, and torch refuses that: BERT's
    family lists its embeddings among its blocks. `plugin`: accelerate's FullyShardedDataParallelPlugin.
    """
    if plugin.transformer_cls_names_to_wrap is not None:
        return
    embedding = model.get_input_embeddings()
    names = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [part for part in model.modules() if type(part).__name__ in names]
    holders = {type(part).__name__ for part in blocks if any(inner is embedding for inner in part.modules())}
    if holders:
        plugin.transformer_cls_names_to_wrap = sorted({type(part).__name__ for part in blocks} - holders)
