"""torch.autocast of CUDA (and of CPU) for meta tensors, which have no autocast of their own.

`Simulation` stands in for torch's dispatcher: a TorchFunctionMode casts the arguments of the listed functions. These
lists are those of ATen/autocast_mode.h (CUDA) and autocast_mode.cpp (CPU) under the names that Python calls them by;
tests/plan/trace/test_autocast.py holds them to the installed header and to what autocast on a CPU does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hf_recipes.plan.trace.attention import run_attention
from hf_recipes.plan.trace.tracker import Tracker

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)

# ATen's operator -> what else Python calls it by. The operator's own name is always one of them.
LOWER: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("_convolution", "conv1d", "conv2d", "conv3d", "conv_tbc", "convolution", "prelu"), ()),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), ()),
    **dict.fromkeys(("addmm", "addmv", "addr", "einsum", "mm", "mv", "linear", "addbmm", "baddbmm", "bmm"), ()),
    "matmul": ("__matmul__", "__rmatmul__"),
    "linalg_vecdot": ("vecdot",),
    "linalg_multi_dot": ("multi_dot",),
    **dict.fromkeys(("chain_matmul", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell", "gru_cell"), ()),
    **dict.fromkeys(("rnn_tanh_cell", "rnn_relu_cell", "_scaled_dot_product_flash_attention"), ()),
    "scaled_dot_product_attention": (),  # attention.py's own
}
FP32: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p"), ()),
    **dict.fromkeys(("reciprocal", "rsqrt", "sinh", "tan", "softplus", "layer_norm", "native_layer_norm"), ()),
    "pow": ("__pow__", "__rpow__", "__ipow__"),
    **dict.fromkeys(("rms_norm", "group_norm", "frobenius_norm", "nuclear_norm", "cosine_similarity"), ()),
    **dict.fromkeys(("poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d"), ()),
    **dict.fromkeys(("hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss"), ()),
    **dict.fromkeys(("margin_ranking_loss", "multilabel_margin_loss", "soft_margin_loss", "triplet_margin_loss"), ()),
    **dict.fromkeys(("multi_margin_loss", "binary_cross_entropy_with_logits", "dist", "pdist", "cdist"), ()),
    **dict.fromkeys(("renorm", "logsumexp", "upsample_nearest1d", "_upsample_nearest_exact1d"), ()),
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_nearest3d"), ()),
    **dict.fromkeys(("_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d"), ()),
    **dict.fromkeys(("_upsample_bilinear2d_aa", "upsample_trilinear3d", "upsample_bicubic2d"), ()),
    "_upsample_bicubic2d_aa": (),
}
FP32_SET_OPT_DTYPE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("prod", "softmax", "log_softmax", "cumprod", "cumsum", "sum", "norm"), ()),
    "linalg_vector_norm": ("vector_norm",),
    "linalg_matrix_norm": ("matrix_norm",),
}
PROMOTE = frozenset(
    ("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put")
    + ("tensordot", "scatter_add")
)  # to the widest of the arguments' dtypes: what torch does by itself, or refuses

CPU_LOWER = frozenset(
    ("conv1d", "conv2d", "conv3d", "bmm", "mm", "linalg_vecdot", "vecdot", "baddbmm", "addmm", "addbmm", "linear")
    + ("matmul", "__matmul__", "__rmatmul__", "conv_tbc", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
    + ("prelu", "scaled_dot_product_attention")
)
CPU_FP32 = frozenset(
    ("binary_cross_entropy", "grid_sampler", "prod", "quantile", "nanquantile", "cdist", "trace", "mse_loss")
    + ("cosine_embedding_loss", "nll_loss", "nll_loss2d", "hinge_embedding_loss", "poisson_nll_loss")
    + ("smooth_l1_loss", "cross_entropy", "l1_loss", "huber_loss", "margin_ranking_loss", "soft_margin_loss")
    + ("triplet_margin_loss", "multi_margin_loss", "ctc_loss", "kl_div", "multilabel_margin_loss")
    + ("binary_cross_entropy_with_logits", "fft_fft", "fft_ifft", "fft_fft2", "fft_ifft2", "fft_fftn", "fft_ifftn")
    + ("fft_rfft", "fft_irfft", "fft_rfft2", "fft_irfft2", "fft_rfftn", "fft_irfftn", "fft_hfft", "fft_ihfft")
)


def _names(table: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    return frozenset(table) | {name for others in table.values() for name in others}


class Simulation(TorchFunctionMode):
    """What a GPU (or, with `capability` None, a CPU) would do to the functions that a model calls on meta tensors."""

    def __init__(self, tracker: Tracker, capability: tuple[int, int] | None) -> None:
        super().__init__()
        self.tracker, self.capability = tracker, capability
        self.dtype: torch.dtype | None = None  # of autocast where the code now is; None: off
        self.depth = 0
        self.attention: dict[str, int] = {}  # sdpa's back end -> calls
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # id of a weight -> (weight, its copy)
        on_cpu = capability is None
        self.lower = CPU_LOWER if on_cpu else _names(LOWER)
        self.fp32 = CPU_FP32 if on_cpu else _names(FP32)
        self.fp32_by_dtype = frozenset() if on_cpu else _names(FP32_SET_OPT_DTYPE)

    def count_attention(self, chosen: str) -> None:
        """Counts a call of the attention back end `chosen`."""
        self.attention[chosen] = self.attention.get(chosen, 0) + 1

    @contextmanager
    def autocast(self, dtype: torch.dtype | None) -> Iterator[None]:
        """As torch.autocast: the copies of weights are forgotten where the outermost one ends."""
        before, self.dtype = self.dtype, dtype
        self.depth += 1
        try:
            yield
        finally:
            self.dtype = before
            self.depth -= 1
            if self.depth == 0:
                self._copies.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "backward" and args:
            return self._backward(func, args, kwargs)
        if name == "scaled_dot_product_attention":
            attention = partial(run_attention, self.capability, self.count_attention)
            return attention(*args, **kwargs) if self.dtype is None else _cast(self._low, attention, args, kwargs)
        if self.dtype is not None:
            if name in self.lower:
                return _cast(self._low, func, args, kwargs)
            if name in self.fp32:
                return _cast(_high, func, args, kwargs)
            if self.capability is not None and name == "cross_entropy":
                return self._cross_entropy(func, args, kwargs)
            elif name in self.fp32_by_dtype and kwargs.get("dtype") is None and _is_half(_first(args, kwargs)):
                if name in ("softmax", "log_softmax"):
                    return _softmax(name, _first(args, kwargs), _dim(args, kwargs))
                kwargs = {**kwargs, "dtype": torch.float32}
        elif (
            name in ("softmax", "log_softmax") and kwargs.get("dtype") is torch.float32 and self.capability is not None
        ):
            value = _first(args, kwargs)
            if isinstance(value, torch.Tensor) and value.dtype is torch.float16:
                return _softmax(name, value, _dim(args, kwargs))
        return func(*args, **kwargs)

    def _backward(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The public function would leave this mode, and checkpointing computes parts of the forward inside."""
        losses = args[0] if isinstance(args[0], Sequence) else (args[0],)
        given = kwargs.get("gradient", kwargs.get("grad_tensors", args[1] if len(args) > 1 else None))
        if kwargs.get("create_graph") or kwargs.get("inputs") is not None:
            return func(*args, **kwargs)
        grads: Sequence[Any] = given if isinstance(given, Sequence) else (given,) * len(losses)
        grads = [torch.ones_like(loss) if grad is None else grad for loss, grad in zip(losses, grads, strict=True)]
        keep = bool(kwargs.get("retain_graph"))
        with self:
            return torch.autograd.graph._engine_run_backward(
                tuple(losses), tuple(grads), keep, False, (), allow_unreachable=True, accumulate_grad=True
            )

    def _low(self, value: Any) -> Any:
        """cached_cast of autocast_mode.cpp: fp32 weights that are trained keep their copy until autocast ends."""
        dtype = self.dtype
        if (
            not isinstance(value, torch.Tensor)
            or not value.is_floating_point()
            or value.dtype in (dtype, torch.float64)
        ):
            return value
        base = value._base if value._base is not None else value
        if value.dtype == torch.float32 and value.requires_grad and value.is_leaf and value._base is None:
            known = self._copies.get(id(value))
            if known is None:
                known = self._copies[id(value)] = value, value.to(dtype)
                self.tracker.track(known[1], "autocast", part="AMP copies")
            return known[1]
        copy = value.to(dtype)
        if isinstance(base, nn.Parameter):
            self.tracker.track(copy, "autocast", part="AMP copies")
        return copy

    def _cross_entropy(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """On the fp32 lists by its parts: log_softmax (which takes halves as they are) and nll_loss."""
        logits = _first(args, kwargs)
        if not _is_half(logits):
            return func(*args, **kwargs)
        arguments = {k: v for k, v in kwargs.items() if v is not None and k != "input"}
        smoothing = arguments.pop("label_smoothing", 0.0)
        target = args[1] if len(args) > 1 else arguments["target"]
        if smoothing or target.is_floating_point():
            return func(*_mapped(_high, args), **_mapped(_high, kwargs))
        return F.nll_loss(_softmax("log_softmax", logits, 0 if logits.dim() == 1 else 1), *args[1:], **arguments)


def _cast(change: Callable[[Any], Any], func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`func` of changed arguments, as compiled C++ does it: the last is changed first, and given back last."""
    arguments = {name: _mapped(change, kwargs[name]) for name in reversed(kwargs)}
    changed = [_mapped(change, one) for one in reversed(args)]
    result = func(*reversed(changed), **arguments)
    while changed:
        changed.pop()
    return result


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _mapped(change, one) for name, one in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(_mapped(change, one) for one in value)
    return change(value)


def _high(value: Any) -> Any:
    return value.float() if _is_half(value) else value


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in HALF


def _first(args: Any, kwargs: Any) -> Any:
    return args[0] if args else kwargs.get("input")


def _dim(args: Any, kwargs: Any) -> int:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    return -1 if dim is None else int(dim)


def _softmax(name: str, value: torch.Tensor, dim: int) -> Any:
    """softmax to fp32: one kernel for float16 (SoftMax.cu, half_to_float), a cast before it for bfloat16."""
    op = aten._softmax if name == "softmax" else aten._log_softmax
    if value.dtype is torch.float16:
        return op(value, dim, True)
    return op(value.float(), dim, False)


# torch.autocast itself ----------------------------------------------------------------------------------------------


@contextmanager
def replace_autocast(simulation: Simulation, device: str) -> Iterator[None]:
    """torch.autocast, torch.is_autocast_enabled and torch.get_autocast_dtype act on the simulation for `device` (the
    kind that is simulated: cuda or cpu) and for meta; checkpointing, transformers, accelerate and TRL need no more.
    """
    kinds, available = (device, "meta"), torch.amp.is_autocast_available
    upstream, enabled, dtype_of = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype

    class Autocast(upstream):  # type: ignore[misc, valid-type]
        def __init__(
            self, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
        ) -> None:
            self.simulated = device_type in kinds
            self.contexts: list[Any] = []
            if self.simulated:
                default = torch.float16 if device == "cuda" else torch.bfloat16
                self.wanted = (dtype or default) if enabled else None
            else:
                super().__init__(device_type, dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)

        def __enter__(self) -> Any:
            if not self.simulated:
                return super().__enter__()
            self.contexts.append(simulation.autocast(self.wanted))
            return self.contexts[-1].__enter__()

        def __exit__(self, *problem: Any) -> Any:
            if not self.simulated:
                return super().__exit__(*problem)
            return self.contexts.pop().__exit__(*problem)

        def __call__(self, function: Any) -> Any:
            return torch.amp.autocast_mode.autocast_decorator(self, function)

    def is_autocast_enabled(device_type: str = "cuda") -> bool:
        return simulation.dtype is not None if device_type in kinds else enabled(device_type)

    def get_autocast_dtype(device_type: str) -> torch.dtype:
        if device_type not in kinds:
            return dtype_of(device_type)
        return simulation.dtype or (torch.float16 if device == "cuda" else torch.bfloat16)

    def is_autocast_available(device_type: str) -> bool:
        return device_type in kinds or available(device_type)

    locations = ((torch, "autocast"), (torch.amp, "autocast"), (torch.amp.autocast_mode, "autocast"))
    try:
        for module, name in locations:
            setattr(module, name, Autocast)
        torch.amp.is_autocast_available = is_autocast_available
        torch.is_autocast_enabled = is_autocast_enabled
        torch.get_autocast_dtype = get_autocast_dtype
        yield
    finally:
        for module, name in locations:
            setattr(module, name, upstream)
        torch.is_autocast_enabled, torch.get_autocast_dtype = enabled, dtype_of
        torch.amp.is_autocast_available = available
