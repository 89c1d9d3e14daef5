"""Tensors that ATen's CUDA code makes for itself inside one operation, which a meta tensor's kernel does not.

Each rule takes an operation's arguments and gives the bytes that live while its kernel runs, beside its result. Read in
pytorch's sources (aten/src/ATen/native/cuda). Read there, too, and without such tensors of a size that counts: gelu's
backward in both approximations, native_dropout and its backward, nll_loss and its backward, cumsum and topk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LARGE_BATCH, NORM_COLUMNS, NORM_ROWS = 64 * 1024, 32, 32  # LaunchGammaBetaBackwardCUDAKernel
NORM_GRID = 64 * 1024 // 2
SMALL_SORT = 4096  # should_use_small_sort: sorted in place
INDEX = 8  # bytes of an int64


def copied(*tensors: Any) -> list[int]:
    """What `.contiguous()` takes of each tensor that is not."""
    return [one.numel() * one.element_size() for one in tensors if one is not None and not one.is_contiguous()]


def softmax(args: tuple[Any, ...]) -> tuple[int, ...]:
    """SoftMax.cu, host_softmax: the input made contiguous."""
    return tuple(copied(args[0]))


def softmax_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """SoftMax.cu, softmax_backward_cuda_out: `Tensor tmp = grad * output`, of the gradient's dtype (fp32 where scores
    are upcast), and the output made contiguous."""
    gradient, output = args[0], args[1]
    return (gradient.numel() * gradient.element_size(), *copied(output))


def log_softmax_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """SoftMax.cu, host_softmax_backward: the gradient and the output made contiguous."""
    return tuple(copied(args[0], args[1]))


def layer_norm(args: tuple[Any, ...]) -> tuple[int, ...]:
    """layer_norm_kernel.cu, layer_norm_cuda: input, weight and bias made contiguous."""
    return tuple(copied(args[0], args[2], args[3]))


def layer_norm_backward(args: tuple[Any, ...], processors: int) -> tuple[int, ...]:
    """layer_norm_kernel.cu, layer_norm_backward_cuda: the gradient and the input made contiguous; and where there are
    more than 65,536 rows of few columns (LaunchGammaBetaBackwardCUDAKernel), the sums of each block of 32 rows, of the
    weight's and of the bias's gradient."""
    gradient, taken, shape, weight, bias = args[0], args[1], args[2], args[5], args[6]
    columns = 1
    for size in shape:
        columns *= size
    rows = taken.numel() // max(1, columns)
    sizes = copied(gradient, taken)
    if rows > LARGE_BATCH and columns // NORM_COLUMNS < processors // 2:
        blocks = min(NORM_GRID // -(-columns // NORM_COLUMNS), -(-rows // NORM_ROWS))
        sizes += [blocks * columns * one.element_size() for one in (weight, bias) if one is not None]
    return tuple(sizes)


def group_norm_backward(args: tuple[Any, ...]) -> tuple[int, ...]:
    """group_norm_kernel.cu, GroupNormBackwardKernelImplInternal: ds, db and c1 of every channel, c2 and c3 of every
    group, in fp32 for halves."""
    taken, rows, channels, groups = args[1], args[5], args[6], args[8]
    width = max(4, taken.element_size())
    return (rows * channels * width,) * 3 + (rows * groups * width,) * 2


def sort(args: tuple[Any, ...]) -> tuple[int, ...]:
    """Sort.cpp, sort_cuda_kernel, and Sort.cu, launch_stable_sort_kernel: rows of more than 4,096 are sorted by cub,
    from an int64 for each value (for less than 128 rows, two pairs of int32 and a copy of the keys)."""
    taken = args[0]
    dim = next((one for one in args[1:] if isinstance(one, int) and not isinstance(one, bool)), -1)
    length = taken.shape[dim] if taken.dim() else 1
    if length <= SMALL_SORT:
        return ()
    rows = taken.numel() // length
    if rows == 1:
        return (length * INDEX, *copied(taken))
    if rows < 128:
        return (taken.numel() * INDEX,) * 2 + (taken.numel() * taken.element_size(), *copied(taken))
    return (taken.numel() * INDEX, *copied(taken))


def index_put(args: tuple[Any, ...]) -> tuple[int, ...]:
    """Indexing.cu, index_put_with_sort_kernel, where it accumulates: the values made contiguous, the linear index, its
    sorted copy, its range and the range in the sorted order."""
    indices, values = args[1], args[2]
    if len(args) < 4 or not args[3]:
        return ()
    chosen = max((one.numel() for one in indices if one is not None), default=0)
    return (chosen * INDEX,) * 4 + tuple(copied(values))


RULES: dict[str, Callable[[tuple[Any, ...]], tuple[int, ...]]] = {
    "_softmax": softmax,
    "_log_softmax": softmax,
    "_softmax_backward_data": softmax_backward,
    "_log_softmax_backward_data": log_softmax_backward,
    "native_layer_norm": layer_norm,
    "native_group_norm_backward": group_norm_backward,
    "sort": sort,
    "index_put": index_put,
    "index_put_": index_put,
    "_index_put_impl_": index_put,
    "_unsafe_index_put": index_put,
}
