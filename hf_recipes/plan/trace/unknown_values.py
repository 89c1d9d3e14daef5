"""What a meta tensor does not know, and what is assumed instead: numbers on which code branches, sizes of selections.

Masks are all ones if `Tracker.uniform` is set, gradients are finite, every other number is 1; a selection
by a mask has as many rows as the mask can have true places, the most that it can select.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch

aten = torch.ops.aten


class Recorder(Protocol):
    """What an answer needs of the tracker: what it knows of a tensor, and how to record what the answer allocates."""

    uniform: bool
    bounded: set[str]
    guessed: dict[str, str]

    def add_storage(self, size: int, op: str) -> int: ...
    def free_storage(self, number: int) -> None: ...
    def track(self, tensor: torch.Tensor, op: str) -> None: ...
    def number_in(self, tensor: torch.Tensor) -> float: ...
    def most_true(self, mask: torch.Tensor) -> int: ...
    def made_by(self, tensor: torch.Tensor) -> str: ...
    def is_nowhere(self, mask: torch.Tensor) -> bool: ...
    def writes_in_place(self) -> bool: ...
    def guessed_flops(self, flops: int) -> None: ...


def is_infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _scalar(tracker: Recorder, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    """`.item()`"""
    value = args[0]
    if value.device.type != "meta":
        return False, None
    number = tracker.number_in(value)
    if value.dtype == torch.bool:
        return True, bool(number)
    return True, float(number) if value.is_floating_point() else int(number)


def _truth(tracker: Recorder, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    answered, value = _scalar(tracker, func, args, kwargs)
    return answered, bool(value)


def _same(tracker: Recorder, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    """isclose (aten/src/ATen/native/TensorCompare.cpp): a mask, and three tensors of differences at once."""
    if args[0].device.type != "meta":
        return False, None
    if func._overloadpacket is aten.allclose:
        for number in [tracker.add_storage(size, "allclose") for size in (args[0].numel(), *(args[0].nbytes,) * 3)]:
            tracker.free_storage(number)
    return True, True


def _select(tracker: Recorder, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    """`x[mask]`: as many rows as the mask has places, the most that it can select."""
    tensor, indices = args[0], args[1]
    masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
    if tensor.device.type != "meta" or not masks:
        return False, None
    tracker.bounded.add(str(func))
    mask, place = masks[0], next(i for i, index in enumerate(indices) if index is not None)
    # The kernel turns the mask into one int64 index for each of its dimensions, which live until it is done.
    count = tracker.most_true(mask)
    numbers = [tracker.add_storage(8 * count, "nonzero") for _ in range(mask.dim())]
    shape = (*tensor.shape[:place], count, *tensor.shape[place + mask.dim() :])
    result = tensor.new_empty(shape)
    tracker.track(result, "index")
    for number in numbers:
        tracker.free_storage(number)
    return True, result


def _nonzero(tracker: Recorder, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    if args[0].device.type != "meta":
        return False, None
    tracker.bounded.add(str(func))
    result = torch.empty(tracker.most_true(args[0]), args[0].dim(), dtype=torch.long, device="meta")
    tracker.track(result, "nonzero")
    return True, result


def _masked_select(tracker: Recorder, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    if args[0].device.type != "meta":
        return False, None
    tracker.bounded.add(str(func))
    result = args[0].new_empty(max(args[0].numel(), args[1].numel()))
    tracker.track(result, "masked_select")
    return True, result


def _same_everywhere(tracker: Recorder, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    """unique_consecutive of a count in each row (the classifiers of T5 and BART): every row has the same."""
    if args[0].device.type != "meta":
        return False, None
    tracker.bounded.add(str(func))
    return_inverse, return_counts = (*args[1:3], False, False)[:2]
    found = args[0].new_empty(1)
    empty = args[0].new_empty(0, dtype=torch.long)
    inverse = args[0].new_empty(args[0].shape, dtype=torch.long) if return_inverse else empty
    result = found, inverse, args[0].new_empty(1, dtype=torch.long) if return_counts else empty
    for tensor in result:
        tracker.track(tensor, "unique_consecutive")
    return True, result


def _put(tracker: Recorder, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    """`x[mask] = y`, in place."""
    indices = args[1]
    if args[0].device.type != "meta" or not any(i is not None and i.dtype == torch.bool for i in indices):
        return False, None
    if func._overloadpacket is aten.index_put and not tracker.writes_in_place():
        result = torch.empty_like(args[0])
        tracker.track(result, "index_put")
        return True, result
    return True, args[0]


def _grouped(tracker: Recorder, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    """A mixture of experts' products, which meta tensors have in bfloat16 only: one result of the groups' shape.

    (T, K) x (E, K, N) -> (T, N); (M, T) x (T, N), split by offsets along T -> (E, M, N); both of three dimensions: a
    batch of products. What a GPU's kernel takes beside its result (rows padded a group) is not counted.
    """
    first, second = args[0], args[1]
    offsets = args[2] if len(args) > 2 else kwargs.get("offs")
    if first.device.type != "meta":
        return False, None
    shape: tuple[int, ...] = (*first.shape[:-1], second.shape[-1])
    if first.dim() == second.dim() == 2 and offsets is not None:
        shape = (offsets.shape[0], first.shape[0], second.shape[1])
    tracker.guessed[str(func)] = "the routing is not known: counted as products of all rows, without padding a group"
    result = first.new_empty(shape)
    tracker.track(result, "_grouped_mm")
    tracker.guessed_flops(2 * first.shape[-2] * first.shape[-1] * second.shape[-1])
    return True, result


def _quantise_rows(tracker: Recorder, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    """LLM.int8's input (bitsandbytes/backends/cuda/ops.py, int8_vectorwise_quant): bytes, a scale a row, and the
    columns with outliers: all of them, the most that there can be."""
    taken = args[0]
    threshold = args[1] if len(args) > 1 else kwargs.get("threshold", 0.0)
    if taken.device.type != "meta" or not threshold:
        return False, None
    found = torch.empty(taken.shape, dtype=torch.int8, device="meta")
    scales = torch.empty(taken.numel() // taken.shape[-1], device="meta")
    columns = torch.empty(taken.shape[-1], dtype=torch.long, device="meta")
    for number in [tracker.add_storage(size, "int8_vectorwise_quant") for size in (taken.nbytes, taken.numel())]:
        tracker.free_storage(number)  # A.abs(), and where it is an outlier
    for tensor in (found, scales, columns):
        tracker.track(tensor, "int8_vectorwise_quant")
    return True, (found, scales, columns)


def _multiply_bytes(tracker: Recorder, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    """LLM.int8's product (bitsandbytes/backends/default/ops.py, int8_mixed_scaled_mm): the columns with outliers of
    both sides are multiplied in half precision, beside the bytes' product, which is int32 first."""
    first, weight, columns = args[0], args[2], args[5] if len(args) > 5 else kwargs.get("outlier_cols")
    if first.device.type != "meta":
        return False, None
    chosen = columns.numel() if columns is not None else 0
    rows, outputs = first.numel() // first.shape[-1], weight.shape[0]
    outliers = first.new_empty(rows, chosen) if chosen else first.new_empty(0)
    result = first.new_empty(*args[1].shape[:-1], outputs)
    tracker.track(outliers, "int8_mixed_scaled_mm")
    half = first.element_size()
    # the weight's columns as bytes, as fp32 and in half precision; the int32 product, and the sum without outliers
    sizes = (outputs * chosen, outputs * chosen * 4, outputs * chosen * half, rows * outputs * 4, rows * outputs * half)
    passing = [tracker.add_storage(size, "int8_mixed_scaled_mm") for size in sizes]
    tracker.track(result, "int8_mixed_scaled_mm")
    for number in passing:
        tracker.free_storage(number)
    tracker.guessed_flops(2 * rows * first.shape[-1] * outputs)
    return True, (result, outliers)


