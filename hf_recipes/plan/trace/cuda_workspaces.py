"""Memory that CUDA kernels take for themselves, which no dispatch mode sees. Each with its source.

Read in pytorch 2.13 unless noted. The attentions' are what an H100 took, to the byte (recipes/results/lab, the GPU's
calibration, torch 2.11).
"""

from __future__ import annotations

from typing import Any

from hf_recipes.plan.trace import cuda_temporaries
from hf_recipes.plan.trace.attention import CUDNN_FIRST, HALF

# aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize: 4096 KiB x 2 + 16 KiB x 8, one a handle and stream,
# and each thread (the forward's, autograd's) has a handle. Confirmed to the byte by Liger's table of three GPUs.
CUBLAS = 4096 * 1024 * 2 + 16 * 1024 * 8
CUBLAS_HOPPER = 4096 * 1024 * 8  # the same place, for compute capability 9.0 and later
# The same file, getCUDABlasLtWorkspaceSize: 1024 KiB for a product whose bias is added by cuBLASLt (addmm with a
# vector); it stays, too. Seen on an H100.
CUBLASLT = 1024 * 1024
MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "gemm_4bit")
# Compute capability -> multiprocessors of one GPU of it, by memory of NVIDIA's datasheets (V100, T4, A100, RTX 3070,
# RTX 4070, H100, B200, RTX 5070 Ti), and the threads that each holds (CUDA C++ Programming Guide).
PROCESSORS = {(7, 0): (80, 2048), (7, 5): (40, 1024), (8, 0): (108, 2048), (8, 6): (46, 1536), (8, 9): (46, 1536)}
PROCESSORS |= {(9, 0): (132, 2048), (10, 0): (148, 2048), (12, 0): (70, 1536)}
ATTENTION = ("_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_efficient_attention_backward")
UNSORTED, PIECE = 3072, 10  # indices of an embedding that are not sorted; rows that are summed at a time
LOCK = 16  # bytes before each block of an accumulator


class CudaWorkspaces:
    """The `workspaces` of a Tracker for a GPU of this compute capability."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability = capability
        self.cublas = CUBLAS_HOPPER if capability >= (9, 0) else CUBLAS
        self.cudnn = capability in CUDNN_FIRST
        self.handles: set[tuple[bool, int]] = set()  # (whether of autograd's thread, bytes) that are there already

    def __call__(
        self, packet: Any, args: tuple[Any, ...], in_backward: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(bytes while the kernel runs, bytes from now on)."""
        name = packet.__name__
        staying: tuple[int, ...] = ()
        if name in MATRIX_PRODUCTS:
            wanted = (self.cublas, CUBLASLT) if name == "addmm" and args[0].dim() == 1 else (self.cublas,)
            staying = tuple(size for size in wanted if (in_backward, size) not in self.handles)
            self.handles |= {(in_backward, size) for size in staying}
        rule = PASSING.get(name)
        if self.cudnn and name in ATTENTION and args[1].dtype in HALF:
            rule = cudnn_backward
        if name == "sum" and len(args) > 1 and args[1]:
            return self._sum(args[0], args[1]), staying
        if name == "native_layer_norm_backward":
            processors, _ = PROCESSORS.get(self.capability, PROCESSORS[(8, 6)])
            return cuda_temporaries.layer_norm_backward(args, processors), staying
        return (rule(args) if rule is not None else ()), staying

    def _sum(self, summed: Any, dims: Any) -> tuple[int, ...]:
        over = {dim % summed.dim() for dim in dims}
        outputs = 1
        for dim, size in enumerate(summed.shape):
            outputs *= 1 if dim in over else size
        if summed.dim() - 1 in over or not summed.numel():
            return ()
        return (reduction(summed.numel(), outputs, self.capability),)


def _gemm_4bit(args: tuple[Any, ...]) -> tuple[int, ...]:
    """bitsandbytes/autograd/_functions.py: all of the weight is dequantized, in the compute dtype, for one product."""
    return (int(args[2][0]) * int(args[2][1]) * args[0].element_size(),)


