"""Memory that CUDA kernels take for themselves, which no dispatch mode sees. Each with the source that says so.

Read in pytorch 2.13 unless noted; none was measured by us on a card except where a record says so.
"""

from __future__ import annotations

from typing import Any

import torch

MIB = 1 << 20
# aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize: 4096 KiB x 2 + 16 KiB x 8, one a handle and stream,
# and each thread (the forward's, autograd's) has a handle. Confirmed to the byte by Liger's table on three cards.
CUBLAS = 4096 * 1024 * 2 + 16 * 1024 * 8
CUBLAS_HOPPER = 4096 * 1024 * 8  # the same place, for compute capability 9.0 and later
MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "gemm_4bit")
HALF = (torch.float16, torch.bfloat16)


class CudaWorkspaces:
    """The `workspaces` of a Tracker for a card of this compute capability."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.cublas = CUBLAS_HOPPER if capability >= (9, 0) else CUBLAS
        self.threads: set[bool] = set()  # those that have had their handle: False the forward's, True autograd's

    def __call__(
        self, packet: Any, args: tuple[Any, ...], in_backward: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(bytes while the kernel runs, bytes from now on)."""
        name = packet.__name__
        staying: tuple[int, ...] = ()
        if name in MATRIX_PRODUCTS and in_backward not in self.threads:
            self.threads.add(in_backward)
            staying = (self.cublas,)
        rule = PASSING.get(name)
        return (rule(args) if rule is not None else ()), staying


def _gemm_4bit(args: tuple[Any, ...]) -> tuple[int, ...]:
    """bitsandbytes/autograd/_functions.py: the weight is dequantised whole, in the compute dtype, for one product."""
    return (int(args[2][0]) * int(args[2][1]) * args[0].element_size(),)


def _flash_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd: dq_accum and softmax_d in fp32, with
    rows rounded to 128 and heads' width to 32 (64 above 128); expanded dk and dv where heads share keys."""
    query, key = args[1], args[2]
    batch, heads, rows, width = query.shape
    width_rounded = _up(width, 32 if width <= 128 else 64)
    sizes = [batch * heads * _up(rows, 128) * width_rounded * 4, batch * heads * _up(rows, 128) * 4]
    if heads != key.shape[1]:
        sizes += [batch * heads * key.shape[2] * width * query.element_size()] * 2
    return tuple(sizes)


def _efficient_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """aten/src/ATen/native/transformers/cuda/attention_backward.cu: delta in fp32, and fp32 accumulators of the
    gradients where inputs are halves (of the query; of key and value where a head is wider than 128)."""
    query, key = args[1], args[2]
    batch, heads, rows, width = query.shape
    sizes = [batch * heads * rows * 4]
    if query.dtype in HALF:
        sizes.append(batch * heads * rows * width * 4)
        if width > 128:
            sizes += [batch * heads * key.shape[2] * width * 4] * 2
    return tuple(sizes)


def _embedding_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """aten/src/ATen/native/cuda/Embedding.cu: indices are sorted: two pairs of (index, place) in int64."""
    return (args[1].numel() * 8,) * 4


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


PASSING = {
    "gemm_4bit": _gemm_4bit,
    "_scaled_dot_product_flash_attention_backward": _flash_backward,
    "_scaled_dot_product_efficient_attention_backward": _efficient_backward,
    "embedding_dense_backward": _embedding_backward,
}
