"""The arithmetic of an operation and the bytes that it moves, for the forecast of time (plan/time)."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from hf_recipes.plan.trace.fast_meta import Cost
from hf_recipes.plan.trace.result import Work

aten = torch.ops.aten


def cost_of(packet: Any, args: Any, kwargs: Any, result: Any) -> Cost:
    """The arithmetic of an operation, and what it reads and writes."""
    flops = 0
    if packet in flop_registry:
        flops = _product_flops(packet, args) or _attention_flops(packet, args)
        flops = flops or int(flop_registry[packet](*args, **kwargs, out_val=result))
    elif packet.__name__ == "gemm_4bit":
        rows = args[0].numel() // args[0].shape[-1]
        flops = 2 * rows * int(args[2][0]) * int(args[2][1])
    moved = _bytes(args) + _bytes(tuple(kwargs.values())) + _bytes(result)
    return flops, moved, bool(flops) and _is_half(args)


def work_of(counted: dict[str, list[int]], phases: tuple[str, ...], times: int) -> Work:
    """The work of some phases, each counted `times` times."""
    none = (0, 0, 0, 0, 0)
    sums = [sum(counted.get(phase, none)[i] for phase in phases) // max(1, times) for i in range(len(none))]
    return Work(flops=sums[0], bytes_moved=sums[1], kernels=sums[2], half_flops=sums[3], matmul_bytes=sums[4])


def _product_flops(packet: Any, args: Any) -> int:
    """As torch's registry counts them, without its walk through the arguments."""
    if packet is aten.mm:
        rows, inner = args[0].shape
        return int(2 * rows * inner * args[1].shape[1])
    if packet is aten.addmm:
        rows, inner = args[1].shape
        return int(2 * rows * inner * args[2].shape[1])
    return 0


def _attention_flops(packet: Any, args: Any) -> int:
    """Of attention whose heads share keys, which torch before 2.12 does not count: 2 products, 5 in the backward."""
    if not packet.__name__.startswith("_scaled_dot_product"):
        return 0
    backward = packet.__name__.endswith("_backward")
    query, key = args[int(backward)], args[int(backward) + 1]
    if query.shape[1] == key.shape[1]:
        return 0
    batch, heads, rows, width = query.shape
    return int(2 * batch * heads * rows * key.shape[2] * width * (5 if backward else 2))


def _is_half(args: Any) -> bool:
    """Whether a product's first tensor is fp16 or bf16."""
    first = next((one for one in args if isinstance(one, torch.Tensor)), None)
    return first is not None and first.dtype in (torch.float16, torch.bfloat16)


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple | list):
        return sum(map(_bytes, value))
    return 0
