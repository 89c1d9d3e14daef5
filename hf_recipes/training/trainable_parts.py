"""Parts of a model that must have a gradient, and those that must not change."""

from __future__ import annotations

import math
from typing import Any

import torch

HEADS = ("classifier", "score", "qa_outputs", "lm_head", "modules_to_save")
ADAPTERS = (".lora_", ".ia3_", ".oft_", ".vera_")


def part_of(name: str) -> str | None:
    """The adapter or head that a trained weight is of; None for other weights, and for experts, which may get no row.

    An adapter is one part: LoRA's A has no gradient as long as B is zero.
    """
    if ".experts." in name:
        return None
    for mark in ADAPTERS:
        if mark in name:
            return name.partition(mark)[0]
    if "prompt_encoder" in name:
        return "prompt_encoder"
    owner = name.rpartition(".")[0]
    return owner if any(head in owner.split(".") for head in HEADS) else None


def gradients(model: Any) -> dict[str, bool]:
    """Trained adapters and heads, and whether any weight of theirs has a gradient that is not all zeros.

    One reading of the device. {} for None (sharded weights).
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for name, param in model.named_parameters() if model is not None else ():
        part = part_of(name) if param.requires_grad else None
        if part is not None:
            parts.setdefault(part, []).extend([] if param.grad is None else [param.grad])
    norms = [torch.linalg.vector_norm(grad, math.inf).float() for grads in parts.values() for grad in grads]
    read = iter(torch.stack(norms).tolist() if norms else ())
    return {part: sum(next(read) != 0.0 for _ in grads) > 0 for part, grads in parts.items()}


def frozen_sums(model: Any) -> dict[str, int]:
    """A checksum of each weight that is not trained: the sum of its bytes as whole numbers of 32 bits (of 8, where
    they are no multiple). One reading of the device. {} for None (sharded weights)."""
    named = [(name, p) for name, p in model.named_parameters() if not p.requires_grad] if model is not None else []
    if not named:
        return {}
    sums = torch.stack([_sum(param) for _, param in named]).tolist()
    return {name: total for (name, _), total in zip(named, sums, strict=True)}


def _sum(param: torch.Tensor) -> torch.Tensor:
    flat = param.detach().contiguous().reshape(-1).view(torch.uint8)
    words = flat.view(torch.int32) if flat.numel() % 4 == 0 and flat.data_ptr() % 4 == 0 else flat
    return words.sum(dtype=torch.int64)
