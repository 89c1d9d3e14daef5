"""Results of common operations on meta tensors without torch's Python references, which take half of a trace.

torch 2.13 runs its meta kernels of these operations in Python (torch/_refs, torch/_decomp): broadcasting, promotion,
strides. Where every tensor is contiguous and of one floating dtype, and shapes agree, there is nothing to find out. All
else is torch's: a rule answers None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Rule = Callable[..., Any]
_aten = torch.ops.aten
_PLAIN = (torch.Tensor, torch.nn.Parameter)
SAFE_KWARGS = frozenset({"alpha", "approximate", "value"})  # that change no shape and no dtype


def shortcut(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result, of the same shapes, dtypes and strides as torch's own; None where torch has to compute it."""
    rule = RULES.get(packet)
    if rule is None or (kwargs and not kwargs.keys() <= SAFE_KWARGS) or not _is_easy(args[0]):
        return None
    return rule(*args)


def _is_easy(value: Any) -> bool:
    return type(value) in _PLAIN and value.is_meta and value.is_floating_point() and value.is_contiguous()


def _like(one: Any, first: torch.Tensor) -> bool:
    return _is_easy(one) and one.dtype == first.dtype and one.shape == first.shape


def _new(*shape: int, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device="meta")


def _agree(first: torch.Tensor, others: tuple[Any, ...]) -> bool:
    return all(isinstance(one, int | float) or _like(one, first) for one in others)


def _pointwise(first: torch.Tensor, *others: Any) -> Any:
    return _new(*first.shape, like=first) if _agree(first, others) else None


def _in_place(first: torch.Tensor, *others: Any) -> Any:
    return first if _agree(first, others) else None


def _mm(first: torch.Tensor, second: Any) -> Any:
    """The second may be transposed: what comes out is contiguous all the same."""
    if type(second) not in _PLAIN or not second.is_meta or second.dtype != first.dtype or first.shape[1] != len(second):
        return None
    return _new(first.shape[0], second.shape[1], like=first)


def _addmm(bias: torch.Tensor, first: Any, second: Any) -> Any:
    if not _is_easy(first) or first.dtype != bias.dtype or bias.dim() != 1:
        return None
    found = _mm(first, second)
    return found if found is not None and found.shape[1] == len(bias) else None


def _dropout(first: torch.Tensor, p: Any, train: Any) -> Any:
    if not train or not 0 < p < 1:
        return None
    return _new(*first.shape, like=first), _new(*first.shape, like=first, dtype=torch.bool)


def _dropout_backward(gradient: torch.Tensor, mask: Any, scale: Any) -> Any:
    same = isinstance(mask, torch.Tensor) and mask.shape == gradient.shape and mask.is_contiguous() and mask.is_meta
    return _new(*gradient.shape, like=gradient) if same else None


def _layer_norm(first: torch.Tensor, shape: Any, weight: Any, bias: Any, eps: Any) -> Any:
    """float32 only: the statistics of half precision have a dtype of their own."""
    parts = [part for part in (weight, bias) if part is not None]
    if first.dtype != torch.float32 or not all(_is_easy(part) and part.dtype == first.dtype for part in parts):
        return None
    statistics = (*first.shape[: first.dim() - len(shape)], *(1 for _ in shape))
    return _new(*first.shape, like=first), _new(*statistics, like=first), _new(*statistics, like=first)


POINTWISE = (
    "add", "sub", "rsub", "mul", "div", "neg", "abs", "exp", "sqrt", "rsqrt", "reciprocal", "pow", "tanh", "sigmoid",
    "relu", "gelu", "silu", "sin", "cos", "gelu_backward", "silu_backward", "tanh_backward", "sigmoid_backward",
)  # fmt: skip
IN_PLACE = ("add_", "sub_", "mul_", "div_", "addcmul_", "addcdiv_", "lerp_")
RULES: dict[Any, Rule] = {
    **{getattr(_aten, name): _pointwise for name in POINTWISE},
    **{getattr(_aten, name): _in_place for name in IN_PLACE},
    _aten.mm: _mm,
    _aten.addmm: _addmm,
    _aten.native_dropout: _dropout,
    _aten.native_dropout_backward: _dropout_backward,
    _aten.native_layer_norm: _layer_norm,
}
