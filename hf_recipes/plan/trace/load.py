"""What loading a model straight onto the GPU leaves in the allocator's cache, replayed in order on a tracker.

transformers 5.24, modeling_utils.py and core_model_loading.py: where a device_map names the GPU (a quantised model),
`caching_allocator_warmup` takes one block of the model's size and gives it back; the weights are then cut from it in
the order of their names, each quantised weight beside its original in half precision, which is given back when it is
packed (bitsandbytes 0.50.2, functional.quantize_4bit). Nothing of that is in use later, and all of it stays reserved.

Weights that are quantised as they are read are loaded one after another (core_model_loading's
`has_on_the_fly_quantization`): the order is known. Older releases load ahead of the quantiser in four threads, and how
many originals lie on the GPU at once is a race; models/build.py turns that off (HF_DEACTIVATE_ASYNC_LOAD). What the
race may end in: load_race.py.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from hf_recipes.plan.trace.tracker import Tracker

# Of names of weights that peft adds: they come after the load.
ADAPTER = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "modules_to_save"}


def replay_load(tracker: Tracker, model: Any) -> tuple[int, ...]:
    """Records how `model` came onto the GPU, weight by weight; what it leaves is tracked, without an adapter's. Returns
    how many events each took, `caching_allocator_warmup`'s first."""
    ends = [len(tracker.events)]
    with _disable_current_modes(), tracker.during("loading"):  # the tracker itself: looking at a weight makes a view
        tracker.free_storage(tracker.add_storage(warmup_bytes(model), "caching_allocator_warmup", part="weights"))
        ends.append(len(tracker.events))
        for _, param in in_order_of_names(model):
            passing: list[int] = []
            if is_packed(param):
                state = param.quant_state
                passing.append(
                    tracker.add_storage(state.shape.numel() * state.dtype.itemsize, "original", part="weights")
                )
                if state.nested:  # absmax, and the same less its mean
                    absmax = state.absmax.numel() * 4
                    passing += [tracker.add_storage(absmax, "quantize_4bit", part="weights") for _ in range(2)]
            elif getattr(param, "SCB", None) is not None:  # 8 bit: Int8Params._quantize takes it in half precision
                passing.append(tracker.add_storage(2 * param.numel(), "original", part="weights"))
            for tensor in tensors_of(param):
                tracker.track(tensor, "loaded", part="weights")
            for number in reversed(passing):
                tracker.free_storage(number)
            ends.append(len(tracker.events))
    return tuple(end - begin for begin, end in pairwise(ends))


def warmup_bytes(model: Any) -> int:
    """get_total_byte_count: each weight once, four bits of a quantised one; a whole number of halves. Buffers
    that a checkpoint has are few and small: they are left out."""
    total = 0.0
    for _, param in in_order_of_names(model):
        total += param.quant_state.shape.numel() / 2 if is_packed(param) else param.nbytes
    return int(total // 2) * 2


def in_order_of_names(model: Any) -> list[tuple[str, Any]]:
    """core_model_loading.dot_natural_key: layer 2 before layer 10."""

    def key(pair: tuple[str, Any]) -> list[tuple[int, str, int]]:
        parts = (re.fullmatch(r"(.*?)(\d*)", part) for part in pair[0].split("."))
        return [(int(bool(part[1])), part[1], int(part[2] or -1)) for part in parts if part]

    return sorted(((n, p) for n, p in model.named_parameters() if not ADAPTER & set(n.split("."))), key=key)


def is_packed(param: Any) -> bool:
    return getattr(param, "quant_state", None) is not None


def tensors_of(param: Any) -> list[torch.Tensor]:
    """A weight, and the scales of a quantised one in the order in which they are made."""
    if not is_packed(param):
        scales = getattr(param, "SCB", None)
        return [param] if scales is None else [param.data, scales]
    state = param.quant_state
    found = [param.data]
    if state.nested:
        found += [state.code, state.offset, state.absmax, state.state2.absmax, state.state2.code]
    else:
        found += [state.absmax, state.code]
    return [one for one in found if isinstance(one, torch.Tensor)]
