"""Which module runs, in the forward and in its backward, for the line of the model that holds the peak."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

if TYPE_CHECKING:
    from hf_recipes.plan.trace.tracker import Tracker

WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")


@contextmanager
def track_modules(tracker: Tracker, model: Any) -> Iterator[None]:
    """Keeps `tracker.path` while modules run, and `tracker.backward_path` while autograd goes back through them."""
    names = {id(module): _short(name) or type(module).__name__ for name, module in model.named_modules()}

    def enter(module: Any, args: Any) -> None:
        tracker.path.append(names.get(id(module), type(module).__name__))

    def leave(module: Any, args: Any, output: Any) -> None:
        path = tracker.path.pop() if tracker.path else ""
        tensor = output[0] if isinstance(output, tuple) and output else output
        if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
            tensor.grad_fn.register_prehook(lambda grads: _mark(tracker, path))

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        tracker.path.clear()


def _mark(tracker: Tracker, path: str) -> None:
    tracker.backward_path = path


def _short(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
