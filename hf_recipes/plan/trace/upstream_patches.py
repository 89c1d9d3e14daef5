"""Patches of upstream with which its real Trainer runs on meta tensors; all are undone at the end.

Each private name is listed in tests/support/upstream_private_points.py with the test that checks it.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

META = torch.device("meta")


@contextmanager
def patch_upstream_for_meta(*, cuda: bool, trl: bool = True) -> Iterator[None]:
    """Trainer, accelerate, optimizers, bitsandbytes and TRL take "meta" for their device. `cuda`: they behave as on a
    GPU (foreach optimizers, TRL's Triton path); else as on a CPU. `trl`: whether SFTTrainer trains."""
    with ExitStack() as stack:
        stack.enter_context(_device())
        stack.enter_context(_no_deepspeed())
        stack.enter_context(_optimizers(cuda))
        stack.enter_context(_bitsandbytes(cuda))
        if cuda:
            stack.enter_context(_fused_dropout())
            if trl:
                stack.enter_context(_trl())
        yield


@contextmanager
def replace_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = inspect.getattr_static(owner, name)  # a static method as one
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _device() -> Iterator[None]:
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from transformers import TrainingArguments

    original = TrainingArguments.device

    def device(args: Any) -> torch.device:
        original.fget(args)  # type: ignore[attr-defined]  # it sets up accelerate's state
        PartialState._shared_state["device"] = META
        return META

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    try:
        with replace_attribute(TrainingArguments, "device", property(device)):
            yield
    finally:
        reset()


@contextmanager
def _no_deepspeed() -> Iterator[None]:
    """accelerate imports DeepSpeed where it is installed, to ask whether the model is one of its engines: some 400
    modules, and no model that is traced is one."""
    from accelerate.utils import other

    with replace_attribute(other, "is_deepspeed_available", lambda: False):
        yield


@contextmanager
def _optimizers(cuda: bool) -> Iterator[None]:
    import torch.optim.optimizer as base
    import torch.utils._foreach_utils as foreach

    fused_on = [*foreach._get_fused_kernels_supported_devices(), "meta"]
    foreach_on = [*foreach._get_foreach_kernels_supported_devices(), *(["meta"] if cuda else [])]
    with ExitStack() as stack:
        for module in (foreach, base):
            stack.enter_context(replace_attribute(module, "_get_fused_kernels_supported_devices", lambda: fused_on))
            stack.enter_context(replace_attribute(module, "_get_foreach_kernels_supported_devices", lambda: foreach_on))
        yield


@contextmanager
def _fused_dropout() -> Iterator[None]:
    """Dropout on a GPU is one kernel with a mask of bytes (aten/src/ATen/native/Dropout.cpp goes by the device);
    elsewhere it is made of parts, and its mask has the dtype of its input. Set where torch's own composites call it."""
    decomposed = torch.ops.aten.dropout.default.decompose

    def dropout(input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
        if not train or p == 0 or input.numel() == 0:
            return input
        return torch.native_dropout(input, p, train)[0] if p < 1 else decomposed(input, p, train)

    library = torch.library.Library("aten", "IMPL")
    library.impl("dropout", dropout, "AutogradMeta")
    try:
        yield
    finally:
        library._destroy()


@contextmanager
def _bitsandbytes(cuda: bool) -> Iterator[None]:
    """Paged states lie in managed memory, which torch's allocator does not count: the tracker does not see them. And
    on a CPU the products of 8 bit are made in floating point (matmul goes by the device)."""
    try:
        import bitsandbytes.autograd._functions as products
        import bitsandbytes.functional as functional
        import bitsandbytes.optim.optimizer as optimizer
    except ImportError:
        yield
        return

    def get_paged(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
        with _disable_current_modes():  # the tracker's
            found = torch.empty(shape, dtype=dtype, device="meta")
        found.is_paged, found.page_deviceid = True, 0  # type: ignore[attr-defined]
        return found

    manager = optimizer.GlobalOptimManager.get_instance()
    with ExitStack() as stack:
        stack.enter_context(replace_attribute(functional, "get_paged", get_paged))
        stack.enter_context(replace_attribute(functional, "prefetch_tensor", lambda *_, **__: None))
        if not cuda:
            stack.enter_context(replace_attribute(products, "MatMul8bitLt", products.MatMul8bitFp))
        stack.enter_context(replace_attribute(functional, "fill", lambda *_, **__: None))
        try:
            yield
        finally:
            for name in ("pid2config", "index2config"):
                getattr(manager, name).clear()
            manager.module_weight_config_triple.clear()
            functional.GlobalPageManager.get_instance().paged_tensors.clear()


class _NoKernel:
    """A Triton kernel that is not launched: its outputs are allocated by its caller."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


@contextmanager
def _trl() -> Iterator[None]:
    """TRL's fused head as on a GPU: its Triton path, without the launches."""
    try:
        import trl.kernels.chunked_logprob as chunked
        import trl.trainer.utils as utils
    except ImportError:
        yield
        return
    values = {
        "_use_triton": lambda device: True,
        "_forward_kernel": _NoKernel(),
        "_backward_kernel": _NoKernel(),
        "_addmm_fp32": _addmm_fp32,
        "triton": types.SimpleNamespace(cdiv=lambda a, b: -(-a // b)),
    }
    added = not hasattr(chunked, "triton")
    if added:
        chunked.triton = None
    with ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(replace_attribute(chunked, name, value))
        stack.enter_context(replace_attribute(utils, "_use_triton", lambda device: True))
        yield
    if added:
        del chunked.triton


def _addmm_fp32(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """addmm with out_dtype=float32 writes into `total` and allocates nothing."""