def flash_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd: dq_accum and softmax_d in fp32, with
    rows rounded to 128 and heads' width to 32 (64 above 128); expanded dk and dv where heads share keys. And what
    attention_backward.cu makes contiguous before: the output's gradient and the output, as (batch, rows, heads)."""
    query, key = args[1], args[2]
    batch, heads, rows, width = query.shape
    width_rounded = _up(width, 32 if width <= 128 else 64)
    sizes = [batch * heads * _up(rows, 128) * width_rounded * 4, batch * heads * _up(rows, 128) * 4]
    if heads != key.shape[1]:
        sizes += [batch * heads * key.shape[2] * width * query.element_size()] * 2
    sizes += [one.nbytes for one in (args[0], args[4]) if not one.transpose(1, 2).is_contiguous()]
    return tuple(sizes)


def efficient_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """aten/src/ATen/native/transformers/cuda/attention_backward.cu and mem_eff_attention/kernel_backward.h. Halves:
    delta in fp32, and fp32 accumulators of the query's gradient in blocks, each with a lock (of key and value where a
    head is wider than 128). fp32: the product of which delta is the sum, and delta twice."""
    query, key = args[1], args[2]
    batch, heads, rows, width = query.shape
    delta = batch * heads * rows * 4
    if query.dtype not in HALF:
        return (delta * width, delta, delta)
    block = 64 if width <= 64 else 128
    blocks = batch * heads * -(-rows // block)
    sizes = [delta, blocks * (LOCK + block * _up(width, block) * 4)]
    if width > 128:
        sizes += [batch * heads * key.shape[2] * width * 4] * 2
    return tuple(sizes)


def cudnn_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """One workspace, as measured: an fp32 accumulator of the query's gradient and a sum of each row; dk and dv of every
    head where heads share keys."""
    query, key = args[1], args[2]
    batch, heads, rows, width = query.shape
    size = batch * heads * rows * (width + 1) * 4 + 512
    if heads != key.shape[1]:
        size += 2 * batch * heads * key.shape[2] * width * query.element_size()
    return (size,)


def _embedding_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """aten/src/ATen/native/cuda/Embedding.cu and EmbeddingBackwardKernel.cu: more than 3072 indices are sorted, and
    their rows summed ten at a time, in fp32: arrays of int64, and a row for each piece and each index."""
    indices = args[1].numel()
    if indices <= UNSORTED:
        return ()
    segments = min(indices, int(args[2]))
    pieces = indices // PIECE + segments
    return (*(indices * 8,) * 3, *(segments * 8,) * 2, 8, 8, pieces * 8, pieces * args[0].shape[-1] * 4)


def _norms(args: tuple[Any, ...]) -> tuple[int, ...]:
    """aten/src/ATen/native/cuda/ForeachReduceOp.cu: a number in fp32 for each chunk of 65536 of the longest tensor, of
    every tensor."""
    longest = max((one.numel() for one in args[0]), default=0)
    return (len(args[0]) * -(-longest // 65536) * 4,)


def reduction(numel: int, outputs: int, capability: tuple[int, int]) -> int:
    """aten/src/ATen/native/cuda/Reduce.cuh, setReduceConfig: bytes that a sum over all but the fastest dimensions takes
    where the blocks of a GPU share one output, in fp32. Seen on an H100 to the byte."""
    processors, threads = PROCESSORS.get(capability, PROCESSORS[(8, 6)])
    inputs = numel // outputs
    vector = next(size for size in (4, 2, 1) if outputs % size == 0)
    most = 512 // vector
    across, down = (min(_power_of_two(size), most) for size in (outputs // vector, inputs))
    width = min(across, 32)
    height = min(down, most // width)
    width = min(across, most // height)
    values = inputs if inputs < min(height * 16, 256) else -(-inputs // height)
    grid = -(-(outputs // vector) // width)
    target = processors * (threads // (width * height))
    if values == inputs or values < 256 or grid > target:
        return 0
    blocks = max(min(-(-target // grid), -(-values // 16)), -(-values // 256))
    return 4 * outputs * blocks * width * vector if blocks > 1 else 0


def _power_of_two(size: int) -> int:
    return 1 << (max(1, size).bit_length() - 1)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


PASSING = {
    **cuda_temporaries.RULES,
    "gemm_4bit": _gemm_4bit,
    ATTENTION[0]: flash_backward,
    ATTENTION[1]: efficient_backward,
    "embedding_dense_backward": _embedding_backward,
    "_foreach_norm": _norms,
}
