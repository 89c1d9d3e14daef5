"""What FSDP2 needs of a model before accelerate spreads it. Imports neither torch nor transformers."""

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


def give_addresses(model: Any) -> None:
    """Room on the CPU for weights that only rank 0 has loaded (fsdp_cpu_ram_efficient_loading), which it sends later.

    accelerate (1.15, fsdp2_switch_optimizer_parameters) finds the optimizer's weights by their addresses, and weights
    on the meta device have none: on all ranks but the first, the optimizer would have one weight instead of all. Room
    that nobody writes to takes no memory. Tied weights stay tied.
    """
    import torch

    known: dict[int, Any] = {}
    for part in model.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            if not weight.is_meta:
                continue
            if id(weight) not in known:
                room = torch.empty_like(weight, device="cpu")
                known[id(weight)] = torch.nn.Parameter(room, requires_grad=weight.requires_grad)
            setattr(part, name, known[id(weight)])