# By the name of an operation of a package that need not be there.
NAMED_ANSWERS: dict[str, Callable[[Recorder, Any, Any, Any], tuple[bool, Any]]] = {
    "int8_vectorwise_quant": _quantise_rows,
    "int8_mixed_scaled_mm": _multiply_bytes,
}
ANSWERS: dict[Any, Callable[[Recorder, Any, Any, Any], tuple[bool, Any]]] = {
    aten._local_scalar_dense: _scalar,
    aten.is_nonzero: _truth,
    aten.equal: _same,
    aten.allclose: _same,
    aten.index: _select,
    aten.nonzero: _nonzero,
    aten.masked_select: _masked_select,
    aten.unique_consecutive: _same_everywhere,
    aten.index_put: _put,
    aten.index_put_: _put,
    aten._grouped_mm: _grouped,
}


def _number_less_tensor(tracker: Recorder, args: Any) -> float:
    """`size - tensor` of whole numbers: a length that is cut by a count (Longformer)."""
    if args[0].is_floating_point() or not isinstance(args[1], int):
        return 1
    return args[1] - tracker.number_in(args[0])


ZEROS = ("zeros_like", "zeros", "new_zeros")
KNOWN_RESULTS: dict[str, Callable[[Recorder, Any], float]] = {
    "all": lambda tracker, args: float(tracker.uniform),
    "eq": lambda tracker, args: float(tracker.uniform or tracker.made_by(args[0]) != "sum"),  # transformers' fast_all
    "any": lambda tracker, args: float(not tracker.is_nowhere(args[0])),
    "isfinite": lambda tracker, args: 1,
    "isnan": lambda tracker, args: 0,
    "isinf": lambda tracker, args: 0,
    "logical_not": lambda tracker, args: 1 - float(bool(tracker.number_in(args[0]))),
    "_to_copy": lambda tracker, args: tracker.number_in(args[0]),
    "rsub": _number_less_tensor,
    "full": lambda tracker, args: float(args[1]),
}
