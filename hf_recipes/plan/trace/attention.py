"""scaled_dot_product_attention on meta tensors: the back end that a GPU (or CPU) would choose, with its own outputs.

aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (torch 2.13) for dense inputs: on Hopper's and Blackwell's server
GPUs cuDNN's first (seen on an H100); flash, else memory-efficient, else math. cuDNN's has the outputs of flash, or of
memory-efficient with a mask, and a workspace of its own. CPU: sdp_utils_cpp.cpp: flash, else math.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
CUDNN_FIRST = ((9, 0), (10, 0))  # check_prefer_cudnn_attention


def run_attention(
    capability: tuple[int, int] | None,
    count: Callable[[str], None],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """As F.scaled_dot_product_attention; tensors that are not meta go to the real one.

    capability: of the GPU, None for a CPU; count: called with the back end that was chosen.
    """
    if query.device.type != "meta":
        arguments = {"scale": scale, "enable_gqa": enable_gqa}
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **arguments)  # type: ignore[arg-type]
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if capability is None:
        chosen = _cpu_choice(query, key, value, attn_mask, dropout_p, enable_gqa)
    else:
        chosen = cuda_choice(capability, query, key, value, attn_mask, dropout_p, is_causal, grad, enable_gqa)
    count(chosen)
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # convert_boolean_attn_mask
        filled = torch.zeros_like(attn_mask, dtype=query.dtype)
        filled.masked_fill_(attn_mask.logical_not(), float("-inf"))
        attn_mask = filled
    if chosen == "flash for CPU":
        op = aten._scaled_dot_product_flash_attention_for_cpu
        return op(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    if chosen == "flash" or (chosen == "cudnn" and attn_mask is None):
        return flash(query, key, value, dropout_p, is_causal, scale)
    if chosen in ("efficient", "cudnn"):
        bias = None if attn_mask is None else _aligned(attn_mask).expand(*query.shape[:3], key.shape[2])
        op = aten._scaled_dot_product_efficient_attention
        return op(query, key, value, bias, grad, dropout_p, is_causal, scale=scale)[0]
    op = aten._scaled_dot_product_attention_math
    return op(query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa)[0]


def flash(query: Any, key: Any, value: Any, dropout_p: float, is_causal: bool, scale: float | None) -> Any:
    """Heads are padded to a multiple of 8 (pad_last_dim)."""
    width = query.shape[-1]
    if width % 8:
        scale = scale if scale is not None else 1 / math.sqrt(width)
        query, key, value = (F.pad(tensor, (0, 8 - width % 8)) for tensor in (query, key, value))
    op = aten._scaled_dot_product_flash_attention
    return op(query, key, value, dropout_p, is_causal, False, scale=scale)[0][..., :width]


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """pad_bias<16>: rows of a bias begin at multiples of 16 elements."""
    columns = mask.shape[-1]
    return F.pad(mask, (0, 16 - columns % 16))[..., :columns] if columns % 16 else mask


def cuda_choice(
    capability: tuple[int, int],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    grad: bool,
    enable_gqa: bool,
) -> str:
    """ "cudnn", "flash", "efficient" or "math", by check_* of sdp_utils.cpp."""
    if not _are_dense(query, key, value, mask, on_cpu=False):
        return "math"
    grouped = query.shape[1] != key.shape[1]
    joinable = _heads_agree(query, key, value, enable_gqa)
    width = query.shape[-1]
    rounded = -(-width // 8) * 8
    half = query.dtype in HALF
    same_width = key.shape[-1] == width == value.shape[-1]
    cudnn = half and capability in CUDNN_FIRST and joinable and same_width and width == rounded <= 256
    if cudnn and not (mask is not None and grouped):
        return "cudnn"
    if half and capability >= (8, 0) and mask is None and rounded <= 256 and same_width and joinable:
        # Consumer GPUs' shared memory is too small for the backward of wide heads.
        consumer = capability in ((8, 6), (8, 9), (12, 0), (12, 1))
        too_wide = grad and consumer and (192 < rounded <= 224 or (rounded > 224 and dropout_p > 0))
        if not too_wide and not (is_causal and query.shape[-2] != key.shape[-2]):
            return "flash"
    known = query.dtype in (torch.float32, torch.float16) or (query.dtype == torch.bfloat16 and capability >= (8, 0))
    align = 8 if half else 4
    aligned = width % align == 0 and value.shape[-1] % align == 0
    heads = query.shape[1] == key.shape[1] == value.shape[1]
    return "efficient" if known and aligned and heads and key.shape[-1] == width else "math"


def _cpu_choice(query: Any, key: Any, value: Any, mask: Any, dropout_p: float, enable_gqa: bool) -> str:
    """check_* of sdp_utils_cpp.cpp."""
    if dropout_p > 0 or not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        return "math"
    if not _are_dense(query, key, value, mask, on_cpu=True) or not _heads_agree(query, key, value, enable_gqa):
        return "math"
    return "flash for CPU"


def _are_dense(query: Any, key: Any, value: Any, mask: Any, on_cpu: bool) -> bool:
    """What every fused kernel asks (sdp_utils_cpp.h): check_tensor_shapes, the batch sizes of
    check_batch_size_and_num_heads_dense, check_nonzero_sequence_lengths_dense, check_last_dim_stride_equals_1_dense and
    check_attn_mask_shape."""
    every = (query, key, value)
    if any(tensor.dim() != 4 for tensor in every) or len({tensor.shape[0] for tensor in every}) > 1:
        return False
    if 0 in (query.shape[-2], key.shape[-2]) or any(tensor.stride(-1) != 1 for tensor in every):
        return False
    if mask is None:
        return True
    whole = (*query.shape[:3], key.shape[2])
    if mask.requires_grad or mask.dim() not in (2, 4) or not (on_cpu or mask.stride(-1) == 1):
        return False
    return all(size in (1, wanted) for size, wanted in zip(reversed(mask.shape), reversed(whole), strict=False))


def _heads_agree(query: Any, key: Any, value: Any, enable_gqa: bool) -> bool:
    """check_batch_size_and_num_heads_dense: without enable_gqa unequal heads are broadcast, by math alone."""
    if not enable_gqa:
        return bool(query.shape[1] == key.shape[1] == value.shape[1])
    return bool(key.shape[1] == value.shape[1] and query.shape[1] % key.shape[1] == 0)
